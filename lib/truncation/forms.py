"""A kernel as a few small tensors: cut, tensor train, tensor ring, Tucker, CP; and the small convolutions of each.

A form is named as in RANKS. The functions raise ValueError as those of `measures`, for an unknown form, for a wrong
number of ranks, and for ranks outside 1 to `limits`.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.truncation.measures import CUTS, MODES, checked, cut_svd, matrix_shape, normal, relative_error, sides

RANKS = {**dict.fromkeys(CUTS, 1), "tucker": 4, "tucker2": 2, "cp": 1, "tt": 3, "ring": 4}  # ranks that a form has
ORDER = ("OUT", "KH", "KW", "IN")
WINDOW = 50  # iterations of CP between two looks at the error
COMPARED = 100  # candidates of `best_ranks` whose exact errors are compared
Ranks = int | Sequence[int]
Order = Sequence[str]


class Stage(NamedTuple):
    """One small convolution of a factorised layer: `copies` of a convolution with `groups`, side by side.

    The weight (groups * out, in, KH, KW) is that of one copy. All copies share it: they apply the same filters to every
    input channel before the stage of IN, and to every output channel after that of OUT. Channels are ordered by copy,
    then by group. `vertical` and `horizontal` say whether this stage carries the layer's stride, padding and dilation.
    """

    weight: Tensor
    copies: int
    groups: int
    vertical: bool
    horizontal: bool


@dataclass(frozen=True, eq=False)
class Train:
    """Cores in a row, neighbours joined by a bond: the sites' modes, and float64 cores (left bond, *modes, right bond).

    Two sites are a cut at one rank, four a tensor train (matrix product state). The bond from the last core back to
    the first has size 1, except in a tensor ring.
    """

    sites: tuple[tuple[int, ...], ...]
    cores: tuple[Tensor, ...]

    def kernel(self) -> Tensor:
        """The dense kernel (OUT, IN, KH, KW)."""
        bonds = ["abcd"[site] for site in range(len(self.sites))] + ["a"]
        terms = [
            bonds[k] + "".join("oihw"[mode] for mode in modes) + bonds[k + 1] for k, modes in enumerate(self.sites)
        ]
        return torch.einsum(",".join(terms) + "->oihw", *self.cores)

    def stages(self, groups: int) -> list[Stage]:
        """One stage per site. Before IN each input channel has its own copy, after OUT each output channel has.

        Channels are ordered by group, then by copy, the ring's closing bond, and the bond.
        """
        train = self._along_signal()
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

    def _along_signal(self) -> "Train":
        """The same train with IN before OUT; spatial sites first if one site has both; a ring from IN round to OUT."""
        train, count = self, len(self.sites)
        source, target = (next(k for k, modes in enumerate(self.sites) if mode in modes) for mode in (1, 0))
        ring = self.cores[0].shape[0] > 1
        if ring and (source - target) % count not in (1, count - 1):
            raise ValueError("A tensor ring becomes a layer only if OUT and IN are neighbours in it: change the order.")
        if (ring and (source - target) % count != 1) or (not ring and (source > target or source == target == 0)):
            cores = tuple(core.transpose(0, -1) for core in reversed(self.cores))
            train, source = Train(self.sites[::-1], cores), count - 1 - source
        start = source if ring else 0
        return Train(train.sites[start:] + train.sites[:start], train.cores[start:] + train.cores[:start])


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

    def stages(self, groups: int) -> list[Stage]:
        """The factor of IN, the core and the factors of the window, the factor of OUT."""
        core, (out, inputs, rows, columns) = self.core, self.factors
        steps = [Stage(inputs.mT[..., None, None], groups, 1, False, False)]
        if rows is None:
            steps.append(Stage(core, groups, 1, True, True))
        else:
            copies = groups * core.shape[1]
            steps.append(Stage(rows.mT[:, None, :, None], copies, 1, True, False))
            steps.append(Stage(columns.mT[:, None, None], copies * core.shape[2], 1, False, True))
            steps.append(Stage(core.flatten(1)[..., None, None], groups, 1, False, False))
        return [*steps, Stage(out[..., None, None], 1, groups, False, False)]


@dataclass(frozen=True, eq=False)
class CP:
    """A sum of rank-one kernels: weights (R,), four factors (mode, R) with columns of norm 1, float64.

    `relative_error` is that of this fit, recomputed from the kernel; `converged` says whether it stopped falling. A
    norm of `weights` that grows without bound while the error falls is a degeneracy: no best fit exists.
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    relative_error: float
    converged: bool

    def kernel(self) -> Tensor:
        """The dense kernel (OUT, IN, KH, KW)."""
        return _sum_of_terms(self.weights, self.factors).unflatten(1, [len(factor) for factor in self.factors[1:]])

    def stages(self, groups: int) -> list[Stage]:
        """One stage per factor: IN, KH, KW, OUT."""
        out, inputs, rows, columns = self.factors
        rank = len(self.weights)
        return [
            Stage(inputs.mT[..., None, None], groups, 1, False, False),
            Stage(rows.mT[:, None, :, None], groups, rank, True, False),
            Stage(columns.mT[:, None, None], groups, rank, False, True),
            Stage((out * self.weights)[..., None, None], 1, groups, False, False),
        ]


