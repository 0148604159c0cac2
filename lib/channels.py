"""A network as coupled channel groups: MACs and parameters of many width vectors at once, and filters removed.

A *group* is a set of channels that can only be removed together: the filters of one convolution inside a block, or of
all convolutions that add to one residual stream. Torch-Pruning finds the groups and removes their channels. A group is
offered only if the network still computes, and is counted right, without one of its channels.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from operator import attrgetter

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import is_pruned
from torch.utils.flop_counter import FlopCounterMode

from lib.models import PadShortcut

LAYERS = (tp.ops.TORCH_CONV, nn.Linear)
FLATTEN = tp.dependency.index_mapping._FlattenIndexMapping
BLOCK = 2048  # width vectors that are counted at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Groups:
    """The prunable channel groups of a network, and what each width costs.

    Attributes:
        names: of the first layer that writes each group, in the network's order.
        dense: widths before pruning.
        area: times that the layer which writes the group uses each weight for one image: output pixels H * W of a
            convolution, input pixels of a transposed one, tokens of a linear layer; summed over the calls of the layer.
        writers: names of the convolutions and linear layers that write each group.
        readers: names of those that read it.
        norms: names of the BatchNorms directly behind the writers; empty where something else reads a writer.
        macs: (G + 1, G + 1) coefficients of the products of widths; index 0 stands for the constant 1.
        parameters: likewise.
    """

    names: tuple[str, ...]
    dense: np.ndarray
    area: np.ndarray
    writers: tuple[tuple[str, ...], ...]
    readers: tuple[tuple[str, ...], ...]
    norms: tuple[tuple[str, ...], ...]
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
        layers = [tuple(part[index] for index in chosen) for part in (self.writers, self.readers, self.norms)]
        costs = [fold.T @ form @ fold for form in (self.macs, self.parameters)]
        return Groups(tuple(names), self.dense[chosen], self.area[chosen], *layers, *costs)

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
    """All channel groups of a network for square images of `size` pixels; the network's outputs are fixed.

    MACs are those of `models.count_macs`; parameters are all. A group stays dense and is not listed where Torch-Pruning
    cannot take away a single channel: inside attention, around a split, a pixel shuffle or a GroupNorm of many groups.

    Raises:
        ValueError: for a `size` that is no whole number or does not fit, a grouped convolution that is not depthwise,
            masked, parametrized or shared weights, and channels that cannot be followed, counted or pruned.
    """
    return _offered(_trace(model, size))


def count(groups: Groups, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MACs of one image and parameters of each of many width vectors, (..., G) -> two (...) arrays.

    Integer widths give exact int64 counts; widths that are not rounded give float64, for solvers.

    Raises:
        ValueError: for a width below 1 or above the dense one.
    """
    widths = np.asarray(widths)
    if widths.ndim == 0 or widths.shape[-1] != len(groups):
        raise ValueError(f"Widths must have {len(groups)} entries, one for each group, not shape {widths.shape}.")
    flat = widths.reshape(np.prod(widths.shape[:-1], dtype=int), len(groups))
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
        ValueError: for an unknown name or criterion, a width outside 1 .. dense, and as `find` and `keep`.
    """
    traced = _trace(model, size)
    groups = _offered(traced)
    count(groups.only(list(widths)), np.array([*widths.values()]))  # checks the widths
    kept = {}
    for group, width in widths.items():
        order = scores(model, groups, group, criterion, generator).argsort(descending=True, stable=True)
        kept[group] = order[: int(width)].sort().values.tolist()
    return _without(model, traced, groups, kept)


def scores(
    model: nn.Module, groups: Groups, group: str, criterion: str, generator: torch.Generator | None = None
) -> Tensor:
    """The score of each channel of a group, float64 (channels,).

    The criterion is the "l1" or "l2" norm of the filters of all layers that write the group, "bn", the sum of |scale|
    over the BatchNorms directly behind them, or "random", which needs a generator.

    Raises:
        ValueError: for another criterion, "random" without a generator, or "bn" where a BatchNorm is missing.
    """
    index = groups.names.index(group)
    writers = [model.get_submodule(name) for name in groups.writers[index]]
    filters = [
        layer.weight.transpose(0, 1) if getattr(layer, "transposed", False) else layer.weight for layer in writers
    ]
    weights = torch.cat([weight.detach().double().flatten(1) for weight in filters], dim=1)
    if criterion in ("l1", "l2"):
        return torch.linalg.vector_norm(weights, int(criterion[1]), dim=1)
    if criterion == "random":
        if not isinstance(generator, torch.Generator):
            raise ValueError('Criterion "random" needs a torch.Generator: pass generator.')
        return torch.rand(len(weights), generator=generator, dtype=torch.float64).to(weights.device)
    if criterion == "bn":
        if norms := [model.get_submodule(name) for name in groups.norms[index]]:
            return torch.stack([norm.weight.detach().double().abs() for norm in norms]).sum(0)
        raise ValueError(f"Group {group} has a layer without BatchNorm behind it: choose the criterion l1 or l2.")
    raise ValueError(f"Criterion {criterion!r} must be one of l1, l2, bn, random.")


def keep(model: nn.Module, kept: Mapping[str, Sequence[int]], *, size: int = 32) -> nn.Module:
    """A copy of a network that keeps exactly these channels of each named group; the others stay dense.

    The order of the indices does not matter; `size` is the side of the square images (pixels). The attribute
    `surviving` of the copy says which channels of the network each of its layers still has, see `surviving`.

    Raises:
        ValueError: for an unknown name, indices that are none, repeated or out of range, a pruned network that does not
            compute or has other costs than `count` says, and as `find`.
    """
    traced = _trace(model, size)
    return _without(model, traced, _offered(traced), kept)


def surviving(model: nn.Module, layer: str, dense: tuple[int, int]) -> tuple[list[int], list[int]]:
    """The outputs and inputs of a layer of the dense network that a pruned network still has, as `keep` recorded them.

    `dense` are the numbers of both in the dense layer. Without a record all of them are taken to be there.
    """
    record = getattr(model, "surviving", {})
    both = ((f"{layer} {side}", number) for side, number in zip(("outputs", "inputs"), dense, strict=True))
    outputs, inputs = (record.get(key, list(range(number))) for key, number in both)
    return outputs, inputs


def _without(model: nn.Module, traced: "_Traced", groups: Groups, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """As `keep`, for a network that has been traced, and its groups."""
    groups, gone = groups.only(list(kept)), []
    for name, dense in zip(groups.names, groups.dense.tolist(), strict=True):
        chosen = {int(index) for index in kept[name]}
        if not chosen or len(chosen) != len(kept[name]) or not chosen <= set(range(dense)):
            raise ValueError(f"{name} needs one or more different indices below {dense}, not {list(kept[name])}.")
        if removed := sorted(set(range(dense)) - chosen):
            gone.append(traced.group(name, removed))
    copy = deepcopy(model)
    with _refusal(f"The network does not compute without these channels of {', '.join(kept)}: keep them"):
        _remove(copy, traced, gone)
        measured = _measure(deepcopy(copy).to("meta").eval(), traced.images)
        counted = count(groups, np.array([len(kept[name]) for name in groups.names], int))
        if counted != (measured.macs, sum(measured.sizes.values())) or measured.shapes != traced.measured.shapes:
            raise ValueError("its costs or outputs are not those of its groups")
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    return copy


@dataclass(frozen=True)
class _Measured:
    """What one image costs: uses of each layer's weights in all its calls, sizes of parameters, MACs, output shapes."""

    uses: dict[str, int]
    sizes: dict[str, int]
    macs: int
    outside: int  # MACs outside convolutions and linear layers, such as those of attention
    shapes: list[torch.Size]


