"""Weights come back bit for bit; public checkpoints err as published, to the image; FULL=1 reads whole test sets."""

import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from lib import data, models
from lib import models as weights
from lib.provenance import CompanionError, data_dir
from tests.toy_trials import Program

needs_weights = pytest.mark.skipif(
    not all((data_dir() / file).is_file() for file, _, _ in weights.PUBLIC.values()),
    reason=f"the public checkpoints are not in {data_dir()}",
)
needs_cifar = pytest.mark.skipif(
    not all((data_dir() / folder).is_dir() for folder in ("cifar-10-batches-py", "cifar-100-python")),
    reason=f"CIFAR-10 or CIFAR-100 is not in {data_dir()}",
)


def offline(*arguments, **options):
    raise URLError("no route to host")


def test_saved_weights_return_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    model = models.build("resnet8", shortcut="B", seed=1)
    model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
    weights.save(model, path)
    loaded = weights.load(models.build("resnet8", shortcut="B", seed=2), path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_file_that_is_no_copy_of_the_network_is_one_sentence_and_changes_nothing(tmp_path):
    path, model = tmp_path / "net.safetensors", models.build("resnet8")
    before = weights.tensor_digest(model.state_dict())
    with pytest.raises(CompanionError, match="cannot be read .*make them again"):
        weights.load(model, path)
    weights.save(models.build("resnet8", shortcut="B"), path)
    with pytest.raises(CompanionError, match="another network"):
        weights.load(model, path)
    for content in (path.read_bytes()[:-100], b"", pickle.dumps({"conv1.weight": 1})):
        path.write_bytes(content)
        with pytest.raises(CompanionError, match="cannot be read"):
            weights.load(model, path)
    assert weights.tensor_digest(model.state_dict()) == before


def test_a_program_in_the_place_of_weights_is_refused_and_never_runs(tmp_path, monkeypatch):
    made = tmp_path / "made_by_a_pickle"
    program = pickle.dumps(Program(made))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for (network, dataset), (file, _, _) in weights.PUBLIC.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        for content in (program, pickle.dumps({"state_dict": Program(made)})):
            (tmp_path / file).write_bytes(content)
            with pytest.raises(CompanionError, match="is damaged"):
                weights.public_state(network, dataset)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / Path(torchvision.models.ResNet50_Weights.DEFAULT.url).name).write_bytes(program)
    with pytest.raises(CompanionError, match="is damaged"):
        weights.imagenet_state("resnet50")
    torch.save({"weight": Program(made)}, tmp_path / "zipped.pth")
    with pytest.raises(CompanionError, match="is damaged"):
        weights._read(tmp_path / "zipped.pth")
    assert not made.exists()
    pickle.loads(program)
    assert made.exists(), "the program of this test would have done nothing"


def test_pretrained_weights_without_network_name_the_file_and_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    address = re.escape(torchvision.models.ResNet50_Weights.DEFAULT.url)
    with pytest.raises(
        CompanionError, match=f"resnet50-11ad3fa6.pth is missing and {address} could not .*put that file"
    ):
        models.build("resnet50", size=224, pretrained=True)
    damaged = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    damaged.write_bytes(b"<html>")
    with pytest.raises(CompanionError, match="is damaged .*: delete it"):
        models.build("resnet50", size=224, pretrained=True)


def test_pretrained_network_keeps_all_weights_but_a_head_that_follows_from_the_seed(tmp_path, monkeypatch):
    source = models.build("mobilenet_v2", form="imagenet", classes=1000, seed=5)
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    path = path.rename(tmp_path / f"mobilenet_v2-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    monkeypatch.setattr(weights, "_fetched", lambda *arguments: path)
    whole = models.build("mobilenet_v2", size=224, classes=1000, pretrained=True)
    assert weights.tensor_digest(whole.state_dict()) == weights.tensor_digest(source.state_dict())
    one, same, other = (models.build("mobilenet_v2", size=224, pretrained=True, seed=seed) for seed in (0, 0, 1))
    head = f"{models.head_name(one)}.weight"
    assert one.state_dict()[head].shape == (10, 1280)
    assert torch.equal(one.state_dict()[head], same.state_dict()[head])
    assert not torch.equal(one.state_dict()[head], other.state_dict()[head])
    body = {key: value for key, value in one.state_dict().items() if "classifier" not in key}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in body.items())


