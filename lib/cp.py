"""CP: a convolution kernel as a sum of rank-one kernels, by alternating least squares from several random starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.cuts import checked, checked_rank

WINDOW = 50  # iterations between two looks at the error


@dataclass(frozen=True, eq=False)
class CP:
    """A sum of rank-one kernels: weights (R,), four factors (mode, R) with columns of norm 1, float64.

    relative_error: of this fit, recomputed from the kernel. converged: whether it stopped falling (see `cp_als`).
    errors: of all starts, this one's among them: their spread is part of the result.
    A norm of `weights` that grows without bound while the error falls is a degeneracy: no best fit exists.
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    relative_error: float
    iterations: int
    converged: bool
    errors: tuple[float, ...]

    def kernel(self) -> Tensor:
        """The dense kernel (OUT, IN, KH, KW)."""
        return _dense(self.weights, self.factors).unflatten(1, [len(factor) for factor in self.factors[1:]])


def largest_rank(shape: Sequence[int]) -> int:
    """A number of terms that fits every kernel of a shape (OUT, IN, KH, KW): the product of the smaller modes."""
    return math.prod(shape) // max(shape)


def cp(
    kernel: Tensor,
    rank: int,
    generator: torch.Generator | None,
    starts: int = 5,
    iterations: int = 5000,
    tolerance: float = 1e-6,
) -> CP:
    """The best of several CP fits from random starts, each by `cp_als`.

    kernel: (OUT, IN, KH, KW). rank: number of terms R. generator: of the starts. iterations, tolerance: see `cp_als`.
    Raises ValueError for a rank outside 1 to `largest_rank`, fewer than one start, or without a generator.
    Source: paper 2, CP; which rank and solver it used is unknown. No best fit need exist (see `CP`).
    """
    kernel = checked(kernel)
    rank = checked_rank(rank, largest_rank(kernel.shape), f"The CP form of a {tuple(kernel.shape)} kernel")
    if generator is None or starts < 1:
        raise ValueError("CP needs a torch.Generator and at least one start: pass generator.")
    fits = []
    for _ in range(starts):
        draws = [
            torch.randn(size, rank, dtype=torch.float64, generator=generator, device=generator.device)
            for size in kernel.shape
        ]
        fits.append(cp_als(kernel, [draw.to(kernel.device) for draw in draws], iterations, tolerance))
    best = min(fits, key=lambda fit: fit.relative_error)
    errors = tuple(fit.relative_error for fit in fits)
    return CP(best.weights, best.factors, best.relative_error, best.iterations, best.converged, errors)


def cp_als(kernel: Tensor, start: Sequence[Tensor], iterations: int = 5000, tolerance: float = 1e-6) -> CP:
    """CP form by alternating least squares in float64 from given factors.

    start: four factors (mode, R). tolerance: converged when the error falls by at most this share of itself in WINDOW
    iterations; 0 goes on to the end or to an exact fit. The error is recomputed from the kernel, never read off norms.
    Both pixel modes ride along as one, so an iteration costs two products of the kernel with an (OUT or IN, R) factor.
    Raises ValueError for other shapes of factors, fewer than one iteration, or the zero kernel.
    """
    kernel = checked(kernel)
    if [tuple(factor.shape) for factor in start] != [(size, start[0].shape[1]) for size in kernel.shape]:
        raise ValueError(f"CP starts from four factors (mode, R) of the modes {tuple(kernel.shape)}: draw those.")
    if iterations < 1 or not kernel.any():
        raise ValueError("CP needs at least one iteration and a kernel that is not zero: leave zero kernels out.")
    matrix = kernel.reshape(len(kernel), -1)
    factors = [factor / _lengths(factor) for factor in start]
    grams = [factor.mT @ factor for factor in factors]
    inputs, (rows, columns) = kernel.shape[1], kernel.shape[2:]

    def update(mode: int, right_side: Tensor) -> Tensor:
        gram = math.prod(grams[other] for other in range(4) if other != mode)
        factor = _solved(gram, right_side)
        lengths = _lengths(factor)
        factors[mode] = factor / lengths
        grams[mode] = factors[mode].mT @ factors[mode]
        return lengths

    error, converged, done = 1.0, False, 0  # of no terms at all
    while done < iterations and not converged:
        pixels = _products(factors[2], factors[3])
        update(0, matrix @ _products(factors[1], pixels))
        partial = (matrix.mT @ factors[0]).unflatten(0, (inputs, -1))
        update(1, (partial * pixels).sum(1))
        partial = (partial * factors[1][:, None]).sum(0).unflatten(0, (rows, columns))
        update(2, (partial * factors[3]).sum(1))
        weights = update(3, (partial * factors[2][:, None]).sum(0))
        done += 1
        if done % WINDOW == 0 or done == iterations:
            before, error = error, ((matrix - _dense(weights, factors)).norm() / matrix.norm()).item()
            converged = done % WINDOW == 0 and before - error <= tolerance * before
    return CP(weights, tuple(factors), error, done, converged, (error,))


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Khatri-Rao product of (m, R) and (n, R): (m * n, R)."""
    return (first[:, None] * second).flatten(0, 1)


def _lengths(factor: Tensor) -> Tensor:
    return factor.norm(dim=0).clamp(min=torch.finfo(factor.dtype).tiny)


def _dense(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The (OUT, IN * KH * KW) matrix of a CP form."""
    out, inputs, rows, columns = factors
    return (out * weights) @ _products(_products(inputs, rows), columns).mT


def _solved(gram: Tensor, right_side: Tensor) -> Tensor:
    """right_side @ gram^-1; of least norm where terms have become collinear and the Gram matrix singular."""
    root, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        return right_side @ torch.linalg.pinv(gram, hermitian=True)
    return torch.cholesky_solve(right_side.mT, root).mT
