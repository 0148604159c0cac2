"""Paper 4 in two dimensions: small ReLU networks trained side by side on X-shaped data, their trials, their pictures.

A *batch* of networks is a list of layers (W, b) with W (networks, outputs, inputs) and b (networks, outputs). A node
whose incoming and outgoing weights are zero has no gradient and stays away, so networks of all widths fit in a batch.
"""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.spline import measures, partition
from lib.study import Study, generator

WINDOW = ((-5.0, 5.0), (-5.0, 5.0))
POINTS, TEST = 2000, 400
WIDTH = 20  # hidden nodes of the toy network
EXACT_SEEDS, EXACT_WIDTH = 10, 12  # random networks of each depth, and units of each of their hidden layers
RATIOS = (0.125, 0.25, 0.5)  # shares of the nodes that go, where the maps are compared before and after
LR, BATCH = 0.01, 256
METHODS = ("raw", "normalised", "signed", "merged", "data", "magnitude", "median", "random")
CHOICES = (  # of a method: another weight of the offsets, another weaker twin, another norm
    *(f"{name}, {choice}" for name in ("raw", "merged") for choice in ("rho = 0.25", "rho = 4", "weaker by row")),
    "magnitude, both norms",
)
TUNED = ("raw", "signed", "merged", "magnitude", "random")
BOX = ((-2.0, 2.0), (-2.0, 2.0))  # the window of random networks
OUTLINE = 4.0  # half-side of the square on which the branches of the boundary are counted
SPARSITIES = (0.25, 0.5, 0.75)  # of weight pruning
DRAWS = 20  # random masks for each sparsity
DIAGONALS = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])  # of the square max(|x|, |y|) = c
Batch = list[tuple[Tensor, Tensor]]


def study(name: str, folder: Path) -> Study:
    """The study "pictures", or one of "exact", "pruned", "scratch", "changed" and "settling"; see their trials."""
    trials = {"exact": exact, "pruned": pruned, "scratch": scratch, "changed": changed, "settling": settling}
    stored = name if name == "pictures" else f"toy_{name}"
    version = 2 if name in ("pruned", "scratch") else 1
    return Study(f"04_spline_early_bird.{stored}", (trials | {"pictures": picture})[name], version, folder)


def draw(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training points (1600, 2) and labels, then 400 of each for test; label 1 above and below the two diagonals.

    Source: "setting 5" of the released code, with a split of its own for each seed.
    """
    points = torch.rand(POINTS, 2, generator=generator(seed, "points")) * 10 - 5
    labels = (points[:, 1].abs() > points[:, 0].abs()).long()
    return points[TEST:], labels[TEST:], points[:TEST], labels[:TEST]


def initial(widths: list[int], networks: int, stream: torch.Generator) -> Batch:
    """Networks of these widths, inputs and outputs included, with PyTorch's default initialisation."""
    layers = []
    for inputs, outputs in pairwise(widths):
        bound = inputs**-0.5
        weight = torch.rand(networks, outputs, inputs, generator=stream) * 2 * bound - bound
        layers.append((weight, torch.rand(networks, outputs, generator=stream) * 2 * bound - bound))
    return layers


def normal(widths: list[int], stream: torch.Generator) -> Batch:
    """One network of these widths with standard normal weights and offsets."""
    shapes = pairwise(widths)
    return [(torch.randn(1, o, i, generator=stream), torch.randn(1, o, generator=stream)) for i, o in shapes]


def stacked(networks: list[Batch]) -> Batch:
    """Several batches as one; narrower networks get nodes without weights."""
    together = []
    for layers in zip(*networks, strict=True):
        outputs, inputs = (max(W.shape[axis] for W, _ in layers) for axis in (1, 2))
        weights = [F.pad(W, (0, inputs - W.shape[2], 0, outputs - W.shape[1])) for W, _ in layers]
        together.append((torch.cat(weights), torch.cat([F.pad(b, (0, outputs - b.shape[1])) for _, b in layers])))
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
    batch: Batch, points: Tensor, labels: Tensor, epochs: int, stream: torch.Generator, rate: float = 1.0
) -> list[float]:
    """Train every network of a batch, with two outputs, in place by plain SGD on points in the same order.

    Args:
        batch: the networks.
        points: (n, 2), or one set a network, (networks, n, 2).
        labels: (n,) or (networks, n).
        epochs: passes over the points.
        stream: of the order.
        rate: factor on the learning rate.

    Returns:
        The mean cross-entropy (nats) over networks, by epoch.
    """
    targets = labels.to(points.dtype)
    networks, n, losses = len(batch[0][0]), points.shape[-2], []
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(n, generator=stream).split(BATCH):
            some = points.index_select(-2, chosen).expand(networks, -1, -1)
            total += _step(batch, some, targets.index_select(-1, chosen), rate) * len(chosen)
        losses.append(float(total) / n)
    return losses


