"""The trials of paper 1: inputs of last layers stored once, heads pruned and fine-tuned on them, hidden layers pruned.

A spec holds that of a dense network (`baselines.baseline_specs`) and the changes to it. The head is the linear softmax
classifier (C, F) that ends a network, and its inputs (N, F) are the features that the rest of the network computes.
"""

import copy
import math
from functools import lru_cache, partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lib import baselines, models, training
from lib.data import Data, Split
from lib.latent import measures
from lib.masks import filter_mask, magnitude_mask, nm_mask
from lib.provenance import write_atomically
from lib.study import Study, generator

GROUPS, DF = 100, 4.0  # of the Student-t projection of paper 1
CURVATURE_IMAGES = 5000  # the Hessian at a pruned head is averaged over at most this number of training images
NM_GROUP = 8  # inputs in a group of N:M pruning


def features(folder: Path, dense_folder: Path) -> Study:
    """The study of dense networks and the inputs of their last layers; both folders are `runs/<profile>`."""
    return Study("01_latent_kl.features", partial(cache_features, dense_folder=dense_folder), version=1, folder=folder)


def heads(folder: Path, dense_folder: Path) -> Study:
    """The study of last layers, pruned and fine-tuned."""
    trial = partial(prune_head, folder=folder, dense_folder=dense_folder)
    return Study("01_latent_kl.heads", trial, version=1, folder=folder)


def projections(folder: Path, dense_folder: Path) -> Study:
    """The study of last layers at prune time: other projections, and other directions of equal AP2."""
    trial = partial(project_head, folder=folder, dense_folder=dense_folder)
    return Study("01_latent_kl.projections", trial, version=1, folder=folder)


def layers(folder: Path, dense_folder: Path) -> Study:
    """The study of hidden layers, pruned, with the head fine-tuned behind them."""
    return Study("01_latent_kl.layers", partial(prune_layer, dense_folder=dense_folder), version=1, folder=folder)


