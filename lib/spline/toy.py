"""The two-dimensional toy of paper 4: data shaped as an X, and many small ReLU networks trained side by side.

A *batch* of networks is a list of layers (W, b) with W (networks, outputs, inputs) and b (networks, outputs). A node
whose incoming and outgoing weights are zero has no gradient and stays away, so networks of all widths fit in a batch.

The trials of paper 4 in two dimensions: random networks, the X-shaped data, pruned, from scratch.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.spline import measures, partition, selection
from lib.study import Study, generator

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


METHODS = ("raw", "normalised", "signed", "merged", "data", "magnitude", "median", "random")
TUNED = ("raw", "signed", "merged", "magnitude", "random")
BOX = ((-2.0, 2.0), (-2.0, 2.0))  # the window of random networks
OUTLINE = 4.0  # half-side of the square on which the arms of the boundary are counted
SPARSITIES = (0.25, 0.5, 0.75)  # of weight pruning
DRAWS = 20  # random masks for each sparsity


def study(name: str, folder: Path) -> Study:
    """The study of one of the trials below: "exact", "pruned", "scratch", "changed" or "settling"."""
    trials = {"exact": exact, "pruned": pruned, "scratch": scratch, "changed": changed, "settling": settling}
    return Study(f"04_spline_early_bird.toy_{name}", trials[name], version=1, folder=folder)


def exact(spec: dict, device: str, weights: Path) -> dict:
    """The trial of random networks on [-2, 2]²: what the partition says against what the network does.

    Args:
        spec: `seed`, `depth` (hidden layers), `width`; weights and offsets are standard normal.

    Returns: `regions`; `shared_codes`, regions beyond the number of different codes; relative errors of the maps and of
        the area; bends of deep lines and of the line of equal logits, and the largest distance of one from an earlier
        line, over the window's side; after dropping one node of layer 1, how far other lines of layer 1 moved, the
        share of the deeper lines' length that moved, and for one layer how many regions the formula misses.
    """
    stream = generator(spec["seed"], "weights")
    widths = [2, *[spec["width"]] * spec["depth"], 2]
    batch = [
        (torch.randn(1, o, i, generator=stream), torch.randn(1, o, generator=stream))
        for i, o in zip(widths[:-1], widths[1:], strict=True)
    ]
    network, dropped = module(batch), module(without_nodes(batch, [0]))
    found, after = partition.split(network, BOX), partition.split(dropped, BOX)
    points = np.concatenate([found.cells.centre, found.cells.corners[:, 0]])
    wanted = network(torch.from_numpy(points)).detach().numpy()
    maps = np.concatenate([found.maps, found.maps])
    errors = np.abs(np.einsum("nok,nk->no", maps[..., :2], points) + maps[..., 2] - wanted)
    bends, distance = _bends(found)
    first, second = found.lines(0), after.lines(0)
    moved = [partition.distance(ends.reshape(-1, 2), first[unit]).max() for unit, ends in second.items()]
    deep = [
        np.concatenate([*p.lines(layer).values(), np.zeros((0, 2, 2))])
        for p in (found, after)
        for layer in range(1, spec["depth"])
    ]
    half = len(deep) // 2
    old, new = (np.concatenate([*part, np.zeros((0, 2, 2))]) for part in (deep[:half], deep[half:]))
    return {
        "regions": len(found),
        "regions_after": len(after),
        "shared_codes": len(found) - len(np.unique(found.packed, axis=0)),
        "map_error": float(errors.max() / np.abs(wanted).max()),
        "area_error": abs(found.area.sum() / 16 - 1),
        "bends": bends,
        "bend_distance": distance,
        "first_layer_moved": float(max(moved, default=0.0)) + 4 * (set(first) - {0} != set(second)),
        "deeper_moved": partition.moved_length(old, new, 0.04) / partition.length(old) if half else None,
        "count_off": abs(len(after) - arrangement(*(v[0, 1:] for v in batch[0]), BOX)) if spec["depth"] == 1 else None,
    }


def arrangement(weight: Tensor, bias: Tensor, window: partition.Window) -> int:
    """Regions of lines (n, 2), (n,) in general position in a box: 1 + lines that cross it + vertices inside it."""
    rows = torch.cat([weight, bias[:, None]], 1).double().numpy()
    (left, right), (bottom, top) = window
    corners = np.array([[x, y, 1] for x in (left, right) for y in (bottom, top)]) @ rows.T
    vertices = 0
    for a, b in combinations(rows, 2):
        x, y = np.linalg.solve([a[:2], b[:2]], [-a[2], -b[2]])
        vertices += left < x < right and bottom < y < top
    return 1 + int(((corners > 0).any(0) & (corners < 0).any(0)).sum()) + int(vertices)


def _bends(found: partition.Partition) -> tuple[int, float]:
    """How many bends deep lines and the line of equal logits have, and how far one lies from an earlier line."""
    earlier, count, worst = np.concatenate([*found.lines(0).values(), np.zeros((0, 2, 2))]), 0, 0.0
    for layer in range(1, len(found.layers) + 1):
        last = layer == len(found.layers)
        lines = [partition.level_set(found, 0, 1)] if last else list(found.lines(layer).values())
        bent = np.concatenate([np.zeros((0, 2)), *(partition.bends(line, 1e-9) for line in lines)])
        if len(bent):
            count, worst = count + len(bent), max(worst, float(partition.distance(bent, earlier).max()) / 4)
        earlier = np.concatenate([earlier, *lines])
    return count, worst


def trained(spec: dict, widths: list[int]) -> tuple[Batch, Batch, list[float]]:
    """A network of these widths before and after training on the X of a seed, and its loss by epoch."""
    points, labels, _, _ = draw(spec["seed"])
    start = initial(widths, 1, generator(spec["seed"], "initialisation"))
    batch = one(start, 0)
    losses = fit(batch, points, labels, spec["epochs"], generator(spec["seed"], "order"))
    return start, batch, losses


def without(batch: Batch, kept: int, method: str, seed: int, points: Tensor) -> Batch:
    """A network of one hidden layer, pruned to `kept` nodes; it keeps its shape, with nodes without weights."""
    found = selection.layers(module(batch))
    ratio = 1 - kept / len(found[0])
    if method == "data":  # the share of points on which one of two nodes is active and the other is not
        codes = (points.double() @ found[0].weights.T + found[0].biases > 0).double()
        scores = codes.mean(0)[:, None] + codes.mean(0) - 2 * codes.T @ codes / len(codes)
        dropped = selection.twins(found, [scores], selection.quotas([len(found[0])], ratio, "layerwise"))
    else:
        dropped = selection.choose(found, ratio, method, generator=generator(seed, "nodes"))
    small = one(batch, 0)
    if method == "merged":
        norms = found[0].weights.norm(dim=1)
        for _, gone, twin in dropped:
            if twin >= 0:
                small[1][0][0] = measures.merge(small[1][0][0], twin, gone, norms)
    return without_nodes(small, [node for _, node, _ in dropped])


def pruned(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the X pruned node by node, and weight by weight, from one trained network.

    Args:
        spec: `seed`, `width`, `epochs` of training, `levels` (nodes left); `tuning` (epochs after which pruned networks
            are measured again) and `tuned_levels` (those that are).

    Returns: accuracy (%) of the dense network; for every method and level accuracy and arms of the boundary before
        fine-tuning, for some also after; the same for rewound tickets; for weight pruning, by sparsity, the share of
        lines parallel to an axis for magnitude and for random masks, and lines that vanished without a zero row.
    """
    points, labels, *test = draw(spec["seed"])
    start, dense, _ = trained(spec, [2, spec["width"], 2])
    cases = [(method, level) for method in METHODS for level in spec["levels"]]
    small = {case: without(dense, case[1], case[0], spec["seed"], points) for case in cases}
    row = {"dense": 100 * accuracy(dense, *test)[0], "dense_arms": arms(dense)}
    row |= {"method": [m for m, _ in cases], "level": [k for _, k in cases]}
    row["before"] = [100 * accuracy(small[case], *test)[0] for case in cases]
    tuned = [case for case in cases if case[0] in TUNED and case[1] in spec["tuned_levels"]]
    row["arms_before"] = [arms(small[case]) if case in tuned else None for case in cases]
    for level in spec["tuned_levels"]:
        gone = small["signed", level][0][0][0].eq(0).all(1).nonzero().flatten().tolist()
        small["rewound", level] = without_nodes(start, gone)
        tuned.append(("rewound", level))
    together, done, stream = stacked([small[case] for case in tuned]), 0, generator(spec["seed"], "tuning")
    row |= {"tuned_method": [m for m, _ in tuned], "tuned_level": [k for _, k in tuned], "after": []}
    for epochs in spec["tuning"]:
        fit(together, points, labels, epochs - done, stream)
        done = epochs
        row["after"].append([100 * value for value in accuracy(together, *test)])
    row["arms_after"] = [arms(together, k) for k in range(len(tuned))]
    return row | _turned(dense, spec["seed"])


