"""Paper 4 in two dimensions: the places of a network's lines in a training that is much longer than usual."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.spline import measures, partition, toy
from lib.study import Study, generator

EARLY_BIRDS = {"relative": (0.1, True), "released": (measures.THRESHOLD, False)}  # threshold; whether of the first
SIDE = 30  # squared, the probes of the code
CENTRES = 200  # training points, and places elsewhere, around which lines are measured, at most
SPACING = 0.2  # of the points of the boundary


def study(folder: Path) -> Study:
    """The study of `migrating`."""
    return Study("04_spline_early_bird.toy_migrating", migrating, version=1, folder=folder)


def migrating(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the places of lines, for networks of two hidden layers that train on few points, side by side.

    The spec holds `seeds`, `width`, `points` (that each network is trained on), `epochs` (checkpoints, rising from 0),
    `radii`, `watched` (epochs in which early birds are looked for); `labels`: "shuffled" permutes the training labels;
    `rate`: factor on the learning rate.

    Returns:
        Lists over seeds of values, of lists over checkpoints, or of lists over checkpoints and radii, flat:
        `density_points`, the mean density of lines in disks around training points (see `line_density`),
        `density_boundary`, around points of the decision boundary, `density_elsewhere`, around points far from both,
        `density_random`, of as many straight lines drawn at random, around training points; `crossing_...`, the mean
        number of nodes whose lines cross these disks; `regions`; `accuracy` (%); `from_start`, the distance of the code
        from the untrained one, `from_relative` and `from_released`, from the code at the early bird of each rule;
        `relative` and `released`, the trained epochs at these. NaN stands for never, and for places that do not exist.

    Source: Humayun et al. 2024 (arXiv 2402.15555) for the question; density is sampled there and exact here.
    """
    seeds, number = spec["seeds"], spec["points"]
    points, labels, *test = (torch.stack(part) for part in zip(*map(toy.draw, seeds), strict=True))
    points, labels = points[:, :number], labels[:, :number]
    if spec.get("labels") == "shuffled":
        orders = [torch.randperm(number, generator=generator(seed, "shuffled labels")) for seed in seeds]
        labels = labels.gather(1, torch.stack(orders))
    widths = [2, spec["width"], spec["width"], 2]
    batch = toy.stacked([toy.initial(widths, 1, generator(seed, "initialisation")) for seed in seeds])
    stream, codes, recent, rows = generator(seeds[0], "order"), [_codes(batch)], [], []
    untrained, birds = codes.pop(), {name: [None] * len(seeds) for name in EARLY_BIRDS}
    for start, stop in pairwise([0, *spec["epochs"]]):
        for epoch in range(start, stop):
            toy.fit(batch, points, labels, 1, stream, rate=spec.get("rate", 1.0))
            if epoch < spec["watched"]:
                codes = [*codes[-measures.LOOKBACK :], _codes(batch)]
                back = [_apart(codes[-1], old) for old in codes[:-1]]
                recent.append(np.max(back, 0) if len(back) == measures.LOOKBACK else np.full(len(seeds), np.nan))
                _note(birds, np.array(recent), codes[-1])
        now = _codes(batch)
        measured = [_around(toy.one(batch, k), points[k], seed, spec["radii"]) for k, seed in enumerate(seeds)]
        row = {name: [one[name] for one in measured] for name in measured[0]}
        row |= {"accuracy": [100 * share for share in toy.accuracy(batch, *test)], "from_start": _apart(now, untrained)}
        for name, found in birds.items():
            row[f"from_{name}"] = [_apart(a[None], b[1][None])[0] if b else np.nan for a, b in zip(now, found, strict=True)]
        rows.append(row)
    by_seed = {name: [np.ravel(own).tolist() for own in zip(*(r[name] for r in rows), strict=True)] for name in rows[0]}
    return by_seed | {name: [bird[0] if bird else np.nan for bird in found] for name, found in birds.items()}


