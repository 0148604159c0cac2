"""What paper 4 defines: codes and when they settle, redundancy of nodes, merging, which nodes go, and operations.

A *code* holds one bit for each unit and probe: whether the unit is positive there. If every coded layer goes straight
into a ReLU, two networks with equal codes put the probes into the same regions of the input-space partition. Before
another activation, such as GELU, which has no regions, a code is the sign of the layer alone.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from lib import channels
from lib.parameters import SCORES
from lib.provenance import CompanionError, unknown
from lib.spline.walk import AFFINE, MAXIMA, POOLS, RELU

FORMS = ("raw", "normalised", "signed")
REDUCTIONS = ("pca", "random", "means")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
THRESHOLD, LOOKBACK = 0.16, 3  # defaults of the released code; the paper's printed values are unknown
MASK_KEPT, MASK_LIMIT = 5, 0.1  # of the mask-distance detector (You et al. 2020)
SCOPES = ("layerwise", "global")
Dropped = list[tuple[int, int, int]]  # (layer, node, twin) in order; twin is -1 where a node goes without one


@dataclass(frozen=True)
class Codes:
    """Bits of every coded layer on fixed probes."""

    names: tuple[str, ...]
    units: tuple[int, ...]  # bits of one probe in each layer
    words: tuple[np.ndarray, ...]  # uint64 (probes, words) of each layer, 64 bits to a word


def coded_layers(model: nn.Module) -> list[str]:
    """Layers whose sign is the code: every BatchNorm; without any, every linear layer and convolution but the last.

    In a network with BatchNorm, layers without one have no code, for example AlexNet's two wide linear layers. The
    activation behind a layer does not matter: behind GELU a bit is a sign and not a side of a line.

    Source: the released code.
    """
    modules = list(model.named_modules())
    if norms := [name for name, module in modules if isinstance(module, NORMS)]:
        return norms
    return [name for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)][:-1]


@torch.inference_mode()
def activation_codes(model: nn.Module, probes: Tensor, batch_size: int = 100) -> Codes:
    """The code of `coded_layers` in evaluation mode on normalised probes (n, ...); the network's own mode is restored.

    Raises:
        ValueError: for probes that do not fit the network.
        CompanionError: if a layer is not finite.
    """
    names, units, words, hooks, training = coded_layers(model), {}, {}, [], model.training

    def record(name: str, output: Tensor) -> None:
        if not output.isfinite().all():
            raise CompanionError(f"Layer {name} is not finite on the probes: the training diverged, lower lr.")
        positive = (output.flatten(1) > 0).cpu().numpy()
        packed = np.packbits(positive, axis=1)
        packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
        units[name] = positive.shape[1]
        words.setdefault(name, []).append(packed)

    model.eval()
    try:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: record(name, output)
            )
            hooks.append(hook)
        for part in probes.split(batch_size):
            model(part)
    except CompanionError:
        raise
    except RuntimeError as error:
        raise ValueError(f"Probes of shape {tuple(probes.shape)} do not fit the network: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    seen = tuple(name for name in names if name in units)
    return Codes(seen, tuple(units[name] for name in seen), tuple(np.concatenate(words[name]) for name in seen))


def code_distance(a: Codes, b: Codes) -> np.ndarray:
    """Share of bits in which two codes differ, by layer, in [0, 1].

    Raises:
        ValueError: for codes of different layers or probes.
    """
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


def recent_distance(distances: np.ndarray, lookback: int = LOOKBACK) -> np.ndarray:
    """For each epoch t of a (T, T) matrix the largest of d(t, t - 1) … d(t, t - lookback); NaN where t < lookback."""
    before = [distances[t, max(t - lookback, 0) : t] for t in range(len(distances))]
    return np.array([part.max() if len(part) == lookback else np.nan for part in before])


def first_below(recent: Sequence[float], threshold: float, relative: bool = False) -> int | None:
    """The first epoch at which `recent_distance` is below a threshold, or, if relative, below a share of its first.

    Returns:
        An epoch, counted from 0; None if there is none, or if the first distance is 0 and the relative rule undefined.
    """
    recent = np.asarray(recent, dtype=float)
    first = recent[~np.isnan(recent)][:1]
    if not len(first) or (relative and first[0] == 0):
        return None
    below = np.flatnonzero(recent < threshold * (first[0] if relative else 1.0))
    return int(below[0]) if len(below) else None


def early_bird_epoch(
    distances: np.ndarray, threshold: float = THRESHOLD, lookback: int = LOOKBACK, relative: bool = False
) -> int | None:
    """The first epoch, counted from 0, whose code is close to the codes of `lookback` epochs before; as `first_below`.

    The distances (T, T) are between codes taken after each epoch; epoch t has t + 1 epochs of training behind it.

    Source: `detect_eb` of the released code; the relative rule is this companion's.
    """
    return first_below(recent_distance(np.asarray(distances, dtype=float), lookback), threshold, relative)


def mask_early_bird_epoch(scales: np.ndarray, ratio: float) -> int | None:
    """The number of trained epochs after which the pruning mask of all BatchNorm scales has settled; None for never.

    The scales are (T, channels), the first row before any training. A mask keeps those strictly above the one at index
    int(channels * ratio). The newest of MASK_KEPT masks may differ from each other one in MASK_LIMIT of its entries.

    Raises:
        CompanionError: for scales that are not finite.

    Source: class `EarlyBird` of You et al. 2020.
    """
    scales = np.abs(np.asarray(scales))
    if not np.isfinite(scales).all():
        raise CompanionError("The scales of BatchNorm are not finite: the training diverged, lower lr.")
    masks = scales > np.sort(scales, axis=1)[:, [int(scales.shape[1] * ratio)]]
    for t in range(MASK_KEPT - 1, len(masks)):
        if (masks[t - MASK_KEPT + 1 : t] != masks[t]).mean(1).max() <= MASK_LIMIT:
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

    Source: paper 4 in evaluation mode; a negative scale reverses the row, a zero one leaves no hyperplane.
    """
    weight = layer.weight.detach().double().flatten(1)
    bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias.detach().double()
    if norm is None:
        return weight, bias
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight * factor[:, None], factor * (bias - norm.running_mean.double()) + norm.bias.detach().double()


