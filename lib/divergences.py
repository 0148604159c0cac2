"""Distances between two distributions of one layer: Gaussian and Student-t divergences, and bounds between them."""

import math

import torch
from scipy.special import gammaincinv
from torch import Tensor

# Quadrature of the Student-t KL. The integrand is analytic in a strip of half-width pi / 2, so a trapezoid of step h
# errs by exp(-pi^2 / h) (1e-17); the tails are cut where they fall below exp(-34) (2e-15) of the integral.
STEP = 0.25
TAIL = 34.0
ROWS_AT_ONCE = 4096


def kl_gaussian(mean_p: Tensor, covariance_p: Tensor | float, mean_q: Tensor, covariance_q: Tensor | float) -> float:
    """Forward KL(P||Q) of two Gaussians, in nats.

    mean_p, mean_q: (d,). covariance_p, covariance_q: a scalar c for cI, a vector (d,) of variances, or a matrix
    (d, d); the two may differ in form. Computed in float64 through Cholesky factors.
    Raises ValueError for unequal shapes or a covariance that is not symmetric positive definite.
    Source: paper 1, Def 2 with the Gaussian projection. The paper prints the reverse, `kl_gaussian_printed`.
    """
    delta = _difference(mean_p, mean_q)
    p, q = _covariances(delta, covariance_p, covariance_q)
    if p.dim() == 1:
        return 0.5 * (p / q - 1 - (p / q).log() + delta**2 / q).sum().item()
    factor_p, factor_q = _cholesky(p), _cholesky(q)
    log_ratio = 2 * (factor_q.diagonal().log() - factor_p.diagonal().log()).sum()
    whitened = torch.linalg.solve_triangular(factor_q, torch.column_stack([factor_p, delta]), upper=False)
    return 0.5 * (log_ratio + whitened.square().sum() - len(delta)).item()


def kl_gaussian_printed(
    mean_p: Tensor, covariance_p: Tensor | float, mean_q: Tensor, covariance_q: Tensor | float
) -> float:
    """The closed form that paper 1 prints for KL(P||Q), which is KL(Q||P).

    Arguments and errors: as `kl_gaussian`. The two agree when the covariances are equal.
    Source: paper 1, Gaussian projection: (log|P|/|Q| + tr(P^-1 Q) + delta' P^-1 delta - d) / 2 (erratum).
    """
    return kl_gaussian(mean_q, covariance_q, mean_p, covariance_p)


def wasserstein_gaussian(
    mean_p: Tensor, covariance_p: Tensor | float, mean_q: Tensor, covariance_q: Tensor | float
) -> float:
    """2-Wasserstein distance of two Gaussians, in the units of the means.

    Arguments and errors: as `kl_gaussian`. For equal covariances its square is AP2; otherwise the Bures term
    tr(P + Q - 2 (P^1/2 Q P^1/2)^1/2) is added. Source: extension of this companion; standard closed form.
    """
    delta = _difference(mean_p, mean_q)
    p, q = _covariances(delta, covariance_p, covariance_q)
    if p.dim() == 1:
        bures = (p.sqrt() - q.sqrt()).square().sum()
    else:
        factor_p, _ = _cholesky(p), _cholesky(q)
        roots = torch.linalg.eigvalsh(factor_p.T @ q @ factor_p).clamp(min=0).sqrt()
        bures = (p.trace() + q.trace() - 2 * roots.sum()).clamp(min=0)
    return (delta.square().sum() + bures).sqrt().item()


def mahalanobis(mean_p: Tensor, mean_q: Tensor, covariance: Tensor | float) -> float:
    """M = sqrt(delta' covariance^-1 delta), the one number that orders all equal-covariance divergences but W2.

    Arguments and errors: as `kl_gaussian`. Source: paper 1, Gaussian projection: KL = M^2 / 2.
    """
    delta = _difference(mean_p, mean_q)
    (sigma,) = _covariances(delta, covariance)
    if sigma.dim() == 1:
        return (delta / sigma.sqrt()).norm().item()
    return torch.linalg.solve_triangular(_cholesky(sigma), delta[:, None], upper=False).norm().item()


