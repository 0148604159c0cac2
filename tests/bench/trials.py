"""Trials that benchmarks time; worker processes import them from here."""

from dataclasses import replace
from pathlib import Path

import torch

from lib import models, training
from lib.data import DATASETS, STATISTICS, Data, Split


def nothing(spec: dict, device: str, weights: Path) -> dict:
    return {"value": 0.5}


def random_cifar(images: int) -> Data:
    """Random images and labels in CIFAR's shape: what they show does not change what training on them costs."""
    random = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=random)
        return Split(pixels, torch.randint(10, (n,), generator=random))

    mean, std = STATISTICS["cifar10"]
    return Data("random", split(images), split(10), split(10), mean=mean, std=std, **DATASETS["cifar10"])


def on_device(dataset: Data, device: str) -> Data:
    """The same data set on another device."""
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return replace(dataset, **{name: Split(s.images.to(device), s.labels.to(device)) for name, s in parts.items()})


def train_resnet20(spec: dict, device: str, weights: Path) -> dict:
    options = {"epochs": 1, "seed": 0, "lr": 0.01, "precision": spec["precision"]}
    history = training.fit(models.build("resnet20"), random_cifar(spec["images"]), **options)
    return {"train_loss": history[0]["train_loss"]}
