"""The trials of paper 3: one recipe pruned, its BatchNorm re-estimated, retrained; the latency of one recipe.

A spec holds the spec of a dense network (`baselines.baseline_specs`) beside `widths`, one for each channel group.
Recipes of ResNet-50 on ImageNet, the paper's own setting, are retrained on images that are streamed from files.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from lib import baselines, channels, data, export, models, training
from lib.channels import Groups
from lib.data import Data, Split
from lib.provenance import CompanionError, unknown
from lib.spaces import measures, samplers
from lib.spaces.measures import Regime
from lib.study import Study, generator, seed_from

MODES = {"none": 0.0, "finetune": 0.01, "rewind": 0.1, "scratch": 0.1}  # first learning rate of each retraining
RANKINGS = ("global L1", "global BN", "group norm", "isomorphic")  # of `ranked_widths`
PRUNED = ("inner", "all", "weights")  # of `prunable`
BN_BATCH = 100  # images in a batch while BatchNorm is re-estimated


def recipes(folder: Path, dense_folder: Path) -> Study:
    """The study of pruned and retrained recipes; both folders are `runs/<profile>`."""
    trial = partial(retrain, dense_folder=dense_folder)
    return Study("03_pruning_spaces.recipes", trial, version=2, folder=folder, keeps=False)


def priors(folder: Path, dense_folder: Path) -> Study:
    """The study of the widths that prior pruning chooses."""
    return Study("03_pruning_spaces.priors", partial(rank_filters, dense_folder=dense_folder), version=2, folder=folder)


def latencies(folder: Path) -> Study:
    """The study of measured latencies of recipes; its trials run one at a time."""
    return Study("03_pruning_spaces.latencies", measure_latency, version=1, folder=folder)


def streamed(folder: Path) -> Study:
    """The study of recipes that are retrained on images from files."""
    return Study("03_pruning_spaces.streamed", retrain_streamed, version=1, folder=folder)


def dense_network(name: str, source: str, profile: str) -> dict:
    """The spec of a dense network "network/dataset"; a "trained" one has the settings of the profile's baselines."""
    network, dataset = name.split("/", 1)
    if source == "public":
        return {"source": source, "network": network, "dataset": dataset}
    return baselines.trained_like(network, dataset, baselines.profile_baselines(profile))


def prunable(dense: dict, what: str = "inner") -> Groups:
    """What recipes prune in the network of a dense spec.

    `what` is "inner", the block-internal channel groups; "all", which adds stem and residual streams; or "weights", the
    single weights of all convolutions but the first, whose "widths" are numbers of weights.

    Raises:
        CompanionError: for another `what`.
    """
    if what not in PRUNED:
        raise unknown("part of a network to prune", what, PRUNED)
    return _prunable(json.dumps(baselines.cost_specs([dense])[0], sort_keys=True), what)


def imagenet_groups(network: str = "resnet50", classes: int = 1000, size: int = 224) -> Groups:
    """All channel groups of an ImageNet-shaped network, stem and residual streams included."""
    return channels.find(models.build(network, form="imagenet", classes=classes, size=size), size)


def recipe_specs(
    dense: dict, space: str, widths: Sequence[Sequence[int]], kept: float, options: dict, budget: str = "macs"
) -> list[dict]:
    """A spec for each row of widths (n, G): a dense network, the labels of space and regime, options of `retrain`."""
    labels = {"space": space, "kept": kept, "budget": budget}
    return [dense | {"widths": [int(width) for width in row]} | labels | options for row in widths]


def ladder_specs(
    dense: dict,
    kept: float,
    rungs: int,
    options: dict,
    *,
    space: str = "ladder",
    budget: str = "macs",
    places: Sequence[int] = (),
    **how: float,
) -> list[dict]:
    """A spec for each recipe of a ladder, or those at some places; `how` is what `samplers.ladder` takes besides."""
    groups = prunable(dense, options.get("what", "inner"))
    widths = samplers.ladder(groups, Regime(kept, budget), rungs, **how)
    return recipe_specs(dense, space, widths[list(places)] if places else widths, kept, options, budget)


