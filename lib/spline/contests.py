"""Paper 4 in two dimensions: how accurate a small network can be, by the route to it, and by the choice of its nodes.

Routes are compared at equal operations of training, counted in multiply-accumulates of one forward pass an epoch.
"""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.spline import toy
from lib.study import Study, generator

SWEEP = (1, 2, 3, 4, 6, 8, 12, 20, 40)  # hidden nodes of networks that are trained from scratch
METHODS = ("magnitude", "merged", "random")  # of choosing the nodes of a larger network
LARGE = 0.5  # share of the operations that the larger network trains for, before it is pruned
PRETRAINING = 0.25  # share that layerwise pretraining spends on the first layer


def study(name: str, folder: Path) -> Study:
    """The study "routes" or "optima"; see their trials."""
    return Study(f"04_spline_early_bird.toy_{name}", {"routes": routes, "optima": optimum}[name], 1, folder)


def macs(widths: list[int]) -> int:
    """Multiply-accumulates of a forward pass of one point."""
    return sum(a * b for a, b in pairwise(widths))


def through_data(batch: toy.Batch, points: Tensor, stream: torch.Generator) -> toy.Batch:
    """One network of these weights whose every line goes through a training point of its own, drawn at random."""
    value, moved = points, []
    for weight, bias in batch[:-1]:
        chosen = value[torch.randint(len(value), (weight.shape[1],), generator=stream)]
        bias = -(weight[0] * chosen).sum(1)[None]
        moved.append((weight, bias))
        value = (value @ weight[0].T + bias).relu()
    return [*moved, batch[-1]]


def routes(spec: dict, device: str, weights: Path) -> dict:
    """The trial of routes to networks of one width with equal operations of training, for several seeds side by side.

    The spec holds `seeds`, `depth` (hidden layers), `width` (of each), `epochs` (that the small network could train
    for), `factors` (widths of the larger networks, over `width`). Routes are "scratch"; "data", the same with lines
    through training points at first; with two layers "layerwise": a quarter of the operations for the first one and a
    head of its own; and "pruned": half of the operations for a larger network, half for the small one after pruning.

    Returns:
        Lists over routes: `route`, `factor` (1 if none), `method` (of pruning, or ""), and `accuracy` (%), over seeds.
    """
    seeds, width, epochs = spec["seeds"], spec["width"], spec["epochs"]
    points, labels, *test = (torch.stack(part) for part in zip(*map(toy.draw, seeds), strict=True))
    small = _widths(spec["depth"], width)
    rows = []

    def enter(batch: toy.Batch, share: float, method: str = "", **route) -> None:
        """Train the networks, as many for each seed as there are methods, for a share of the operations and measure."""
        copies = len(batch[0][0]) // len(seeds)
        sets = [part.repeat(copies, *[1] * (part.dim() - 1)) for part in (points, labels, *test)]
        toy.fit(batch, *sets[:2], round(share * epochs), generator(seeds[0], "order", *map(str, route.values())))
        for name, found in zip(method.split(), np.reshape(toy.accuracy(batch, *sets[2:]), (copies, -1)), strict=True):
            rows.append(route | {"method": name.strip("-"), "accuracy": (100 * found).tolist()})

    def fresh(widths: list[int], name: str) -> list[toy.Batch]:
        return [toy.initial(widths, 1, generator(seed, name)) for seed in seeds]

    enter(toy.stacked(fresh(small, "small")), 1, "-", route="scratch", factor=1)
    streams = [generator(seed, "through data") for seed in seeds]
    moved = [through_data(*one) for one in zip(fresh(small, "small"), points, streams, strict=True)]
    enter(toy.stacked(moved), 1, "-", route="data", factor=1)
    if spec["depth"] > 1:
        first = toy.stacked(fresh([2, width, 2], "small"))
        share = PRETRAINING * macs(small) / macs([2, width, 2])
        toy.fit(first, points, labels, round(share * epochs), generator(seeds[0], "first layer"))
        grown = [first[0], *toy.stacked(fresh(small, "grown"))[1:]]
        enter(grown, 1 - PRETRAINING, "-", route="layerwise", factor=1)
    for factor in spec["factors"]:
        large = _widths(spec["depth"], round(factor * width))
        batch = toy.stacked(fresh(large, f"large {factor}"))
        trained = max(1, round(LARGE * epochs * macs(small) / macs(large)))
        toy.fit(batch, points, labels, trained, generator(seeds[0], "large", str(factor)))
        pruned = [
            toy.compact(toy.without(toy.one(batch, k), width, method, seed, points[k]))
            for method in METHODS
            for k, seed in enumerate(seeds)
        ]
        enter(toy.stacked(pruned), 1 - LARGE, " ".join(METHODS), route="pruned", factor=factor)
    return {name: [row[name] for row in rows] for name in rows[0]}


def _widths(depth: int, width: int) -> list[int]:
    return [2, *[width] * depth, 2]


def optimum(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the best of all subsets of a trained network's nodes, against the subsets that methods choose.

    The spec holds `seed`, `width`, `epochs`, `kept` (nodes), `tuning` (epochs). The best subset is the one of the
    highest accuracy on the training points, by exhaustive search.

    Returns:
        `subsets`, their number; by `method` and for the best and the mean subset the accuracies (%) on training points
        (`chosen`, `best`, `mean`), those of the same subsets on test points (`..._test`), and on training points after
        fine-tuning, where the best subset is searched anew (`..._tuned`).
    """
    points, labels, *test = toy.draw(spec["seed"])
    _, dense = toy.trained(spec, [2, spec["width"], 2])
    subsets = list(combinations(range(spec["width"]), spec["kept"]))
    index = torch.tensor(subsets)
    (weight, bias), (reader, last) = dense
    count = len(subsets), -1
    everything = [(weight[0][index], bias[0][index]), (reader[0][:, index].transpose(0, 1), last.expand(*count))]
    methods = [method for method in toy.METHODS]
    own = [toy.compact(toy.without(dense, spec["kept"], method, spec["seed"], points)) for method in methods]
    batch = toy.stacked([[(W.clone(), b.clone()) for W, b in everything], *own])
    row = {"subsets": len(subsets), "method": methods}

    def enter(suffix: str, *data: Tensor, best: int | None = None) -> int:
        found = 100 * np.array(toy.accuracy(batch, *data))
        all_of_them = found[: len(subsets)]
        best = int(all_of_them.argmax()) if best is None else best
        row[f"chosen{suffix}"] = found[len(subsets) :].tolist()
        row[f"best{suffix}"], row[f"mean{suffix}"] = float(all_of_them[best]), float(all_of_them.mean())
        return best

    enter("_test", *test, best=enter("", points, labels))
    toy.fit(batch, points, labels, spec["tuning"], generator(spec["seed"], "tuning"))
    enter("_tuned", points, labels)
    return row
