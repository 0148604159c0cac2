"""Factorised layers: the small convolutions that a decomposed kernel stands for, their parameters and their MACs."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.cp import CP
from lib.cuts import CUTS, sides
from lib.decomposition import ORDER, RANKS, Train, Tucker, checked_ranks, limits, mode_order
from lib.models import count_macs


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
