"""CP: a convolution kernel as a sum of rank-one kernels, by alternating least squares from several random starts.

A convolution kernel as a few small tensors: cut, matrix product state, ring, Tucker, and CP by `lib.cp`.

Factorised layers: the small convolutions that a decomposed kernel stands for, their parameters and their MACs.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.models import count_macs
from lib.truncation.cuts import CUTS, MODES, checked, checked_rank, cut_svd, matrix_shape, sides

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


class Stage(NamedTuple):
    """One small convolution of a factorised layer: `copies` of a convolution with `groups`, side by side.

    weight: (groups * out, in, KH, KW) of one copy, shared by all. Channels are ordered by copy, then by group.
    vertical, horizontal: whether this stage carries the layer's stride, padding and dilation along that axis.
    """

    weight: Tensor
    copies: int
    groups: int
    vertical: bool
    horizontal: bool


class SharedConv2d(nn.Conv2d):
    """A grouped convolution whose groups come in copies with the same filters, kept, counted and trained once."""

    def __init__(self, copies: int, *args, **keywords):
        super().__init__(*args, **keywords)
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.repeat(self.copies, 1, 1, 1), self.bias)


def stages(factors: Train | Tucker | CP, groups: int = 1) -> list[Stage]:
    """The convolutions, in the signal's order, whose composition is the convolution with that kernel.

    groups: of the convolution; every form applies to every number of groups, its first stages shared by all of them.
    Raises ValueError for a tensor ring in which OUT and IN are no neighbours: its closing bond would have to cross
    the output channels.
    """
    if isinstance(factors, Train):
        return _train_stages(_along_signal(factors), groups)
    if isinstance(factors, CP):
        out, inputs, rows, columns = factors.factors
        rank = len(factors.weights)
        return [
            Stage(inputs.mT[..., None, None], groups, 1, False, False),
            Stage(rows.mT[:, None, :, None], groups, rank, True, False),
            Stage(columns.mT[:, None, None], groups, rank, False, True),
            Stage((out * factors.weights)[..., None, None], 1, groups, False, False),
        ]
    core, (out, inputs, rows, columns) = factors.core, factors.factors
    steps = [Stage(inputs.mT[..., None, None], groups, 1, False, False)]
    if rows is None:
        steps.append(Stage(core, groups, 1, True, True))
    else:
        copies = groups * core.shape[1]
        steps.append(Stage(rows.mT[:, None, :, None], copies, 1, True, False))
        steps.append(Stage(columns.mT[:, None, None], copies * core.shape[2], 1, False, True))
        steps.append(Stage(core.flatten(1)[..., None, None], groups, 1, False, False))
    return [*steps, Stage(out[..., None, None], 1, groups, False, False)]


def layers(conv: nn.Conv2d, factors: Train | Tucker | CP) -> nn.Sequential:
    """The factorised layer: convolutions that give what `conv` gives with the kernel `factors.kernel()`.

    Stride, padding and dilation sit, axis by axis, where KH and KW are; the bias is on the last convolution. Any
    geometry, padding mode and number of groups; dtype and device are those of `conv`. Raises ValueError as `stages`.
    Source: paper 2; the placement is this companion's.
    """
    steps = stages(factors, conv.groups)
    return nn.Sequential(*[_convolution(conv, stage, stage is steps[-1]) for stage in steps])


@torch.no_grad()
def dense_kernel(factorised: nn.Sequential) -> Tensor:
    """The kernel (OUT, IN, KH, KW) that a factorised layer stands for, for example after training: its answer
    to single pixels.

    factorised: of `layers`, without groups. The bias is left out.
    """
    steps = deepcopy(factorised)
    for step in steps:
        step.stride, step.padding, step.dilation, step.bias, step.padding_mode = (1, 1), (0, 0), (1, 1), None, "zeros"
    inputs = steps[0].in_channels
    window = [1 + sum(step.kernel_size[axis] - 1 for step in steps) for axis in (0, 1)]
    pixels = torch.zeros(inputs, inputs, *[2 * side - 1 for side in window]).to(steps[0].weight)
    pixels[range(inputs), range(inputs), window[0] - 1, window[1] - 1] = 1
    return steps(pixels).transpose(0, 1).flip(2, 3)


def parameters(shape: Sequence[int], form: str, rank: int | Sequence[int], order: Sequence[str] = ORDER) -> int:
    """Weights of a factorised kernel, without bias. A truncated dense kernel keeps all its own.

    shape: (OUT, IN, KH, KW). rank, order: as in `decomposition.decompose`; ValueError as there and in `stages`.
    Source: paper 2, compression ratio: this over the dense count, or its inverse.
    """
    return sum(stage.weight.numel() for stage in stages(_blank(shape, form, rank, order)))


def macs(
    conv: nn.Conv2d, size: tuple[int, int], form: str, rank: int | Sequence[int], order: Sequence[str] = ORDER
) -> int:
    """Multiply-accumulates of a factorised layer for one image of `size` (height, width) in pixels.

    conv: the dense layer. rank, order: as in `decomposition.decompose`; ValueError as there and in `stages`.
    """
    blank = layers(deepcopy(conv).to("meta"), _blank(conv.weight.shape, form, rank, order))
    return count_macs(blank, (1, conv.in_channels, *size))


def break_even(shape: Sequence[int], form: str) -> float:
    """The rank, not rounded, at which a form with one rank has as many parameters as the dense kernel.

    form: a cut, mn / (m + n), or "cp", numel / (OUT + IN + KH + KW). Raises ValueError for forms with several ranks:
    for those ask `ranks_within` the dense count. Source: paper 2, compression ratio.
    """
    if form not in (*CUTS, "cp"):
        raise ValueError(f"The form {form!r} has no single break-even rank: use ranks_within with the dense count.")
    return math.prod(shape) / parameters(shape, form, 1)


def ranks_at(shape: Sequence[int], form: str, share: float, order: Sequence[str] = ORDER) -> int | tuple[int, ...]:
    """Ranks of a form at a share of the largest possible ones, rounded down, each at least 1 and of use to the others.

    share: in [0, 1]; ValueError otherwise. A ring has all bonds equal. One number for a form with one rank.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"A share of the largest ranks must lie in [0, 1], not {share}.")
    largest = _largest(shape, form, order)
    ranks = _useful(shape, form, tuple(max(1, math.floor(share * top + 1e-9)) for top in largest), order)
    return ranks if len(ranks) > 1 else ranks[0]


