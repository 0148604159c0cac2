"""Data sets as tensors on the device: one entry for each data set, splits by seed, augmentation in one gather.

A data set that does not fit in memory is a stream of images, decoded from files as they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import lazy_loader
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from lib.parameters import DATASETS, check_dataset
from lib.provenance import CompanionError, data_dir, imported, own_folder, own_name, unknown

torchvision = lazy_loader.load("torchvision")  # imported when it is used: that takes more than a second
# Mean and standard deviation by channel of the training images in [0, 1] (digits: of all but the test images).
STATISTICS = {
    "digits": ((0.3055,), (0.3759,)),
    "digits16": ((0.3055,), (0.3759,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
DIGITS_TEST = 300  # test images of digits
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
SOURCES = {
    "tiny-imagenet": "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there",
    "imagenet": "sort the files of https://image-net.org into train/<wnid> and val/<wnid> there",
}
Files = list[tuple[str, int]]  # path and label of each image


@dataclass(frozen=True)
class Split:
    """Images, uint8 (n, channels, height, width), and their labels, int64 (n,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> "Split":
        """The first `n` images, or all if there are fewer."""
        return Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class Data:
    """A data set in memory; `mean` and `std` go to `normalise`, `padding` and `flip` to `augment`."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool


def entry(name: str) -> dict:
    """The shape of a data set as in `parameters.DATASETS`: classes, channels, size; padding and flip of augmentation.

    A data set of one's own is read for it. Nobody says whether its labels bear mirroring, so it is not mirrored.

    Raises:
        CompanionError: as `load`.
    """
    if name in DATASETS:
        return DATASETS[name]
    images, labels, *_ = _arrays(name, data_dir())
    shape = {"classes": int(labels.max()) + 1, "channels": images.shape[1], "size": images.shape[2]}
    return shape | {"padding": images.shape[2] // 8, "flip": False}


def statistics(name: str) -> Statistics:
    """Mean and standard deviation by channel; those of a data set of one's own are of all its training images."""
    if name in STATISTICS:
        return STATISTICS[name]
    pixels = _arrays(name, data_dir())[0].transpose(0, 1).flatten(1).double() / 255
    return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1, correction=0).clamp(min=1e-6).tolist())


def load(name: str, *, device: str = "cpu", validation: float = 0.1, seed: int = 0, limit: int | None = None) -> Data:
    """Read a data set and divide its training part, stratified by class, into train and validation.

    The name is one of `parameters.DATASETS`. A data set of one's own is "package.module:function", which returns
    training images, their labels, test images, their labels: uint8 (n, channels, side, side) and int64 (n,). Or it is
    the path of a folder with train/<class>/ and test/<class>/, with a slash in it; "path@side" resizes its images.

    `validation` is a share in [0, 1). `seed` decides the division, and which images a `limit` on the number of training
    images leaves (a stratified subset); the test split depends on neither.

    Raises:
        CompanionError: for an unknown name, and for files that are missing, damaged or too many for memory.
    """
    check_dataset(name)
    if name == "imagenet":
        raise CompanionError("The data set imagenet does not fit in memory: read it with data.stream.")
    if not 0 <= validation < 1 or (limit is not None and limit < 1):
        raise CompanionError(f"validation={validation} must be in [0, 1) and limit={limit} at least 1, or absent.")
    images, labels, test_images, test_labels = _arrays(name, data_dir())
    generator = torch.Generator().manual_seed(seed)
    held_out, kept = stratified(labels, round(validation * len(labels)), generator)
    if limit is not None and limit < len(kept):
        kept = kept[stratified(labels[kept], limit, generator)[0]]
    return Data(
        name=name,
        train=Split(images[kept].to(device), labels[kept].to(device)),
        validation=Split(images[held_out].to(device), labels[held_out].to(device)),
        test=Split(test_images.to(device, copy=True), test_labels.to(device, copy=True)),  # the cache stays untouched
        mean=statistics(name)[0],
        std=statistics(name)[1],
        **entry(name),
    )