def _step(batch: Batch, points: Tensor, targets: Tensor, rate: float) -> Tensor:
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
        below = (gradient @ weight).mul_(values[place] > 0) if place else None
        weight -= step
        bias -= gradient.sum(1)
        gradient = below
    return loss


def checkpoints(
    batch: Batch, points: Tensor, labels: Tensor, test: list[Tensor], epochs: list[int], stream: torch.Generator
) -> list[list[float]]:
    """Train a batch and measure the accuracy (%) of every network after each of these epochs, which rise."""
    found = []
    for start, stop in pairwise([0, *epochs]):
        fit(batch, points, labels, stop - start, stream)
        found.append([100 * share for share in accuracy(batch, *test)])
    return found


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


def compact(batch: Batch) -> Batch:
    """One network without the nodes that have no incoming weights; all others stay in order."""
    kept = [weight[0].ne(0).any(1) for weight, _ in batch[:-1]]
    ends = [torch.ones(2, dtype=torch.bool), *kept, torch.ones(2, dtype=torch.bool)]
    return [(W[:, out][:, :, into], b[:, out]) for (W, b), (into, out) in zip(batch, pairwise(ends), strict=True)]


def without_weights(batch: Batch, count: int, method: str, stream: torch.Generator) -> Batch:
    """A network without `count` single weights over all layers, the lowest ("magnitude") or random ones."""
    flat = torch.cat([W.flatten() for W, _ in batch])
    rank = flat.abs() if method == "magnitude" else torch.rand(len(flat), generator=stream)
    parts = flat.index_fill(0, rank.argsort()[:count], 0).split([W.numel() for W, _ in batch])
    return [(part.view_as(W), b.clone()) for part, (W, b) in zip(parts, batch, strict=True)]


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


