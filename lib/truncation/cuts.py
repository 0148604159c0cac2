"""The seven ways to cut a convolution kernel in two, and the SVD across a cut that serves every rank.

What truncation is compared with: kernels that lose as much norm in another way, and random kernels and spectra.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.masks import magnitude_mask

MODES = ("OUT", "IN", "KH", "KW")
# A cut by the modes on its one side, positions in PyTorch's layout; complements are the same cut, so seven are all.
CUTS = {
    "OUT": (0,),
    "IN": (1,),
    "KH": (2,),
    "KW": (3,),
    "OUT.IN": (0, 1),
    "OUT.KH": (0, 2),
    "OUT.KW": (0, 3),
}


def sides(cut: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The modes on both sides of a cut, the named side first. Raises ValueError for an unknown cut."""
    if cut not in CUTS:
        raise ValueError(f"Unknown cut {cut!r}: use one of {', '.join(CUTS)}.")
    return CUTS[cut], tuple(mode for mode in range(4) if mode not in CUTS[cut])


def checked(kernel: Tensor) -> Tensor:
    """A kernel detached and in float64, the precision of every decomposition here.

    Raises ValueError unless it has four modes, at least one weight, and only finite weights.
    """
    if kernel.dim() != 4 or not kernel.numel():
        raise ValueError(
            f"A kernel has the modes OUT, IN, KH, KW, not the shape {tuple(kernel.shape)}: view a linear layer's "
            "weight as (OUT, IN, 1, 1)."
        )
    if not kernel.isfinite().all():
        raise ValueError("A kernel must be finite: the run that trained it diverged, lower its learning rate.")
    return kernel.detach().double()


def unfold(kernel: Tensor, cut: str) -> Tensor:
    """The matrix of a cut: rows run over the modes on its named side, columns over the others, layout order in both.

    kernel: (OUT, IN, KH, KW). Raises ValueError for another number of modes or an unknown cut.
    """
    rows, columns = sides(cut)
    if kernel.dim() != 4:
        raise ValueError(
            f"A kernel to unfold has four modes, not the shape {tuple(kernel.shape)}: add modes of size 1."
        )
    return kernel.permute(*rows, *columns).flatten(len(rows)).flatten(0, len(rows) - 1)


def fold(matrix: Tensor, cut: str, shape: Sequence[int]) -> Tensor:
    """The kernel of that shape (OUT, IN, KH, KW) whose `unfold` is the matrix. Raises ValueError if it cannot be."""
    rows, columns = sides(cut)
    if tuple(matrix.shape) != matrix_shape(shape, cut):
        raise ValueError(
            f"The {cut} cut of a {tuple(shape)} kernel is a {matrix_shape(shape, cut)} matrix, not "
            f"{tuple(matrix.shape)}: fold with the shape and cut that it was unfolded with."
        )
    order = (*rows, *columns)
    return matrix.reshape([shape[mode] for mode in order]).permute([order.index(mode) for mode in range(4)])


def matrix_shape(shape: Sequence[int], cut: str) -> tuple[int, int]:
    """Rows and columns of a cut's matrix; the smaller is the number of singular values, the largest rank."""
    rows, columns = sides(cut)
    return math.prod(shape[mode] for mode in rows), math.prod(shape[mode] for mode in columns)


def applicable_cuts(shape: Sequence[int]) -> tuple[str, ...]:
    """The cuts of a kernel of that shape that say something: all others are reported as not applicable.

    Left out are cuts of rank 1 whatever the kernel, where nothing can be truncated, and repetitions: of the cuts that
    are one matrix because a mode has size 1, the first stands for all. A 1x1 kernel keeps OUT alone.
    Source: paper 2's claims counted fairly: a cut that cannot lose norm is not a robust one.
    """
    distinct = {}
    for cut in CUTS:
        parts = frozenset(frozenset(mode for mode in side if shape[mode] > 1) for side in sides(cut))
        if frozenset() not in parts:
            distinct.setdefault(parts, cut)
    return tuple(distinct.values())


