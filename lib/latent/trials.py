"""The trials of paper 1: inputs of heads stored once, heads compressed and fine-tuned on them, hidden layers pruned.

A spec holds that of a dense network (`baselines.baseline_specs`) and the changes to it. Networks with ImageNet weights
are public networks, such as "efficientnet_lite0-pretrained". Every other test image, from the first, selects (learning
rates); the others report, as `test`.
"""

import copy
import json
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import safetensors.torch
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune

from lib import baselines, data, models, training
from lib.data import Data, Split
from lib.latent import head, measures
from lib.latent.head import evaluate_head, head_hessian_diagonal, head_probabilities, masked
from lib.masks import magnitude_mask
from lib.provenance import write_atomically
from lib.study import Study, generator

GROUPS, DF = 100, 4.0  # of the Student-t projection of paper 1
CURVATURE_IMAGES = 5000  # the Hessian at a pruned head is averaged over at most this number of training images
FISHER_IMAGES = 300  # training images that the Fisher diagonal of hidden layers is averaged over
TASK_CLASSES = 10  # in each task of `tasks`
REACHED, TRANSFER_STEPS = 1.0, 1000  # points of accuracy that may be missing; the most steps of fine-tuning until then
SCOPES = ("network", "uniform")  # of pruning all layers at once
FEATURES = ("seen", "train_images", "test_images")  # fields that `features` has beside those of a dense network
PARTS = ("train", "select", "test")


def features(folder: Path, dense_folder: Path) -> Study:
    """The study of dense networks and the inputs of their last layers; both folders are `runs/<profile>`."""
    return Study("01_latent_kl.features", partial(cache_features, dense_folder=dense_folder), version=2, folder=folder)


def heads(folder: Path, dense_folder: Path) -> Study:
    """The study of last layers, compressed and fine-tuned."""
    trial = partial(prune_head, folder=folder, dense_folder=dense_folder)
    return Study("01_latent_kl.heads", trial, version=2, folder=folder)


def projections(folder: Path, dense_folder: Path) -> Study:
    """The study of last layers at prune time: other projections, and other directions of equal AP2."""
    trial = partial(project_head, folder=folder, dense_folder=dense_folder)
    return Study("01_latent_kl.projections", trial, version=2, folder=folder)


def layers(folder: Path, dense_folder: Path) -> Study:
    """The study of hidden layers, pruned, with the whole network fine-tuned around them."""
    return Study("01_latent_kl.layers", partial(prune_layer, dense_folder=dense_folder), version=2, folder=folder)


def tasks(folder: Path, dense_folder: Path) -> Study:
    """The study of heads that are carried from one task of another data set to the next."""
    trial = partial(transfer_heads, folder=folder, dense_folder=dense_folder)
    return Study("01_latent_kl.tasks", trial, version=1, folder=folder)


def feature_spec(spec: dict) -> dict:
    """The part of a trial's spec that `features` takes."""
    return baselines.dense_spec(spec) | {name: spec[name] for name in FEATURES if name in spec}


def head_inputs(model: nn.Module, split: Split, dataset: Data, device: str = "cpu") -> Tensor:
    """The inputs (images, features) of a network's head in evaluation mode, float32."""
    # Larger batches of 224 pixels do not fit in a processor's cache: they take twice as long, and gigabytes.
    batch = 10 if hasattr(model, "upsample") and not training.on_cuda(device) else 100
    with models.inputs_of(model.get_submodule(models.head_name(model))) as seen:
        for _ in training.logits(model, split, dataset, batch, device):
            pass
    return torch.cat([inputs.float().flatten(1) for inputs in seen]).clone()


