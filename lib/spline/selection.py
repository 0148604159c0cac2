"""Which nodes of a network go: by redundancy of their splines, or by the controls; and the network that is left."""

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


@dataclass(frozen=True)
class Layer:
    """The nodes of a layer that one layer reads, BatchNorm folded in; all float64 on the CPU, one row a node.

    name, reader: of the layers that write and read the nodes; norm: name of the BatchNorm between them, or "".
    """

    name: str
    reader: str
    norm: str
    weights: Tensor
    biases: Tensor
    outgoing: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.biases)


def layers(model: nn.Module, size: int = 32) -> list[Layer]:
    """The layers whose nodes can go on their own: one layer writes them, straight into a ReLU, and one reads them.

    In a ResNet these are the convolutions inside blocks. The residual stream stays: sums of several layers bend there,
    so no single row is its hyperplane.
    scale is |gamma| of the BatchNorm behind a layer, or the length of the row where there is none.
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
    rho: float = 1.0,
    dim: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of a network without a share of its nodes; every layer keeps at least one.

    Args:
        ratio: share of the nodes of `layers` to remove, in [0, 1), rounded down in each layer or over all.
        method: "raw", "normalised", "signed" (redundancy), "merged" (signed, and what goes is folded into its twin),
            "magnitude" (length of the row), "slimming" (|gamma|), "median" (nearest to all others), "random".
        scope: "layerwise" or "global".
        dim: number of leading directions in which rows are compared; all by default.
    """
    found = layers(model, size)
    dropped = choose(found, ratio, method, scope, rho=rho, dim=dim, generator=generator)
    return without(model, found, dropped, merging=method == "merged", size=size)


def choose(
    found: Sequence[Layer],
    ratio: float,
    method: str,
    scope: str = "layerwise",
    *,
    rho: float = 1.0,
    dim: int | None = None,
    generator: torch.Generator | None = None,
) -> list[tuple[int, int, int]]:
    """What `remove` removes: (layer, node, twin) in order; twin is -1 where a node goes without one."""
    if method not in SCORES:
        raise unknown("score", method, SCORES)
    quota = quotas([len(layer) for layer in found], ratio, scope)
    if method in ("raw", "normalised", "signed", "merged"):
        form = "signed" if method == "merged" else method
        rows = [layer.weights if dim is None else measures.reduced(layer.weights, dim) for layer in found]
        scores = [measures.redundancy(row, layer.biases, form, rho) for row, layer in zip(rows, found, strict=True)]
        return twins(found, scores, quota, merging=method == "merged")
    if method == "random":
        ranks = [torch.rand(len(layer), generator=generator, dtype=torch.float64) for layer in found]
    elif method == "median":
        ranks = [torch.cdist(layer.weights, layer.weights).sum(1) for layer in found]
    else:
        ranks = [layer.scale if method == "slimming" else layer.weights.norm(dim=1) for layer in found]
    return lowest(ranks, quota)


def quotas(widths: Sequence[int], ratio: float, scope: str) -> list[int] | int:
    """How many nodes go from each layer ("layerwise"), or from all ("global"); ValueError if a layer would be empty."""
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if not 0 <= ratio < 1:
        raise ValueError(
            f"The share of nodes to remove must lie in [0, 1), not {ratio}: each layer keeps at least one."
        )
    if scope == "global":
        return min(int(ratio * sum(widths) + 1e-9), sum(widths) - len(widths))
    return [int(ratio * width + 1e-9) for width in widths]


def lowest(ranks: Sequence[Tensor], quota: list[int] | int) -> list[tuple[int, int, int]]:
    """The nodes of the lowest rank, in each layer or over all, at least one a layer kept; as `choose` returns them."""
    order = sorted((float(rank), layer, node) for layer, own in enumerate(ranks) for node, rank in enumerate(own))
    left = [len(own) - 1 for own in ranks] if isinstance(quota, int) else list(quota)
    total, dropped = quota if isinstance(quota, int) else sum(quota), []
    for _, layer, node in order:
        if len(dropped) < total and left[layer]:
            left[layer] -= 1
            dropped.append((layer, node, -1))
    return dropped


def twins(
    found: Sequence[Layer], scores: Sequence[Tensor], quota: list[int] | int, merging: bool = False
) -> list[tuple[int, int, int]]:
    """Greedy removal: the closest pair within a layer, over all layers that may lose a node, loses its weaker member.

    Weaker is a smaller product of the norms of incoming and outgoing weights; merging adds to the survivor's outgoing
    ones. Nodes without a hyperplane go first.
    Source: this companion; the paper's grouping is unknown. Ranking nodes once by their smallest score would drop both
    twins of a pair, and with them the spline.
    """
    left = [len(layer) - 1 for layer in found] if isinstance(quota, int) else list(quota)
    total = quota if isinstance(quota, int) else sum(quota)
    matrices = [score.numpy().copy() for score in scores]
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
    model: nn.Module,
    found: Sequence[Layer],
    dropped: list[tuple[int, int, int]],
    *,
    merging: bool = False,
    size: int = 32,
) -> nn.Module:
    """A copy of a network without these nodes, each folded into its twin first if merging.

    The constant of a node without a hyperplane, relu(bias), goes into the reader's bias or the BatchNorm behind it;
    that is exact away from zero padding.
    """
    copy = deepcopy(model)
    for layer, gone, kept in dropped:
        own, reader = found[layer], copy.get_submodule(found[layer].reader)
        if kept >= 0 and merging:
            weight = _by_node(reader.weight.data, len(own))
            merged = measures.merge(weight, kept, gone, own.weights.norm(dim=1).to(weight.device))
            reader.weight.data = merged.view_as(reader.weight)
        elif not own.weights[gone].any():
            _absorb(copy, found, own, gone)
    kept = {
        own.name: sorted(set(range(len(own))) - {n for k, n, _ in dropped if k == place})
        for place, own in enumerate(found)
    }
    return channels.keep(copy, kept, size=size)


def _absorb(model: nn.Module, found: Sequence[Layer], own: Layer, gone: int) -> None:
    reader = model.get_submodule(own.reader)
    constant = _by_node(reader.weight.data, len(own))[:, gone].flatten(1).sum(1) * own.biases[gone].clamp_min(0).item()
    norm = next((layer.norm for layer in found if layer.name == own.reader), "")
    if reader.bias is not None:
        reader.bias.data += constant
    elif norm:
        model.get_submodule(norm).running_mean -= constant


def _by_node(weight: Tensor, nodes: int) -> Tensor:
    """A reader's weight (outputs, nodes, entries): of a linear layer behind a flattened map several entries a node."""
    return weight.reshape(len(weight), nodes, -1)