def equal_covariance_divergences(distance: Tensor | float, alpha: float = 0.5) -> dict[str, Tensor]:
    """Divergences of two Gaussians of equal covariance, as functions of their Mahalanobis distance.

    distance: M >= 0, any shape. alpha: order of the Renyi divergence, > 0.
    Returns float64 tensors like `distance`: kl, jeffreys, renyi, bhattacharyya (nats), squared_hellinger and
    total_variation in [0, 1], jensen_shannon in [0, ln 2]. All increase with M: rank by M, since in float64 total
    variation is 1 from M = 17.
    Raises ValueError for a negative or non-finite distance, or alpha <= 0.
    Source: extension of this companion (standard closed forms, Jensen-Shannon by quadrature); the paper has the KL.
    """
    m = _nonnegative("A Mahalanobis distance", distance)
    if not alpha > 0:
        raise ValueError(f"The order alpha of a Renyi divergence must be positive, not {alpha}.")
    return {
        "kl": m**2 / 2,
        "jeffreys": m**2,
        "renyi": alpha * m**2 / 2,
        "bhattacharyya": m**2 / 8,
        "squared_hellinger": -torch.expm1(-(m**2) / 8),
        "total_variation": torch.erf(m / math.sqrt(8)),
        "jensen_shannon": _jensen_shannon(m),
    }


def _jensen_shannon(m: Tensor) -> Tensor:
    """E h(t), t = M (x + M / 2), x standard normal; h(t) = ln 2 minus the entropy of a coin of log-odds t."""
    x = torch.linspace(-10, 10, 401, dtype=torch.float64, device=m.device)
    density = torch.exp(-(x**2) / 2)
    t = (m[..., None] * (x + m[..., None] / 2)).abs()
    u, e = torch.tanh(t / 2), torch.exp(-t)
    # equal forms of h: the first loses all digits for large t, the second for small t
    h = torch.where(t < 1, (torch.log1p(-(u**2)) + u * t) / 2, math.log(2) - torch.log1p(e) - t * e / (1 + e))
    return (h * density).sum(-1) / density.sum()


def kl_student_t(distance: Tensor | float, dim: int, df: float) -> Tensor:
    """KL in nats of two multivariate Student-t distributions of equal scale matrix S and degrees of freedom.

    distance: r = sqrt(delta' S^-1 delta) >= 0 of the locations, any shape. dim: d >= 1. df: degrees of freedom > 0.
    Returns a float64 tensor like `distance`, exact to 1e-12 relative for r in 1e-8 ... 1e3, d in 1 ... 1e5, df in
    1 ... 1e6. Raises ValueError outside the stated domains.

    One-dimensional form of the double integral over log(a / b) = int (e^-sb - e^-sa) / s ds and the mixing
    G ~ Gamma(df / 2): put s = v df G / 2, integrate G out, then w = v / (1 + v):
    KL = a int_0^1 (1 - w)^(a - 1) (1 - (1 + w (1 - w) r^2 / df)^(-df / 2)) dw / w with a = (df + d) / 2.
    Source: paper 1, section 5.3, which estimates it by Monte Carlo (`kl_student_t_monte_carlo`).
    """
    r = _nonnegative("A distance of locations", distance)
    if not (dim >= 1 and 0 < df < math.inf):
        raise ValueError(f"A Student-t distribution needs dim >= 1 and finite df > 0, not dim {dim} and df {df}.")
    a = (df + dim) / 2
    low = -TAIL - math.log(max(a, 1)) - 2 * math.log(max(r.max().item() if r.numel() else 1, 1))
    high = math.log(math.expm1(TAIL / a))
    nodes = torch.arange(math.floor(low / STEP), math.ceil(high / STEP) + 1, dtype=torch.float64, device=r.device)
    log_kept = torch.nn.functional.logsigmoid(-STEP * nodes)  # log(1 - w)
    log_product = log_kept + torch.nn.functional.logsigmoid(STEP * nodes)  # log(w (1 - w))
    parts = []
    for part in r.flatten().split(ROWS_AT_ONCE):
        shrunk = torch.expm1(-df / 2 * torch.log1p(log_product.exp() * (part[:, None] ** 2 / df)))
        parts.append(-a * STEP * (shrunk @ (a * log_kept).exp()))
    return torch.cat(parts).view(r.shape)