@dataclass(frozen=True)
class _Traced:
    """A network on the meta device in evaluation mode, a batch of one image, its costs and dependencies."""

    model: nn.Module
    images: Tensor
    measured: _Measured
    graph: tp.DependencyGraph
    groups: list[tp.Group]

    @cached_property
    def names(self) -> dict[nn.Module | nn.Parameter, str]:
        """Names of all modules and parameters."""
        return {part: name for name, part in (*self.model.named_modules(), *self.model.named_parameters())}

    def group(self, name: str, removed: Sequence[int]) -> tp.Group:
        """Everything that goes with these output channels of a layer."""
        layer = self.model.get_submodule(name)
        return self.graph.get_pruning_group(layer, self.graph.get_pruner_of_module(layer).prune_out_channels, removed)


@dataclass(frozen=True)
class _Candidate:
    """A channel group of the dependency graph, with `writers` as in `Groups`."""

    dense: int
    writers: tuple[str, ...]
    shares: dict[tuple[str, bool], tuple[int, int]]  # name, its outputs? -> channels for each of the group, and in all
    first: tp.Group  # everything that goes with the first channel


@contextmanager
def _refusal(sentence: str) -> Iterator[None]:
    """Any error of the block as a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{sentence} ({type(error).__name__}: {error}".splitlines()[0].rstrip(". ") + ").") from error


def _trace(model: nn.Module, size: int) -> _Traced:
    """Follow the channels of a network on the meta device, where nothing is computed; errors as in `find`."""
    if not isinstance(size, int | np.integer):
        raise ValueError(f"size is {size!r}; it must be the side of square images in pixels, such as 32.")
    _check_weights(model)
    with _refusal("The network cannot be copied: load its weights into a new one"):
        copy = deepcopy(model).to("meta").eval().requires_grad_(True)  # the graph follows gradients
    layer = next(module for module in copy.modules() if isinstance(module, LAYERS))
    shape = layer.weight.shape[1:2] if isinstance(layer, nn.Linear) else (layer.in_channels, size, size)
    images = torch.zeros(1, *shape, device="meta", dtype=layer.weight.dtype)
    with _refusal(f"One image of shape {shape} cannot be computed and counted: check size and network"):
        measured = _measure(copy, images)
    graph, pruners = tp.DependencyGraph(), {PadShortcut: _ShortcutPruner()}
    with _refusal("Torch-Pruning cannot follow the channels of this network"), torch.enable_grad():
        graph.build_dependency(copy, images, lambda net, x: net(x), customized_pruners=pruners, verbose=False)
        for node in graph.module2node.values():
            flattens = any(isinstance(mapping, FLATTEN) for edge in node.dependencies for mapping in edge.index_mapping)
            if flattens and node.type == tp.ops.OPTYPE.RESHAPE and len(node.grad_fn._input_metadata[0].shape) != 2:
                raise ValueError("it reshapes maps to other than vectors")  # its indices would grow without end
        groups = list(graph.get_all_groups([], LAYERS))
    return _Traced(copy, images, measured, graph, groups)


def _check_weights(model: nn.Module) -> None:
    """ValueError, in one sentence, for weights that cannot be pruned as they are."""
    if is_pruned(model):
        raise ValueError("The network has masks: make the pruning permanent first (torch.nn.utils.prune.remove).")
    if not any(isinstance(module, LAYERS) for module in model.modules()):
        raise ValueError("The network has no convolution and no linear layer: there is nothing to prune.")
    owners = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"{name} is parametrized: remove that first (parametrize.remove_parametrizations).")
        parts = getattr(module, "groups", 1) if isinstance(module, LAYERS) else 1
        if parts > 1 and not parts == module.in_channels == module.out_channels:
            raise ValueError(f"{name} is a convolution in {parts} groups: only ungrouped and depthwise can be pruned.")
        for parameter in module.parameters(recurse=False):
            if owners.setdefault(parameter, name) != name:
                raise ValueError(f"{name} and {owners[parameter]} share a parameter: give each its own.")


def _measure(model: nn.Module, images: Tensor) -> _Measured:
    """What one image costs a network on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = tp.utils.flatten_as_list(model(images))
    flops, names, uses = counter.get_flop_counts(), {}, Counter()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, LAYERS):
            name = names.setdefault(layer, path)
            macs = sum(flops.get(f"{type(model).__name__}.{path}", {}).values()) // 2  # 1 MAC is 2 FLOPs
            if macs % sizes[f"{name}.weight"]:
                raise ValueError(f"{name} cannot be counted: make it a plain layer that uses all weights equally often")
            uses[name] += macs // sizes[f"{name}.weight"]
    macs = counter.get_total_flops() // 2
    outside = macs - sum(number * sizes[f"{name}.weight"] for name, number in uses.items())
    return _Measured(dict(uses), sizes, macs, outside, [output.shape for output in outputs])