def redundancy(weights: Tensor, biases: Tensor, form: str = "signed", rho: float = 1.0) -> Tensor:
    """How little each pair of nodes of a layer adds to the other's spline: (K, K) float64, small is redundant.

    The rows (K, inputs) and offsets (K,) have BatchNorm folded in, see `folded`; a layer without bias has zeros. With
    c the cosine of two rows, the form is "raw", 1 - |c| + rho |b - b'|, as assumed for the paper; "normalised", with
    b / |w| and the sign of c: zero if and only if the hyperplanes coincide; or "signed", 1 - c + rho |b / |w| - b' /
    |w'||: zero if and only if the nodes are positive multiples of each other. A zero row has no hyperplane: its scores
    are infinite.

    Raises:
        ValueError: for another form or shapes that do not fit.
        CompanionError: for weights that are not finite.
    """
    if form not in FORMS:
        raise ValueError(f"Form is {form!r}; it must be one of {', '.join(FORMS)}.")
    if weights.dim() != 2 or biases.shape != weights.shape[:1]:
        raise ValueError(f"Rows (K, inputs) and offsets (K,) do not fit: {weights.shape}, {biases.shape}.")
    weights, biases = weights.double(), biases.double()
    if not (weights.isfinite().all() and biases.isfinite().all()):
        raise CompanionError("The weights of a layer are not finite: its training diverged, lower lr.")
    norms = weights.norm(dim=1)
    has_line = norms > 0
    lengths = torch.where(has_line, norms, 1.0)
    unit = weights / lengths[:, None]
    cosine = (unit @ unit.T).clamp_(-1, 1)
    offset = biases if form == "raw" else biases / lengths
    sign = torch.where(cosine < 0, -1.0, 1.0) if form == "normalised" else 1.0
    score = 1 - (cosine if form == "signed" else cosine.abs()) + rho * (offset[:, None] - sign * offset).abs()
    return score.masked_fill_(~(has_line[:, None] & has_line), torch.inf)


