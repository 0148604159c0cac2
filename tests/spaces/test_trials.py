"""Pruned, re-estimated and retrained recipes of a small network of digits, and of a tiny folder of ImageNet files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib import baselines, channels, data, models, spaces, training
from lib.provenance import CompanionError
from lib.spaces import Regime, analysis, trials
from lib.study import generator

DENSE = {"source": "trained", "network": "resnet8", "dataset": "digits", "seed": 0, "epochs": 2, "lr": 0.1}
DENSE |= {"batch_size": 64, "augment": False}
ASKED = {"criterion": "l1", "mode": "none", "retraining": 0, "retraining_epochs": 1, "retraining_batch": 32}
ASKED |= {"train_images": 200, "validation_images": 100, "test_images": 100, "bn_images": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


@pytest.fixture(scope="module")
def groups():
    return trials.prunable(DENSE)


def run(folder, widths, **changes):
    specs = trials.recipe_specs(DENSE, "test", widths, 0.5, ASKED | changes)
    return trials.recipes(folder, folder).run(specs)


def test_dense_widths_without_retraining_lose_nothing_but_batchnorm_statistics(folder, groups):
    row = run(folder, [groups.dense]).iloc[0]
    model, dataset = baselines.baseline(DENSE, folder)
    few = trials.selection(dataset, DENSE | ASKED)
    exact = 100 * training.evaluate(model, few.test, dataset)["accuracy"]
    assert (row["mcb"], row["std"], row["kept_macs"]) == (1, 0, 1)
    assert row["test_accuracy"] == pytest.approx(exact, abs=6)
    assert row["validation_accuracy"] == row["proxy_accuracy"]


@pytest.mark.parametrize("mode", ("finetune", "rewind", "scratch"))
def test_each_schedule_retrains_and_repeats_itself(folder, groups, mode):
    widths = [np.maximum(groups.dense // 2, 1)]
    one, two = (run(folder / name, widths, mode=mode).iloc[0] for name in ("one", "two"))
    assert one["test_loss"] == two["test_loss"] and one["proxy_accuracy"] == two["proxy_accuracy"]
    assert one["validation_loss"] != one["proxy_loss"]
    other = run(folder / "one", widths, mode=mode, retraining=1).iloc[0]
    assert other["test_loss"] != one["test_loss"] and other["proxy_loss"] == one["proxy_loss"]


def test_fine_tuning_repairs_and_the_stored_network_stays(folder, groups):
    widths = [np.maximum(groups.dense // 4, 1)]
    row = run(folder, widths, mode="finetune", train_images=1000, retraining_epochs=2).iloc[0]
    assert row["validation_accuracy"] > row["proxy_accuracy"]
    again = run(folder / "again", widths, mode="none").iloc[0]
    assert again["proxy_accuracy"] == row["proxy_accuracy"]


def test_misclassified_images_are_stored_when_asked_and_agree_with_the_accuracy(folder, groups):
    widths = [np.maximum(groups.dense // 4, 1)]
    plain, stored = (run(folder, widths, mode="finetune", **extra).iloc[0] for extra in ({}, {"by_image": True}))
    assert len(stored["test_wrong"]) == round(ASKED["test_images"] - stored["test_accuracy"]) > 0
    assert stored["test_loss"] == plain["test_loss"] and "test_wrong" not in plain
    with pytest.raises(CompanionError, match="400 test images are asked for, and digits has 300: lower contest_test"):
        run(folder, widths, by_image=True, test_images=400)


def test_a_wrong_mode_and_too_many_images_are_one_sentence(folder, groups):
    with pytest.raises(CompanionError, match="did you mean finetune"):
        run(folder, [groups.dense], mode="finetun")
    dataset = data.load("digits")
    with pytest.raises(CompanionError, match="200 .* 200 .*exceed the 300"):
        trials.selection(dataset, {"source": "public", "validation_images": 200, "test_images": 200})


def test_a_public_checkpoint_is_selected_and_reported_on_images_that_it_has_not_seen():
    dataset = data.load("digits")
    asked = {"train_images": 50, "validation_images": 40, "test_images": 60}
    public = trials.selection(dataset, asked | {"source": "public"})
    assert torch.equal(public.validation.images, dataset.test.images[-40:])
    assert torch.equal(public.test.images, dataset.test.images[:60]) and len(public.train) == 50
    own = trials.selection(dataset, asked | {"source": "trained"})
    assert torch.equal(own.validation.images, dataset.validation.images[:40])


def test_fresh_weights_follow_from_the_seed_alone():
    nets = [models.build("resnet8", channels=1, size=8, seed=seed) for seed in (0, 1, 2)]
    before = torch.random.get_rng_state()
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        trials.reinitialise(net, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(nets[0].conv1.weight, nets[1].conv1.weight)
    assert not torch.equal(nets[0].conv1.weight, nets[2].conv1.weight)


@pytest.mark.parametrize("criterion", ("l1", "bn"))
def test_global_ranking_meets_the_budget_and_keeps_the_best(criterion):
    model = models.build("resnet20")
    random = generator(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.weight.shape, generator=random)
    groups = channels.find(model).internal()
    widths = trials.global_widths(model, groups, 0.5, criterion)
    assert abs(spaces.kept_shares(groups, widths)[0] - 0.5) < 0.01
    assert (widths >= 1).all() and (widths <= groups.dense).all() and len(set(widths / groups.dense)) > 2
    if criterion == "bn":
        scores = [channels.scores(model, groups, name, "bn").numpy() for name in groups.names]
        kept = [np.sort(s)[::-1][:w] for s, w in zip(scores, widths, strict=True) if w > 1]
        lost = [np.sort(s)[::-1][w:] for s, w in zip(scores, widths, strict=True)]
        assert min(map(min, kept)) >= max(max(part) for part in lost if len(part))


def test_latency_is_measured_beside_exact_counts(folder, groups):
    widths = spaces.sample_recipes(groups, Regime(0.5), 1, seed=0).widths
    specs = trials.recipe_specs(DENSE, "test", widths, 0.5, {})
    row = trials.latencies(folder).run(specs).iloc[0]
    assert row["macs"] == channels.count(groups, widths)[0][0] and row["made_latency_1_ms"] > 0


def test_specs_are_plain(groups):
    specs = trials.recipe_specs(DENSE, "dense", [groups.dense], 1.0, ASKED)
    assert json.loads(json.dumps(specs)) == specs and baselines.dense_spec(specs[0]) == DENSE


def test_a_dense_network_is_named_by_network_and_data_set():
    assert trials.dense_network("resnet20/cifar10", "public", "smoke")["source"] == "public"
    trained = trials.dense_network("resnet8/digits", "trained", "smoke")
    assert (trained["network"], trained["dataset"], trained["source"]) == ("resnet8", "digits", "trained")
    assert trained["epochs"] > 0


STREAMED = {"network": "resnet18", "classes": 2, "size": 32, "pretrained": False, "criterion": "l1", "readers": 0}
STREAMED |= {"retraining": 0, "retraining_epochs": 1, "batch_size": 8, "weight_decay": 1e-4, "bn_batches": 2}


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
    widths = spaces.sample_recipes(trials.imagenet_groups("resnet18", 2, 32), Regime(0.3), 1, seed=0).widths[0]
    study = trials.streamed(files / "runs")
    row = study.run([STREAMED | {"widths": widths.tolist(), "mode": mode}]).iloc[0]
    assert row["status"] == "done", row["reason"]
    assert row["kept_macs"] == pytest.approx(0.3, rel=0.01)
    assert (row["proxy_n"], row["validation_n"], row["test_n"]) == (2, 2, 8) and 0 <= row["test_accuracy"] <= 100


def test_recipes_of_resnet50_cover_stem_inner_convolutions_and_streams():
    groups = trials.imagenet_groups()
    assert len(groups) == 37 and set(groups.names) == set(analysis.eagleeye_groups().names)
    widths = spaces.sample_recipes(groups, Regime(0.5), 50, seed=0).widths
    assert 0.9 < np.median(spaces.mean_computation_budget(groups, widths)) < 1.05


def test_a_pruned_resnet50_takes_images():
    model = models.build("resnet50", form="imagenet", classes=3, size=64)
    groups = channels.find(model, 64)
    pruned = channels.prune(model, dict(zip(groups.names, groups.dense // 8, strict=True)), size=64)
    assert pruned.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
