"""Splits, augmentation, readers and streams; tests that read a real data set are skipped where it is missing."""

import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets, transforms

from lib import data
from lib.parameters import DATASETS
from lib.provenance import CompanionError, data_dir
from tests.toy_trials import Program

CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
COUNTS = {"digits": (1497, 300), "cifar10": (50_000, 10_000)}


def needs(folder: str):
    return pytest.mark.skipif(not (data_dir() / folder).is_dir(), reason=f"{folder} is not in {data_dir()}")


needs_cifar10, needs_cifar100 = needs("cifar-10-batches-py"), needs("cifar-100-python")
needs_tiny = needs("tiny-imagenet-200")
in_memory = pytest.mark.parametrize("name", ["digits", pytest.param("cifar10", marks=needs_cifar10)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty DATA_DIR."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(split: data.Split) -> list[int]:
    return [hash(image.tobytes()) for image in split.images.numpy()]


@in_memory
def test_every_image_is_in_exactly_one_split(name):
    loaded = data.load(name, validation=0.1, seed=3)
    train, test = COUNTS[name]
    assert len(loaded.train) + len(loaded.validation) == train and len(loaded.test) == test
    assert len(loaded.validation) == round(0.1 * train)
    images, _, _, _ = data._arrays(name, data_dir())
    parts = sorted(rows(loaded.train) + rows(loaded.validation))
    assert parts == sorted(rows(data.Split(images, images)))


@in_memory
def test_splits_hold_each_class_in_proportion(name):
    loaded = data.load(name, seed=1)
    total = torch.bincount(torch.cat([loaded.train.labels, loaded.validation.labels]))
    for split in (loaded.train, loaded.validation):
        share = total * len(split) / total.sum()
        assert (torch.bincount(split.labels) - share).abs().max() < 1
    assert loaded.classes == len(total) == len(torch.bincount(loaded.test.labels))


@in_memory
def test_images_are_uint8_and_sized_as_declared(name):
    loaded = data.load(name)
    for split in (loaded.train, loaded.validation, loaded.test):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.shape == (len(split), loaded.channels, loaded.size, loaded.size)


@pytest.mark.parametrize(
    "name", ["digits", pytest.param("cifar10", marks=needs_cifar10), pytest.param("cifar100", marks=needs_cifar100)]
)
def test_normalised_training_images_have_mean_0_and_deviation_1(name):
    images, _, _, _ = data._arrays(name, data_dir())
    loaded = data.load(name)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, loaded.channels, 256, 1)
    values = data.normalise(levels, loaded.mean, loaded.std)[0, :, :, 0].double()
    for channel in range(loaded.channels):
        weights = torch.from_numpy(
            np.bincount(images[:, channel].numpy().ravel(), minlength=256) / images[:, 0].numel()
        )
        mean = (weights * values[channel]).sum()
        deviation = (weights * (values[channel] - mean) ** 2).sum().sqrt()
        assert abs(mean) < 1e-3 and abs(deviation - 1) < 1e-3


def test_seed_decides_validation_but_not_the_test_split():
    one, same, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.validation.images, same.validation.images)
    assert not torch.equal(one.validation.images, other.validation.images)
    assert torch.equal(one.test.images, other.test.images) and torch.equal(one.test.labels, other.test.labels)


def test_limit_is_a_stratified_subset_and_leaves_validation_alone():
    whole, part = data.load("digits", seed=5), data.load("digits", seed=5, limit=100)
    assert len(part.train) == 100 and set(rows(part.train)) <= set(rows(whole.train))
    assert torch.equal(part.validation.images, whole.validation.images)
    share = torch.bincount(whole.train.labels) * 100 / len(whole.train)
    assert (torch.bincount(part.train.labels) - share).abs().max() < 1
    assert len(data.load("digits", limit=10**6).train) == len(whole.train)


def test_no_validation_leaves_all_training_images():
    loaded = data.load("digits", validation=0)
    assert len(loaded.validation) == 0 and len(loaded.train) == 1497


def test_changing_a_loaded_set_does_not_change_the_next_one():
    first = data.load("digits")
    for split in (first.train, first.validation, first.test):
        split.images.zero_()
    assert data.load("digits").test.images.any() and data.load("digits").train.images.any()


