"""The dependency graph of a network (Torch-Pruning's), with option-A shortcuts that can follow pruned streams.

A network as coupled channel groups: MACs and parameters of many width vectors at once, and filters cut to a width.

A *group* is a set of channels that can only be removed together: the filters of one convolution inside a block, or of
all convolutions that add to one residual stream.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models import PadShortcut, head_name

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


CRITERIA = ("l1", "l2", "bn", "random")
BLOCK = 8192  # width vectors that are counted at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Groups:
    """The prunable channel groups of a network, and what each width costs.

    names: of the first layer that writes each group, in the network's order. dense: their widths before pruning.
    area: output pixels H * W of the layer that writes the group (1 for a linear layer).
    writers, readers: names of the convolutions and linear layers that write and read each group.
    macs, parameters: (G + 1, G + 1) coefficients of the products of widths; place 0 stands for the constant 1.
    """

    names: tuple[str, ...]
    dense: np.ndarray
    area: np.ndarray
    writers: tuple[tuple[str, ...], ...]
    readers: tuple[tuple[str, ...], ...]
    macs: np.ndarray
    parameters: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def only(self, names: Sequence[str]) -> "Groups":
        """These groups as the prunable ones; the others keep their dense widths. ValueError for an unknown name."""
        if missing := [name for name in names if name not in self.names]:
            raise ValueError(f"No channel group is called {missing[0]!r}: known are {', '.join(self.names)}.")
        places = [self.names.index(name) for name in names]
        fold = np.zeros((len(self) + 1, len(places) + 1))  # all widths from the chosen ones
        fold[:, 0] = [1, *self.dense]
        for column, place in enumerate(places, 1):
            fold[place + 1] = np.eye(len(places) + 1)[column]
        chosen = {name: tuple(getattr(self, name)[place] for place in places) for name in ("writers", "readers")}
        return Groups(
            tuple(names), self.dense[places], self.area[places], **chosen,
            macs=fold.T @ self.macs @ fold, parameters=fold.T @ self.parameters @ fold,
        )  # fmt: skip

    def internal(self) -> "Groups":
        """The groups that one layer writes and one reads: block-internal convolutions, without stem and streams."""
        alone = zip(self.names, self.writers, self.readers, strict=True)
        return self.only([name for name, writers, readers in alone if len(writers) == len(readers) == 1])

    @cached_property
    def polynomials(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Constants (2,), linear coefficients (G, 2) and quadratic ones (G, 2 G) of MACs and parameters."""
        both = (self.macs, self.parameters)
        linear = np.stack([form[0, 1:] + form[1:, 0] for form in both], axis=1)
        return np.array([form[0, 0] for form in both]), linear, np.concatenate([form[1:, 1:] for form in both], axis=1)


def find(model: nn.Module, size: int = 32) -> Groups:
    """All channel groups of a network for square images of `size` pixels; the outputs of its last layer are fixed.

    MACs are those of convolutions and linear layers; parameters include biases and BatchNorm.
    Raises ValueError for a grouped convolution that is not depthwise.
    """
    copy = traceable(deepcopy(model).to("meta"))
    graph, areas = build(copy, size)
    layers = {name: module for name, module in copy.named_modules() if isinstance(module, LAYERS)}
    depthwise = {name for name, layer in layers.items() if _depthwise(name, layer)}
    writers, readers, writes, reads = [], [], {}, {}
    for place, (written, read) in enumerate(_members(copy, graph, list(layers)), 1):
        writers.append(tuple(name for name in layers if name in written - depthwise))
        readers.append(tuple(name for name in layers if name in read.keys() - depthwise))
        dense = len(layers[writers[-1][0]].weight)
        writes |= dict.fromkeys(written, place)
        reads |= {name: (place, entries / dense) for name, entries in read.items()}
    macs, parameters = (np.zeros((len(writers) + 1, len(writers) + 1)) for _ in range(2))
    for name, layer in layers.items():
        outputs, inputs = layer.weight.shape[:2]
        output, input_ = writes.get(name, 0), (0, 1.0) if name in depthwise else reads.get(name, (0, inputs))
        weights = layer.weight[0, 0].numel() * input_[1] * (1 if output else outputs)
        parameters[input_[0], output] += weights
        macs[input_[0], output] += weights * areas[layer]
        if layer.bias is not None:
            parameters[0, output] += 1 if output else outputs
    for name, norm in copy.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            parameters[0, writes.get(name, 0)] += 2 if name in writes else 2 * norm.num_features
    first = [layers[names[0]] for names in writers]
    return Groups(
        names=tuple(names[0] for names in writers),
        dense=np.array([len(layer.weight) for layer in first]),
        area=np.array([areas[layer] for layer in first]),
        writers=tuple(writers),
        readers=tuple(readers),
        macs=macs,
        parameters=parameters,
    )


