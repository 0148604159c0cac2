"""The exact partition of a 2-D window of inputs into the regions where a network is affine.

The network is walked once for all regions together. Every value in it is an affine function of the two coordinates in
each region; a ReLU or a maximum first cuts the regions by the lines where it bends, then is affine in every piece.
"""

import copy
import operator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lib import partition_cells
from lib.partition_cells import Cells
from lib.provenance import CompanionError

AFFINE = (
    *(nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Flatten, nn.Identity, nn.Dropout),
    *(operator.add, operator.iadd, operator.sub, operator.neg, operator.getitem, torch.add, torch.sub, torch.cat),
    *(torch.flatten, F.pad, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("add", "add_", "mean", "flatten", "view", "reshape"),
)
RELU = (nn.ReLU, nn.LeakyReLU, F.relu, F.leaky_relu, torch.relu, "relu", "relu_")
BLOCK = 2**21  # numbers of one layer that are in memory at once; more regions are walked block by block
Window = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Plane:
    """The inputs origin + s * first + t * second, which the window's coordinates (s, t) name; tensors of one input."""

    origin: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def through(cls, a: Tensor, b: Tensor, c: Tensor) -> "Plane":
        """The plane in which three inputs are the points (0, 0), (1, 0) and (0, 1)."""
        return cls(a, b - a, c - a)


@dataclass(frozen=True)
class Partition:
    """The regions of a window, and in each one the network's affine map and its activation code.

    cells: the polygons; an edge's label is the unit that drew it, counted over all layers.
    maps: (regions, outputs, 3); output k is maps[:, k] @ (x, y, 1).
    packed: (regions, bytes) bits of every unit, layer by layer, each layer padded to whole bytes.
    layers: name and number of units of every layer that bends, in the network's order.
    """

    cells: Cells
    maps: np.ndarray
    packed: np.ndarray
    layers: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def regions(self) -> list[np.ndarray]:
        """The corners (k, 2) of each region, counter-clockwise."""
        return [corners[:count] for corners, count in zip(self.cells.corners, self.cells.count, strict=True)]

    @cached_property
    def area(self) -> np.ndarray:
        """(regions,) areas; they add up to the window's."""
        return self.cells.area

    @cached_property
    def boundary(self) -> np.ndarray:
        """The decision boundary, where the largest output changes: (segments, 2, 2)."""
        return decision_boundary(self)

    def codes(self, layer: int) -> np.ndarray:
        """(regions, units) of one layer: whether each unit is positive there (for a maximum, which side wins)."""
        widths = [units for _, units in self.layers]
        start = sum(-(-units // 8) for units in widths[:layer])
        end = start + -(-widths[layer] // 8)
        return np.unpackbits(self.packed[:, start:end], axis=1, count=widths[layer]).astype(bool)

    def lines(self, layer: int) -> dict[int, np.ndarray]:
        """The subdivision line of each unit of a layer, as segments (k, 2, 2); units without one are left out."""
        ends, labels, cell = self.cells.edges()
        start = sum(units for _, units in self.layers[:layer])
        own = (labels >= start) & (labels < start + self.layers[layer][1])
        ends, unit, cell = ends[own], labels[own] - start, cell[own]
        own = self.codes(layer)[cell, unit]  # each segment borders two regions; the positive one shows it
        ends, unit = ends[own], unit[own]
        return {int(u): ends[unit == u] for u in np.unique(unit)}


def split(network: nn.Module, window: Window, plane: Plane | None = None) -> Partition:
    """The exact partition of a window by a network in evaluation mode, in double precision.

    Args:
        network: of linear layers, convolutions, BatchNorm, average pooling and sums, with ReLU, leaky ReLU and max
            pooling; it gives (n, outputs).
        window: ((x low, x high), (y low, y high)).
        plane: the inputs that the window's coordinates stand for; by default the network has two inputs.

    Raises: CompanionError for a layer that is not piecewise affine, naming it, and for weights that are not finite;
        ValueError for a window without area or a plane without two directions.
    Source: the construction of paper 4's figures is not published; this companion's.
    """
    cells = partition_cells.rectangle(window)
    if bad := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise CompanionError(f"{bad[0]} of the network is not finite: its training diverged, lower the learning rate.")
    plane = plane or Plane(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    directions = torch.stack([plane.first, plane.second]).flatten(1).double()
    if not directions.isfinite().all() or torch.linalg.matrix_rank(directions) < 2:
        raise ValueError("A plane needs two directions that are finite and not parallel: choose other inputs.")
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network).double().eval())
    except (fx.proxy.TraceError, TypeError) as error:
        raise CompanionError(f"{type(network).__name__} cannot be followed layer by layer: {error}.") from None
    walk = _Walk(traced)
    with torch.no_grad():
        leaves = walk.go(0, cells, [], {"input": torch.stack([plane.first, plane.second, plane.origin]).double()})
    outputs = torch.cat([leaf[2].unflatten(0, (-1, 3)).flatten(2) for leaf in leaves])
    packed = [np.concatenate([np.zeros((len(leaf[0]), 0), np.uint8), *leaf[1]], 1) for leaf in leaves]
    cells = partition_cells.join([leaf[0] for leaf in leaves])
    return Partition(cells, outputs.transpose(1, 2).numpy(), np.concatenate(packed), tuple(walk.layers.items()))


def decision_boundary(partition: Partition) -> np.ndarray:
    """Segments (k, 2, 2) along which two outputs are equal and no other is larger."""
    outputs = range(partition.maps.shape[1])
    pairs = [level_set(partition, i, j, visible=True) for i in outputs for j in range(i)]
    return np.concatenate([np.zeros((0, 2, 2)), *pairs])


def level_set(partition: Partition, i: int, j: int, visible: bool = False) -> np.ndarray:
    """Segments (k, 2, 2) along which outputs i and j are equal.

    visible: only where no other output is larger, which is the decision boundary between the two.
    """
    difference = partition.maps[:, i] - partition.maps[:, j]
    pieces, region = partition_cells.subdivide(partition.cells, difference[:, None], 0)
    ends, _, piece = pieces.edges()
    line = difference[region[piece]]
    height = (ends @ line[:, :2, None])[..., 0] + line[:, 2:]
    margin = 4 * partition_cells.CUT * pieces.size[piece] * np.linalg.norm(line[:, :2], axis=1)
    above = (pieces.centre[piece] * line[:, :2]).sum(1) + line[:, 2] > margin
    chosen = above & (np.abs(height) <= margin[:, None]).all(1)  # an edge that was there already counts too
    ends, region = ends[chosen], region[piece[chosen]]
    if not visible or not len(ends):
        return ends
    others = np.delete(partition.maps[region], [i, j], axis=1) - partition.maps[region, i][:, None]
    excess = ends @ np.swapaxes(others[..., :2], 1, 2) + others[:, None, :, 2]
    return _where_negative(ends, excess)


def _where_negative(ends: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """The part of each segment (n, 2, 2) on which all functions with end values (n, 2, k) are at most 0."""
    start, stop = excess[:, 0], excess[:, 1]
    zero = np.divide(start, start - stop, out=np.zeros_like(start), where=start != stop)
    low = np.where(start > 0, np.where(stop > 0, 2.0, zero), 0.0).max(1, initial=0)
    high = np.where(stop > 0, np.where(start > 0, -1.0, zero), 1.0).min(1, initial=1)
    step = ends[:, 1] - ends[:, 0]
    parts = np.stack([ends[:, 0] + low[:, None] * step, ends[:, 0] + high[:, None] * step], 1)
    return parts[low < high]


class _Walk:
    """Values of all regions, step by step; a value is (3 * regions, ...): two slopes and a constant each."""

    def __init__(self, traced: fx.GraphModule):
        self.traced, self.nodes, self.layers = traced, list(traced.graph.nodes), {}
        attributes = {node: node.target for node in self.nodes if node.op == "get_attr"}
        buffers = {node: dict(traced.named_buffers()).get(name) for node, name in attributes.items()}
        self.indices = {
            node: value for node, value in buffers.items() if value is not None and value.dtype == torch.long
        }
        self.last_use = {used: place for place, node in enumerate(self.nodes) for used in node.all_input_nodes}

    def go(self, step: int, cells: Cells, codes: list[np.ndarray], values: dict) -> list[tuple]:
        """Walk some regions from a step to the end: a list of (cells, codes of every layer, outputs)."""
        for place in range(step, len(self.nodes)):
            node = self.nodes[place]
            if node.op == "output":
                return [(cells, codes, values[node.args[0]])]
            regions = len(cells)
            if node.op == "placeholder":
                values[node] = values.pop("input")
            elif node in self.indices:
                continue
            elif self._kind(node) in RELU:
                cells, codes, values = self._relu(node, cells, codes, values)
            elif self._kind(node) is nn.MaxPool2d:
                cells, codes, values = self._maximum(node, cells, codes, values)
            else:
                values[node] = self._affine(node, values)
            values = {key: value for key, value in values.items() if self.last_use.get(key, -1) > place}
            most = max(1, BLOCK * len(cells) // sum(value.numel() for value in values.values()))
            if regions < len(cells) > most:
                return self._in_blocks(place + 1, cells, codes, values, most)
        raise CompanionError(f"{type(self.traced).__name__} has no output: return the last layer's value.")

    def _in_blocks(self, step: int, cells: Cells, codes: list, values: dict, most: int) -> list[tuple]:
        leaves = []
        for start in range(0, len(cells), most):
            block = slice(start, start + most)
            some = {key: value[3 * start : 3 * (start + most)] for key, value in values.items()}
            leaves += self.go(step, cells.take(block), [code[block] for code in codes], some)
        return leaves

    def _kind(self, node: fx.Node) -> object:
        return type(self.traced.get_submodule(node.target)) if node.op == "call_module" else node.target

    def _affine(self, node: fx.Node, values: dict) -> Tensor:
        """The node's value; what it makes of zeros is its constant and belongs to no slope."""
        kind = self._kind(node)
        if kind not in AFFINE:
            name = node.target if node.op == "call_module" else node.name
            kind = getattr(kind, "__name__", kind)
            raise CompanionError(f"Layer {name} ({kind}) is not known to be piecewise affine: use ReLU or max pooling.")

        def call(value_of) -> Tensor:
            def known(used: fx.Node) -> Tensor:
                return self.indices.get(used) if used in self.indices else value_of(used)

            arguments, options = fx.map_arg(node.args, known), fx.map_arg(node.kwargs, known)
            if node.op == "call_module":
                return self.traced.get_submodule(node.target)(*arguments, **options)
            if node.op == "call_method":
                return getattr(arguments[0], node.target)(*arguments[1:], **options)
            return node.target(*arguments, **options)

        value, constant = call(values.get), call(lambda used: torch.zeros_like(values[used][:1]))
        if len(value) != len(next(iter(values.values()))):
            raise CompanionError(f"Layer {node.name} mixes the inputs of a batch: every input must go its own way.")
        value = value.unflatten(0, (-1, 3)).clone()
        value[:, :2] -= constant
        return value.flatten(0, 1)

    def _relu(self, node: fx.Node, cells: Cells, codes: list, values: dict) -> tuple[Cells, list, dict]:
        source, leak = node.args[0], 0.0
        if self._kind(node) is nn.LeakyReLU:
            leak = self.traced.get_submodule(node.target).negative_slope
        elif self._kind(node) is F.leaky_relu:
            leak = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        cells, codes, values, bits = self._cut(node.name, values[source], cells, codes, values)
        values[node] = torch.where(bits.view_as(values[source]), values[source], leak * values[source])
        return cells, codes, values

    def _maximum(self, node: fx.Node, cells: Cells, codes: list, values: dict) -> tuple[Cells, list, dict]:
        """A knock-out among the entries of every window: each match cuts where the two are equal."""
        pool, value = self.traced.get_submodule(node.target), values[node.args[0]]
        if pool.ceil_mode:
            raise CompanionError(f"Layer {node.target} pools with ceil_mode: use windows that fit the image.")
        entries, shape = _windows(pool, value), pool(value[:1]).shape[1:]
        values = values | {"entries": value.flatten(2)[:, :, entries]}
        while (left := values["entries"].shape[2]) > 1:
            first, second = values["entries"][:, :, : left // 2], values["entries"][:, :, left // 2 : left // 2 * 2]
            cells, codes, values, bits = self._cut(f"{node.name}.{left}", first - second, cells, codes, values)
            first, second, rest = values["entries"].split([left // 2, left // 2, left % 2], 2)
            values["entries"] = torch.cat([torch.where(bits.view_as(first), first, second), rest], 2)
        values[node] = values.pop("entries").unflatten(2, (1, -1)).flatten(2).view(-1, *shape)
        return cells, codes, values

    def _cut(self, name: str, bending: Tensor, cells: Cells, codes: list, values: dict) -> tuple:
        """Cut the regions where a layer's units vanish; `bits` (3 * pieces, units) says which are positive."""
        lines = bending.unflatten(0, (-1, 3)).flatten(2).transpose(1, 2).contiguous().numpy()
        before = list(self.layers).index(name) if name in self.layers else len(self.layers)
        self.layers[name] = lines.shape[1]
        pieces, parent = partition_cells.subdivide(cells, lines, sum(list(self.layers.values())[:before]))
        bits = partition_cells.at_centre(pieces, lines[parent])[0] > 0
        values = {key: value.unflatten(0, (-1, 3))[parent].flatten(0, 1) for key, value in values.items()}
        codes = [code[parent] for code in codes] + [np.packbits(bits, axis=1)]
        return pieces, codes, values, torch.from_numpy(bits).repeat_interleave(3, 0)


def _windows(pool: nn.MaxPool2d, value: Tensor) -> Tensor:
    """Places (entries, windows) of a flattened map that each window of a pooling sees; padding repeats one of them."""
    height, width = value.shape[2:]
    places = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    options = {"dilation": pool.dilation, "padding": pool.padding, "stride": pool.stride}
    seen = F.unfold(places, pool.kernel_size, **options)[0].long() - 1
    return torch.where(seen < 0, seen.amax(0), seen)
