"""Convex cells of the plane, cut by many straight lines at once; all arrays run over cells."""

from dataclasses import dataclass, fields, replace

import numpy as np

CUT = 1e-9  # a line cuts a cell if corners lie farther than this on both sides, in units of the cell's size
FLAT = 1e-13  # a function whose slope over a cell is below this share of its layer's scale is a constant


@dataclass(frozen=True)
class Cells:
    """n convex polygons with corners in counter-clockwise order.

    corners: (n, most, 2); a cell with fewer corners than the most repeats its first one, so that loops close.
    count: (n,) corners of each cell.
    labels: (n, most) which line drew the edge that starts at each corner; below 0 for the sides of the window.
    """

    corners: np.ndarray
    count: np.ndarray
    labels: np.ndarray

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
    """One cell, the window ((x low, x high), (y low, y high)); ValueError if it has no area."""
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
        lines: (n, units, 3); unit u of cell i vanishes where lines[i, u] @ (x, y, 1) = 0.
        first_label: label of the edges that unit 0 draws; unit u draws first_label + u.

    Returns: the pieces, and the index of the cell that each was part of, (pieces,).
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
