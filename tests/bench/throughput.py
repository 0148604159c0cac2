"""What a GPU reaches: one training, a population side by side, and the run against the clock."""

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from lib import models, speed_run, throughput, training
from lib.provenance import CompanionError
from tests.bench import Line, trials
from tests.bench.house import Pictures

BATCH = {"resnet20": 128, "resnet50": 128}
IMAGES = {"resnet20": 25_600, "resnet50": 12_800}  # of one timed epoch
BOUNDS = {"resnet20": (), "resnet50": (">", 3)}  # of one training against the plain loop
SIDE_BY_SIDE = (4, 8, 12)  # processes, each training a ResNet-20
READERS = min(8, os.cpu_count() or 1)  # worker processes of the plain loop
RUNS, EPOCHS = 5, 9.9  # against the clock
WARM = 20  # steps of the plain loop until its worker processes and the libraries have started


def throughput_on_a_gpu() -> Iterator[Line | str]:
    """Ratios of one run; on a machine without a GPU one line says so."""
    if not torch.cuda.is_available():
        yield "throughput on a GPU: needs a CUDA device, and this machine has none."
        return
    yield from measured("cuda")


def measured(device: str, strategies: tuple[str, ...] = throughput.STRATEGIES) -> Iterator[Line | str]:
    for name, images in IMAGES.items():
        plain = _plain_loop(name, images, device)
        yield Line(f"{name}, plain loop (DataLoader, float32)", plain, "images/s")
        for strategy in strategies:
            yield Line(f"{name}, forward and backward, {strategy}", _rate(name, strategy, device), "images/s")
        fitted = _fit(name, images, device)
        yield Line(f"{name}, one training by training.fit", fitted, "images/s")
        share = fitted * 6 * models.count_macs(models.build(name), (1, 3, 32, 32)) / throughput.peak_rate(device)
        yield Line(f"{name}, share of the device's peak", 100 * share, "%")
        yield Line(f"{name}, training.fit against the plain loop", fitted / plain, "x", *BOUNDS[name])
        if name == "resnet20":
            together = {processes: _population(name, processes, device) for processes in SIDE_BY_SIDE}
            for processes, rate in together.items():
                yield Line(f"{name}, {processes} trainings side by side", rate, "images/s")
            yield Line("population against the plain loop", max(together.values()) / plain, "x", ">", 10)
    yield from _against_the_clock(device)


def _rate(name: str, strategy: str, device: str) -> float:
    model = models.build(name)
    model = model.to(device) if strategy == "plain" else throughput.placed(model, device)
    images = torch.randn(BATCH[name], 3, 32, 32, device=device)
    labels = torch.randint(10, (BATCH[name],), device=device)
    ms, _ = throughput.milliseconds(model, images, labels, strategy, device)
    return 1e3 * BATCH[name] / ms


def _plain_loop(name: str, images: int, device: str) -> float:
    """The usual loop: torchvision transforms in worker processes, float32, eager, a loss read every step."""
    pictures = Pictures(images)
    loader = DataLoader(pictures, BATCH[name], shuffle=True, num_workers=READERS, pin_memory=device == "cuda")
    model, criterion = models.build(name).to(device), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    count, start = 0, time.perf_counter()
    for step, (inputs, labels) in enumerate(loader):
        if step == WARM:
            count, start = 0, time.perf_counter()
        loss = criterion(model(inputs.to(device, non_blocking=True)), labels.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        count += len(labels)
    return count / (time.perf_counter() - start)


def _fit(name: str, images: int, device: str) -> float:
    """Images a second of `training.fit` on random pictures, after a first epoch that warms up."""
    dataset, ends = trials.on_device(trials.random_cifar(images), device), []
    training.fit(
        models.build(name), dataset, epochs=3, seed=0, lr=0.01, batch_size=BATCH[name], device=device,
        after_epoch=lambda *_: ends.append(time.perf_counter()),
    )  # fmt: skip
    return 2 * images / (ends[-1] - ends[0])


def _population(name: str, processes: int, device: str) -> float:
    """Images a second of so many trainings at once, each in a process of its own, while all of them run."""
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        barrier = manager.Barrier(processes)
        ask = (name, 2 * IMAGES[name], BATCH[name], barrier, device)
        spans = [one.result() for one in [pool.submit(_member, *ask) for _ in range(processes)]]
    start, stop = min(start for start, _ in spans), max(stop for _, stop in spans)
    return processes * 3 * 2 * IMAGES[name] / (stop - start)  # from the first start to the last end


def _member(name: str, images: int, batch: int, barrier, device: str) -> tuple[float, float]:
    """Start and end of three timed epochs of one training, by the clock that all processes share."""
    torch.set_num_threads(1)
    ends = []

    def after_epoch(epoch: int, model: nn.Module) -> None:
        if epoch == 1:
            barrier.wait(300)  # all are warm
        ends.append(time.time())

    options = {"epochs": 4, "seed": 0, "lr": 0.01, "batch_size": batch, "device": device}
    dataset = trials.on_device(trials.random_cifar(images), device)
    training.fit(models.build(name), dataset, after_epoch=after_epoch, **options)
    return ends[0], ends[-1]


def _against_the_clock(device: str) -> Iterator[Line | str]:
    with tempfile.TemporaryDirectory() as folder:
        specs = [{"dataset": "cifar10", "seed": seed, "epochs": EPOCHS} for seed in range(RUNS)]
        try:
            rows = speed_run.runs(Path(folder)).run(specs, device=device)
        except CompanionError as error:
            yield f"seconds to 94 % on CIFAR-10: {error}"
            return
    accuracy, seconds = 100 * rows["test_accuracy"], rows["made_run_seconds"]
    yield Line(f"speed run, test accuracy, n = {RUNS}, sd {accuracy.std():.2f}", accuracy.mean(), "%", ">", 94)
    yield Line(f"speed run, n = {RUNS}, sd {seconds.std():.2f}", seconds.mean(), "s (training and evaluation)")


BENCHMARKS = (throughput_on_a_gpu,)
