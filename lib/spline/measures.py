"""A network as splines: the codes of its activations and when they settle; which nodes share a spline, and merging.

A *code* holds one bit for each unit and probe: whether the unit is positive there. Two networks with equal codes put
the probes into the same regions of the input-space partition.

Floating-point operations of a training, by the counting rule of the precursor's tables (You et al. 2020).
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib.provenance import CompanionError

FORMS = ("raw", "normalised", "signed")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
AFFINE = (nn.Linear, nn.Conv2d)
THRESHOLD, LOOKBACK = 0.16, 3  # defaults of the released code; what the paper prints is unknown
MASK_KEPT, MASK_LIMIT = 5, 0.1  # of the mask-distance detector (You et al. 2020)


@dataclass(frozen=True)
class Codes:
    """Bits of every coded layer on fixed probes, 64 to a word.

    names: (layers,). units: (layers,) bits of one probe. words: for each layer uint64 (probes, words).
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    words: tuple[np.ndarray, ...]

    @property
    def bytes(self) -> int:
        return sum(words.nbytes for words in self.words)


def coded_layers(model: nn.Module) -> list[str]:
    """Layers whose sign is the code: every BatchNorm, or without any every linear layer but the last.

    Source: the released code; AlexNet's two wide linear layers do not enter.
    """
    named = list(model.named_modules())
    if norms := [name for name, module in named if isinstance(module, NORMS)]:
        return norms
    return [name for name, module in named if isinstance(module, AFFINE)][:-1]


