"""The two-dimensional toy of paper 4: data shaped as an X, and many small ReLU networks trained side by side.

A *batch* of networks is a list of layers (W, b) with W (networks, outputs, inputs) and b (networks, outputs). A node
whose incoming and outgoing weights are zero has no gradient and stays away, so networks of all widths fit in a batch.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.seeds import generator

WINDOW = ((-5.0, 5.0), (-5.0, 5.0))
POINTS, TEST = 2000, 400
LR, BATCH = 0.01, 256
Batch = list[tuple[Tensor, Tensor]]


def draw(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training points (1600, 2) and labels, then 400 of each for test; label 1 above and below the two diagonals.

    Source: "setting 5" of the released code, with a split of its own for each seed.
    """
    stream = generator(seed, "points")
    points = torch.rand(POINTS, 2, generator=stream) * 10 - 5
    labels = (points[:, 1].abs() > points[:, 0].abs()).long()
    return points[TEST:], labels[TEST:], points[:TEST], labels[:TEST]


def initial(widths: list[int], networks: int, stream: torch.Generator) -> Batch:
    """Networks of these widths, inputs and outputs included, with PyTorch's default initialisation."""
    layers = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        bound = inputs**-0.5
        weight = torch.rand(networks, outputs, inputs, generator=stream) * 2 * bound - bound
        layers.append((weight, torch.rand(networks, outputs, generator=stream) * 2 * bound - bound))
    return layers


def stacked(networks: list[Batch]) -> Batch:
    """Several batches as one; narrower networks get nodes without weights."""
    widths = [max(batch[layer][0].shape[1] for batch in networks) for layer in range(len(networks[0]))]
    together = []
    for layer, width in enumerate(widths):
        inputs = widths[layer - 1] if layer else networks[0][0][0].shape[2]
        parts = [
            (F.pad(W, (0, inputs - W.shape[2], 0, width - W.shape[1])), F.pad(b, (0, width - b.shape[1])))
            for W, b in (batch[layer] for batch in networks)
        ]
        together.append(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
    return together


def one(batch: Batch, index: int) -> Batch:
    """One network of a batch, as a batch."""
    return [(W[index : index + 1].clone(), b[index : index + 1].clone()) for W, b in batch]


def outputs(batch: Batch, points: Tensor) -> Tensor:
    """Logits (networks, points, classes); points are (n, 2), or (networks, n, 2)."""
    value = points if points.dim() == 3 else points.expand(len(batch[0][0]), -1, -1)
    for place, (weight, bias) in enumerate(batch):
        value = torch.baddbmm(bias[:, None], value.relu() if place else value, weight.mT)
    return value


def accuracy(batch: Batch, points: Tensor, labels: Tensor) -> list[float]:
    """Share of points that each network classifies correctly."""
    return (outputs(batch, points).argmax(2) == labels).double().mean(1).tolist()


def fit(
    batch: Batch,
    points: Tensor,
    labels: Tensor,
    epochs: int,
    stream: torch.Generator,
    masks: list[Tensor] | None = None,
    rate: float = 1.0,
) -> list[float]:
    """Train every network of a batch, with two outputs, in place by plain SGD on points in the same order.

    points: (n, 2) and labels (n,), or one set a network, (networks, n, 2) and (networks, n).
    masks: for each layer where its weights may move; others keep their value. rate: factor on the learning rate.

    Returns: the mean cross-entropy (nats) over networks, by epoch.
    """
    targets = labels.to(points.dtype)
    networks, n, losses = len(batch[0][0]), points.shape[-2], []
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(n, generator=stream).split(BATCH):
            some = points.index_select(-2, chosen).expand(networks, -1, -1)
            total += _step(batch, some, targets.index_select(-1, chosen), masks, rate) * len(chosen)
        losses.append(float(total) / n)
    return losses


def _step(batch: Batch, points: Tensor, targets: Tensor, masks: list[Tensor] | None, rate: float) -> Tensor:
    """One step of SGD, with gradients by hand: autograd costs several times more on networks of this size."""
    values = [points]
    for place, (weight, bias) in enumerate(batch):
        value = torch.baddbmm(bias[:, None], values[-1], weight.mT)
        values.append(value.relu_() if place < len(batch) - 1 else value)
    margin = values[-1][..., 1] - values[-1][..., 0]
    loss = F.softplus(margin * (1 - 2 * targets)).mean()
    error = (margin.sigmoid() - targets) * (rate * LR / points.shape[1])
    gradient = torch.stack([-error, error], 2)
    for place in reversed(range(len(batch))):
        weight, bias = batch[place]
        step = gradient.mT @ values[place]
        step = step if masks is None else step * masks[place]
        below = (gradient @ weight).mul_(values[place] > 0) if place else None
        weight -= step
        bias -= gradient.sum(1)
        gradient = below
    return loss


def module(batch: Batch, index: int = 0) -> nn.Sequential:
    """One network of a batch as a double-precision module, Linear and ReLU in turn."""
    layers: list[nn.Module] = []
    for weight, bias in batch:
        linear = nn.Linear(weight.shape[2], weight.shape[1]).double()
        linear.weight.data, linear.bias.data = weight[index].double(), bias[index].double()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def without_nodes(batch: Batch, nodes: list[int], layer: int = 0) -> Batch:
    """A network, as a batch of one, whose nodes of a hidden layer have no weights."""
    copy = one(batch, 0)
    copy[layer][0][:, nodes], copy[layer][1][:, nodes], copy[layer + 1][0][:, :, nodes] = 0, 0, 0
    return copy


def distinct_lines(weight: Tensor, bias: Tensor) -> int:
    """Number of different lines among nodes (n, 2), (n,): nodes without weights have none, multiples share one."""
    rows = torch.cat([weight, bias[:, None]], 1).double()
    rows = rows[weight.abs().sum(1) > 0]
    rows = rows / rows[:, :2].norm(dim=1, keepdim=True)
    first = rows.gather(1, (rows[:, :2].abs() > 1e-12).long().argmax(1, keepdim=True))
    return len(np.unique((rows * first.sign()).numpy().round(9), axis=0)) if len(rows) else 0


def parallel_share(weight: Tensor) -> float:
    """Share of the nodes (n, 2) that have a line whose line is parallel to an axis; NaN if none has one."""
    there = weight.ne(0).sum(1)
    return ((there == 1).sum() / (there > 0).sum()).item() if there.any() else float("nan")
