"""Which nodes a trained network can do without: nodes that are idle for an input, and twins in fewer directions.

*Idle nodes.* A zero output of a ReLU is a zero input of the layer that reads it, so its products can be left out and
nothing changes. Operations are multiply-accumulates of convolutions and linear layers; products with padding are
counted nowhere. *Twins.* Their redundancy can be judged in fewer directions, and which layers hold them can be asked
of filters of any shape.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from math import ceil, log, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import models, stats
from lib.data import Data
from lib.spline import measures, toy, trials
from lib.study import Study, generator

LAYERS = (nn.Conv2d, nn.Linear)
WAYS = ("dense", "position", "whole", "shuffled", "static", "known")
TOY_POINTS = 200  # test points of the toy on which operations are counted
DIMS = (2, 4, 8)  # directions, at most as many as classes
CHECKED = 8  # inputs on which outputs are compared


def _blocks(stages: Sequence[int], blocks: Sequence[int], inputs: int) -> list[tuple[int, int]]:
    """Width and fan-in of the first convolution of each basic block of a ResNet."""
    widths = [width for width, n in zip(stages, blocks, strict=True) for _ in range(n)]
    return [(width, 9 * before) for before, width in pairwise((inputs, *widths))]


def _bottlenecks(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Likewise of the first two convolutions of each bottleneck, which widens its inner width by 4."""
    widths = [width for width, n in zip((64, 128, 256, 512), blocks, strict=True) for _ in range(n)]
    inputs = [64, *(4 * width for width in widths[:-1])]
    return [shape for w, i in zip(widths, inputs, strict=True) for shape in ((w, i), (w, 9 * w))]


def _plain(*widths: int) -> list[tuple[int, int]]:
    """Likewise of 3 x 3 convolutions one after another, on three channels."""
    return [(width, 9 * before) for before, width in pairwise((3, *widths))]


SHAPES = {  # width and fan-in of the layers whose filters can go one by one, of networks at full width
    "vgg11": _plain(64, 128, 256, 256, *(512,) * 4),
    "vgg13": _plain(64, 64, 128, 128, 256, 256, *(512,) * 4),
    "vgg16": _plain(64, 64, 128, 128, *(256,) * 3, *(512,) * 6),
    "vgg19": _plain(64, 64, 128, 128, *(256,) * 4, *(512,) * 8),
    **{f"resnet{6 * n + 2}": _blocks((16, 32, 64), (n,) * 3, 16) for n in (3, 5, 7, 9)},
    "resnet18": _blocks((64, 128, 256, 512), (2, 2, 2, 2), 64),
    "resnet34": _blocks((64, 128, 256, 512), (3, 4, 6, 3), 64),
    "resnet50": _bottlenecks((3, 4, 6, 3)),
    "resnet101": _bottlenecks((3, 4, 23, 3)),
    "mobilenet": [(w, i) for i, w in pairwise((32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024))],
    "mobilenet_v2": [(6 * i, i) for i in (16, *(24,) * 2, *(32,) * 3, *(64,) * 4, *(96,) * 3, *(160,) * 3)],
}


def study(name: str, folder: Path) -> Study:
    """The study "skipped", "toy_skipped", "reductions" or "filters"; see their trials."""
    resting = {"skipped": skipped, "reductions": reduction}
    own = (
        partial(resting[name], folder=folder)
        if name in resting
        else {"toy_skipped": toy_skipped, "filters": filters}[name]
    )
    return Study(f"04_spline_early_bird.{name}", own, version=1, folder=folder)


