"""The linear softmax head on cached features: evaluation, Hessian, fine-tuning of what pruning has left.

The trials of paper 1: features of dense networks cached once, heads pruned and fine-tuned on them; hidden layers.

Specs hold the spec of a dense network (`dense_networks.baseline_specs`) beside what is done to it.
"""

import copy
import math
from functools import lru_cache, partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lib import baselines as dense_networks
from lib import models, training
from lib.baselines import dense_spec
from lib.data import Data, Split
from lib.latent import measures
from lib.latent.measures import kl_student_t
from lib.masks import filter_mask, magnitude_mask, nm_mask
from lib.provenance import write_atomically
from lib.study import Study, generator


def evaluate_head(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """Accuracy in percent and mean cross-entropy in nats of a linear softmax head.

    features: (N, F). labels: (N,) in [0, C). weight: (C, F). bias: (C,). Raises ValueError for other shapes.
    Source: paper 1, Def 6: the gap of the second is D, that of the first is the PD of the experiments, in points.
    """
    _check_head(features, weight, bias, labels)
    logits = torch.addmm(bias, features, weight.T)
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    return accuracy, torch.nn.functional.cross_entropy(logits, labels).item()


def head_hessian_product(features: Tensor, weight: Tensor, bias: Tensor, vector: Tensor) -> Tensor:
    """Hessian of the mean cross-entropy of a softmax head by its weight, times a vector; exact, positive semi-definite.

    features: (N, F). weight, vector: (C, F). bias: (C,). The labels do not matter. Returns (C, F).
    Raises ValueError for other shapes. Source: paper 1, Lemma 2 (its Hessian).
    """
    _check_head(features, weight, bias)
    if vector.shape != weight.shape:
        raise ValueError(f"The vector must have the weight's shape {weight.shape}, not {vector.shape}.")
    return _hessian_product(features, _probabilities(features, weight, bias), vector)


def head_hessian_max(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    generator: torch.Generator,
    tolerance: float = 1e-4,
    iterations: int = 2000,
) -> float:
    """Largest eigenvalue of that Hessian, by power iteration from a random vector.

    features, weight, bias: as in `head_hessian_product`. generator: of the start. tolerance: relative residual
    |Hv - theta v| / theta of the unit vector v at which theta is returned; theta lies within it of an eigenvalue.
    Raises ValueError for other shapes, RuntimeError if the residual stays above the tolerance.
    Source: paper 1, Lemma 2 (its lambda_max).
    """
    _check_head(features, weight, bias)
    probabilities = _probabilities(features, weight, bias)
    vector = torch.randn(weight.shape, generator=generator, device=generator.device).to(weight)
    for _ in range(iterations):
        vector = vector / vector.norm()
        product = _hessian_product(features, probabilities, vector)
        value = (vector * product).sum()
        if (product - value * vector).norm() <= tolerance * value:
            return value.item()
        vector = product
    raise RuntimeError(f"No largest eigenvalue within {tolerance} after {iterations} iterations: raise iterations.")


def head_hessian_diagonal(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Diagonal of that Hessian, which for a softmax head is also the diagonal of the model Fisher information.

    Arguments and errors: as `head_hessian_product`. Returns (C, F), >= 0: mean of p (1 - p) x^2.
    Source: Optimal Brain Damage; this companion's curvature projection (`fisher_covariance`).
    """
    _check_head(features, weight, bias)
    probabilities = _probabilities(features, weight, bias)
    return (probabilities * (1 - probabilities)).T @ features.square() / len(features)


def head_empirical_fisher_diagonal(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Diagonal of the empirical Fisher: squared gradients at the given labels, mean of (p - y)^2 x^2.

    Arguments and errors: as `evaluate_head`. Returns (C, F). It is not the curvature (`head_hessian_diagonal`).
    Source: the usual stand-in for the Fisher information, kept here to show the difference.
    """
    _check_head(features, weight, bias, labels)
    errors = _probabilities(features, weight, bias) - torch.nn.functional.one_hot(labels, len(weight))
    return errors.square().T @ features.square() / len(features)


def finetune_head(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor,
    *,
    epochs: int,
    lr: float,
    batch: int,
    generator: torch.Generator,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> list[tuple[Tensor, Tensor]]:
    """Fine-tune a pruned softmax head on cached features: SGD, cosine learning rate by epoch, mean cross-entropy.

    features: (N, F). labels: (N,) in [0, C). weight: (C, F). bias: (C,), trained too. mask: bool (C, F), True =
    kept; pruned weights are exactly 0 throughout. epochs >= 0, lr > 0, batch >= 1 (the last may be smaller),
    generator: of the order of the examples. weight_decay: of the weight alone.
    Returns clones of (weight, bias) at epoch 0 (masked, not yet trained) and after each epoch; the inputs stay as
    they are. Raises ValueError outside these domains, RuntimeError if the weights diverge.
    Source: paper 1, section 5 (20 epochs, last layer only). Cached features leave out augmentation, dropout and
    BatchNorm drift.
    """
    _check_head(features, weight, bias, labels)
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"The mask must be bool of shape {tuple(weight.shape)}, not {mask.dtype}, {tuple(mask.shape)}."
        )
    if epochs < 0 or not lr > 0 or batch < 1:
        raise ValueError(f"Fine-tuning needs epochs >= 0, lr > 0 and batch >= 1, not {epochs}, {lr}, {batch}.")
    kept = mask.to(weight)
    weight, bias = weight.detach() * kept, bias.detach().clone()
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    record = [(weight.clone(), bias.clone())]
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        order = torch.randperm(len(labels), generator=generator, device=generator.device).to(features.device)
        for x, y in zip(features[order].split(batch), labels[order].split(batch), strict=True):
            errors = torch.addmm(bias, x, weight.T).softmax(1)
            errors.scatter_add_(1, y[:, None], errors.new_full((len(y), 1), -1.0)).div_(len(y))
            gradient = (errors.T @ x).add_(weight, alpha=weight_decay).mul_(kept)
            weight.sub_(weight_velocity.mul_(momentum).add_(gradient), alpha=rate)
            bias.sub_(bias_velocity.mul_(momentum).add_(errors.sum(0)), alpha=rate)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise RuntimeError(f"Fine-tuning diverged in epoch {epoch + 1}: lower lr, which is {lr}.")
        record.append((weight.clone(), bias.clone()))
    return record


def _check_head(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None = None) -> None:
    fits = features.dim() == weight.dim() == 2 and features.shape[1] == weight.shape[1] and len(features) > 0
    if not fits or bias.shape != weight.shape[:1] or (labels is not None and labels.shape != features.shape[:1]):
        raise ValueError(
            "A head needs features (N, F), weight (C, F), bias (C,) and labels (N,): flatten the features."
        )
    if labels is not None and not ((labels >= 0) & (labels < len(weight))).all():
        raise ValueError(f"Labels must lie in [0, {len(weight)}): pass the head of this data set.")


def _probabilities(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, features, weight.T).softmax(1)


def _hessian_product(features: Tensor, probabilities: Tensor, vector: Tensor) -> Tensor:
    directions = probabilities * (features @ vector.T)
    return (directions - probabilities * directions.sum(1, keepdim=True)).T @ features / len(features)


GROUPS, DF = 100, 4.0  # of the Student-t projection of paper 1
CURVATURE_IMAGES = 5000  # the Hessian at a pruned head is averaged over at most so many training images
NM_GROUP = 8  # inputs in a group of N:M pruning


def features(folder: Path, baselines: Path) -> Study:
    """The study of dense networks and the inputs of their last layers; both folders are `runs/<profile>`."""
    return Study("01_latent_kl.features", partial(cache_features, baselines=baselines), version=1, folder=folder)


def heads(folder: Path, baselines: Path) -> Study:
    """The study of last layers, pruned and fine-tuned."""
    trial = partial(prune_head, folder=folder, baselines=baselines)
    return Study("01_latent_kl.heads", trial, version=1, folder=folder)


def projections(folder: Path, baselines: Path) -> Study:
    """The study of last layers at prune time: other projections, and other directions of equal AP2."""
    trial = partial(project_head, folder=folder, baselines=baselines)
    return Study("01_latent_kl.projections", trial, version=1, folder=folder)


def layers(folder: Path, baselines: Path) -> Study:
    """The study of hidden layers, pruned, with the head fine-tuned behind them."""
    return Study("01_latent_kl.layers", partial(prune_layer, baselines=baselines), version=1, folder=folder)


def head_inputs(model: nn.Module, split: Split, dataset: Data, device: str = "cpu", batch_size: int = 100) -> Tensor:
    """What the last linear layer of a network sees, float32 (images, features), in evaluation mode."""
    seen: list[Tensor] = []
    head = model.get_submodule(models.head_name(model))
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float().flatten(1)))
    try:
        for _ in training.logits(model, split, dataset, batch_size, device):
            pass
    finally:
        hook.remove()
    return torch.cat(seen).clone()


