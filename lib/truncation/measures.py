"""Paper 2's cuts of a kernel, its truncations, their controls, and the loss of each: norm, entropy, outputs.

A kernel is a tensor (OUT, IN, KH, KW) of any floating dtype; decompositions are in float64. The functions raise
ValueError for a kernel that has another dtype or shape or is not finite, an unknown cut, and a rank outside its range.
Two kernels that are compared must have one shape, and the first must not be zero. The paper's formulas are unknown:
these are the standard ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.masks import magnitude_mask

MODES = ("OUT", "IN", "KH", "KW")
# A cut by the modes on its one side, positions in PyTorch's layout; complements are the same cut, so seven are all.
CUTS = {"OUT": (0,), "IN": (1,), "KH": (2,), "KW": (3,), "OUT.IN": (0, 1), "OUT.KH": (0, 2), "OUT.KW": (0, 3)}
# "Two-mode" truncation has two meanings: one cut between two modes and two, or two single-mode cuts together.
JOINT2 = (("OUT", "IN"), ("OUT", "KW"), ("KH", "KW"))
PATCHES_AT_ONCE = 2**22  # numbers in a chunk of `patch_moment`


def sides(cut: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The modes on both sides of a cut, the named side first."""
    if cut not in CUTS:
        other = ".".join(mode for mode in MODES if mode not in cut.split("."))
        remedy = f"{other}, the same cut" if other in CUTS else f"one of {', '.join(CUTS)}"
        raise ValueError(f"Unknown cut {cut!r}: use {remedy}.")
    return CUTS[cut], tuple(mode for mode in range(4) if mode not in CUTS[cut])


def checked(kernel: Tensor) -> Tensor:
    """The kernel, detached and in float64."""
    if not isinstance(kernel, Tensor):
        raise ValueError(f"A kernel is a tensor, not a {type(kernel).__name__}: pass layer.weight.")
    if not kernel.is_floating_point():  # integers would be rounded back, complex numbers lose their imaginary part
        raise ValueError(f"A kernel has a floating dtype, not {kernel.dtype}: convert it with .float().")
    if kernel.dim() != 4 or not kernel.numel():
        raise ValueError(
            f"A kernel has the modes OUT, IN, KH, KW, not the shape {tuple(kernel.shape)}: view a linear layer's "
            "weight as (OUT, IN, 1, 1)."
        )
    if not kernel.isfinite().all():
        raise ValueError("A kernel must be finite: the run that trained it diverged, lower its learning rate.")
    return kernel.detach().double()


def unfold(kernel: Tensor, cut: str) -> Tensor:
    """The matrix of a cut: rows run over the modes on its named side, columns over the others, layout order in both."""
    rows, columns = sides(cut)
    return kernel.permute(*rows, *columns).flatten(len(rows)).flatten(0, len(rows) - 1)


def fold(matrix: Tensor, cut: str, shape: Sequence[int]) -> Tensor:
    """The kernel of a shape (OUT, IN, KH, KW) whose `unfold` is the matrix."""
    rows, columns = sides(cut)
    order = (*rows, *columns)
    return matrix.reshape([shape[mode] for mode in order]).permute([order.index(mode) for mode in range(4)])


def matrix_shape(shape: Sequence[int], cut: str) -> tuple[int, int]:
    """Rows and columns of a cut's matrix; the smaller is the number of singular values, the largest rank."""
    rows, columns = sides(cut)
    return math.prod(shape[mode] for mode in rows), math.prod(shape[mode] for mode in columns)


def applicable_cuts(shape: Sequence[int]) -> tuple[str, ...]:
    """The cuts on which a kernel of this shape can be truncated, each matrix once.

    A cut whose matrix has rank 1 for every kernel is left out: a cut that cannot lose norm is not a robust one. Where a
    mode has size 1 several cuts are one matrix, and the first stands for all: a 1x1 kernel keeps OUT alone.
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

    `left` is (m, N) with orthonormal columns, `values` (N,) descending, `right` (N, n) with orthonormal rows, and
    N = min(m, n).
    """

    cut: str
    shape: tuple[int, ...]
    left: Tensor
    values: Tensor
    right: Tensor

    def kernel(self, rank: int) -> Tensor:
        """The best approximation of a rank on this cut, a dense float64 kernel of the original shape."""
        left, right = self.factors(rank)
        return fold(left @ right, self.cut, self.shape)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(m, rank) and (rank, n) with that kernel's matrix as product, of equal norm in each rank-one part."""
        rank = checked_rank(rank, self.shape, self.cut)
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def errors(self) -> Tensor:
        """The relative error of truncation to rank 1, 2, ... N: (N,)."""
        return errors_of_ranks(weights(self.values))

    def rank_at(self, error: float) -> int:
        """The smallest rank whose relative error is at most `error`."""
        return int((self.errors() > error).sum()) + 1


def checked_rank(rank: int, shape: Sequence[int], cut: str) -> int:
    """The rank as an int, if a kernel of this shape can have it on the cut."""
    largest = min(matrix_shape(shape, cut))
    if rank not in range(1, largest + 1):
        raise ValueError(f"The {cut} cut of a {tuple(shape)} kernel has ranks 1 to {largest}, not {rank}.")
    return int(rank)


