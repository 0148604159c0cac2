"""The exact partition of 2-D windows of inputs into the regions where a network is affine; its lines; its changes.

The regions are convex cells, and all arrays run over them. The network is walked once for all regions together. Every
value in it is an affine function of the two coordinates in each region. A ReLU or a maximum first cuts the regions
where it bends; then it is affine in every piece.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, fx, nn

from lib.provenance import CompanionError
from lib.spline.cells import CUT, Cells, join, rectangle, subdivide
from lib.spline.walk import State, Walk, bits_of

FINEST = 1e-13  # a distance that is no rounding, in units of the largest coordinate
WIDEST = 1e12  # sides of windows in which offsets of order 1 are no rounding
STRAIGHT = 1e-6  # two segments bend if the sine of the angle between them is larger
NO_SEGMENTS = np.zeros((0, 2, 2))
SURROUNDINGS = 2**15  # numbers of inputs whose surroundings are divided together
Window = tuple[tuple[float, float], tuple[float, float]]
Plane = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Partition:
    """The regions of one or several windows, and in each one the network's affine map and its activation code.

    Regions are counted by code: two neighbours differ in a unit's code, even if their maps are equal; see
    `distinct_maps`. The code of a unit is the piece of its activation: of a ReLU 0 or 1, of ReLU6 0, 1 or 2 (a node
    draws two lines), of a maximum the entry that wins.
    """

    cells: Cells  # an edge's label is the unit that drew it, counted over all layers; one side of an edge shows it
    maps: np.ndarray  # (regions, outputs, 3); output k is maps[:, k] @ (x, y, 1)
    packed: np.ndarray  # (regions, bytes) codes of every unit, layer by layer, each layer padded to whole bytes
    layers: tuple[tuple[str, int], ...]  # name and number of units of every layer that bends, in the network's order
    pieces: tuple[int, ...]  # how many codes a unit of each layer can have
    window: np.ndarray  # (regions,) index of the window that each region is part of

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def boundary(self) -> np.ndarray:
        """The decision boundary: (segments, 2, 2), where the largest output changes, or where a single output is 0."""
        outputs = range(self.maps.shape[1])
        pairs = [level_set(self, i, j, visible=True) for i in outputs for j in range(i)]
        return level_set(self, 0) if len(outputs) == 1 else np.concatenate([NO_SEGMENTS, *pairs])

    def codes(self, layer: int) -> np.ndarray:
        """(regions, units) of one layer: whether each unit is positive there, or an index if it has more codes."""
        sizes = [(units, bits_of(pieces)) for (_, units), pieces in zip(self.layers, self.pieces, strict=True)]
        start = sum(-(-units * bits // 8) for units, bits in sizes[:layer])
        units, bits = sizes[layer]
        own = np.unpackbits(self.packed[:, start : start - (-units * bits // 8)], axis=1, count=units * bits)
        if bits == 1:
            return own.astype(bool)
        return own.reshape(-1, units, bits).astype(int) @ (1 << np.arange(bits))

    def lines(self, layer: int) -> dict[int, np.ndarray]:
        """The subdivision line of each unit of a layer, as segments (k, 2, 2); units without one are left out."""
        ends, labels, _ = self.cells.edges()
        start = sum(units for _, units in self.layers[:layer])
        own = (labels >= start) & (labels < start + self.layers[layer][1])
        ends, unit = ends[own], labels[own] - start
        return {int(u): ends[unit == u] for u in np.unique(unit)}

    def segments(self, *layers: int) -> np.ndarray:
        """The lines of all units of some layers together: (k, 2, 2)."""
        return np.concatenate([NO_SEGMENTS, *(line for layer in layers for line in self.lines(layer).values())])

    def distinct_maps(self, tolerance: float = 1e-9) -> np.ndarray:
        """(regions,) index of each region's affine map, equal for equal maps; regions of one map need not touch.

        Maps are equal if they differ by at most about `tolerance`, as a share of the largest coefficient of all.
        """
        maps = self.maps.reshape(len(self), -1)
        scale = np.abs(maps).max(initial=0) or 1.0
        directions = np.random.default_rng(0).standard_normal((maps.shape[1], 4)) / np.sqrt(maps.shape[1])
        groups = np.empty((len(maps), 4), dtype=int)
        for k, place in enumerate((maps @ directions / scale).T):  # equal maps are neighbours in every projection
            order = place.argsort()
            groups[order, k] = np.cumsum(np.diff(place[order], prepend=place[order][:1]) > tolerance)
        return np.unique(groups, axis=0, return_inverse=True)[1]


def split(network: nn.Module, window: Window, plane: Plane | None = None) -> Partition:
    """The exact partition of a window by a network in evaluation mode, in double precision.

    Args:
        network: of linear layers, convolutions, BatchNorm, average pooling, sums, products with constants, and
            piecewise affine activations and maxima; it gives (n, outputs).
        window: ((x low, x high), (y low, y high)).
        plane: the three inputs that are the points (0, 0), (1, 0) and (0, 1); by default the network has two inputs.

    Raises:
        CompanionError: for a layer that is not piecewise affine, naming it, for weights that are not finite, and for a
            window so wide that double precision cannot tell its regions apart.
        ValueError: for a window without area, a plane without two directions, or inputs that do not fit the network.

    Source: the construction of paper 4's figures is not published; this companion's.
    """
    rectangle(window)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    origin, first, second = (value.double() for value in (corners if plane is None else plane))
    directions, middle = torch.stack([first - origin, second - origin]), np.mean(window, axis=1)
    inputs = torch.cat([directions, (origin + torch.tensordot(torch.from_numpy(middle), directions, 1))[None]])
    found = _split(network, rectangle(np.asarray(window) - middle[:, None]), inputs[None])
    maps = found.maps.copy()
    maps[..., 2] -= maps[..., :2] @ middle
    return replace(found, cells=replace(found.cells, corners=found.cells.corners + middle), maps=maps)


def _split(network: nn.Module, cells: Cells, inputs: Tensor) -> Partition:
    """The partition of several cells, each in a plane of its own: inputs (cells, 3, ...), two directions and a middle.

    Errors as in `split`.
    """
    if np.abs(cells.corners).max() > WIDEST:
        raise CompanionError("The window is too wide for double precision to tell its regions apart: narrow it.")
    if bad := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise CompanionError(f"{bad[0]} of the network is not finite: its training diverged, lower the learning rate.")
    directions = inputs[:, :2].flatten(2)
    if not inputs.isfinite().all() or (torch.linalg.matrix_rank(directions) < 2).any():
        raise ValueError("A plane needs two directions that are finite and not parallel: choose other inputs.")
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network).double().eval())
    except (fx.proxy.TraceError, TypeError) as error:
        raise CompanionError(f"{type(network).__name__} cannot be followed layer by layer: {error}.") from None
    with torch.no_grad():
        try:
            walk = Walk(traced, inputs[0], FINEST * np.abs(cells.corners).max())
        except RuntimeError:
            sentence = f"The network does not take inputs of shape {tuple(inputs.shape[2:])}"
            raise ValueError(f"{sentence}: give `plane`, three inputs of its shape.") from None
        window = np.arange(len(cells))
        values = {walk.nodes[0]: inputs.flatten(0, 1)}
        state = State(cells, window, np.zeros((len(cells), 0), np.uint8), values, torch.from_numpy(window))
        cells, window, packed, outputs = walk.go(0, state)
    layers = tuple((name, units) for name, (_, units, _) in walk.layers.items())
    pieces = tuple(pieces for *_, pieces in walk.layers.values())
    return Partition(cells, outputs.unflatten(0, (-1, 3)).flatten(2).mT.numpy(), packed, layers, pieces, window)


def winner(maps: np.ndarray, cells: Cells) -> np.ndarray:
    """The largest output (n,) in the middle of each cell, of affine maps (n, outputs, 3); of one output, its sign."""
    centre = np.concatenate([cells.centre, np.ones((len(cells), 1))], 1)
    return np.einsum("nok,nk->no", _logits(maps), centre).argmax(1)


def _logits(maps: np.ndarray) -> np.ndarray:
    """Maps of at least two outputs: a single logit is compared with 0."""
    return np.concatenate([np.zeros_like(maps), maps], 1) if maps.shape[1] == 1 else maps


def level_set(partition: Partition, i: int, j: int | None = None, visible: bool = False) -> np.ndarray:
    """Segments (k, 2, 2) along which outputs i and j are equal, or output i is 0 if there is no j.

    The visible part is where no other output is larger.
    """
    difference = partition.maps[:, i] - (0 if j is None else partition.maps[:, j])
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


def local_complexity(
    network: nn.Module, centres: Tensor, radius: float, directions: Tensor | None = None
) -> dict[str, np.ndarray]:
    """How finely a network divides the surroundings of inputs, exactly, in a square of half-side `radius` around each.

    Args:
        network: as for `split`.
        centres: inputs (n, ...).
        radius: in the units of the inputs.
        directions: the orthonormal directions of the squares, (2, ...) for all or (n, 2, ...) for each, as those of
            `random_directions`; by default the axes of a network of two inputs.

    Returns:
        `regions` (n,), their number by code; `density` (n,), the length of all lines over the area of the square.

    Raises:
        CompanionError, ValueError: as `split`.

    Source: Humayun et al. 2024 (arXiv 2402.15555) count the units that change sign on a frame around an input; the
    exact count in a plane is this companion's.
    """
    centres = torch.as_tensor(centres).double()
    if directions is None:
        directions = torch.eye(2)
    directions = directions.double().expand(len(centres), 2, *centres.shape[1:])
    inputs = torch.cat([radius * directions, centres[:, None]], 1)
    counts, lengths = [np.zeros(0, int)], [np.zeros(0)]
    step = max(1, SURROUNDINGS // max(1, inputs[:1, 0].numel()))
    for part in inputs.split(step) if len(inputs) else ():
        found = _split(network, join([rectangle(((-1, 1), (-1, 1)))] * len(part)), part)
        ends, labels, cell = found.cells.edges()
        own = labels >= 0
        size, window = np.linalg.norm(ends[own, 1] - ends[own, 0], axis=1), found.window[cell[own]]
        counts.append(np.bincount(found.window, minlength=len(part)))
        lengths.append(np.bincount(window, size, len(part)))
    return {"regions": np.concatenate(counts), "density": np.concatenate(lengths) / (4 * radius)}


def random_directions(shape: tuple[int, ...], number: int, generator: torch.Generator) -> Tensor:
    """Orthonormal pairs (number, 2, *shape) of directions, uniformly at random."""
    drawn = torch.randn(number, int(np.prod(shape)), 2, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].mT.reshape(number, 2, *shape)


def three_kinds(
    network: nn.Module, points: Tensor, window: Window, number: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Centres (number, 2) of three kinds for a network of two inputs: "data", "boundary" and "elsewhere".

    They are drawn from the training points (n, 2), from the exact decision boundary uniformly by length, and uniformly
    from the window. Without a boundary in the window that kind is empty.
    """
    low, high = torch.tensor(window, dtype=torch.float64).T
    boundary = torch.from_numpy(split(network, window).boundary)
    size = (boundary[:, 1] - boundary[:, 0]).norm(dim=1)
    chosen = torch.randint(len(points), (number,), generator=generator)
    share = torch.rand(3, number, 1, generator=generator, dtype=torch.float64)
    place = torch.searchsorted(size.cumsum(0), share[0, :, 0] * size.sum()).clamp_max(max(0, len(size) - 1))
    ends = boundary[place if len(boundary) else place[:0]]
    return {
        "data": points[chosen].double(),
        "boundary": ends[:, 0] + share[1, : len(ends)] * (ends[:, 1] - ends[:, 0]),
        "elsewhere": low + torch.cat([share[1], share[2]], 1) * (high - low),
    }


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
    networks = [_logits(maps) for maps in np.split(both.maps, 2, axis=1)]
    i, j = np.triu_indices(networks[0].shape[1], 1)
    lines = np.concatenate([maps[:, i] - maps[:, j] for maps in networks], 1)
    pieces, region, _ = subdivide(both.cells, lines, 0)
    first, second = (winner(maps[region], pieces) for maps in networks)
    return float(pieces.area[first != second].sum() / pieces.area.sum())


def _used(network: nn.Module) -> np.ndarray:
    """Which hidden units have any incoming weight, over all layers."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)][:-1]
    return np.concatenate([layer.weight.detach().ne(0).any(1).numpy() for layer in layers])
