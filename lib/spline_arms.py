"""The trial of paper 4 that trains pruned networks: early-bird tickets and their rivals, each with its price."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import data
from lib import spline_selection as selection
from lib.data import Data
from lib.provenance import CompanionError, unknown
from lib.seeds import generator
from lib.spline_flops import forward_flops, training_flops
from lib.spline_trials import accuracy, loaded, snapshot, train
from lib.study import Study

ARMS = ("ticket", "late", "reinit", "end", "rewound", "scratch", "layerwise", "short", "snip")
SNIP_IMAGES = 128  # of the one batch on which SNIP measures saliencies
PRETRAINING = 0.25  # share of the operations that layerwise pretraining may use


def tickets(folder: Path) -> Study:
    """The study of pruned networks that are trained; `folder` is `runs/<profile>`."""
    return Study(
        "04_spline_early_bird.tickets", partial(ticket, folder=folder), version=1, folder=folder
    )


def ticket(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of one way to a small network.

    Args:
        spec: a search, `ratio`, `method`, `draw` (trained epochs when the ticket is drawn), and `arm`:
            "ticket": prune at `draw`, train on to the end;
            "late": the same, but its nodes are chosen by the network of the last epoch;
            "reinit": as "ticket", with weights drawn anew;
            "end": prune at the end, then all epochs again;
            "rewound": nodes chosen at the end, weights of epoch 0, all epochs (one-shot lottery ticket);
            "scratch": the same widths from the start, for the operations that the ticket costs in all;
            "layerwise": the same, a quarter of the operations layer by layer; for networks without shortcuts;
            "short": the dense network for these operations;
            "snip": single weights of the untrained network, by their saliency (Lee et al. 2019), all epochs.

    Returns: test accuracy (%), parameters (without removed weights), operations of the whole training with those of the
        detector, and of a ticket's; `trained_epochs` of the last phase.
    """
    if spec["arm"] not in ARMS:
        raise unknown("arm", spec["arm"], ARMS)
    dataset = loaded(spec, device)
    arm, epochs, draw, images = spec["arm"], spec["epochs"], spec["draw"], len(dataset.train)
    at = partial(snapshot, spec, dataset=dataset, folder=folder, device=device)
    seen = at(epochs if arm in ("late", "end", "rewound") else draw)
    small = _pruned(seen, {"late": at(draw), "rewound": at(0)}.get(arm, seen), spec, dataset)
    dense, price = (training_flops(_forward(model, dataset), images, 1) for model in (seen, small))
    detector = draw * spec["side"] ** 2 * _forward(seen, dataset)
    budget = draw * dense + (epochs - draw) * price + detector
    start, stop, spent = 0, epochs, 0.0
    if arm in ("ticket", "reinit"):
        start, spent = draw, draw * dense + detector
    elif arm in ("late", "end", "rewound"):
        start, spent = draw if arm == "late" else 0, epochs * dense
    elif arm in ("short", "snip"):
        small, price = at(0), dense
    if arm in ("reinit", "scratch", "layerwise"):
        scale = next(m.weight[0].item() for m in at(0).modules() if isinstance(m, nn.BatchNorm2d))
        _initialise(small, generator(spec["seed"], "small", arm), scale)
    if arm == "snip":
        snip(small, spec["ratio"], dataset, spec["seed"])
    if arm == "layerwise":
        spent = pretrain(small, dataset, spec, PRETRAINING * budget)
    if arm in ("scratch", "layerwise", "short"):
        stop = max(1, round((budget - spent) / price))
    train(small, dataset, spec, start, stop, stop, arm)
    left = sum(int(parameter.count_nonzero()) for parameter in small.parameters())
    row = {"accuracy": accuracy(small, dataset), "parameters": left, "trained_epochs": stop - start}
    return row | {"flops": spent + (stop - start) * price, "ticket_flops": budget, "dense_flops": epochs * dense}


def _pruned(chooser: nn.Module, source: nn.Module, spec: dict, dataset: Data) -> nn.Module:
    """What is left of `source` without the nodes that go according to `chooser`."""
    stream = generator(spec["seed"], "nodes", spec["method"])
    dropped = selection.choose(selection.layers(chooser, dataset.size), spec["ratio"], spec["method"], generator=stream)
    found = selection.layers(source, dataset.size)
    return selection.without(source, found, dropped, merging=spec["method"] == "merged", size=dataset.size)


def _forward(model: nn.Module, dataset: Data) -> int:
    return forward_flops(model, tuple(dataset.train.images.shape[1:]))


def _initialise(model: nn.Module, stream: torch.Generator, scale: float = 1.0) -> None:
    """He's initialisation of convolutions, PyTorch's of linear layers, and this scale in every BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            module.weight.data = _normal(module.weight, stream) * (2 / fan_out) ** 0.5
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in module.parameters():
                parameter.data = (2 * torch.rand(parameter.shape, generator=stream) - 1).to(parameter.device) * bound
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.weight.data.fill_(scale)


def _normal(like: Tensor, stream: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=stream).to(like.device)


def snip(model: nn.Module, ratio: float, dataset: Data, seed: int) -> None:
    """Set the share `ratio` of the weights to 0, those of least |gradient x weight|, and keep them there."""
    order = torch.randperm(len(dataset.train), generator=generator(seed, "snip"))[:SNIP_IMAGES]
    order = order.to(dataset.train.labels.device)
    model.train()
    inputs = data.normalise(dataset.train.images[order], dataset.mean, dataset.std)
    layers = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), dataset.train.labels[order]), layers)
    saliency = torch.cat([(g * w).abs().flatten() for g, w in zip(gradients, layers, strict=True)])
    threshold = saliency.sort().values[int(ratio * len(saliency))]
    for gradient, weight in zip(gradients, layers, strict=True):
        mask = ((gradient * weight).abs() >= threshold).float()
        weight.data *= mask
        weight.register_hook(lambda g, mask=mask: g * mask)


def pretrain(model: nn.Module, dataset: Data, spec: dict, budget: float) -> float:
    """Train the layers of a network without shortcuts one after another, each under a classifier of its own.

    Earlier layers stay as they are, so a step costs one forward pass of the prefix and twice that of its last layer.

    Returns: the operations used, at most about `budget`; every layer gets equally many epochs, at least one.
    """
    if not hasattr(model, "features"):
        raise CompanionError("Layerwise pretraining needs a network without shortcuts: choose digits_cnn or vgg16.")
    ends = [place for place, layer in enumerate(model.features) if isinstance(layer, nn.ReLU)]
    starts = [0, *(end + 1 for end in ends)]
    shape = tuple(dataset.train.images.shape[1:])
    whole = [forward_flops(model.features[: end + 1], shape) for end in ends]
    own = [after - before for before, after in zip([0, *whole], whole, strict=False)]
    price = [len(dataset.train) * (all_ + 2 * last) for all_, last in zip(whole, own, strict=True)]
    epochs = max(1, int(budget / sum(price)))
    for start, end in zip(starts, ends, strict=False):
        part = model.features[start : end + 1]
        width = next(layer for layer in part if isinstance(layer, nn.Conv2d)).out_channels
        head = nn.Linear(width, dataset.classes).to(dataset.train.images.device)
        _initialise(head, generator(spec["seed"], "head", end))
        model.features[:start].requires_grad_(False)
        stage = nn.Sequential(model.features[: end + 1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        train(stage, dataset, spec, 0, epochs, epochs, f"layer {end}")
    model.requires_grad_(True)
    return float(epochs * sum(price))
