"""Distances between two distributions of one layer: Gaussian and Student-t divergences, and bounds between them.

Paper 1: how far pruning moves a layer (AP2, AP3), what that bounds, the released code's defects, and controls.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from lib.masks import magnitude_mask

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


BLOCK = 2**18  # entries of a larger tensor that are handled at once: their difference stays in the cache
KL_LIMIT = 1.9  # what the released code scales the largest KL to, so that it stays below the 2 of Lemma 2


def ap2(weight: Tensor, pruned: Tensor) -> float:
    """Squared Euclidean distance of two weight tensors.

    weight, pruned: equal shapes, weights only, no bias. In float64; beyond BLOCK entries in the tensors' own precision
    within a block and in float64 over blocks, at the speed of reading the two. Raises ValueError for unequal shapes.
    Source: paper 1, Def 1 with the identity projection.
    """
    if weight.numel() <= BLOCK:
        return _delta(weight, pruned).square().sum().item()
    return sum(torch.dot(part, part).item() for part in _differences(weight, pruned, BLOCK))


def group_means(vector: Tensor, groups: int = 100) -> Tensor:
    """Means of consecutive groups of a flattened tensor, the location of the Student-t projection.

    vector: any shape, d entries. groups: wished number of groups, >= 1. The group size is d // groups and the slices
    run to the end, so that there may be more groups than asked for and a ragged last one (d = 20,480: 101 groups);
    for d < groups, where the released code stops, each entry is a group.
    Returns float64 (ceil(d / size),). Raises ValueError for groups < 1 or an empty vector.
    Source: paper 1, section 5.3, and the released code's slices.
    """
    flat = vector.flatten().double()
    if groups < 1 or not len(flat):
        raise ValueError(f"Grouping needs groups >= 1 and a weight that is not empty, not {groups}, {len(flat)}.")
    size = max(len(flat) // groups, 1)
    full = len(flat) - len(flat) % size
    means = flat[:full].view(-1, size).mean(1)
    return torch.cat([means, flat[full:].mean().view(1)]) if full < len(flat) else means


def t_ap3(weight: Tensor, pruned: Tensor, groups: int = 100, df: float = 4, scale: float = 1.0) -> float:
    """AP3 of the Student-t projection of group means, in nats.

    weight, pruned: equal shapes. groups: as in `group_means`; the dimension is the actual number of groups.
    df: degrees of freedom > 0. scale: > 0, the scale matrix is scale times I; 1 in the released code, 1 / lambda
    (`lambda_factor`) for the covariance that AP2 gets. Raises ValueError outside these domains.
    Source: paper 1, section 5.3 and Def 2.
    """
    if not scale > 0:
        raise ValueError(f"The scale of a Student-t projection must be positive, not {scale}.")
    means = _group_mean_differences(weight, pruned, groups)
    return kl_student_t(means.norm() / math.sqrt(scale), len(means), df).item()


def nondiagonal_precision_code(dim: int, generator: torch.Generator) -> Tensor:
    """The precision that the released code calls non-diagonal: 0.1 / sqrt(d) V diag(0.01) V', V random orthogonal.

    dim: d >= 1; the float32 matrix has d^2 entries (d = 20,480: 1.7 GB). generator: for the random matrix.
    All eigenvalues are overwritten by one number, so that this is 0.001 / sqrt(d) times I plus rounding (erratum).
    Source: paper 1, released code, AP3_Gaussian.py.
    """
    random = torch.rand(dim, dim, generator=generator, device=generator.device)
    vectors = torch.linalg.eigh((random + random.T) * 0.01).eigenvectors
    return 0.1 / math.sqrt(dim) * (vectors @ torch.diag(vectors.new_full((dim,), 0.01)) @ vectors.T)


def gaussian_ap3_code(weight: Tensor, pruned: Tensor) -> float:
    """The released code's Gaussian AP3 in closed form: sqrt(0.001 / sqrt(d)) times the Euclidean distance.

    weight, pruned: equal shapes, d entries. It is a Mahalanobis distance, neither squared nor halved, with the
    precision of `nondiagonal_precision_code`. Raises ValueError for unequal shapes.
    Source: paper 1, released code, AP3_Gaussian.py.
    """
    return math.sqrt(0.001 / math.sqrt(weight.numel()) * ap2(weight, pruned))


def lambda_factor(ap2_values: Tensor | Sequence[float]) -> float:
    """Lambda = 3.8 / max AP2: the covariance (1 / lambda) I under which the largest KL of the table is 1.9.

    ap2_values: AP2 >= 0 of all configurations and epochs of one (network, data set, trial), any shape.
    Raises ValueError if a value is negative or not finite, or if all are 0.
    Source: paper 1, released code, main.py, `modify_first_column`.
    """
    values = torch.as_tensor(ap2_values, dtype=torch.float64)
    if not (values.numel() and values.isfinite().all() and (values >= 0).all() and values.max() > 0):
        raise ValueError("The lambda rule needs finite AP2 values, one of them positive: drop the failed runs.")
    return 2 * KL_LIMIT / values.max().item()


def scale_ap2(ap2_values: Tensor | Sequence[float], scale: str = "kl") -> Tensor:
    """AP2 as a Gaussian KL under the lambda rule, or as the released code plots it.

    ap2_values: as in `lambda_factor`. scale: "kl" for lambda AP2 / 2 (maximum 1.9), "code" for lambda AP2, without
    the half (maximum 3.8). Returns float64 like `ap2_values`. Raises ValueError as
    `lambda_factor`, and for another scale.
    """
    if scale not in ("kl", "code"):
        raise ValueError(f'Unknown scale {scale!r}: use "kl" or "code".')
    factor = lambda_factor(ap2_values) * (0.5 if scale == "kl" else 1.0)
    return torch.as_tensor(ap2_values, dtype=torch.float64) * factor


def epoch_series(
    dense: Tensor, snapshots: Sequence[Tensor], measure: Callable[[Tensor, Tensor], float], aliased: bool = False
) -> Tensor:
    """measure(dense, snapshot) over the epochs of a fine-tuning record.

    dense: weight. snapshots: weights by epoch, at least one. measure: such as `ap2` or `t_ap3`.
    aliased: as the released code records its "random" method, where every epoch is a view of the live weight and
    so equals the last. Returns float64 (epochs,). Raises ValueError for an empty record.
    Source: paper 1, section 5 (curves over fine-tuning epochs), and the released code's pretrained.py.
    """
    _check_record(snapshots)
    if aliased:
        return torch.full((len(snapshots),), measure(dense, snapshots[-1]), dtype=torch.float64)
    return torch.tensor([measure(dense, snapshot) for snapshot in snapshots], dtype=torch.float64)


def approximate_ap3_gaps(
    dense: Tensor,
    snapshots: Sequence[Tensor],
    measure: Callable[[Tensor, Tensor], float],
    version: str = "definition 5",
) -> Tensor:
    """|KL(dense||best) - KL(t)| over the epochs t, the epsilon_t of "approximately AP3"; best is the last snapshot.

    dense, snapshots, measure: as in `epoch_series`. version: "definition 5" for KL(t) = KL(dense||snapshot_t), whose
    gap is 0 at the end by construction; "theorem 2" for KL(best||snapshot_t), whose gap ends at KL(dense||best).
    Returns float64 (epochs,). Raises ValueError for an empty record or another version.
    Source: paper 1, Def 5, and Theorem 2, which restates it differently; the last epoch stands for the optimum.
    """
    _check_record(snapshots)
    if version not in ("definition 5", "theorem 2"):
        raise ValueError(f'Unknown version {version!r}: use "definition 5" or "theorem 2".')
    origin = dense if version == "definition 5" else snapshots[-1]
    return (measure(dense, snapshots[-1]) - epoch_series(origin, snapshots, measure)).abs()


def performance_bound(
    kl: Tensor | float, hessian_max: float, trace_p: float | Tensor, trace_q: float | Tensor
) -> Tensor:
    """Bound g(epsilon) on the loss gap of Def 6 from the last layer's KL.

    kl: epsilon >= 0 in nats, any shape; infinite from 2 on. hessian_max: largest eigenvalue of the loss Hessian, > 0.
    trace_p, trace_q: traces of the two covariances; for Student-t d times `student_t_variance`.
    Raises ValueError outside these domains.
    Source: paper 1, Lemma 2, with Y = 1 and its unspecified constant C = 2 (tr P + tr Q), which the derivation gives.
    """
    _check_eigenvalues(hessian_max, 1.0)
    return hessian_max / 2 * recovered_squared_distance(kl, trace_p, trace_q)


def gaussian_performance_bound(kl: Tensor | float, hessian_max: float, precision_min: float) -> Tensor:
    """Bound hessian_max * kl / precision_min on the loss gap of Def 6, for Gaussians of equal covariance.

    kl: epsilon >= 0 in nats, any shape. hessian_max: largest eigenvalue of the loss Hessian, > 0. precision_min:
    smallest eigenvalue of the inverse covariance, > 0. Raises ValueError outside these domains.
    Source: paper 1, Corollary 2, corrected: the print has a square root (`gaussian_performance_bound_printed`).
    """
    _check_eigenvalues(hessian_max, precision_min)
    return hessian_max * _kl(kl) / precision_min


def gaussian_performance_bound_printed(kl: Tensor | float, hessian_max: float, precision_min: float) -> Tensor:
    """The bound as printed, hessian_max / 2 * sqrt(2 kl / precision_min); fails where 2 kl > precision_min.

    Arguments and errors: as `gaussian_performance_bound`. Source: paper 1, Corollary 2 (erratum).
    """
    _check_eigenvalues(hessian_max, precision_min)
    return hessian_max / 2 * (2 * _kl(kl) / precision_min).sqrt()


def prune_highest_code(weight: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Prune the "highest" magnitudes as released: the survivors are not the original weights but |w| - max |w|.

    weight, fraction: as in `magnitude_mask`. Returns (pruned weight, mask); the mask is that of plain "highest"
    pruning up to ties, the survivors are <= 0, and AP2 to the original weight is inflated.
    Source: paper 1, released code, pruning_methods.py.
    """
    shifted = weight.abs() - weight.abs().max()
    mask = magnitude_mask(shifted, fraction, "lowest")
    return shifted * mask, mask


