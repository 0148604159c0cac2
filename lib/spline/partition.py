"""The exact partition of a 2-D window of inputs into the regions where a network is affine; its lines; its changes.

The regions are convex cells, and all arrays run over them. The network is walked once for all regions together. Every
value in it is an affine function of the two coordinates in each region. A ReLU or a maximum first cuts the regions by
the lines where it bends; then it is affine in every piece.
"""

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lib.provenance import CompanionError

CUT = 1e-9  # a line cuts a cell if corners lie farther than this on both sides, in units of the cell's size
STRAIGHT = 1e-6  # two segments bend if the sine of the angle between them is larger
NO_SEGMENTS = np.zeros((0, 2, 2))
FLAT = 1e-13  # a function whose slope over a cell is below this share of its layer's scale is a constant
SLACK = 1 + 1e-6  # a cell is taken to reach this much farther than it does, so that rounding hides no line
# Handled at once, so that they stay in the processor's cache. 64 must divide the regions: BLAS sums a rest in another
# order, and last digits would move.
NUMBERS, REGIONS = 2**14, 512


@dataclass(frozen=True)
class Cells:
    """n convex polygons with corners in counter-clockwise order."""

    corners: np.ndarray  # (n, most, 2); a cell with fewer than the most repeats its first one, so that loops close
    count: np.ndarray  # (n,) corners of each cell
    labels: np.ndarray  # (n, most) the line that drew the edge from each corner; below 0 for the sides of the window

    def __len__(self) -> int:
        return len(self.count)

    def take(self, index: np.ndarray) -> "Cells":
        """Some of the cells, by index; numpy's own indexing with arrays is several times slower than its `take`."""
        return Cells(self.corners.take(index, 0), self.count.take(index), self.labels.take(index, 0))

    @property
    def area(self) -> np.ndarray:
        """(n,) areas, by the shoelace formula relative to each cell's first corner."""
        x, y = np.moveaxis(self.corners - self.corners[:, :1], 2, 0)
        return 0.5 * (x * _ahead(y) - y * _ahead(x)).sum(1)

    @property
    def size(self) -> np.ndarray:
        """(n,) diagonals of the bounding boxes."""
        corners = _short(self.corners)
        return _length(corners.max(0) - corners.min(0))

    @property
    def centre(self) -> np.ndarray:
        """(n, 2) means of the corners, inside every cell."""
        padding = self.corners.shape[1] - self.count[:, None]
        return (_short(self.corners).sum(0) - padding * self.corners[:, 0]) / self.count[:, None]

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every edge of every cell: (e, 2, 2) ends, (e,) labels, (e,) cells."""
        real = np.arange(self.corners.shape[1]) < self.count[:, None]
        ends = np.stack([self.corners, _ahead(self.corners)], 2)
        return ends[real], self.labels[real], np.nonzero(real)[0]


def rectangle(window: tuple[tuple[float, float], tuple[float, float]]) -> Cells:
    """One cell, the window ((x low, x high), (y low, y high)).

    Raises:
        ValueError: if the window has no area.
    """
    window = np.asarray(window, dtype=float)
    if window.shape != (2, 2) or not np.isfinite(window).all() or (window[:, 0] >= window[:, 1]).any():
        raise ValueError(f"A window is ((low, high), (low, high)) with low < high, not {window.tolist()}.")
    (left, right), (bottom, top) = window
    corners = np.array([[[left, bottom], [right, bottom], [right, top], [left, top]]])
    return Cells(corners, np.array([4]), np.array([[-1, -2, -3, -4]]))


def join(parts: Sequence[Cells]) -> Cells:
    """All cells of several lists, in their order."""
    most, count = max(part.corners.shape[1] for part in parts), np.concatenate([part.count for part in parts])
    corners, labels, start = np.empty((len(count), most, 2)), np.empty((len(count), most), dtype=int), 0
    for part in parts:
        own, here = part.corners.shape[1], slice(start, start := start + len(part))
        corners[here, :own], corners[here, own:] = part.corners, part.corners[:, :1]
        labels[here, :own], labels[here, own:] = part.labels, part.labels[:, :1]
    return Cells(corners, count, labels)


def subdivide(cells: Cells, lines: np.ndarray, first_label: int) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Cut every cell by those of its own lines that cross it.

    In every round each piece that is not finished is cut by its own next line, and its halves keep those of the later
    lines that cross them. So no line is tried on a cell that it cannot reach, and no finished piece is touched again.

    Args:
        cells: n cells.
        lines: (n, units, 3); unit u of cell i vanishes where lines[i, u] @ (x, y, 1) = 0.
        first_label: label of the edges that unit 0 draws; unit u draws first_label + u.

    Returns:
        The pieces; the index of the cell that each was part of, (pieces,); whether each unit is positive there,
        (pieces, units).
    """
    positive, cell, unit, line = _crossings(cells, lines)
    crossing = np.bincount(cell, minlength=len(cells))
    turn = np.arange(len(cell)) - np.repeat(np.cumsum(crossing) - crossing, crossing)
    path = np.zeros((len(cells), 0), np.min_scalar_type(2 * crossing.max() + 1))  # turns and sides, the last cut first
    whole, parent = np.flatnonzero(crossing == 0), np.flatnonzero(crossing)
    done = [(cells.take(whole), positive.take(whole, 0), whole, path[whole])]
    pieces, bits, path = cells.take(parent), positive.take(parent, 0), path[parent]
    size, piece = pieces.size, np.repeat(np.arange(len(parent)), crossing[parent])
    while len(pieces):
        first = np.diff(piece, prepend=-1) > 0
        now, later, half = np.flatnonzero(first), np.flatnonzero(~first), np.arange(2 * len(pieces))
        height = (pieces.corners @ line[now, :2, None])[..., 0] + line[now, 2:]
        pieces = _halves(pieces, height, CUT * size, first_label + unit[now])
        size, parent, bits = pieces.size, np.tile(parent, 2), np.tile(bits, (2, 1))
        bits[half, np.tile(unit[now], 2)] = half < len(now)
        path = np.insert(np.tile(path, (2, 1)), 0, 2 * np.tile(turn[now], 2) + (half >= len(now)) + 1, axis=1)
        piece = np.concatenate([piece[later], piece[later] + len(now)])
        unit, turn, line = np.tile(unit[later], 2), np.tile(turn[later], 2), np.tile(line[later], (2, 1))
        cut, side = _sides(pieces.corners, size, piece, line)
        bits[piece[~cut], unit[~cut]] = side[~cut]
        piece, unit, turn, line = piece[cut], unit[cut], turn[cut], line[cut]
        going = np.bincount(piece, minlength=len(pieces)) > 0
        over, on = np.flatnonzero(~going), np.flatnonzero(going)
        done.append((pieces.take(over), bits.take(over, 0), parent[over], path[over]))
        pieces, bits, parent, path, size = pieces.take(on), bits.take(on, 0), parent[on], path[on], size[on]
        piece = (np.cumsum(going) - 1)[piece]
    pieces, bits, parent, paths = zip(*done, strict=True)
    bits, parent = np.concatenate(bits), np.concatenate(parent)
    path = np.concatenate([np.pad(one, ((0, 0), (0, len(done) - one.shape[1]))) for one in paths])
    order = np.lexsort([parent, *path.T[::-1], crossing[parent].astype(path.dtype)])  # as if cells were cut in step
    return join(pieces).take(order), parent[order], bits.take(order, 0)


