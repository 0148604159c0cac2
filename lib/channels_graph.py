"""The dependency graph of a network (Torch-Pruning's), with option-A shortcuts that can follow pruned streams."""

from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from lib.resnets import PadShortcut

LAYERS = (nn.Conv2d, nn.Linear)


def traceable(model: nn.Module) -> nn.Module:
    """The same network, with shortcuts of option A in the form that can follow pruned streams."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PadShortcut):
            parent = model.get_submodule(name.rpartition(".")[0])
            inputs = parent.conv1.weight.shape[1]
            source = torch.tensor([-1] * module.before + list(range(inputs)) + [-1] * module.after)
            device = parent.conv1.weight.device
            setattr(parent, name.rpartition(".")[2], ChannelShortcut(module.stride, source.to(device)))
    return model


def build(model: nn.Module, size: int) -> tuple[tp.DependencyGraph, dict[nn.Module, int]]:
    """The dependency graph of a network, which it leaves in evaluation mode, and the output pixels of its layers."""
    first = next(module for module in model.modules() if isinstance(module, LAYERS))
    pixels = (size, size) if isinstance(first, nn.Conv2d) else ()
    inputs = first.weight.shape[1] * getattr(first, "groups", 1)
    images = torch.zeros(1, inputs, *pixels, device=first.weight.device, dtype=first.weight.dtype)
    areas: dict[nn.Module, int] = {}

    def record(layer: nn.Module, _, output: Tensor) -> None:
        areas[layer] = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1

    hooks = [layer.register_forward_hook(record) for layer in model.modules() if isinstance(layer, LAYERS)]
    try:
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(
                model, images, customized_pruners={ChannelShortcut: _ShortcutPruner()}, verbose=False
            )
    finally:
        for hook in hooks:
            hook.remove()
    return graph, areas


class ChannelShortcut(nn.Module):
    """Option A between two pruned streams: every `stride`-th pixel of the channels that still have a place there.

    source: for each output channel the input channel that it continues, or -1 for a channel of zeros.
    """

    def __init__(self, stride: int, source: Tensor):
        super().__init__()
        self.stride = stride
        self.register_buffer("source", source)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1))  # -1 reads the last channel: zeros
        return padded[:, self.source]


class _ShortcutPruner(tp.BasePruningFunc):
    """How the dependency graph prunes a `ChannelShortcut`: its two streams are different groups."""

    def get_out_channels(self, layer: ChannelShortcut) -> int:
        return len(layer.source)

    def get_in_channels(self, layer: ChannelShortcut) -> None:
        return None  # not stored in the layer; the stream that it reads knows

    def prune_out_channels(self, layer: ChannelShortcut, removed: Sequence[int]) -> ChannelShortcut:
        stays = torch.ones(len(layer.source), dtype=torch.bool, device=layer.source.device)
        stays[list(removed)] = False
        layer.source = layer.source[stays]
        return layer

    def prune_in_channels(self, layer: ChannelShortcut, removed: Sequence[int]) -> ChannelShortcut:
        gone = torch.tensor(list(removed), device=layer.source.device)
        before = (gone[None] < layer.source[:, None]).sum(1)  # removed channels before each source
        layer.source = torch.where(torch.isin(layer.source, gone), -1, layer.source - before)
        return layer
