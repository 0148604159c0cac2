"""The exact partition of a 2-D window of inputs into the regions where a network is affine; its lines; its changes.

The regions are convex cells, and all arrays run over them. The network is walked once for all regions together. Every
value in it is an affine function of the two coordinates in each region. A ReLU or a maximum first cuts the regions by
the lines where it bends; then it is affine in every piece.
"""

import copy
import operator
from dataclasses import dataclass, fields, replace
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


@dataclass(frozen=True)
class Cells:
    """n convex polygons with corners in counter-clockwise order."""

    corners: np.ndarray  # (n, most, 2); a cell with fewer than the most repeats its first one, so that loops close
    count: np.ndarray  # (n,) corners of each cell
    labels: np.ndarray  # (n, most) the line that drew the edge from each corner; below 0 for the sides of the window

    def __len__(self) -> int:
        return len(self.count)

    def take(self, index: np.ndarray | slice) -> "Cells":
        """Some of the cells, in the order of the index."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def area(self) -> np.ndarray:
        """(n,) areas, by the shoelace formula relative to each cell's first corner."""
        x, y = np.moveaxis(self.corners - self.corners[:, :1], 2, 0)
        return 0.5 * (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)

    @property
    def size(self) -> np.ndarray:
        """(n,) diagonals of the bounding boxes."""
        low, high = _extremes(self.corners)
        return _length(high - low)

    @property
    def centre(self) -> np.ndarray:
        """(n, 2) means of the corners, inside every cell."""
        padding = self.corners.shape[1] - self.count[:, None]
        return (self.corners.sum(1) - padding * self.corners[:, 0]) / self.count[:, None]

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every edge of every cell: (e, 2, 2) ends, (e,) labels, (e,) cells."""
        real = np.arange(self.corners.shape[1]) < self.count[:, None]
        ends = np.stack([self.corners, np.roll(self.corners, -1, 1)], 2)
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


def join(parts: list[Cells]) -> Cells:
    """All cells of several lists, in their order."""
    most = max(part.corners.shape[1] for part in parts)
    return Cells(*(np.concatenate([_padded(getattr(part, f.name), most) for part in parts]) for f in fields(Cells)))


def subdivide(cells: Cells, lines: np.ndarray, first_label: int) -> tuple[Cells, np.ndarray]:
    """Cut every cell by those of its own lines that cross it.

    Args:
        cells: n cells.
        lines: (n, units, 3); unit u of cell i vanishes where lines[i, u] @ (x, y, 1) = 0.
        first_label: label of the edges that unit 0 draws; unit u draws first_label + u.

    Returns:
        The pieces, and the index of the cell that each was part of, (pieces,).
    """
    cell, unit = np.nonzero(_crosses(cells, lines))
    starts = np.searchsorted(cell, np.arange(len(cells) + 1))
    whole = starts[:-1] == starts[1:]
    done, parents = [cells.take(whole)], [np.flatnonzero(whole)]
    parent = np.flatnonzero(~whole)
    pieces, turn = cells.take(parent), starts[parent]
    while len(parent):
        chosen = unit[turn]
        line = lines[parent, chosen]
        line = line / _length(line)[:, None]
        height = (pieces.corners @ line[:, :2, None])[..., 0] + line[:, 2:]
        margin = CUT * pieces.size
        low, high = _extremes(height)
        cut = (high > margin) & (low < -margin)
        positive, negative = _split(pieces.take(cut), height[cut], margin[cut], first_label + chosen[cut])
        pieces = join([pieces.take(~cut), positive, negative])
        parent = np.concatenate([parent[~cut], parent[cut], parent[cut]])
        turn = np.concatenate([turn[~cut], turn[cut], turn[cut]]) + 1
        going = turn < starts[parent + 1]
        done.append(pieces.take(~going))
        parents.append(parent[~going])
        pieces, parent, turn = pieces.take(going), parent[going], turn[going]
    return join(done), np.concatenate(parents)


def at_centre(cells: Cells, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, units) at the cells' centres, and whether each function is constant over its cell.

    Slopes and values below FLAT of the largest in the cell are rounding noise: they count as zero.
    """
    height = np.einsum("nuk,nk->nu", lines[..., :2], cells.centre) + lines[..., 2]
    slope = _length(lines) * cells.size[:, None]
    noise = FLAT * (slope + np.abs(height)).max(1, keepdims=True)
    return np.where(slope + np.abs(height) <= noise, 0.0, height), slope <= noise


