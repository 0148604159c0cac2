"""Streamed images: order, augmentation and statistics, and what is missing."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lib import data
from lib import data as streams
from lib.provenance import CompanionError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty DATA_DIR."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


def picture_folder(folder: Path, name: str, images: int) -> dict[str, tuple[int, int, int]]:
    """A tiny set in the layout of `name`: three classes of one plain colour each, and one test image a class."""
    colours = {"n03": (250, 10, 10), "n01": (10, 250, 10), "n02": (10, 10, 250)}
    own = folder / ("imagenet" if name == "imagenet" else "tiny-imagenet-200")
    annotations = []
    for wnid, colour in colours.items():
        inner = own / "train" / wnid / ("" if name == "imagenet" else "images")
        test = own / "val" / (wnid if name == "imagenet" else "images")
        inner.mkdir(parents=True)
        test.mkdir(parents=True, exist_ok=True)
        for index in range(images):
            Image.new("RGB", (64, 48), colour).save(inner / f"{wnid}_{index}.JPEG")
        Image.new("RGB", (48, 64), colour).save(test / f"val_{wnid}.JPEG")
        annotations.append(f"val_{wnid}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    if name == "tiny-imagenet":
        (own / "wnids.txt").write_text("\n".join(colours) + "\n")
        (own / "val" / "val_annotations.txt").write_text("".join([*annotations, "val_9.JPEG\tn01\t0\t0\t9\t9\n"]))
    return colours


@pytest.mark.parametrize("name", ["imagenet", "tiny-imagenet"])
def test_stream_normalises_and_labels_by_sorted_name(name, folder):
    colours = picture_folder(folder, name, images=4)
    for part, count in (("train", 9), ("validation", 3), ("test", 3)):
        loader = streams.stream(name, part, batch_size=4, size=24, validation=0.25, workers=0)
        images, labels = (torch.cat(values) for values in zip(*loader, strict=True))
        assert images.shape == (count, 3, 24, 24) and images.dtype == torch.float32
        assert torch.bincount(labels).tolist() == [count // 3] * 3
        mean, std = (torch.tensor(values) for values in data.STATISTICS[name])
        for image, label in zip(images, labels, strict=True):
            colour = torch.tensor(colours[sorted(colours)[label]]) / 255
            assert torch.allclose(image.mean((1, 2)), (colour - mean) / std, atol=0.05)  # JPEG rounds colours


def test_stream_repeats_by_seed_whatever_the_number_of_workers(folder):
    own = folder / "imagenet"
    for part, count in (("train", 8), ("val", 1)):
        for wnid in ("n01", "n02"):
            (own / part / wnid).mkdir(parents=True)
            for index in range(count):
                seeded = torch.Generator().manual_seed(index)
                noise = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=seeded).numpy()
                Image.fromarray(noise).save(own / part / wnid / f"{index}.png")
    state = torch.get_rng_state()

    def epochs(workers: int, seed: int) -> list[torch.Tensor]:
        loader = streams.stream("imagenet", "train", batch_size=4, size=16, workers=workers, seed=seed)
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    alone, helped, other = epochs(0, 1), epochs(2, 1), epochs(0, 2)
    assert all(torch.equal(one, two) for one, two in zip(alone, helped, strict=True))
    assert not torch.equal(alone[0], alone[1]) and not torch.equal(alone[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_stream_takes_the_statistics_of_a_checkpoint(folder):
    picture_folder(folder, "imagenet", images=1)
    plain = streams.stream("imagenet", "test", batch_size=3, size=8, statistics=((0.0,) * 3, (1.0,) * 3), workers=0)
    images, _ = next(iter(plain))
    assert images.min() >= 0 and images.max() <= 1


def test_missing_or_damaged_pictures_are_one_sentence(folder):
    for name in ("imagenet", "tiny-imagenet"):
        with pytest.raises(CompanionError, match=f"{name} is not in .*image-?net"):
            streams.stream(name, "train", batch_size=1)
    with pytest.raises(CompanionError, match="Unknown streamed data set 'cifar10'"):
        streams.stream("cifar10", "train", batch_size=1)
    with pytest.raises(CompanionError, match="did you mean validation"):
        streams.stream("imagenet", "validations", batch_size=1)
    picture_folder(folder / "again", "tiny-imagenet", images=1)
    (folder / "tiny-imagenet-200").symlink_to(folder / "again" / "tiny-imagenet-200")
    (folder / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG").write_bytes(b"not a picture")
    with pytest.raises(CompanionError, match="n01_0.JPEG cannot be read as an image"):
        data.load("tiny-imagenet")
