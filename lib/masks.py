"""Which weights a pruning method keeps: boolean masks (True = kept) over single weights, filters and N:M groups.

Each method removes the "lowest" or the "highest" scores, or "random" ones, for which it needs a generator. The removed
sets of growing fractions are nested: ties go in storage order, and generators of one seed draw one removal order
whatever the fraction. Every mask is a bool tensor of the weight's shape. A weight that is not finite, an unknown method
and numbers outside their range raise ValueError.

Source: paper 1, section 5 (one-shot pruning) and its claim about structured pruning (P1.14).
"""

import torch
from torch import Tensor

METHODS = ("lowest", "highest", "random")


def magnitude_mask(weight: Tensor, fraction: float, method: str, generator: torch.Generator | None = None) -> Tensor:
    """Remove single weights by magnitude or at random.

    `fraction` is a share in [0, 1); exactly round(fraction * numel) are removed, halves to even, as
    `torch.nn.utils.prune` rounds.

    Source: paper 1, section 5; the released code's random masks are nested, too.
    """
    return _kept(weight.abs().flatten(), fraction, method, generator).view(weight.shape)


def filter_mask(
    weight: Tensor, fraction: float, method: str = "lowest", order: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Remove whole output rows of a weight (out, ...), which are filters of a convolution, by their norm.

    Exactly round(fraction * out) rows are removed. The `order` of the norm is 1, as in the released code, or 2. On a
    last layer the rows are classes.
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
    """Keep `kept` of every `group` consecutive inputs (channels of a convolution) of each output of (out, in, ...)."""
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
        raise ValueError(f"The fraction to remove must be in [0, 1), not {fraction}.")
    if not score.isfinite().all():
        raise ValueError("A weight to prune must be finite: the run that trained it diverged, lower its learning rate.")
    if method == "random":
        if not isinstance(generator, torch.Generator):
            raise ValueError('Method "random" needs a torch.Generator: pass generator.')
        removal_order = torch.rand(score.shape, dtype=torch.float64, generator=generator, device=generator.device)
        removal_order = removal_order.argsort(dim=-1).to(score.device)
    elif method in METHODS:
        removal_order = score.argsort(dim=-1, descending=method == "highest", stable=True)
    else:
        raise ValueError(f"Unknown pruning method {method!r}: use one of {', '.join(METHODS)}.")
    removed = removal_order[..., : round(fraction * score.shape[-1])]
    return torch.ones_like(score, dtype=torch.bool).scatter(-1, removed, False)