def cache_features(spec: dict, device: str, weights: Path, *, baselines: Path) -> dict:
    """The trial of `features`: writes the inputs and the weights of a dense network's last layer.

    Args:
        spec: a dense network; `images` takes at most so many training images.

    Returns: shape of the head; accuracy (%) and loss (nats) on three splits; on the training images also the norm of
        the gradient by the weight, and the largest eigenvalue of the Hessian.
    """
    model, dataset = dense_networks.baseline(dense_spec(spec), baselines, device)
    head = model.get_submodule(models.head_name(model))
    weight, bias = head.weight.detach().float(), head.bias.detach().float()
    kept, row = {"weight": weight, "bias": bias}, {"classes": weight.shape[0], "inputs": weight.shape[1]}
    for part in ("train", "validation", "test"):
        split = getattr(dataset, part)
        if part == "train" and spec.get("images"):
            split = Split(split.images[: spec["images"]], split.labels[: spec["images"]])
        kept |= {f"{part}_inputs": head_inputs(model, split, dataset, device), f"{part}_labels": split.labels}
        accuracy, loss = evaluate_head(kept[f"{part}_inputs"], split.labels, weight, bias)
        row |= {f"dense_{part}_accuracy": accuracy, f"dense_{part}_loss": loss, f"{part}_images": len(split)}
    inputs, labels = kept["train_inputs"], kept["train_labels"]
    errors = torch.addmm(bias, inputs, weight.T).softmax(1) - nn.functional.one_hot(labels, len(weight))
    row["gradient_norm"] = (errors.T @ inputs / len(labels)).norm().item()
    row["hessian_max"] = _hessian_max(inputs, weight, bias)
    write_atomically(weights, safetensors.torch.save({name: value.cpu().contiguous() for name, value in kept.items()}))
    return row


