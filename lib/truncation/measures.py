"""Paper 2's truncations of a convolution kernel, and what each loses: norm by three readings, correlation, outputs."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.truncation.cuts import CUTS, checked, checked_rank, cut_svd, fold, spectrum, unfold, weights
from lib.truncation.forms import ORDER, decompose, layers

# "Two-mode" truncation has two meanings: one cut between two modes and two, or two single-mode cuts together.
CUT2 = tuple(cut for cut in CUTS if len(CUTS[cut]) == 2)
JOINT2 = (("OUT", "IN"), ("OUT", "KW"), ("KH", "KW"))
PATCHES_AT_ONCE = 2**22  # numbers in a chunk of `patch_moment`


def truncate(kernel: Tensor, cut: str, rank: int) -> Tensor:
    """The nearest kernel of a rank on a cut: a dense tensor like `kernel`, with as many parameters.

    kernel: (OUT, IN, KH, KW), any floating dtype; the SVD is in float64. rank: 1 to the number of singular values of
    the cut. For several ranks take `cuts.cut_svd` once. Raises ValueError for an unknown cut, a rank outside its range,
    or a kernel that is not finite. Source: paper 2, truncation by SVD across a bipartition; "two-mode" as in CUT2.
    """
    return cut_svd(kernel, cut).kernel(rank).to(kernel)


def truncate_to_loss(kernel: Tensor, cut: str, loss: float, reading: str = "norm_loss") -> Tensor:
    """`truncate` to the smallest rank that loses at most `loss`, in [0, 1).

    reading: "norm_loss", "relative_error" or "squared_norm_loss", the functions of these names.
    """
    svd = cut_svd(kernel, cut)
    return svd.kernel(svd.rank_at(loss, reading)).to(kernel)


def truncate_jointly(kernel: Tensor, ranks: Mapping[str, int]) -> Tensor:
    """Several single-mode cuts truncated together, one after the other, larger mode first (sequential HOSVD).

    ranks: by cut, such as {"OUT": 8, "IN": 4}. Raises ValueError for another cut or a rank outside its range.
    Source: paper 2, "two-mode" as in JOINT2; the order is this companion's.
    """
    if wrong := [cut for cut in ranks if len(CUTS.get(cut, ())) != 1]:
        raise ValueError(f"Only single-mode cuts are truncated together, not {wrong}: use OUT, IN, KH and KW.")
    truncated = checked(kernel)
    for cut in sorted(ranks, key=lambda cut: -kernel.shape[CUTS[cut][0]]):
        truncated = truncate(truncated, cut, ranks[cut])
    return truncated.to(kernel)


def approximate(
    kernel: Tensor,
    form: str,
    rank: int | Sequence[int],
    order: Sequence[str] = ORDER,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The dense kernel, like `kernel`, of any form of `decomposition.RANKS`; arguments as `decomposition.decompose`."""
    return decompose(kernel, form, rank, order, generator).kernel().to(kernel)


def factorise(
    conv: nn.Conv2d,
    form: str,
    rank: int | Sequence[int],
    order: Sequence[str] = ORDER,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """The small convolutions that give what `conv` gives with the kernel of `approximate`; arguments as there.

    Any stride, padding, dilation and number of groups. CP is random: to compare with its kernel, decompose once and
    build with `factorisation.layers`. Raises ValueError as `decompose`, for another layer than nn.Conv2d, and for a
    ring in which OUT and IN are no neighbours.
    """
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"Only nn.Conv2d is factorised, not {type(conv).__name__}: write a linear layer as 1x1.")
    return layers(conv, decompose(conv.weight, form, rank, order, generator))


def relative_error(kernel: Tensor, truncated: Tensor) -> float:
    """|K - K'| / |K|, the reading on which truncations, controls and forms are matched.

    kernel, truncated: of one shape, the first not zero; ValueError otherwise. Source: paper 2, norm loss (eps).
    """
    kernel, truncated = _pair(kernel, truncated)
    return ((kernel - truncated).norm() / kernel.norm()).item()


