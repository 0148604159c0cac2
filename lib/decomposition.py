"""A convolution kernel as a few small tensors: cut, matrix product state, ring, Tucker, and CP by `lib.cp`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.cp import CP, cp, largest_rank
from lib.cuts import CUTS, MODES, checked, cut_svd, matrix_shape, sides

RANKS = {**dict.fromkeys(CUTS, 1), "tucker": 4, "tucker2": 2, "cp": 1, "tt": 3, "ring": 4}  # ranks that a form has
ORDER = ("OUT", "KH", "KW", "IN")


@dataclass(frozen=True, eq=False)
class Train:
    """Cores in a row, neighbours joined by a bond: the sites' modes, and float64 cores (left bond, *modes, right bond).

    Two sites are a cut at one rank, four a tensor train (matrix product state). The bond from the last core back to
    the first has size 1, except in a tensor ring.
    """

    sites: tuple[tuple[int, ...], ...]
    cores: tuple[Tensor, ...]

    def kernel(self) -> Tensor:
        """The dense kernel (OUT, IN, KH, KW) that the cores stand for."""
        bonds = ["abcd"[site] for site in range(len(self.sites))] + ["a"]
        terms = [
            bonds[k] + "".join("oihw"[mode] for mode in modes) + bonds[k + 1] for k, modes in enumerate(self.sites)
        ]
        return torch.einsum(",".join(terms) + "->oihw", *self.cores)


@dataclass(frozen=True, eq=False)
class Tucker:
    """A core (RO, RI, RH, RW) and four factors (mode, rank) with orthonormal columns, float64.

    A factor is None where its mode is left as it is: KH and KW of Tucker-2.
    """

    core: Tensor
    factors: tuple[Tensor | None, ...]

    def kernel(self) -> Tensor:
        """The dense kernel (OUT, IN, KH, KW)."""
        kernel = self.core
        for mode, factor in enumerate(self.factors):
            kernel = kernel if factor is None else _contracted(kernel, factor.mT, mode)
        return kernel


def limits(shape: Sequence[int], form: str, ranks: Sequence[int], order: Sequence[str] = ORDER) -> tuple[int, ...]:
    """The largest useful value of each rank of a form, given the others. Raises ValueError for an unknown form.

    shape: (OUT, IN, KH, KW). order: of the modes, for "tt" and "ring". More than a cut's matrix, a mode or the
    neighbouring ranks can carry is only waste.
    """
    if len(shape) != 4:
        raise ValueError(f"A kernel has the modes OUT, IN, KH, KW, not the shape {tuple(shape)}: add modes of size 1.")
    if form in CUTS:
        return (min(matrix_shape(shape, form)),)
    if form == "cp":
        return (largest_rank(shape),)
    if form in ("tucker", "tucker2"):
        ranks = (*ranks, *shape[len(ranks) :])
        return tuple(
            min(shape[mode], math.prod(ranks) // max(ranks[mode], 1)) for mode in range(4 if form == "tucker" else 2)
        )
    if form not in RANKS:
        raise ValueError(f"Unknown form {form!r}: use one of {', '.join(RANKS)}.")
    sizes = [shape[mode] for mode in mode_order(order)]
    closing, *bonds = ranks if form == "ring" else (1, *ranks)
    first = min(sizes[0], math.prod(sizes[1:]))
    most = [first // max(closing, 1)]
    for k in (1, 2):
        most.append(min(bonds[k - 1] * sizes[k], math.prod(sizes[k + 1 :]) * closing))
    return (first, *most) if form == "ring" else tuple(most)


def checked_ranks(
    shape: Sequence[int], form: str, rank: int | Sequence[int], order: Sequence[str] = ORDER
) -> tuple[int, ...]:
    """The ranks of a form as a tuple. Raises ValueError for a wrong number of ranks, or one outside 1 to `limits`."""
    ranks = (rank,) if not isinstance(rank, Sequence) else tuple(rank)
    if len(ranks) != RANKS.get(form, len(ranks)):
        raise ValueError(f"The form {form!r} needs {RANKS[form]} ranks, not {rank}: see decomposition.decompose.")
    most = limits(shape, form, ranks, order)
    if any(value not in range(1, top + 1) for value, top in zip(ranks, most, strict=True)):
        raise ValueError(
            f"The ranks {ranks} of {form!r} for a {tuple(shape)} kernel must lie between 1 and {most}: choose others."
        )
    return tuple(int(value) for value in ranks)


def decompose(
    kernel: Tensor,
    form: str,
    rank: int | Sequence[int],
    order: Sequence[str] = ORDER,
    generator: torch.Generator | None = None,
) -> Train | Tucker | CP:
    """A kernel in one of the forms of RANKS.

    kernel: (OUT, IN, KH, KW), finite. rank: one number for a cut and for "cp"; (OUT, IN) for "tucker2"; one per mode
    for "tucker"; the three bonds for "tt"; the closing bond, then the three others for "ring". order: of the modes,
    for "tt" and "ring". generator: for "cp" only. Raises ValueError for anything outside these ranges.
    """
    if form in CUTS:
        svd = cut_svd(kernel, form)
        left, right = svd.factors(rank)
        rows, columns = ([kernel.shape[mode] for mode in side] for side in sides(form))
        return Train(sides(form), (left.reshape(1, *rows, -1), right.reshape(-1, *columns, 1)))
    if form in ("tucker", "tucker2"):
        return hooi(kernel, checked_ranks(kernel.shape, form, rank))
    if form == "cp":
        return cp(kernel, rank, generator)
    return (tensor_ring if form == "ring" else tensor_train)(
        kernel, checked_ranks(kernel.shape, form, rank, order), order
    )


def mode_order(order: Sequence[str]) -> tuple[int, ...]:
    """Positions of mode names. Raises ValueError unless each of MODES is named once."""
    if sorted(order) != sorted(MODES):
        raise ValueError(f"A mode order names each of {', '.join(MODES)} once, not {order}.")
    return tuple(MODES.index(name) for name in order)


def tensor_train(kernel: Tensor, bonds: Sequence[int], order: Sequence[str] = ORDER) -> Train:
    """Tensor train (matrix product state) by sequential SVDs (TT-SVD) along any order of the modes.

    kernel: (OUT, IN, KH, KW). bonds: three, each at most what its matrix carries. The squared error is the sum of what
    the three SVDs discard. Raises ValueError for other bonds or orders.
    Source: paper 2, matrix product states; the ends and the middle of the order are the cuts that it truncates.
    """
    return tensor_ring(kernel, (1, *checked_ranks(kernel.shape, "tt", tuple(bonds), order)), order)


def tensor_ring(kernel: Tensor, ranks: Sequence[int], order: Sequence[str] = ORDER) -> Train:
    """Tensor ring by sequential SVDs (TR-SVD).

    ranks: the closing bond before the first mode, then the three bonds between modes; the first two multiply to at
    most what the first mode carries. A ring with a larger closing bond has no error bound, unlike a train, and is not
    improved by alternating least squares. Raises ValueError for other ranks or orders.
    Source: paper 2's digest names the ring.
    """
    kernel = checked(kernel)
    closing, *bonds = checked_ranks(kernel.shape, "ring", tuple(ranks), order)
    modes = mode_order(order)
    sizes = [kernel.shape[mode] for mode in modes]
    basis = _basis(kernel.permute(modes).reshape(sizes[0], -1), closing * bonds[0])
    cores = [basis.reshape(sizes[0], closing, bonds[0]).transpose(0, 1)]
    rest = basis.mT @ kernel.permute(modes).reshape(sizes[0], -1)
    rest = rest.reshape(closing, -1).mT
    for k in (1, 2):
        rest = rest.reshape(bonds[k - 1] * sizes[k], -1)
        basis = _basis(rest, bonds[k])
        cores.append(basis.reshape(bonds[k - 1], sizes[k], bonds[k]))
        rest = basis.mT @ rest
    cores.append(rest.reshape(bonds[2], sizes[3], closing))
    return Train(tuple((mode,) for mode in modes), tuple(cores))


def hosvd(kernel: Tensor, ranks: Sequence[int], order: Sequence[str] | None = None) -> Tucker:
    """Tucker form by one SVD a mode; with an `order` of the modes sequentially, each on what the last one left.

    ranks: (OUT, IN), or one per mode. The squared error of the sequential form is the sum of what each step discards;
    both obey max_k D_k <= error^2 <= sum_k D_k, D_k discarded on mode k of the kernel itself.
    Raises ValueError for ranks that cannot be. Source: paper 2, Tucker; its ranks are those of the four single cuts.
    """
    kernel = checked(kernel)
    ranks = checked_ranks(kernel.shape, "tucker2" if len(ranks) == 2 else "tucker", tuple(ranks))
    core, factors = kernel, [None] * 4
    for mode in mode_order(order or MODES):
        if mode < len(ranks):
            source = kernel if order is None else core
            whole = ranks[mode] == kernel.shape[mode]
            factors[mode] = torch.eye(ranks[mode]).to(kernel) if whole else _basis(_rows(source, mode), ranks[mode])
            core = _contracted(core, factors[mode], mode)
    return Tucker(core, tuple(factors))


def hooi(kernel: Tensor, ranks: Sequence[int], sweeps: int = 50, tolerance: float = 1e-4) -> Tucker:
    """Tucker form by higher-order orthogonal iteration, from the sequential HOSVD, largest mode first.

    ranks: as in `hosvd`. Ends when the kept norm grows by less than `tolerance` of it in a sweep, or after `sweeps`.
    Raises ValueError for ranks that cannot be.
    """
    kernel = checked(kernel)
    by_size = sorted(range(4), key=lambda mode: -kernel.shape[mode])
    start = hosvd(kernel, ranks, [MODES[mode] for mode in by_size])
    core, factors = start.core, list(start.factors)
    free = [mode for mode in by_size if core.shape[mode] < kernel.shape[mode]]
    for _ in range(sweeps if len(free) > 1 else 0):
        before, core = core.norm(), kernel
        for k, mode in enumerate(free):
            projected = core
            for later in reversed(free[k + 1 :]):
                projected = _contracted(projected, factors[later], later)
            factors[mode] = _basis(_rows(projected, mode), start.core.shape[mode])
            core = _contracted(core, factors[mode], mode)
        if core.norm() - before <= tolerance * before:
            break
    return Tucker(core, tuple(factors))


def _contracted(kernel: Tensor, factor: Tensor, mode: int) -> Tensor:
    """The kernel with `mode` contracted against the rows of a factor (mode, rank)."""
    return torch.tensordot(kernel, factor, ([mode], [0])).movedim(-1, mode)


def _rows(kernel: Tensor, mode: int) -> Tensor:
    return kernel.movedim(mode, 0).flatten(1)


def _basis(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns that span the leading left singular vectors, through the short side's Gram matrix.

    A subspace needs no more: what the Gram matrix cannot resolve weighs 1e-8 of the largest singular value. The largest
    entry of each column is positive: the error of a tensor ring depends on these signs.
    """
    flat = matrix.shape[0] <= matrix.shape[1]
    basis = torch.linalg.eigh(matrix @ matrix.mT if flat else matrix.mT @ matrix).eigenvectors[:, -rank:].flip(1)
    if not flat:
        basis = torch.linalg.qr(matrix @ basis).Q
    return basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
