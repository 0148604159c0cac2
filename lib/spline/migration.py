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
CENTRES = 200  # places of each kind around which lines are measured


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
        `density_data`, the mean density of lines in squares around training points (see `partition.local_complexity`),
        `density_elsewhere`, anywhere in the window, `density_boundary`, around points of the decision boundary, and
        `density_random`, of as many straight lines drawn at random, around the same; `regions_...`, the mean
        number of regions in these squares; `regions`, in the window; `accuracy` (%); `from_start`, the distance of the
        code from the untrained one, `from_relative` and `from_released`, from the code at the early bird of each rule;
        `relative` and `released`, the trained epochs at these. NaN stands for never, and for a boundary that is not
        there.

    Source: Humayun et al. 2024 (arXiv 2402.15555) for the question; units are counted around inputs there.
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
            old = np.stack([bird[1] if bird else now[k] for k, bird in enumerate(found)])
            row[f"from_{name}"] = np.where([bird is None for bird in found], np.nan, _apart(now, old))
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


def _around(batch: toy.Batch, points: Tensor, seed: int, radii: Sequence[float]) -> dict:
    """Density of lines and number of regions around each kind of place, by radius; the number of regions in all."""
    network = toy.module(batch)
    centres = partition.three_kinds(network, points, toy.WINDOW, CENTRES, generator(seed, "places"))
    row = {"regions": len(partition.split(network, toy.WINDOW))}
    measured = [(name, network, own) for name, own in centres.items()]
    units = sum(len(bias[0]) for _, bias in batch[:-1])
    measured.append(("random", random_lines(units, generator(seed, "lines")), centres["boundary"]))
    for name, drawn, own in measured:
        nowhere = {kind: np.full(1, np.nan) for kind in ("density", "regions")}
        found = [partition.local_complexity(drawn, own, radius) if len(own) else nowhere for radius in radii]
        for kind in nowhere:
            row[f"{kind}_{name}"] = [float(one[kind].mean()) for one in found]
    return row


def random_lines(count: int, stream: torch.Generator) -> torch.nn.Sequential:
    """A network that draws straight lines of uniform direction and distance through the disk around the window.

    Such lines are as dense everywhere in the disk on average.
    """
    reach = toy.WINDOW[0][1] * 2**0.5
    angle, offset = torch.rand(2, count, generator=stream)
    normal = torch.stack([angle.mul(2 * torch.pi).cos(), angle.mul(2 * torch.pi).sin()], 1)
    return toy.module([(normal[None], -reach * offset[None]), (torch.ones(1, 2, count), torch.zeros(1, 2))])
