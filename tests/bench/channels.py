"""Paper 3: counting and sampling recipes without building a network, and populations retrained side by side."""

import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from lib import channels, models, spaces, training
from lib.study import Study
from tests.bench import Growth, Line, best, trials

BUILT, SIZES = 5, (10_000, 100_000, 1_000_000, 10_000_000)
PEER = f"torch-pruning {version('torch-pruning')}: prune, then count_ops_and_params"


def pruned_and_counted(model: nn.Module, groups: channels.Groups, widths: np.ndarray) -> tuple[nn.Module, float, int]:
    """A network with the widths of one recipe, and its operations and parameters, by Torch-Pruning alone."""
    copy, images = deepcopy(model), torch.zeros(1, 3, 32, 32)
    graph = tp.DependencyGraph().build_dependency(copy, images)
    for name, dense, width in zip(groups.names, groups.dense.tolist(), widths.tolist(), strict=True):
        if removed := list(range(dense - width)):
            graph.get_pruning_group(copy.get_submodule(name), tp.prune_conv_out_channels, removed).prune()
    return copy, *tp.utils.count_ops_and_params(copy, images)


def counting() -> Iterator[Line | Growth]:
    """MACs and parameters of many recipes by their polynomials, against pruning each network and counting it."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    model = models.build("resnet56", shortcut="B").eval()
    groups = channels.find(model)
    inner = channels.find(models.build("resnet56", shortcut="A")).internal()
    many = random.integers(1, inner.dense + 1, size=(max(SIZES), len(inner)), dtype=np.int16)
    costs = [best(lambda n=n: channels.count(inner, many[:n]), 3) for n in SIZES]
    yield Line("counting ResNet-56-A, internal groups", max(SIZES) / costs[-1] / 1e6, "million recipes/s", ">", 2)
    widths = random.integers(1, groups.dense + 1, size=(SIZES[1], len(groups)))
    seconds = best(lambda: channels.count(groups, widths), 5) / len(widths)
    yield Line("counting ResNet-56-B, all groups", 1e-6 / seconds, "million recipes/s", ">", 2)
    built, times = [], []
    for recipe in widths[:BUILT]:
        start = time.process_time()
        built.append(pruned_and_counted(model, groups, recipe))
        times.append(time.process_time() - start)
    each = min(times)
    yield Line("   building and counting each network", 1 / each, "recipes/s", peer=PEER)
    yield Line("   the polynomials against it", each / seconds, "x", ">", 10_000, PEER)
    networks, operations, parameters = zip(*built, strict=True)
    ours = channels.count(groups, widths[:BUILT])
    counted = [models.count_macs(network, (1, 3, 32, 32)) for network in networks]
    yield Line("   largest difference of parameters", np.abs(ours[1] - parameters).max(), "", "<", 1)
    yield Line(
        "   largest difference of MACs, by torch's counter of its networks", np.abs(ours[0] - counted).max(), "", "<", 1
    )
    yield Line("   operations in its own count beside the MACs", 100 * (np.divide(operations, ours[0]) - 1).max(), "%")
    yield Growth("counting ResNet-56-A by the number of recipes", "s", list(SIZES), costs, 1.15)


def sampling() -> Iterator[Line]:
    """Recipes at half of the MACs, drawn by rejection."""
    torch.set_num_threads(1)
    for network in ("resnet20", "resnet56", "vgg16"):
        groups = channels.find(models.build(network)).internal()
        sample = spaces.sample_recipes(groups, spaces.Regime(0.5), 1000, seed=0)
        seconds = best(lambda groups=groups: spaces.sample_recipes(groups, spaces.Regime(0.5), 1000, seed=0), 3)
        yield Line(f"1,000 recipes of {network} at 50 % of MACs", seconds, "s", "<", 0.1)
        yield Line("   accepted draws", 100 * sample.acceptance, "%")


def retrain_recipe(spec: dict, device: str, weights: Path) -> dict:
    """A trial: one recipe of ResNet-20 pruned and retrained on random images."""
    model = models.build("resnet20")
    groups = channels.find(model).internal()
    pruned = channels.prune(model, dict(zip(groups.names, spec["widths"], strict=True)))
    history = training.fit(pruned, trials.random_cifar(spec["images"]), epochs=1, seed=0, lr=0.01)
    return {"train_loss": history[0]["train_loss"]}


def population() -> Iterator[Line]:
    """Recipes retrained side by side in worker processes of one thread each; it needs two free cores."""
    recipes, rate = 6, {}
    groups = channels.find(models.build("resnet20")).internal()
    widths = spaces.sample_recipes(groups, spaces.Regime(0.5), recipes, seed=0).widths.tolist()
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            study = Study("00_bench.recipes", retrain_recipe, 1, Path(folder) / str(workers))
            study.run([{"widths": widths[0], "images": 64, "seed": seed} for seed in range(2)], workers=workers)
            start = time.perf_counter()
            study.run([{"widths": one, "images": 1024} for one in widths], workers=workers)
            rate[workers] = recipes / (time.perf_counter() - start)
    yield Line("recipes retrained (1,024 images), one process", rate[1], "recipes/s")
    yield Line("two processes against one", rate[2] / rate[1], "x", ">", 1.7)


BENCHMARKS = (counting, sampling, population)