def evaluate_head(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """Accuracy in per cent and mean cross-entropy in nats of a head.

    Source: paper 1, Def 6: the gap of the loss is D, that of the accuracy is the PD of the experiments, in points.
    """
    logits = torch.addmm(bias, inputs, weight.T)
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    return accuracy, nn.functional.cross_entropy(logits, labels).item()


def head_probabilities(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The class probabilities (N, C) of a head."""
    return torch.addmm(bias, inputs, weight.T).softmax(1)


def head_hessian_product(inputs: Tensor, probabilities: Tensor, vector: Tensor) -> Tensor:
    """Hessian of a head's mean cross-entropy by its weight (paper 1, Lemma 2), times a vector (C, F); exact."""
    directions = probabilities * (inputs @ vector.T)
    return (directions - probabilities * directions.sum(1, keepdim=True)).T @ inputs / len(inputs)


def head_hessian_max(
    inputs: Tensor, weight: Tensor, bias: Tensor, tolerance: float = 1e-3, iterations: int = 2000
) -> float:
    """Largest eigenvalue of that Hessian, within a relative tolerance, by power iteration from a random vector.

    Raises:
        RuntimeError: if the residual of the eigenvector stays above the tolerance.

    Source: paper 1, Lemma 2 (its lambda_max).
    """
    probabilities = head_probabilities(inputs, weight, bias)
    vector = torch.randn(weight.shape, generator=generator(0, "power iteration")).to(weight)
    for _ in range(iterations):
        vector = vector / vector.norm()
        product = head_hessian_product(inputs, probabilities, vector)
        value = (vector * product).sum()
        if (product - value * vector).norm() <= tolerance * value:
            return value.item()
        vector = product
    raise RuntimeError(f"No largest eigenvalue within {tolerance} after {iterations} iterations: raise iterations.")


def head_hessian_diagonal(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Diagonal (C, F) of that Hessian, mean of p (1 - p) x^2, which is also that of the model Fisher information.

    Source: Optimal Brain Damage; this companion's curvature projection (`fisher_covariance`).
    """
    probabilities = head_probabilities(inputs, weight, bias)
    return (probabilities * (1 - probabilities)).T @ inputs.square() / len(inputs)


def head_empirical_fisher_diagonal(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Diagonal (C, F) of the empirical Fisher, mean of (p - y)^2 x^2, the usual stand-in; it is not the curvature."""
    errors = head_probabilities(inputs, weight, bias) - nn.functional.one_hot(labels, len(weight))
    return errors.square().T @ inputs.square() / len(inputs)


def finetune_head(
    inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, spec: dict
) -> list[tuple[Tensor, Tensor]]:
    """Fine-tune a pruned head on its inputs: SGD with momentum 0.9, cosine learning rate by epoch, mean cross-entropy.

    Pruned weights (False in the mask) are exactly 0 throughout; the bias is trained, too. The spec holds
    `tuning_epochs`, `tuning_lr`, `tuning_batch` (the last batch may be smaller) and `trial`, which draws the order.
    The result holds copies of (weight, bias) at epoch 0 (masked, not yet trained) and after each epoch.

    Raises:
        RuntimeError: if the weights diverge.

    Source: paper 1, section 5 (20 epochs, last layer only). Fixed inputs leave out augmentation, dropout and drifting
    batch statistics.
    """
    epochs, lr = spec["tuning_epochs"], spec["tuning_lr"]
    stream, kept = generator(spec["trial"], "order"), mask.to(weight)
    weight, bias = weight.detach() * kept, bias.detach().clone()
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    record = [(weight.clone(), bias.clone())]
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        order = torch.randperm(len(labels), generator=stream).to(inputs.device)
        for x, y in zip(*(part[order].split(spec["tuning_batch"]) for part in (inputs, labels)), strict=True):
            errors = head_probabilities(x, weight, bias)
            errors.scatter_add_(1, y[:, None], errors.new_full((len(y), 1), -1.0)).div_(len(y))
            weight.sub_(weight_velocity.mul_(0.9).add_((errors.T @ x).mul_(kept)), alpha=rate)
            bias.sub_(bias_velocity.mul_(0.9).add_(errors.sum(0)), alpha=rate)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise RuntimeError(f"Fine-tuning diverged in epoch {epoch + 1}: lower lr, which is {lr}.")
        record.append((weight.clone(), bias.clone()))
    return record


def head_inputs(model: nn.Module, split: Split, dataset: Data, device: str = "cpu") -> Tensor:
    """The inputs (images, features) of a network's head in evaluation mode, float32."""
    with models.inputs_of(model.get_submodule(models.head_name(model))) as seen:
        for _ in training.logits(model, split, dataset, 100, device):
            pass
    return torch.cat([inputs.float().flatten(1) for inputs in seen]).clone()


def cache_features(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `features`: store the inputs and the weights of a dense network's last layer.

    The spec holds a dense network alone.

    Returns:
        Shape of the head; accuracy (%) and loss (nats) on three splits; on the training images also the norm of the
        gradient by the weight, and the largest eigenvalue of the Hessian.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    weight, bias = _head(model)
    kept, row = {"weight": weight, "bias": bias}, {"classes": weight.shape[0], "inputs": weight.shape[1]}
    for part in ("train", "validation", "test"):
        split = getattr(dataset, part)
        kept |= {f"{part}_inputs": head_inputs(model, split, dataset, device), f"{part}_labels": split.labels}
        accuracy, loss = evaluate_head(kept[f"{part}_inputs"], split.labels, weight, bias)
        row |= {f"dense_{part}_accuracy": accuracy, f"dense_{part}_loss": loss, f"{part}_images": len(split)}
    inputs, labels = kept["train_inputs"], kept["train_labels"]
    errors = head_probabilities(inputs, weight, bias) - nn.functional.one_hot(labels, len(weight))
    row["gradient_norm"] = (errors.T @ inputs / len(labels)).norm().item()
    row["hessian_max"] = head_hessian_max(inputs, weight, bias)
    write_atomically(weights, safetensors.torch.save({name: value.cpu().contiguous() for name, value in kept.items()}))
    return row


def prune_head(spec: dict, device: str, weights: Path, *, folder: Path, dense_folder: Path) -> dict:
    """The trial of `heads`: prune the last layer in one shot, fine-tune it, record everything after each epoch.

    The spec holds a dense network, `method` ("lowest", "highest", "random", or "none": the dense control), `fraction`,
    `trial`, `structure` ("weights", "inputs", "classes", "n:m"), `mode` ("paper", "code"), `tuning_epochs`, `tuning_lr`
    and `tuning_batch`.

    Returns:
        By epoch, from 0 (pruned, not yet tuned): `ap2`; `ap2_to_last` from the last epoch's weight; `r2`, the squared
        distance of group means, and its `t_ap3`; `fisher_ap3`, half the curvature-weighted squares; accuracy (%) and
        loss (nats) on three splits; and the dense network's own.
    """
    cached = _cached(spec, device, folder, dense_folder)
    weight, bias = cached["weight"], cached["bias"]
    start, mask = pruned_head(weight, spec)
    record = finetune_head(cached["train_inputs"], cached["train_labels"], start, bias, mask, spec)
    aliased = spec["mode"] == "code" and spec["method"] == "random"
    snapshots = [record[-1][0]] * len(record) if aliased else [snapshot for snapshot, _ in record]
    row = _measures(weight, snapshots, cached["curvature"])
    row["ap2_to_last"] = [measures.ap2(snapshots[-1], snapshot) for snapshot in snapshots]
    for part in ("train", "validation", "test"):
        row |= _scores(cached, part, record, f"{part}_")
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
        mask = structured_mask(weight, spec)
    return weight * mask, mask


def structured_mask(weight: Tensor, spec: dict) -> Tensor:
    """The mask of single weights, output rows ("classes", "filters"), "inputs" (columns) or "n:m" groups."""
    fraction, method = spec["fraction"], spec["method"]
    stream = generator(spec["trial"], "mask") if method == "random" else None
    match spec["structure"]:
        case "classes" | "filters":
            return filter_mask(weight, fraction, method, generator=stream)
        case "inputs":
            return filter_mask(weight.transpose(0, 1), fraction, method, generator=stream).transpose(0, 1).contiguous()
        case "n:m":
            return nm_mask(weight, round((1 - fraction) * NM_GROUP), NM_GROUP, method, stream)
    return magnitude_mask(weight, fraction, method, stream)


def project_head(spec: dict, device: str, weights: Path, *, folder: Path, dense_folder: Path) -> dict:
    """The trial of `projections`: one pruned head at prune time, seen by other projections and beside its controls.

    The spec holds a dense network, `method`, `fraction`, `trial`, `groups` (requested numbers of groups) and `draws` of
    each control.

    Returns:
        `hessian_max` at the pruned head; by number of groups, contiguous and shuffled, dimension, squared distance of
        means and t-AP3; for the pruning itself and for its controls of equal AP2 the AP3 of curvature (exact and
        empirical Fisher), t-AP3, and accuracy (%) and loss (nats) on test and training images.
    """
    cached = _cached(spec, device, folder, dense_folder)
    weight, bias = cached["weight"], cached["bias"]
    mask = magnitude_mask(weight, spec["fraction"], spec["method"], generator(spec["trial"], "mask"))
    delta = weight - weight * mask
    some, stream = cached["train_inputs"][:CURVATURE_IMAGES], generator(spec["trial"], "controls")
    row = {"ap2": measures.ap2(weight, weight - delta), "hessian_max": head_hessian_max(some, weight - delta, bias)}
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
    moved = [weight - other for _, other in others]
    row |= {f"control_{name}": values for name, values in _measures(weight, moved, cached["curvature"]).items()}
    row["control_empirical_ap3"] = _measures(weight, moved, cached["empirical"])["fisher_ap3"]
    for part in ("train", "test"):
        row |= _scores(cached, part, [(other, bias) for other in moved], f"control_{part}_")
    return row


def hidden_layers(model: nn.Module, count: int) -> list[str]:
    """Names of `count` convolutions or linear layers before the head, evenly spaced from the first to the last."""
    kinds = (nn.Conv2d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    names = [name for name in names if name != models.head_name(model)]
    places = torch.linspace(0, len(names) - 1, min(count, len(names))).round().int().tolist()
    return [names[place] for place in places]


def prune_layer(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `layers`: prune one hidden layer, evaluate the network at once, then fine-tune its head alone.

    The spec is that of `prune_head` without `mode`, with `layer` (a module's name) and `images`, the largest number of
    training and of test images; method "none" is the dense control.

    Returns:
        `ap2` of the layer, alone and over the layer's squared norm; `head_ap2` of the fine-tuned head against the dense
        one; `inputs_moved`, the mean squared change of the head's inputs over their mean square; accuracy (%) and loss
        (nats) on the test images: dense, at epoch 0 and after fine-tuning.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    n = spec["images"]
    train, test = (Split(split.images[:n], split.labels[:n]) for split in (dataset.train, dataset.test))
    weight, bias = _head(model)
    before = head_inputs(model, test, dataset, device)
    pruned, row = copy.deepcopy(model), {"ap2": 0.0, "relative_ap2": 0.0}
    if spec["method"] != "none":
        layer = pruned.get_submodule(spec["layer"]).weight.data
        mask = structured_mask(layer, spec)
        row["ap2"] = measures.ap2(layer, layer * mask)
        row["relative_ap2"] = row["ap2"] / measures.ap2(layer, 0 * layer)
        layer.mul_(mask)
    after = head_inputs(pruned, test, dataset, device)
    row["inputs_moved"] = ((after - before).square().sum() / before.square().sum()).item()
    seen = head_inputs(pruned, train, dataset, device)
    record = finetune_head(seen, train.labels, weight, bias, torch.ones_like(weight, dtype=torch.bool), spec)
    row["head_ap2"] = measures.ap2(weight, record[-1][0])
    evaluated = {"dense": (before, (weight, bias)), "pruned": (after, record[0]), "tuned": (after, record[-1])}
    for name, (inputs, head) in evaluated.items():
        row[f"{name}_test_accuracy"], row[f"{name}_test_loss"] = evaluate_head(inputs, test.labels, *head)
    return row


def _head(model: nn.Module) -> tuple[Tensor, Tensor]:
    head = model.get_submodule(models.head_name(model))
    return head.weight.detach().float(), head.bias.detach().float()


def _scores(cached: dict[str, Tensor], part: str, others: list[tuple[Tensor, Tensor]], prefix: str) -> dict:
    """Accuracies and losses of several heads on one split, as two lists, and those of the dense head."""
    inputs, labels = cached[f"{part}_inputs"], cached[f"{part}_labels"]
    dense = evaluate_head(inputs, labels, cached["weight"], cached["bias"])
    scores = zip(*(evaluate_head(inputs, labels, *head) for head in others), strict=True)
    row = {f"dense_{part}_accuracy": dense[0], f"dense_{part}_loss": dense[1]}
    return row | {f"{prefix}{name}": list(values) for name, values in zip(("accuracy", "loss"), scores, strict=True)}


def _measures(weight: Tensor, others: list[Tensor], curvature: Tensor) -> dict[str, list[float]]:
    """AP2, squared distance of group means, t-AP3 and curvature AP3 of each of several weights."""
    means = torch.stack([measures.group_means(weight - other, GROUPS) for other in others])
    squares = [curvature * (weight.double() - other.double()).square() for other in others]
    return {
        "ap2": [measures.ap2(weight, other) for other in others],
        "r2": means.square().sum(1).tolist(),
        "t_ap3": measures.kl_student_t(means.norm(dim=1), means.shape[1], DF).tolist(),
        "fisher_ap3": [0.5 * square.sum().item() for square in squares],
    }


def _cached(spec: dict, device: str, folder: Path, dense_folder: Path) -> dict[str, Tensor]:
    """The tensors of `cache_features`, computed where they are missing."""
    return _loaded(features(folder, dense_folder).weights(baselines.dense_spec(spec), device), device)


@lru_cache(maxsize=2)
def _loaded(path: Path, device: str) -> dict[str, Tensor]:
    """The stored tensors, with two damped curvatures of the dense head (training images)."""
    cached = safetensors.torch.load_file(path, device=device)
    inputs, labels, weight, bias = (cached[name] for name in ("train_inputs", "train_labels", "weight", "bias"))
    diagonals = {
        "curvature": head_hessian_diagonal(inputs, weight, bias),
        "empirical": head_empirical_fisher_diagonal(inputs, labels, weight, bias),
    }
    return cached | {name: 1 / measures.fisher_covariance(d).view_as(weight) for name, d in diagonals.items()}
