"""How far pruning moves a layer: AP2, AP3 and other divergences, what they bound, controls, released code's defects.

All functions raise ValueError, in a sentence that names the argument, for what is outside their domain: NaN, infinite
values, empty tensors, unequal shapes, negative distances, covariances that are not positive definite, a missing
generator. Divergences are in nats. Tensors of any real type are summed in float64, and no gradient goes through.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import integrate, stats
from scipy.spatial.distance import jensenshannon
from torch import Tensor, distributions

from lib.masks import magnitude_mask

Values = Tensor | float
BLOCK = 2**18  # entries of a difference that are computed at a time, so that they stay in the processor's cache
BINS = 100  # of the histograms of entries
PSEUDOCOUNT = 0.5  # added to each bin before a KL is taken (Jeffreys' prior), so that an empty bin costs no infinity
KL_LIMIT = 1.9  # the released code scales the largest KL to this value, so that it stays below the 2 of Lemma 2

# Quadrature of the Student-t KL. The integrand is analytic in a strip of half-width pi / 2, so a trapezoid of step h
# errs by exp(-pi^2 / h) (1e-17); the tails are cut where they fall below exp(-34) (2e-15) of the integral.
STEP = 0.25
TAIL = 34.0


def ap2(weight: Tensor, pruned: Tensor) -> float:
    """Squared Euclidean distance of two weight tensors of one shape, in float64; biases do not belong to it.

    Source: paper 1, Def 1 with the identity projection.
    """
    return _reduced(*_flat(weight=weight, pruned=pruned), lambda part: part.square_().sum()[None]).sum().item()


def group_means(vector: Tensor, groups: int = 100) -> Tensor:
    """Means, float64, of consecutive groups of a flattened tensor: the location of the Student-t projection.

    A group has d // groups of the d entries, so there may be more groups than requested and a shorter last one
    (d = 20,480: 101 groups). For d < groups each entry is a group; there the released code stops.

    Source: paper 1, section 5.3, and the released code's slices.
    """
    (flat,) = _finite(vector=vector)
    return _means(flat, _group_size(len(flat), groups))


def t_ap3(weight: Tensor, pruned: Tensor, groups: int = 100, df: float = 4) -> float:
    """AP3 of the Student-t projection of group means with identity scale, in nats.

    Its dimension is the actual number of groups (`group_means`), `df` the degrees of freedom.

    Source: paper 1, section 5.3 and Def 2.
    """
    flat = _flat(weight=weight, pruned=pruned)
    size = _group_size(len(flat[0]), groups)
    means = _reduced(*flat, lambda part: _means(part, size), size)
    return kl_student_t(means.norm(), len(means), df).item()


def kl_gaussian(mean_p: Tensor, covariance_p: Values, mean_q: Tensor, covariance_q: Values) -> float:
    """Forward KL(P||Q) of two Gaussians, in float64 through Cholesky factors.

    Means have d entries. A covariance is a scalar c for cI, variances (d,), or a matrix (d, d); the forms may differ.

    Source: paper 1, Def 2 with the Gaussian projection. The paper prints the reverse, `kl_gaussian_printed`.
    """
    delta = _delta(mean_p, mean_q)
    p, q = _covariances(delta, covariance_p=covariance_p, covariance_q=covariance_q)
    if p.dim() == 1:
        return 0.5 * (p / q - 1 - (p / q).log() + delta**2 / q).sum().clamp(min=0).item()
    log_ratio = 2 * (q.diagonal().log() - p.diagonal().log()).sum()
    whitened = torch.linalg.solve_triangular(q, torch.column_stack([p, delta]), upper=False)
    return 0.5 * (log_ratio + whitened.square().sum() - len(delta)).clamp(min=0).item()


def kl_gaussian_printed(mean_p: Tensor, covariance_p: Values, mean_q: Tensor, covariance_q: Values) -> float:
    """The closed form that paper 1 prints for KL(P||Q), which is KL(Q||P); arguments as `kl_gaussian`.

    Source: paper 1, Gaussian projection: (log|P|/|Q| + tr(P^-1 Q) + delta' P^-1 delta - d) / 2 (erratum).
    """
    kl_gaussian(mean_p, covariance_p, mean_q, covariance_q)  # refuses what is wrong under the name that it has here
    return kl_gaussian(mean_q, covariance_q, mean_p, covariance_p)


def wasserstein_gaussian(mean_p: Tensor, covariance_p: Values, mean_q: Tensor, covariance_q: Values) -> float:
    """2-Wasserstein distance of two Gaussians, in the unit of the means; arguments as `kl_gaussian`.

    For equal covariances its square is AP2; otherwise the Bures term tr(P + Q - 2 (P^1/2 Q P^1/2)^1/2) is added.

    Source: extension of this companion; standard closed form.
    """
    delta = _delta(mean_p, mean_q)
    p, q = _covariances(delta, covariance_p=covariance_p, covariance_q=covariance_q)
    if p.dim() == 1:
        bures = (p.sqrt() - q.sqrt()).square().sum()
    else:
        roots = torch.linalg.svdvals(q.T @ p)
        bures = (p.square().sum() + q.square().sum() - 2 * roots.sum()).clamp(min=0)
    return (delta.square().sum() + bures).sqrt().item()


def mahalanobis(mean_p: Tensor, mean_q: Tensor, covariance: Values) -> float:
    """M = sqrt(delta' covariance^-1 delta), which orders all equal-covariance divergences but the Wasserstein distance.

    Source: paper 1, Gaussian projection: KL = M^2 / 2.
    """
    delta = _delta(mean_p, mean_q)
    (sigma,) = _covariances(delta, covariance=covariance)
    if sigma.dim() == 1:
        return (delta / sigma.sqrt()).norm().item()
    return torch.linalg.solve_triangular(sigma, delta[:, None], upper=False).norm().item()


def equal_covariance_divergences(distance: Values) -> dict[str, Tensor]:
    """Divergences of two Gaussians of equal covariance by their Mahalanobis distance M (any shape).

    The Renyi divergence is of order 1/2; squared Hellinger and total variation are in [0, 1], Jensen-Shannon in
    [0, ln 2]. All increase with M. Rank by M, since in float64 total variation is 1 from M = 17.

    Source: extension of this companion (standard closed forms, Jensen-Shannon by quadrature); the paper has the KL.
    """
    m = _nonnegative(distance=distance)
    # Jensen-Shannon is the mean of h(t), t = M (x + M / 2), x standard normal; h(t) = ln 2 minus the entropy of a coin
    # of log-odds t. Of two equal forms of h the first loses all digits for large t, the second for small t.
    x = torch.linspace(-10, 10, 401, dtype=torch.float64, device=m.device)
    density = torch.exp(-(x**2) / 2)
    t = (m[..., None] * (x + m[..., None] / 2)).abs()
    u, e = torch.tanh(t / 2), torch.exp(-t)
    h = torch.where(t < 1, (torch.log1p(-(u**2)) + u * t) / 2, math.log(2) - torch.log1p(e) - t * e / (1 + e))
    return {
        "kl": m**2 / 2,
        "jeffreys": m**2,
        "renyi": m**2 / 4,
        "bhattacharyya": m**2 / 8,
        "squared_hellinger": -torch.expm1(-(m**2) / 8),
        "total_variation": torch.erf(m / math.sqrt(8)),
        "jensen_shannon": (h * density).sum(-1) / density.sum(),
    }


def kl_student_t(distance: Values, dim: int, df: float) -> Tensor:
    """KL of two multivariate Student-t distributions of one scale matrix S and one number of degrees of freedom.

    The double integral over log(a / b) = int (e^-sb - e^-sa) / s ds and the mixing G ~ Gamma(df / 2) has a
    one-dimensional form: put s = v df G / 2, integrate G out, then w = v / (1 + v), and with a = (df + d) / 2
    KL = a int_0^1 (1 - w)^(a - 1) (1 - (1 + w (1 - w) r^2 / df)^(-df / 2)) dw / w.

    Args:
        distance: r = sqrt(delta' S^-1 delta) of the locations, any shape.
        dim: d, number of coordinates.
        df: degrees of freedom.

    Returns:
        One value for each distance, exact to 1e-12 relative for r up to 1e3, d up to 1e5, df in 1 ... 1e6.

    Source: paper 1, section 5.3, which estimates it by Monte Carlo (`kl_student_t_monte_carlo`).
    """
    r = _nonnegative(distance=distance)
    _check_positive(dim=dim, df=df)
    a = (df + dim) / 2
    low = -TAIL - math.log(max(a, 1)) - 2 * math.log(max(r.max().item() if r.numel() else 1, 1))
    high = math.log(math.expm1(TAIL / a))
    nodes = torch.arange(math.floor(low / STEP), math.ceil(high / STEP) + 1, dtype=torch.float64, device=r.device)
    log_kept = torch.nn.functional.logsigmoid(-STEP * nodes)  # log(1 - w)
    log_product = log_kept + torch.nn.functional.logsigmoid(STEP * nodes)  # log(w (1 - w))
    shrunk = torch.expm1(-df / 2 * torch.log1p(log_product.exp() * (r.flatten()[:, None] ** 2 / df)))
    return (-a * STEP * (shrunk @ (a * log_kept).exp())).view(r.shape)


def kl_student_t_monte_carlo(
    mean_p: Tensor, mean_q: Tensor, df: float, *, draws: int, seed: int
) -> tuple[float, float]:
    """Monte Carlo estimate, and its standard error, of the KL of two Student-t distributions with identity scale.

    Source: paper 1, section 5.3. The released code draws from the pruned side; by symmetry the value is the same.
    """
    _check_positive(df=df)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}.")
    means = _finite(mean_p=mean_p, mean_q=mean_q)
    p, q = (stats.multivariate_t(mean.cpu().numpy(), np.eye(len(mean)), df) for mean in means)
    x = p.rvs(draws, random_state=seed)
    ratio = p.logpdf(x) - q.logpdf(x)
    return float(ratio.mean()), float(ratio.std(ddof=1) / math.sqrt(draws))


def entry_divergences(weight: Tensor, pruned: Tensor) -> dict[str, float]:
    """Divergences of two tensors of one shape as populations of all their entries, whatever the places of these.

    The zeros of removed weights are entries of the pruned tensor like others. Both tensors need two different entries.

    Returns:
        KLs in nats, original first, of distributions fitted to both:
        `kl_gaussian`, with their means and variances;
        `kl_laplace`, with their medians (0 where half of the entries are zeros) and mean distances from these;
        `kl_student_t`, with their means, variances and degrees of freedom 4 + 6 / excess kurtosis, at most 1e6 + 4,
        which is Gaussian. Tails of fewer than 4 degrees of freedom are not told apart, but maximum likelihood (scipy's
        `t.fit`) has no solution for pruned tensors: with a share z of zeros the likelihood grows without bound as the
        scale shrinks, for any degrees of freedom below z / (1 - z);
        `kl_histogram`, of counts in 100 equal bins over the range of both, half an entry added to each. Where pruning
        empties bins it grows with the logarithm of the number of entries: compare tensors of one size.
        And `jensen_shannon`, in [0, ln 2], of these counts as they are; `wasserstein`, the exact 1-Wasserstein
        distance of the entries, in their unit.

    Source: extension of this companion; the paper leaves other families and divergences open (section 5.4).
    """
    flat = _finite(weight=weight, pruned=pruned)
    for name, entries in zip(("weight", "pruned"), flat, strict=True):
        if entries.min() == entries.max():
            raise ValueError(f"{name} must have two different entries: no distribution can be fitted to one value.")
    p, q = (entries.sort().values.cpu().numpy() for entries in flat)
    limits = min(p[0], q[0]), max(p[-1], q[-1])
    counts = [np.histogram(entries, BINS, limits)[0] for entries in (p, q)]
    laplace = [distributions.Laplace(*torch.tensor(stats.laplace.fit(one), dtype=torch.float64)) for one in (p, q)]
    gaussian = [torch.tensor([[moment(one)] for moment in (np.mean, np.var)], dtype=torch.float64) for one in (p, q)]
    return {
        "kl_gaussian": kl_gaussian(*gaussian[0], *gaussian[1]),
        "kl_laplace": distributions.kl_divergence(*laplace).clamp(min=0).item(),
        "kl_student_t": _kl_of_student_t_fits(p, q),
        "kl_histogram": max(float(stats.entropy(*(count + PSEUDOCOUNT for count in counts))), 0.0),
        "jensen_shannon": float(jensenshannon(*counts) ** 2),
        "wasserstein": float(np.abs(p - q).mean()),
    }


def effective_number(scores: Tensor) -> float:
    """Number of components that matter, in [1, N]: 1 / sum p^2 with p = |score| / sum |score|; not all scores are 0.

    Source: effective model pruning (arXiv 2509.25606). Only this formula is known first-hand, not which scores the
    paper takes, its bound on the loss or its experiments.
    """
    (flat,) = _finite(scores=scores)
    _check_positive(sum_of_magnitudes=flat.abs().sum().item())
    return 1 / (flat.abs() / flat.abs().sum()).square().sum().item()


def effective_sparsity(weight: Tensor) -> float:
    """Share of weights, in [0, 1), beyond their `effective_number`, magnitudes being scores; 1 - 2 / pi for a Gaussian.

    Source: as `effective_number`; that weights score by magnitude is this companion's choice.
    """
    (flat,) = _finite(weight=weight)
    return 1 - effective_number(flat) / len(flat)


def precision_range(covariance: Values) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the inverse of a covariance, in any form that `kl_gaussian` takes.

    Source: paper 1, Gaussian projection (its lambda_min and lambda_max of the inverse).
    """
    sigma = torch.as_tensor(covariance, dtype=torch.float64)
    if sigma.dim() == 2:
        eigenvalues = torch.linalg.svdvals(_cholesky(covariance=sigma)).square()
    else:
        eigenvalues = _variances(covariance=sigma)
    return 1 / eigenvalues.max().item(), 1 / eigenvalues.min().item()


def total_variation_lower_bound(squared_distance: Values, trace_p: Values, trace_q: Values) -> Tensor:
    """Lower bound on the total variation of any two distributions, from their means and covariance traces.

    It is attained by P with masses 1 - t and t at 0 and 1, and Q with the same at 0 and -1: total variation t.

    Source: paper 1, Lemma 1: a'a / (2 (tr P + tr Q) + a'a) with a'a the squared distance of the means.
    """
    squared = _nonnegative(squared_distance=squared_distance)
    return squared / (_doubled(trace_p, trace_q) + squared)


def recovered_squared_distance(kl: Values, trace_p: Values, trace_q: Values) -> Tensor:
    """Largest squared distance of means that a KL (nats) allows, whatever the distributions; infinite from 2 on.

    Source: paper 1, Lemma 1 and Corollary 1 solved for AP2: 2 (tr P + tr Q) t / (1 - t), t = sqrt(kl / 2).
    """
    t = (_nonnegative(kl=kl) / 2).sqrt().clamp(max=1)
    return _doubled(trace_p, trace_q) * t / (1 - t)


def performance_bound(kl: Values, hessian_max: float, trace_p: Values, trace_q: Values) -> Tensor:
    """Bound g(epsilon) on the loss gap of Def 6 from the last layer's KL; infinite from 2 on.

    It needs the largest eigenvalue of the loss Hessian and the traces of both covariances, which for Student-t are
    d df / (df - 2).

    Source: paper 1, Lemma 2, with Y = 1 and its unspecified constant C = 2 (tr P + tr Q), which the derivation gives.
    """
    _check_positive(hessian_max=hessian_max)
    return hessian_max / 2 * recovered_squared_distance(kl, trace_p, trace_q)


def gaussian_performance_bound(kl: Values, hessian_max: float, precision_min: float, printed: bool = False) -> Tensor:
    """Bound on the loss gap of Def 6 from a KL in nats, for Gaussians of equal covariance.

    It is hessian_max * kl / precision_min, from the largest eigenvalue of the loss Hessian and the smallest of the
    inverse covariance. As printed it is hessian_max / 2 * sqrt(2 kl / precision_min) and fails where
    2 kl > precision_min.

    Source: paper 1, Corollary 2 (erratum).
    """
    _check_positive(hessian_max=hessian_max, precision_min=precision_min)
    kl = _nonnegative(kl=kl)
    return hessian_max / 2 * (2 * kl / precision_min).sqrt() if printed else hessian_max * kl / precision_min


def nondiagonal_precision_code(dim: int, generator: torch.Generator) -> Tensor:
    """The precision that the released code calls non-diagonal: 0.1 / sqrt(d) V diag(0.01) V', V random orthogonal.

    All eigenvalues are overwritten by one number, so this is 0.001 / sqrt(d) times I plus rounding (erratum).

    Source: paper 1, released code, AP3_Gaussian.py.
    """
    _check_generator(generator)
    random = torch.rand(dim, dim, generator=generator)
    vectors = torch.linalg.eigh((random + random.T) * 0.01).eigenvectors
    return 0.1 / math.sqrt(dim) * (vectors @ torch.diag(vectors.new_full((dim,), 0.01)) @ vectors.T)


def prune_highest_code(weight: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The pruned weight and its mask as released for "highest": survivors are |w| - max |w|, not the original weights.

    The mask is that of plain "highest" pruning up to ties. No survivor is positive, and AP2 is inflated.

    Source: paper 1, released code, pruning_methods.py.
    """
    _finite(weight=weight)
    shifted = weight.detach().abs() - weight.detach().abs().max()
    mask = magnitude_mask(shifted, fraction, "lowest")
    return shifted * mask, mask


def random_mask_code(shape: Sequence[int], fraction: float) -> Tensor:
    """The released code's random mask: always NumPy's legacy generator with seed 42, so the same in every trial.

    Masks (True = kept) of growing fractions in [0, 1) are nested.

    Source: paper 1, released code, pruning_methods.py.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}.")
    mask = np.ones(math.prod(shape), dtype=bool)
    mask[np.random.RandomState(42).choice(mask.size, size=round(fraction * mask.size), replace=False)] = False
    return torch.from_numpy(mask).view(*shape)


def random_direction(delta: Tensor, generator: torch.Generator) -> Tensor:
    """A control of this companion: a random difference, weight - pruned, of the norm of `delta` and so of equal AP2."""
    (exact,) = _finite(delta=delta)
    _check_generator(generator)
    direction = torch.randn(delta.shape, dtype=torch.float64, generator=generator)
    return (direction * (exact.norm().cpu() / direction.norm())).to(delta)


def sign_flips(delta: Tensor, generator: torch.Generator) -> Tensor:
    """A control of this companion: the same difference with random signs, so equal magnitudes in equal places."""
    _finite(delta=delta)
    _check_generator(generator)
    flips = torch.randint(2, delta.shape, generator=generator).to(delta.device)
    return torch.where(flips.bool(), -delta.detach(), delta.detach())


def permute_pruned(delta: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """A control of this companion: the same difference, its entries permuted where the mask (True = kept) prunes."""
    _finite(delta=delta)
    _check_generator(generator)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != delta.shape:
        raise ValueError(f"mask must be a tensor of bool (True = kept) with the shape of delta, {tuple(delta.shape)}.")
    moved = delta.detach().clone()
    values = moved[~mask]
    moved[~mask] = values[torch.randperm(len(values), generator=generator).to(values.device)]
    return moved


def fisher_covariance(diagonal: Tensor, damping: float = 1e-3) -> Tensor:
    """Variances 1 / (F + damping * mean F) of the curvature-aware Gaussian projection, flat and in float64.

    With it `kl_gaussian` at prune time is the saliency of Optimal Brain Damage, sum F delta^2 / 2, up to the damping.

    The diagonal F >= 0 is not all 0. Dead features have F = 0, hence the damping, which is relative to the mean.

    Source: extension of this companion; the paper leaves other covariances open (section 5.4).
    """
    diagonal = _nonnegative(diagonal=diagonal).flatten()
    _check_positive(damping=damping, sum_of_diagonal=diagonal.sum().item())
    return 1 / (diagonal + damping * diagonal.mean())


def _flat(**tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape, flattened and without their gradients."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_complex() or not tensor.numel():
            kind = "an empty or complex one" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise ValueError(f"{name} must be a tensor of real numbers, not {kind}: pass layer.weight.")
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if len(set(shapes)) > 1:
        raise ValueError(f"{' and '.join(tensors)} must have one shape, not {' and '.join(map(str, shapes))}.")
    return [tensor.detach().flatten() for tensor in tensors.values()]


def _delta(mean_p: Tensor, mean_q: Tensor) -> Tensor:
    mean_p, mean_q = _finite(mean_p=mean_p, mean_q=mean_q)
    return mean_p - mean_q


def _finite(**tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape, flattened and in float64, all their values finite."""
    flat = [tensor.double() for tensor in _flat(**tensors)]
    for name, tensor in zip(tensors, flat, strict=True):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} must be finite: drop the rows of diverged or failed runs.")
    return flat


def _reduced(weight: Tensor, pruned: Tensor, reduce: Callable[[Tensor], Tensor], unit: int = 1) -> Tensor:
    """`reduce` of one part of the float64 difference after another, concatenated; no part divides `unit` entries."""
    size = unit * max(BLOCK // unit, 1)
    buffer = weight.new_empty(2, min(size, len(weight)), dtype=torch.float64)  # once: new memory costs more than a sum
    found = []
    for one, other in zip(weight.split(size), pruned.split(size), strict=True):
        difference, subtracted = buffer[:, : len(one)]
        difference.copy_(one).sub_(subtracted.copy_(other))
        found.append(reduce(difference))
    result = torch.cat(found)
    if not result.isfinite().all():  # looks at the weights themselves only now: each look costs as much as the sum
        _finite(weight=weight, pruned=pruned)
    return result


def _kl_of_student_t_fits(p: np.ndarray, q: np.ndarray) -> float:
    """KL of the Student-t distributions that have the first moments of two populations, in units of the first one."""
    df_p, df_q = (4 + 6 / max(float(stats.kurtosis(entries)), 6e-6) for entries in (p, q))
    scale_p, scale_q = (entries.std() * math.sqrt((df - 2) / df) for entries, df in ((p, df_p), (q, df_q)))
    shift = (q.mean() - p.mean()) / scale_p
    one, other = stats.t(df_p), stats.t(df_q, shift, scale_q / scale_p)
    pieces = pairwise([-math.inf, *sorted({0.0, shift}), math.inf])
    log_ratio = lambda x: one.pdf(x) * (one.logpdf(x) - other.logpdf(x))  # noqa: E731
    return max(sum(integrate.quad(log_ratio, *piece, limit=200)[0] for piece in pieces), 0.0)


def _group_size(entries: int, groups: int) -> int:
    _check_positive(groups=groups)
    return max(entries // groups, 1)


def _means(flat: Tensor, size: int) -> Tensor:
    full = len(flat) - len(flat) % size
    means = flat[:full].view(-1, size).mean(1)
    return torch.cat([means, flat[full:].mean().view(1)]) if full < len(flat) else means


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}.")


def _check_generator(generator: torch.Generator) -> None:
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, not {generator}: nothing draws from a global stream.")


def _nonnegative(**values: Values) -> Tensor:
    ((name, value),) = values.items()
    value = torch.as_tensor(value, dtype=torch.float64).detach()
    if not (value.isfinite() & (value >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative: drop the rows of diverged or failed runs.")
    return value


def _doubled(trace_p: Values, trace_q: Values) -> Tensor:
    """Twice the sums of two traces, of which one may be 0: that distribution is a point."""
    doubled = 2 * (_nonnegative(trace_p=trace_p) + _nonnegative(trace_q=trace_q))
    _check_positive(sum_of_traces=doubled.min().item() / 2)
    return doubled


def _covariances(delta: Tensor, **covariances: Values) -> list[Tensor]:
    """Covariances as vectors of variances, or all as lower Cholesky factors if one of them is a matrix."""
    found = {}
    for name, covariance in covariances.items():
        c = torch.as_tensor(covariance, dtype=torch.float64, device=delta.device).detach()
        c = c.expand(len(delta)) if c.dim() == 0 else c
        if c.dim() > 2 or any(side != len(delta) for side in c.shape):
            sides = f"a scalar, ({len(delta)},) or a square matrix of that side"
            raise ValueError(f"{name} must be {sides}, not {tuple(c.shape)}.")
        found[name] = _cholesky(**{name: c}) if c.dim() == 2 else _variances(**{name: c})
    matrices = any(c.dim() == 2 for c in found.values())
    return [c.sqrt().diag() if matrices and c.dim() == 1 else c for c in found.values()]


def _variances(**variances: Tensor) -> Tensor:
    ((name, values),) = variances.items()
    if not ((values > 0) & values.isfinite()).all():
        raise ValueError(f"{name} must be finite and positive: add damping to it.")
    return values


def _cholesky(**covariances: Tensor) -> Tensor:
    ((name, covariance),) = covariances.items()
    _finite(**covariances)  # the factorisation reads one triangle, and no comparison with NaN is true
    square = covariance.shape[0] == covariance.shape[1]
    factor, failed = torch.linalg.cholesky_ex(covariance) if square else (covariance, True)
    if failed or (covariance - covariance.T).abs().max() > 1e-8 * covariance.abs().max():
        raise ValueError(f"{name} must be symmetric positive definite: symmetrise it and add damping to it.")
    return factor
