"""How fast the store is, and trainings side by side on a CPU."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lib import models
from lib.data import STATISTICS
from lib.store import canonical
from lib.study import Study
from tests.bench import Line, trials


def store() -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as folder:
        study = Study("00_bench.nothing", trials.nothing, 1, Path(folder))
        specs = [{"x": x} for x in range(500)]
        for spec in specs[:50]:  # warm-up
            study.finish(spec, "cpu")
        start = time.perf_counter()
        for spec in specs[50:]:
            study.finish(spec, "cpu")
        yield Line("overhead of the store", 1e3 * (time.perf_counter() - start) / 450, "ms a trial", "<", 2)

        n = 100_000
        keys = [study.store.key(canonical({"x": x})) for x in range(n)]
        rows = {"key": keys, "spec": [f'{{"x": {x}}}' for x in range(n)], "version": 1, "x": range(n), "status": "done"}
        rows |= {"reason": "", "value": 0.5, "accuracy": [x / n for x in range(n)], "made_seconds": 0.1}
        pd.DataFrame(rows).to_parquet(study.store.trials / "rows.parquet", index=False)
        start = time.perf_counter()
        known = study.store.known()
        yield Line(f"reading {known.num_rows:,} compacted rows", time.perf_counter() - start, "s", "<", 1)
        specs = [{"x": x} for x in range(0, n, 2)]
        start = time.perf_counter()
        found = study.rows(specs)
        yield Line(f"   and choosing {len(found):,} of them by their specs", time.perf_counter() - start, "s", "<", 2)
        study.finish({"x": n}, "cpu")  # reads the keys once
        start = time.perf_counter()
        for x in range(n + 1, n + 101):
            study.finish({"x": x}, "cpu")
        yield Line("   one more trial beside them", 1e3 * (time.perf_counter() - start) / 100, "ms", "<", 5)


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


def plain_loop(images: int) -> float:
    """Images a second of the usual loop: DataLoader with two workers, torchvision transforms, default threads."""
    loader = DataLoader(Pictures(images), 128, shuffle=True, num_workers=2)
    model, criterion = models.build("resnet20"), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    start = time.perf_counter()
    for inputs, labels in loader:
        loss = criterion(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images / (time.perf_counter() - start)


def training_rates() -> Iterator[Line]:
    images, count = 1280, 4
    rate = {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            study = Study("00_bench.resnet20", trials.train_resnet20, 1, Path(folder) / str(workers))
            study.run([{"images": 128, "seed": seed} for seed in range(2)], workers=workers)  # starts the processes
            start = time.perf_counter()
            study.run([{"images": images, "seed": seed} for seed in range(count)], workers=workers)
            rate[workers] = count * images / (time.perf_counter() - start)
    plain = plain_loop(2 * images)
    yield Line("ResNet-20 training, plain PyTorch loop", plain, f"images/s ({torch.get_num_threads()} threads)")
    yield Line("ResNet-20 training, one worker process", rate[1], "images/s (1 thread)")
    yield Line("ResNet-20 training, two worker processes", rate[2], "images/s (1 thread each)")
    yield Line("two worker processes against the plain loop", rate[2] / plain, "x")
    yield Line("two worker processes against one", rate[2] / rate[1], "x", ">", 1.7)


BENCHMARKS = (store, training_rates)
