"""The trials of paper 4 on image networks: a training watched by its codes, and what its networks hold.

The trial of paper 4 that trains pruned networks: early-bird tickets and their rivals, each with its price.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import baselines, data, training
from lib.data import Data, Split
from lib.parameters import SCORES
from lib.provenance import CompanionError, unknown, write_atomically
from lib.spline import measures, partition, selection
from lib.spline.measures import forward_flops, training_flops
from lib.study import Study, generator, seed_from

SEARCH = "dataset network width limit test_images epochs lr batch_size weight_decay side labels rate penalty".split()
MASK_RATIOS = (0.3, 0.5, 0.7)  # one mask-distance detector for each
WATCHED = 100  # images on which losses are watched during training; no decision rests on them


def searches(folder: Path) -> Study:
    """The study of trainings whose codes are kept; `folder` is `runs/<profile>`."""
    return Study("04_spline_early_bird.searches", search, version=1, folder=folder)


def oneshots(folder: Path) -> Study:
    """The study of trained networks, pruned and not trained further."""
    return Study("04_spline_early_bird.oneshots", partial(oneshot, folder=folder), version=1, folder=folder)


def slices(folder: Path) -> Study:
    """The study of partitions of a plane of images."""
    return Study("04_spline_early_bird.slices", partial(picture, folder=folder), version=1, folder=folder)


def search_spec(spec: dict) -> dict:
    """The part of a spec that names a search."""
    return {name: spec[name] for name in [*SEARCH, "seed"] if name in spec}


def loaded(spec: dict, device: str) -> Data:
    """The data of a search: a subset to train on, some images to watch, the first test images."""
    dataset = data.load(spec["dataset"], device=device, seed=0, limit=spec.get("limit"))
    if spec.get("labels") == "shuffled":
        order = torch.randperm(len(dataset.train), generator=generator(spec["seed"], "shuffled labels"))
        dataset.train.labels.copy_(dataset.train.labels[order.to(device)])
    return replace(
        dataset, validation=_first(dataset.validation, WATCHED), test=_first(dataset.test, spec["test_images"])
    )


def probes(dataset: Data, side: int) -> dict[str, Tensor]:
    """side² inputs each: the canvas of two test images of different class, test images, and Gaussian noise."""
    images = data.normalise(dataset.test.images[: side * side], dataset.mean, dataset.std)
    labels = dataset.test.labels
    second = int((labels != labels[0]).nonzero()[0])
    noise = torch.randn(images.shape, generator=generator(0, "noise")).to(images.device)
    return {"canvas": measures.canvas(images[0], images[second], side), "images": images, "noise": noise}


def train(
    model: nn.Module, dataset: Data, spec: dict, start: int, stop: int, total: int, name: str, after=None
) -> None:
    """Epochs `start` to `stop` of a training of `total`: SGD, learning rate x 0.1 at a half and at three quarters.

    spec: `lr`, `batch_size`, `weight_decay`, `seed`; `rate`, a factor on a rate that then stays constant.
    name: of the random streams. after: called with the number of epochs done and the model.
    """
    edges = [0, total] if "rate" in spec else [0, total // 2, total * 3 // 4, total]
    for drop, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        first, last = max(begin, start), min(end, stop)
        if first < last:
            training.fit(
                model, dataset, epochs=last - first, seed=seed_from(spec["seed"], name, first),
                lr=spec["lr"] * spec.get("rate", 1.0) * 0.1**drop, batch_size=spec["batch_size"],
                weight_decay=spec["weight_decay"], schedule="constant", device=str(dataset.train.labels.device),
                after_epoch=after and (lambda done, model, first=first: after(first + done, model)),
            )  # fmt: skip


def accuracy(model: nn.Module, dataset: Data) -> float:
    """Test accuracy (%)."""
    return 100 * training.evaluate(model, dataset.test, dataset, device=str(dataset.test.labels.device))["accuracy"]


def search(spec: dict, device: str, weights: Path) -> dict:
    """The trial of a training whose code is taken after every epoch; it keeps the weights of every epoch.

    Args:
        spec: `dataset`, `network`, `width`, `limit` (training images), `test_images`, `epochs`, `lr`, `batch_size`,
            `weight_decay`, `side` (side² probes), `seed`; `labels` "shuffled", `rate` (a constant learning rate, as a
            factor on lr), `penalty` (L1 on the scales of BatchNorm).

    Returns: distances between all epochs, flat, by set of probes ("canvas", "images", "noise") and, on the canvas, with
        layers weighted by units; trained epochs at the early bird of the mask detectors, 0 for never; training loss by
        epoch; test accuracy (%).
    """
    dataset = loaded(spec, device)
    model = baselines.build(spec, dataset).to(device)
    if spec.get("penalty"):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.register_hook(lambda g, scale=module.weight: g + spec["penalty"] * scale.detach().sign())
    sets, kept = probes(dataset, spec["side"]), {"0": _state(model)}
    codes, scales, losses = {name: [] for name in sets}, [_scales(model)], []

    def after(epoch: int, model: nn.Module) -> None:
        kept[str(epoch)] = _state(model)
        scales.append(_scales(model))
        for name, inputs in sets.items():
            codes[name].append(measures.activation_codes(model, inputs))
        losses.append(training.evaluate(model, _first(dataset.train, WATCHED), dataset, device=device)["loss"])

    train(model, dataset, spec, 0, spec["epochs"], spec["epochs"], "search", after)
    row, units = {"loss": losses}, codes["canvas"][0].units
    for name, history in codes.items():
        by_layer = measures.distance_matrix(history)
        row[f"distance_{name}"] = measures.total_distance(by_layer, units).round(6).ravel().tolist()
        if name == "canvas":
            row["distance_units"] = measures.total_distance(by_layer, units, "units").round(6).ravel().tolist()
    if scales[0].numel():
        row["mask_epochs"] = [measures.mask_early_bird_epoch(torch.stack(scales).numpy(), p) or 0 for p in MASK_RATIOS]
    row["test_accuracy"] = accuracy(model, dataset)
    state = {f"{epoch}/{name}": value for epoch, state in kept.items() for name, value in state.items()}
    write_atomically(weights, safetensors.torch.save(state))
    return row


def snapshot(spec: dict, epoch: int, dataset: Data, folder: Path, device: str) -> nn.Module:
    """The network of a search after so many epochs."""
    path = searches(folder).weights(search_spec(spec), device)
    with safetensors.safe_open(path, "pt", device) as file:
        state = {name.split("/", 1)[1]: file.get_tensor(name) for name in file.keys() if name.startswith(f"{epoch}/")}
    model = baselines.build(spec, dataset).to(device)
    model.load_state_dict(state)
    return model.eval()


def oneshot(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of a trained network that is pruned and measured at once.

    Args:
        spec: a search, `epoch`, `ratios`, `share_ratio`.

    Returns: `dense` test accuracy (%); by method, scope and ratio the accuracy; for the signed score, globally, at
        `share_ratio`, the share of each layer that goes, at full length and reduced to a common number of directions,
        of trained and of random filters, with `fan_in` and `width_of` each layer.
    """
    dataset = loaded(spec, device)
    model = snapshot(spec, spec["epoch"], dataset, folder, device)
    found, rows = selection.layers(model, dataset.size), []
    for scope in selection.SCOPES:
        for method in SCORES:
            for ratio in spec["ratios"]:
                stream = generator(spec["seed"], "nodes", scope, ratio)
                small = selection.remove(model, ratio, method, scope, size=dataset.size, generator=stream)
                rows.append((method, scope, ratio, accuracy(small, dataset)))
    row = dict(zip(("method", "scope", "ratio", "accuracy"), map(list, zip(*rows, strict=True)), strict=True))
    row |= {"dense": accuracy(model, dataset), "width_of": [len(own) for own in found]}
    row["fan_in"] = [own.weights.shape[1] for own in found]
    dim = min(min(own.weights.shape) for own in found)
    random = [_random_like(own, generator(spec["seed"], "filters", own.name)) for own in found]
    for name, layers in (("trained", found), ("random", random)):
        for label, size in (("full", None), ("reduced", dim)):
            dropped = selection.choose(layers, spec["share_ratio"], "signed", "global", dim=size)
            gone = [sum(k == place for k, _, _ in dropped) / len(own) for place, own in enumerate(layers)]
            row[f"share_{name}_{label}"] = gone
    return row