@torch.inference_mode()
def activation_codes(model: nn.Module, probes: Tensor, batch_size: int = 100) -> Codes:
    """The code of a network, in evaluation mode, on normalised probes (n, ...); its mode is left as it was.

    Raises: ValueError for probes that do not fit the network; CompanionError if a layer is not finite.
    """
    names, bits, hooks = coded_layers(model), {}, []

    def record(name: str):
        def hook(_, __, output: Tensor) -> None:
            if not output.isfinite().all():
                raise CompanionError(f"Layer {name} is not finite on the probes: the training diverged, lower lr.")
            positive = output.flatten(1) > 0
            packed = packed_bits(positive).cpu().numpy()
            packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
            bits.setdefault(name, []).append((positive.shape[1], packed))

        return hook

    training = model.training
    model.eval()
    try:
        hooks = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
        for part in probes.split(batch_size):
            model(part)
    except RuntimeError as error:
        if isinstance(error, CompanionError):
            raise
        raise ValueError(f"Probes of shape {tuple(probes.shape)} do not fit the network: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    seen = [name for name in names if name in bits]
    words = tuple(np.concatenate([packed for _, packed in bits[name]]) for name in seen)
    return Codes(tuple(seen), tuple(bits[name][0][0] for name in seen), words)


def packed_bits(bits: Tensor) -> Tensor:
    """Rows of bits, 8 to a byte, the first one highest, as `numpy.packbits`: (n, units) -> uint8 (n, bytes).

    On a GPU it is packed there, so that an eighth of the bytes cross to the host.
    """
    if not bits.is_cuda:
        return torch.from_numpy(np.packbits(bits.numpy(), axis=1))
    return _packed(bits)


def _packed(bits: Tensor) -> Tensor:
    padded = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    places = 7 - torch.arange(8, device=bits.device)
    return (padded.long() << places).sum(2).to(torch.uint8)


def code_distance(a: Codes, b: Codes) -> np.ndarray:
    """Share of bits in which two codes differ, by layer, in [0, 1]; ValueError for codes of other layers or probes."""
    if a.names != b.names or [w.shape for w in a.words] != [w.shape for w in b.words]:
        raise ValueError("Codes can only be compared on the same layers and the same probes.")
    flipped = [int(np.bitwise_count(x ^ y).sum(dtype=np.int64)) for x, y in zip(a.words, b.words, strict=True)]
    return np.array([n / (len(x) * u) for n, x, u in zip(flipped, a.words, a.units, strict=True)])


def distance_matrix(history: Sequence[Codes]) -> np.ndarray:
    """Code distances (layers, T, T) between all epochs of a training."""
    epochs = len(history)
    matrix = np.zeros((len(history[0].names), epochs, epochs))
    for s in range(epochs):
        for t in range(s):
            matrix[:, s, t] = matrix[:, t, s] = code_distance(history[s], history[t])
    return matrix


def total_distance(by_layer: np.ndarray, units: Sequence[int], weighting: str = "layers") -> np.ndarray:
    """Distances (layers, ...) in one number: the mean over "layers", as in the released code, or over "units"."""
    if weighting not in ("layers", "units"):
        raise ValueError(f"Weighting is {weighting!r}; it must be 'layers' or 'units'.")
    return np.average(by_layer, axis=0, weights=units if weighting == "units" else None)


def recent_distance(distances: np.ndarray, lookback: int = LOOKBACK) -> np.ndarray:
    """For each epoch t of a (T, T) matrix the largest of d(t, t - 1) … d(t, t - lookback); NaN where t < lookback."""
    epochs = len(distances)
    before = [distances[t, max(t - lookback, 0) : t] for t in range(epochs)]
    return np.array([part.max() if len(part) == lookback else np.nan for part in before])


def early_bird_epoch(
    distances: np.ndarray, threshold: float = THRESHOLD, lookback: int = LOOKBACK, relative: bool = False
) -> int | None:
    """The first epoch, counted from 0, at which the code has changed little since each of the epochs before it.

    Args:
        distances: (T, T) between codes taken after each epoch; epoch t has t + 1 epochs of training behind it.
        threshold: the largest of `lookback` distances must be *below* it.
        relative: the threshold is a share of the first such value; undefined, so None, if that is 0.

    Source: `detect_eb` of the released code; the relative rule is this companion's.
    """
    recent = recent_distance(np.asarray(distances, dtype=float), lookback)
    if len(recent) <= lookback or (relative and recent[lookback] == 0):
        return None
    limit = threshold * (recent[lookback] if relative else 1.0)
    below = np.flatnonzero(recent < limit)
    return int(below[0]) if len(below) else None


def mask_early_bird_epoch(
    scales: np.ndarray, ratio: float, kept: int = MASK_KEPT, limit: float = MASK_LIMIT
) -> int | None:
    """The number of trained epochs at which the pruning mask of all BatchNorm scales has settled.

    Args:
        scales: (T, channels) of every BatchNorm2d, the first row before any training.
        ratio: share of channels to prune, in (0, 1): one detector for each.

    Source: class `EarlyBird` of You et al. 2020: threshold at index int(channels * ratio), strictly larger ones stay;
        the newest of `kept` masks may differ from each of the others in at most `limit` of its entries.
    """
    scales = np.abs(np.asarray(scales))
    threshold = np.sort(scales, axis=1)[:, int(scales.shape[1] * ratio)]
    masks = scales > threshold[:, None]
    for t in range(kept - 1, len(masks)):
        if (masks[t - kept + 1 : t] != masks[t]).mean(1).max() <= limit:
            return t
    return None


def canvas(first: Tensor, second: Tensor, side: int) -> Tensor:
    """Probes (side², ...): a * first + b * second for a and b on a grid of [0, 1], of two normalised images.

    Source: `getCanvas` of the released code; a square with corners 0, both images and their sum, not a convex mix.
    """
    a, b = torch.meshgrid(*[torch.linspace(0, 1, side, device=first.device)] * 2, indexing="ij")
    a, b = (share.reshape(-1, *[1] * first.dim()) for share in (a, b))
    return a * first + b * second


def folded(layer: nn.Module, norm: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Rows (units, inputs) and offsets (units,) of a linear layer or convolution and the BatchNorm behind it, float64.

    Source: paper 4 in evaluation mode; a negative scale turns the row's orientation, a zero one leaves no hyperplane.
    """
    weight = layer.weight.detach().double().flatten(1)
    bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias.detach().double()
    if norm is None:
        return weight, bias
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight * factor[:, None], factor * (bias - norm.running_mean.double()) + norm.bias.detach().double()


def redundancy(weights: Tensor, biases: Tensor, form: str = "signed", rho: float = 1.0) -> Tensor:
    """How little each pair of nodes of a layer adds to the other's spline: (K, K) float64, small is redundant.

    Args:
        weights: (K, inputs) rows, with BatchNorm folded in. biases: (K,).
        form: with c the cosine of two rows, "raw" 1 - |c| + rho |b - b'|, as assumed for the paper; "normalised" with
            b / |w| and the sign of c: zero if and only if the hyperplanes coincide; "signed" 1 - c + rho |b / |w| -
            b' / |w'||: zero if and only if the nodes are positive multiples of each other.
        rho: weight of the offsets.

    Returns: infinite where one of the rows is zero: it has no hyperplane.

    Raises: ValueError for another form or shapes that do not fit, CompanionError for weights that are not finite.
    """
    if form not in FORMS:
        raise ValueError(f"Form is {form!r}; it must be one of {', '.join(FORMS)}.")
    if weights.dim() != 2 or biases.shape != weights.shape[:1]:
        raise ValueError(f"Rows (K, inputs) and offsets (K,) do not fit: {weights.shape}, {biases.shape}.")
    weights, biases = weights.double(), biases.double()
    if not (weights.isfinite().all() and biases.isfinite().all()):
        raise CompanionError("The weights of a layer are not finite: its training diverged, lower lr.")
    norms = weights.norm(dim=1)
    there = norms > 0
    unit = weights / torch.where(there, norms, 1.0)[:, None]
    cosine = (unit @ unit.T).clamp_(-1, 1)
    offset = biases if form == "raw" else biases / torch.where(there, norms, 1.0)
    if form == "normalised":
        sign = torch.where(cosine < 0, -1.0, 1.0)
        apart = (offset[:, None] - sign * offset).abs()
    else:
        apart = (offset[:, None] - offset).abs()
    score = 1 - (cosine if form == "signed" else cosine.abs()) + rho * apart
    return score.masked_fill_(~(there[:, None] & there), torch.inf)


def reduced(weights: Tensor, dim: int) -> Tensor:
    """Rows in the `dim` leading directions of their layer, each at its full length; ValueError if there are fewer.

    Cosines then are those of the projections, so that layers of different fan-in can be compared.
    Source: paper 4 names a PCA-like reduction; uncentred and at full length by this companion.
    """
    if not 1 <= dim <= min(weights.shape):
        raise ValueError(f"Rows of shape {tuple(weights.shape)} cannot be reduced to {dim} dimensions.")
    left, values, _ = torch.linalg.svd(weights.double(), full_matrices=False)
    small = left[:, :dim] * values[:dim]
    return small * (weights.double().norm(dim=1) / small.norm(dim=1).clamp_min(1e-300))[:, None]


def merge(outgoing: Tensor, kept: int, removed: int, norms: Tensor) -> Tensor:
    """Outgoing weights (outputs, K, ...) after node `removed` is folded into `kept`, in proportion to their norms.

    norms: (K,) of the incoming rows, BatchNorm folded in. Lossless if the two nodes' signed redundancy is 0.
    Source: this companion; for convolutions the same as for linear layers, because ReLU commutes with scaling.
    """
    merged = outgoing.clone()
    merged[:, kept] += (norms[removed] / norms[kept]).to(outgoing.dtype) * outgoing[:, removed]
    merged[:, removed] = 0
    return merged


aten = torch.ops.aten
BACKWARD = 3  # a training step counts as three forward passes
EPOCH_UNIT = 0.05e15  # the precursor's tables count in 0.05 P


def _elements(*_, out_shape: tuple, **__) -> int:
    return prod(out_shape)


def _norm(shape: tuple, *_, **__) -> int:
    return 2 * prod(shape)


def _inputs(shape: tuple, *_, **__) -> int:
    return prod(shape)


def _max_pool(shape: tuple, window: list[int], *_, out_shape: tuple, **__) -> int:
    return prod(out_shape[0]) * prod(window if len(window) == 2 else [*window, *window])


def _avg_pool(shape: tuple, window: list[int], *_, out_shape: tuple, **__) -> int:
    return prod(out_shape) * prod(window if len(window) == 2 else [*window, *window])


def _affine(bias: tuple, a: tuple, b: tuple, *_, **__) -> int:
    return 2 * a[0] * a[1] * b[1] + a[0] * b[1]


COUNTED = {
    aten.addmm: _affine,
    aten.relu: _elements,
    aten.native_batch_norm: _norm,
    aten._native_batch_norm_legit_no_training: _norm,
    aten.cudnn_batch_norm: _norm,
    aten.max_pool2d_with_indices: _max_pool,
    aten.avg_pool2d: _avg_pool,
    aten._adaptive_avg_pool2d: _inputs,
    aten.mean: _inputs,
}


def forward_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Operations of one forward pass of one input of `shape` (without batch).

    A multiply-accumulate counts 2 and a bias of a linear layer 1 an output, BatchNorm 2 and ReLU 1 an element, pooling
    one for each input of each window. Sums of residual blocks are not counted.
    Source: the precursor's `compute_flops.py`, as rules; it reproduces two published totals.
    """
    copy = deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        copy(torch.zeros((1, *shape), device="meta", dtype=next(copy.parameters()).dtype))
    return int(counter.get_total_flops())


def training_flops(forward: float, images: int, epochs: float) -> float:
    """Operations of a training: three forward passes an image (`images` an epoch)."""
    return BACKWARD * forward * images * epochs
