"""Pruning at run time: for each input, nodes that are inactive in its region are skipped.

A zero output of a ReLU is a zero input of the layer that reads it, so its products can be left out and nothing changes.
Operations are multiply-accumulates of convolutions and linear layers. Products with padding are counted nowhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.spline import measures, toy, trials
from lib.study import Study, generator

LAYERS = (nn.Conv2d, nn.Linear)
WAYS = ("dense", "position", "whole", "shuffled", "static", "known")
TOY_POINTS = 200  # test points of the toy on which operations are counted
CHECKED = 8  # inputs on which outputs are compared


def study(name: str, folder: Path) -> Study:
    """The study "skipped", of image networks, or "toy_skipped"; see `trial` and `toy_trial`."""
    own = toy_trial if name == "toy_skipped" else partial(trial, folder=folder)
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
            share = used[readers[name]].flatten(1).mean(1).double() if name in readers else 1.0
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


def trial(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
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


def toy_trial(spec: dict, device: str, weights: Path) -> dict:
    """The trial of toy networks that skip idle nodes; the spec holds `seed`, `width` and `epochs` of the training.

    Returns:
        As `trial`, for test points; the network is trained as those of the toy's other trials.
    """
    points, labels, test, test_labels = toy.draw(spec["seed"])
    batch = toy.initial([2, spec["width"], 2], 1, generator(spec["seed"], "initialisation"))
    toy.fit(batch, points, labels, spec["epochs"], generator(spec["seed"], "order"))
    model = toy.module(batch).float()
    row = operations(model, test[:TOY_POINTS], generator(spec["seed"], "shuffled entries"))
    accuracy = 100 * float(np.mean(toy.accuracy(batch, test, test_labels)))
    return row | {"accuracy": accuracy, "error": skipping_error(model, test[:CHECKED])}
