"""What a GPU reaches: one training, a population side by side, and the run against the clock."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from lib import data, models, provenance, speed_run, throughput, training
from lib.provenance import CompanionError
from tests.bench import Line, trials
from tests.bench.house import Pictures

BATCH = {"resnet20": 128, "resnet50": 128}
IMAGES = {"resnet20": 25_600, "resnet50": 12_800}  # of one timed epoch
SIDE_BY_SIDE = (4, 8, 12)  # processes
RUNS = 5  # against the clock


def throughput_on_a_gpu() -> Iterator[Line | str]:
    """Ratios of one run; on a machine without a GPU one line says so."""
    if not torch.cuda.is_available():
        yield "throughput on a GPU: needs a CUDA device, and this machine has none."
        return
    for name in ("resnet20", "resnet50"):
        rates = {"plain loop": _plain_loop(name, IMAGES[name])}
        yield Line(f"{name}, plain loop (DataLoader, float32)", rates["plain loop"], "images/s")
        for strategy in throughput.STRATEGIES:
            rates[strategy] = _rate(name, strategy)
            yield Line(f"{name}, forward and backward, {strategy}", rates[strategy], "images/s")
        rates["fit"] = _fit(name, IMAGES[name])
        yield Line(f"{name}, one training by training.fit", rates["fit"], "images/s")
        macs = models.count_macs(models.build(name), (1, 3, 32, 32))
        share = rates["fit"] * 6 * macs / throughput.peak_rate("cuda")
        yield Line(f"{name}, share of the device's peak", 100 * share, "%")
        bound = (">", 3) if name == "resnet50" else ()
        yield Line(f"{name}, training.fit against the plain loop", rates["fit"] / rates["plain loop"], "x", *bound)
        if name == "resnet20":
            best = 0.0
            for processes in SIDE_BY_SIDE:
                together = _population(name, processes)
                best = max(best, together)
                yield Line(f"{name}, {processes} trainings side by side", together, "images/s")
            yield Line("population against the plain loop", best / rates["plain loop"], "x", ">", 10)
    yield from _against_the_clock()


def _rate(name: str, strategy: str) -> float:
    model = models.build(name)
    model = model.cuda() if strategy == "plain" else throughput.placed(model, "cuda")
    images = torch.randn(BATCH[name], 3, 32, 32, device="cuda")
    labels = torch.randint(10, (BATCH[name],), device="cuda")
    ms, _ = throughput.milliseconds(model, images, labels, strategy, "cuda")
    return 1e3 * BATCH[name] / ms


def _plain_loop(name: str, images: int) -> float:
    """The usual loop: torchvision transforms in worker processes, float32, eager, a loss read every step."""
    pictures = Pictures(images)
    workers = min(8, os.cpu_count() or 1)
    loader = DataLoader(pictures, BATCH[name], shuffle=True, num_workers=workers, pin_memory=True, drop_last=True)
    model, criterion = models.build(name).cuda(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    count, start = 0, time.perf_counter()
    for step, (inputs, labels) in enumerate(loader):
        if step == 20:  # the workers have started, the libraries have loaded
            torch.cuda.synchronize()
            count, start = 0, time.perf_counter()
        loss = criterion(model(inputs.cuda(non_blocking=True)), labels.cuda(non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += len(labels)
        loss.item()
    return count / (time.perf_counter() - start)


def _fit(name: str, images: int, device: str = "cuda") -> float:
    """Images a second of `training.fit` on random pictures, after a first epoch that warms up."""
    dataset = trials.on_device(trials.random_cifar(images), device)
    ends = []
    training.fit(
        models.build(name), dataset, epochs=3, seed=0, lr=0.01, batch_size=BATCH[name], device=device,
        after_epoch=lambda *_: ends.append(time.perf_counter()),
    )  # fmt: skip
    return 2 * images / (ends[-1] - ends[0])


def _population(name: str, processes: int) -> float:
    """Images a second of so many trainings at once, in processes of their own, from the last start to the first end."""
    context = get_context("spawn")
    barrier = context.Manager().Barrier(processes)
    with ProcessPoolExecutor(processes, context) as pool:
        spans = list(pool.map(_member, [name] * processes, [barrier] * processes))
    begin, end = max(start for start, _, _ in spans), min(stop for _, stop, _ in spans)
    if end <= begin:
        raise CompanionError("The trainings did not overlap: raise IMAGES.")
    return sum(rate for _, _, rate in spans)


def _member(name: str, barrier) -> tuple[float, float, float]:
    """Start and end of three timed epochs of one training, by the clock of all processes, and images a second."""
    torch.set_num_threads(1)
    images, ends = 2 * IMAGES[name], []
    dataset = trials.on_device(trials.random_cifar(images), "cuda")

    def after_epoch(epoch: int, model: nn.Module) -> None:
        if epoch == 1:
            barrier.wait(300)  # everyone is warm
        ends.append(time.time())

    training.fit(
        models.build(name), dataset, epochs=4, seed=0, lr=0.01, batch_size=BATCH[name], device="cuda",
        after_epoch=after_epoch,
    )  # fmt: skip
    return ends[0], ends[-1], 3 * images / (ends[-1] - ends[0])


def _against_the_clock() -> Iterator[Line | str]:
    try:
        data.load("cifar10")
    except CompanionError as error:
        yield f"seconds to 94 % on CIFAR-10: {error}"
        return
    with tempfile.TemporaryDirectory() as folder:
        specs = [{"dataset": "cifar10", "seed": seed, "epochs": 9.9} for seed in range(RUNS)]
        rows = speed_run.runs(Path(folder)).run(specs, device="cuda")
    accuracy, seconds = 100 * rows["test_accuracy"], rows["made_run_seconds"]
    spread = statistics.stdev(accuracy)
    yield Line(f"speed run, test accuracy, n = {RUNS}, sd {spread:.2f}", accuracy.mean(), "%", ">", 94)
    yield Line(f"speed run, seconds, sd {statistics.stdev(seconds):.2f}", seconds.mean(), "s")
    yield f"on {provenance.device_name('cuda')}; data loading and a first short run are not timed"


BENCHMARKS = (throughput_on_a_gpu,)