def ranks_within(shape: Sequence[int], form: str, budget: float, order: Sequence[str] = ORDER) -> int | tuple[int, ...]:
    """The ranks of `ranks_at` for the largest share that has at most `budget` parameters.

    Raises ValueError if not even rank 1 has. Source: paper 2's comparison of forms at equal parameters.
    """
    shares = sorted({step / top for top in _largest(shape, form, order) for step in range(1, top + 1)})
    fitting = bisect_right(
        shares, budget, key=lambda share: parameters(shape, form, ranks_at(shape, form, share, order), order)
    )
    if not fitting:
        raise ValueError(f"No {form!r} form of a {tuple(shape)} kernel has at most {budget} parameters: allow more.")
    return ranks_at(shape, form, shares[fitting - 1], order)


def _useful(shape: Sequence[int], form: str, ranks: tuple[int, ...], order: Sequence[str]) -> tuple[int, ...]:
    """Ranks lowered until none is above what the others leave of use."""
    while (lower := tuple(map(min, ranks, limits(shape, form, ranks, order)))) != ranks:
        ranks = lower
    return ranks


def _largest(shape: Sequence[int], form: str, order: Sequence[str]) -> tuple[int, ...]:
    first = shape[mode_order(order)[0]]
    most = math.isqrt(min(first, math.prod(shape) // first)) if form == "ring" else math.prod(shape)
    return _useful(shape, form, (most,) * RANKS.get(form, 1), order)


def _blank(shape: Sequence[int], form: str, rank: int | Sequence[int], order: Sequence[str]) -> Train | Tucker | CP:
    """A decomposition without values, for counting."""
    ranks = checked_ranks(shape, form, rank, order)
    empty = partial(torch.empty, device="meta")
    if form == "cp":
        return CP(empty(ranks), tuple(empty(size, *ranks) for size in shape), math.nan, 0, False, ())
    if form in ("tucker", "tucker2"):
        factors = [empty(size, top) for size, top in zip(shape, ranks, strict=False)]
        return Tucker(empty(*ranks, *shape[len(ranks) :]), (*factors, *[None] * (4 - len(ranks))))
    sites = sides(form) if form in CUTS else tuple((mode,) for mode in mode_order(order))
    bonds = (*ranks, ranks[0]) if form == "ring" else (1, *ranks, 1)
    cores = [empty(bonds[k], *[shape[mode] for mode in modes], bonds[k + 1]) for k, modes in enumerate(sites)]
    return Train(sites, tuple(cores))


def _along_signal(train: Train) -> Train:
    """The same train with IN before OUT; spatial sites first if one site has both; a ring from IN round to OUT."""
    count = len(train.sites)
    source, target = (next(k for k, modes in enumerate(train.sites) if mode in modes) for mode in (1, 0))
    ring = train.cores[0].shape[0] > 1
    if ring and (source - target) % count not in (1, count - 1):
        raise ValueError("A tensor ring becomes a layer only if OUT and IN are neighbours in it: change the order.")
    if (ring and (source - target) % count != 1) or (not ring and (source > target or source == target == 0)):
        cores = tuple(core.transpose(0, -1) for core in reversed(train.cores))
        train, source = Train(train.sites[::-1], cores), count - 1 - source
    start = source if ring else 0
    return Train(train.sites[start:] + train.sites[:start], train.cores[start:] + train.cores[:start])


def _train_stages(train: Train, groups: int) -> list[Stage]:
    """One stage a site. Before IN the input channels ride along as copies, after OUT the output channels do.

    Channels are ordered by group, then by those riding along, the ring's closing bond, and the bond.
    """
    sizes = {
        mode: core.shape[1 + k]
        for modes, core in zip(train.sites, train.cores, strict=True)
        for k, mode in enumerate(modes)
    }
    closing = train.cores[0].shape[0]
    last = len(train.sites) - 1
    copies, steps = groups * sizes[1], []
    for site, (modes, core) in enumerate(zip(train.sites, train.cores, strict=True)):
        axis = {mode: 1 + k for k, mode in enumerate(modes)}
        left, right = 0, core.dim() - 1
        # the closing bond leaves the first site as an output and enters the last as an input
        outputs = [axis[0]] if 0 in axis else []
        outputs += [left] * (site == 0) + [right] * (site < last)
        inputs = [axis[1]] if 1 in axis else []
        inputs += [right] * (site == last) + [left] * (site > 0)
        window = [axis[mode] for mode in (2, 3) if mode in axis]
        weight = core.permute(*outputs, *inputs, *window).reshape(
            math.prod(core.shape[k] for k in outputs),
            math.prod(core.shape[k] for k in inputs),
            *[sizes[mode] if mode in axis else 1 for mode in (2, 3)],
        )
        if 0 in axis:
            steps.append(Stage(weight, 1, groups, 2 in axis, 3 in axis))
            copies = sizes[0]
        else:
            steps.append(Stage(weight, groups if 1 in axis else copies, 1, 2 in axis, 3 in axis))
            copies = groups * closing if 1 in axis else copies
    return steps


def _convolution(conv: nn.Conv2d, stage: Stage, last: bool) -> nn.Conv2d:
    outputs, inputs, *window = stage.weight.shape
    groups = stage.copies * stage.groups

    def carried(values: tuple[int, int], otherwise: int) -> tuple[int, int]:
        return values[0] if stage.vertical else otherwise, values[1] if stage.horizontal else otherwise

    keywords = {
        "in_channels": inputs * groups,
        "out_channels": outputs * stage.copies,
        "kernel_size": tuple(window),
        "stride": carried(conv.stride, 1),
        "padding": conv.padding if isinstance(conv.padding, str) else carried(conv.padding, 0),
        "dilation": carried(conv.dilation, 1),
        "groups": groups,
        "bias": False,
        "padding_mode": conv.padding_mode,
        "device": "meta",  # no random numbers are drawn for weights that are replaced at once
    }
    layer = nn.Conv2d(**keywords) if stage.copies == 1 else SharedConv2d(stage.copies, **keywords)
    layer.weight = nn.Parameter(stage.weight.to(conv.weight).clone(memory_format=torch.contiguous_format))
    if last and conv.bias is not None:
        layer.bias = nn.Parameter(conv.bias.detach().clone())
    return layer