def prune_head(spec: dict, device: str, weights: Path, *, folder: Path, baselines: Path) -> dict:
    """The trial of `heads`: prune the last layer in one shot, fine-tune it, record everything after each epoch.

    Args:
        spec: a dense network, and `method` ("lowest", "highest", "random", or "none": the dense control), `fraction`,
            `trial`, `structure` ("weights", "inputs", "classes", "n:m"), `mode` ("paper", "code"),
            `tuning_epochs`, `tuning_lr`, `tuning_batch`.

    Returns: by epoch, from 0 (pruned, not yet tuned): `ap2`; `ap2_to_last` from the last epoch's weight; `r2`, the
        squared distance of group means, and its `t_ap3`; `fisher_ap3`, half the curvature-weighted squares; accuracy
        (%) and loss (nats) on three splits; and the dense network's own.
    """
    cached = _cached(spec, device, folder, baselines)
    weight, bias = cached["weight"], cached["bias"]
    start, mask = pruned_head(weight, spec)
    options = {"epochs": spec["tuning_epochs"], "lr": spec["tuning_lr"], "batch": spec["tuning_batch"]}
    order = generator(spec["trial"], "order")
    record = finetune_head(
        cached["train_inputs"], cached["train_labels"], start, bias, mask, generator=order, **options
    )
    aliased = spec["mode"] == "code" and spec["method"] == "random"
    snapshots = [record[-1][0]] * len(record) if aliased else [snapshot for snapshot, _ in record]
    row = _measures(weight, snapshots, cached["curvature"])
    row["ap2_to_last"] = [measures.ap2(snapshots[-1], snapshot) for snapshot in snapshots]
    for part in ("train", "validation", "test"):
        inputs, labels = cached[f"{part}_inputs"], cached[f"{part}_labels"]
        scores = [evaluate_head(inputs, labels, *snapshot) for snapshot in record]
        dense = evaluate_head(inputs, labels, weight, bias)
        for name, values, reference in zip(("accuracy", "loss"), zip(*scores, strict=True), dense, strict=True):
            row |= {f"{part}_{name}": list(values), f"dense_{part}_{name}": reference}
    return row | {"removed": int((~mask).sum()), "weights": mask.numel()}