def _length(vectors: np.ndarray) -> np.ndarray:
    """Length of the first two coordinates; numpy's own norm of a short axis is several times slower."""
    return np.sqrt(vectors[..., 0] ** 2 + vectors[..., 1] ** 2)


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum over the corners, axis 1; numpy's own reductions of a short axis are many times slower."""
    low = high = values[:, 0]
    for corner in range(1, values.shape[1]):
        low, high = np.minimum(low, values[:, corner]), np.maximum(high, values[:, corner])
    return low, high


def _crosses(cells: Cells, lines: np.ndarray) -> np.ndarray:
    height = lines[..., :2] @ np.swapaxes(cells.corners, 1, 2) + lines[..., 2:]
    margin = CUT * cells.size[:, None] * _length(lines)
    low, high = _extremes(np.moveaxis(height, 2, 1))
    return (high > margin) & (low < -margin) & ~at_centre(cells, lines)[1]


def _split(cells: Cells, height: np.ndarray, margin: np.ndarray, label: np.ndarray) -> tuple[Cells, Cells]:
    """Both parts of cells that a line cuts, from the signed distances (n, most) of the corners from it."""
    sign = np.where(np.abs(height) <= margin[:, None], 0, np.sign(height)).astype(np.int8)
    change = sign * np.roll(sign, -1, 1) == -1
    ahead, below = np.roll(cells.corners, -1, 1), np.roll(height, -1, 1)
    share = np.divide(height, height - below, out=np.zeros_like(height), where=change)[..., None]
    crossing = cells.corners + share * (ahead - cells.corners)
    slots = np.stack([cells.corners, crossing], 2).reshape(len(cells), 2 * sign.shape[1], 2)
    return tuple(_half(cells, side * sign, change, slots, label) for side in (1, -1))


def _half(cells: Cells, sign: np.ndarray, change: np.ndarray, slots: np.ndarray, label: np.ndarray) -> Cells:
    """The part where `sign` is not negative; slots alternate corners and the crossings of the edges behind them."""
    real = np.arange(sign.shape[1]) < cells.count[:, None]
    leaves = np.roll(sign, -1, 1) < 0  # the next corner is on the other side: the new edge starts here
    kept = np.stack([real & (sign >= 0), change], 2).reshape(len(cells), 2 * sign.shape[1])
    drawn = np.where(leaves, label[:, None], cells.labels)
    names = np.stack([np.where(sign == 0, drawn, cells.labels), drawn], 2).reshape(len(cells), 2 * sign.shape[1])
    count = kept.sum(1)
    row, slot = np.nonzero(kept)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    first = slot[np.cumsum(count) - count]
    everyone = np.arange(len(cells))
    corners = np.repeat(slots[everyone, first][:, None], count.max(initial=1), 1)
    labels = np.zeros(corners.shape[:2], dtype=cells.labels.dtype)
    corners[row, place], labels[row, place] = slots[row, slot], names[row, slot]
    return Cells(corners, count, labels)


def _padded(array: np.ndarray, most: int) -> np.ndarray:
    missing = most - array.shape[1] if array.ndim > 1 else 0
    return np.concatenate([array, np.repeat(array[:, :1], missing, 1)], 1) if missing > 0 else array