def kl_student_t_monte_carlo(
    mean_p: Tensor, mean_q: Tensor, df: float, *, draws: int, generator: torch.Generator
) -> tuple[float, float]:
    """Monte Carlo estimate of KL(P||Q), in nats, of two Student-t distributions with identity scale.

    mean_p, mean_q: locations (d,). df: degrees of freedom > 0. draws: at least 2, from P. generator: equal seeds
    reuse the random numbers. Computed in float64: float32 log-densities round by 1e-5 a draw.
    Returns (estimate, standard error). Raises ValueError outside these domains.
    Source: paper 1, section 5.3 (the released code draws from the pruned side; by symmetry the value is the same).
    """
    delta = _difference(mean_p, mean_q).cpu()
    if not (draws >= 2 and 0 < df < math.inf):
        raise ValueError(f"Monte Carlo needs draws >= 2 and finite df > 0, not {draws} draws and df {df}.")
    ratios = []
    for start in range(0, draws, ROWS_AT_ONCE):
        n = min(ROWS_AT_ONCE, draws - start)
        normal = torch.randn(n, len(delta), dtype=torch.float64, generator=generator, device=generator.device).cpu()
        uniform = torch.rand(n, dtype=torch.float64, generator=generator, device=generator.device).cpu()
        gamma = torch.from_numpy(gammaincinv(df / 2, uniform.clamp(min=2.0**-54).numpy())) * 2 / df
        x = normal / gamma.sqrt()[:, None]
        ratios.append(torch.log1p((x + delta).square().sum(1) / df) - torch.log1p(x.square().sum(1) / df))
    ratio = torch.cat(ratios) * (df + len(delta)) / 2
    return ratio.mean().item(), ratio.std().item() / math.sqrt(draws)


def student_t_variance(df: float) -> float:
    """Variance df / (df - 2) of a Student-t coordinate of unit scale: what the traces of Lemma 2 need, not 1.

    df: degrees of freedom > 2; ValueError otherwise, the variance is infinite. Source: paper 1, Lemma 2 with the t.
    """
    if not df > 2:
        raise ValueError(f"A Student-t distribution has a covariance only for df > 2, not {df}.")
    return df / (df - 2)