def _offered(traced: _Traced) -> Groups:
    """The groups of a traced network without which it still computes and is counted right; errors as in `find`."""
    candidates = _candidates(traced)
    groups = _prunable(candidates, partial(_computes, traced))
    if not groups or (len(groups) < len(candidates) and not _computes(traced, groups)):
        raise ValueError("The network has no channel group that can be pruned while its outputs stay as they are.")
    macs, parameters = np.zeros((2, len(groups) + 1, len(groups) + 1))
    macs[0, 0], uses = traced.measured.outside, traced.measured.uses
    for name, (scale, inputs, outputs) in _terms(traced, groups).items():
        size = scale * np.outer(inputs, outputs)
        macs += size * uses.get(name.removesuffix(".weight"), 0)
        parameters += size
    writers, names = [group.writers for group in groups], tuple(group.writers[0] for group in groups)
    readers = [tuple(name for name in uses if (name, False) in group.shares) for group in groups]
    norms = [_norms(traced, group.writers) for group in groups]
    dense, area = np.array([group.dense for group in groups]), np.array([uses[name] for name in names])
    return Groups(names, dense, area, tuple(writers), tuple(readers), tuple(norms), macs, parameters)


def _candidates(traced: _Traced) -> list[_Candidate]:
    """The groups of the graph, in the network's order, whose channels are alike and reach no output of the network."""
    layers, found = list(traced.measured.uses), []
    for group in traced.groups:
        shares = _shares(traced, group)
        written = [name for name in layers if (name, True) in shares]
        writers = [name for name in written if getattr(traced.model.get_submodule(name), "groups", 1) == 1]
        if writers:
            candidate = _Candidate(len(group[0].idxs), tuple(writers), shares, traced.group(writers[0], [0]))
            found.append((layers.index(written[0]), candidate))
    return [group for _, group in sorted(found, key=lambda pair: pair[0])]


