"""Paper 4: the exact partition against peers, its own growth and a dense grid; packed codes; redundancy of a layer."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from lib.spline import measures, partition
from tests.bench import Growth, Line, absent, best

EPOCHS, PROBES, UNITS = 160, 100, 2048  # of a history of codes

# Each peer runs in a process of its own and prints how many regions it found in how many CPU seconds. Its arguments:
# a file with the weights and offsets of all layers, and half the side of the window.
EDGES = """
import sys, time
import numpy as np, torch
folder, precision, file, half = sys.argv[1:]
sys.path.insert(0, folder)
from edge_subdivision import skeletal_subdivision
from NN import Net
torch.set_num_threads(1)
if precision == "float64":
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # it rounds corners to single precision itself
layers = np.load(file)
layers = [(layers[f"w{k}"], layers[f"b{k}"]) for k in range(len(layers) // 2 - 1)]  # outputs bend nothing
network = Net([2, *(len(b) for _, b in layers)])
for own, (w, b) in zip(network.fcs, layers):
    own.weight.data, own.bias.data = (torch.tensor(v, dtype=torch.get_default_dtype()) for v in (w, b))
seconds = []
for _ in range(2):
    start = time.process_time()
    with torch.no_grad():
        corners, edges, _ = skeletal_subdivision(network, (-float(half), float(half)), device="cpu", verbose=False)
    seconds.append(time.process_time() - start)
print(len(edges) - len(corners) + 1, min(seconds))  # Euler's formula
"""
SEARCH = """
import os, sys
import numpy as np, relucent
file, half = sys.argv[1:]
if __name__ == "__main__":
    layers = np.load(file)
    network = relucent.convert([(layers[f"w{k}"], layers[f"b{k}"]) for k in range(len(layers) // 2)])
    found = relucent.Complex(network)
    start = sum(os.times()[:4])  # with those of its workers
    square = {"cube_radius": float(half), "cube_mode": "intersect"}
    found.bfs(np.array([[0.01, 0.02]]), nworkers=1, verify=False, verbose=0, **square)
    print(len(found), sum(os.times()[:4]) - start)
"""


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


def torch_network(depth: int, width: int) -> nn.Sequential:
    """The same layers with PyTorch's own initialisation, which the peers use."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = [2, *[width] * depth, 2]
        layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def timed_split(model: nn.Module, half: float, repeats: int = 5) -> tuple[int, float]:
    """Regions of the square of this half-side, and the CPU seconds that the fastest of several splits took."""
    window = ((-half, half), (-half, half))
    return len(partition.split(model, window)), best(lambda: partition.split(model, window), repeats)


def peer(command: list[str], model: nn.Module, half: float) -> tuple[int, float]:
    """Regions that a peer finds, and its CPU seconds."""
    values = [value.numpy() for value in model.state_dict().values()]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "layers.npz"
        np.savez(file, **{f"{'wb'[k % 2]}{k // 2}": value for k, value in enumerate(values)})
        found = subprocess.run([*command, file, str(half)], capture_output=True, text=True, check=True)
    regions, seconds = found.stdout.split()[-2:]
    return int(regions), float(seconds)


def exact_partition() -> Iterator[Line]:
    """All regions of a square with their polygons, affine maps and codes, in float64 and one thread.

    Edge subdivision (Berzins, ICML 2023) makes corners, edges and codes, as published in float32. Relucent walks from a
    region to its neighbours by linear programmes.
    """
    torch.set_num_threads(1)
    folder, python = os.environ.get("BENCH_RELU_EDGE_SUBDIVISION"), os.environ.get("BENCH_RELUCENT")
    if not folder and (found := find_spec("edge_subdivision")):
        folder = str(Path(found.origin).parent)
    if not python and find_spec("relucent"):
        python = sys.executable
    he, default = ("He's", network(3, 96), 1.0), ("PyTorch's", torch_network(3, 96), 4.0)
    for (name, model, half), precision in ((he, "float32"), (he, "float64"), (default, "float32")):
        regions, seconds = timed_split(model, half)
        if precision == "float32":
            what = f"288 units, {name} initialisation, {regions:,} regions"
            yield Line(what, regions / seconds, "regions/s", ">", 70_000)
        if folder:
            theirs, spent = peer([sys.executable, "-c", EDGES, folder, precision], model, half)
            again = timed_split(model, half)[1]
            what = f"relu_edge_subdivision in {precision}"
            yield Line(
                "  a region, theirs against ours", spent / theirs / (min(seconds, again) / regions), "x", ">", 3, what
            )
            yield Line("  regions that they have more", theirs - regions, "", peer=what)
    if not folder:
        remedy = "clone github.com/arturs-berzins/relu_edge_subdivision, name its folder in BENCH_RELU_EDGE_SUBDIVISION"
        yield absent("relu_edge_subdivision", remedy)
    if python:
        regions, seconds = timed_split(network(2, 16), 1.0)
        theirs, spent = peer([python, "-c", SEARCH], network(2, 16), 1.0)
        ratio = spent / theirs / (seconds / regions)
        yield Line(f"32 units, {regions} regions: theirs against ours", ratio, "x", ">", 3, "relucent 1.0.0: bfs")
        yield Line("  regions that they have more", theirs - regions, "", peer="relucent 1.0.0: bfs")
    else:
        yield absent("relucent", "pip install relucent==1.0.0 elsewhere, name that Python in BENCH_RELUCENT")
    yield from surroundings()


def surroundings() -> Iterator[Line]:
    model, radius, random = network(2, 16), 0.05, torch.Generator().manual_seed(0)
    centres = 2 * torch.rand(200, 2, generator=random, dtype=torch.float64) - 1
    windows = [tuple((place - radius, place + radius) for place in centre) for centre in centres.tolist()]
    together = partition.local_complexity(model, centres, radius)["regions"]
    alone = [len(partition.split(model, window)) for window in windows]
    yield Line("squares around 200 inputs: counts that differ from single splits", float((together != alone).sum()), "")
    seconds = best(lambda: partition.local_complexity(model, centres, radius))
    yield Line("  all together", 1e3 * seconds, "ms")
    yield Line(
        "  one by one against it", best(lambda: [partition.split(model, w) for w in windows], 2) / seconds, "x", ">", 5
    )


def largest_memory() -> int:
    """The most bytes that this process has had, on Linux; `ru_maxrss` would begin with those of its parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measured_splits(depth: int, width: int, halves: list[float]) -> list[tuple[int, float, int, int]]:
    """For each window: regions, CPU seconds, bytes of the result, and bytes of memory at most, above the start's."""
    torch.set_num_threads(1)
    model, rows = network(depth, width), []
    partition.split(model, ((-0.01, 0.01), (-0.01, 0.01)))
    start = largest_memory()
    for half in halves:
        before = time.process_time()
        found = partition.split(model, ((-half, half), (-half, half)))
        seconds = time.process_time() - before
        cells = found.cells
        held = sum(array.nbytes for array in (cells.corners, cells.count, cells.labels, found.maps, found.packed))
        rows.append((len(found), seconds, held, largest_memory() - start))
        del found, cells
    return rows


def partition_growth() -> Iterator[Line | Growth]:
    """Cost against regions by the window alone, and against regions x units by width and by depth of the network."""
    context = multiprocessing.get_context("spawn")  # a new process: its largest memory is that of the splits alone
    with context.Pool(1) as pool:
        rows = pool.apply(measured_splits, (3, 512, [0.03, 0.1, 0.3, 3.0]))
    regions, seconds, held, peak = (list(column) for column in zip(*rows, strict=True))
    yield Growth("1,536 units, by window: regions", "s", regions, seconds, 1.1)
    yield Line(f"  {regions[-1]:,} regions: the result", held[-1] / regions[-1], "bytes a region")
    yield Line("  memory at most while it is made", peak[-1] / regions[-1], "bytes a region", "<", 3000)
    shapes = {"width": [(3, 24), (3, 48), (3, 96), (3, 192)], "depth": [(1, 96), (2, 96), (4, 96), (8, 96)]}
    for name, cases in shapes.items():
        splits = [(depth * width, *timed_split(network(depth, width), 1.0, 3)) for depth, width in cases]
        work = [units * regions for units, regions, _ in splits]
        yield Growth(f"by {name}: regions x units", "s", work, [seconds for *_, seconds in splits], 1.1)


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


BENCHMARKS = (exact_partition, partition_growth, dense_grid, code_history, redundancy)