def _members(model: nn.Module, graph: tp.DependencyGraph, layers: list[str]) -> list[tuple[set[str], dict[str, int]]]:
    """For each group, in the network's order: modules that write it, and layers that read it with their entries."""
    names = {module: name for name, module in model.named_modules()}
    found = []
    for group in graph.get_all_groups([model.get_submodule(head_name(model))], LAYERS):
        written, read = set(), {}
        for dependency, entries in group:
            name = names.get(dependency.target.module)
            if graph.is_out_channel_pruning_fn(dependency.handler):
                written.add(name)
            elif name in layers:
                read[name] = len(entries)
        found.append((written - {None}, read))
    return sorted(found, key=lambda group: min(layers.index(name) for name in group[0] if name in layers))


def count(groups: Groups, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MACs of one image and parameters of each of many width vectors, (..., G) -> two (...) arrays.

    Integer widths give exact int64 counts; widths that are not rounded give float64, for solvers.
    Raises ValueError for a width below 1 or above the dense one.
    """
    widths = np.asarray(widths)
    check_widths(groups, widths)
    flat = widths.reshape(-1, len(groups))
    constant, linear, quadratic = groups.polynomials
    result = np.empty((len(flat), 2))
    for start in range(0, len(flat), BLOCK):
        x = flat[start : start + BLOCK].astype(np.float64)
        result[start : start + BLOCK] = x @ linear + constant
        if quadratic.any():
            products = (x @ quadratic).reshape(len(x), 2, len(groups))
            result[start : start + BLOCK] += np.einsum("nkg,ng->nk", products, x)
    if np.issubdtype(widths.dtype, np.integer):
        result = np.rint(result).astype(np.int64)
    macs, parameters = result.T.reshape(2, *widths.shape[:-1])
    return macs, parameters


def check_widths(groups: Groups, widths: np.ndarray) -> None:
    """ValueError, in one sentence, unless all widths (..., G) lie between 1 and the dense ones."""
    if widths.ndim == 0 or widths.shape[-1] != len(groups):
        raise ValueError(f"Widths must have {len(groups)} entries, one a channel group, not shape {widths.shape}.")
    if widths.size and (widths.min() < 1 or (widths > groups.dense).any()):
        place = np.flatnonzero(((widths < 1) | (widths > groups.dense)).reshape(-1, len(groups)).any(0))[0]
        raise ValueError(f"Widths of {groups.names[place]} must lie between 1 and {groups.dense[place]} channels.")


def prune(
    model: nn.Module,
    widths: Mapping[str, int],
    criterion: str = "l1",
    *,
    size: int = 32,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of a network that keeps the given number of channels, those of the largest score.

    Args:
        widths: channels to keep by layer name; layers of one group must agree, groups without a name stay dense.
        criterion: "l1" or "l2" norm of the filters of all layers that write the group, "bn" sum of |scale| of its
            BatchNorms, "random" (needs `generator`). Ties keep the channel that comes first.
        size: side of the square images (pixels).

    Raises: ValueError for unknown names, widths outside 1 .. dense, coupled layers of different widths.
    """
    groups, kept = find(model, size), {}
    asked: dict[str, dict[str, int]] = {}
    for layer, width in widths.items():
        group = _group_of(groups, layer)
        asked.setdefault(group, {})[layer] = int(width)
    for group, by_layer in asked.items():
        if len(set(by_layer.values())) > 1:
            told = ", ".join(f"{layer}: {width}" for layer, width in by_layer.items())
            raise ValueError(f"Layers of one channel group must keep equally many channels, not {told}.")
        width = next(iter(by_layer.values()))
        check_widths(groups.only([group]), np.array([width]))
        order = scores(model, groups, group, criterion, generator).argsort(descending=True, stable=True)
        kept[group] = order[:width].sort().values.tolist()
    return keep(model, kept, size=size)


def scores(
    model: nn.Module, groups: Groups, group: str, criterion: str, generator: torch.Generator | None = None
) -> Tensor:
    """The score of each channel of a group, float64 (channels,); see `prune` for the criteria."""
    writers = [model.get_submodule(name) for name in groups.writers[groups.names.index(group)]]
    weights = torch.cat([layer.weight.detach().double().flatten(1) for layer in writers], dim=1)
    if criterion in ("l1", "l2"):
        return torch.linalg.vector_norm(weights, int(criterion[1]), dim=1)
    if criterion == "random" and generator is not None:
        return torch.rand(len(weights), generator=generator, dtype=torch.float64).to(weights.device)
    if criterion == "bn":
        modules = dict(model.named_modules())
        order = list(modules.values())
        followers = [order[order.index(layer) + 1 :] for layer in writers]
        norms = [next((m for m in later if isinstance(m, (nn.BatchNorm2d, *LAYERS))), None) for later in followers]
        if all(isinstance(norm, nn.BatchNorm2d) for norm in norms):
            return torch.stack([norm.weight.detach().double().abs() for norm in norms]).sum(0)
        raise ValueError(f"Group {group} has a layer without BatchNorm behind it: choose the criterion l1 or l2.")
    raise ValueError(f"Criterion {criterion!r} must be one of {', '.join(CRITERIA)}; random needs a generator.")


def keep(model: nn.Module, kept: Mapping[str, Sequence[int]], *, size: int = 32) -> nn.Module:
    """A copy of a network that keeps exactly these channels of each named group; the others stay dense.

    Args:
        kept: indices by the name of any layer that writes the group; in what order does not matter.
        size: side of the square images (pixels).

    Raises: ValueError for an unknown layer, two layers of one group, indices that are empty, repeated or out of range.
    """
    copy = traceable(deepcopy(model))
    graph, _ = build(copy, size)
    modules, done = dict(copy.named_modules()), {}
    for name, indices in kept.items():
        layer = modules.get(name)
        if not isinstance(layer, LAYERS):
            raise ValueError(f"{name!r} is no convolution or linear layer of this network.")
        if layer in done:
            raise ValueError(f"{name} is in the channel group of {done[layer]}: give the indices of a group once.")
        channels = layer.weight.shape[0]
        chosen = {int(index) for index in indices}
        if not chosen or len(chosen) != len(indices) or not chosen <= set(range(channels)):
            raise ValueError(f"{name} needs one or more different indices below {channels}, not {list(indices)}.")
        removed = sorted(set(range(channels)) - chosen)
        cut = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, cut, removed or [0])
        writers = (dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler))
        done |= dict.fromkeys(writers, name)
        if removed:
            group.prune()
    return copy.train(model.training)


def _group_of(groups: Groups, layer: str) -> str:
    for name, writers in zip(groups.names, groups.writers, strict=True):
        if layer in writers:
            return name
    raise ValueError(f"No channel group is written by {layer!r}: prunable groups are {', '.join(groups.names)}.")


def _depthwise(name: str, layer: nn.Module) -> bool:
    count = getattr(layer, "groups", 1)
    if count not in (1, len(layer.weight)):
        raise ValueError(f"{name} is a convolution in {count} groups: only ungrouped and depthwise ones can be pruned.")
    return count > 1