def fetch(name: str) -> None:
    """Download a data set that may be downloaded and is missing, and check its files without reading the images.

    Raises:
        CompanionError: for an unknown name, and for files that are missing or damaged.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    if name in SOURCES:
        image_files(name, data_dir())
    elif name in ("cifar10", "cifar100"):
        _fetch_cifar(_cifar_kind(name), data_dir())


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """float32 (images / 255 - mean) / std by channel, for uint8 images (n, channels, height, width).

    The result is channels last in memory: convolutions keep that layout, in which they are faster.
    """
    mean, std = (_by_channel(tuple(values), images.device) for values in (mean, std))
    pixels = images.to(torch.float32, memory_format=torch.channels_last)
    return pixels.div_(255).sub_(mean).div_(std)


@cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Constants (channels, 1, 1) on a device, sent once: a copy from the host makes the host wait for a GPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)


def augment(images: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = True) -> Tensor:
    """Pad each image with black, crop it back at a random offset, and mirror half of the images on average.

    Images (n, channels, height, width) are not normalised yet: black is 0 there, as in torchvision's RandomCrop. Both
    offsets are uniform on 0 .. 2 * `padding` pixels.
    """
    n, channels, height, width = images.shape
    options = {"generator": generator, "device": generator.device}
    top, left = torch.randint(2 * padding + 1, (2, n, 1), **options).to(images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    if flip:
        mirrored = torch.randint(2, (n, 1), **options).to(images.device).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(n, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return F.pad(images, (padding,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def batches(
    split: Split, size: int, generator: torch.Generator | None = None, images: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, `size` at a time: in the generator's random order, or as stored without a generator.

    With `images` above 0 only as many are taken: in random order a part drawn anew at each call.
    """
    n, order = len(split), None
    if generator is not None:
        order = torch.randperm(n, generator=generator, device=generator.device).to(split.labels.device)
    n = min(n, images or n)
    for start in range(0, n, size):
        end = min(start + size, n)
        chosen = slice(start, end) if order is None else order[start:end]
        yield split.images[chosen], split.labels[chosen]


def stratified(labels: Tensor, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Sorted indices of `count` items and of the others; each class gets its share, rounded up or down.

    Evenly spaced picks from the items sorted by class; the generator shuffles the items of a class first.
    """
    n = len(labels)
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    order = order[labels[order].sort(stable=True).indices]
    chosen = torch.zeros(n, dtype=torch.bool)
    if count:
        chosen[order[(2 * torch.arange(count) + 1) * n // (2 * count)]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


@contextmanager
def fetching(path: Path, source: str) -> Iterator[None]:
    """Turn the failure of a download to `path` into a CompanionError that names the remedies."""
    try:
        yield
    except (OSError, RuntimeError, HTTPException) as error:
        raise CompanionError(
            f"{path} is missing and {source} could not be fetched ({error}): connect to the internet, put it there, "
            "or set DATA_DIR to the folder that holds it."
        ) from error


def damaged(path: Path) -> CompanionError:
    """The error for a file whose checksum is not the published one."""
    return CompanionError(f"{path} is damaged (its checksum is wrong): delete it, so that it is fetched again.")


@cache
def _arrays(name: str, folder: Path) -> tuple[Tensor, ...]:
    """Images and labels of the training part, then of the test part, read once in each process."""
    if name in ("digits", "digits16"):
        return _digits(DATASETS[name]["size"] // 8)
    if name not in DATASETS:
        return _own(name)
    if name in ("cifar10", "cifar100"):
        return _cifar(_cifar_kind(name), folder)
    parts = []
    for files in image_files(name, folder):
        parts.append(torch.from_numpy(np.stack([np.asarray(decode(path)) for path, _ in files]).transpose(0, 3, 1, 2)))
        parts.append(torch.tensor([label for _, label in files]))
    return tuple(parts)


def _own(name: str) -> tuple[Tensor, ...]:
    """The tensors of a data set of one's own; CompanionError, in one sentence, for what they are not."""
    parts = imported(name)() if own_name(name) else _folder(name)
    if not (isinstance(parts, tuple | list) and len(parts) == 4 and all(isinstance(part, Tensor) for part in parts)):
        raise CompanionError(f"{name} must return four tensors: training images, their labels, test images, labels.")
    for images, labels in (parts[:2], parts[2:]):
        square = images.dim() == 4 and images.shape[2] == images.shape[3] and images.dtype == torch.uint8
        if not square or labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            shapes = f"{images.dtype} {tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
            raise CompanionError(
                f"{name} needs images uint8 (n, channels, side, side), labels int64 (n,); not {shapes}."
            )
    classes = parts[1].unique()
    if classes.tolist() != list(range(len(classes))) or not torch.isin(parts[3], classes).all():
        raise CompanionError(f"{name} must label its training images 0, 1, 2 and so on, its test images with some.")
    return tuple(parts)


def _folder(name: str) -> tuple[Tensor, ...]:
    """The images of a folder with train/<class>/ and test/<class>/; classes are numbered by their sorted names."""
    (folder, side), transforms, parts = own_folder(name), torchvision.transforms, []
    try:
        train, test = (torchvision.datasets.ImageFolder(folder / part) for part in ("train", "test"))
    except FileNotFoundError as error:
        raise CompanionError(f"{folder}: {str(error).splitlines()[0].rstrip('.')}: add images or remove it.") from None
    if not {*test.classes} <= {*train.classes}:
        raise CompanionError(f"{folder}/test has classes that train lacks: give both the same folders.")
    fit = (
        transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)]) if side else lambda picture: picture
    )
    for files in (train, test):
        pictures = [np.asarray(fit(decode(path))) for path, _ in files.samples]
        if len({picture.shape for picture in pictures}) > 1 or pictures[0].shape[0] != pictures[0].shape[1]:
            raise CompanionError(
                f"{folder} has images of several shapes, or not square: write {name}@64 to resize them."
            )
        labels = [train.class_to_idx[files.classes[label]] for _, label in files.samples]
        parts += [torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy()), torch.tensor(labels)]
    return tuple(parts)