def precision_range(covariance: Tensor | float) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the inverse covariance.

    covariance: scalar c for cI, variances (d,), or matrix (d, d). Raises ValueError if not positive definite.
    Source: paper 1, Gaussian projection (its lambda_min and lambda_max of the inverse).
    """
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    if covariance.dim() == 2:
        _cholesky(covariance)
        covariance = torch.linalg.eigvalsh(covariance)
    _check_variances(covariance)
    return 1 / covariance.max().item(), 1 / covariance.min().item()


def kl_sandwich(squared_distance: Tensor | float, covariance: Tensor | float) -> tuple[Tensor, Tensor]:
    """Bounds on the KL of two Gaussians of equal covariance from AP2: half the extreme precision eigenvalues times it.

    squared_distance: AP2 >= 0, any shape. covariance: as in `precision_range`.
    Returns (lower, upper) like `squared_distance`. Raises ValueError outside these domains.
    Source: paper 1, Gaussian projection. The converse AP2 <= 2 KL / lambda_min always holds; the printed condition
    for AP2 <= 2 KL, eigenvalues of the covariance >= 1, must read <= 1 (erratum).
    """
    squared = _nonnegative("A squared distance", squared_distance)
    smallest, largest = precision_range(covariance)
    return squared * smallest / 2, squared * largest / 2


def total_variation_lower_bound(
    squared_distance: Tensor | float, trace_p: float | Tensor, trace_q: float | Tensor
) -> Tensor:
    """Lower bound on the total variation of any two distributions of given mean distance and covariance traces.

    squared_distance: a'a >= 0 of the means, any shape. trace_p, trace_q: traces of the covariances, sum > 0.
    Raises ValueError outside these domains.
    Source: paper 1, Lemma 1: a'a / (2 (tr P + tr Q) + a'a).
    """
    squared = _nonnegative("A squared distance", squared_distance)
    return squared / (2 * _traces(trace_p, trace_q) + squared)


def kl_lower_bound(squared_distance: Tensor | float, trace_p: float | Tensor, trace_q: float | Tensor) -> Tensor:
    """Lower bound on the KL, in nats: Pinsker, 2 TV^2, with `total_variation_lower_bound` (same arguments).

    Source: paper 1, Corollary 1.
    """
    return 2 * total_variation_lower_bound(squared_distance, trace_p, trace_q) ** 2


def recovered_squared_distance(kl: Tensor | float, trace_p: float | Tensor, trace_q: float | Tensor) -> Tensor:
    """Largest squared distance of means that a KL allows, whatever the distributions: `kl_lower_bound` inverted.

    kl: >= 0 in nats, any shape; from 2 on nothing is known and the bound is infinite.
    trace_p, trace_q: as in `total_variation_lower_bound`. Raises ValueError outside these domains.
    Source: paper 1, Lemma 1 and Corollary 1 solved for AP2: 2 (tr P + tr Q) t / (1 - t), t = sqrt(kl / 2).
    """
    t = (_nonnegative("A KL", kl) / 2).sqrt().clamp(max=1)
    return 2 * _traces(trace_p, trace_q) * t / (1 - t)


def vacuous_factor(kl: Tensor | float, dim: int) -> Tensor:
    """How many times `recovered_squared_distance` exceeds 2 KL, the exact squared distance of unit Gaussians.

    kl: > 0 in nats, any shape. dim: d >= 1. Raises ValueError outside these domains.
    Source: paper 1, Corollary 1 with identity covariances ("not always in a useful sense").
    """
    kl = _nonnegative("A KL", kl)
    if dim < 1 or (kl == 0).any():
        raise ValueError(f"The vacuous factor needs dim >= 1 and kl > 0: drop the rows of equal weights (dim {dim}).")
    return recovered_squared_distance(kl, dim, dim) / (2 * kl)


def _nonnegative(what: str, value: Tensor | float) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64)
    if not (value.isfinite() & (value >= 0)).all():
        raise ValueError(f"{what} must be finite and not negative: drop the rows of diverged or failed runs.")
    return value


def _traces(trace_p: float | Tensor, trace_q: float | Tensor) -> Tensor:
    total = _nonnegative("A trace of a covariance", trace_p) + _nonnegative("A trace of a covariance", trace_q)
    if not (total > 0).all():
        raise ValueError(
            "The traces of the two covariances must have a positive sum: pass the covariances' own traces."
        )
    return total


def _difference(mean_p: Tensor, mean_q: Tensor) -> Tensor:
    if mean_p.dim() != 1 or mean_p.shape != mean_q.shape:
        raise ValueError(f"Means must be vectors of one length, not {mean_p.shape} and {mean_q.shape}: flatten them.")
    return mean_p.double() - mean_q.double()


def _covariances(delta: Tensor, *covariances: Tensor | float) -> list[Tensor]:
    """Both covariances as vectors of variances, or both as matrices if one of them is a matrix."""
    covariances = [torch.as_tensor(c, dtype=torch.float64, device=delta.device) for c in covariances]
    for c in covariances:
        if c.dim() > 2 or any(side != len(delta) for side in c.shape):
            raise ValueError(
                f"A covariance is a scalar, ({len(delta)},) or a square matrix of that side, not {c.shape}."
            )
        if c.dim() < 2:
            _check_variances(c)
    covariances = [c.expand(len(delta)) if c.dim() == 0 else c for c in covariances]
    if all(c.dim() == 1 for c in covariances):
        return covariances
    return [c.diag() if c.dim() == 1 else c for c in covariances]


def _check_variances(variances: Tensor) -> None:
    if not ((variances > 0) & variances.isfinite()).all():
        raise ValueError("Variances must be finite and positive: add damping to them.")


def _cholesky(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed or (covariance - covariance.T).abs().max() > 1e-8 * covariance.abs().max():
        raise ValueError(
            "A covariance must be symmetric positive definite: symmetrise it and add damping to its diagonal."
        )
    return factor