def products(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Multiply-accumulates of a layer (n,) with those inputs (n, channels, ...) that are not zero."""
    alive = (inputs != 0).float()
    if isinstance(layer, nn.Linear):
        return alive.flatten(1).sum(1).double() * layer.out_features
    ones = torch.ones(1, 1, *layer.kernel_size, device=inputs.device)
    place = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    reads = F.conv2d(alive.sum(1, keepdim=True), ones, **place)
    return reads.flatten(1).double().sum(1) * (layer.out_channels // layer.groups)


def whole(alive: Tensor) -> Tensor:
    """Whether any entry of a channel is alive, repeated at all positions; alive is (n, channels, ...)."""
    channels = alive.reshape(*alive.shape[:2], -1).any(2)
    return channels.view(*alive.shape[:2], *[1] * (alive.dim() - 2)).expand_as(alive)


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The input of every convolution and linear layer in the last forward pass, by name, while the context is open."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0]

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def operations(model: nn.Module, images: Tensor, stream: torch.Generator, batch_size: int = 50) -> dict[str, list]:
    """Multiply-accumulates of each layer for an image, on average over normalised images (n, channels, size, size).

    Returns:
        `layer` names, and for each:
        `dense`: all products;
        `position`: without those of zero entries;
        `whole`: without those of channels that are zero at all positions of the image;
        `shuffled`: the same after the entries of each image change places, the null of idle channels;
        `static`: without channels that are zero for all images, which need no run time;
        `known`: as `whole`, and rows that compute idle channels are skipped, as if the code were known beforehand.

    The products with the image itself are all counted.
    """
    model = model.eval()
    readers = {layer.name: layer.reader for layer in measures.layers(model, images.shape[-1])}
    modules, sums, ever, parts = dict(model.named_modules()), {}, {}, []
    for part in images.split(batch_size):
        with watched(model) as seen:
            model(part)
        if not parts:
            first = next(iter(seen))
        alive = {name: torch.ones_like(x) if name == first else (x != 0).float() for name, x in seen.items()}
        used = {name: whole(x.bool()).float() for name, x in alive.items()}
        parts.append(len(part))
        for name, x in alive.items():
            order = torch.randperm(prod(x.shape[1:]), generator=stream).to(x.device)
            mixed = x if name == first else x.flatten(1)[:, order].view_as(x)
            count = partial(products, modules[name])
            kept = {"dense": torch.ones_like(x), "position": x, "whole": used[name], "shuffled": whole(mixed.bool())}
            found = {way: count(entries) for way, entries in kept.items()}
            share = used[readers[name]].double().flatten(1).mean(1) if name in readers else 1.0
            found["known"] = found["whole"] * share
            for way, each in found.items():
                sums[name, way] = sums.get((name, way), 0.0) + float(each.sum())
            ever[name] = ever.get(name, False) | used[name].bool().any(0)
    names = list(ever)
    for name in names:
        sums[name, "static"] = float(products(modules[name], ever[name][None].float())) * len(images)
    return {"layer": names} | {way: [sums[name, way] / len(images) for name in names] for way in WAYS}


@torch.inference_mode()
def skipping_error(model: nn.Module, images: Tensor) -> float:
    """The largest relative difference of outputs (float64) if each layer multiplies its non-zero channels alone.

    Each image is computed by itself, every convolution and linear layer with the columns of its non-zero input
    channels only.
    """

    def skip(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = (inputs[0][0] != 0).flatten(1).any(1) if inputs[0].dim() > 2 else inputs[0][0] != 0
        kept[0] |= not kept.any()
        x, weight = inputs[0][:, kept], layer.weight[:, kept]
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)

    model, images = model.double().eval(), images.double()
    expected = torch.cat([model(image) for image in images.split(1)])
    plain = [m for m in model.modules() if isinstance(m, LAYERS) and getattr(m, "groups", 1) == 1]
    hooks = [module.register_forward_hook(skip) for module in plain]
    try:
        found = torch.cat([model(image) for image in images.split(1)])
    finally:
        for hook in hooks:
            hook.remove()
    return float((found - expected).norm(dim=1).div(expected.norm(dim=1)).max())


def skipped(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of a search's network that skips idle nodes; the spec holds the search, `epoch` and `images`, a number.

    Returns:
        Multiply-accumulates of an image by layer, as `operations` counts them, on test images; `error` of the outputs;
        the test accuracy (%).
    """
    dataset = trials.loaded(spec, device)
    model = trials.snapshot(spec, spec["epoch"], dataset, folder, device)
    images = trials.normalised(dataset, slice(spec["images"]))
    row = operations(model, images, generator(spec["seed"], "shuffled entries"))
    return row | {"accuracy": trials.accuracy(model, dataset), "error": skipping_error(model, images[:CHECKED])}


def toy_skipped(spec: dict, device: str, weights: Path) -> dict:
    """The trial of toy networks that skip idle nodes; the spec holds `seed`, `width` and `epochs` of the training.

    Returns:
        As `skipped`, for test points; the network is trained as those of the toy's other trials.
    """
    points, labels, test, test_labels = toy.draw(spec["seed"])
    batch = toy.initial([2, spec["width"], 2], 1, generator(spec["seed"], "initialisation"))
    toy.fit(batch, points, labels, spec["epochs"], generator(spec["seed"], "order"))
    model = toy.module(batch).float()
    row = operations(model, test[:TOY_POINTS], generator(spec["seed"], "shuffled entries"))
    accuracy = 100 * float(np.mean(toy.accuracy(batch, test, test_labels)))
    return row | {"accuracy": accuracy, "error": skipping_error(model, test[:CHECKED])}


def directions_needed(rows: int, error: float, failure: float = 0.05) -> int:
    """Gaussian directions in which no inner product of unit rows is wrong by more than an error in (0, 1).

    It holds but for a probability `failure`, for any rows.

    Source: Johnson and Lindenstrauss. With u, v of length 1, 4 u·v = |u + v|² - |u - v|². The squared length of each of
    the rows (rows - 1) sums and differences is wrong by a share `error` with probability at most
    2 exp(-d (error² / 4 - error³ / 6)) in d directions.
    """
    return ceil(log(2 * rows * (rows - 1) / failure) / (error**2 / 4 - error**3 / 6))


@torch.inference_mode()
def class_means(model: nn.Module, layer: str, dataset: Data, images: int) -> Tensor:
    """Mean patch (classes, inputs) that a layer reads on the first test images of each class that they have."""
    inputs, module = trials.normalised(dataset, slice(images)), model.get_submodule(layer)
    with models.inputs_of(module) as seen:
        model(inputs)
    x = seen[0]
    if isinstance(module, nn.Conv2d):
        options = {"padding": module.padding, "stride": module.stride, "dilation": module.dilation}
        x = torch.cat([F.unfold(part, module.kernel_size, **options).mean(2) for part in x.split(50)])
    labels = dataset.test.labels[:images]
    return torch.stack([x[labels == label].mean(0) for label in labels.unique()]).double().cpu()


@torch.inference_mode()
def disagreement(model: nn.Module, own: measures.Layer, dataset: Data, images: int) -> Tensor:
    """Share (K, K) of test images and positions on which one of two nodes is active and the other is not."""
    bits: list[Tensor] = []
    layer = model.get_submodule(own.norm or own.name)
    hook = layer.register_forward_hook(lambda _, __, output: bits.append(output > 0))
    try:
        model(trials.normalised(dataset, slice(images)))
    finally:
        hook.remove()
    active = bits[0].flatten(2) if bits[0].dim() > 2 else bits[0][:, :, None]
    active = active.transpose(0, 1).flatten(1).float()
    apart = active @ (1 - active).T
    return ((apart + apart.T) / active.shape[1]).double().cpu()


def reduction(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of what fewer directions keep of the redundancy of a search's filters.

    The spec holds a search, `epoch`, `dims`, `ratio` of the filters chosen in each layer, and `images`, a number.
    The signed scores of rows as they are give the ranking that is to survive.

    Returns:
        By `layer`, `filters` ("trained" or "random" ones of the same shapes), `kind` ("none" or a reduction) and `dim`,
        where the layer has so many directions: `rank`, the rank correlation of the scores of all pairs with those of
        full rows; `data`, that with the `disagreement` of the network's nodes; `overlap` of the filters that
        `measures.twins` chooses, 0 at chance and 1 if they are the same; the largest `error` of an inner product of
        unit rows; and `excess`, for "pca" the largest difference of an error and its bound, the product of the lengths
        of the two rows' parts outside the directions (Cauchy and Schwarz), else 0.
    """
    dataset = trials.loaded(spec, device)
    model, rows = trials.snapshot(spec, spec["epoch"], dataset, folder, device), []
    for own in measures.layers(model, dataset.size):
        means = class_means(model, own.name, dataset, spec["images"])
        apart = disagreement(model, own, dataset, spec["images"])
        like = trials.random_like(own, generator(spec["seed"], "filters", own.name))
        for label, layer in (("trained", own), ("random", like)):
            full = measures.redundancy(layer.weights, layer.biases)
            for kind, dim in [("none", 0), *((kind, dim) for kind in measures.REDUCTIONS for dim in spec["dims"])]:
                if dim <= min(*layer.weights.shape, *(means.shape if kind == "means" else ())):
                    stream = generator(spec["seed"], "directions", own.name, label, dim)
                    kept = _kept(layer, full, apart, kind, dim, spec["ratio"], means=means, generator=stream)
                    rows.append({"layer": own.name, "filters": label, "kind": kind, "dim": dim} | kept)
    return {name: [row[name] for row in rows] for name in rows[0]}


def _kept(
    layer: measures.Layer, full: Tensor, apart: Tensor, kind: str, dim: int, ratio: float, **options: object
) -> dict[str, float]:
    """One entry of `reduction`."""
    unit, pairs = F.normalize(layer.weights, dim=1), torch.triu_indices(len(layer), len(layer), 1)
    small, score = unit, full
    if kind != "none":
        rows = measures.coordinates(layer.weights, dim, kind, **options)
        score = measures.redundancy(measures.lengthened(rows, layer.weights), layer.biases)
        small = rows / layer.weights.norm(dim=1, keepdim=True)
    error, quota = (small @ small.T - unit @ unit.T).abs(), int(ratio * len(layer))
    tails = (1 - small.square().sum(1)).clamp_min(0).sqrt()
    excess = error - tails[:, None] * tails if kind == "pca" else torch.zeros_like(error)
    chosen = [{node for _, node, _ in measures.twins([layer], [one], [quota], quota)} for one in (full, score)]
    chance = quota / len(layer)
    return {
        "rank": stats.rank_correlation(score[*pairs], full[*pairs]),
        "data": stats.rank_correlation(score[*pairs], apart[*pairs]),
        "overlap": (len(chosen[0] & chosen[1]) / quota - chance) / (1 - chance),
        "error": float(error[*pairs].max()),
        "excess": float(excess[*pairs].max()),
    }


def filters(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the share of each layer that global pruning removes, of public networks and of random filters.

    The spec holds `network`, `seed`, `share_ratio`, and `dataset` for a public network; without it the network is one
    of SHAPES, and its own filters are random, too.

    Returns:
        As `trials.shares`; `fan_in` and `width_of` each layer.
    """
    if "dataset" in spec:
        found = measures.layers(models.public(spec["network"], spec["dataset"])[0])
    else:
        stream = generator(spec["seed"], "own filters", spec["network"])
        found = [_drawn(place, *shape, stream) for place, shape in enumerate(SHAPES[spec["network"]])]
    row = {"fan_in": [own.weights.shape[1] for own in found], "width_of": [len(own) for own in found]}
    return row | trials.shares(found, spec["share_ratio"], spec["seed"])


def _drawn(place: int, width: int, fan_in: int, stream: torch.Generator) -> measures.Layer:
    """Gaussian rows without offsets; all outgoing weights are alike. The place names the layer's random streams."""
    rows = torch.randn(width, fan_in, generator=stream, dtype=torch.float64)
    offsets, outgoing = torch.zeros(width, dtype=torch.float64), torch.ones(width, 1, dtype=torch.float64)
    return measures.Layer(f"layer {place}", "", "", rows, offsets, outgoing, rows.norm(dim=1))
