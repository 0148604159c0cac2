"""The trials of paper 4 on image networks: a search, watched by its codes, and the networks that are pruned from it.

A *search* is a training whose codes and weights are kept after every epoch. Its spec holds `dataset`, `network`,
`width`, `limit` (training images), `test_images`, `epochs`, `lr`, `batch_size`, `weight_decay`, `precision`, `side`
(side² probes) and `seed`. Optional are `epoch_images` (images of an epoch, drawn anew for each; all without it),
`falls` (shares of the epochs after which the learning rate falls; a half and three quarters without it), `labels`
"shuffled", `rate` (a constant learning rate, as a factor on lr), `stop` (epochs after which it ends) and `penalty` (L1
on the scales of BatchNorm). The other trials start from a search: their specs hold its fields and their
own.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import baselines, data, export, masks, training
from lib.data import Data
from lib.parameters import SCORES
from lib.provenance import CompanionError, unknown, write_atomically
from lib.spline import measures, partition
from lib.spline.measures import training_flops
from lib.study import Study, generator, seed_from

SEARCH = (
    "dataset network width limit test_images epochs lr batch_size weight_decay precision side epoch_images falls "
    "labels rate stop penalty"
).split()
FALLS = (0.5, 0.75)  # shares of the epochs after which the released code lowers the learning rate by 10
AROUND = 16  # images of each kind whose surroundings are divided
MASK_RATIOS = (0.3, 0.5, 0.7)  # one mask-distance detector for each
WATCHED = 100  # images on which losses are watched during training; no decision rests on them
ARMS = ("ticket", "late", "reinit", "end", "rewound", "scratch", "layerwise", "short", "snip")
SNIP_IMAGES = 128  # of the one batch on which SNIP measures saliencies
PRETRAINING = 0.25  # share of the operations that layerwise pretraining may use


def study(name: str, folder: Path) -> Study:
    """The study "searches", or one that starts from it, as "oneshots", "slices" or "surroundings"; see their trials."""
    trials = {"oneshots": oneshot, "slices": picture, "surroundings": surroundings, "tickets": ticket}
    trial = search if name == "searches" else partial(trials[name], folder=folder)
    version = 2 if name in ("slices", "surroundings") else 1  # cut where the winner changes; images drawn by seed
    return Study(f"04_spline_early_bird.{name}", trial, version=version, folder=folder, keeps=name != "tickets")


def search_spec(spec: dict) -> dict:
    """The part of a spec that names a search."""
    return {name: spec[name] for name in [*SEARCH, "seed"] if name in spec}


def loaded(spec: dict, device: str) -> Data:
    """The data of a search: a subset to train on, some images to watch, the first test images."""
    dataset = data.load(spec["dataset"], device=device, seed=0, limit=spec.get("limit"))
    if spec.get("labels") == "shuffled":
        order = torch.randperm(len(dataset.train), generator=generator(spec["seed"], "shuffled labels"))
        dataset.train.labels.copy_(dataset.train.labels[order.to(device)])
    watched, test = dataset.validation.first(WATCHED), dataset.test.first(spec["test_images"])
    return replace(dataset, validation=watched, test=test)


def probes(dataset: Data, side: int) -> dict[str, Tensor]:
    """side² inputs each: the canvas of two test images of different class, test images, and Gaussian noise."""
    images, labels = normalised(dataset, slice(side * side)), dataset.test.labels
    second = int((labels != labels[0]).nonzero()[0])
    noise = torch.randn(images.shape, generator=generator(0, "noise")).to(images.device)
    return {"canvas": measures.canvas(images[0], images[second], side), "images": images, "noise": noise}


def normalised(dataset: Data, index: slice | list[int]) -> Tensor:
    """Some test images, as the network sees them."""
    return data.normalise(dataset.test.images[index], dataset.mean, dataset.std)


def train(model: nn.Module, dataset: Data, spec: dict, phase: range, total: int, name: str, after=None) -> None:
    """The epochs of a phase of a training of `total`: SGD, learning rate x 0.1 after each share `falls` of the epochs.

    With `rate` in the spec the learning rate is constant. The name is that of the random streams; `after` is called
    with the number of epochs done and the model.
    """
    falls = () if "rate" in spec else spec.get("falls", FALLS)
    edges = [0, *(int(total * share + 1e-9) for share in falls), total]
    for drop, (begin, end) in enumerate(pairwise(edges)):
        first, last = max(begin, phase.start), min(end, phase.stop)
        if first < last:
            training.fit(
                model, dataset, epochs=last - first, seed=seed_from(spec["seed"], name, first),
                lr=spec["lr"] * spec.get("rate", 1.0) * 0.1**drop, batch_size=spec["batch_size"],
                weight_decay=spec["weight_decay"], schedule="constant",
                precision=spec.get("precision", "float32"), epoch_images=spec.get("epoch_images", 0),
                device=str(dataset.train.labels.device),
                after_epoch=after and (lambda done, model, first=first: after(first + done, model)),
            )  # fmt: skip


def images_of(spec: dict, dataset: Data) -> int:
    """Images of one epoch of a search."""
    return min(spec.get("epoch_images") or len(dataset.train), len(dataset.train))


def accuracy(model: nn.Module, dataset: Data) -> float:
    """Test accuracy (%)."""
    return 100 * training.evaluate(model, dataset.test, dataset, device=str(dataset.test.labels.device))["accuracy"]


def search(spec: dict, device: str, weights: Path) -> dict:
    """The trial of a search; it keeps the weights of every epoch.

    Returns:
        Distances between all epochs, flat, by set of probes ("canvas", "images", "noise") and, on the canvas, with
        layers weighted by units; trained epochs at the early bird of the mask detectors, 0 for never; training loss by
        epoch; test accuracy (%).
    """
    dataset = loaded(spec, device)
    model = baselines.build(spec, dataset).to(device)
    if spec.get("penalty"):
        for norm in _norms(model):
            norm.weight.register_hook(lambda g, scale=norm.weight: g + spec["penalty"] * scale.detach().sign())
    sets, kept = probes(dataset, spec["side"]), {"0": _state(model)}
    codes, scales, losses = {name: [] for name in sets}, [_scales(model)], []

    def after(epoch: int, model: nn.Module) -> None:
        kept[str(epoch)] = _state(model)
        scales.append(_scales(model))
        for name, inputs in sets.items():
            codes[name].append(measures.activation_codes(model, inputs))
        losses.append(training.evaluate(model, dataset.train.first(WATCHED), dataset, device=device)["loss"])

    train(model, dataset, spec, range(spec.get("stop", spec["epochs"])), spec["epochs"], "search", after)
    row, units = {"loss": losses}, codes["canvas"][0].units
    for name, history in codes.items():
        by_layer = measures.distance_matrix(history)
        row[f"distance_{name}"] = by_layer.mean(0).round(6).ravel().tolist()
        if name == "canvas":
            row["distance_units"] = np.average(by_layer, axis=0, weights=units).round(6).ravel().tolist()
    if scales[0].numel():
        row["mask_epochs"] = [measures.mask_early_bird_epoch(torch.stack(scales).numpy(), p) or 0 for p in MASK_RATIOS]
    row["test_accuracy"] = accuracy(model, dataset)
    state = {f"{epoch}/{name}": value for epoch, state in kept.items() for name, value in state.items()}
    write_atomically(weights, safetensors.torch.save(state))
    return row


def snapshot(spec: dict, epoch: int, dataset: Data, folder: Path, device: str) -> nn.Module:
    """The network of a search after `epoch` epochs, in evaluation mode."""
    path = study("searches", folder).weights(search_spec(spec), device)
    with safetensors.safe_open(path, "pt", device) as file:
        state = {name.split("/", 1)[1]: file.get_tensor(name) for name in file.keys() if name.startswith(f"{epoch}/")}
    model = baselines.build(spec, dataset).to(device)
    model.load_state_dict(state)
    return model.eval()


def oneshot(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of a trained network that is pruned and measured at once.

    The spec holds a search, `epoch`, `ratios` and `share_ratio`.

    Returns:
        `dense` test accuracy (%); by method, scope and ratio the accuracy; for the signed score, globally, at
        `share_ratio`, the share of each layer that goes, at full length and reduced to a common number of directions,
        of trained and of random filters, with `fan_in` and `width_of` each layer.
    """
    dataset = loaded(spec, device)
    model = snapshot(spec, spec["epoch"], dataset, folder, device)
    found, rows = measures.layers(model, dataset.size), []
    for scope in measures.SCOPES:
        for method in SCORES:
            for ratio in spec["ratios"]:
                stream = generator(spec["seed"], "nodes", scope, ratio)
                small = measures.remove(model, ratio, method, scope, size=dataset.size, generator=stream)
                rows.append((method, scope, ratio, accuracy(small, dataset)))
    row = dict(zip(("method", "scope", "ratio", "accuracy"), map(list, zip(*rows, strict=True)), strict=True))
    row |= {"dense": accuracy(model, dataset), "width_of": [len(own) for own in found]}
    row["fan_in"] = [own.weights.shape[1] for own in found]
    return row | shares(found, spec["share_ratio"], spec["seed"])


