"""Which weights a pruning method keeps: boolean masks (True = kept) over single weights, filters and N:M groups."""

import torch
from torch import Tensor

METHODS = ("lowest", "highest", "random")


def magnitude_mask(weight: Tensor, fraction: float, method: str, generator: torch.Generator | None = None) -> Tensor:
    """Mask of single weights, by magnitude or at random.

    weight: any shape, finite. fraction: share of weights to remove, in [0, 1); exactly round(fraction * numel)
    are removed, halves to even, as `torch.nn.utils.prune` rounds. method: "lowest" removes the lowest magnitudes,
    "highest" the highest, "random" a uniformly random set. generator: for "random" only.

    The removed sets of growing fractions are nested: ties go in storage order, and generators of one seed draw
    one removal order whatever the fraction. Returns a bool tensor like `weight`, True = kept.
    Raises ValueError for a fraction, method or weight outside these ranges, or "random" without a generator.
    Source: paper 1, section 5 (one-shot pruning); the released code's random masks are nested too.
    """
    return _kept(weight.abs().flatten(), fraction, method, generator).view(weight.shape)


def filter_mask(
    weight: Tensor, fraction: float, method: str = "lowest", order: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Mask that removes whole output rows (of a linear weight) or filters (of a convolution) by their norm.

    weight: (out, ...), finite. fraction: share of rows to remove, in [0, 1); exactly round(fraction * out) are
    removed. method, generator: as in `magnitude_mask`, applied to row norms. order: 1 or 2, the norm.
    Returns a bool tensor like `weight`. Raises ValueError as `magnitude_mask`, for another order, and for a vector.
    Source: paper 1, the claim about structured pruning (P1.14); the released code uses order 1. On a last layer
    the rows are classes.
    """
    if weight.dim() < 2 or order not in (1, 2):
        raise ValueError(
            f"Filters need a weight of 2 or more dimensions and order 1 or 2, not {weight.dim()}, {order}."
        )
    norms = torch.linalg.vector_norm(weight.double().flatten(1), order, dim=1)
    kept = _kept(norms, fraction, method, generator)
    return kept.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape).clone()


def nm_mask(
    weight: Tensor, kept: int, group: int, method: str = "lowest", generator: torch.Generator | None = None
) -> Tensor:
    """N:M mask: in each `group` consecutive inputs of an output, `kept` weights stay.

    weight: (out, in, ...), `in` divisible by `group`; groups run along the inputs (channels of a convolution).
    kept: 1 to group. method, generator: as in `magnitude_mask`, within each group.
    Returns a bool tensor like `weight`. Raises ValueError for shapes, counts or methods outside these ranges.
    Source: paper 1, the claim about structured pruning (P1.14).
    """
    if weight.dim() < 2 or not 1 <= kept <= group or weight.shape[1] % group:
        raise ValueError(
            f"N:M needs 1 <= kept <= group and inputs divisible by group, not {kept}:{group} on {weight.shape}."
        )
    inputs_last = weight.abs().movedim(1, -1)
    mask = _kept(inputs_last.unflatten(-1, (-1, group)), (group - kept) / group, method, generator)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def _kept(score: Tensor, fraction: float, method: str, generator: torch.Generator | None) -> Tensor:
    """True where an entry of `score` stays when `fraction` of its last dimension is removed."""
    if not 0 <= fraction < 1:
        raise ValueError(f"The fraction to remove must lie in [0, 1), not {fraction}.")
    if not score.isfinite().all():
        raise ValueError("A weight to prune must be finite: the run that trained it diverged, lower its learning rate.")
    if method == "random":
        if generator is None:
            raise ValueError('Method "random" needs a torch.Generator: pass generator.')
        removal_order = torch.rand(score.shape, dtype=torch.float64, generator=generator, device=generator.device)
        removal_order = removal_order.argsort(dim=-1).to(score.device)
    elif method in METHODS:
        removal_order = score.argsort(dim=-1, descending=method == "highest", stable=True)
    else:
        raise ValueError(f"Unknown pruning method {method!r}: use one of {', '.join(METHODS)}.")
    removed = removal_order[..., : round(fraction * score.shape[-1])]
    return torch.ones_like(score, dtype=torch.bool).scatter(-1, removed, False)