def test_enlarged_digits_repeat_every_pixel_and_nothing_else():
    small, large = data.load("digits", seed=3), data.load("digits16", seed=3)
    assert large.train.images.shape[2:] == (16, 16)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(large.train.images[:, :, corner[0] :: 2, corner[1] :: 2], small.train.images)
    assert torch.equal(large.test.labels, small.test.labels)


def test_digits_keep_all_sixteen_levels_and_are_never_flipped():
    images, _, test_images, _ = data._arrays("digits", data_dir())
    levels = torch.cat([images, test_images]).double().mul(16 / 255).round().to(torch.uint8)
    original = load_digits().images.astype(np.uint8)
    assert sorted(map(bytes, levels.numpy())) == sorted(map(bytes, original))
    assert not DATASETS["digits"]["flip"]


def test_normalise_equals_torchvision_bit_for_bit():
    images = torch.randint(256, (4, 3, 9, 7), dtype=torch.uint8, generator=generator(0))
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*data.STATISTICS["cifar10"])])
    expected = torch.stack([reference(image.permute(1, 2, 0).numpy()) for image in images])
    assert torch.equal(data.normalise(images, *data.STATISTICS["cifar10"]), expected)


@pytest.mark.parametrize("flip", [True, False])
def test_augmented_image_is_one_shifted_and_perhaps_mirrored_original(flip):
    images = torch.randint(1, 256, (400, 2, 5, 6), dtype=torch.uint8, generator=generator(1))
    padding, seen = 2, []
    for image, result in zip(images, data.augment(images, generator(2), padding, flip), strict=True):
        padded = torch.zeros(2, 9, 10, dtype=torch.uint8)
        padded[:, 2:7, 2:8] = image
        for top in range(5):
            for left in range(5):
                crop = padded[:, top : top + 5, left : left + 6]
                for mirrored, candidate in ((False, crop), (True, crop.flip(2))):
                    if torch.equal(candidate, result):
                        seen.append((top, left, mirrored))
    assert len(seen) == len(images)
    for axis in (0, 1):  # every offset from 0 to 2 * padding, about 80 times each
        counts = np.bincount([offset[axis] for offset in seen], minlength=5)
        assert len(counts) == 5 and counts.min() > 40 and counts.max() < 120
    mirrored = sum(offset[2] for offset in seen)
    assert 140 < mirrored < 260 if flip else mirrored == 0