def decompose(
    kernel: Tensor,
    form: str,
    rank: Ranks,
    order: Order = ORDER,
    generator: torch.Generator | None = None,
    starts: int = 5,
    iterations: int = 5000,
) -> Train | Tucker | CP:
    """A kernel in a form.

    Args:
        kernel: (OUT, IN, KH, KW), finite.
        form: one of RANKS.
        rank: one number for a cut and for "cp"; (OUT, IN) for "tucker2"; one per mode for "tucker"; the three bonds for
            "tt"; for "ring" the closing bond before the first mode, then the three others.
        order: of the modes, for "tt" and "ring".
        generator: of the starts of "cp".
        starts: of "cp", of which the best is kept.
        iterations: of each start at most; the default takes up to 40 minutes for 256 terms of a 256x256x3x3 kernel.
    """
    ranks = checked_ranks(kernel.shape, form, rank, order)
    if form in CUTS:
        left, right = cut_svd(kernel, form).factors(*ranks)
        rows, columns = ([kernel.shape[mode] for mode in side] for side in sides(form))
        return Train(sides(form), (left.reshape(1, *rows, -1), right.reshape(-1, *columns, 1)))
    if form in ("tucker", "tucker2"):
        return _tucker(checked(kernel), ranks)
    if form == "cp":
        return cp(kernel, *ranks, generator, starts, iterations=iterations)
    return _ring(checked(kernel), ranks if form == "ring" else (1, *ranks), mode_order(order))


def approximate(kernel: Tensor, form: str, rank: Ranks, **options) -> Tensor:
    """The dense kernel, like `kernel`, of a form; arguments as `decompose`."""
    return decompose(kernel, form, rank, **options).kernel().to(kernel)


def factorise(conv: nn.Conv2d, form: str, rank: Ranks, **options) -> nn.Sequential:
    """The small convolutions that give what `conv` gives with the kernel of `approximate`; options as `decompose`.

    CP is random: to compare with its kernel, decompose once and build with `layers`.
    """
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"Only nn.Conv2d is factorised, not {type(conv).__name__}: write a linear layer as 1x1.")
    return layers(conv, decompose(conv.weight, form, rank, **options))