def _codes(batch: toy.Batch) -> np.ndarray:
    """Signs (networks, probes, units) of all hidden layers on a square grid; both layers have the same width."""
    axis = torch.linspace(*toy.WINDOW[0], SIDE)
    value, bits = torch.cartesian_prod(axis, axis).expand(len(batch[0][0]), -1, -1), []
    for weight, bias in batch[:-1]:
        value = torch.baddbmm(bias[:, None], value, weight.mT)
        bits.append((value > 0).numpy())
        value = value.relu()
    return np.concatenate(bits, 2)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Code distance of each network."""
    return np.count_nonzero(a != b, axis=(1, 2)) / a[0].size


def _note(birds: dict[str, list], recent: np.ndarray, codes: np.ndarray) -> None:
    """Keep the epoch and the code of each network at which a rule fires for the first time."""
    for name, rule in EARLY_BIRDS.items():
        for k, column in enumerate(recent.T):
            if birds[name][k] is None and measures.first_below(column, *rule) is not None:
                birds[name][k] = (len(recent), codes[k])


def _around(network: toy.Batch, points: Tensor, seed: int, radii: Sequence[float]) -> dict:
    """Densities of lines and nodes whose lines cross, around each kind of place, by radius; the number of regions."""
    found = partition.split(toy.module(network), toy.WINDOW)
    own = [line for layer in range(len(network) - 1) for line in found.lines(layer).values()]
    lines = np.concatenate([np.zeros((0, 2, 2)), *own])
    (low, high), units = toy.WINDOW[0], sum(len(bias[0]) for _, bias in network[:-1])
    spread = torch.rand(2 * CENTRES, 2, generator=generator(seed, "elsewhere")).double().numpy() * (high - low) + low
    everywhere, border = points.double().numpy(), partition.sampled(found.boundary, SPACING)[0]
    far = [partition.distance(spread, np.stack([ends, ends], 1)) > 2 * max(radii) for ends in (everywhere, border)]
    at, elsewhere = everywhere[:CENTRES], spread[far[0] & far[1]][:CENTRES]
    straight = random_lines(units, generator(seed, "lines"))
    row = {"regions": len(found), "density_random": line_density(straight, at, radii).mean(1).tolist()}
    for name, centres in {"points": at, "boundary": border, "elsewhere": elsewhere}.items():
        away = np.array([partition.distance(centres, line) for line in own]).reshape(len(own), len(centres))
        counts = [(away <= radius).sum(0) for radius in radii]
        for kind, values in (("density", line_density(lines, centres, radii)), ("crossing", counts)):
            row[f"{kind}_{name}"] = [float(one.mean()) if len(one) else np.nan for one in values]
    return row


def line_density(segments: np.ndarray, centres: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Length of segments (k, 2, 2) inside a disk around each centre (n, 2), over the disk's area: (radii, n).

    The values are exact, in 1 / length. Lines drawn evenly over the plane have the same density everywhere.
    """
    step = segments[:, 1] - segments[:, 0]
    size = np.linalg.norm(step, axis=1)
    unit, found = step / np.maximum(size, 1e-300)[:, None], np.zeros((len(radii), len(centres)))
    for part in np.array_split(np.arange(len(centres)), max(1, len(centres) * len(segments) // 2**18)):
        away = centres[part, None] - segments[:, 0]
        along = (away * unit).sum(2)
        square = (away**2).sum(2) - along**2
        for place, radius in enumerate(radii):
            half = np.sqrt(np.maximum(radius**2 - square, 0))
            inside = np.clip(along + half, 0, size) - np.clip(along - half, 0, size)
            found[place, part] = inside.sum(1) / (np.pi * radius**2)
    return found


def random_lines(count: int, stream: torch.Generator) -> np.ndarray:
    """Straight lines (count, 2, 2) through the disk around the window, of uniform direction and distance from 0."""
    reach = toy.WINDOW[0][1] * 2**0.5
    angle, offset = torch.rand(2, count, generator=stream, dtype=torch.float64).numpy()
    normal = np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], 1)
    along = np.stack([-normal[:, 1], normal[:, 0]], 1) * 2 * reach
    middle = normal * (offset * reach)[:, None]
    return np.stack([middle - along, middle + along], 1)