def test_pretrained_vit_interpolates_its_positions_to_smaller_images(tmp_path, monkeypatch):
    source = models.build("vit_b_16", size=224, classes=1000)
    nn.init.constant_(source.encoder.pos_embedding, 0.25)
    path = tmp_path / "vit_b_16-.pth"
    torch.save(source.state_dict(), path)
    monkeypatch.setattr(weights, "_fetched", lambda *arguments: path)
    model = models.build("vit_b_16", size=32, pretrained=True)
    assert model.encoder.pos_embedding.shape == (1, 5, 768)
    assert torch.allclose(model.encoder.pos_embedding, torch.tensor(0.25))


def wrong_of_first(name: str, dataset: str, count: int) -> int:
    model, (mean, std) = models.public(name, dataset)
    test, wrong = data.load(dataset).test, 0
    first = data.Split(test.images[:count], test.labels[:count])
    with torch.inference_mode():
        for images, labels in data.batches(first, 500):
            wrong += int((model(data.normalise(images, mean, std)).argmax(1) != labels).sum())
    return wrong


@needs_weights
@needs_cifar
@pytest.mark.parametrize(
    ("name", "dataset", "wrong"),
    [("resnet20", "cifar10", 45), ("resnet56", "cifar10", 30), ("resnet20", "cifar100", 148)]
    + [("resnet56", "cifar100", 144)],
)
def test_public_checkpoints_err_on_as_many_of_the_first_500_images_as_in_the_full_count(name, dataset, wrong):
    assert wrong_of_first(name, dataset, 500) == wrong


@needs_weights
@needs_cifar
@pytest.mark.skipif(os.environ.get("FULL") != "1", reason="takes minutes on one core: set FULL=1")
@pytest.mark.parametrize(("name", "dataset"), weights.PUBLIC)
def test_public_checkpoints_have_their_published_test_error_to_the_image(name, dataset):
    assert wrong_of_first(name, dataset, 10_000) == weights.PUBLISHED_WRONG[name, dataset]


@needs_weights
@pytest.mark.parametrize(("name", "dataset"), weights.PUBLIC)
def test_missing_checkpoint_is_fetched_from_its_authors_and_a_damaged_one_is_named(
    name, dataset, tmp_path, monkeypatch
):
    file, remote, _ = weights.PUBLIC[name, dataset]
    source = data_dir() / file
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(torch.hub, "download_url_to_file", offline)
        with pytest.raises(CompanionError, match=f"{re.escape(file)} is missing and https://github.com.*put that file"):
            models.public(name, dataset)
    asked = []

    def fetch(url, path, **options):
        asked.append(url)
        shutil.copy(source, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    model, _ = models.public(name, dataset)
    assert not model.training and len(asked) == 1 and asked[0].endswith(remote)
    content = source.read_bytes()
    for place in range(0, len(content), len(content) // 20):  # a flipped bit in padding does no harm
        (tmp_path / file).write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            again, _ = models.public(name, dataset)
        except CompanionError as error:
            assert "is damaged" in str(error)
        else:
            assert weights.tensor_digest(again.state_dict()) == weights.tensor_digest(model.state_dict())
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CompanionError, match=f"{re.escape(file)} is damaged .*: delete it so it is fetched anew"):
        models.public(name, dataset)


def test_unknown_checkpoint_names_the_known_ones():
    with pytest.raises(CompanionError, match="known are resnet20 on cifar10"):
        models.public("resnet110", "cifar10")
