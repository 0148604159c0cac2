"""A training step against the bare passes and against the plain loop; two processes against one; evaluation."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lib import data, models, training
from lib.data import STATISTICS
from lib.study import Study
from tests.bench import Line, alternated, trials

BATCH, STEPS = 128, 8
PRECISIONS = ("float32", "bfloat16") if training.has_bfloat16("cpu") else ("float32",)


class Pictures(Dataset):
    """Random CIFAR-shaped pictures with torchvision's usual transforms."""

    def __init__(self, images: int) -> None:
        split = trials.random_cifar(images).train
        self.pictures = [transforms.functional.to_pil_image(image) for image in split.images]
        self.labels = split.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(*STATISTICS["cifar10"])])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def plain_loop(images: int, workers: int = 2) -> float:
    """Images a second of the usual loop: DataLoader, torchvision transforms; 0 workers load in this process."""
    loader = DataLoader(Pictures(images), BATCH, shuffle=True, num_workers=workers)
    model, criterion = models.build("resnet20"), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    start = time.perf_counter()
    for inputs, labels in loader:
        loss = criterion(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images / (time.perf_counter() - start)


def bare_passes(precision: str) -> None:
    """Forward and backward passes alone, on one batch that is ready."""
    model, random = models.build("resnet20").train(), torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=random).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    for _ in range(STEPS):
        model.zero_grad()
        with training.autocast("cpu", precision):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()


def steps() -> Iterator[Line]:
    """`training.fit` draws order and augmentation, normalises, steps optimizer and schedule, and validates."""
    torch.set_num_threads(1)
    dataset = trials.random_cifar(STEPS * BATCH)
    for precision in PRECISIONS:
        options = {"epochs": 1, "seed": 0, "lr": 0.01, "precision": precision}
        fit, bare = alternated(
            lambda options=options: training.fit(models.build("resnet20"), dataset, **options),
            lambda precision=precision: bare_passes(precision),
        )
        yield Line(f"ResNet-20 training in {precision}, one thread", STEPS * BATCH / fit, "images/s")
        yield Line("   its time against bare forward and backward passes", fit / bare, "x", "<", 1.15)


def against_plain_loop() -> Iterator[Line]:
    """Seconds on the clock, of whole trials in worker processes: the plain loop uses every core."""
    default, images, count, rate = torch.get_num_threads(), 1280, 4, {}
    peer = f"plain PyTorch: float32, DataLoader with 2 workers, torchvision transforms, {default} threads"
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            for workers in (1, 2):
                study = Study("00_bench.resnet20", trials.train_resnet20, 1, Path(folder) / f"{precision}{workers}")
                common = {"precision": precision}
                warm = [common | {"images": BATCH, "seed": seed} for seed in range(2)]
                study.run(warm, workers=workers)  # starts the processes
                start = time.perf_counter()
                study.run([common | {"images": images, "seed": seed} for seed in range(count)], workers=workers)
                rate[precision, workers] = count * images / (time.perf_counter() - start)
    torch.set_num_threads(default)
    plain = max(plain_loop(2 * images) for _ in range(2))
    torch.set_num_threads(1)
    alone = max(plain_loop(images, workers=0) for _ in range(2))
    yield Line(f"ResNet-20 training, plain PyTorch loop, {default} threads", plain, "images/s")
    yield Line("   with one thread that loads the images, too", alone, "images/s")
    bounds = {"float32": 1.35, "bfloat16": 2.2}
    for precision in PRECISIONS:
        one, two = rate[precision, 1], rate[precision, 2]
        yield Line(f"{precision}, one process of one thread", one, "images/s")
        yield Line("   against the plain loop", one / plain, "x", ">", bounds[precision], peer)
        yield Line("   against the plain loop with one thread", one / alone, "x")
        yield Line(f"{precision}, two processes", two, "images/s")
        yield Line("   against the plain loop", two / plain, "x", peer=peer)
        yield Line("   against one process", two / one, "x", ">", 1.85)


def evaluation() -> Iterator[Line]:
    torch.set_num_threads(1)
    dataset = trials.random_cifar(1000)
    for network in ("resnet20", "vanilla_cnn"):
        model = models.build(network).eval()

        @torch.inference_mode()
        def plain(model: nn.Module = model) -> None:
            for images, _ in data.batches(dataset.train, 500):
                model(data.normalise(images, dataset.mean, dataset.std).contiguous())

        ours, theirs = alternated(lambda model=model: training.evaluate(model, dataset.train, dataset), plain)
        yield Line(f"evaluating {network} in float32, one thread", len(dataset.train) / ours, "images/s")
        yield Line("   against the plain way", theirs / ours, "x", ">", 1.1, "contiguous images, 500 at a time")


BENCHMARKS = (steps, against_plain_loop, evaluation)