def picture(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of the partition of a plane through three test images of different classes, near a boundary.

    Args:
        spec: a search, `epoch`, `half` (half-side of the window, where the images are the points (0, 0), (1, 0) and
            (0, 1)); optionally `method` and `ratio` of what is pruned in each layer. The middle of the window is the
            point between the first two images at which the decision of the last epoch's network first changes.

    Returns: number of `regions`; their `corners`, flat, and how many each has; the class that wins in the middle of
        each; the decision boundary, flat.
    """
    dataset = loaded(spec, device)
    model = snapshot(spec, spec["epoch"], dataset, folder, device)
    if spec.get("ratio"):
        stream = generator(spec["seed"], "nodes")
        model = selection.remove(model, spec["ratio"], spec["method"], size=dataset.size, generator=stream)
    labels = dataset.test.labels.tolist()
    places = [labels.index(label) for label in list(dict.fromkeys(labels))[:3]]
    images = data.normalise(dataset.test.images[places], dataset.mean, dataset.std).cpu()
    middle = _change(snapshot(spec, spec["epochs"], dataset, folder, device).cpu(), images[0], images[1])
    window = tuple((place - spec["half"], place + spec["half"]) for place in (middle, 0.0))
    found = partition.split(model.cpu(), window, partition.Plane.through(*images))
    middle = np.concatenate([found.cells.centre, np.ones((len(found), 1))], 1)
    return {
        "regions": len(found),
        "corners": np.concatenate(found.regions).round(6).ravel().tolist(),
        "count": found.cells.count.tolist(),
        "winner": np.einsum("nok,nk->no", found.maps, middle).argmax(1).tolist(),
        "boundary": found.boundary.round(6).ravel().tolist(),
    }


@torch.inference_mode()
def _change(model: nn.Module, first: Tensor, second: Tensor) -> float:
    """Where on the way from one image (0) to another (1) the decision first changes; 0.5 if it never does."""
    share = torch.linspace(0, 1, 2001)
    winner = model(first + share.view(-1, 1, 1, 1) * (second - first)).argmax(1)
    changes = (winner[1:] != winner[:-1]).nonzero().flatten()
    return float(share[changes[0]] + share[1] / 2) if len(changes) else 0.5


def _first(split: Split, n: int) -> Split:
    return Split(split.images[:n], split.labels[:n])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def _scales(model: nn.Module) -> Tensor:
    norms = [module.weight.detach().cpu() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return torch.cat(norms) if norms else torch.zeros(0)


def _random_like(own: selection.Layer, stream: torch.Generator) -> selection.Layer:
    """Gaussian rows of the same shape and lengths, with the same offsets and outgoing weights."""
    rows = torch.randn(own.weights.shape, generator=stream, dtype=torch.float64)
    return replace(own, weights=rows / rows.norm(dim=1, keepdim=True) * own.weights.norm(dim=1, keepdim=True))


ARMS = ("ticket", "late", "reinit", "end", "rewound", "scratch", "layerwise", "short", "snip")
SNIP_IMAGES = 128  # of the one batch on which SNIP measures saliencies
PRETRAINING = 0.25  # share of the operations that layerwise pretraining may use


def tickets(folder: Path) -> Study:
    """The study of pruned networks that are trained; `folder` is `runs/<profile>`."""
    return Study("04_spline_early_bird.tickets", partial(ticket, folder=folder), version=1, folder=folder)


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