def cache_features(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `features`: store the inputs and the weights of a dense network's last layer.

    The spec holds a dense network, `train_images` and `test_images` (0 = all, else the first ones), and optionally
    `seen`, another data set, which the network sees as it sees its own. Stored inputs take 4 bytes times images times
    features: 14 MB for 45,000 + 10,000 images and 64 features, 282 MB for 1280 features.

    A head that was not trained on the data set is *learnt* from zero (`head.learn_head`) at the rate of the smallest
    loss on the images that select: with `seen`, and on ImageNet weights.

    Returns:
        Shape of the head; `learning_lr` (0 for a head of the network's own); accuracy (%) and loss (nats) on three
        splits and the images in each (`train_n`); on the training images also the norm of the gradient by the weight,
        and the largest eigenvalue of the Hessian; `effective_number` of the weights.

    Raises:
        ValueError: if the data set has another number of channels than the network.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    if "seen" in spec:
        known = data.entry(spec["seen"])  # looked up before anything is downloaded
        if known["channels"] != dataset.channels:
            channels = f"{dataset.channels} channels, and {spec['seen']} has {known['channels']}"
            raise ValueError(f"{spec['network']} takes images of {channels}: let it see another data set.")
        seen = data.load(spec["seen"], device=device, seed=spec.get("seed", 0))
        dataset = replace(seen, mean=dataset.mean, std=dataset.std)
    kept = {}
    for part, split in zip(PARTS, _splits(dataset, spec), strict=True):
        kept |= {f"{part}_inputs": head_inputs(model, split, dataset, device), f"{part}_labels": split.labels}
    inputs, labels = kept["train_inputs"], kept["train_labels"]
    learns = "seen" in spec or _headless(spec)
    rate, weight, bias = _learnt(kept, dataset.classes) if learns else (0.0, *_head(model))
    row = {"classes": weight.shape[0], "inputs": weight.shape[1], "learning_lr": rate}
    for part in PARTS:
        accuracy, loss = evaluate_head(kept[f"{part}_inputs"], kept[f"{part}_labels"], weight, bias)
        row |= {
            f"dense_{part}_accuracy": accuracy,
            f"dense_{part}_loss": loss,
            f"{part}_n": len(kept[f"{part}_labels"]),
        }
    errors = head_probabilities(inputs, weight, bias) - nn.functional.one_hot(labels, len(weight))
    row["gradient_norm"] = (errors.T @ inputs / len(labels)).norm().item()
    row["hessian_max"] = head.head_hessian_max(inputs, weight, bias)
    row["effective_number"] = measures.effective_number(weight)
    kept |= {"weight": weight, "bias": bias}
    write_atomically(weights, safetensors.torch.save({name: value.cpu().contiguous() for name, value in kept.items()}))
    return row


def prune_head(spec: dict, device: str, weights: Path, *, folder: Path, dense_folder: Path) -> dict:
    """The trial of `heads`: compress the last layer, fine-tune it, record everything.

    The spec holds that of `features`; `trial`; `tuning_epochs`, `tuning_lr`, `tuning_batch`; `tuning_images`, the first
    ones of training (0 = all); `every_epoch`, whether to record all epochs or the first and the last; and one change:

    * `method` ("lowest", "highest", "random", or "none": the dense control), `fraction`, `structure` ("weights",
      "inputs", "classes", "n:m"), `mode` ("paper", "code"); with `steps_of_pruning` in several steps (`head.tune`);
    * `exponents` [gamma, delta] and `fraction`: `masks.drawn_mask`;
    * `exponents` [delta], `fraction` and `target`, the share of the squared norm to remove: `masks.matched_mask`;
    * `rank`: a truncated SVD, fine-tuned as two factors; or `bits`: quantised, fine-tuned straight-through.

    Returns:
        By `epoch`, of which 0 is compressed and not yet tuned, as lists: `ap2`; `ap2_to_last` from the last epoch's
        weight; `r2`, the squared distance of group means, and its `t_ap3`; the curvature measures of `moves`; accuracy
        (%) and loss (nats) on three splits; and the dense network's own. At epoch 0 also `measures.entry_divergences`,
        as `entry_*`. The numbers of `weights` and of those `removed`; the `gamma` of a matched mask.
    """
    cached = _cached(spec, device, folder, dense_folder)
    weight, bias = cached["weight"], cached["bias"]
    record, row = head.tune(cached["train_inputs"], cached["train_labels"], weight, bias, spec)
    epochs = range(len(record)) if spec["every_epoch"] else sorted({0, len(record) - 1})
    kept = [record[epoch] for epoch in epochs]
    aliased = spec.get("mode") == "code" and spec["method"] == "random"
    snapshots = [record[-1] if aliased else one for one in kept]
    row |= {"epoch": list(epochs), "weights": weight.numel()} | moves(cached, snapshots)
    row["ap2_to_last"] = [measures.ap2(record[-1][0], snapshot) for snapshot, _ in snapshots]
    row |= {f"entry_{name}": value for name, value in measures.entry_divergences(weight, kept[0][0]).items()}
    for part in PARTS:
        row |= _scores(cached, part, kept, f"{part}_")
    return row


def project_head(spec: dict, device: str, weights: Path, *, folder: Path, dense_folder: Path) -> dict:
    """The trial of `projections`: one pruned head at prune time, seen by other projections and beside its controls.

    The spec holds that of `features`, `method`, `fraction`, `trial`, `groups` (requested numbers of groups) and `draws`
    of each control.

    Returns:
        `hessian_max` at the pruned head; by number of groups, contiguous and shuffled, dimension, squared distance of
        means and t-AP3; for the pruning itself and for its controls of equal AP2 the measures of `moves`, the AP3 of
        the empirical Fisher, and accuracy (%) and loss (nats) on test and training images.
    """
    cached = _cached(spec, device, folder, dense_folder)
    weight, bias = cached["weight"], cached["bias"]
    mask = magnitude_mask(weight, spec["fraction"], spec["method"], generator(spec["trial"], "mask"))
    delta = weight - weight * mask
    some, stream = cached["train_inputs"][:CURVATURE_IMAGES], generator(spec["trial"], "controls")
    row = {
        "ap2": measures.ap2(weight, weight - delta),
        "hessian_max": head.head_hessian_max(some, weight - delta, bias),
    }
    shuffle = torch.randperm(delta.numel(), generator=stream).to(delta.device)
    for name, vector in (("contiguous", delta.flatten()), ("shuffled", delta.flatten()[shuffle])):
        means = [measures.group_means(vector, groups) for groups in spec["groups"]]
        row[f"{name}_dim"] = [len(mean) for mean in means]
        row[f"{name}_r2"] = [mean.square().sum().item() for mean in means]
        row[f"{name}_t_ap3"] = [measures.kl_student_t(mean.norm(), len(mean), DF).item() for mean in means]
    others = [("pruning", delta)]
    for _ in range(spec["draws"]):
        others.append(("random direction", measures.random_direction(delta, stream)))
        others.append(("random signs", measures.sign_flips(delta, stream)))
        others.append(("permuted places", measures.permute_pruned(delta, mask, stream)))
    row["control"] = [name for name, _ in others]
    moved = [(weight - other, bias) for _, other in others]
    row |= {f"control_{name}": values for name, values in moves(cached, moved).items()}
    row["control_empirical_ap3"] = [_weighted(cached["empirical"], weight - other) for other, _ in moved]
    for part in ("train", "test"):
        row |= _scores(cached, part, moved, f"control_{part}_")
    return row


def moves(cached: dict[str, Tensor], others: list[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """How far each of several heads (weight, bias) is from the dense one, on the training images.

    Returns:
        `ap2`; `r2` and `t_ap3` of group means; and, each half a quadratic form of the difference of the weights in a
        curvature of the dense head: `fisher_ap3` (diagonal, damped), `kfac_ap3`, `ggn_ap3` (the Hessian itself),
        `input_ap3` (mean squares of the inputs alone). `outputs_moved` is the mean squared change of the logits over
        their mean square.
    """
    weight, bias, inputs = (cached[name] for name in ("weight", "bias", "train_inputs"))
    logits = torch.addmm(bias, inputs, weight.T)
    probabilities, square = logits.softmax(1), logits.square().mean(dtype=torch.float64)
    means = torch.stack([measures.group_means(weight - other, GROUPS) for other, _ in others])
    found = {
        "ap2": [measures.ap2(weight, other) for other, _ in others],
        "r2": means.square().sum(1).tolist(),
        "t_ap3": measures.kl_student_t(means.norm(dim=1), means.shape[1], DF).tolist(),
    }
    names = ("fisher_ap3", "kfac_ap3", "ggn_ap3", "input_ap3", "outputs_moved")
    found |= {name: [] for name in names}
    for other, other_bias in others:
        delta = weight - other
        change = inputs @ delta.T
        first, second = ((probabilities * change**power).sum(1, dtype=torch.float64) for power in (1, 2))
        kfac = (cached["kfac_outputs"] @ delta @ cached["kfac_inputs"]).double()
        values = (
            _weighted(cached["curvature"], delta),
            0.5 * (kfac * delta).sum().item(),
            0.5 * (second - first.square()).mean().item(),
            _weighted(cached["rms"].square(), delta),
            ((change + bias - other_bias).square().mean(dtype=torch.float64) / square).item(),
        )
        for name, value in zip(names, values, strict=True):
            found[name].append(value)
    return found


def layer_names(model: nn.Module) -> list[str]:
    """Names of all convolutions and linear layers, in forward order; the head is the last one.

    The linear layers inside attention are left out: it takes their weights without calling them.
    """
    kinds, inside = nn.Conv2d | nn.Linear, NonDynamicallyQuantizableLinear
    return [n for n, module in model.named_modules() if isinstance(module, kinds) and not isinstance(module, inside)]


def hidden_layers(model: nn.Module, count: int) -> list[str]:
    """Names of `count` convolutions or linear layers before the head, evenly spaced from the first to the last."""
    names = [name for name in layer_names(model) if name != models.head_name(model)]
    places = torch.linspace(0, len(names) - 1, min(count, len(names))).round().int().tolist()
    return [names[place] for place in places]


def layer_masks(model: nn.Module, spec: dict) -> dict[str, Tensor]:
    """The mask of each layer that a spec of `prune_layer` prunes, by its name.

    Raises:
        ValueError: for an unknown scope, or if all layers are to lose anything but single weights.
    """
    if spec["method"] == "none":
        return {}
    stream = generator(spec["trial"], "mask")
    if "scope" not in spec:
        weight = model.get_submodule(spec["layer"]).weight.detach()
        return {spec["layer"]: head.structured_mask(weight, spec, stream)}
    if spec["scope"] not in SCOPES or spec["structure"] != "weights":
        asked = f"{spec['scope']} and {spec['structure']}"
        raise ValueError(f'scope must be one of {", ".join(SCOPES)} and structure "weights", not {asked}.')
    weights = {name: model.get_submodule(name).weight.detach() for name in layer_names(model)}
    if spec["scope"] == "uniform":
        return {name: head.structured_mask(weight, spec, stream) for name, weight in weights.items()}
    joined = torch.cat([weight.flatten() for weight in weights.values()])
    kept = magnitude_mask(joined, spec["fraction"], spec["method"], stream)
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}


def prune_layer(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `layers`: prune hidden layers, then fine-tune the whole network, whose masks stay.

    The spec holds a dense network; `method` ("lowest", "highest", "random", or "none": the dense control), `fraction`
    and `structure` ("weights", "filters"); `layer`, a module's name, or in its place `scope`: "network" prunes all
    layers, the head included, at one threshold, and "uniform" each by one fraction; `trial`, which draws masks, order
    and augmentation; `steps` of fine-tuning at the learning rate `rate` (cosine) with `tuning_batch` images, in
    `retraining_precision`; `test_images` (0 = all).

    Returns:
        Of the pruned layers, together, against the dense ones: `ap2`, `relative_ap2`, over their squared norm,
        `fisher_ap2`, weighted by the Fisher diagonal, and `outputs_moved`, the mean over these layers of the mean
        squared change of their outputs over its mean square; `inputs_moved`, that of the inputs of the head; the same
        after fine-tuning, as `tuned_*`. In the control the layers are all layers. By layer after the last pruned one
        (all layers, in the control and with `scope`): its name, `later_layers`, and after fine-tuning
        `later_relative_ap2` and `later_t_ap3`. Accuracy (%) and loss (nats) on test images: `dense_*`, `pruned_*`,
        `tuned_*`, each for `select` and `test`.

    Raises:
        ValueError: as `layer_masks`, for a network whose head is untrained, or if there are fewer training images than
            fine-tuning asks for.
    """
    if _headless(spec):
        raise ValueError(f"The head of {spec['network']} is untrained: take a network that 00_baselines trains.")
    dense = baselines.dense_spec(spec)
    model, dataset = baselines.baseline(dense, dense_folder, device)
    images = spec["steps"] * spec["tuning_batch"]
    if images > len(dataset.train):
        asked = (
            f"{spec['steps']} steps of {spec['tuning_batch']} images exceed the {len(dataset.train)} training images"
        )
        raise ValueError(f"{asked}: lower steps or tuning_batch.")
    _, *halves = _splits(dataset, {"train_images": 0} | spec)
    fisher = _fisher(json.dumps(dense, sort_keys=True), dense_folder, device)
    names, masks, pruned = layer_names(model), layer_masks(model, spec), copy.deepcopy(model)
    for name, mask in masks.items():
        prune.custom_from_mask(pruned.get_submodule(name), "weight", mask)
    compared = partial(_compared, model, pruned, list(masks) or names, fisher, halves, dataset, device)
    found, scores = compared()
    row = found | {f"{name}_{score}": value for name, one in scores.items() for score, value in one.items()}
    few = replace(dataset, train=dataset.train.first(images), validation=dataset.validation.first(1))
    options = {"lr": spec["rate"], "batch_size": spec["tuning_batch"], "seed": spec["trial"], "device": device}
    training.fit(pruned, few, epochs=1, precision=spec.get("retraining_precision", "float32"), **options)
    found, scores = compared()
    row |= {f"tuned_{name}": value for name, value in (found | scores["pruned"]).items()}
    later = names[names.index(spec["layer"]) + 1 :] if masks and "scope" not in spec else names
    pairs = [tuple(one.get_submodule(name).weight.detach() for one in (model, pruned)) for name in later]
    row["later_layers"] = later
    row["later_relative_ap2"] = [measures.ap2(*pair) / measures.ap2(pair[0], 0 * pair[0]) for pair in pairs]
    row["later_t_ap3"] = [measures.t_ap3(*pair, GROUPS, DF) for pair in pairs]
    return row


def transfer_heads(spec: dict, device: str, weights: Path, *, folder: Path, dense_folder: Path) -> dict:
    """The trial of `tasks`: heads of tasks of ten classes, and how far and how useful each is for each other task.

    The spec is that of `features` with `seen`, whose classes in order make the tasks. A head is learnt for each task
    (as in `cache_features`). To go from one task to another, the classes are matched one to one so that AP2 is least.

    Returns:
        By ordered pair of tasks, as lists: `from_task`, `to_task`; `ap2` of the two heads after matching, and
        `ap2_from_zero`, the squared norm of the head aimed at; on the test images of the second task `accuracy` (%) of
        the first head before fine-tuning and `loss_gap` (nats), its loss minus the second head's; `to_accuracy` of the
        second head; `steps`, the number of steps of fine-tuning at the second head's rate after which it is within
        REACHED points of that accuracy, and `steps_from_zero`, the same from zero, both TRANSFER_STEPS where that many
        are not enough.

    Raises:
        ValueError: if there are too few classes for two tasks.
    """
    cached = _cached(spec, device, folder, dense_folder)
    count = len(cached["weight"]) // TASK_CLASSES
    if count < 2:
        needed = f"{len(cached['weight'])} classes make {count} tasks of {TASK_CLASSES}"
        raise ValueError(f"{needed}, and a transfer needs two: let the network see cifar100.")
    chosen = [_task(cached, task) for task in range(count)]
    learnt = [_learnt(one, TASK_CLASSES) for one in chosen]
    zero = torch.zeros_like(learnt[0][1]), torch.zeros_like(learnt[0][2])
    rows = []
    for j, (one, (rate, weight, bias)) in enumerate(zip(chosen, learnt, strict=True)):
        accuracy, loss = evaluate_head(one["test_inputs"], one["test_labels"], weight, bias)
        aim = {"to_task": j, "to_accuracy": accuracy, "ap2_from_zero": measures.ap2(weight, zero[0])}
        aim["steps_from_zero"] = steps_to(one, zero, rate, accuracy - REACHED)
        for i, (_, other, other_bias) in enumerate(learnt):
            if i == j:
                continue
            match = linear_sum_assignment(torch.cdist(weight.double(), other.double()).square().cpu())[1]
            start = other[match], other_bias[match]
            before = evaluate_head(one["test_inputs"], one["test_labels"], *start)
            pair = {"from_task": i, "ap2": measures.ap2(weight, start[0]), "accuracy": before[0]}
            pair |= {"loss_gap": before[1] - loss, "steps": steps_to(one, start, rate, accuracy - REACHED)}
            rows.append(aim | pair)
    return {name: [row[name] for row in rows] for name in rows[0]}


def steps_to(cached: dict[str, Tensor], start: tuple[Tensor, Tensor], rate: float, accuracy: float) -> int:
    """Steps of SGD at a constant rate after which a head (weight, bias) first has this accuracy (%) on test images.

    0 where it has it from the start, and at most TRANSFER_STEPS.
    """
    form = masked(start[0], torch.ones_like(start[0], dtype=torch.bool))
    trained = [start[0].clone(), start[1].clone()]
    velocities, stream = [torch.zeros_like(part) for part in trained], generator(0, "transfer")
    train, test = ((cached[f"{part}_inputs"], cached[f"{part}_labels"]) for part in ("train", "test"))
    batches = iter(())
    for step in range(TRANSFER_STEPS):
        if evaluate_head(*test, *trained)[0] >= accuracy:
            return step
        if (batch := next(batches, None)) is None:
            order = torch.randperm(len(train[1]), generator=stream).to(train[1].device)
            batches = iter(order.split(head.LEARNING_BATCH))
            batch = next(batches)
        head.sgd_step(train[0][batch], train[1][batch], form, trained, velocities, rate)
    return TRANSFER_STEPS


def _task(cached: dict[str, Tensor], task: int) -> dict[str, Tensor]:
    """The stored inputs and labels, from 0, of the classes of one task."""
    chosen = {}
    for part in PARTS:
        labels = cached[f"{part}_labels"] - TASK_CLASSES * task
        own = (labels >= 0) & (labels < TASK_CLASSES)
        chosen |= {f"{part}_inputs": cached[f"{part}_inputs"][own], f"{part}_labels": labels[own]}
    return chosen


def _learnt(cached: dict[str, Tensor], classes: int) -> tuple[float, Tensor, Tensor]:
    """The learning rate, weight and bias of the head that is best on the images that select, of those learnt."""
    found = []
    for rate in head.LEARNING_LRS:
        with suppress(RuntimeError):  # one that diverges is not chosen
            learnt = head.learn_head(cached["train_inputs"], cached["train_labels"], classes, rate)
            loss = evaluate_head(cached["select_inputs"], cached["select_labels"], *learnt)[1]
            found.append((loss, rate, *learnt))
    return min(found, key=lambda one: one[0])[1:]


def _splits(dataset: Data, spec: dict) -> list[Split]:
    """Training images, and the two halves of the test images: every other one selects, the others report."""
    train, test = (
        s.first(spec[f"{p}_images"] or len(s)) for p, s in (("train", dataset.train), ("test", dataset.test))
    )
    return [train, *(Split(test.images[start::2], test.labels[start::2]) for start in (0, 1))]


def _headless(spec: dict) -> bool:
    """Whether a dense network has ImageNet weights alone, and a last layer that nothing has trained."""
    return spec["source"] == "public" and spec["network"].endswith("-pretrained")


def _head(model: nn.Module) -> tuple[Tensor, Tensor]:
    last = model.get_submodule(models.head_name(model))
    return last.weight.detach().float(), last.bias.detach().float()


def _weighted(curvature: Tensor, delta: Tensor) -> float:
    """Half of the squares of a difference, weighted by a curvature."""
    return 0.5 * (curvature * delta.double().square()).sum().item()


def _scores(cached: dict[str, Tensor], part: str, others: list[tuple[Tensor, Tensor]], prefix: str) -> dict:
    """Accuracies and losses of several heads on one split, as two lists, and those of the dense head."""
    inputs, labels = cached[f"{part}_inputs"], cached[f"{part}_labels"]
    dense = evaluate_head(inputs, labels, cached["weight"], cached["bias"])
    scores = zip(*(evaluate_head(inputs, labels, *other) for other in others), strict=True)
    row = {f"dense_{part}_accuracy": dense[0], f"dense_{part}_loss": dense[1]}
    return row | {f"{prefix}{name}": list(values) for name, values in zip(("accuracy", "loss"), scores, strict=True)}


def _compared(
    dense: nn.Module,
    pruned: nn.Module,
    names: list[str],
    fisher: dict[str, Tensor],
    halves: list[Split],
    dataset: Data,
    device: str,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """How far the named layers of a pruned network are from the dense one; accuracies and losses of both networks.

    Both see one batch after the other, so that no outputs have to be kept.
    """
    networks, seen = {"dense": dense, "pruned": pruned}, {"dense": {}, "pruned": {}}
    sums: dict[str, Tensor] = {}
    scores: dict[str, dict[str, float]] = {"dense": {}, "pruned": {}}
    with ExitStack() as hooks:
        for key, model in networks.items():
            for name in names:
                keep = lambda _, __, output, name=name, kept=seen[key]: kept.__setitem__(name, output)  # noqa: E731
                hooks.callback(model.get_submodule(name).register_forward_hook(keep).remove)
            keep = lambda _, inputs, kept=seen[key]: kept.__setitem__("inputs", inputs[0])  # noqa: E731
            last = model.get_submodule(models.head_name(model))
            hooks.callback(last.register_forward_pre_hook(keep).remove)
        for part, half in zip(PARTS[1:], halves, strict=True):
            logits: list[tuple[Tensor, ...]] = []
            both = (training.logits(model, half, dataset, device=device) for model in networks.values())
            for pair in zip(*both, strict=True):
                logits.append(pair)
                for name, output in seen["dense"].items():
                    change = (seen["pruned"][name] - output).square().sum(dtype=torch.float64)
                    square = output.square().sum(dtype=torch.float64)
                    sums[name] = sums.get(name, 0) + torch.stack([change, square])
            for key, outputs in zip(networks, zip(*logits, strict=True), strict=True):
                accuracy, loss = head.accuracy_and_loss(torch.cat(outputs), half.labels)
                scores[key] |= {f"{part}_accuracy": accuracy, f"{part}_loss": loss}
    moved = {name: (change / square).item() for name, (change, square) in sums.items()}
    pairs = [tuple(model.get_submodule(name).weight.detach() for model in networks.values()) for name in names]
    ap2 = sum(measures.ap2(*pair) for pair in pairs)
    curved = zip((fisher[name] for name in names), pairs, strict=True)
    return {
        "ap2": ap2,
        "relative_ap2": ap2 / sum(measures.ap2(weight, 0 * weight) for weight, _ in pairs),
        "fisher_ap2": sum(2 * _weighted(diagonal, one - two) for diagonal, (one, two) in curved),
        "outputs_moved": sum(moved[name] for name in names) / len(names),
        "inputs_moved": moved["inputs"],
    }, scores


@lru_cache(maxsize=4)
def _fisher(dense: str, dense_folder: Path, device: str) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of each layer's weight, with labels drawn from the network's own outputs."""
    model, dataset = baselines.baseline(json.loads(dense), dense_folder, device)
    names = layer_names(model)
    weights = [model.get_submodule(name).weight for name in names]
    totals, stream = [torch.zeros_like(weight) for weight in weights], generator(0, "labels of the Fisher information")
    images = dataset.train.first(FISHER_IMAGES)
    for image, _ in data.batches(images, 1):
        logits = model(data.normalise(image, dataset.mean, dataset.std))
        label = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=stream)[0].to(logits.device)
        gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, label), weights)
        for total, gradient in zip(totals, gradients, strict=True):
            total.add_(gradient.square(), alpha=1 / len(images))
    return dict(zip(names, totals, strict=True))


def _cached(spec: dict, device: str, folder: Path, dense_folder: Path) -> dict[str, Tensor]:
    """The tensors of `cache_features`, computed where they are missing."""
    return _loaded(features(folder, dense_folder).weights(feature_spec(spec), device), device)


@lru_cache(maxsize=2)
def _loaded(path: Path, device: str) -> dict[str, Tensor]:
    """The stored tensors, root mean squares of the inputs and curvatures of the dense head (training images)."""
    cached = safetensors.torch.load_file(path, device=device)
    inputs, labels, weight, bias = (cached[name] for name in ("train_inputs", "train_labels", "weight", "bias"))
    diagonals = {
        "curvature": head_hessian_diagonal(inputs, weight, bias),
        "empirical": head.head_empirical_fisher_diagonal(inputs, labels, weight, bias),
    }
    cached |= {name: 1 / measures.fisher_covariance(d).view_as(weight) for name, d in diagonals.items()}
    outputs, squares = head.head_kronecker_factors(inputs, weight, bias)
    return cached | {"kfac_outputs": outputs, "kfac_inputs": squares, "rms": squares.diagonal().sqrt()}
