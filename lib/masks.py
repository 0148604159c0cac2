"""Which weights a pruning method keeps: boolean masks (True = kept) over single weights, filters and N:M groups.

Each method removes the "lowest" or the "highest" scores, or "random" ones, for which it needs a generator. The removed
sets of growing fractions are nested: ties go in storage order, and generators of one seed draw one removal order
whatever the fraction. Every mask is a bool tensor of the weight's shape. A weight that is not finite, an unknown method
and numbers outside their range raise ValueError.

Source: paper 1, section 5 (one-shot pruning) and its claim about structured pruning (P1.14).
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

METHODS = ("lowest", "highest", "random")
MATCHED = 1e-3  # relative error of the squared norm that a matched mask removes
STEEPEST = 2.0**30  # largest exponent on magnitudes that is tried: it orders weights as the magnitude alone


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


def drawn_mask(
    weight: Tensor, rms: Tensor, fraction: float, exponents: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Remove single weights of a (out, in) layer at random, with chances proportional to |w|^gamma rms_j^delta.

    `exponents` are gamma, from "lowest" (to minus infinity) over "random" (0) to "highest", and delta, on the root mean
    square `rms` (in,) of each input. Exactly round(fraction * numel) are drawn one after another without replacement. A
    weight or an input that is 0 counts as the smallest one that is not.

    Source: Efraimidis and Spirakis 2006: the largest log chances plus Gumbel noise.
    """
    gamma, delta = exponents
    log_magnitude, others = _log_chances(weight, rms, delta, generator)
    return _kept(gamma * log_magnitude + others, fraction, "highest", None).view(weight.shape)


def matched_mask(
    weight: Tensor, rms: Tensor, fraction: float, delta: float, target: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """A drawn mask that removes a given share of the squared norm, within MATCHED of it; also its gamma.

    For one draw of the noise the share grows with gamma, which bisection finds. Where single weights are too coarse
    for that, a removed and a kept weight are exchanged. So masks of one `fraction` and `target` remove equally many
    weights and equal AP2, in other places for another `delta` or generator.

    Raises:
        ValueError: if no mask of this fraction removes that share.
    """
    squares = weight.detach().double().square().flatten()
    log_magnitude, others = _log_chances(weight, rms, delta, generator)
    count, total = round(fraction * len(squares)), squares.sum()
    ordered, wanted = squares.sort().values, target * total

    def drawn(gamma: float) -> tuple[Tensor, float]:
        kept = _kept(gamma * log_magnitude + others, fraction, "highest", None)
        return kept, (squares[~kept].sum() - wanted).item()

    limits = [((part.sum() / total).item()) for part in (ordered[:count], ordered[len(ordered) - count :])]
    if not limits[0] * (1 - MATCHED) <= target <= limits[1] * (1 + MATCHED):
        reach = f"{count} of {len(squares)} weights hold from {limits[0]:.4g} to {limits[1]:.4g} of the squared norm"
        raise ValueError(f"A target of {target:.4g} is out of reach, since {reach}: choose one between.")
    low, high = -1.0, 1.0
    while drawn(low)[1] > 0 and low > -STEEPEST:
        low *= 2
    while drawn(high)[1] < 0 and high < STEEPEST:
        high *= 2
    for _ in range(60):
        gamma = (low + high) / 2
        kept, excess = drawn(gamma)
        if abs(excess) <= MATCHED * wanted:
            break
        low, high = (gamma, high) if excess < 0 else (low, gamma)
    while abs(excess) > MATCHED * wanted:
        removed, left = (~kept).nonzero().flatten(), kept.nonzero().flatten()
        left = left[squares[left].argsort()]
        place = torch.searchsorted(squares[left], squares[removed] - excess)
        nearest = torch.stack([place - 1, place]).clamp(0, len(left) - 1)
        off = (squares[left][nearest] - squares[removed] + excess).abs()
        side, one = divmod(off.argmin().item(), len(removed))
        if off[side, one] >= abs(excess):
            raise ValueError(f"No mask was found that removes {target:.4g} of the squared norm: choose another target.")
        kept[removed[one]], kept[left[nearest[side, one]]] = True, False
        excess = (squares[~kept].sum() - wanted).item()
    return kept.view(weight.shape), gamma


def permanent(model: nn.Module) -> nn.Module:
    """A copy of a network whose masks (`torch.nn.utils.prune`) and parametrizations have become plain weights.

    The network itself keeps them. A copy of a network without any is a plain copy.
    """
    leaves = {}  # what a mask or an old weight norm computes is no leaf, so that deepcopy refuses it
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                leaves[id(value)] = value.detach().clone()
    copy = deepcopy(model, leaves)
    for module in copy.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        if parametrize.is_parametrized(module):
            own = type(module)  # a copy shares its class with the network, and removing changes the class
            module.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return copy


def _log_chances(weight: Tensor, rms: Tensor, delta: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The logarithm of magnitudes, and the rest of the logarithm of the chances with Gumbel noise; flat, float64."""
    if weight.dim() != 2 or rms.shape != weight.shape[1:]:
        raise ValueError(f"rms must hold one value for each input of a (out, in) weight, not {tuple(rms.shape)}.")

    def positive_log(values: Tensor) -> Tensor:
        if not values.isfinite().all() or not (values > 0).any():
            raise ValueError("Weights and inputs must be finite and not all 0 for chances to be proportional to them.")
        return values.clamp(min=values[values > 0].min()).log()

    uniform = _uniform(weight.shape, generator).clamp(min=torch.finfo(torch.float64).tiny)  # it may be 0
    gumbel = -(-uniform.log()).log()
    others = delta * positive_log(rms.double()) + gumbel.to(weight.device)
    return positive_log(weight.detach().double().abs()).flatten(), others.flatten()


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    if not isinstance(generator, torch.Generator):
        raise ValueError("A random mask needs a torch.Generator: pass generator.")
    return torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)


def _kept(score: Tensor, fraction: float, method: str, generator: torch.Generator | None) -> Tensor:
    """True where an entry of `score` stays when `fraction` of its last dimension is removed."""
    if not 0 <= fraction < 1:
        raise ValueError(f"The fraction to remove must be in [0, 1), not {fraction}.")
    if not score.isfinite().all():
        raise ValueError("A weight to prune must be finite: the run that trained it diverged, lower its learning rate.")
    if method == "random":
        removal_order = _uniform(score.shape, generator).argsort(dim=-1).to(score.device)
    elif method in METHODS:
        removal_order = score.argsort(dim=-1, descending=method == "highest", stable=True)
    else:
        raise ValueError(f"Unknown pruning method {method!r}: use one of {', '.join(METHODS)}.")
    removed = removal_order[..., : round(fraction * score.shape[-1])]
    return torch.ones_like(score, dtype=torch.bool).scatter(-1, removed, False)