@dataclass(frozen=True, eq=False)
class CutSVD:
    """The SVD of a kernel across a cut: left @ diag(values) @ right, in float64; all ranks follow from it.

    left: (m, N) orthonormal columns. values: (N,) descending. right: (N, n) orthonormal rows. N = min(m, n).
    """

    cut: str
    shape: tuple[int, ...]
    left: Tensor
    values: Tensor
    right: Tensor

    def kernel(self, rank: int) -> Tensor:
        """The best approximation of that rank on this cut, a dense float64 kernel of the original shape."""
        left, right = self.factors(rank)
        return fold(left @ right, self.cut, self.shape)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(m, rank) and (rank, n) with that kernel's matrix as product, of equal norm in each rank-one part."""
        rank = checked_rank(rank, len(self.values), f"The {self.cut} cut of a {self.shape} kernel")
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def losses(self) -> dict[str, Tensor]:
        """What truncation to rank 1, 2, ... N loses: three vectors (N,), the readings of "norm loss" by name.

        With p = s^2 / sum s^2 and w = the sum of p beyond the rank: `relative_error` = sqrt(w),
        `norm_loss` = 1 - sqrt(1 - w) and `squared_norm_loss` = w. Raises ValueError for the zero kernel.
        """
        beyond = weights(self.values).flip(0).cumsum(0).flip(0)
        w = torch.cat([beyond[1:], beyond.new_zeros(1)])
        return {"relative_error": w.sqrt(), "norm_loss": w / (1 + (1 - w).sqrt()), "squared_norm_loss": w}

    def rank_at(self, loss: float, reading: str = "norm_loss") -> int:
        """The smallest rank that loses at most `loss`, in a reading of `losses`; ValueError outside [0, 1)."""
        losses = self.losses()
        if reading not in losses:
            raise ValueError(f"Unknown reading {reading!r} of norm loss: use one of {', '.join(losses)}.")
        if not 0 <= loss < 1:
            raise ValueError(f"A norm loss to truncate to must lie in [0, 1), not {loss}.")
        return int((losses[reading] > loss).sum()) + 1


def checked_rank(rank: int, largest: int, what: str) -> int:
    """The rank as an int. Raises ValueError unless it is one of 1 to `largest`."""
    if rank not in range(1, largest + 1):
        raise ValueError(f"{what} has ranks 1 to {largest}, not {rank}: choose one of those.")
    return int(rank)


def cut_svd(kernel: Tensor, cut: str, gram: bool = False) -> CutSVD:
    """The one SVD of a (kernel, cut) pair from which every rank, loss and entropy follows.

    kernel: (OUT, IN, KH, KW), any floating dtype. gram: through the eigenvectors of the short side's Gram matrix;
    several times faster on flat matrices and on GPUs, but the k-th value is exact only to 1e-16 (s_1 / s_k)^2 relative:
    good for a sweep, not for telling a rank. Raises ValueError for an unknown cut or a kernel that is not finite.
    """
    matrix = unfold(checked(kernel), cut)
    if not gram:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    elif matrix.shape[0] <= matrix.shape[1]:
        left, values, right = _gram_svd(matrix)
    else:
        across, values, along = _gram_svd(matrix.mT)
        left, right = along.mT, across.mT
    return CutSVD(cut, tuple(kernel.shape), left, values, right)