def _length(vectors: np.ndarray) -> np.ndarray:
    """Length of the first two coordinates; numpy's own norm of a short axis is several times slower."""
    return np.sqrt(vectors[..., 0] ** 2 + vectors[..., 1] ** 2)


def _short(values: np.ndarray) -> np.ndarray:
    """A copy with axis 1 in front: numpy's own reductions of a short axis at the end are many times slower."""
    return np.ascontiguousarray(np.swapaxes(values, 0, 1))


def _sides(corners: np.ndarray, size: np.ndarray, cell: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each line (k, 3) cuts its cell (k,); and whether it is positive there if it does not."""
    x, y = np.ascontiguousarray(corners.T).take(cell, 2)
    height, margin = x * line[:, 0] + y * line[:, 1] + line[:, 2], CUT * size[cell]
    low, high = height.min(0), height.max(0)
    return (high > margin) & (low < -margin), low + high > 0


def _crossings(cells: Cells, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whether each unit is positive at the centres, (n, units); cell, unit and unit-normal line of each real crossing.

    Slopes over a cell, and these plus values, are rounding noise below FLAT of the largest in it: they count as zero.
    """
    centre, size, units = cells.centre, cells.size[:, None], lines.shape[1]
    reach = SLACK * _short(_length(cells.corners - centre[:, None])).max(0)[:, None]
    positive, near, step = np.empty((len(cells), units), dtype=bool), [], max(1, NUMBERS // units)
    for start in range(0, len(cells), step):
        part = slice(start, start + step)
        value = lines[part, :, 0] * centre[part, :1] + lines[part, :, 1] * centre[part, 1:] + lines[part, :, 2]
        height, slope = np.abs(value), _length(lines[part])
        rise = slope * size[part]
        total = rise + height
        noise = FLAT * total.max(1, keepdims=True)
        positive[part] = (value > 0) & (total > noise)
        near.append(np.flatnonzero((height < slope * reach[part]) & (rise > noise)) + start * units)
    cell, unit = np.divmod(np.concatenate(near), units)
    line = lines[cell, unit]
    line /= _length(line)[:, None]
    cut = np.flatnonzero(_sides(cells.corners, size[:, 0], cell, line)[0])
    return positive, cell[cut], unit[cut], line[cut]


def _ahead(array: np.ndarray) -> np.ndarray:
    """The value at each corner's successor, axis 1."""
    return np.concatenate([array[:, 1:], array[:, :1]], 1)


def _halves(cells: Cells, height: np.ndarray, margin: np.ndarray, label: np.ndarray) -> Cells:
    """The positive, then the negative parts of cells cut by a line, from the corners' distances (n, most) from it."""
    n, most = height.shape
    sign = np.where(np.abs(height) <= margin[:, None], 0, np.sign(height)).astype(np.int8)
    change = sign * _ahead(sign) == -1
    here = np.flatnonzero(change)
    there = np.where(here % most == most - 1, here + 1 - most, here + 1)
    corners, height = cells.corners.reshape(-1, 2), height.ravel()
    share = height.take(here) / (height.take(here) - height.take(there))
    slots = np.stack([corners, corners], 1)  # corners, each before the crossing of the edge behind it
    slots[here, 1] += share[:, None] * (corners.take(there, 0) - corners.take(here, 0))
    sign, labels, real = np.concatenate([sign, -sign]), np.tile(cells.labels, (2, 1)), np.tile(cells.count, 2)[:, None]
    kept = np.stack([(np.arange(most) < real) & (sign >= 0), np.tile(change, (2, 1))], 2)
    drawn = np.where(_ahead(sign) < 0, np.tile(label, 2)[:, None], labels)  # the new edge starts here
    labels = np.stack([np.where(sign == 0, drawn, labels), drawn], 2)
    slot = np.flatnonzero(kept)
    count = np.bincount(slot // (2 * most), minlength=2 * n)
    place, first = np.arange(count.max(initial=1)), (np.cumsum(count) - count)[:, None]
    slot = slot.take(np.where(place < count[:, None], place, 0) + first)
    return Cells(slots.reshape(-1, 2).take(slot % (2 * n * most), 0), count, labels.take(slot))


AFFINE = (
    *(nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Flatten, nn.Identity, nn.Dropout),
    *(operator.add, operator.iadd, operator.sub, operator.neg, operator.getitem, torch.add, torch.sub, torch.cat),
    *(torch.flatten, F.pad, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("add", "add_", "mean", "flatten", "view", "reshape"),
)
RELU = (nn.ReLU, F.relu, torch.relu, "relu", "relu_")
BENDING = (*RELU, nn.MaxPool2d)
BLOCK = 2**21  # numbers of one layer that are in memory at once; more regions are walked block by block
Window = tuple[tuple[float, float], tuple[float, float]]
Plane = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Partition:
    """The regions of a window, and in each one the network's affine map and its activation code."""

    cells: Cells  # an edge's label is the unit that drew it, counted over all layers
    maps: np.ndarray  # (regions, outputs, 3); output k is maps[:, k] @ (x, y, 1)
    packed: np.ndarray  # (regions, bytes) bits of every unit, layer by layer, each layer padded to whole bytes
    layers: tuple[tuple[str, int], ...]  # name and number of units of every layer that bends, in the network's order

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def boundary(self) -> np.ndarray:
        """The decision boundary, where the largest output changes: (segments, 2, 2); empty for a single output."""
        outputs = range(self.maps.shape[1])
        pairs = [level_set(self, i, j, visible=True) for i in outputs for j in range(i)]
        return np.concatenate([NO_SEGMENTS, *pairs])

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

    def segments(self, *layers: int) -> np.ndarray:
        """The lines of all units of some layers together: (k, 2, 2)."""
        return np.concatenate([NO_SEGMENTS, *(line for layer in layers for line in self.lines(layer).values())])


def split(network: nn.Module, window: Window, plane: Plane | None = None) -> Partition:
    """The exact partition of a window by a network in evaluation mode, in double precision.

    Args:
        network: of linear layers, convolutions, BatchNorm, average pooling and sums, with ReLU and max pooling; it
            gives (n, outputs).
        window: ((x low, x high), (y low, y high)).
        plane: the three inputs that are the points (0, 0), (1, 0) and (0, 1); by default the network has two inputs.

    Raises:
        CompanionError: for a layer that is not piecewise affine, naming it, and for weights that are not finite.
        ValueError: for a window without area, a plane without two directions, or inputs that do not fit the network.

    Source: the construction of paper 4's figures is not published; this companion's.
    """
    cells = rectangle(window)
    if bad := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise CompanionError(f"{bad[0]} of the network is not finite: its training diverged, lower the learning rate.")
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    origin, first, second = corners if plane is None else plane
    inputs = torch.stack([first - origin, second - origin, origin]).double()
    directions = inputs[:2].flatten(1)
    if not directions.isfinite().all() or torch.linalg.matrix_rank(directions) < 2:
        raise ValueError("A plane needs two directions that are finite and not parallel: choose other inputs.")
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network).double().eval())
    except (fx.proxy.TraceError, TypeError) as error:
        raise CompanionError(f"{type(network).__name__} cannot be followed layer by layer: {error}.") from None
    try:
        traced(inputs)
    except RuntimeError:
        sentence = f"The network does not take inputs of shape {tuple(origin.shape)}"
        raise ValueError(f"{sentence}: give `plane`, three inputs of its shape.") from None
    walk = _Walk(traced)
    with torch.no_grad():
        start = _State(cells, np.zeros((1, 0), np.uint8), {walk.nodes[0]: inputs}, torch.zeros(1, dtype=int))
        cells, packed, outputs = walk.go(0, start)
    layers = tuple((name, units) for name, (_, units) in walk.layers.items())
    return Partition(cells, outputs.unflatten(0, (-1, 3)).flatten(2).mT.numpy(), packed, layers)


def winner(maps: np.ndarray, cells: Cells) -> np.ndarray:
    """The largest output (n,) in the middle of each cell, of affine maps (n, outputs, 3)."""
    centre = np.concatenate([cells.centre, np.ones((len(cells), 1))], 1)
    return np.einsum("nok,nk->no", maps, centre).argmax(1)


def level_set(partition: Partition, i: int, j: int, visible: bool = False) -> np.ndarray:
    """Segments (k, 2, 2) along which outputs i and j are equal; the visible part is where no other one is larger."""
    difference = partition.maps[:, i] - partition.maps[:, j]
    pieces, region, _ = subdivide(partition.cells, difference[:, None], 0)
    ends, _, piece = pieces.edges()
    line = difference[region[piece]]
    height = (ends @ line[:, :2, None])[..., 0] + line[:, 2:]
    margin = 4 * CUT * pieces.size[piece] * np.linalg.norm(line[:, :2], axis=1)
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


@dataclass
class _State:
    """Some regions on their way through the network, with the values of the regions that they were part of."""

    cells: Cells
    codes: np.ndarray  # (regions, bytes) of the layers so far
    values: dict[fx.Node | str, Tensor]  # by node (3 * parents, ...): two slopes and a constant each
    parent: Tensor  # of each region, as its place in `values`
    bits: dict[fx.Node, Tensor] = field(default_factory=dict)  # factors (regions, units) that are not in `values` yet

    def take(self, index: np.ndarray) -> "_State":
        """Some of the regions."""
        bits = {node: bits[index] for node, bits in self.bits.items()}
        return _State(self.cells.take(index), self.codes[index], self.values, self.parent[index], bits)

    def own_values(self, part: slice) -> dict[fx.Node | str, Tensor]:
        """The values of some regions themselves."""
        parent = self.parent[part]
        own = {key: value.unflatten(0, (-1, 3)).index_select(0, parent) for key, value in self.values.items()}
        for node, bits in self.bits.items():
            own[node].mul_(bits[part].view(len(parent), 1, *own[node].shape[2:]))
        return {key: value.flatten(0, 1) for key, value in own.items()}


class _Walk:
    """A traced network; `layers` names those that bend, with the label of their first unit and their units."""

    def __init__(self, traced: fx.GraphModule):
        self.traced, self.nodes, self.layers, self.constants = traced, list(traced.graph.nodes), {}, {}
        self.interpreter, buffers = fx.Interpreter(traced), dict(traced.named_buffers())
        read = {node: buffers.get(node.target) for node in self.nodes if node.op == "get_attr"}
        self.indices = {node: value for node, value in read.items() if value is not None and value.dtype == torch.long}
        self.last_use = {used: place for place, node in enumerate(self.nodes) for used in node.all_input_nodes}

    def go(self, step: int, state: _State) -> tuple[Cells, np.ndarray, Tensor]:
        """Walk some regions from a step to the end, block by block if they are many: cells, codes and outputs."""
        for place in range(step, len(self.nodes)):
            node, regions = self.nodes[place], len(state.cells)
            if node.op != "output" and self._kind(node) not in BENDING:
                continue
            state = _State(state.cells, state.codes, self._between(step, place, state), torch.arange(regions))
            if node.op == "output":
                return state.cells, state.codes, state.values[node.args[0]]
            if self._kind(node) is nn.MaxPool2d:
                state = self._maximum(node, state)
            else:
                state, bits = self._cut(node.name, state.values[node.args[0]], state)
                state.values[node], state.bits[node] = state.values[node.args[0]], bits
            state.values, step = self._alive(state.values, place), place + 1
            most = max(1, BLOCK // sum(3 * value[0].numel() for value in state.values.values()))
            if regions < len(state.cells) > most:
                blocks = np.split(np.arange(len(state.cells)), range(most, len(state.cells), most))
                cells, codes, outputs = zip(*(self.go(step, state.take(block)) for block in blocks), strict=True)
                return join(cells), np.concatenate(codes), torch.cat(outputs)
        raise CompanionError(f"{type(self.traced).__name__} has no output: return the last layer's value.")

    def _alive(self, values: dict, place: int) -> dict:
        return {key: value for key, value in values.items() if self.last_use.get(key, -1) > place}

    def _between(self, start: int, stop: int, state: _State) -> dict[fx.Node, Tensor]:
        """The values that are needed at the node `stop`, from those at `start`: all nodes between them are affine."""
        parts = []
        for first in range(0, len(state.cells), REGIONS):
            values = state.own_values(slice(first, first + REGIONS))
            for place in range(start, stop):
                node = self.nodes[place]
                if node.op != "placeholder" and node not in self.indices:
                    values[node] = self._affine(node, values)
                values = self._alive(values, place)
            parts.append(values)
        return {key: torch.cat([values[key] for values in parts]) for key in parts[0]}

    def _kind(self, node: fx.Node) -> object:
        return type(self.traced.get_submodule(node.target)) if node.op == "call_module" else node.target

    def _affine(self, node: fx.Node, values: dict) -> Tensor:
        """The node's value; what it makes of zeros is its constant and belongs to no slope."""
        kind = self._kind(node)
        if kind not in AFFINE:
            name = node.target if node.op == "call_module" else node.name
            kind = getattr(kind, "__name__", kind)
            raise CompanionError(f"Layer {name} ({kind}) is not known to be piecewise affine: use ReLU or max pooling.")

        def call(values: dict) -> Tensor:
            arguments = fx.map_arg((node.args, node.kwargs), (values | self.indices).get)
            return getattr(self.interpreter, node.op)(node.target, *arguments)

        if node not in self.constants:
            self.constants[node] = call({key: torch.zeros_like(value[:1]) for key, value in values.items()})
        value, constant = call(values), self.constants[node]
        if len(value) != len(next(iter(values.values()))):
            raise CompanionError(f"Layer {node.name} mixes the inputs of a batch: every input must go its own way.")
        if constant.any():
            value.unflatten(0, (-1, 3))[:, :2] -= constant
        return value

    def _maximum(self, node: fx.Node, state: _State) -> _State:
        """A knock-out among the entries of every window: each match cuts where the two are equal."""
        pool, value = self.traced.get_submodule(node.target), state.values[node.args[0]]
        if pool.ceil_mode:
            raise CompanionError(f"Layer {node.target} pools with ceil_mode: use windows that fit the image.")
        shape = pool(value[:1]).shape[1:]
        state.values["entries"] = value.flatten(2)[:, :, _windows(pool, value)]
        while (left := state.values["entries"].shape[2]) > 1:
            sizes = [left // 2, left // 2, left % 2]
            first, second, _ = state.values["entries"].split(sizes, 2)
            state, bits = self._cut(f"{node.name}.{left}", first - second, state)
            state.values, state.parent = state.own_values(slice(None)), torch.arange(len(bits))
            first, second, rest = state.values["entries"].split(sizes, 2)
            larger = torch.where(bits.repeat_interleave(3, 0).view_as(first), first, second)
            state.values["entries"] = torch.cat([larger, rest], 2)
        state.values[node] = state.values.pop("entries").unflatten(2, (1, -1)).flatten(2).view(-1, *shape)
        return state

    def _cut(self, name: str, bending: Tensor, state: _State) -> tuple[_State, Tensor]:
        """Cut the regions where a layer's units vanish; the bits (pieces, units) say which are positive."""
        lines = bending.unflatten(0, (-1, 3)).flatten(2).transpose(1, 2).numpy()
        label, _ = self.layers.setdefault(name, (sum(units for _, units in self.layers.values()), lines.shape[1]))
        pieces, parent, bits = subdivide(state.cells, lines, label)
        codes = np.concatenate([state.codes.take(parent, 0), np.packbits(bits, axis=1)], 1)
        return _State(pieces, codes, state.values, torch.from_numpy(parent)), torch.from_numpy(bits)


def _windows(pool: nn.MaxPool2d, value: Tensor) -> Tensor:
    """Places (entries, windows) of a flattened map that each window of a pooling sees; padding repeats one of them."""
    height, width = value.shape[2:]
    places = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    options = {"dilation": pool.dilation, "padding": pool.padding, "stride": pool.stride}
    seen = F.unfold(places, pool.kernel_size, **options)[0].long() - 1
    return torch.where(seen < 0, seen.amax(0), seen)


def length(segments: np.ndarray) -> float:
    """Sum of the lengths of segments (k, 2, 2)."""
    return float(np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1).sum())


def bends(segments: np.ndarray, tolerance: float) -> np.ndarray:
    """Points (k, 2) where segments of one polyline meet at an angle.

    Ends closer than the tolerance are one point; a segment shorter than ten times the tolerance has no direction.
    """
    step = segments[:, 1] - segments[:, 0]
    size = np.linalg.norm(step, axis=1)
    long = size > 10 * tolerance
    segments, direction = segments[long], (step[long] / size[long, None])
    ends = segments.reshape(-1, 2)
    pairs = cKDTree(ends).query_pairs(tolerance, output_type="ndarray") if len(ends) else np.zeros((0, 2), int)
    a, b = direction[pairs // 2].swapaxes(0, 1)
    turned = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) > STRAIGHT
    return ends[pairs[turned, 0]]


def distance(points: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Distance (n,) of each point from the nearest of segments (k, 2, 2); infinite if there are none."""
    if not len(segments):
        return np.full(len(points), np.inf)
    start, step = segments[:, 0], segments[:, 1] - segments[:, 0]
    square = np.maximum((step**2).sum(1), 1e-300)
    nearest = []
    for part in np.array_split(points, max(1, len(points) * len(segments) // 2**21)):
        away = part[:, None] - start
        along = np.clip((away * step).sum(2) / square, 0, 1)
        nearest.append(np.sqrt(((away - along[..., None] * step) ** 2).sum(2).min(1)))
    return np.concatenate(nearest)


def sampled(segments: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) along segments at most `spacing` apart, and the length (n,) that each stands for."""
    size = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1)
    count = np.maximum(1, np.ceil(size / spacing)).astype(int)
    which = np.repeat(np.arange(len(count)), count)
    share = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 0.5) / count[which]
    points = segments[which, 0] + share[:, None] * (segments[which, 1] - segments[which, 0])
    return points, (size / count)[which]


def moved_length(before: np.ndarray, after: np.ndarray, tolerance: float) -> float:
    """Length of the segments `before` that is farther than `tolerance` from every segment `after`."""
    points, weight = sampled(before, tolerance / 2)
    return float(weight[distance(points, after) > tolerance].sum())


def branches(segments: np.ndarray, radius: float) -> int:
    """How often segments cross the outline of the square of this half-side around 0: the branches of a shape."""
    away = np.abs(segments).max(2)
    return int(((away[:, 0] > radius) != (away[:, 1] > radius)).sum())


class Pair(nn.Module):
    """Two networks on the same inputs, their outputs side by side; its partition is the overlay of both partitions."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, 2 k) of both networks."""
        return torch.cat([self.first(x), self.second(x)], 1)


def change(before: nn.Module, after: nn.Module, window: Window) -> dict[str, float]:
    """What pruning does to a network of two inputs, exactly, on the overlay of both partitions.

    Both networks have the same layers; a removed unit stays as a unit without weights.

    Returns:
        `maps`, the area-weighted mean of the relative change of the affine maps, slopes and constants alike, in the
        Frobenius norm; `codes`, the share of the area in which the code of a unit changes, over units that both
        networks use; `decision`, the share of the area that is decided otherwise; `boundary`, the share of the
        boundary's length that moved by more than 1 % of the window's side.

    Source: P4.12; the paper gives no formula, the measures are this companion's.
    """
    both = split(Pair(before, after), window)
    layers, weight = len(both.layers) // 2, both.cells.area / both.cells.area.sum()
    old, new = np.split(both.maps, 2, axis=1)
    flips = np.concatenate([both.codes(layer) != both.codes(layer + layers) for layer in range(layers)], 1)
    moved = weight @ np.linalg.norm(new - old, axis=(1, 2)) / (weight @ np.linalg.norm(old, axis=(1, 2)))
    first, second = (split(network, window).boundary for network in (before, after))
    side = max(high - low for low, high in window)
    gone = moved_length(first, second, side / 100) / length(first) if len(first) else np.nan
    return {
        "maps": float(moved),
        "codes": float(weight @ flips[:, _used(before) & _used(after)].mean(1)),
        "decision": decided_otherwise(both),
        "boundary": float(gone),
    }


def decided_otherwise(both: Partition) -> float:
    """Share of the area in which the two networks of a `Pair` have their largest output in different places."""
    networks = np.split(both.maps, 2, axis=1)
    i, j = np.triu_indices(networks[0].shape[1], 1)
    lines = np.concatenate([maps[:, i] - maps[:, j] for maps in networks], 1)
    pieces, region, _ = subdivide(both.cells, lines, 0)
    first, second = (winner(maps[region], pieces) for maps in networks)
    return float(pieces.area[first != second].sum() / pieces.area.sum())


def _used(network: nn.Module) -> np.ndarray:
    """Which hidden units have any incoming weight, over all layers."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)][:-1]
    return np.concatenate([layer.weight.detach().ne(0).any(1).numpy() for layer in layers])