def shares(found: Sequence[measures.Layer], ratio: float, seed: int) -> dict[str, list[float]]:
    """The share of each layer that goes, by the signed score over all layers, of these and of random filters.

    The keys are "share_trained_full", "share_trained_reduced", to the number of directions that all layers have, and
    the same of random filters.
    """
    dim = min(min(own.weights.shape) for own in found)
    random = [random_like(own, generator(seed, "filters", own.name)) for own in found]
    row = {}
    for name, layers in (("trained", found), ("random", random)):
        for label, size in (("full", None), ("reduced", dim)):
            dropped = measures.choose(layers, ratio, "signed", "global", dim=size)
            gone = [sum(k == place for k, _, _ in dropped) / len(own) for place, own in enumerate(layers)]
            row[f"share_{name}_{label}"] = gone
    return row


def picture(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of the partition of a plane through three test images of different classes, near a boundary.

    The spec holds a search, `epoch`, and `half`, half the side of the window, in which the images are the points
    (0, 0), (1, 0) and (0, 1); optionally `method` and `ratio` of what is pruned, and its `kind`: "nodes" of each layer
    (the default) or single "weights" of all layers together. The middle of the window is the point between the first
    two images at which the decision of the last epoch's network first changes.

    Returns:
        Number of `regions`, by code, and of `maps`, the different affine ones; the regions' `corners`, flat, and how
        many each has; the class that wins in the middle of each; the decision boundary, flat.
    """
    dataset = loaded(spec, device)
    model = snapshot(spec, spec["epoch"], dataset, folder, device)
    if spec.get("ratio"):
        kind = spec.get("kind", "nodes")
        stream = generator(spec["seed"], kind)
        if kind == "weights":
            model = without_weights(model, spec["ratio"], spec["method"], stream)
        else:
            model = measures.remove(model, spec["ratio"], spec["method"], size=dataset.size, generator=stream)
    labels = dataset.test.labels.tolist()
    images = normalised(dataset, [labels.index(label) for label in list(dict.fromkeys(labels))[:3]]).cpu()
    middle = decision_change(snapshot(spec, spec["epochs"], dataset, folder, device).cpu(), images[0], images[1])
    window = tuple((place - spec["half"], place + spec["half"]) for place in (middle, 0.0))
    found = partition.split(model.cpu(), window, tuple(images))
    return {
        "regions": len(found),
        "maps": len(np.unique(found.distinct_maps())),
        "corners": found.cells.edges()[0][:, 0].round(6).ravel().tolist(),
        "count": found.cells.count.tolist(),
        "winner": partition.winner(found.maps, found.cells).tolist(),
        "boundary": found.boundary.round(6).ravel().tolist(),
    }


def without_weights(model: nn.Module, ratio: float, method: str, stream: torch.Generator) -> nn.Module:
    """A copy without a share of the single weights of all layers together, by "magnitude" or at "random"."""
    small = deepcopy(model)
    weights = [module.weight.data for module in small.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    method = "lowest" if method == "magnitude" else method
    kept = masks.magnitude_mask(torch.cat([weight.flatten() for weight in weights]), ratio, method, stream)
    for weight, own in zip(weights, kept.split([weight.numel() for weight in weights]), strict=True):
        weight.mul_(own.view_as(weight))
    return small


def surroundings(spec: dict, device: str, weights: Path, *, folder: Path) -> dict:
    """The trial of how finely a network divides the surroundings of inputs, over the epochs of its search.

    The spec holds a search, `at` (epochs), `images` (their number, of each kind) and `radii`, half the sides of squares
    in normalised inputs. Each square lies in a random plane, the same for all epochs, kinds and radii. Every seed draws
    its own images and planes.

    Returns:
        By epoch, `kind`, radius and `image`: number of `regions`; `density`, the length of lines over the area. The
        kinds are "training" and "test" images, "boundary", points of `boundary_points`, and Gaussian "noise". Images
        are nested in trainings: the training is the unit.
    """
    dataset, number, rows = loaded(spec, device), spec["images"], []

    def drawn(split: data.Split, name: str) -> Tensor:
        order = torch.randperm(len(split), generator=generator(spec["seed"], name))[:number]
        return data.normalise(split.images[order], dataset.mean, dataset.std).cpu().double()

    train, test = drawn(dataset.train, "training images"), drawn(dataset.test, "test images")
    noise = torch.randn(test.shape, generator=generator(spec["seed"], "noise"), dtype=torch.float64)
    directions = partition.random_directions(test.shape[1:], number, generator(spec["seed"], "directions"))
    for epoch in spec["at"]:
        model = snapshot(spec, epoch, dataset, folder, device).cpu().double()
        kinds = {"training": train, "test": test, "boundary": boundary_points(model, test), "noise": noise}
        for kind, centres in kinds.items():
            for radius in spec["radii"]:
                found = partition.local_complexity(model, centres, radius, directions[: len(centres)])
                for image, pair in enumerate(zip(found["regions"].tolist(), found["density"].tolist(), strict=True)):
                    rows.append((epoch, kind, radius, image, *pair))
    names = ("epoch_seen", "kind", "radius", "image", "regions", "density")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


@torch.no_grad()
def boundary_points(model: nn.Module, images: Tensor) -> Tensor:
    """A point of the decision boundary for each image (n, ...), on the way to the next one that is decided otherwise.

    They are found by bisection. A network that decides all images alike has none: (0, ...).
    """
    decision = model(images).argmax(1)
    if (decision == decision[0]).all():
        return images[:0]
    places = torch.arange(len(images))
    ahead = (places[:, None] + places) % len(images)  # the others in order, from each image on
    partner = ahead[places, (decision[ahead] != decision[:, None]).int().argmax(1)]
    near, far = images.clone(), images[partner]
    for _ in range(40):
        middle = (near + far) / 2
        same = (model(middle).argmax(1) == decision).view(-1, *[1] * (images.dim() - 1))
        near, far = torch.where(same, middle, near), torch.where(same, far, middle)
    return near


@torch.inference_mode()
def decision_change(model: nn.Module, first: Tensor, second: Tensor) -> float:
    """Where on the way from one image (0) to another (1) the decision first changes; 0.5 if it never does."""
    share = torch.linspace(0, 1, 2001)
    winner = model(first + share.view(-1, 1, 1, 1) * (second - first)).argmax(1)
    changes = (winner[1:] != winner[:-1]).nonzero().flatten()
    return float(share[changes[0]] + share[1] / 2) if len(changes) else 0.5


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _scales(model: nn.Module) -> Tensor:
    return torch.cat([torch.zeros(0), *(norm.weight.detach().cpu() for norm in _norms(model))])


def random_like(own: measures.Layer, stream: torch.Generator) -> measures.Layer:
    """Gaussian rows of the same shape and lengths, with the same offsets and outgoing weights."""
    rows = torch.randn(own.weights.shape, generator=stream, dtype=torch.float64)
    return replace(own, weights=rows / rows.norm(dim=1, keepdim=True) * own.weights.norm(dim=1, keepdim=True))


def ticket(spec: dict, device: str, weights: Path | None, *, folder: Path) -> dict:
    """The trial of one way to a small network, kept if there is a path for its `weights`: `export.rebuild` reads it.

    The spec holds a search, `ratio`, `method`, `draw` (trained epochs when the ticket is drawn), and `arm`:
    "ticket": prune at `draw`, train on to the end;
    "late": the same, but its nodes are chosen by the network of the last epoch;
    "reinit": as "ticket", with weights drawn anew;
    "end": prune at the end, then all epochs again;
    "rewound": nodes chosen at the end, weights of epoch 0, all epochs (one-shot lottery ticket);
    "scratch": the same widths from the start, for the operations that the ticket costs in all;
    "layerwise": the same, a quarter of the operations layer by layer; for networks without shortcuts;
    "short": the dense network for these operations;
    "snip": single weights of the untrained network, by their saliency (Lee et al. 2019), all epochs.

    Returns:
        Test accuracy (%), parameters (without removed weights), operations of the whole training with those of the
        detector, and of a ticket's; `trained_epochs` of the last phase.
    """
    if spec["arm"] not in ARMS:
        raise unknown("arm", spec["arm"], ARMS)
    dataset = loaded(spec, device)
    arm, epochs, draw, images = spec["arm"], spec["epochs"], spec["draw"], images_of(spec, dataset)
    at = partial(snapshot, spec, dataset=dataset, folder=folder, device=device)
    seen = at(epochs if arm in ("late", "end", "rewound") else draw)
    source, stream = (
        {"late": at(draw), "rewound": at(0)}.get(arm, seen),
        generator(spec["seed"], "nodes", spec["method"]),
    )
    options = {"size": dataset.size, "chooser": seen, "generator": stream}
    small = measures.remove(source, spec["ratio"], spec["method"], **options)
    forward = partial(measures.forward_flops, shape=tuple(dataset.train.images.shape[1:]))
    dense, price = (training_flops(forward(model), images, 1) for model in (seen, small))
    detector = draw * spec["side"] ** 2 * forward(seen)
    budget = draw * dense + (epochs - draw) * price + detector
    start, stop, spent = 0, epochs, 0.0
    if arm in ("ticket", "reinit"):
        start, spent = draw, draw * dense + detector
    elif arm in ("late", "end", "rewound"):
        start, spent = draw if arm == "late" else 0, epochs * dense
    elif arm in ("short", "snip"):
        small, price = at(0), dense
    if arm in ("reinit", "scratch", "layerwise"):
        initialise(small, generator(spec["seed"], "small", arm), scale=_scales(at(0))[0].item())
    if arm == "snip":
        snip(small, spec["ratio"], dataset, spec["seed"])
    if arm == "layerwise":
        spent = pretrain(small, dataset, spec, PRETRAINING * budget)
    if arm in ("scratch", "layerwise", "short"):
        stop = max(1, round((budget - spent) / price))
    train(small, dataset, spec, range(start, stop), stop, arm)
    if weights:
        export.write(small, weights)
    left = sum(int(parameter.count_nonzero()) for parameter in small.parameters())
    row = {"accuracy": accuracy(small, dataset), "parameters": left, "trained_epochs": stop - start}
    return row | {"flops": spent + (stop - start) * price, "ticket_flops": budget, "dense_flops": epochs * dense}


def initialise(model: nn.Module, stream: torch.Generator, scale: float = 1.0) -> None:
    """He's initialisation of convolutions, PyTorch's of linear layers, and this scale in every BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            drawn = torch.randn(module.weight.shape, generator=stream).to(module.weight.device)
            module.weight.data = drawn * (2 / fan_out) ** 0.5
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in module.parameters():
                parameter.data = (2 * torch.rand(parameter.shape, generator=stream) - 1).to(parameter.device) * bound
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.weight.data.fill_(scale)


def snip(model: nn.Module, ratio: float, dataset: Data, seed: int) -> None:
    """Set the share `ratio` of the weights to 0, those of least |gradient x weight|, and keep them there."""
    order = torch.randperm(len(dataset.train), generator=generator(seed, "snip"))[:SNIP_IMAGES]
    order = order.to(dataset.train.labels.device)
    model.train()
    inputs = data.normalise(dataset.train.images[order], dataset.mean, dataset.std)
    layers = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), dataset.train.labels[order]), layers)
    saliency = [(gradient * weight).abs() for gradient, weight in zip(gradients, layers, strict=True)]
    ordered = torch.cat([own.flatten() for own in saliency]).sort().values
    for own, weight in zip(saliency, layers, strict=True):
        mask = (own >= ordered[int(ratio * len(ordered))]).float()
        weight.data *= mask
        weight.register_hook(lambda g, mask=mask: g * mask)