def _shares(traced: _Traced, group: tp.Group) -> dict[tuple[str, bool], tuple[int, int]]:
    """As in `_Candidate`; empty where the group cannot be pruned channel by channel."""
    graph, shares = traced.graph, {}
    for item in group:
        node, part = item.dep.target, item.dep.target.module
        outputs = graph.is_out_channel_pruning_fn(item.dep.handler)
        if outputs and not node.outputs:
            return {}  # an output of the network
        channels = graph.get_out_channels(node) if outputs else graph.get_in_channels(node)
        if part in traced.names and channels is not None:
            share = np.bincount(item.root_idxs, minlength=len(group[0].idxs))
            aligned = item.idxs == item.root_idxs and channels == len(share)
            if max(item.idxs) >= channels or np.ptp(share) or (outputs and isinstance(part, LAYERS) and not aligned):
                return {}
            shares[traced.names[part], outputs] = int(share[0]), channels
    return shares


def _prunable(groups: list[_Candidate], computes: Callable[[list[_Candidate]], bool]) -> list[_Candidate]:
    """The groups that can lose a channel, by bisection."""
    if not groups or computes(groups):
        return groups
    half = len(groups) // 2
    return _prunable(groups[:half], computes) + _prunable(groups[half:], computes) if half else []


def _computes(traced: _Traced, groups: list[_Candidate]) -> bool:
    """Whether the network computes outputs of the same shapes at the counted costs, each group without a channel."""
    widths = np.array([1, *[max(1, group.dense - 1) for group in groups]])
    try:
        copy = deepcopy(traced.model)
        _remove(copy, traced, [group.first for group in groups if group.dense > 1])
        pruned = _measure(copy, traced.images)
    except Exception:
        return False
    sizes = {name: scale * (a @ widths) * (b @ widths) for name, (scale, a, b) in _terms(traced, groups).items()}
    expected = sizes, traced.measured.uses, traced.measured.outside, traced.measured.shapes
    return (pruned.sizes, pruned.uses, pruned.outside, pruned.shapes) == expected