AFFINE = (
    *(nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Flatten, nn.Identity, nn.Dropout),
    *(operator.add, operator.iadd, operator.sub, operator.neg, operator.getitem, torch.add, torch.sub, torch.cat),
    *(torch.flatten, F.pad, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("add", "add_", "mean", "flatten", "view", "reshape"),
)
RELU = (nn.ReLU, F.relu, torch.relu, "relu", "relu_")
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
        leaves = walk.go(0, _State(cells, [], {walk.nodes[0]: inputs}))
    outputs = torch.cat([state.values[output].unflatten(0, (-1, 3)).flatten(2) for state, output in leaves])
    packed = [np.concatenate([np.zeros((len(s.cells), 0), np.uint8), *s.codes], 1) for s, _ in leaves]
    layers = tuple((name, units) for name, (_, units) in walk.layers.items())
    return Partition(join([s.cells for s, _ in leaves]), outputs.mT.numpy(), np.concatenate(packed), layers)


def winner(maps: np.ndarray, cells: Cells) -> np.ndarray:
    """The largest output (n,) in the middle of each cell, of affine maps (n, outputs, 3)."""
    centre = np.concatenate([cells.centre, np.ones((len(cells), 1))], 1)
    return np.einsum("nok,nk->no", maps, centre).argmax(1)


def level_set(partition: Partition, i: int, j: int, visible: bool = False) -> np.ndarray:
    """Segments (k, 2, 2) along which outputs i and j are equal; the visible part is where no other one is larger."""
    difference = partition.maps[:, i] - partition.maps[:, j]
    pieces, region = subdivide(partition.cells, difference[:, None], 0)
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
    """Some regions on their way through the network."""

    cells: Cells
    codes: list[np.ndarray]  # of each layer so far
    values: dict[fx.Node | str, Tensor]  # by node (3 * regions, ...): two slopes and a constant each

    def take(self, index: np.ndarray | slice, cells: Cells | None = None) -> "_State":
        """Some of the regions, or pieces of them: the index names the region of each piece."""
        values = {key: value.unflatten(0, (-1, 3))[index].flatten(0, 1) for key, value in self.values.items()}
        return _State(cells or self.cells.take(index), [code[index] for code in self.codes], values)


class _Walk:
    """A traced network; `layers` names those that bend, with the label of their first unit and their units."""

    def __init__(self, traced: fx.GraphModule):
        self.traced, self.nodes, self.layers = traced, list(traced.graph.nodes), {}
        self.interpreter, buffers = fx.Interpreter(traced), dict(traced.named_buffers())
        read = {node: buffers.get(node.target) for node in self.nodes if node.op == "get_attr"}
        self.indices = {node: value for node, value in read.items() if value is not None and value.dtype == torch.long}
        self.last_use = {used: place for place, node in enumerate(self.nodes) for used in node.all_input_nodes}

    def go(self, step: int, state: _State) -> list[tuple[_State, fx.Node]]:
        """Walk some regions from a step to the end, block by block if they are many; with the node of the output."""
        for place in range(step, len(self.nodes)):
            node, regions = self.nodes[place], len(state.cells)
            if node.op == "output":
                return [(state, node.args[0])]
            if node.op == "placeholder" or node in self.indices:
                continue
            if self._kind(node) in RELU:
                state, bits = self._cut(node.name, state.values[node.args[0]], state)
                value = state.values[node.args[0]]
                state.values[node] = value * bits.view_as(value)
            elif self._kind(node) is nn.MaxPool2d:
                state = self._maximum(node, state)
            else:
                state.values[node] = self._affine(node, state.values)
            state.values = {key: value for key, value in state.values.items() if self.last_use.get(key, -1) > place}
            most = max(1, BLOCK * len(state.cells) // sum(value.numel() for value in state.values.values()))
            if regions < len(state.cells) > most:
                blocks = [slice(start, start + most) for start in range(0, len(state.cells), most)]
                return [leaf for block in blocks for leaf in self.go(place + 1, state.take(block))]
        raise CompanionError(f"{type(self.traced).__name__} has no output: return the last layer's value.")

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
            arguments = fx.map_arg(
                (node.args, node.kwargs), lambda n: self.indices[n] if n in self.indices else value_of(n)
            )
            return getattr(self.interpreter, node.op)(node.target, *arguments)

        value, constant = call(values.get), call(lambda used: torch.zeros_like(values[used][:1]))
        if len(value) != len(next(iter(values.values()))):
            raise CompanionError(f"Layer {node.name} mixes the inputs of a batch: every input must go its own way.")
        value = value.unflatten(0, (-1, 3)).clone()
        value[:, :2] -= constant
        return value.flatten(0, 1)

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
            first, second, rest = state.values["entries"].split(sizes, 2)
            state.values["entries"] = torch.cat([torch.where(bits.view_as(first), first, second), rest], 2)
        state.values[node] = state.values.pop("entries").unflatten(2, (1, -1)).flatten(2).view(-1, *shape)
        return state

    def _cut(self, name: str, bending: Tensor, state: _State) -> tuple[_State, Tensor]:
        """Cut the regions where a layer's units vanish; the bits (3 * pieces, units) say which are positive."""
        lines = bending.unflatten(0, (-1, 3)).flatten(2).transpose(1, 2).contiguous().numpy()
        label, _ = self.layers.setdefault(name, (sum(units for _, units in self.layers.values()), lines.shape[1]))
        pieces, parent = subdivide(state.cells, lines, label)
        bits = at_centre(pieces, lines[parent])[0] > 0
        state = state.take(parent, pieces)
        state.codes.append(np.packbits(bits, axis=1))
        return state, torch.from_numpy(bits).repeat_interleave(3, 0)


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
    pieces, region = subdivide(both.cells, lines, 0)
    first, second = (winner(maps[region], pieces) for maps in networks)
    return float(pieces.area[first != second].sum() / pieces.area.sum())


def _used(network: nn.Module) -> np.ndarray:
    """Which hidden units have any incoming weight, over all layers."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)][:-1]
    return np.concatenate([layer.weight.detach().ne(0).any(1).numpy() for layer in layers])
