"""A head alone, the linear softmax classifier (C, F) that ends a network: curvature, compression, fine-tuning.

Its inputs (N, F) are the features that the rest of the network computes, so that none of this needs the network.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.latent import measures
from lib.masks import drawn_mask, filter_mask, magnitude_mask, matched_mask, nm_mask
from lib.study import generator

NM_GROUP = 8  # inputs in a group of N:M pruning
LEARNING_EPOCHS, LEARNING_BATCH = (
    50,
    128,
)  # of a head that is learnt from zero: fewer epochs leave it far from its optimum
LEARNING_LRS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # the images that select choose the one of the smallest loss


class Compressed(NamedTuple):
    """A compressed weight that can be fine-tuned: a function of parts, and the gradients of these from its own."""

    parts: list[Tensor]
    weight: Callable[[list[Tensor]], Tensor]
    gradients: Callable[[list[Tensor], Tensor], list[Tensor]]


def masked(weight: Tensor, mask: Tensor) -> Compressed:
    """A weight whose removed entries (False in the mask) are exactly 0 throughout."""
    kept = mask.to(weight)
    return Compressed([weight.detach() * kept], lambda parts: parts[0], lambda _, gradient: [gradient * kept])


def factored(weight: Tensor, rank: int) -> Compressed:
    """The truncated SVD of a weight, fine-tuned as two factors, between which the singular values are shared equally.

    Raises:
        ValueError: if the rank is not in 1 ... min(C, F).
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must be from 1 to {min(weight.shape)}, not {rank}.")
    left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    roots = values[:rank].sqrt()
    parts = [left[:, :rank] * roots, roots[:, None] * right[:rank]]
    return Compressed(parts, lambda p: p[0] @ p[1], lambda p, gradient: [gradient @ p[1].T, p[0].T @ gradient])


def quantised(weight: Tensor, bits: int) -> Compressed:
    """A weight in uniform symmetric levels, 2^bits - 1 for each output row, the outermost at its largest magnitude.

    It is fine-tuned straight-through: the gradient by the quantised weight moves the weight behind it, and the levels
    stay.

    Raises:
        ValueError: if there are fewer than 2 bits or more than 16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must be from 2 to 16, not {bits}.")
    largest = 2 ** (bits - 1) - 1
    step = weight.detach().abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / largest

    def rounded(parts: list[Tensor]) -> Tensor:
        return (parts[0] / step).round_().clamp_(-largest, largest).mul_(step)

    return Compressed([weight.detach().clone()], rounded, lambda _, gradient: [gradient])


def compressed(weight: Tensor, rms: Tensor, spec: dict) -> tuple[Compressed, dict]:
    """The head that fine-tuning starts from for a spec of `trials.prune_head`, and what belongs in its row.

    `rms` (F,) are root mean squares of the inputs, on which the chances of `exponents` may depend.
    """
    if "rank" in spec:
        return factored(weight, spec["rank"]), {}
    if "bits" in spec:
        return quantised(weight, spec["bits"]), {}
    start, mask, found = pruned_head(weight, rms, spec)
    return masked(start, mask), {"removed": int((~mask).sum())} | found


def pruned_head(weight: Tensor, rms: Tensor, spec: dict) -> tuple[Tensor, Tensor, dict]:
    """The weight that fine-tuning starts from, its mask, and the `gamma` of a matched mask.

    Raises:
        ValueError: for a wrong number of exponents, and as the masks do.
    """
    stream = generator(spec["trial"], "mask")
    if "exponents" in spec and len(spec["exponents"]) != 2 - ("target" in spec):
        needed = "delta alone, since gamma is found" if "target" in spec else "gamma and delta"
        raise ValueError(f"exponents must hold {needed}, not {spec['exponents']}.")
    if "target" in spec:
        (delta,) = spec["exponents"]
        mask, gamma = matched_mask(weight, rms, spec["fraction"], delta, spec["target"], stream)
        return weight * mask, mask, {"gamma": gamma}
    if "exponents" in spec:
        mask = drawn_mask(weight, rms, spec["fraction"], spec["exponents"], stream)
    elif spec["method"] == "none":
        mask = torch.ones_like(weight, dtype=torch.bool)
    elif spec["mode"] == "code" and spec["method"] == "highest":
        return *measures.prune_highest_code(weight, spec["fraction"]), {}
    elif spec["mode"] == "code" and spec["method"] == "random":
        mask = measures.random_mask_code(weight.shape, spec["fraction"]).to(weight.device)
    else:
        mask = structured_mask(weight, spec, stream)
    return weight * mask, mask, {}


def structured_mask(weight: Tensor, spec: dict, stream: torch.Generator) -> Tensor:
    """The mask of single weights, output rows ("classes", "filters"), "inputs" (columns) or "n:m" groups."""
    fraction, method = spec["fraction"], spec["method"]
    match spec["structure"]:
        case "classes" | "filters":
            return filter_mask(weight, fraction, method, generator=stream)
        case "inputs":
            return filter_mask(weight.transpose(0, 1), fraction, method, generator=stream).transpose(0, 1).contiguous()
        case "n:m":
            return nm_mask(weight, round((1 - fraction) * NM_GROUP), NM_GROUP, method, stream)
    return magnitude_mask(weight, fraction, method, stream)


def evaluate_head(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """Accuracy in per cent and mean cross-entropy in nats of a head.

    Source: paper 1, Def 6: the gap of the loss is D, that of the accuracy is the PD of the experiments, in points.
    """
    return accuracy_and_loss(torch.addmm(bias, inputs, weight.T), labels)


def accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in per cent and mean cross-entropy in nats of logits (N, C)."""
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