def norm_loss(kernel: Tensor, truncated: Tensor) -> float:
    """1 - |K'| / |K|, the literal loss of norm; negative where the norm grows. Arguments as `relative_error`.

    For orthogonal truncations (SVD, HOSVD, TT-SVD, converged CP) it is 1 - sqrt(1 - relative_error^2), for shrinking
    it is the relative error, for noise it is not positive. Source: paper 2, norm loss (delta); formula unknown.
    """
    kernel, truncated = _pair(kernel, truncated)
    return 1 - (truncated.norm() / kernel.norm()).item()


def squared_norm_loss(kernel: Tensor, truncated: Tensor) -> float:
    """1 - |K'|^2 / |K|^2: for orthogonal truncations the discarded weight. Arguments as `relative_error`.

    Source: paper 2, norm loss (w).
    """
    return 1 - (1 - norm_loss(kernel, truncated)) ** 2


def graded(kernel: Tensor, truncated: Tensor, error: float) -> Tensor:
    """The kernel between the two whose `relative_error` is `error`: (1 - t) K + t K'.

    Fills the gaps between ranks, of which a 3-long mode has two. Raises ValueError for an error outside 0 to that of
    `truncated`. Source: paper 2, graded comparison of the cuts.
    """
    largest = relative_error(kernel, truncated)
    if not 0 <= error <= largest * (1 + 1e-12):
        raise ValueError(f"A graded kernel has relative errors 0 to {largest:.6f}, not {error}: truncate further.")
    return torch.lerp(kernel.detach().double(), truncated.detach().double(), error / largest if error else 0).to(kernel)


def entropy(values: Tensor) -> float:
    """Entanglement entropy in nats of singular values, - sum p ln p with p = s^2 / sum s^2.

    Of the first r values it is that of the kernel truncated to r. Raises ValueError if all values are zero.
    """
    return torch.special.entr(weights(values)).sum().item()


def entanglement_entropy(kernel: Tensor, cut: str) -> float:
    """Entropy of a kernel across a cut, in nats, at most ln N; divide by ln N to compare cuts.

    Raises ValueError for an unknown cut, or a kernel that is zero or not finite.
    Source: paper 2's keyword, formula unknown; the standard one of quantum states.
    """
    return entropy(spectrum(kernel, cut))


def effective_rank(kernel: Tensor, cut: str) -> float:
    """Exp of `entanglement_entropy`, from 1 to the number N of singular values, whatever the base of the logarithm."""
    return math.exp(entanglement_entropy(kernel, cut))


def participation_ratio(kernel: Tensor, cut: str) -> float:
    """1 / sum p^2 across a cut, from 1 to N; as `effective_rank`, but led by the largest values."""
    return 1 / weights(spectrum(kernel, cut)).square().sum().item()


def correlation_loss(kernel: Tensor, truncated: Tensor, cut: str) -> float:
    """1 - S(truncated) / S(kernel) across a cut, 0 where the kernel has no correlation to lose.

    Never negative on the truncated cut itself; on other cuts entropy can rise. Errors as `entanglement_entropy`.
    Source: paper 2's keyword, formula unknown.
    """
    before = entanglement_entropy(kernel, cut)
    return 1 - entanglement_entropy(truncated, cut) / before if before > 1e-12 else 0.0


