"""Lines of a partition as segments: where they bend, how far apart they lie; one partition laid over another."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from lib import partition, partition_cells
from lib.partition import Partition, Window

STRAIGHT = 1e-6  # two segments bend if the sine of the angle between them is larger


def length(segments: np.ndarray) -> float:
    """Sum of the lengths of segments (k, 2, 2)."""
    return float(np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1).sum())


def bends(segments: np.ndarray, tolerance: float) -> np.ndarray:
    """Points (k, 2) where segments of one polyline meet at an angle.

    tolerance: ends that lie closer than this are one point; segments shorter than ten times this say no direction.
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
    """(n,) distance of each point from the nearest of segments (k, 2, 2); infinite if there are none."""
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
    """Length of the segments `before` that lie farther than `tolerance` from every segment `after`."""
    points, weight = sampled(before, tolerance / 2)
    return float(weight[distance(points, after) > tolerance].sum())


def arms(segments: np.ndarray, radius: float) -> int:
    """How often segments cross the outline of the square of this half-side around 0: the arms of a shape."""
    away = np.abs(segments).max(2)
    return int(((away[:, 0] > radius) != (away[:, 1] > radius)).sum())


class Pair(nn.Module):
    """Two networks on the same inputs, their outputs side by side; its partition is the overlay of both partitions."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)


def change(before: nn.Module, after: nn.Module, window: Window) -> dict[str, float]:
    """What pruning does to a network of two inputs, exactly, on the overlay of both partitions.

    Args:
        before, after: with the same layers; a removed unit stays as a unit without weights.

    Returns: `maps`, the area-weighted mean of the relative change of the affine maps, slopes and constants alike, in
        the Frobenius norm; `codes`, the share of the area in which the code of a unit changes, over units that both
        networks use; `decision`, the share of the area that is decided otherwise; `boundary`, the share of the
        boundary's length that moved by more than 1 % of the window's side.

    Source: P4.12; the paper gives no formula, the measures are this companion's.
    """
    both = partition.split(Pair(before, after), window)
    outputs, layers = both.maps.shape[1] // 2, len(both.layers) // 2
    weight = both.area / both.area.sum()
    old, new = both.maps[:, :outputs], both.maps[:, outputs:]
    flips = np.concatenate([both.codes(layer) != both.codes(layer + layers) for layer in range(layers)], 1)
    moved = weight @ np.linalg.norm(new - old, axis=(1, 2)) / (weight @ np.linalg.norm(old, axis=(1, 2)))
    first, second = (partition.split(network, window).boundary for network in (before, after))
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
    pieces, region = partition_cells.subdivide(both.cells, lines, 0)
    centre = np.concatenate([pieces.centre, np.ones((len(pieces), 1))], 1)
    first, second = (np.einsum("nok,nk->no", maps[region], centre).argmax(1) for maps in networks)
    return float(pieces.area[first != second].sum() / pieces.area.sum())


def _used(network: nn.Module) -> np.ndarray:
    """Which hidden units have any incoming weight, over all layers."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)][:-1]
    return np.concatenate([layer.weight.detach().ne(0).any(1).numpy() for layer in layers])