def cut_svd(kernel: Tensor, cut: str, gram: bool = False) -> CutSVD:
    """The one SVD of a kernel and cut from which every rank, error and entropy follows.

    With `gram` it goes through the eigenvectors of the short side's Gram matrix. That is several times faster on flat
    matrices and on GPUs, but the k-th value is exact only to 1e-16 (s_1 / s_k)^2 relative: good for a sweep, not for
    finding the rank of a kernel.
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
    """The singular values across a cut, (N,) descending, in float64; `gram` as in `cut_svd`."""
    if gram:
        return cut_svd(kernel, cut, gram).values
    return torch.linalg.svdvals(unfold(checked(kernel), cut))


def weights(values: Tensor) -> Tensor:
    """The share of the squared norm that each singular value carries: p = s^2 / sum s^2."""
    squares = values.double().square()
    if not squares.sum() > 0:
        raise ValueError("The zero kernel has no spectrum to normalise: leave it out, or read its norm loss alone.")
    return squares / squares.sum()


def errors_of_ranks(weights: Tensor) -> Tensor:
    """Square root of the weights p beyond rank 1, 2, ... N: the relative errors of truncation, (N,)."""
    beyond = weights.flip(0).cumsum(0).flip(0)
    return torch.cat([beyond[1:], beyond.new_zeros(1)]).sqrt()


def projected_at_random(kernel: Tensor, cut: str, rank: int, generator: torch.Generator, side: str = "short") -> Tensor:
    """Control N2: the kernel projected on a uniformly random subspace of a rank, in place of the leading one.

    The subspace lies on the "short" or the "long" side of the cut's matrix. The expected squared relative error is
    1 - rank / (length of that side).
    """
    matrix = unfold(checked(kernel), cut)
    rank = checked_rank(rank, kernel.shape, cut)
    on_rows = (matrix.shape[0] <= matrix.shape[1]) == (side == "short")
    basis = torch.linalg.qr(normal((matrix.shape[0 if on_rows else 1], rank), generator).to(matrix)).Q
    projected = basis @ (basis.mT @ matrix) if on_rows else (matrix @ basis) @ basis.mT
    return fold(projected, cut, kernel.shape).to(kernel)


def perturbed(kernel: Tensor, error: float, generator: torch.Generator) -> Tensor:
    """Control N3: the kernel plus Gaussian noise of exactly this relative error; its norm loss is near or below 0."""
    source = checked(kernel)
    return (source + gaussian_like(source, generator, error)).to(kernel)


def shrunk(kernel: Tensor, error: float) -> Tensor:
    """Control N4: (1 - error) times the kernel. Norm is lost, no correlation is."""
    return ((1 - error) * checked(kernel)).to(kernel)


def pruned(kernel: Tensor, error: float) -> Tensor:
    """Control N5: the kernel without its lowest magnitudes, as many as keep the relative error within `error` < 1."""
    squares = checked(kernel).square().flatten().sort().values.cumsum(0)
    count = int((squares[:-1] <= error**2 * squares[-1]).sum())
    return kernel.detach() * magnitude_mask(kernel.detach(), count / kernel.numel(), "lowest")


def smallest_kept(kernel: Tensor, cut: str, rank: int) -> Tensor:
    """Control N6: the kernel of a rank with the smallest singular values of a cut in place of the largest."""
    svd = cut_svd(kernel, cut)
    rank = checked_rank(rank, kernel.shape, cut)
    return fold((svd.left[:, -rank:] * svd.values[-rank:]) @ svd.right[-rank:], cut, kernel.shape).to(kernel)


def gaussian_like(kernel: Tensor, generator: torch.Generator, factor: float = 1.0) -> Tensor:
    """A Gaussian kernel of the shape of `kernel` and `factor` times its norm: its spectra are Marchenko-Pastur."""
    source = checked(kernel)
    noise = normal(source.shape, generator).to(source)
    return (noise * (factor * source.norm() / noise.norm())).to(kernel)


def profile_like(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """A Gaussian kernel that is scaled along its modes until it has the profile of `kernel` along each of them.

    A profile is the mean square at each place of a mode, such as each output channel; all four are matched within a
    share of 1e-4, the norm exactly. Signs, and what the profiles leave open, are independent. It is the null of
    correlations beyond unequal channels and taps. A kernel that is Gaussian itself is like its own null.

    Source: iterative proportional fitting, Deming and Stephan 1940, of the squared entries.
    """
    source = checked(kernel)
    drawn, squares = normal(source.shape, generator).to(source), source.square()
    for _ in range(200):
        furthest = 1.0
        for mode in range(4):
            others = [other for other in range(4) if other != mode]
            ratio = squares.mean(others, keepdim=True) / drawn.square().mean(others, keepdim=True).clamp(min=1e-300)
            drawn = drawn * ratio.sqrt()
            furthest = max(furthest, ratio.max().item())
        if furthest < 1 + 1e-4:
            break
    return (drawn * (source.norm() / drawn.norm())).to(kernel)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal values in float64, on the generator's device."""
    return torch.randn(tuple(shape), dtype=torch.float64, generator=generator, device=generator.device)


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
