"""Paper 1: how far pruning moves a layer (AP2, AP3), what that bounds, the released code's defects, and controls."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lib.divergences import kl_gaussian
from lib.divergences import kl_student_t, recovered_squared_distance
from lib.masks import magnitude_mask

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
    """lambda = 3.8 / max AP2: the covariance (1 / lambda) I under which the largest KL of the table is 1.9.

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
    """weight - pruned, `size` entries at a time, each in the memory of the last one."""
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