def patch_moment(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Mean of x x' over all patches x that a convolution reads: (IN * KH * KW, IN * KH * KW), float64.

    inputs: (images, IN, height, width). Not centred, so that `output_error` is that of the layer's outputs.
    Raises ValueError for a grouped convolution, whose groups read different patches: pass one group at a time.
    """
    if conv.groups != 1:
        raise ValueError(f"A patch moment belongs to one group, not to {conv.groups}: pass one group at a time.")
    (top, bottom), (left, right) = _padding(conv)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    total, count = 0, 0
    for chunk in inputs.split(max(1, PATCHES_AT_ONCE // (inputs[0].numel() * math.prod(conv.kernel_size)))):
        padded = F.pad(chunk.double(), (left, right, top, bottom), mode)
        patches = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride).movedim(1, 0).flatten(1)
        total, count = total + patches @ patches.mT, count + patches.shape[1]
    return total / count


def output_error(kernel: Tensor, truncated: Tensor, moment: Tensor) -> float:
    """|(K - K') M^1/2| / |K M^1/2| with the patches' second moment M: the relative error of the outputs, without bias.

    moment: of `patch_moment`. Raises ValueError for unequal shapes or a kernel without output.
    Source: the covariance-weighted norm that paper 2's critics put in the place of the plain one.
    """
    kernel, truncated = _pair(kernel, truncated)
    whole, change = (
        ((part.flatten(1) @ moment) * part.flatten(1)).sum().item() for part in (kernel, kernel - truncated)
    )
    if not whole > 0:
        raise ValueError("The kernel has no output on these inputs: take inputs that it responds to.")
    return math.sqrt(max(change, 0) / whole)


def truncate_outputs(kernel: Tensor, rank: int, moment: Tensor) -> Tensor:
    """The kernel of a rank on the OUT cut with the smallest `output_error`: projected on its outputs' main directions.

    Raises ValueError for a rank outside 1 to min(OUT, IN * KH * KW). Source: as `output_error`.
    """
    matrix = unfold(checked(kernel), "OUT")
    rank = checked_rank(rank, min(matrix.shape), f"The OUT cut of a {tuple(kernel.shape)} kernel")
    main = torch.linalg.eigh(matrix @ moment @ matrix.mT).eigenvectors[:, -rank:]
    return fold(main @ (main.mT @ matrix), "OUT", kernel.shape).to(kernel)


def tap_usage(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Share of a layer's output positions at which each tap reads a real pixel and not padding: (KH, KW), float64.

    size: (height, width) of the input map in pixels. Other padding than with zeros repeats real pixels: usage 1.
    Raises ValueError for a map too small for the kernel.
    Source: paper 2's resolution trap: on a 1x1 map a padded 3x3 kernel is its centre tap.
    """
    usage = []
    for axis, (before, after) in enumerate(_padding(conv)):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        starts = torch.arange(-before, size[axis] + after - reach, conv.stride[axis])
        if not len(starts):
            raise ValueError(
                f"A map of {size} pixels is smaller than the kernel {conv.kernel_size}: enlarge the image."
            )
        pixels = starts[:, None] + conv.dilation[axis] * torch.arange(conv.kernel_size[axis])
        real = (pixels >= 0) & (pixels < size[axis]) | (conv.padding_mode != "zeros")
        usage.append(real.double().mean(0))
    return torch.outer(*usage)


def effective_norm_loss(kernel: Tensor, truncated: Tensor, usage: Tensor) -> float:
    """`norm_loss` with squared weights counted by the usage of their tap, (KH, KW) of `tap_usage`.

    Source: paper 2's resolution trap: the plain norm counts weights that only ever multiply padding.
    """
    root = usage.sqrt().to(kernel.device)
    return norm_loss(kernel * root, truncated * root)


def _pair(kernel: Tensor, truncated: Tensor) -> tuple[Tensor, Tensor]:
    if kernel.shape != truncated.shape:
        raise ValueError(f"Kernels to compare have one shape, not {kernel.shape} and {truncated.shape}: fold first.")
    if not kernel.any():
        raise ValueError("The zero kernel has no norm to lose: leave it out.")
    return checked(kernel), checked(truncated)


def _padding(conv: nn.Conv2d) -> list[tuple[int, int]]:
    """Pixels before and after, for both axes."""
    if conv.padding == "same":
        totals = [step * (side - 1) for step, side in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(0, 0)] * 2 if conv.padding == "valid" else [(pixels, pixels) for pixels in conv.padding]