def _turned(dense: Batch, seed: int) -> dict:
    """What weight pruning does to the first layer's lines."""
    weight, bias = dense[0][0][0], dense[0][1][0]
    stream, row = generator(seed, "weights"), {"parallel_magnitude": [], "parallel_random": [], "vanished": 0}
    lines = distinct_lines(weight, bias)
    for sparsity in SPARSITIES:
        removed = round(sparsity * weight.numel())
        orders = [weight.abs().flatten()] + [torch.rand(weight.numel(), generator=stream) for _ in range(DRAWS)]
        shares = []
        for order in orders:
            mask = torch.ones(weight.numel()).index_fill(0, order.argsort()[:removed], 0).view_as(weight)
            left = weight * mask
            zero_rows = int(left.eq(0).all(1).sum())
            row["vanished"] += lines - zero_rows - distinct_lines(left, bias)
            shares.append(parallel_share(left))
        row["parallel_magnitude"].append(shares[0])
        row["parallel_random"].append(float(np.nanmean(shares[1:])))
    return row


def arms(batch: Batch, index: int = 0) -> int:
    """How many arms the decision boundary stretches over the outline of the square of half-side 4."""
    return partition.arms(partition.split(module(batch, index), WINDOW).boundary, OUTLINE)


def scratch(spec: dict, device: str, weights: Path) -> dict:
    """The trial of small networks trained from their own initialisation, one a seed, side by side.

    Args:
        spec: `seeds`, `level` (nodes), `checkpoints` (epochs, rising).

    Returns: `accuracy` (%), a list over checkpoints of lists over seeds.
    """
    sets = [draw(seed) for seed in spec["seeds"]]
    points, labels, *test = (torch.stack(part) for part in zip(*sets, strict=True))
    networks = [initial([2, spec["level"], 2], 1, generator(seed, "small")) for seed in spec["seeds"]]
    batch, done, accuracies = stacked(networks), 0, []
    stream = generator(spec["level"], "order")
    for epochs in spec["checkpoints"]:
        fit(batch, points, labels, epochs - done, stream)
        done = epochs
        accuracies.append([100 * value for value in accuracy(batch, *test)])
    return {"accuracy": accuracies}


