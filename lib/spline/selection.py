"""Which nodes of a network go, by redundancy of their splines or by the controls; and the network that is left."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from lib import channels
from lib.parameters import SCORES
from lib.provenance import unknown
from lib.spline import measures
from lib.spline.partition import RELU

SCOPES = ("layerwise", "global")
Dropped = list[tuple[int, int, int]]  # (layer, node, twin) in order; twin is -1 where a node goes without one


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
    so no single row is its hyperplane.
    """
    groups, modules, found = channels.find(model, size).internal(), dict(model.named_modules()), []
    nodes = {str(node.target): node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_module"}
    for (writer,), (reader,) in zip(groups.writers, groups.readers, strict=True):
        behind = next(iter(nodes[writer].users))
        norm = str(behind.target) if isinstance(modules.get(str(behind.target)), measures.NORMS) else ""
        bends = next(iter(nodes[norm].users)) if norm else behind
        kind = type(modules[bends.target]) if bends.op == "call_module" else bends.target
        if kind not in RELU or len(nodes[norm or writer].users) > 1:
            continue
        weights, biases = measures.folded(modules[writer], modules[norm] if norm else None)
        scale = modules[norm].weight.detach().double().abs() if norm else weights.norm(dim=1)
        outgoing = _by_node(modules[reader].weight.detach().double(), len(biases)).transpose(0, 1).flatten(1)
        found.append(Layer(writer, reader, norm, *(tensor.cpu() for tensor in (weights, biases, outgoing, scale))))
    return found


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
        rows = [layer.weights if dim is None else measures.reduced(layer.weights, dim) for layer in found]
        scores = [measures.redundancy(row, layer.biases, form) for row, layer in zip(rows, found, strict=True)]
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
            merged = measures.merge(weight, twin, gone, own.weights.norm(dim=1).to(weight.device))
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