def _gram_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a flat matrix through its small Gram matrix; directions of no weight get zero right vectors."""
    squares, left = torch.linalg.eigh(matrix @ matrix.mT)
    left, product = left.flip(1), left.flip(1).mT @ matrix
    values = product.norm(dim=1)
    return left, values, product / values.clamp(min=torch.finfo(values.dtype).tiny)[:, None]


def spectrum(kernel: Tensor, cut: str, gram: bool = False) -> Tensor:
    """The singular values across a cut, (N,) descending, in float64; `gram` as in `cut_svd`, with its exactness.

    Raises ValueError as `cut_svd`.
    """
    matrix = unfold(checked(kernel), cut)
    if not gram:
        return torch.linalg.svdvals(matrix)
    flat = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return torch.linalg.eigvalsh(flat @ flat.mT).clamp(min=0).sqrt().flip(0)


def weights(values: Tensor) -> Tensor:
    """P = s^2 / sum s^2 of singular values: the share of the squared norm that each carries.

    Raises ValueError if all are zero.
    """
    squares = values.double().square()
    if not squares.sum() > 0:
        raise ValueError("The zero kernel has no spectrum to normalise: leave it out, or read its norm loss alone.")
    return squares / squares.sum()


QUANTILE_NODES = 16384  # of the Marchenko-Pastur law; between them it is linear


def zeroed(kernel: Tensor) -> Tensor:
    """The zero kernel, like `kernel`: norm loss 1. A layer that this does not hurt is no evidence for truncation.

    Source: paper 2, control N1.
    """
    return torch.zeros_like(kernel)


def projected_at_random(kernel: Tensor, cut: str, rank: int, generator: torch.Generator, side: str = "short") -> Tensor:
    """The kernel projected on a uniformly random subspace of a rank on a cut, in place of the leading one.

    generator: of the subspace. side: "short" or "long" side of the cut's matrix; the expected squared relative error is
    1 - rank / (length of that side). Raises ValueError for another side, or a rank outside the cut's.
    Source: paper 2, control N2.
    """
    matrix = unfold(checked(kernel), cut)
    rank = checked_rank(rank, min(matrix.shape), f"The {cut} cut of a {tuple(kernel.shape)} kernel")
    if side not in ("short", "long"):
        raise ValueError(f"The side of a random subspace is short or long, not {side!r}: choose one.")
    on_rows = (matrix.shape[0] <= matrix.shape[1]) == (side == "short")
    basis = torch.linalg.qr(_normal((matrix.shape[0 if on_rows else 1], rank), generator).to(matrix)).Q
    projected = basis @ (basis.mT @ matrix) if on_rows else (matrix @ basis) @ basis.mT
    return fold(projected, cut, kernel.shape).to(kernel)


def perturbed(kernel: Tensor, error: float, generator: torch.Generator) -> Tensor:
    """The kernel plus Gaussian noise of exactly the relative error `error` >= 0; its norm loss is near or below 0.

    Raises ValueError for a negative error. Source: paper 2, control N3.
    """
    if not 0 <= error < float("inf"):
        raise ValueError(f"The relative error of a perturbation must be finite and not negative, not {error}.")
    source = checked(kernel)
    noise = _normal(source.shape, generator).to(source)
    return (source + noise * (error * source.norm() / noise.norm())).to(kernel)


def shrunk(kernel: Tensor, error: float) -> Tensor:
    """(1 - error) times the kernel: norm is lost, no correlation is. Raises ValueError for an error outside [0, 1].

    Source: paper 2, control N4.
    """
    if not 0 <= error <= 1:
        raise ValueError(f"The relative error of shrinking must lie in [0, 1], not {error}.")
    return ((1 - error) * checked(kernel)).to(kernel)


def pruned(kernel: Tensor, error: float) -> Tensor:
    """The kernel without its lowest magnitudes, as many as keep the relative error at or below `error`, in [0, 1).

    Raises ValueError for an error outside that range. Source: paper 2, control N5.
    """
    if not 0 <= error < 1:
        raise ValueError(f"The relative error of pruning must lie in [0, 1), not {error}.")
    squares = checked(kernel).square().flatten().sort().values.cumsum(0)
    count = int((squares[:-1] <= error**2 * squares[-1]).sum())
    return kernel.detach() * magnitude_mask(kernel.detach(), count / kernel.numel(), "lowest")


def smallest_kept(kernel: Tensor, cut: str, rank: int) -> Tensor:
    """The kernel of a rank on a cut with the smallest singular values in place of the largest.

    Raises ValueError for a rank outside the cut's. Source: paper 2, control N6, matched through the rank.
    """
    svd = cut_svd(kernel, cut)
    rank = checked_rank(rank, len(svd.values), f"The {cut} cut of a {tuple(kernel.shape)} kernel")
    return fold((svd.left[:, -rank:] * svd.values[-rank:]) @ svd.right[-rank:], cut, kernel.shape).to(kernel)


def gaussian_like(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """A Gaussian kernel of mean 0 and the norm of `kernel`: the random kernel whose spectra are Marchenko-Pastur.

    Source: paper 2, the random baseline, at the layer's own shape.
    """
    source = checked(kernel)
    noise = _normal(source.shape, generator).to(source)
    return (noise * (source.norm() / noise.norm())).to(kernel)


def shuffled(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """The same weights in random places: every statistic of single weights is kept, every correlation broken.

    Source: extension of this companion, beside `gaussian_like`.
    """
    order = torch.randperm(kernel.numel(), generator=generator, device=generator.device).to(kernel.device)
    return checked(kernel).flatten()[order].view(kernel.shape).to(kernel)


def marchenko_pastur(short: int, long: int) -> Tensor:
    """The weights p_k that a large random matrix would have, (short,) descending with sum 1: the null of a spectrum.

    short, long: sides of the cut's matrix, short <= long; ValueError otherwise. Small matrices scatter around it and
    their entropy lies about .4 / long below: simulate those at their own shape.

    With beta = short / long and x = 1 + beta + 2 sqrt(beta) cos t, the Marchenko-Pastur density of the squared values
    is rho dx = (2 / pi) sin^2 t / x dt, and the weight x rho dx = (2 / pi) sin^2 t dt is a semicircle: p_k is its mass
    between the quantiles (k - 1) / short and k / short of rho. Source: paper 2's random baseline; standard law.
    """
    if not 1 <= short <= long:
        raise ValueError(f"Sides of a matrix come short side first and positive, not {short}, {long}.")
    beta = short / long
    t = np.linspace(0, np.pi, QUANTILE_NODES + 1)
    middle = (t[1:] + t[:-1]) / 2
    count = np.append(0, np.cumsum(np.sin(middle) ** 2 / (1 + beta + 2 * np.sqrt(beta) * np.cos(middle))))
    t = np.interp(np.arange(short + 1) / short, count / count[-1], t)
    return torch.from_numpy(np.diff(t - np.sin(t) * np.cos(t)) / np.pi)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator, device=generator.device)
