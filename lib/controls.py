"""What truncation is compared with: kernels that lose as much norm in another way, and random kernels and spectra."""

import numpy as np
import torch
from torch import Tensor

from lib.cuts import checked, checked_rank, cut_svd, fold, unfold
from lib.masks import magnitude_mask

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