def changed(spec: dict, device: str, weights: Path) -> dict:
    """The trial of what pruning does to the affine maps and to the partition, with two hidden layers.

    Args:
        spec: `seed`, `width`, `epochs`, `ratios` (shares of the nodes, or of as many weights, removed).

    Returns: by kind ("nodes" or "weights"), method and ratio the changes of `partition_lines.change` and the loss of
        test accuracy (points), without fine-tuning.
    """
    width = spec["width"]
    _, dense, _ = trained(spec, [2, width, width, 2])
    *_, points, labels = draw(spec["seed"])
    before, full = module(dense), accuracy(dense, points, labels)[0]
    found, rows = selection.layers(before), []
    for ratio in spec["ratios"]:
        gone = {
            m: selection.choose(found, ratio, m, generator=generator(spec["seed"], m))
            for m in ("magnitude", "signed", "random")
        }
        for method, dropped in gone.items():
            small = dense
            for layer in (0, 1):
                small = without_nodes(small, [node for k, node, _ in dropped if k == layer], layer)
            rows.append({"kind": "nodes", "method": method, "ratio": ratio, "small": small})
        budget = sum(int(a[0].ne(0).sum() - b[0].ne(0).sum()) for a, b in zip(dense, rows[-1]["small"], strict=True))
        for method in ("magnitude", "random"):
            small = _without_weights(dense, budget, method, generator(spec["seed"], "weights", method))
            rows.append({"kind": "weights", "method": method, "ratio": ratio, "small": small})
    for row in rows:
        small = row.pop("small")
        row |= partition.change(before, module(small), WINDOW)
        row["loss"] = 100 * (full - accuracy(small, points, labels)[0])
    return {name: [row[name] for row in rows] for name in rows[0]}


def _without_weights(dense: Batch, count: int, method: str, stream: torch.Generator) -> Batch:
    """A network without so many single weights, over all layers, lowest magnitude or random."""
    flat = torch.cat([W.flatten() for W, _ in dense])
    rank = flat.abs() if method == "magnitude" else torch.rand(len(flat), generator=stream)
    flat = flat.index_fill(0, rank.argsort()[:count], 0)
    parts = flat.split([W.numel() for W, _ in dense])
    return [(part.view_as(W), b.clone()) for part, (W, b) in zip(parts, dense, strict=True)]


def settling(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the code of the X network, epoch by epoch, on a square grid of probes.

    Args:
        spec: `seed`, `width`, `epochs`, `side` (probes a side), `half` (of the square of probes); `labels`: "shuffled"
            permutes the training labels; `rate`: factor on the learning rate.

    Returns: by epoch, from 1, the distance of the code from the one before (`step`), from the last one (`to_last`), the
        largest of three (`recent`, NaN at first), the loss; and the accuracy (%) on test points.
    """
    points, labels, *test = draw(spec["seed"])
    if spec.get("labels") == "shuffled":
        labels = labels[torch.randperm(len(labels), generator=generator(spec["seed"], "shuffled labels"))]
    batch = initial([2, spec["width"], 2], 1, generator(spec["seed"], "initialisation"))
    axis = torch.linspace(-spec["half"], spec["half"], spec["side"], dtype=torch.float64)
    probes = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    stream, losses, codes = generator(spec["seed"], "order"), [], []
    for _ in range(spec["epochs"]):
        losses += fit(batch, points, labels, 1, stream, rate=spec.get("rate", 1.0))
        codes.append(measures.activation_codes(module(batch), probes, len(probes)))
    back = [[_apart(codes[t], codes[t - k]) if t >= k else np.nan for k in (1, 2, 3)] for t in range(len(codes))]
    return {
        "step": [steps[0] for steps in back],
        "recent": np.max(back, axis=1).tolist(),
        "to_last": [_apart(code, codes[-1]) for code in codes],
        "loss": losses,
        "accuracy": 100 * accuracy(batch, *test)[0],
    }


def _apart(a: measures.Codes, b: measures.Codes) -> float:
    return float(measures.code_distance(a, b).mean())
