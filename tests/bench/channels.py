"""Paper 3: counting and sampling recipes without building a network, and populations retrained side by side."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lib import channels, models, spaces, training
from lib.study import Study
from tests.bench import Line, trials

BUILT, COUNTED = 10, 400_000


def counting() -> Iterator[Line]:
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rates = {}
    for shortcut, part in (("A", "internal"), ("B", "all")):
        groups = channels.find(models.build("resnet56", shortcut=shortcut))
        groups = groups.internal() if part == "internal" else groups
        widths = random.integers(1, groups.dense + 1, size=(COUNTED, len(groups)))
        channels.count(groups, widths)
        start = time.perf_counter()
        channels.count(groups, widths)
        rates[part] = COUNTED / (time.perf_counter() - start)
        yield Line(f"counting ResNet-56-{shortcut}, {part} groups", rates[part] / 1e6, "million/s", ">", 2)
    model = models.build("resnet56", shortcut="B")
    start = time.perf_counter()
    for chosen in widths[:BUILT]:
        pruned = channels.prune(model, dict(zip(groups.names, chosen, strict=True)))
        models.count_macs(pruned, (1, 3, 32, 32))
        models.count_parameters(pruned)
    built = BUILT / (time.perf_counter() - start)
    yield Line("building each network, torch's counter", built, "recipes/s")
    yield Line("vectorised against building", rates["all"] / built, "x", ">", 10_000)


def sampling() -> Iterator[Line]:
    for network, options in (("resnet20", {}), ("resnet56", {}), ("vgg16", {})):
        groups = channels.find(models.build(network, **options)).internal()
        spaces.sample_recipes(groups, spaces.Regime(0.5), 10, seed=1)
        start = time.perf_counter()
        sample = spaces.sample_recipes(groups, spaces.Regime(0.5), 1000, seed=0)
        seconds = time.perf_counter() - start
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
