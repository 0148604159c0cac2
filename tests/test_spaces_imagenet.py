"""The ImageNet path on a tiny folder of files: streaming, a published recipe, retraining, measuring."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib import channels, models
from lib.spaces import analysis as spaces_published
from lib.spaces import measures as spaces
from lib.spaces import samplers as spaces_samplers
from lib.spaces import trials as spaces_imagenet
from lib.spaces.measures import Regime

SPEC = {"network": "resnet18", "classes": 2, "size": 32, "pretrained": False, "criterion": "l1", "mode": "finetune"}
SPEC |= {"retraining": 0, "retraining_epochs": 1, "batch_size": 8, "weight_decay": 1e-4, "bn_batches": 2, "readers": 0}


@pytest.fixture
def files(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for wnid in ("n01", "n02"):
            folder = tmp_path / "imagenet" / part / wnid
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(random.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(folder / f"{k}.jpeg")
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("mode", ("none", "finetune", "scratch"))
def test_a_recipe_is_retrained_from_files(files, mode):
    groups = channels.find(models.build("resnet18", form="imagenet", classes=2, size=32), 32)
    widths = spaces_samplers.with_spread(groups, Regime(0.3), 1, 0.1, seed=0)[0]
    study = spaces_imagenet.streamed(files / "runs")
    row = study.run([SPEC | {"widths": widths.tolist(), "mode": mode}]).iloc[0]
    assert row["status"] == "done", row["reason"]
    assert row["kept_macs"] == pytest.approx(0.3, rel=0.01)
    assert (row["proxy_n"], row["validation_n"], row["test_n"]) == (2, 2, 8) and 0 <= row["test_accuracy"] <= 100


def test_recipes_of_resnet50_cover_stem_inner_convolutions_and_streams():
    groups = spaces_imagenet.groups()
    assert len(groups) == 37 and set(groups.names) == set(spaces_published.eagleeye_groups().names)
    widths = spaces.sample_recipes(groups, Regime(0.5), 50, seed=0).widths
    assert 0.9 < np.median(spaces.mean_computation_budget(groups, widths)) < 1.05


def test_a_pruned_resnet50_takes_images():
    model = models.build("resnet50", form="imagenet", classes=3, size=64)
    groups = channels.find(model, 64)
    pruned = channels.prune(model, dict(zip(groups.names, groups.dense // 8, strict=True)), size=64)
    assert pruned.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