def pruned_head(weight: Tensor, spec: dict) -> tuple[Tensor, Tensor]:
    """The weight that fine-tuning starts from, and its mask, for a spec of `prune_head`."""
    if spec["method"] == "none":
        return weight, torch.ones_like(weight, dtype=torch.bool)
    if spec["mode"] == "code" and spec["method"] == "highest":
        return measures.prune_highest_code(weight, spec["fraction"])
    if spec["mode"] == "code" and spec["method"] == "random":
        mask = measures.random_mask_code(weight.shape, spec["fraction"]).to(weight.device)
    else:
        mask = structured_mask(weight, spec["fraction"], spec["method"], spec["structure"], spec["trial"])
    return weight * mask, mask


def structured_mask(weight: Tensor, fraction: float, method: str, structure: str, seed: int) -> Tensor:
    """A mask of single weights ("weights"), output rows ("classes", "filters"), input columns or "n:m" groups."""
    stream = generator(seed, "mask") if method == "random" else None
    if structure in ("classes", "filters"):
        return filter_mask(weight, fraction, method, generator=stream)
    if structure == "inputs":
        return filter_mask(weight.transpose(0, 1), fraction, method, generator=stream).transpose(0, 1).contiguous()
    if structure == "n:m":
        return nm_mask(weight, round((1 - fraction) * NM_GROUP), NM_GROUP, method, stream)
    return magnitude_mask(weight, fraction, method, stream)


def project_head(spec: dict, device: str, weights: Path, *, folder: Path, baselines: Path) -> dict:
    """The trial of `projections`: one pruned head at prune time, seen by other projections and beside its controls.

    Args:
        spec: a dense network, `method`, `fraction`, `trial`, `groups` (wished numbers of groups), `draws` of a control.

    Returns: `hessian_max` at the pruned head; by number of groups, contiguous and shuffled, dimension, squared distance
        of means and t-AP3; for the pruning itself and for its controls of equal AP2 the AP3 of curvature (exact and
        empirical Fisher), t-AP3, and accuracy (%) and loss (nats) on test and training images.
    """
    cached = _cached(spec, device, folder, baselines)
    weight, bias = cached["weight"], cached["bias"]
    mask = magnitude_mask(weight, spec["fraction"], spec["method"], generator(spec["trial"], "mask"))
    delta = weight - weight * mask
    some, stream = cached["train_inputs"][:CURVATURE_IMAGES], generator(spec["trial"], "controls")
    row = {"ap2": measures.ap2(weight, weight - delta), "hessian_max": _hessian_max(some, weight - delta, bias)}
    shuffle = torch.randperm(delta.numel(), generator=stream).to(delta.device)
    for name, vector in (("contiguous", delta.flatten()), ("shuffled", delta.flatten()[shuffle])):
        means = [measures.group_means(vector, groups) for groups in spec["groups"]]
        row[f"{name}_dim"] = [len(mean) for mean in means]
        row[f"{name}_r2"] = [mean.square().sum().item() for mean in means]
        row[f"{name}_t_ap3"] = [kl_student_t(mean.norm(), len(mean), DF).item() for mean in means]
    others = [("pruning", delta)]
    for _ in range(spec["draws"]):
        others.append(("random direction", measures.random_direction(delta, stream)))
        others.append(("random signs", measures.sign_flips(delta, stream)))
        others.append(("permuted places", measures.permute_pruned(delta, mask, stream)))
    row["control"] = [name for name, _ in others]
    moved = [weight - other for _, other in others]
    row |= {f"control_{name}": values for name, values in _measures(weight, moved, cached["curvature"]).items()}
    row["control_empirical_ap3"] = _measures(weight, moved, cached["empirical"])["fisher_ap3"]
    for part in ("train", "test"):
        inputs, labels = cached[f"{part}_inputs"], cached[f"{part}_labels"]
        scores = [evaluate_head(inputs, labels, other, bias) for other in moved]
        row[f"control_{part}_accuracy"], row[f"control_{part}_loss"] = (list(v) for v in zip(*scores, strict=True))
        row[f"dense_{part}_accuracy"], row[f"dense_{part}_loss"] = evaluate_head(inputs, labels, weight, bias)
    return row


