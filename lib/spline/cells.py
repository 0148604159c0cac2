"""Convex cells of a plane, cut by lines or by the winner of several affine functions; arrays run over all cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.provenance import CompanionError

CUT = 1e-9  # a line cuts a cell if corners lie farther than this on both sides, in units of the cell's size
FLAT = 1e-13  # a function whose slope over a cell is below this share of its layer's scale is a constant
SLACK = 1 + 1e-6  # a cell is taken to reach this much farther than it does, so that rounding hides no line
NUMBERS = 2**14  # handled at once, so that they stay in the processor's cache
OTHER = -5  # label of an edge on the side that does not show it; -1 to -4 are the sides of the first cells


@dataclass(frozen=True)
class Cells:
    """n convex polygons with corners in counter-clockwise order."""

    corners: np.ndarray  # (n, most, 2); a cell with fewer than the most repeats its first one, so that loops close
    count: np.ndarray  # (n,) corners of each cell
    labels: np.ndarray  # (n, most) the line that drew the edge from each corner; below 0: no line, or shown elsewhere

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


def subdivide(
    cells: Cells, lines: np.ndarray, first_label: int, finest: float = np.inf
) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Cut every cell by those of its own lines that cross it.

    In every round each piece that is not finished is cut by its own next line, and its halves keep those of the later
    lines that cross them. So no line is tried on a cell that it cannot reach, and no finished piece is touched again.

    Args:
        cells: n cells.
        lines: (n, units, 3); unit u of cell i vanishes where lines[i, u] @ (x, y, 1) = 0.
        first_label: label of the edges that unit 0 draws; unit u draws first_label + u.
        finest: the smallest distance that is no rounding; by default nothing is refused.

    Returns:
        The pieces; the index of the cell that each was part of, (pieces,); whether each unit is positive there,
        (pieces, units).

    Raises:
        CompanionError: if a line passes a corner of a much larger cell so closely that it cannot be told on which side,
            but farther than `finest`: then lines of the window meet at distances too small for it.
    """
    positive, cell, unit, line = _crossings(cells, lines, finest)
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
        cut, side = _sides(pieces.corners, size, piece, line, finest)
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