def pretrain(model: nn.Module, dataset: Data, spec: dict, budget: float) -> float:
    """Train the layers of a network without shortcuts one after another, each under a classifier of its own.

    Earlier layers stay as they are, so a step costs one forward pass of the prefix and twice that of its last layer.

    Returns:
        The operations used, at most about `budget`; every layer gets equally many epochs, at least one.

    Raises:
        CompanionError: for a network with shortcuts.
    """
    if not hasattr(model, "features"):
        raise CompanionError("Layerwise pretraining needs a network without shortcuts: choose digits_cnn or vgg16.")
    ends = [0, *(place + 1 for place, layer in enumerate(model.features) if isinstance(layer, nn.ReLU))]
    shape = tuple(dataset.train.images.shape[1:])
    whole = [measures.forward_flops(model.features[:end], shape) if end else 0 for end in ends]
    price = images_of(spec, dataset) * sum(after + 2 * (after - before) for before, after in pairwise(whole))
    epochs = max(1, int(budget / price))
    for start, end in pairwise(ends):
        width = next(layer for layer in model.features[start:end] if isinstance(layer, nn.Conv2d)).out_channels
        head = nn.Linear(width, dataset.classes).to(dataset.train.images.device)
        initialise(head, generator(spec["seed"], "head", end - 1))
        model.features[:start].requires_grad_(False)
        stage = nn.Sequential(model.features[:end], nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        train(stage, dataset, spec, range(epochs), epochs, f"layer {end - 1}")
    model.requires_grad_(True)
    return float(epochs * price)
