"""A network as coupled channel groups: MACs and parameters of many width vectors at once, and filters removed.

A *group* is a set of channels that can only be removed together: the filters of one convolution inside a block, or of
all convolutions that add to one residual stream. Torch-Pruning finds the groups and removes their channels.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from lib.models import PadShortcut, head_name

LAYERS = (nn.Conv2d, nn.Linear)
BLOCK = 2048  # width vectors that are counted at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Groups:
    """The prunable channel groups of a network, and what each width costs.

    Attributes:
        names: of the first layer that writes each group, in the network's order.
        dense: widths before pruning.
        area: output pixels H * W of the layer that writes the group (1 for a linear layer).
        writers: names of the convolutions and linear layers that write each group.
        readers: names of those that read it.
        macs: (G + 1, G + 1) coefficients of the products of widths; index 0 stands for the constant 1.
        parameters: likewise.
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
        """These groups as the prunable ones; the others keep their dense widths.

        Raises:
            ValueError: for a name that is no group's; for another layer of a group it says which group that is.
        """
        for name in set(names) - set(self.names):
            owner = [group for group, writers in zip(self.names, self.writers, strict=True) if name in writers]
            hint = f"{name} is written together with {owner[0]}" if owner else f"known are {', '.join(self.names)}"
            raise ValueError(f"No channel group is called {name!r}: {hint}.")
        chosen = [self.names.index(name) for name in names]
        fold = np.zeros((len(self) + 1, len(chosen) + 1))  # all widths from the chosen ones
        fold[:, 0] = [1, *self.dense]
        for column, index in enumerate(chosen, 1):
            fold[index + 1] = np.eye(len(chosen) + 1)[column]
        return Groups(
            names=tuple(names),
            dense=self.dense[chosen],
            area=self.area[chosen],
            writers=tuple(self.writers[index] for index in chosen),
            readers=tuple(self.readers[index] for index in chosen),
            macs=fold.T @ self.macs @ fold,
            parameters=fold.T @ self.parameters @ fold,
        )

    def internal(self) -> "Groups":
        """The groups that one layer writes and one reads: block-internal convolutions, without stem and streams."""
        alone = zip(self.names, self.writers, self.readers, strict=True)
        return self.only([name for name, writers, readers in alone if len(writers) == len(readers) == 1])

    @cached_property
    def polynomials(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Constants (2,), linear coefficients (G, 2) and those of the `products` (P, 2), of MACs and parameters."""
        both = np.stack([self.macs, self.parameters], axis=2)
        return both[0, 0], both[0, 1:] + both[1:, 0], both[1:, 1:][self.products]

    @cached_property
    def products(self) -> tuple[np.ndarray, np.ndarray]:
        """The two groups, (P,) each, of the products of widths that occur: those that a layer reads and writes."""
        return np.nonzero((self.macs != 0)[1:, 1:] | (self.parameters != 0)[1:, 1:])


def find(model: nn.Module, size: int = 32) -> Groups:
    """All channel groups of a network for square images of `size` pixels; the outputs of its last layer are fixed.

    MACs are those of convolutions and linear layers; parameters include biases and BatchNorm.

    Raises:
        ValueError: for a grouped convolution that is not depthwise, a network without a linear head, and a `size` that
            is no whole number.
    """
    if not isinstance(size, int | np.integer):
        raise ValueError(f"size is {size!r}; it must be the side of square images in pixels, such as 32.")
    copy = deepcopy(model).to("meta")
    graph, areas = _dependencies(copy, size)
    layers = {name: module for name, module in copy.named_modules() if isinstance(module, LAYERS)}
    depthwise = {name for name, layer in layers.items() if getattr(layer, "groups", 1) > 1}
    for name in depthwise:
        if (parts := layers[name].groups) != len(layers[name].weight):
            raise ValueError(f"{name} is a convolution in {parts} groups: only ungrouped and depthwise can be pruned.")
    writers, readers, writes, reads = [], [], {}, {}
    for index, (written, read) in enumerate(_members(copy, graph, list(layers)), 1):
        writers.append(tuple(name for name in layers if name in written - depthwise))
        readers.append(tuple(name for name in layers if name in read.keys() - depthwise))
        dense = len(layers[writers[-1][0]].weight)
        writes |= dict.fromkeys(written, index)
        reads |= {name: (index, entries / dense) for name, entries in read.items()}
    macs, parameters = np.zeros((2, len(writers) + 1, len(writers) + 1))
    for name, layer in layers.items():
        outputs, inputs = layer.weight.shape[:2]
        column, fixed = writes.get(name, 0), 1 if name in writes else outputs
        row, times = (0, 1.0) if name in depthwise else reads.get(name, (0, inputs))
        weights = layer.weight[0, 0].numel() * times * fixed
        parameters[row, column] += weights
        macs[row, column] += weights * areas[layer]
        if layer.bias is not None:
            parameters[0, column] += fixed
    for name, norm in copy.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            parameters[0, writes.get(name, 0)] += 2 if name in writes else 2 * norm.num_features
    names = tuple(group[0] for group in writers)
    return Groups(
        names=names,
        dense=np.array([len(layers[name].weight) for name in names]),
        area=np.array([areas[layers[name]] for name in names]),
        writers=tuple(writers),
        readers=tuple(readers),
        macs=macs,
        parameters=parameters,
    )


def count(groups: Groups, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MACs of one image and parameters of each of many width vectors, (..., G) -> two (...) arrays.

    Integer widths give exact int64 counts; widths that are not rounded give float64, for solvers.

    Raises:
        ValueError: for a width below 1 or above the dense one.
    """
    widths = np.asarray(widths)
    _check_shape(groups, widths)
    flat = widths.reshape(-1, len(groups))
    constant, linear, quadratic = groups.polynomials
    first, second = groups.products
    exact = np.issubdtype(widths.dtype, np.integer)
    result = np.empty((len(flat), 2), np.int64 if exact else np.float64)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        _check_range(groups, block)
        x = block.astype(np.float64)
        costs = x @ linear + constant
        if len(quadratic):
            costs += (x[:, first] * x[:, second]) @ quadratic
        result[start : start + BLOCK] = np.rint(costs) if exact else costs
    macs, parameters = result.T.reshape(2, *widths.shape[:-1])
    return macs, parameters


def prune(
    model: nn.Module,
    widths: Mapping[str, int],
    criterion: str = "l1",
    *,
    size: int = 32,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of a network that keeps the given number of channels of each named group, those of the largest score.

    `size` is the side of the square images (pixels). For the criteria see `scores`; ties keep the channel that comes
    first. Groups without a name stay dense.

    Raises:
        ValueError: for an unknown name or criterion, or a width outside 1 .. dense.
    """
    groups = find(model, size)
    _check_widths(groups.only(list(widths)), np.array([*widths.values()]))
    kept = {}
    for group, width in widths.items():
        order = scores(model, groups, group, criterion, generator).argsort(descending=True, stable=True)
        kept[group] = order[: int(width)].sort().values.tolist()
    return keep(model, kept, size=size)


def scores(
    model: nn.Module, groups: Groups, group: str, criterion: str, generator: torch.Generator | None = None
) -> Tensor:
    """The score of each channel of a group, float64 (channels,).

    The criterion is the "l1" or "l2" norm of the filters of all layers that write the group, "bn", the sum of |scale|
    over the BatchNorms behind them, or "random", which needs a generator.

    Raises:
        ValueError: for another criterion, "random" without a generator, or "bn" where a BatchNorm is missing.
    """
    writers = [model.get_submodule(name) for name in groups.writers[groups.names.index(group)]]
    weights = torch.cat([layer.weight.detach().double().flatten(1) for layer in writers], dim=1)
    if criterion in ("l1", "l2"):
        return torch.linalg.vector_norm(weights, int(criterion[1]), dim=1)
    if criterion == "random":
        if not isinstance(generator, torch.Generator):
            raise ValueError('Criterion "random" needs a torch.Generator: pass generator.')
        return torch.rand(len(weights), generator=generator, dtype=torch.float64).to(weights.device)
    if criterion == "bn":
        order = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, *LAYERS))]
        norms = [order[order.index(layer) + 1] for layer in writers]
        if all(isinstance(norm, nn.BatchNorm2d) for norm in norms):
            return torch.stack([norm.weight.detach().double().abs() for norm in norms]).sum(0)
        raise ValueError(f"Group {group} has a layer without BatchNorm behind it: choose the criterion l1 or l2.")
    raise ValueError(f"Criterion {criterion!r} must be one of l1, l2, bn, random.")


def keep(model: nn.Module, kept: Mapping[str, Sequence[int]], *, size: int = 32) -> nn.Module:
    """A copy of a network that keeps exactly these channels of each named group; the others stay dense.

    The order of the indices does not matter; `size` is the side of the square images (pixels).

    Raises:
        ValueError: for an unknown name, or indices that are none, repeated or out of range.
    """
    groups, copy = find(model, size).only(list(kept)), deepcopy(model)
    graph, _ = _dependencies(copy, size)
    for name, dense in zip(groups.names, groups.dense.tolist(), strict=True):
        chosen = {int(index) for index in kept[name]}
        if not chosen or len(chosen) != len(kept[name]) or not chosen <= set(range(dense)):
            raise ValueError(f"{name} needs one or more different indices below {dense}, not {list(kept[name])}.")
        if removed := sorted(set(range(dense)) - chosen):
            layer = copy.get_submodule(name)
            cut = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, cut, removed).prune()
    return copy.train(model.training)


def _dependencies(model: nn.Module, size: int) -> tuple[tp.DependencyGraph, dict[nn.Module, int]]:
    """The dependency graph of a network, left in evaluation mode, and the output pixels of its layers."""
    layers, areas = [module for module in model.modules() if isinstance(module, LAYERS)], {}
    first = layers[0]
    pixels = (size, size) if isinstance(first, nn.Conv2d) else ()
    inputs = first.weight.shape[1] * getattr(first, "groups", 1)
    images = torch.zeros(1, inputs, *pixels, device=first.weight.device, dtype=first.weight.dtype)

    def record(layer: nn.Module, _, output: Tensor) -> None:
        areas[layer] = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1

    hooks = [layer.register_forward_hook(record) for layer in layers]
    pruners = {PadShortcut: _ShortcutPruner()}
    try:
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(model, images, customized_pruners=pruners, verbose=False)
    finally:
        for hook in hooks:
            hook.remove()
    return graph, areas


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


class _ShortcutPruner(tp.BasePruningFunc):
    """How Torch-Pruning removes channels on the two sides of a `PadShortcut`, which belong to different groups."""

    def get_out_channels(self, layer: PadShortcut) -> int:
        return len(layer.source)

    def get_in_channels(self, layer: PadShortcut) -> None:
        return None  # the layer does not store it; the stream that it reads does

    def prune_out_channels(self, layer: PadShortcut, removed: Sequence[int]) -> PadShortcut:
        layer.source = layer.source[[index for index in range(len(layer.source)) if index not in set(removed)]]
        return layer

    def prune_in_channels(self, layer: PadShortcut, removed: Sequence[int]) -> PadShortcut:
        gone = torch.tensor(list(removed), device=layer.source.device)
        before = (gone[None] < layer.source[:, None]).sum(1)  # removed channels before each source
        layer.source = torch.where(torch.isin(layer.source, gone), -1, layer.source - before)
        return layer


def _check_widths(groups: Groups, widths: np.ndarray) -> None:
    """ValueError, in one sentence, unless all widths (..., G) lie between 1 and the dense ones."""
    _check_shape(groups, widths)
    _check_range(groups, widths)


def _check_shape(groups: Groups, widths: np.ndarray) -> None:
    if widths.ndim == 0 or widths.shape[-1] != len(groups):
        raise ValueError(f"Widths must have {len(groups)} entries, one for each group, not shape {widths.shape}.")


def _check_range(groups: Groups, widths: np.ndarray) -> None:
    if widths.size and (widths.min() < 1 or (widths > groups.dense).any()):
        index = np.flatnonzero(((widths < 1) | (widths > groups.dense)).reshape(-1, len(groups)).any(0))[0]
        shares = ", not shares" if 0 < widths.min() < 1 else ""
        raise ValueError(
            f"Widths of {groups.names[index]} must be between 1 and {groups.dense[index]} channels{shares}."
        )
