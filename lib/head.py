"""The linear softmax head on cached features: evaluation, Hessian, fine-tuning of what pruning has left."""

import math

import torch
from torch import Tensor


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