def _digits(scale: int) -> tuple[Tensor, ...]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    labels = torch.from_numpy(bunch.target).long()
    test, train = stratified(labels, DIGITS_TEST)
    return images[train], labels[train], images[test], labels[test]


def _cifar_kind(name: str) -> type:
    return torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100


def _fetch_cifar(kind: type, folder: Path) -> None:
    own = folder / kind.base_folder
    checksums = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    missing = [file for file in checksums if not (own / file).is_file()]
    for file in checksums.keys() - missing:
        if not torchvision.datasets.utils.check_integrity(own / file, checksums[file]):
            raise damaged(own / file)
    if missing:
        with fetching(own, kind.__name__):
            own.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder) as temporary:  # other processes see whole files only
                kind(temporary, download=True)
                for file in checksums:
                    (Path(temporary) / kind.base_folder / file).replace(own / file)


def _cifar(kind: type, folder: Path) -> tuple[Tensor, ...]:
    _fetch_cifar(kind, folder)
    parts = []
    for train in (True, False):
        raw = kind(folder, train=train)
        parts += [torch.from_numpy(raw.data.transpose(0, 3, 1, 2).copy()), torch.tensor(raw.targets)]
    return tuple(parts)


@cache
def image_files(name: str, folder: Path) -> tuple[Files, Files]:
    """Every training and every test image; labels number the sorted WordNet names. CompanionError if none is there."""
    own = folder / ("imagenet" if name == "imagenet" else "tiny-imagenet-200")
    find = torchvision.datasets.folder
    options = {"extensions": find.IMG_EXTENSIONS, "allow_empty": True}
    try:
        if name == "imagenet":
            labels = find.find_classes(own / "train")[1]
            test = find.make_dataset(own / "val", labels, **options)
        else:
            wnids, annotations = own / "wnids.txt", own / "val" / "val_annotations.txt"
            labels = {wnid: label for label, wnid in enumerate(sorted(wnids.read_text(encoding="utf-8").split()))}
            rows = [row.split("\t") for row in annotations.read_text(encoding="utf-8").splitlines()]
            found = {path.name: str(path) for path in (own / "val" / "images").iterdir()}
            test = [(found[file], labels[wnid]) for file, wnid, *_ in rows if file in found]
        train = find.make_dataset(own / "train", labels, **options)
    except FileNotFoundError:
        train = test = []
    if not train or not test:
        raise CompanionError(f"{name} is not in {own}, or has no training or no validation images: {SOURCES[name]}.")
    return train, test


def decode(path: str) -> Image.Image:
    """An image file as RGB; CompanionError if it cannot be read."""
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise CompanionError(f"{path} cannot be read as an image: restore it from the original archive.") from error


def stream(
    name: str, part: str, *, batch_size: int, size: int = 224, validation: float = 0.1, workers: int = 2, seed: int = 0
) -> DataLoader:
    """Batches of normalised float32 images (n, 3, size, size) and labels, decoded from files as they are needed.

    The part "train" is shuffled, cropped at random, resized and mirrored; "validation" (a stratified share of the
    training files, as in `load`) and "test" (the official validation folder) are resized to 256/224 of `size` and
    centre-cropped. Split, order and augmentation of each epoch follow from `seed`, whatever the number of `workers`,
    the processes that decode (0 decodes in this one).

    Raises:
        CompanionError: for an unknown name or part, or if no image is found.
    """
    if name not in SOURCES:
        raise unknown("streamed data set", name, SOURCES)
    if part not in ("train", "validation", "test"):
        raise unknown("part", part, ("train", "validation", "test"))
    train, files = image_files(name, data_dir())
    if part != "test":
        labels = torch.tensor([label for _, label in train])
        held_out, kept = stratified(labels, round(validation * len(labels)), torch.Generator().manual_seed(seed))
        files = [train[i] for i in (kept if part == "train" else held_out).tolist()]
    transforms = torchvision.transforms
    if part == "train":
        steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    else:
        steps = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    return DataLoader(
        _Files(files, transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(*STATISTICS[name])])),
        batch_size=batch_size,
        sampler=_Order(len(files), seed, shuffle=part == "train"),
        generator=torch.Generator().manual_seed(seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class _Files(Dataset):
    """Decoded files; a key is (index, seed), and the seed alone decides the augmentation."""

    def __init__(self, files: Files, transform: Callable[[Image.Image], Tensor]):
        self.files, self.transform = files, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        path, label = self.files[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(decode(path)), label


class _Order(Sampler):
    """Keys (index, seed) of one epoch after another, from one generator."""

    def __init__(self, n: int, seed: int, shuffle: bool):
        self.n, self.shuffle, self.generator = n, shuffle, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seeds = torch.randint(2**62, (self.n,), generator=self.generator).tolist()
        order = torch.randperm(self.n, generator=self.generator).tolist() if self.shuffle else range(self.n)
        return zip(order, seeds, strict=True)