def random_mask_code(shape: Sequence[int], fraction: float) -> Tensor:
    """The released code's random mask: always NumPy's legacy generator with seed 42, so the same in every trial.

    shape: of the weight. fraction: as in `magnitude_mask`; the masks of growing fractions are nested.
    Returns bool, True = kept. Raises ValueError for a fraction outside [0, 1).
    Source: paper 1, released code, pruning_methods.py.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"The fraction to remove must lie in [0, 1), not {fraction}.")
    mask = np.ones(math.prod(shape), dtype=bool)
    mask[np.random.RandomState(42).choice(mask.size, size=round(fraction * mask.size), replace=False)] = False
    return torch.from_numpy(mask).view(*shape)


def random_direction(delta: Tensor, generator: torch.Generator) -> Tensor:
    """A uniformly random difference of the same norm: equal AP2, unrelated to the network.

    delta: weight - pruned, any shape. Returns a tensor like `delta`, to subtract from the weight.
    Source: control of this companion; the paper has none.
    """
    direction = torch.randn(delta.shape, dtype=torch.float64, generator=generator, device=generator.device)
    return (direction * (delta.double().norm().to(direction.device) / direction.norm())).to(delta)


def sign_flips(delta: Tensor, generator: torch.Generator) -> Tensor:
    """The same difference with random signs: equal AP2, equal magnitudes in equal places.

    delta: weight - pruned, any shape. Returns a tensor like `delta`. Source: control of this companion.
    """
    flips = torch.randint(2, delta.shape, generator=generator, device=generator.device).to(delta.device)
    return torch.where(flips.bool(), -delta, delta)


def permute_pruned(delta: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """The same difference with its entries permuted within the pruned set: equal AP2, other places.

    delta: weight - pruned. mask: bool like `delta`, True = kept; kept entries do not move.
    Returns a tensor like `delta`. Raises ValueError for unequal shapes. Source: control of this companion.
    """
    if mask.shape != delta.shape:
        raise ValueError(f"Mask and difference must have one shape, not {mask.shape} and {delta.shape}.")
    moved = delta.clone()
    values = delta[~mask]
    moved[~mask] = values[torch.randperm(len(values), generator=generator, device=generator.device).to(values.device)]
    return moved


def fisher_covariance(diagonal: Tensor, damping: float = 1e-3) -> Tensor:
    """Variances 1 / (F_i + damping * mean F) of the curvature-aware Gaussian projection.

    diagonal: F >= 0, any shape, not all 0 (a dead feature gives F_i = 0, hence the damping). damping: > 0, relative
    to the mean. Returns float64 (d,); with it `kl_gaussian` at prune time is the Optimal-Brain-Damage saliency
    sum F_i delta_i^2 / 2, up to the damping. Raises ValueError outside these domains.
    Source: extension of this companion; the paper leaves other covariances open (section 5.4).
    """
    diagonal = diagonal.flatten().double()
    if not (damping > 0 and (diagonal >= 0).all() and diagonal.isfinite().all() and diagonal.any()):
        raise ValueError(f"Curvature must be finite, >= 0 and not all 0, and damping positive, not {damping}.")
    return 1 / (diagonal + damping * diagonal.mean())


def _group_mean_differences(weight: Tensor, pruned: Tensor, groups: int) -> Tensor:
    """`group_means` of a difference; group by group where the whole would not stay in the cache."""
    size = weight.numel() // max(groups, 1)
    if groups < 1 or weight.numel() <= BLOCK or not BLOCK // 128 <= size <= 4 * BLOCK:
        return group_means(_delta(weight, pruned), groups)
    return torch.stack([part.mean().double() for part in _differences(weight, pruned, size)])


def _differences(weight: Tensor, pruned: Tensor, size: int) -> Iterator[Tensor]:
    """Weight - pruned, `size` entries at a time, each in the memory of the last one."""
    _check_shapes(weight, pruned)
    buffer = torch.empty(size, dtype=torch.result_type(weight, pruned), device=weight.device)
    for a, b in zip(weight.flatten().split(size), pruned.flatten().split(size), strict=True):
        yield torch.sub(a, b, out=buffer[: len(a)])


def _check_shapes(weight: Tensor, pruned: Tensor) -> None:
    if weight.shape != pruned.shape:
        raise ValueError(f"Both weights must have one shape, not {tuple(weight.shape)} and {tuple(pruned.shape)}.")


def _delta(weight: Tensor, pruned: Tensor) -> Tensor:
    _check_shapes(weight, pruned)
    return weight.double() - pruned.double()


def _check_record(snapshots: Sequence[Tensor]) -> None:
    if not len(snapshots):
        raise ValueError("A fine-tuning record needs at least one snapshot: ask for one epoch or more.")


def _kl(kl: Tensor | float) -> Tensor:
    kl = torch.as_tensor(kl, dtype=torch.float64)
    if not (kl >= 0).all():
        raise ValueError("A KL must not be negative or NaN: drop the rows of failed runs.")
    return kl


def _check_eigenvalues(hessian_max: float, precision_min: float) -> None:
    if not (hessian_max > 0 and precision_min > 0):
        raise ValueError(
            f"A bound needs positive eigenvalues of Hessian and precision, not {hessian_max}, {precision_min}."
        )