def _sides(
    corners: np.ndarray, size: np.ndarray, cell: np.ndarray, line: np.ndarray, finest: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each line (k, 3) cuts its cell (k,); and whether it is positive there if it does not."""
    x, y = np.ascontiguousarray(corners.T).take(cell, 2)
    height, margin = x * line[:, 0] + y * line[:, 1] + line[:, 2], CUT * size[cell]
    low, high = height.min(0), height.max(0)
    depth = np.minimum(high, -low)
    if ((depth > finest) & (depth <= margin)).any():
        raise CompanionError("The window is too wide for double precision to tell its regions apart: narrow it.")
    return (high > margin) & (low < -margin), low + high > 0


def _crossings(cells: Cells, lines: np.ndarray, finest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
    cut = np.flatnonzero(_sides(cells.corners, size[:, 0], cell, line, finest)[0])
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


def envelope(cells: Cells, functions: np.ndarray, label: int) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Cut every cell where the largest of several affine functions changes, for several such maxima at once.

    Functions that tie or lose cut nothing, so a maximum of m functions has at most m pieces in a cell. Of equal
    functions the first one wins.

    Args:
        cells: n cells.
        functions: (n, maxima, m, 3); function k of a maximum is functions[..., k, :] @ (x, y, 1).
        label: of the edges that the first maximum draws; maximum u draws label + u, shown on one side of each edge.

    Returns:
        The pieces; the index of the cell that each was part of, (pieces,); the index of the winner, (pieces, maxima).
    """
    step = max(1, NUMBERS // (functions[:1].size * cells.corners.shape[1]))
    won, settled = zip(
        *(_winners(cells.corners[k : k + step], functions[k : k + step]) for k in range(0, len(cells), step)),
        strict=True,
    )
    won, settled, done = np.concatenate(won), np.concatenate(settled), []
    pieces, parent, (piece, maximum) = cells, np.arange(len(cells)), np.nonzero(~settled)
    while len(pieces):
        waits = np.bincount(piece, minlength=len(pieces)) > 0
        done.append((pieces.take(np.flatnonzero(~waits)), parent[~waits], won[~waits]))
        pieces, parent, won, piece = (
            pieces.take(np.flatnonzero(waits)),
            parent[waits],
            won[waits],
            (np.cumsum(waits) - 1)[piece],
        )
        if not len(pieces):
            break
        first = np.diff(piece, prepend=-1) > 0
        now = maximum[first]
        pieces, own, winner = _won_parts(pieces, functions[parent, now], label + now)
        parent, won = parent[own], won[own]
        won[np.arange(len(own)), now[own]] = winner
        later = np.bincount(piece, minlength=len(now)) - 1
        start = np.cumsum(later + 1) - later
        piece, place = np.repeat(np.arange(len(own)), later[own]), _ranges(start[own], later[own])
        maximum = maximum[place]
        best, settled = _winners(pieces.corners[piece], functions[parent[piece], maximum][:, None])
        won[piece[settled[:, 0]], maximum[settled[:, 0]]] = best[settled[:, 0], 0]
        piece, maximum = piece[~settled[:, 0]], maximum[~settled[:, 0]]
    pieces, parent, won = zip(*done, strict=True)
    return join(pieces), np.concatenate(parent), np.concatenate(won)


def _ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The integers from each start on, as many as its count, one after another."""
    return np.repeat(start - np.cumsum(count) + count, count) + np.arange(count.sum())


def _winners(corners: np.ndarray, functions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest of functions (n, maxima, m, 3) at the first of corners (n, most, 2); whether it is so at all."""
    height = np.einsum("numk,nck->cnum", functions[..., :2], corners) + functions[..., 2]
    best = height.argmax(3)
    return best[0], (best == best[0]).all(0)


def _won_parts(cells: Cells, functions: np.ndarray, label: np.ndarray) -> tuple[Cells, np.ndarray, np.ndarray]:
    """The parts (pieces) of each cell where each of its own functions (n, m, 3) is the largest, its cell and winner.

    Where function k meets function j, the side of the later one shows the edge.
    """
    size, centre, most, parts = cells.size, cells.centre, functions.shape[1], []
    middle = functions[..., 0] * centre[:, :1] + functions[..., 1] * centre[:, 1:] + functions[..., 2]
    noise = FLAT * (_length(functions) * size[:, None] + np.abs(middle)).max(1)
    for k in range(most):
        own, part = np.arange(len(cells)), cells
        for j in range(most):
            if j == k:
                continue
            line = functions[own, k] - functions[own, j]
            slope, difference = _length(line), middle[own, k] - middle[own, j]
            level = slope * size[own] <= noise[own]
            line /= np.where(level, 1.0, slope)[:, None]
            cut, above = _sides(part.corners, size[own], np.arange(len(own)), line)
            tie = np.abs(difference) <= noise[own]
            above, cut = np.where(level, np.where(tie, k < j, difference > 0), above), cut & ~level
            whole, cut = np.flatnonzero(above & ~cut), np.flatnonzero(cut)
            if not len(cut):
                part, own = part.take(whole), own[whole]
                continue
            half = part.take(cut)
            height = (half.corners @ line[cut, :2, None])[..., 0] + line[cut, 2:]
            drawn = label[own[cut]] if k > j else np.full(len(cut), OTHER)
            half = _halves(half, height, CUT * size[own[cut]], drawn).take(np.arange(len(cut)))
            part, own = join([part.take(whole), half]), np.concatenate([own[whole], own[cut]])
        parts.append((part, own, np.full(len(own), k)))
    parts, own, winner = zip(*parts, strict=True)
    return join(parts), np.concatenate(own), np.concatenate(winner)