def hidden_layers(model: nn.Module, count: int) -> list[str]:
    """Names of `count` convolutions or linear layers before the head, evenly spaced from the first to the last."""
    kinds = (nn.Conv2d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    names = [name for name in names if name != models.head_name(model)]
    places = torch.linspace(0, len(names) - 1, min(count, len(names))).round().int().tolist()
    return [names[place] for place in places]


def prune_layer(spec: dict, device: str, weights: Path, *, baselines: Path) -> dict:
    """The trial of `layers`: prune one hidden layer, look at the network at once, then fine-tune its head alone.

    Args:
        spec: as in `prune_head`, with `layer` (a module's name) and `images`, at most so many of training and of test;
            method "none" is the dense control.

    Returns: `ap2` of the layer, alone and over the layer's squared norm; `head_ap2` of the fine-tuned head against the
        dense one; `inputs_moved`, the mean squared distance of what the head sees over its mean square; accuracy (%)
        and loss (nats) on the test images: dense, at epoch 0 and after fine-tuning.
    """
    model, dataset = dense_networks.baseline(dense_spec(spec), baselines, device)
    train, test = (_first(split, spec["images"]) for split in (dataset.train, dataset.test))
    head = model.get_submodule(models.head_name(model))
    weight, bias = head.weight.detach().float(), head.bias.detach().float()
    before = head_inputs(model, test, dataset, device)
    row = dict(
        zip(("dense_test_accuracy", "dense_test_loss"), evaluate_head(before, test.labels, weight, bias), strict=True)
    )
    pruned = copy.deepcopy(model)
    row |= {"ap2": 0.0, "relative_ap2": 0.0}
    if spec["method"] != "none":
        layer = pruned.get_submodule(spec["layer"]).weight.data
        mask = structured_mask(layer, spec["fraction"], spec["method"], spec["structure"], spec["trial"])
        row["ap2"] = measures.ap2(layer, layer * mask)
        row["relative_ap2"] = row["ap2"] / measures.ap2(layer, 0 * layer)
        layer.mul_(mask)
    after = head_inputs(pruned, test, dataset, device)
    row["inputs_moved"] = ((after - before).square().sum() / before.square().sum()).item()
    everything = torch.ones_like(weight, dtype=torch.bool)
    options = {"epochs": spec["tuning_epochs"], "lr": spec["tuning_lr"], "batch": spec["tuning_batch"]}
    seen, order = head_inputs(pruned, train, dataset, device), generator(spec["trial"], "order")
    record = finetune_head(seen, train.labels, weight, bias, everything, generator=order, **options)
    row["head_ap2"] = measures.ap2(weight, record[-1][0])
    for name, snapshot in (("pruned", record[0]), ("tuned", record[-1])):
        accuracy, loss = evaluate_head(after, test.labels, *snapshot)
        row |= {f"{name}_test_accuracy": accuracy, f"{name}_test_loss": loss}
    return row


def _first(split: Split, images: int) -> Split:
    return Split(split.images[:images], split.labels[:images])


def _measures(weight: Tensor, others: list[Tensor], curvature: Tensor) -> dict[str, list[float]]:
    """AP2, squared distance of group means, t-AP3 and curvature AP3 of each of several weights."""
    means = torch.stack([measures.group_means(weight - other, GROUPS) for other in others])
    quadratic = [0.5 * (curvature * (weight.double() - other.double()).square()).sum().item() for other in others]
    return {
        "ap2": [measures.ap2(weight, other) for other in others],
        "r2": means.square().sum(1).tolist(),
        "t_ap3": kl_student_t(means.norm(dim=1), means.shape[1], DF).tolist(),
        "fisher_ap3": quadratic,
    }


def _hessian_max(inputs: Tensor, weight: Tensor, bias: Tensor) -> float:
    return head_hessian_max(inputs, weight, bias, generator=generator(0, "power iteration"), tolerance=1e-3)


def _cached(spec: dict, device: str, folder: Path, baselines: Path) -> dict[str, Tensor]:
    asked = dense_spec(spec) | ({"images": spec["images"]} if spec.get("images") else {})
    return _loaded(features(folder, baselines).weights(asked, device), device)


@lru_cache(maxsize=2)
def _loaded(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of `cache_features`, with two damped curvatures of the dense head (training images)."""
    cached = safetensors.torch.load_file(path, device=device)
    inputs, labels, weight, bias = (cached[name] for name in ("train_inputs", "train_labels", "weight", "bias"))
    diagonals = {
        "curvature": head_hessian_diagonal(inputs, weight, bias),
        "empirical": head_empirical_fisher_diagonal(inputs, labels, weight, bias),
    }
    return cached | {name: 1 / measures.fisher_covariance(d).view_as(weight) for name, d in diagonals.items()}