def coordinates(
    weights: Tensor,
    dim: int,
    kind: str = "pca",
    *,
    means: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Coordinates (K, dim) of the rows (K, inputs) of a layer in fewer directions, float64.

    The kind is "pca": the leading right singular vectors of the rows, uncentred; "random": Gaussian directions from the
    generator, scaled so that inner products are right on average; or "means": the leading right singular vectors of
    `means` (classes, inputs), of what the layer reads for each class.

    Raises:
        ValueError: for another kind, or if there are fewer directions.

    Source: paper 4 names a PCA-like reduction; uncentred, and compared with the others, by this companion.
    """
    if kind not in REDUCTIONS:
        raise ValueError(f"Reduction is {kind!r}; it must be one of {', '.join(REDUCTIONS)}.")
    weights = weights.double()
    spanned = means.double() if kind == "means" else weights
    if dim < 1 or (kind != "random" and dim > min(spanned.shape)):
        raise ValueError(f"Rows of shape {tuple(spanned.shape)} cannot be reduced to {dim} dimensions.")
    if kind == "random":
        return weights @ torch.randn(weights.shape[1], dim, generator=generator, dtype=torch.float64) / dim**0.5
    left, values, right = torch.linalg.svd(spanned, full_matrices=False)
    return left[:, :dim] * values[:dim] if kind == "pca" else weights @ right[:dim].T


def lengthened(small: Tensor, weights: Tensor) -> Tensor:
    """Reduced rows (K, dim), each at the full length of its row of the weights (K, inputs)."""
    return small * (weights.double().norm(dim=1) / small.norm(dim=1).clamp_min(1e-300))[:, None]


def reduced(weights: Tensor, dim: int) -> Tensor:
    """Rows in the `dim` leading directions of their layer, each at its full length.

    Cosines then are those of the projections, so that layers of different fan-in can be compared.

    Raises:
        ValueError: if the rows have fewer directions.
    """
    return lengthened(coordinates(weights, dim), weights)


def merge(outgoing: Tensor, kept: int, removed: int, norms: Tensor) -> Tensor:
    """Outgoing weights (outputs, K, ...) after node `removed` is folded into `kept`, in proportion to their `norms`.

    The norms (K,) are those of the incoming rows, with BatchNorm folded in. Merging is lossless if the signed
    redundancy of the two nodes is 0, for convolutions as well, because ReLU commutes with scaling.

    Source: this companion.
    """
    merged = outgoing.clone()
    merged[:, kept] += (norms[removed] / norms[kept]).to(outgoing.dtype) * outgoing[:, removed]
    merged[:, removed] = 0
    return merged


aten = torch.ops.aten
BACKWARD = 3  # a training step counts as three forward passes
EPOCH_UNIT = 0.05e15  # the precursor's tables count in 0.05 P


def _pooling(shape: tuple, window: list[int], *_, out_shape: tuple, **__) -> int:
    outputs = out_shape if isinstance(out_shape[0], int) else out_shape[0]  # maxima come with their places
    return prod(outputs) * prod(window if len(window) == 2 else [*window, *window])


COUNTED = {
    aten.addmm: lambda bias, a, b, *_, **__: 2 * a[0] * a[1] * b[1] + a[0] * b[1],
    aten.relu: lambda shape, *_, **__: prod(shape),
    aten.native_batch_norm: lambda shape, *_, **__: 2 * prod(shape),
    aten._native_batch_norm_legit_no_training: lambda shape, *_, **__: 2 * prod(shape),
    aten.max_pool2d_with_indices: _pooling,
    aten.avg_pool2d: _pooling,
    aten._adaptive_avg_pool2d: lambda shape, *_, **__: prod(shape),
    aten.mean: lambda shape, *_, **__: prod(shape),
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
    """Operations of a training on `images` an epoch, three forward passes an image."""
    return BACKWARD * forward * images * epochs


@dataclass(frozen=True)
class Layer:
    """The nodes of a layer that one layer reads, BatchNorm folded in; all float64 on the CPU, one row per node."""

    name: str  # of the layer that writes the nodes
    reader: str  # name of the layer that reads them
    norm: str  # name of the BatchNorm between them, or ""
    weights: Tensor
    biases: Tensor
    outgoing: Tensor
    scale: Tensor  # |gamma| of the BatchNorm, or the length of the row where there is none

    def __len__(self) -> int:
        return len(self.biases)


def layers(model: nn.Module, size: int = 32) -> list[Layer]:
    """The layers whose nodes can go on their own: one layer writes them, straight into a ReLU, and one reads them.

    In a ResNet these are the convolutions inside blocks. The residual stream stays: sums of several layers bend there,
    so no single row is its hyperplane. Identity and dropout on the way are looked through.

    Raises:
        CompanionError: for a network that cannot be followed or has no such layer, and for nodes that go into another
            activation, naming their layer: a node before ReLU6 draws two lines, and one before GELU none.
    """
    try:
        traced = fx.symbolic_trace(model)
    except fx.proxy.TraceError as error:
        raise CompanionError(f"{type(model).__name__} cannot be followed layer by layer: {error}.") from None
    groups, modules, found = channels.find(model, size).internal(), dict(model.named_modules()), []
    nodes = {str(node.target): node for node in traced.graph.nodes if node.op == "call_module"}
    for (writer,), (reader,) in zip(groups.writers, groups.readers, strict=True):
        norm, (behind, kind) = "", _behind(nodes[writer], modules)
        if kind in NORMS:
            norm, (behind, kind) = str(behind.target), _behind(behind, modules)
        if kind not in (*RELU, *AFFINE, *POOLS, *MAXIMA, None):
            sentence = f"The nodes of layer {writer} go into {getattr(kind, '__name__', kind)}"
            raise CompanionError(f"{sentence}: they can be told apart by their lines only before a ReLU.")
        if kind not in RELU:
            continue
        weights, biases = folded(modules[writer], modules[norm] if norm else None)
        scale = modules[norm].weight.detach().double().abs() if norm else weights.norm(dim=1)
        outgoing = _by_node(modules[reader].weight.detach().double(), len(biases)).transpose(0, 1).flatten(1)
        found.append(Layer(writer, reader, norm, *(tensor.cpu() for tensor in (weights, biases, outgoing, scale))))
    if not found:
        sentence = f"{type(model).__name__} has no layer whose nodes can go on their own"
        raise CompanionError(f"{sentence}: one layer has to write them straight into a ReLU, and one to read them.")
    return found


def _behind(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node | None, object]:
    """What alone reads a layer's value, behind identity and dropout, and its kind; nothing if several nodes do."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        kind = type(modules[node.target]) if node.op == "call_module" else node.target
        if kind not in (nn.Identity, nn.Dropout, nn.Dropout2d):
            return node, kind
    return None, None


def remove(
    model: nn.Module,
    ratio: float,
    method: str,
    scope: str = "layerwise",
    *,
    size: int = 32,
    chooser: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of a network without a share of its nodes, rounded down; every layer keeps at least one.

    The method is "raw", "normalised", "signed" (redundancy), "merged" (signed, and a removed node is folded into its
    twin), "magnitude" (length of the row), "slimming" (|gamma|), "median" (nearest to all others) or "random"; the
    scope is "layerwise" or "global". The chooser, a network of the same shape, says which nodes go; by default it is
    the model itself. Images are squares of `size` pixels a side.
    """
    found = layers(model, size)
    chosen = choose(layers(chooser, size) if chooser else found, ratio, method, scope, generator=generator)
    return without(model, found, chosen, merging=method == "merged", size=size)


def choose(
    found: Sequence[Layer],
    ratio: float,
    method: str,
    scope: str = "layerwise",
    *,
    dim: int | None = None,
    generator: torch.Generator | None = None,
) -> Dropped:
    """The nodes that `remove` removes; redundancy compares rows in `dim` leading directions, by default in all.

    Raises:
        CompanionError: for an unknown method or scope.
        ValueError: for a ratio outside [0, 1), and for "random" without a generator.
    """
    if method not in SCORES:
        raise unknown("score", method, SCORES)
    quota = quotas([len(layer) for layer in found], ratio, scope)
    if method in ("raw", "normalised", "signed", "merged"):
        form = "signed" if method == "merged" else method
        rows = [layer.weights if dim is None else reduced(layer.weights, dim) for layer in found]
        scores = [redundancy(row, layer.biases, form) for row, layer in zip(rows, found, strict=True)]
        return twins(found, scores, *quota, merging=method == "merged")
    if method == "random":
        if generator is None:
            raise ValueError('Method "random" needs a torch.Generator: pass generator.')
        ranks = [torch.rand(len(layer), generator=generator, dtype=torch.float64) for layer in found]
    elif method == "median":
        ranks = [torch.cdist(layer.weights, layer.weights).sum(1) for layer in found]
    else:
        ranks = [layer.scale if method == "slimming" else layer.weights.norm(dim=1) for layer in found]
    return lowest(ranks, *quota)


def quotas(widths: Sequence[int], ratio: float, scope: str) -> tuple[list[int], int]:
    """How many nodes each layer may lose, and how many go in all."""
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if not 0 <= ratio < 1:
        raise ValueError(f"The share of nodes to remove must be in [0, 1), not {ratio}: each layer keeps at least one.")
    if scope == "global":
        return [width - 1 for width in widths], min(int(ratio * sum(widths) + 1e-9), sum(widths) - len(widths))
    left = [int(ratio * width + 1e-9) for width in widths]
    return left, sum(left)


def lowest(ranks: Sequence[Tensor], left: list[int], total: int) -> Dropped:
    """The `total` nodes of the lowest rank, of which each layer loses at most the number that is `left` to it."""
    left, dropped = list(left), []
    for _, layer, node in sorted(
        (float(rank), k, node) for k, own in enumerate(ranks) for node, rank in enumerate(own)
    ):
        if len(dropped) < total and left[layer]:
            left[layer] -= 1
            dropped.append((layer, node, -1))
    return dropped


def twins(
    found: Sequence[Layer], scores: Sequence[Tensor], left: list[int], total: int, merging: bool = False
) -> Dropped:
    """Greedy removal: the closest pair within a layer, over all layers that may lose a node, loses its weaker member.

    The scores are (K, K) for each layer; each may lose the number of nodes `left` to it. The weaker node has the
    smaller product of the norms of incoming and outgoing weights; merging adds to the survivor's outgoing ones. Nodes
    without a hyperplane go first.

    Source: this companion; the paper's grouping is unknown. Ranking nodes once by their smallest score would drop both
    twins of a pair, and with them the spline.
    """
    left, matrices = list(left), [score.numpy().copy() for score in scores]
    norms = [layer.weights.norm(dim=1).numpy() for layer in found]
    outgoing = [layer.outgoing.numpy().copy() for layer in found]
    dropped = [(k, int(node), -1) for k, norm in enumerate(norms) for node in np.flatnonzero(norm == 0)[: left[k]]]
    dropped = dropped[:total]
    for layer, _, _ in dropped:
        left[layer] -= 1
    for matrix in matrices:
        np.fill_diagonal(matrix, np.inf)
    # The closest partner of each node; only nodes that lose theirs look for another one.
    partners = [matrix.argmin(1) for matrix in matrices]
    distances = [matrix.min(1) for matrix in matrices]
    while len(dropped) < total:
        layer = min((k for k in range(len(found)) if left[k]), key=lambda k: distances[k].min())
        matrix, partner, distance = matrices[layer], partners[layer], distances[layer]
        a = int(distance.argmin())
        b = int(partner[a])
        strength = [norms[layer][node] * np.linalg.norm(outgoing[layer][node]) for node in (a, b)]
        kept, gone = (a, b) if strength[0] >= strength[1] else (b, a)
        if merging:
            outgoing[layer][kept] += norms[layer][gone] / norms[layer][kept] * outgoing[layer][gone]
        matrix[gone], matrix[:, gone], distance[gone] = np.inf, np.inf, np.inf
        alone = np.flatnonzero(partner == gone)
        partner[alone], distance[alone] = matrix[alone].argmin(1), matrix[alone].min(1)
        left[layer] -= 1
        dropped.append((layer, gone, kept))
    return dropped


def without(
    model: nn.Module, found: Sequence[Layer], dropped: Dropped, *, merging: bool = False, size: int = 32
) -> nn.Module:
    """A copy of a network without these nodes, each folded into its twin first if merging.

    The constant of a node without a hyperplane, relu(bias), goes into the reader's bias or the BatchNorm behind it;
    that is exact away from zero padding.
    """
    copy = deepcopy(model)
    for place, gone, twin in dropped:
        own, reader = found[place], copy.get_submodule(found[place].reader)
        weight = _by_node(reader.weight.data, len(own))
        if twin >= 0 and merging:
            merged = merge(weight, twin, gone, own.weights.norm(dim=1).to(weight.device))
            reader.weight.data = merged.view_as(reader.weight)
        elif not own.weights[gone].any():
            constant = weight[:, gone].flatten(1).sum(1) * own.biases[gone].clamp_min(0).item()
            norm = next((layer.norm for layer in found if layer.name == own.reader), "")
            if reader.bias is not None:
                reader.bias.data += constant
            elif norm:
                copy.get_submodule(norm).running_mean -= constant
    gone = [{node for k, node, _ in dropped if k == place} for place in range(len(found))]
    kept = {own.name: sorted(set(range(len(own))) - nodes) for own, nodes in zip(found, gone, strict=True)}
    return channels.keep(copy, kept, size=size)


def _by_node(weight: Tensor, nodes: int) -> Tensor:
    """A reader's weight (outputs, nodes, entries): of a linear layer behind a flattened map several entries a node."""
    return weight.reshape(len(weight), nodes, -1)
