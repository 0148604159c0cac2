"""Paper 2's truncations of a convolution kernel, and the loss of each: norm, entropy, outputs.

Kernels and errors are as in `cuts`; two kernels that are compared must have one shape, and the first must not be zero.
The paper's formulas are unknown: these are the standard ones.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.truncation.cuts import CUTS, checked, checked_rank, cut_svd, fold, spectrum, unfold, weights

# "Two-mode" truncation has two meanings: one cut between two modes and two, or two single-mode cuts together.
JOINT2 = (("OUT", "IN"), ("OUT", "KW"), ("KH", "KW"))
PATCHES_AT_ONCE = 2**22  # numbers in a chunk of `patch_moment`


def truncate(kernel: Tensor, cut: str, rank: int) -> Tensor:
    """The nearest kernel of a rank on a cut: a dense tensor like `kernel`. For several ranks take `cut_svd` once."""
    return cut_svd(kernel, cut).kernel(rank).to(kernel)


def truncate_jointly(kernel: Tensor, ranks: Mapping[str, int]) -> Tensor:
    """Several single-mode cuts truncated together, one after the other, larger mode first (sequential HOSVD).

    `ranks` names a rank for each cut, such as {"OUT": 8, "IN": 4}. The order is this companion's choice.
    """
    if wrong := [cut for cut in ranks if len(CUTS.get(cut, ())) != 1]:
        raise ValueError(f"Only single-mode cuts are truncated together, not {wrong}: use OUT, IN, KH and KW.")
    truncated = checked(kernel)
    for cut in sorted(ranks, key=lambda cut: -kernel.shape[CUTS[cut][0]]):
        truncated = truncate(truncated, cut, ranks[cut])
    return truncated.to(kernel)


def relative_error(kernel: Tensor, truncated: Tensor) -> float:
    """|K - K'| / |K|, the reading of norm loss on which truncations, controls and forms are matched."""
    kernel, truncated = _pair(kernel, truncated)
    return ((kernel - truncated).norm() / kernel.norm()).item()


def norm_loss(kernel: Tensor, truncated: Tensor) -> float:
    """1 - |K'| / |K|, the literal loss of norm; negative where the norm grows.

    For orthogonal truncations (SVD, HOSVD, TT-SVD, converged CP) it is 1 - sqrt(1 - relative_error^2), for shrinking
    it is the relative error, for noise it is not positive.
    """
    kernel, truncated = _pair(kernel, truncated)
    return 1 - (truncated.norm() / kernel.norm()).item()


def graded(kernel: Tensor, truncated: Tensor, error: float) -> Tensor:
    """The kernel interpolated between the two, (1 - t) K + t K', so that its `relative_error` is `error`.

    It fills the gaps between ranks, of which a mode of length 3 has two.

    Raises:
        ValueError: for an error above that of `truncated`, or below 0.
    """
    largest = relative_error(kernel, truncated)
    if not 0 <= error <= largest * (1 + 1e-12):
        raise ValueError(f"A graded kernel has relative errors 0 to {largest:.6f}, not {error}: truncate further.")
    return torch.lerp(kernel.detach().double(), truncated.detach().double(), error / largest if error else 0).to(kernel)


def entropy(values: Tensor) -> float:
    """Entanglement entropy in nats of N singular values, - sum p ln p with p = s^2 / sum s^2, from 0 to ln N.

    Of the first r values it is that of the kernel truncated to rank r.
    """
    return torch.special.entr(weights(values)).sum().item()


def effective_rank(kernel: Tensor, cut: str) -> float:
    """Exp of the entropy across a cut, from 1 to the number of singular values, whatever the base of the logarithm."""
    return math.exp(entropy(spectrum(kernel, cut)))


