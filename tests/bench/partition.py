"""Paper 4: the exact partition against its own growth and a dense grid; packed codes; redundancy of a whole layer."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lib.spline import measures, partition
from tests.bench import Line
from tests.bench.latent import best

EPOCHS, PROBES, UNITS = 160, 100, 2048  # of a history of codes


def network(depth: int, width: int) -> nn.Sequential:
    """Hidden layers with He's initialisation and offsets of standard deviation 0.5, and two outputs."""
    random, layers, inputs = np.random.default_rng(0), [], 2
    for outputs in (*[width] * depth, 2):
        layer = nn.Linear(inputs, outputs).double()
        layer.weight.data = np.sqrt(2 / inputs) * torch.from_numpy(random.standard_normal((outputs, inputs)))
        layer.bias.data = 0.5 * torch.from_numpy(random.standard_normal(outputs))
        layers += [layer, nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])


def timed_split(model: nn.Module, half: float, repeats: int = 5) -> tuple[int, float]:
    """Regions of the square of this half-side, and the seconds that the fastest of several splits took."""
    window = ((-half, half), (-half, half))
    return len(partition.split(model, window)), best(lambda: partition.split(model, window), repeats)


def exact_partition() -> Iterator[Line]:
    torch.set_num_threads(1)
    regions, seconds = timed_split(network(3, 96), 1.0)
    yield Line(f"exact partition, 288 units, {regions:,} regions", regions / seconds, "regions/s", ">", 20_000)
    costs = []
    model = network(3, 144)
    for half in (0.09, 0.25, 0.5, 1.2, 4.0):
        regions, seconds = timed_split(model, half, 3)
        costs.append(seconds / regions / 432)
        yield Line(f"  432 units, {regions:,} regions", 1e9 * costs[-1], "ns a region and unit")
    yield Line("  slowest against fastest of these", max(costs) / min(costs), "x", "<", 2)


def dense_grid() -> Iterator[Line]:
    torch.set_num_threads(1)
    model = network(2, 16)
    exact, seconds = timed_split(model, 2.0)
    for side in (500, 1000, 2000):
        start = time.perf_counter()
        axis = torch.linspace(-2, 2, side, dtype=torch.float64)
        points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
        with torch.no_grad():
            first = model[0](points)
            bits = torch.cat([first > 0, model[2](first.relu()) > 0], 1).numpy()
        found = len(np.unique(np.packbits(bits, axis=1).view(np.uint32)))
        grid_seconds = time.perf_counter() - start
        if found >= 0.99 * exact:
            break
    yield Line(f"regions by a grid of {side} x {side} (exact {exact})", found, f"regions in {grid_seconds:.2f} s")
    at_least = "" if found >= 0.99 * exact else " at least: the grid has not found 99 % of them"
    yield Line("exact partition against that grid", grid_seconds / seconds, f"x{at_least}", ">", 20)


def code_history() -> Iterator[Line]:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    layer, probes = nn.Sequential(nn.Linear(32, UNITS), nn.ReLU(), nn.Linear(UNITS, 1)), torch.randn(PROBES, 32)
    packed, floats = [], []
    for _ in range(EPOCHS):
        layer[0].weight.data += 0.02 * torch.randn(layer[0].weight.shape, generator=random)
        packed.append(measures.activation_codes(layer, probes))
        with torch.no_grad():
            floats.append((layer[0](probes) > 0).float())

    def unpacked() -> float:
        return sum((floats[s] - floats[t]).abs().mean().item() for s in range(EPOCHS) for t in range(s))

    matrix = measures.distance_matrix(packed)[0]
    gap = abs(matrix[np.tril_indices(EPOCHS, -1)].sum() / unpacked() - 1)
    yield Line("code distances, packed against floats: relative gap", gap, "", "<", 1e-5)
    memory = sum(f.numel() * 4 for f in floats) / sum(words.nbytes for codes in packed for words in codes.words)
    yield Line(f"memory of {EPOCHS} epochs of codes, floats against packed", memory, "x", ">", 8)
    speed = best(unpacked, 2) / best(lambda: measures.distance_matrix(packed), 2)
    yield Line("all distances between them, floats against packed", speed, "x", ">", 3)


def redundancy() -> Iterator[Line]:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    nodes, inputs, rows = 512, 576, 4
    weights, biases = torch.randn(nodes, inputs, generator=random), torch.randn(nodes, generator=random)

    def loop() -> None:
        for i in range(rows):
            for j in range(nodes):
                cosine = weights[i] @ weights[j] / (weights[i].norm() * weights[j].norm())
                float(1 - cosine.abs() + (biases[i] - biases[j]).abs())

    ours = best(lambda: measures.redundancy(weights, biases, "raw"))
    yield Line(f"redundancy of {nodes} filters of {inputs} weights", 1e3 * ours, "ms")
    looped = best(loop, 3) * nodes / rows
    yield Line(f"  a Python double loop ({rows} rows timed and scaled)", looped, "s")
    yield Line("  against it", looped / ours, "x", ">", 100)


BENCHMARKS = (exact_partition, dense_grid, code_history, redundancy)