def length(images: int, available: int) -> dict:
    """The options of `retrain` for a retraining of this many images, drawn from an epoch of the `available` ones.

    Raises:
        CompanionError: for more than one epoch that is no whole number of epochs.
    """
    if images > available and images % available:
        raise CompanionError(f"A retraining of {images:,} images is no whole number of epochs of {available:,} images.")
    return {"train_images": min(images, available), "retraining_epochs": max(1, images // available)}


def retrain(spec: dict, device: str, weights: Path | None, *, dense_folder: Path) -> dict:
    """The trial of `recipes`: prune in one shot, re-estimate BatchNorm, retrain to the last epoch, measure.

    The network at the end is kept if there is a path for its `weights`: `export.rebuild` reads it.

    The spec holds a dense network and `widths`; `what` they count (of `prunable`); `criterion` (of `channels.prune`;
    single weights go by their magnitude); `mode`: "none" (BatchNorm
    re-estimated only), "finetune", "rewind" (learning-rate rewinding) or "scratch"; `retraining`, the seed of order and
    augmentation; `retraining_epochs`, `retraining_batch`, `retraining_precision`; `bn_images`, `train_images`,
    `validation_images`, `test_images`: the largest number of each; `by_image`, whether to store which test images were
    misclassified. The control has dense widths and is retrained like the others.

    Returns:
        Coordinates of the recipe (`measures.coordinates`); accuracy (%) and loss (nats): `proxy_*` on validation
        images after BatchNorm was re-estimated, `validation_*` and `test_*` at the end (no test without test images);
        with `by_image` the indices of the misclassified test images, `test_wrong`.

    Raises:
        CompanionError: for an unknown mode, or if there are too few images.
    """
    if spec["mode"] not in MODES:
        raise unknown("retraining mode", spec["mode"], MODES)
    dense, by_image = baselines.dense_spec(spec), spec.get("by_image")
    model, dataset = _dense(json.dumps(dense, sort_keys=True), dense_folder, device)
    few = selection(dataset, spec)
    if by_image and len(few.test) < spec["test_images"]:
        asked = f"{spec['test_images']} test images are asked for, and {spec['dataset']} has {len(few.test)}"
        raise CompanionError(f"{asked}: lower test_images.")
    row, pruned = _pruned(model, prunable(dense, spec.get("what", "inner")), spec, dataset.size)
    batches = data.batches(dataset.train.first(spec["bn_images"]), BN_BATCH)
    training.reestimate(pruned, (data.normalise(images, dataset.mean, dataset.std) for images, _ in batches))
    row |= _accuracy_and_loss("proxy", training.evaluate(pruned, few.validation, dataset, device=device))
    if spec["mode"] == "scratch":
        reinitialise(pruned, seed_from(spec["retraining"], "initialisation"))
    if spec["mode"] != "none":
        options = {"epochs": spec["retraining_epochs"], "batch_size": spec["retraining_batch"]}
        options |= {"seed": spec["retraining"], "lr": MODES[spec["mode"]], "augment": spec.get("augment", True)}
        options["precision"] = spec.get("retraining_precision", "float32")
        training.fit(pruned, replace(few, validation=few.validation.first(1)), device=device, **options)
        row |= _accuracy_and_loss("validation", training.evaluate(pruned, few.validation, dataset, device=device))
    else:
        row |= {f"validation_{name}": row[f"proxy_{name}"] for name in ("accuracy", "loss")}
    wrong = {}
    if spec["test_images"]:
        test = training.evaluate(pruned, few.test, dataset, device=device)
        row |= _accuracy_and_loss("test", test)
        wrong = {"test_wrong": test["wrong"]} if by_image else {}
    if weights:
        export.write(pruned, weights)
    return {name: float(value) for name, value in row.items()} | wrong


def selection(dataset: Data, spec: dict) -> Data:
    """The images of a spec: for training, for selection, for the report.

    A public checkpoint was trained on all training images, including those that this companion holds out. There the
    last test images select and the first ones report.

    Raises:
        CompanionError: if selection and report would share test images.
    """
    n, report = spec["validation_images"], spec["test_images"]
    select, test = dataset.validation.first(n), dataset.test.first(report)
    if spec["source"] == "public":
        if n + report > len(dataset.test):
            raise CompanionError(
                f"{n} + {report} images to select and to report exceed the {len(dataset.test)} test images: "
                "lower validation_images or test_images."
            )
        select = Split(dataset.test.images[-n:], dataset.test.labels[-n:])
    return replace(dataset, train=dataset.train.first(spec["train_images"]), validation=select, test=test)


def rank_filters(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `priors`: `ranked_widths` of a dense network; a spec adds `kept`, `ranking` (RANKINGS), `what`."""
    dense = baselines.dense_spec(spec)
    model, _ = _dense(json.dumps(dense, sort_keys=True), dense_folder, device)
    return {
        "widths": ranked_widths(
            model, prunable(dense, spec.get("what", "inner")), spec["kept"], spec["ranking"]
        ).tolist()
    }


def measure_latency(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `latencies`: median milliseconds of a forward pass of 1 and of 128 images of an untrained recipe."""
    dense = baselines.dense_spec(spec)
    entry, groups = data.entry(dense["dataset"]), prunable(dense, spec.get("what", "inner"))
    asked = dict(zip(groups.names, spec["widths"], strict=True))
    pruned = channels.prune(baselines.untrained(dense), asked, size=entry["size"])
    shape = (entry["channels"], entry["size"], entry["size"])
    row = {"macs": models.count_macs(pruned, (1, *shape)), "parameters": models.count_parameters(pruned)}
    return row | {f"made_latency_{n}_ms": training.latency_ms(pruned, (n, *shape), device) for n in (1, 128)}


def retrain_streamed(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `streamed`: prune, re-estimate BatchNorm on training batches, retrain to the last epoch, measure.

    The spec holds `network`, `classes`, `size` (pixels), `pretrained` (torchvision's weights), `widths` of all groups,
    `criterion`, `mode` (of `MODES`), `retraining` (seed), `retraining_epochs`, `retraining_precision`, `batch_size`,
    `weight_decay`, `bn_batches`, `readers` (processes that decode files; 0 decodes in this one). EagleEye's schedule
    for ResNet-50 is 120 epochs, batch 128, cosine from 0.01, weight decay 1e-4.

    Returns:
        Coordinates of the recipe; top-1 accuracy (%) and n: `proxy_*` on held-out training images before retraining,
        `validation_*` on them afterwards, `test_*` on the official validation folder.
    """
    shape = {"classes": spec["classes"], "size": spec["size"]}
    seed = seed_from(spec["retraining"], "initialisation")
    model = models.build(spec["network"], form="imagenet", pretrained=spec["pretrained"], seed=seed, **shape)
    row, pruned = _pruned(model, channels.find(model, spec["size"]), spec, spec["size"])
    pruned = pruned.to(device)
    options = {"batch_size": spec["batch_size"], "size": spec["size"], "workers": spec["readers"]}
    options["seed"] = spec["retraining"]
    read = {part: data.stream("imagenet", part, **options) for part in ("train", "validation", "test")}
    some = islice(read["train"], spec["bn_batches"])
    training.reestimate(pruned, (images.to(device) for images, _ in some))
    row |= _streamed_accuracy(pruned, "proxy", read["validation"], device)
    if spec["mode"] == "scratch":
        reinitialise(pruned, seed)
    if spec["mode"] != "none":
        lr, decay = MODES[spec["mode"]], spec["weight_decay"]
        precision = spec.get("retraining_precision", "float32")
        fit_streamed(pruned, read["train"], spec["retraining_epochs"], lr, decay, precision, device)
    for part in ("validation", "test"):
        row |= _streamed_accuracy(pruned, part, read[part], device)
    return {name: float(value) for name, value in row.items()}


def fit_streamed(
    model: nn.Module, batches: DataLoader, epochs: int, lr: float, weight_decay: float, precision: str, device: str
) -> None:
    """Train in place with SGD, Nesterov momentum 0.9 and a cosine over all steps, in a precision of `training.fit`.

    Raises:
        training.Diverged: if the loss of an epoch's last batch is not finite.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=True)
    rate = training.scheduler("cosine", optimizer, epochs * len(batches))
    for epoch in range(1, epochs + 1):
        model.train()
        for images, labels in batches:
            with training.autocast(device, precision):
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
        if not torch.isfinite(loss):
            raise training.Diverged(f"the training loss became {loss.item()} in epoch {epoch}; lower lr")


@torch.no_grad()
def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw fresh weights as `models.build` does for the CIFAR forms, for the widths that are left."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "weight_orig"):
                module.weight = module.weight_orig.detach()  # what its mask will multiply
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def ranked_widths(model: nn.Module, groups: Groups, kept: float, ranking: str) -> np.ndarray:
    """Widths (G,) of prior pruning: filters ranked across groups, the best kept until the MACs are met.

    The ranking is one of RANKINGS: "global L1" (the filter's mean absolute weight, so that layers of different size
    compare), "global BN" (network slimming), "group norm" (`group_norms` over their mean in the group), or
    "isomorphic", which ranks by `group_norms` among groups of one shape only and keeps one share of every shape. Each
    group keeps at least one channel; of all counts of filters the one nearest to `kept` wins.

    Source: Liu et al. 2017 (slimming), Fang et al. 2023 (group norm) and 2024 (isomorphic pruning).
    """
    if ranking not in RANKINGS:
        raise unknown("ranking", ranking, RANKINGS)
    scored = [_ranking_scores(model, groups, name, ranking) for name in groups.names]
    place, score = np.repeat(np.arange(len(groups)), groups.dense), np.concatenate(scored)
    best = np.concatenate([score == score.max() for score in scored])
    shapes = [tuple(model.get_submodule(name).weight.shape) for name in groups.names]
    shape = np.array([shapes.index(one) if ranking == "isomorphic" else 0 for one in shapes])[place]
    rank = np.lexsort((-score, ~best, shape))
    order = np.empty(len(rank))  # of each filter within its shape, as a share
    for one in np.unique(shape):
        order[rank[shape[rank] == one]] = np.linspace(0, 1, (shape == one).sum())
    steps = np.eye(len(groups), dtype=int)[place[np.argsort(order, kind="stable")]].cumsum(axis=0)
    steps = np.unique(np.maximum(steps, 1), axis=0)
    return steps[np.abs(measures.kept_shares(groups, steps)[0] - kept).argmin()]


def group_norms(model: nn.Module, groups: Groups, group: str) -> np.ndarray:
    """The L2 norm of all weights that belong to each channel of a group: filters, BatchNorm scales, readers' inputs."""
    index = groups.names.index(group)
    total = channels.scores(model, groups, group, "l2") ** 2 + channels.scores(model, groups, group, "bn") ** 2
    for name in groups.readers[index]:
        weight = model.get_submodule(name).weight.detach().double()
        total += (weight.reshape(len(weight), len(total), -1) ** 2).sum(dim=(0, 2))
    return total.sqrt().cpu().numpy()


def _ranking_scores(model: nn.Module, groups: Groups, name: str, ranking: str) -> np.ndarray:
    if ranking in ("group norm", "isomorphic"):
        norms = group_norms(model, groups, name)
        return norms / norms.mean() if ranking == "group norm" else norms
    score = channels.scores(model, groups, name, {"global L1": "l1", "global BN": "bn"}[ranking]).cpu().numpy()
    return score / model.get_submodule(name).weight[0].numel() if ranking == "global L1" else score


def _pruned(model: nn.Module, groups: Groups, spec: Mapping, size: int) -> tuple[dict, nn.Module]:
    """The coordinates of a spec's recipe, and the network cut to its widths."""
    asked, stream = dict(zip(groups.names, spec["widths"], strict=True)), generator(spec["retraining"], "filters")
    row = measures.coordinates(groups, np.array([spec["widths"]])).iloc[0].to_dict()
    if spec.get("what") == "weights":
        sparse = deepcopy(model)
        for (name, width), dense in zip(asked.items(), groups.dense.tolist(), strict=True):
            prune.l1_unstructured(sparse.get_submodule(name), "weight", dense - width)  # retraining keeps them at 0
        return row, sparse
    return row, channels.prune(model, asked, spec["criterion"], size=size, generator=stream)


def _accuracy_and_loss(part: str, found: dict) -> dict[str, float]:
    return {f"{part}_accuracy": 100 * found["accuracy"], f"{part}_loss": found["loss"]}


@torch.inference_mode()
def _streamed_accuracy(model: nn.Module, part: str, batches: DataLoader, device: str) -> dict[str, float]:
    model.eval()
    right = n = 0
    for images, labels in batches:
        outputs = model(images.to(device))
        right, n = right + int((outputs.argmax(1).cpu() == labels).sum()), n + len(labels)
    return {f"{part}_accuracy": 100 * right / n, f"{part}_n": n}


@lru_cache(maxsize=8)
def _dense(text: str, dense_folder: Path, device: str) -> tuple[nn.Module, Data]:
    return baselines.baseline(json.loads(text), dense_folder, device)


@lru_cache(maxsize=32)
def _prunable(text: str, what: str) -> Groups:
    spec = json.loads(text)
    model, entry = baselines.untrained(spec), data.entry(spec["dataset"])
    if what == "weights":
        return _weights(model, entry["channels"], entry["size"])
    groups = channels.find(model, entry["size"])
    return groups if what == "all" else groups.internal()


def _weights(model: nn.Module, inputs: int, size: int) -> Groups:
    """The weights of each convolution but the first as a group: its width is their number, its area the pixels."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    areas = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: areas.update({name: output[0, 0].numel()}))
    with torch.inference_mode():
        model.eval()(torch.zeros(1, inputs, size, size))
    names = tuple(areas)[1:]
    dense, area = np.array([(layers[name].weight.numel(), areas[name]) for name in names]).T
    shape, alone = (len(names) + 1,) * 2, tuple((name,) for name in names)
    macs, parameters = np.zeros(shape), np.zeros(shape)
    macs[0, 1:], parameters[0, 1:] = area, 1
    macs[0, 0] = models.count_macs(model, (1, inputs, size, size)) - dense @ area
    parameters[0, 0] = models.count_parameters(model) - dense.sum()
    return Groups(names, dense, area, alone, alone, ((),) * len(names), macs, parameters)