def patch_moment(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Mean of x x' over all patches x that a convolution reads: (IN * KH * KW, IN * KH * KW), float64.

    It is not centred, so that `output_error` is that of the layer's outputs. `inputs` are (images, IN, height, width).

    Raises:
        ValueError: for a grouped convolution, whose groups read different patches; for inputs of another shape.
    """
    if conv.groups != 1:
        raise ValueError(f"A patch moment belongs to one group, not to {conv.groups}: pass one group at a time.")
    if inputs.dim() != 4 or inputs.shape[1] != conv.in_channels or not inputs.numel():
        shape = f"(images, {conv.in_channels}, height, width)"
        raise ValueError(f"The inputs of this convolution are {shape}, not {tuple(inputs.shape)}: pass such a batch.")
    (top, bottom), (left, right) = _padding(conv)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    total, count = 0, 0
    for chunk in inputs.split(max(1, PATCHES_AT_ONCE // (inputs[0].numel() * math.prod(conv.kernel_size)))):
        padded = F.pad(chunk.double(), (left, right, top, bottom), mode)
        patches = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride).movedim(1, 0).flatten(1)
        total, count = total + patches @ patches.mT, count + patches.shape[1]
    return total / count


def output_error(kernel: Tensor, truncated: Tensor, moment: Tensor) -> float:
    """|(K - K') M^1/2| / |K M^1/2| with M of `patch_moment`: the relative error of the outputs, without bias.

    Source: the covariance-weighted norm of paper 2's critics.
    """
    kernel, truncated = _pair(kernel, truncated)
    moment = _moment(moment, kernel)
    whole, change = (
        ((part.flatten(1) @ moment) * part.flatten(1)).sum().item() for part in (kernel, kernel - truncated)
    )
    if not whole > 0:
        raise ValueError("The kernel has no output on these inputs: take inputs that it responds to.")
    return math.sqrt(max(change, 0) / whole)


def output_weights(kernel: Tensor, moment: Tensor) -> Tensor:
    """Shares of the squares of a layer's outputs that their main directions carry: (OUT,) descending, float64.

    The square root of those beyond rank r is the least `output_error` of any kernel of this rank on the OUT cut.
    """
    matrix = unfold(checked(kernel), "OUT")
    squares = torch.linalg.eigvalsh(matrix @ _moment(moment, matrix) @ matrix.mT).flip(0).clamp(min=0)
    if not squares.sum() > 0:
        raise ValueError("The kernel has no output on these inputs: take inputs that it responds to.")
    return squares / squares.sum()


def truncate_outputs(kernel: Tensor, rank: int, moment: Tensor) -> Tensor:
    """The kernel of a rank on the OUT cut with least `output_error`: projected on its outputs' main directions."""
    matrix = unfold(checked(kernel), "OUT")
    rank, moment = checked_rank(rank, kernel.shape, "OUT"), _moment(moment, matrix)
    main = torch.linalg.eigh(matrix @ moment @ matrix.mT).eigenvectors[:, -rank:]
    return fold(main @ (main.mT @ matrix), "OUT", kernel.shape).to(kernel)


def tap_usage(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Share of a layer's output positions at which each tap reads a real pixel and not padding: (KH, KW), float64.

    `size` is the (height, width) of the input map in pixels. Padding that repeats real pixels counts as real.

    Raises:
        ValueError: for a map too small for the kernel.

    Source: paper 2's resolution trap: on a 1x1 map a padded 3x3 kernel is its centre tap.
    """
    usage = []
    for axis, (before, after) in enumerate(_padding(conv)):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        starts = torch.arange(-before, size[axis] + after - reach, conv.stride[axis])
        if not len(starts):
            raise ValueError(f"A map of {size} pixels is smaller than the kernel {conv.kernel_size}: enlarge it.")
        pixels = starts[:, None] + conv.dilation[axis] * torch.arange(conv.kernel_size[axis])
        real = (pixels >= 0) & (pixels < size[axis]) | (conv.padding_mode != "zeros")
        usage.append(real.double().mean(0))
    return torch.outer(*usage)


def effective_norm_loss(kernel: Tensor, truncated: Tensor, usage: Tensor) -> float:
    """`norm_loss` without the weights that only multiply padding: squares count by the `tap_usage` (KH, KW)."""
    root = usage.sqrt().to(kernel.device)
    return norm_loss(kernel * root, truncated * root)


def _pair(kernel: Tensor, truncated: Tensor) -> tuple[Tensor, Tensor]:
    kernel, truncated = checked(kernel), checked(truncated)
    if kernel.shape != truncated.shape:
        raise ValueError(f"Kernels to compare have one shape, not {kernel.shape} and {truncated.shape}: fold first.")
    if not kernel.any():
        raise ValueError("The zero kernel has no norm to lose: leave it out.")
    return kernel, truncated


def _moment(moment: Tensor, kernel: Tensor) -> Tensor:
    """The moment in the kernel's dtype and on its device, if it is one of the patches that the kernel reads."""
    side = kernel[0].numel()
    if moment.shape != (side, side) or not moment.isfinite().all():
        raise ValueError(f"The moment of this kernel's patches is {side} x {side} and finite: take `patch_moment`.")
    return moment.to(kernel)


def _padding(conv: nn.Conv2d) -> list[tuple[int, int]]:
    """Pixels before and after, for both axes."""
    if conv.padding == "same":
        totals = [step * (side - 1) for step, side in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(0, 0)] * 2 if conv.padding == "valid" else [(pixels, pixels) for pixels in conv.padding]