def limits(shape: Sequence[int], form: str, ranks: Sequence[int], order: Order = ORDER) -> tuple[int, ...]:
    """The largest useful value of each rank of a form, given the others.

    A larger rank than a cut's matrix, a mode or the neighbouring ranks allow only wastes parameters.
    """
    if len(shape) != 4:
        raise ValueError(f"A kernel has the modes OUT, IN, KH, KW, not the shape {tuple(shape)}: add modes of size 1.")
    if form not in RANKS:
        raise ValueError(f"Unknown form {form!r}: use one of {', '.join(RANKS)}.")
    if form in CUTS:
        return (min(matrix_shape(shape, form)),)
    if form == "cp":  # terms that fit every kernel
        return (math.prod(shape) // max(shape),)
    if form in ("tucker", "tucker2"):
        ranks = (*ranks, *shape[len(ranks) :])
        return tuple(min(shape[mode], math.prod(ranks) // max(ranks[mode], 1)) for mode in range(RANKS[form]))
    sizes = [shape[mode] for mode in mode_order(order)]
    closing, *bonds = ranks if form == "ring" else (1, *ranks)
    first = min(sizes[0], math.prod(sizes[1:]))
    most = [first // max(closing, 1)]
    for k in (1, 2):
        most.append(min(bonds[k - 1] * sizes[k], math.prod(sizes[k + 1 :]) * closing))
    return (first, *most) if form == "ring" else tuple(most)


def checked_ranks(shape: Sequence[int], form: str, rank: Ranks, order: Order = ORDER) -> tuple[int, ...]:
    """The ranks of a form as a tuple, each within `limits`."""
    ranks = tuple(rank) if isinstance(rank, Sequence) else (rank,)
    if len(ranks) != RANKS.get(form, len(ranks)):
        raise ValueError(f"The form {form!r} needs {RANKS[form]} ranks, not {rank}: see forms.decompose.")
    most = limits(shape, form, ranks, order)
    if any(value not in range(1, top + 1) for value, top in zip(ranks, most, strict=True)):
        raise ValueError(f"The ranks of {form!r} for a {tuple(shape)} kernel are 1 to at most {most}, not {ranks}.")
    return tuple(int(value) for value in ranks)


def mode_order(order: Order) -> tuple[int, ...]:
    """Positions of mode names, of which each must be there once."""
    if sorted(order) != sorted(MODES):
        raise ValueError(f"A mode order names each of {', '.join(MODES)} once, not {order}.")
    return tuple(MODES.index(name) for name in order)


def _ring(kernel: Tensor, ranks: tuple[int, ...], modes: tuple[int, ...]) -> Train:
    """Tensor ring by sequential SVDs (TR-SVD); with a closing bond of 1 a tensor train (TT-SVD).

    A train truncates the cuts at the ends and in the middle of the order, and its squared error is the sum of what the
    three SVDs discard. A ring with a larger closing bond has no such bound; it is not refined by least squares.
    """
    closing, *bonds = ranks
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


def _tucker(kernel: Tensor, ranks: tuple[int, ...]) -> Tucker:
    """Tucker form by higher-order orthogonal iteration, from the sequential HOSVD, largest mode first.

    It ends when a sweep increases the kept norm by a share below 1e-4, or after 50 sweeps.
    """
    by_size = sorted(range(4), key=lambda mode: -kernel.shape[mode])
    core, factors = kernel, [None] * 4
    for mode in by_size:
        if mode < len(ranks):
            whole = ranks[mode] == kernel.shape[mode]
            factors[mode] = torch.eye(ranks[mode]).to(kernel) if whole else _basis(_rows(core, mode), ranks[mode])
            core = _contracted(core, factors[mode], mode)
    free = [mode for mode in by_size if core.shape[mode] < kernel.shape[mode]]
    for _ in range(50 if len(free) > 1 else 0):
        before, core = core.norm(), kernel
        for k, mode in enumerate(free):
            projected = core
            for later in reversed(free[k + 1 :]):
                projected = _contracted(projected, factors[later], later)
            factors[mode] = _basis(_rows(projected, mode), ranks[mode])
            core = _contracted(core, factors[mode], mode)
        if core.norm() - before <= 1e-4 * before:
            break
    return Tucker(core, tuple(factors))


def _contracted(kernel: Tensor, factor: Tensor, mode: int) -> Tensor:
    """The kernel with `mode` contracted against the rows of a factor (mode, rank)."""
    return torch.tensordot(kernel, factor, ([mode], [0])).movedim(-1, mode)


def _rows(kernel: Tensor, mode: int) -> Tensor:
    return kernel.movedim(mode, 0).flatten(1)


def _basis(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns that span the leading left singular vectors, through the short side's Gram matrix.

    That is exact enough for a subspace: the Gram matrix resolves 1e-8 of the largest singular value. The largest
    entry of each column is positive: the error of a tensor ring depends on these signs.
    """
    flat = matrix.shape[0] <= matrix.shape[1]
    basis = torch.linalg.eigh(matrix @ matrix.mT if flat else matrix.mT @ matrix).eigenvectors[:, -rank:].flip(1)
    if not flat:
        basis = torch.linalg.qr(matrix @ basis).Q
    return basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()


def cp(kernel: Tensor, rank: int, generator: torch.Generator | None, starts: int = 5, **options) -> CP:
    """The best of several CP fits of `rank` terms from random starts, each by `cp_als` with its options.

    Source: paper 2, CP; which rank and solver it used is unknown. No best fit need exist (see `CP`).
    """
    kernel, (rank,) = checked(kernel), checked_ranks(kernel.shape, "cp", rank)
    if generator is None:
        raise ValueError("CP starts at random: pass a torch.Generator.")
    draws = [[normal((size, rank), generator).to(kernel.device) for size in kernel.shape] for _ in range(starts)]
    return min((cp_als(kernel, start, **options) for start in draws), key=lambda fit: fit.relative_error)


def cp_als(kernel: Tensor, start: Sequence[Tensor], iterations: int = 5000, tolerance: float = 1e-6) -> CP:
    """CP form of a kernel that is not zero by alternating least squares in float64, from four factors (mode, R).

    The fit has converged when the error falls by at most the share `tolerance` of itself in WINDOW iterations; 0 goes
    on to the end or to an exact fit. Both pixel modes are kept as one, so an iteration costs two products of the kernel
    with an (OUT or IN, R) factor.
    """
    kernel = checked(kernel)
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
        partly = (matrix.mT @ factors[0]).unflatten(0, (inputs, -1))
        update(1, (partly * pixels).sum(1))
        partly = (partly * factors[1][:, None]).sum(0).unflatten(0, (rows, columns))
        update(2, (partly * factors[3]).sum(1))
        weights = update(3, (partly * factors[2][:, None]).sum(0))
        done += 1
        if done % WINDOW == 0 or done == iterations:
            before, error = error, ((matrix - _sum_of_terms(weights, factors)).norm() / matrix.norm()).item()
            converged = done % WINDOW == 0 and before - error <= tolerance * before
    return CP(weights, tuple(factors), error, converged)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Khatri-Rao product of (m, R) and (n, R): (m * n, R)."""
    return (first[:, None] * second).flatten(0, 1)


def _lengths(factor: Tensor) -> Tensor:
    return factor.norm(dim=0).clamp(min=torch.finfo(factor.dtype).tiny)


def _sum_of_terms(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The (OUT, IN * KH * KW) matrix of a CP form."""
    out, inputs, rows, columns = factors
    return (out * weights) @ _products(_products(inputs, rows), columns).mT


def _solved(gram: Tensor, right_side: Tensor) -> Tensor:
    """right_side @ gram^-1; of least norm where terms have become collinear and the Gram matrix singular."""
    root, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        return right_side @ torch.linalg.pinv(gram, hermitian=True)
    return torch.cholesky_solve(right_side.mT, root).mT


class SharedConv2d(nn.Conv2d):
    """A grouped convolution whose groups come in copies with the same filters, kept, counted and trained once."""

    def __init__(self, copies: int, *args, **keywords):
        super().__init__(*args, **keywords)
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x with all copies."""
        return self._conv_forward(x, self.weight.repeat(self.copies, 1, 1, 1), self.bias)


def layers(conv: nn.Conv2d, factors: Train | Tucker | CP) -> nn.Sequential:
    """The factorised layer: convolutions that give what `conv` gives with the kernel `factors.kernel()`.

    Stride, padding and dilation are placed, axis by axis, where KH and KW are; the bias is on the last convolution. The
    first stages are shared by all groups. Dtype and device are those of `conv`, and what is frozen there stays frozen.

    Raises:
        ValueError: for a tensor ring in which OUT and IN are no neighbours, which has no such layer.
    """
    steps = factors.stages(conv.groups)
    return nn.Sequential(*[_convolution(conv, stage, stage is steps[-1]) for stage in steps])


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
    weight = stage.weight.to(conv.weight).clone(memory_format=torch.contiguous_format)
    layer.weight = nn.Parameter(weight, conv.weight.requires_grad)
    if last and conv.bias is not None:
        layer.bias = nn.Parameter(conv.bias.detach().clone(), conv.bias.requires_grad)
    return layer


@torch.no_grad()
def dense_kernel(factorised: nn.Sequential, groups: int = 1) -> Tensor:
    """The kernel (OUT, IN / groups, KH, KW) of a factorised layer: its answer to single pixels, without bias.

    Raises:
        ValueError: if the layer does not have these groups: an output reads inputs outside its own.
    """
    steps = deepcopy(factorised)
    for step in steps:
        step.stride, step.padding, step.dilation, step.bias, step.padding_mode = (1, 1), (0, 0), (1, 1), None, "zeros"
    inputs = steps[0].in_channels
    window = [1 + sum(step.kernel_size[axis] - 1 for step in steps) for axis in (0, 1)]
    pixels = torch.zeros(inputs, inputs, *[2 * side - 1 for side in window]).to(steps[0].weight)
    pixels[range(inputs), range(inputs), window[0] - 1, window[1] - 1] = 1
    whole = steps(pixels).transpose(0, 1).flip(2, 3)
    blocks = [rows.tensor_split(groups, 1)[k] for k, rows in enumerate(whole.tensor_split(groups))]
    if any(side % groups for side in whole.shape[:2]) or whole.count_nonzero() > sum(b.count_nonzero() for b in blocks):
        raise ValueError(f"This factorised layer does not have {groups} groups: pass those of its convolution.")
    return torch.cat(blocks)


def parameters(shape: Sequence[int], form: str, rank: Ranks, order: Order = ORDER) -> int:
    """Weights of a factorised kernel, without bias. A truncated dense kernel keeps all its own."""
    ranks = checked_ranks(shape, form, rank, order)
    if form in CUTS:
        return ranks[0] * sum(matrix_shape(shape, form))
    if form == "cp":
        return ranks[0] * sum(shape)
    if form in ("tucker", "tucker2"):
        return math.prod((*ranks, *shape[len(ranks) :])) + sum(map(math.prod, zip(shape, ranks, strict=False)))
    bonds = (*ranks, ranks[0]) if form == "ring" else (1, *ranks, 1)
    return sum(bonds[k] * shape[mode] * bonds[k + 1] for k, mode in enumerate(mode_order(order)))


def break_even(shape: Sequence[int], form: str) -> float:
    """The rank, not rounded, at which a form with one rank has as many parameters as the dense kernel."""
    return math.prod(shape) / parameters(shape, form, 1)


def ranks_at(shape: Sequence[int], form: str, share: float, order: Order = ORDER) -> int | tuple[int, ...]:
    """Ranks of a form at a share in [0, 1] of the largest ones, rounded down.

    Each is at least 1 and no larger than the others can use. A ring has all bonds equal; a form with one rank has one
    number.
    """
    largest = _largest(shape, form, order)
    ranks = _useful(shape, form, tuple(max(1, math.floor(share * top + 1e-9)) for top in largest), order)
    return ranks if len(ranks) > 1 else ranks[0]


def ranks_within(shape: Sequence[int], form: str, budget: float, order: Order = ORDER) -> int | tuple[int, ...]:
    """The ranks of `ranks_at` for the largest share with at most `budget` parameters; ValueError if rank 1 has more."""
    shares = sorted({step / top for top in _largest(shape, form, order) for step in range(1, top + 1)})
    fitting = bisect_right(
        shares, budget, key=lambda share: parameters(shape, form, ranks_at(shape, form, share, order), order)
    )
    if not fitting:
        raise ValueError(f"No {form!r} form of a {tuple(shape)} kernel has at most {budget} parameters: allow more.")
    return ranks_at(shape, form, shares[fitting - 1], order)


def best_ranks(kernel: Tensor, form: str, budget: float, order: Order = ORDER) -> int | tuple[int, ...]:
    """The ranks with which a form errs least on this kernel within a budget; `ranks_within` looks at its shape alone.

    Candidates are all ranks that fit, with the first of Tucker or the last bond as large as fits. The squares that
    each rank discards bound the squared error: their largest from below, their sum from above. The result has the least
    error of `approximate` among the COMPARED candidates with the least mean of both bounds, and `ranks_within`. A form
    with one rank has the largest that fits. Arguments and errors as `ranks_within`; a zero kernel is refused.

    Source: bounds of TT-SVD, Oseledets 2011, and of HOSVD, De Lathauwer et al. 2000; Tucker ranks by the latter within
    a budget, Ghadiri et al. (arXiv 2302.03886). A ring is the train after its first SVD, for every split of that rank
    into two bonds, Mickelin and Karaman (arXiv 1807.02513).
    """
    kernel, best = checked(kernel), ranks_within(kernel.shape, form, budget, order)
    if RANKS[form] == 1:
        return best
    if form in ("tucker", "tucker2"):
        ranks, lower, upper = _tucker_candidates(kernel, RANKS[form], math.floor(budget))
    else:
        ranks, lower, upper = _ring_candidates(kernel, form == "ring", math.floor(budget), mode_order(order))
    least, whole = relative_error(kernel, approximate(kernel, form, best, order=order)), kernel.square().sum().item()
    for k in (lower + upper).argsort(stable=True)[:COMPARED].tolist():
        if lower[k] < least**2 * whole:
            other = tuple(ranks[k].tolist())
            error = relative_error(kernel, approximate(kernel, form, other, order=order))
            best, least = (other, error) if error < least else (best, least)
    return best


def _tails(matrix: Tensor) -> Tensor:
    """The squares that rank 0, 1, ... of a matrix discards, through the short side's Gram matrix."""
    flat = matrix.shape[0] <= matrix.shape[1]
    squares = torch.linalg.eigvalsh(matrix @ matrix.mT if flat else matrix.mT @ matrix).clamp(min=0).cumsum(0)
    return torch.cat([squares.new_zeros(1), squares]).flip(0).cpu()


def _tucker_candidates(kernel: Tensor, count: int, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks (candidates, count) within a budget, and the bounds on their squared errors."""
    sizes = torch.tensor(kernel.shape)
    others = torch.cartesian_prod(*[torch.arange(1, size + 1) for size in sizes[1:count]]).reshape(-1, count - 1)
    core = others.prod(1) * sizes[count:].prod()
    out = ((budget - others @ sizes[1:count]) // (core + sizes[0])).minimum(core).clamp(max=sizes[0])
    ranks = torch.cat([out[:, None], others], 1)
    ranks = ranks[(out > 0) & (ranks.square() <= (out * core)[:, None]).all(1)]
    discarded = torch.stack([_tails(_rows(kernel, mode))[ranks[:, mode]] for mode in range(count)])
    return ranks, discarded.amax(0), discarded.sum(0)


def _ring_candidates(kernel: Tensor, ring: bool, budget: int, modes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """As `_tucker_candidates`; a train by three spectra of the kernel, a ring by those that follow its first SVD."""
    matrix = kernel.permute(modes).flatten(1)
    most, (size, *sizes) = min(matrix.shape), (kernel.shape[mode] for mode in modes)
    core, ends, found = _basis(matrix, most).mT @ matrix, _tails(matrix), []
    for closing, first in itertools.product(range(1, most + 1 if ring else 2), range(1, most + 1)):
        if closing * first > most:
            continue
        columns = (math.prod(sizes[1:]) * closing, sizes[2] * closing)
        if ring or first == 1:
            rest = (core[: closing * first] if ring else core).reshape(closing, -1).mT
            middle, last = (_tails(rest.reshape(-1, count)) for count in columns)
        second = torch.arange(1, min(first * sizes[0], columns[0]) + 1)
        left = budget - size * closing * first - first * sizes[0] * second
        third = (left // (second * sizes[1] + columns[1])).minimum(second * sizes[1]).clamp(max=columns[1])
        ranks = torch.stack([*torch.tensor([[closing], [first]]).expand(2, len(second)), second, third], 1)[third > 0]
        outer, inner, end = middle[ranks[:, 2]], last[ranks[:, 3]], ends[closing * first]
        lower = end + outer.maximum(inner) if ring else outer.maximum(inner).maximum(end)
        found.append((ranks if ring else ranks[:, 1:], lower, outer + inner + end))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _useful(shape: Sequence[int], form: str, ranks: tuple[int, ...], order: Order) -> tuple[int, ...]:
    """Ranks lowered until none is above its limit given the others."""
    while (lower := tuple(map(min, ranks, limits(shape, form, ranks, order)))) != ranks:
        ranks = lower
    return ranks


def _largest(shape: Sequence[int], form: str, order: Order) -> tuple[int, ...]:
    first = shape[mode_order(order)[0]]
    most = math.isqrt(min(first, math.prod(shape) // first)) if form == "ring" else math.prod(shape)
    return _useful(shape, form, (most,) * RANKS.get(form, 1), order)