def test_augmentation_follows_from_the_generator_and_leaves_its_input_alone():
    images = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8, generator=generator(0))
    copy, state = images.clone(), torch.get_rng_state()
    first, same, other = (data.augment(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(images, copy) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.augment(images, generator(1), padding=0, flip=False), images)


def test_batches_visit_every_item_once_in_the_order_of_the_generator():
    labels = torch.arange(23)
    split = data.Split(labels.to(torch.uint8).view(-1, 1, 1, 1), labels)
    stored = [batch for _, batch in data.batches(split, 5)]
    assert torch.equal(torch.cat(stored), labels) and [len(batch) for batch in stored] == [5, 5, 5, 5, 3]
    shuffled = list(data.batches(split, 5, generator(0)))
    order = torch.cat([batch for _, batch in shuffled])
    assert torch.equal(order.sort().values, labels) and not torch.equal(order, labels)
    assert all(torch.equal(images.flatten().long(), batch) for images, batch in shuffled)
    assert torch.equal(order, torch.cat([batch for _, batch in data.batches(split, 5, generator(0))]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar1O"}, "did you mean cifar10"),
        ({"name": "mnist"}, "known are digits, cifar10, cifar100, tiny-imagenet, imagenet"),
        ({"name": "imagenet"}, "data.stream"),
        ({"name": "digits", "validation": 1.0}, "validation=1.0"),
        ({"name": "digits", "limit": 0}, "limit=0"),
    ],
)
def test_wrong_argument_is_one_sentence_that_names_the_remedy(arguments, message):
    with pytest.raises(CompanionError, match=re.escape(message)):
        data.load(**arguments)


@needs_cifar10
def test_one_changed_byte_in_cifar10_names_the_file_even_after_a_good_folder_was_read(tmp_path, monkeypatch):
    good = data_dir() / "cifar-10-batches-py"
    data.load("cifar10")
    own = tmp_path / good.name
    own.mkdir()
    for path in good.iterdir():
        (own / path.name).symlink_to(path)
    damaged = own / "data_batch_1"
    content = bytearray(damaged.read_bytes())
    content[10_000_000] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with pytest.raises(CompanionError, match="data_batch_1 is damaged .* delete it, so that it is fetched again"):
        data.load("cifar10")


@pytest.mark.parametrize("name", CIFAR)
def test_a_pickled_program_instead_of_cifar_is_refused_and_never_runs(name, tmp_path, folder):
    made = tmp_path / "made_by_a_pickle"
    own = folder / CIFAR[name].base_folder
    own.mkdir(exist_ok=True)
    files = [*CIFAR[name].train_list, *CIFAR[name].test_list, (CIFAR[name].meta["filename"], "")]
    for file, _ in files:
        (own / file).write_bytes(pickle.dumps(Program(made)))
    with pytest.raises(CompanionError, match="is damaged .its checksum is wrong"):
        data.load(name)
    assert not made.exists()


@pytest.mark.parametrize("name", CIFAR)
def test_missing_cifar_without_network_is_one_sentence(name, folder, monkeypatch):
    def offline(self):
        raise URLError("no route to host")

    monkeypatch.setattr(CIFAR[name], "download", offline)
    with pytest.raises(CompanionError, match="could not be fetched .*no route to host.* connect to the internet"):
        data.load(name)
    assert [path.name for path in folder.iterdir()] == [CIFAR[name].base_folder]


@needs_cifar100
def test_missing_cifar_is_fetched_whole_into_the_data_folder(tmp_path, monkeypatch):
    good = data_dir() / "cifar-100-python"

    def fetch(self):
        own = Path(self.root) / self.base_folder
        own.mkdir()
        for path in good.iterdir():
            (own / path.name).symlink_to(path)

    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR100, "download", fetch)
    assert len(data.load("cifar100").test) == 10_000
    assert sorted(path.name for path in (tmp_path / "cifar-100-python").iterdir()) == ["meta", "test", "train"]
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_that_does_not_exist_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(CompanionError, match="nowhere, which does not exist"):
        data.load("cifar10")


@needs_tiny
def test_tiny_imagenet_loads_every_file_it_finds_under_its_folder_s_label():
    own = data_dir() / "tiny-imagenet-200"
    files = sorted((own / "train").glob("*/images/*.JPEG"))
    loaded = data.load("tiny-imagenet", validation=0)
    assert len(loaded.train) == len(files) and len(loaded.test) == len(list((own / "val" / "images").iterdir()))
    assert loaded.train.images.shape[1:] == (3, 64, 64) and loaded.classes == 200
    wnids = sorted((own / "wnids.txt").read_text().split())
    path = files[len(files) // 2]
    picture = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    matches = (loaded.train.images == torch.from_numpy(picture.copy())).flatten(1).all(1)
    assert wnids.index(path.parts[-3]) in loaded.train.labels[matches]


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
        loader = data.stream(name, part, batch_size=4, size=24, validation=0.25, workers=0)
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
        loader = data.stream("imagenet", "train", batch_size=4, size=16, workers=workers, seed=seed)
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    alone, helped, other = epochs(0, 1), epochs(2, 1), epochs(0, 2)
    assert all(torch.equal(one, two) for one, two in zip(alone, helped, strict=True))
    assert not torch.equal(alone[0], alone[1]) and not torch.equal(alone[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_or_damaged_pictures_are_one_sentence(folder):
    for name in ("imagenet", "tiny-imagenet"):
        with pytest.raises(CompanionError, match=f"{name} is not in .*image-?net"):
            data.stream(name, "train", batch_size=1)
    with pytest.raises(CompanionError, match="Unknown streamed data set 'cifar10'"):
        data.stream("cifar10", "train", batch_size=1)
    with pytest.raises(CompanionError, match="did you mean validation"):
        data.stream("imagenet", "validations", batch_size=1)
    picture_folder(folder / "again", "tiny-imagenet", images=1)
    (folder / "tiny-imagenet-200").symlink_to(folder / "again" / "tiny-imagenet-200")
    (folder / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG").write_bytes(b"not a picture")
    with pytest.raises(CompanionError, match="n01_0.JPEG cannot be read as an image"):
        data.load("tiny-imagenet")
