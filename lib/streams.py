"""Images decoded from files as they are needed, for data sets that do not fit in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from lib import data
from lib.provenance import data_dir, unknown


def stream(
    name: str,
    part: str,
    *,
    batch_size: int,
    size: int = 224,
    validation: float = 0.1,
    statistics: data.Statistics | None = None,
    workers: int = 2,
    seed: int = 0,
) -> DataLoader:
    """Batches of normalised float32 images (n, 3, size, size) and labels, decoded from files as they are needed.

    part: `train` (shuffled, random resized crop and mirror), `validation` (a stratified share of the training files,
        as in `load`) or `test` (the official validation folder), both resized to 256/224 of `size` and centre-cropped.
    statistics: mean and standard deviation by channel, for networks that bring their own.
    Order and augmentation of the k-th epoch follow from `seed`, whatever the number of worker processes.
    Raises CompanionError for an unknown name or part, or if no image is found.
    """
    if name not in data.SOURCES:
        raise unknown("streamed data set", name, data.SOURCES)
    if part not in ("train", "validation", "test"):
        raise unknown("part", part, ("train", "validation", "test"))
    files, test_files = data.image_files(name, data_dir())
    if part == "test":
        files = test_files
    else:
        labels = torch.tensor([label for _, label in files])
        held_out, kept = data.stratified(labels, round(validation * len(labels)), torch.Generator().manual_seed(seed))
        files = [files[i] for i in (kept if part == "train" else held_out).tolist()]
    if part == "train":
        steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    else:
        steps = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    steps += [transforms.ToTensor(), transforms.Normalize(*(statistics or data.STATISTICS[name]))]
    return DataLoader(
        _Files(files, transforms.Compose(steps)),
        batch_size=batch_size,
        sampler=_Order(len(files), seed, shuffle=part == "train"),
        generator=torch.Generator().manual_seed(seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class _Files(torch.utils.data.Dataset):
    """Decoded files; a key is (index, seed), and the seed alone decides the augmentation."""

    def __init__(self, files: list[tuple[str, int]], transform):
        self.files, self.transform = files, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        path, label = self.files[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(data.decode(path)), label


class _Order(torch.utils.data.Sampler):
    """Keys (index, seed) of one epoch after another, from one generator."""

    def __init__(self, n: int, seed: int, shuffle: bool):
        self.n, self.shuffle, self.generator = n, shuffle, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seeds = torch.randint(2**62, (self.n,), generator=self.generator).tolist()
        order = torch.randperm(self.n, generator=self.generator).tolist() if self.shuffle else range(self.n)
        return zip(order, seeds, strict=True)
