"""The trial of paper 4 that keeps what its pictures of partitions show, panel by panel, so that they can be redrawn."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib.spline import measures, partition, selection, toy
from lib.spline.toy import Batch, trained, without
from lib.study import Study, generator

DIAGONALS = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])  # of the square max(|x|, |y|) = c


def pictures(folder: Path) -> Study:
    """The study of pictures; `folder` is `runs/<profile>`."""
    return Study("04_spline_early_bird.pictures", picture, version=1, folder=folder)


def picture(spec: dict, device: str, weights: Path) -> dict:
    """The trial of one picture.

    Args:
        spec: `kind`, and `seed`, `width`, `epochs` where a network is trained: "film" (the X network at the epochs
            `frames`), "pruned" (to `levels` nodes by `method`, before and after `tuning` epochs), "nodes" and "weights"
            (what each kind of pruning does to lines, on networks made for it), "deep" (three layers), "bundles"
            (redundant lines of a second layer).

    Returns: a list over panels: `title`, `half` (of the window), `lines` (x, y, x, y, layer, unit of each segment,
        flat), `boundary` (x, y, x, y, flat), `regions`; for "film" the `loss` by epoch, for "bundles" the `score` by
        unit and the units that are `kept`.
    """
    kinds = {"film": film, "pruned": pruned, "nodes": nodes, "weights": lone_weights, "deep": deep, "bundles": bundles}
    panels, extra = kinds[spec["kind"]](spec)
    return {name: [panel[name] for panel in panels] for name in panels[0]} | extra


def panel(title: str, network: nn.Module, half: float) -> dict:
    """The lines of every layer and the boundary of a network on the square of this half-side."""
    found = partition.split(network, ((-half, half), (-half, half)))
    lines = [
        np.concatenate([ends.reshape(-1, 4), np.full((len(ends), 2), [layer, unit])], 1)
        for layer in range(len(found.layers))
        for unit, ends in found.lines(layer).items()
    ]
    flat = np.concatenate([np.zeros((0, 6)), *lines]).round(4).ravel().tolist()
    boundary = found.boundary.round(4).ravel().tolist()
    return {"title": title, "half": half, "lines": flat, "boundary": boundary, "regions": len(found)}


def film(spec: dict) -> tuple[list[dict], dict]:
    points, labels, *_ = toy.draw(spec["seed"])
    batch = toy.initial([2, spec["width"], 2], 1, generator(spec["seed"], "initialisation"))
    stream, losses, panels = generator(spec["seed"], "order"), [], []
    for frame in spec["frames"]:
        losses += toy.fit(batch, points, labels, frame - len(losses), stream)
        panels.append(panel(f"epoch {frame}", toy.module(batch), 5.0))
    return panels, {"loss": losses}


def pruned(spec: dict) -> tuple[list[dict], dict]:
    points, labels, *test = toy.draw(spec["seed"])
    _, dense, _ = trained(spec, [2, spec["width"], 2])
    panels = [_scored("dense", dense, test)]
    small = [without(dense, level, spec["method"], spec["seed"], points) for level in spec["levels"]]
    panels += [_scored(f"K = {level}", batch, test) for level, batch in zip(spec["levels"], small, strict=True)]
    together = toy.stacked(small)
    toy.fit(together, points, labels, spec["tuning"], generator(spec["seed"], "tuning"))
    tuned = [toy.one(together, place) for place in range(len(small))]
    panels += [_scored(f"K = {level}, tuned", batch, test) for level, batch in zip(spec["levels"], tuned, strict=True)]
    return panels, {}


def _scored(title: str, batch: Batch, test: list) -> dict:
    return panel(f"{title}: {100 * toy.accuracy(batch, *test)[0]:.0f} %", toy.module(batch), 5.0)


def _single(weight: torch.Tensor, bias: torch.Tensor, outgoing: torch.Tensor, offset: float) -> nn.Sequential:
    """One hidden layer; the boundary is where the weighted sum of its nodes equals `offset`."""
    last = torch.stack([outgoing, torch.zeros_like(outgoing)])[None]
    return toy.module([(weight[None], bias[None]), (last, torch.tensor([[-offset, 0.0]]))])


def nodes(spec: dict) -> tuple[list[dict], dict]:
    """Lines through one point; dropping nodes turns a rounded boundary into the exact square of half-side 1."""
    angles = torch.tensor([0.15, 0.85, 1.2, 1.95, 2.35, 2.8, 3.6, 5.1]) - 0.2
    weight = torch.cat([DIAGONALS, torch.stack([angles.cos(), angles.sin()], 1)])
    outgoing, panels = torch.tensor([0.5] * 4 + [0.3] * 8), []
    for kept in (12, 8, 6, 4):
        scale = outgoing[:kept].sum() / 2
        network = _single(weight[:kept], torch.zeros(kept), outgoing[:kept], float(scale))
        panels.append(panel(f"{kept} nodes", network, 2.0))
    return panels, {}


def lone_weights(spec: dict) -> tuple[list[dict], dict]:
    """Four lines with offsets; zeroing their small weights turns each of them parallel to an axis and deletes none."""
    weight = torch.tensor([[1.0, 0.35], [-1.0, 0.25], [0.3, 1.0], [-0.2, -1.0]])
    bias, panels = torch.tensor([-0.8, -0.8, -0.8, -0.8]), []
    order = weight.abs().flatten().argsort()
    for removed in (0, 1, 2, 4):
        left = weight.flatten().index_fill(0, order[:removed], 0).view_as(weight)
        panels.append(panel(f"{8 - removed} weights", _single(left, bias, torch.ones(4), 0.4), 2.0))
    return panels, {}


def deep(spec: dict) -> tuple[list[dict], dict]:
    stream = generator(spec["seed"], "deep")
    widths = [2, 6, 6, 6, 2]
    batch = [
        (torch.randn(1, o, i, generator=stream), torch.randn(1, o, generator=stream))
        for i, o in zip(widths[:-1], widths[1:], strict=True)
    ]
    return [panel("three hidden layers", toy.module(batch), 2.0)], {}


def bundles(spec: dict) -> tuple[list[dict], dict]:
    """Five lines of a first layer; eight splines of a second in two bundles; greedy removal leaves one of each."""
    stream = generator(spec["seed"], "bundles")
    first = torch.randn(1, 5, 2, generator=stream), torch.randn(1, 5, generator=stream)
    centres, offsets = torch.randn(2, 5, generator=stream), torch.tensor([0.4, -0.5])
    member = torch.arange(8) % 2
    weight = centres[member] + 0.08 * torch.randn(8, 5, generator=stream)
    bias = offsets[member] + 0.03 * torch.randn(8, generator=stream)
    last = torch.zeros(1, 2, 8)
    last[0, 0] = 1.0 + 0.2 * torch.rand(8, generator=stream)
    batch = [first, (weight[None], bias[None]), (last, torch.tensor([[-1.0, 0.0]]))]
    network = toy.module(batch)
    own = selection.layers(network)[1]
    score = measures.redundancy(own.weights, own.biases, "signed")
    gone = [node for _, node, _ in selection.twins([own], [score], [6])]
    panels = [
        panel("all splines", network, 3.0),
        panel("two of eight left", toy.module(toy.without_nodes(batch, gone, 1)), 3.0),
    ]
    return panels, {"score": score[0].tolist(), "kept": sorted(set(range(8)) - set(gone))}