def _terms(traced: _Traced, groups: Sequence[_Candidate]) -> dict[str, tuple[float, np.ndarray, np.ndarray]]:
    """The size of each parameter as a factor times the widths of two sides, (G + 1,) coefficients each, 1 first."""
    dense, terms = np.array([group.dense for group in groups]), {}
    touched = {key for group in groups for key in group.shares}

    def side(*key: str | bool) -> tuple[np.ndarray, int]:
        shares = [group.shares.get(key, (0, 1)) for group in groups] if key in touched else [(0, 1)] * len(groups)
        own, total = np.array([share[0] for share in shares]), max(share[1] for share in shares)
        if own @ dense > total:
            raise ValueError(f"{key[0]} cannot be counted: several channel groups share its channels.")
        return np.array([total - own @ dense, *own], float), total

    for name, size in traced.measured.sizes.items():
        layer, _, kind = name.rpartition(".")
        inputs, read = side(layer if kind == "weight" and layer in traced.measured.uses else "", False)
        outputs, written = side(name if (name, True) in touched else layer, True)
        terms[name] = size / (read * written), inputs, outputs
    return terms


def _norms(traced: _Traced, writers: Sequence[str]) -> tuple[str, ...]:
    """Names of the BatchNorms directly behind layers; none if anything else, or one without scales, follows a layer."""
    nodes = [traced.graph.module2node[traced.model.get_submodule(name)] for name in writers]
    behind = dict.fromkeys(output.module for node in nodes for output in node.outputs)
    usable = all(isinstance(norm, tp.ops.TORCH_BATCHNORM) and norm.affine for norm in behind)
    return tuple(traced.names[norm] for norm in behind) if usable else ()


def _remove(model: nn.Module, traced: _Traced, groups: Iterable[tp.Group]) -> None:
    """Remove everything that goes with these channels from a copy of the traced network, in place, and record it."""
    gone, recorded, graph = defaultdict(set), defaultdict(set), traced.graph
    for dependency, indices in chain.from_iterable(groups):
        node = dependency.target
        if node.module in traced.names:
            gone[traced.names[node.module], dependency.handler, node.pruning_dim] |= set(indices)
            outputs = graph.is_out_channel_pruning_fn(dependency.handler)
            before = graph.get_out_channels(node) if outputs else graph.get_in_channels(node)
            recorded[traced.names[node.module], outputs, before] |= set(indices)
    for (name, cut, dimension), indices in gone.items():
        cut.__self__.pruning_dim = dimension
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, cut(attrgetter(name)(model), sorted(indices)))
    record = dict(getattr(model, "surviving", {}))
    for (name, outputs, before), indices in recorded.items():
        key = f"{name} {'outputs' if outputs else 'inputs'}"
        earlier = record.get(key, range(before or 0))
        record[key] = [channel for place, channel in enumerate(earlier) if place not in indices]
    model.surviving = record


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


def _check_range(groups: Groups, widths: np.ndarray) -> None:
    """ValueError, in one sentence, unless all widths (..., G) lie between 1 and the dense ones."""
    if widths.size and (widths.min() < 1 or (widths > groups.dense).any()):
        index = np.flatnonzero(((widths < 1) | (widths > groups.dense)).reshape(-1, len(groups)).any(0))[0]
        shares = ", not shares" if 0 < widths.min() < 1 else ""
        raise ValueError(
            f"Widths of {groups.names[index]} must be between 1 and {groups.dense[index]} channels{shares}."
        )