def head_kronecker_factors(inputs: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The factors S (C, C), mean of diag p - p p', and A (F, F), mean of x x', of the K-FAC form of that Hessian.

    Source: Martens and Grosse 2015: the product of means in place of the mean of Kronecker products.
    """
    probabilities = head_probabilities(inputs, weight, bias)
    outputs = probabilities.mean(0).diag() - probabilities.T @ probabilities / len(inputs)
    return outputs, inputs.T @ inputs / len(inputs)


def finetune_head(
    inputs: Tensor,
    labels: Tensor,
    start: Compressed,
    bias: Tensor,
    *,
    epochs: int,
    lr: float,
    batch: int,
    stream: torch.Generator,
) -> list[tuple[Tensor, Tensor]]:
    """Fine-tune a compressed head on its inputs: SGD with momentum 0.9, cosine rate by epoch, mean cross-entropy.

    The bias is trained, too. The last batch may be smaller; `stream` draws the order.

    Returns:
        Copies of (weight, bias) at epoch 0 (compressed, not yet trained) and after each epoch.

    Raises:
        RuntimeError: if the weights diverge.

    Source: paper 1, section 5 (20 epochs, last layer only). Fixed inputs leave out augmentation, dropout and drifting
    batch statistics.
    """
    parts, bias = [part.clone() for part in start.parts], bias.detach().clone()
    trained = [*parts, bias]
    velocities = [torch.zeros_like(part) for part in trained]
    record = [(start.weight(parts).clone(), bias.clone())]
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        order = torch.randperm(len(labels), generator=stream).to(inputs.device)
        for x, y in zip(*(part[order].split(batch) for part in (inputs, labels)), strict=True):
            sgd_step(x, y, start, trained, velocities, rate)
        if not all(part.isfinite().all() for part in trained):
            raise RuntimeError(f"Fine-tuning diverged in epoch {epoch + 1}: lower lr, which is {lr}.")
        record.append((start.weight(parts).clone(), bias.clone()))
    return record


def sgd_step(
    x: Tensor, y: Tensor, form: Compressed, trained: list[Tensor], velocities: list[Tensor], rate: float
) -> None:
    """One step, in place, on a batch of inputs and labels; `trained` are the parts of a form and then the bias."""
    *parts, bias = trained
    errors = head_probabilities(x, form.weight(parts), bias)
    errors.scatter_add_(1, y[:, None], errors.new_full((len(y), 1), -1.0)).div_(len(y))
    gradients = [*form.gradients(parts, errors.T @ x), errors.sum(0)]
    for part, velocity, gradient in zip(trained, velocities, gradients, strict=True):
        part.sub_(velocity.mul_(0.9).add_(gradient), alpha=rate)


def learn_head(inputs: Tensor, labels: Tensor, classes: int, lr: float) -> tuple[Tensor, Tensor]:
    """Weight (C, F) and bias (C,) of a head that is learnt from zero, as `finetune_head` tunes one.

    Nothing is standardised: pruning would then see other weights than the network has.
    """
    weight = inputs.new_zeros(classes, inputs.shape[1])
    start, options = masked(weight, torch.ones_like(weight, dtype=torch.bool)), {"stream": generator(0, "learning")}
    options |= {"epochs": LEARNING_EPOCHS, "batch": LEARNING_BATCH, "lr": lr}
    return finetune_head(inputs, labels, start, weight.new_zeros(classes), **options)[-1]


def tune(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, spec: dict) -> tuple[list, dict]:
    """Compress and fine-tune a dense head as a spec of `trials.prune_head` says; the record, and what its row adds.

    With `steps_of_pruning` k > 1 each of k steps removes one share of the weights that are left, lowest magnitudes
    first, and is fine-tuned for 1/k of the epochs, with a cosine rate of its own; momentum starts anew.

    Raises:
        ValueError: if k does not divide the epochs, or if k steps are asked of anything but the lowest single weights.
    """
    steps, epochs, n = spec.get("steps_of_pruning", 1), spec["tuning_epochs"], spec["tuning_images"] or len(labels)
    if steps > 1 and (epochs % steps or (spec.get("method"), spec.get("structure")) != ("lowest", "weights")):
        raise ValueError(
            f'{steps} steps of pruning need method "lowest", structure "weights" and a multiple of epochs.'
        )
    rms, stream = inputs.square().mean(0).sqrt(), generator(spec["trial"], "order")
    options = {"epochs": epochs // steps, "lr": spec["tuning_lr"], "batch": spec["tuning_batch"], "stream": stream}
    record = []
    for step in range(1, steps + 1):
        share = {"fraction": 1 - (1 - spec["fraction"]) ** (step / steps)} if step < steps else {}
        start, found = compressed(weight, rms, spec | share)
        one = finetune_head(inputs[:n], labels[:n], start, bias, **options)
        record += one[1:] if record else one
        weight, bias = record[-1]
    return record, found