def exact(spec: dict, device: str, weights: Path) -> dict:
    """The trial of random networks on [-2, 2]²: what the partition says against what the network does.

    The spec holds `seed`, `depth` (hidden layers), `width`; weights and offsets are standard normal.

    Returns:
        `regions`; `shared_codes`, regions beyond the number of different codes; relative errors of the maps and of the
        area; bends of deep lines and of the line of equal logits, and the largest distance of one from an earlier line,
        over the window's side; after dropping one node of layer 1, how far other lines of layer 1 moved, the share of
        the deeper lines' length that moved, and for one layer how many regions the formula misses.
    """
    depth = spec["depth"]
    batch = normal([2, *[spec["width"]] * depth, 2], generator(spec["seed"], "weights"))
    network, dropped = module(batch), module(without_nodes(batch, [0]))
    found, after = partition.split(network, BOX), partition.split(dropped, BOX)
    points = np.concatenate([found.cells.centre, found.cells.corners[:, 0]])
    wanted = network(torch.from_numpy(points)).detach().numpy()
    maps = np.concatenate([found.maps, found.maps])
    errors = np.abs(np.einsum("nok,nk->no", maps[..., :2], points) + maps[..., 2] - wanted)
    bends, distance = _bends(found)
    first, second = found.lines(0), after.lines(0)
    moved = [partition.distance(ends.reshape(-1, 2), first[unit]).max() for unit, ends in second.items()]
    old, new = (one.segments(*range(1, depth)) for one in (found, after))
    return {
        "regions": len(found),
        "regions_after": len(after),
        "shared_codes": len(found) - len(np.unique(found.packed, axis=0)),
        "map_error": float(errors.max() / np.abs(wanted).max()),
        "area_error": abs(found.cells.area.sum() / 16 - 1),
        "bends": bends,
        "bend_distance": distance,
        "first_layer_moved": float(max(moved, default=0.0)) + 4 * (set(first) - {0} != set(second)),
        "deeper_moved": partition.moved_length(old, new, 0.04) / partition.length(old) if depth > 1 else None,
        "count_off": abs(len(after) - arrangement(*(v[0, 1:] for v in batch[0]), BOX)) if depth == 1 else None,
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
    """Number of bends of deep lines and of the line of equal logits; largest distance of one from an earlier line."""
    earlier, count, worst = found.segments(0), 0, 0.0
    deep = [list(found.lines(layer).values()) for layer in range(1, len(found.layers))]
    for lines in [*deep, [partition.level_set(found, 0, 1)]]:
        bent = np.concatenate([np.zeros((0, 2)), *(partition.bends(line, 1e-9) for line in lines)])
        if len(bent):
            count, worst = count + len(bent), max(worst, float(partition.distance(bent, earlier).max()) / 4)
        earlier = np.concatenate([earlier, *lines])
    return count, worst


def trained(spec: dict, widths: list[int]) -> tuple[Batch, Batch]:
    """A network of these widths before and after training on the X of a seed."""
    points, labels, *_ = draw(spec["seed"])
    start = initial(widths, 1, generator(spec["seed"], "initialisation"))
    batch = one(start, 0)
    fit(batch, points, labels, spec["epochs"], generator(spec["seed"], "order"))
    return start, batch


def layers(batch: Batch) -> list[measures.Layer]:
    """The hidden layers of one network, as `measures.layers` finds them in its module; it costs a hundredth of that."""
    found = []
    for place, ((weight, bias), (reader, _)) in enumerate(pairwise(batch)):
        rows, outgoing = weight[0].double(), reader[0].double().T
        names = f"{2 * place}", f"{2 * place + 2}", ""
        found.append(measures.Layer(*names, rows, bias[0].double(), outgoing, rows.norm(dim=1)))
    return found


def chosen(batch: Batch, kept: int, method: str, stream: torch.Generator, points: Tensor) -> measures.Dropped:
    """The nodes that go, so that `kept` are left of every hidden layer; METHODS and CHOICES name the methods."""
    found, (name, _, choice) = layers(batch), method.partition(", ")
    ratio = 1 - kept / len(found[0])
    quota = measures.quotas([len(layer) for layer in found], ratio, "layerwise")
    if name == "data":  # the share of points on which one of two nodes is active and the other is not
        codes = (points.double() @ found[0].weights.T + found[0].biases > 0).double()
        scores = codes.mean(0)[:, None] + codes.mean(0) - 2 * codes.T @ codes / len(codes)
        return measures.twins(found, [scores], *quota)
    if choice == "both norms":
        return measures.lowest([layer.scale * layer.outgoing.norm(dim=1) for layer in found], *quota)
    if not choice:
        return measures.choose(found, ratio, method, generator=stream)
    rho = float(choice.removeprefix("rho = ")) if choice.startswith("rho") else 1.0
    form, merging = ("signed", rho != 1) if name == "merged" else (name, False)
    scores = [measures.redundancy(layer.weights, layer.biases, form, rho) for layer in found]
    if choice == "weaker by row":
        found = [replace(layer, outgoing=torch.ones(len(layer), 1)) for layer in found]
    return measures.twins(found, scores, *quota, merging=merging)


def without(batch: Batch, kept: int, method: str, seed: int, points: Tensor) -> Batch:
    """A network pruned to `kept` nodes of every hidden layer; it keeps its shape, with nodes without weights."""
    small = one(batch, 0)
    dropped = chosen(batch, kept, method, generator(seed, "nodes"), points)
    norms = [layer.scale for layer in layers(batch)]
    for layer, gone, twin in dropped:
        if method.startswith("merged") and twin >= 0:
            small[layer + 1][0][0] = measures.merge(small[layer + 1][0][0], twin, gone, norms[layer])
    for layer in range(len(batch) - 1):
        small = without_nodes(small, [node for place, node, _ in dropped if place == layer], layer)
    return small


def pruned(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the X pruned node by node, and weight by weight, from one trained network.

    The spec holds `seed`, `width`, `epochs` of training, `levels` (nodes left); `tuning` (epochs after which pruned
    networks are measured again) and `tuned_levels` (those that are).

    Returns:
        Accuracy (%) of the dense network; for every method, with its CHOICES, and level accuracy and branches of the
        boundary before fine-tuning, for some also after; the same for rewound tickets; for weight pruning, by sparsity,
        the share of lines parallel to an axis for magnitude and for random masks, and lines that vanished without a
        zero row.
    """
    points, labels, *test = draw(spec["seed"])
    start, dense = trained(spec, [2, spec["width"], 2])
    cases = [(method, level) for method in (*METHODS, *CHOICES) for level in spec["levels"]]
    small = {(method, level): without(dense, level, method, spec["seed"], points) for method, level in cases}
    methods, levels = zip(*small, strict=True)
    tuned = [case for case in small if case[0] in TUNED and case[1] in spec["tuned_levels"]]
    row = {
        "dense": 100 * accuracy(dense, *test)[0],
        "dense_arms": branches(dense),
        "method": list(methods),
        "level": list(levels),
        "before": [100 * accuracy(batch, *test)[0] for batch in small.values()],
        "arms_before": [branches(batch) if case in tuned else None for case, batch in small.items()],
    }
    for level in spec["tuned_levels"]:
        gone = small["signed", level][0][0][0].eq(0).all(1).nonzero().flatten().tolist()
        small["rewound", level] = without_nodes(start, gone)
        tuned.append(("rewound", level))
    together = stacked([compact(small[case]) for case in tuned])
    row["tuned_method"], row["tuned_level"] = map(list, zip(*tuned, strict=True))
    row["after"] = checkpoints(together, points, labels, test, spec["tuning"], generator(spec["seed"], "tuning"))
    row["arms_after"] = [branches(together, k) for k in range(len(tuned))]
    return row | _turned(dense, spec["seed"])


def _turned(dense: Batch, seed: int) -> dict:
    """What weight pruning does to the first layer's lines."""
    weight, bias = dense[0][0][0], dense[0][1][0]
    stream, row = generator(seed, "weights"), {"parallel_magnitude": [], "parallel_random": [], "vanished": 0}
    lines = distinct_lines(weight, bias)
    for sparsity in SPARSITIES:
        removed, shares = round(sparsity * weight.numel()), []
        orders = [weight.abs().flatten()] + [torch.rand(weight.numel(), generator=stream) for _ in range(DRAWS)]
        for order in orders:
            mask = torch.ones(weight.numel()).index_fill(0, order.argsort()[:removed], 0).view_as(weight)
            left = weight * mask
            zero_rows = int(left.eq(0).all(1).sum())
            row["vanished"] += lines - zero_rows - distinct_lines(left, bias)
            shares.append(parallel_share(left))
        row["parallel_magnitude"].append(shares[0])
        row["parallel_random"].append(float(np.nanmean(shares[1:])))
    return row


def branches(batch: Batch, index: int = 0) -> int:
    """How many branches the decision boundary stretches over the outline of the square of half-side 4."""
    return partition.branches(partition.split(module(batch, index), WINDOW).boundary, OUTLINE)


def scratch(spec: dict, device: str, weights: Path) -> dict:
    """The trial of small networks trained from their own initialisation, one per seed, side by side.

    The spec holds `seeds`, `level` (nodes), `checkpoints` (epochs, rising). The row has `accuracy` (%), a list over
    checkpoints of lists over seeds, and the `arms` of the boundary after the last one, by seed.
    """
    sets = [draw(seed) for seed in spec["seeds"]]
    points, labels, *test = (torch.stack(part) for part in zip(*sets, strict=True))
    batch = stacked([initial([2, spec["level"], 2], 1, generator(seed, "small")) for seed in spec["seeds"]])
    stream = generator(spec["level"], "order")
    found = checkpoints(batch, points, labels, test, spec["checkpoints"], stream)
    return {"accuracy": found, "arms": [branches(batch, place) for place in range(len(spec["seeds"]))]}


def changed(spec: dict, device: str, weights: Path) -> dict:
    """The trial of what pruning does to the affine maps and to the partition, with two hidden layers.

    The spec holds `seed`, `width`, `epochs`, `ratios` (shares of the nodes, or of as many weights, removed). The row
    has, by kind ("nodes" or "weights"), method and ratio, what `partition.change` returns and the loss of test accuracy
    (points), without fine-tuning.
    """
    _, dense = trained(spec, [2, spec["width"], spec["width"], 2])
    *_, points, labels = draw(spec["seed"])
    before, full, rows = module(dense), accuracy(dense, points, labels)[0], []

    def measure(small: Batch, **case) -> None:
        loss = 100 * (full - accuracy(small, points, labels)[0])
        rows.append(case | partition.change(before, module(small), WINDOW) | {"loss": loss})

    found = layers(dense)
    for ratio in spec["ratios"]:
        for method in ("magnitude", "signed", "random"):
            dropped = measures.choose(found, ratio, method, generator=generator(spec["seed"], method))
            small = dense
            for layer in (0, 1):
                small = without_nodes(small, [node for k, node, _ in dropped if k == layer], layer)
            measure(small, kind="nodes", method=method, ratio=ratio)
        budget = sum(int(a[0].ne(0).sum() - b[0].ne(0).sum()) for a, b in zip(dense, small, strict=True))
        for method in ("magnitude", "random"):
            small = without_weights(dense, budget, method, generator(spec["seed"], "weights", method))
            measure(small, kind="weights", method=method, ratio=ratio)
    return _columns(rows)


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def settling(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the code of the X network, epoch by epoch, on a square grid of probes.

    The spec holds `seed`, `width`, `epochs`, `side` (probes a side), `half` (of the square of probes); `labels`:
    "shuffled" permutes the training labels; `rate`: factor on the learning rate.

    Returns:
        By epoch, from 1, the distance of the code from the one before (`step`), from the last one (`to_last`), the
        largest of three (`recent`, NaN at first), the loss; and the accuracy (%) on test points.
    """
    points, labels, *test = draw(spec["seed"])
    if spec.get("labels") == "shuffled":
        labels = labels[torch.randperm(len(labels), generator=generator(spec["seed"], "shuffled labels"))]
    batch = initial([2, spec["width"], 2], 1, generator(spec["seed"], "initialisation"))
    axis = torch.linspace(-spec["half"], spec["half"], spec["side"], dtype=torch.float64)
    probes = torch.cartesian_prod(axis, axis)
    stream, losses, codes = generator(spec["seed"], "order"), [], []
    for _ in range(spec["epochs"]):
        losses += fit(batch, points, labels, 1, stream, rate=spec.get("rate", 1.0))
        codes.append(measures.activation_codes(module(batch), probes, len(probes)))

    def apart(a: measures.Codes, b: measures.Codes) -> float:
        return float(measures.code_distance(a, b).mean())

    back = [[apart(codes[t], codes[t - k]) if t >= k else np.nan for k in (1, 2, 3)] for t in range(len(codes))]
    return {
        "step": [steps[0] for steps in back],
        "recent": np.max(back, axis=1).tolist(),
        "to_last": [apart(code, codes[-1]) for code in codes],
        "loss": losses,
        "accuracy": 100 * accuracy(batch, *test)[0],
    }


def picture(spec: dict, device: str, weights: Path) -> dict:
    """The trial of one picture of partitions, panel by panel, so that it can be redrawn.

    The spec holds `kind`, and `seed`, `width`, `epochs` where a network is trained: "film" (the X network at the epochs
    `frames`), "pruned" (to `levels` nodes by `method`, before and after `tuning` epochs), "both" (without
    `ratios` of the nodes, and without as many parameters weight by weight), "nodes" and "weights" (what
    each kind of pruning does to lines, on networks made for it), "deep" (three layers), "bundles" (redundant lines of a
    second layer).

    Returns:
        A list over panels: `title`, `half` (of the window), `lines` (x, y, x, y, layer, unit of each segment, flat),
        `boundary` (x, y, x, y, flat), `regions`; for "film" the `loss` by epoch, for "bundles" the `score` by unit and
        the units that are `kept`.
    """
    kinds = {"film": _film, "pruned": _levels, "both": _both, "nodes": _nodes, "weights": _weights}
    kinds |= {"deep": _deep, "bundles": _bundles}
    panels, extra = kinds[spec["kind"]](spec)
    return _columns(panels) | extra


def _panel(title: str, batch: Batch, half: float) -> dict:
    """The lines of every layer and the boundary of a network on the square of this half-side."""
    found = partition.split(module(batch), ((-half, half), (-half, half)))
    lines = [
        np.concatenate([ends.reshape(-1, 4), np.full((len(ends), 2), [layer, unit])], 1)
        for layer in range(len(found.layers))
        for unit, ends in found.lines(layer).items()
    ]
    flat = np.concatenate([np.zeros((0, 6)), *lines]).round(4).ravel().tolist()
    boundary = found.boundary.round(4).ravel().tolist()
    return {"title": title, "half": half, "lines": flat, "boundary": boundary, "regions": len(found)}


def _film(spec: dict) -> tuple[list[dict], dict]:
    points, labels, *_ = draw(spec["seed"])
    batch = initial([2, spec["width"], 2], 1, generator(spec["seed"], "initialisation"))
    stream, losses, panels = generator(spec["seed"], "order"), [], []
    for frame in spec["frames"]:
        losses += fit(batch, points, labels, frame - len(losses), stream)
        panels.append(_panel(f"epoch {frame}", batch, 5.0))
    return panels, {"loss": losses}


def _levels(spec: dict) -> tuple[list[dict], dict]:
    points, labels, *test = draw(spec["seed"])
    _, dense = trained(spec, [2, spec["width"], 2])
    small = {f"K = {k}": without(dense, k, spec["method"], spec["seed"], points) for k in spec["levels"]}
    together = stacked(list(small.values()))
    fit(together, points, labels, spec["tuning"], generator(spec["seed"], "tuning"))
    tuned = {f"{name}, tuned": one(together, place) for place, name in enumerate(small)}
    panels = []
    for name, batch in ({"dense": dense} | small | tuned).items():
        panels.append(_panel(f"{name}: {100 * accuracy(batch, *test)[0]:.0f} %", batch, 5.0))
    return panels, {}


def _both(spec: dict) -> tuple[list[dict], dict]:
    points, labels, *test = draw(spec["seed"])
    _, dense = trained(spec, [2, spec["width"], 2])
    panels = []
    for ratio in spec["ratios"]:
        nodes = without(dense, spec["width"] - round(ratio * spec["width"]), "magnitude", spec["seed"], points)
        budget = sum(int(a.ne(0).sum() - b.ne(0).sum()) for (a, _), (b, _) in zip(dense, nodes, strict=True))
        single = without_weights(dense, budget, "magnitude", generator(spec["seed"], "weights"))
        for name, small in (("nodes", nodes), ("weights", single)):
            panels.append(_panel(f"{100 * ratio:.0f} % of {name}: {100 * accuracy(small, *test)[0]:.0f} %", small, 5.0))
    return panels, {"ratio": list(np.repeat(spec["ratios"], 2))}


def _single(weight: Tensor, bias: Tensor, outgoing: Tensor, offset: float) -> Batch:
    """One hidden layer; the boundary is where the weighted sum of its nodes equals `offset`."""
    last = torch.stack([outgoing, torch.zeros_like(outgoing)])[None]
    return [(weight[None], bias[None]), (last, torch.tensor([[-offset, 0.0]]))]


def _nodes(spec: dict) -> tuple[list[dict], dict]:
    """Lines through one point; dropping nodes turns a rounded boundary into the exact square of half-side 1."""
    angles = torch.tensor([0.15, 0.85, 1.2, 1.95, 2.35, 2.8, 3.6, 5.1]) - 0.2
    weight = torch.cat([DIAGONALS, torch.stack([angles.cos(), angles.sin()], 1)])
    outgoing, panels = torch.tensor([0.5] * 4 + [0.3] * 8), []
    for kept in (12, 8, 6, 4):
        network = _single(weight[:kept], torch.zeros(kept), outgoing[:kept], float(outgoing[:kept].sum() / 2))
        panels.append(_panel(f"{kept} nodes", network, 2.0))
    return panels, {}


def _weights(spec: dict) -> tuple[list[dict], dict]:
    """Four lines with offsets; zeroing their small weights turns each of them parallel to an axis and deletes none."""
    weight, bias = torch.tensor([[1.0, 0.35], [-1.0, 0.25], [0.3, 1.0], [-0.2, -1.0]]), torch.full((4,), -0.8)
    order, panels = weight.abs().flatten().argsort(), []
    for removed in (0, 1, 2, 4):
        left = weight.flatten().index_fill(0, order[:removed], 0).view_as(weight)
        panels.append(_panel(f"{8 - removed} weights", _single(left, bias, torch.ones(4), 0.4), 2.0))
    return panels, {}


def _deep(spec: dict) -> tuple[list[dict], dict]:
    batch = normal([2, 6, 6, 6, 2], generator(spec["seed"], "deep"))
    return [_panel("three hidden layers", batch, 2.0)], {}


def _bundles(spec: dict) -> tuple[list[dict], dict]:
    """Five lines of a first layer; eight splines of a second in two bundles; greedy removal leaves one of each."""
    stream = generator(spec["seed"], "bundles")
    first = torch.randn(1, 5, 2, generator=stream), torch.randn(1, 5, generator=stream)
    centres, offsets, member = torch.randn(2, 5, generator=stream), torch.tensor([0.4, -0.5]), torch.arange(8) % 2
    weight = centres[member] + 0.08 * torch.randn(8, 5, generator=stream)
    bias = offsets[member] + 0.03 * torch.randn(8, generator=stream)
    last = torch.zeros(1, 2, 8)
    last[0, 0] = 1.0 + 0.2 * torch.rand(8, generator=stream)
    batch = [first, (weight[None], bias[None]), (last, torch.tensor([[-1.0, 0.0]]))]
    own = measures.layers(module(batch))[1]
    gone = [node for _, node, _ in measures.choose([own], 0.75, "signed")]
    small = without_nodes(batch, gone, 1)
    kept = {
        "score": measures.redundancy(own.weights, own.biases)[0].tolist(),
        "kept": sorted(set(range(8)) - set(gone)),
    }
    return [_panel("all splines", batch, 3.0), _panel("two of eight left", small, 3.0)], kept
