"""Pruned, re-estimated and retrained recipes of a small network of digits, and of a tiny folder of ImageNet files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib import baselines, channels, data, models, spaces, training
from lib.parameters import DATASETS
from lib.provenance import CompanionError
from lib.spaces import Regime, analysis, samplers, trials
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


def scaled(name="resnet20", **options):
    """A network whose BatchNorm scales differ."""
    model, random = models.build(name, **options), generator(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.weight.shape, generator=random)
    return model


@pytest.mark.parametrize("ranking", trials.RANKINGS)
def test_a_ranking_meets_the_budget_and_keeps_the_best(ranking):
    model = scaled()
    groups = channels.find(model).internal()
    widths = trials.ranked_widths(model, groups, 0.5, ranking)
    assert abs(spaces.kept_shares(groups, widths)[0] - 0.5) < 0.01
    assert (widths >= 1).all() and (widths <= groups.dense).all() and len(set(widths / groups.dense)) > 2
    if ranking != "isomorphic":
        scores = {"global BN": lambda name: channels.scores(model, groups, name, "bn").numpy()}
        scores["global L1"] = lambda name: (
            model.get_submodule(name).weight.detach().double().abs().mean((1, 2, 3)).numpy()
        )
        scores["group norm"] = lambda name: trials.group_norms(model, groups, name)
        each = [scores[ranking](name) for name in groups.names]
        if ranking == "group norm":
            each = [one / one.mean() for one in each]
        kept = [np.sort(one)[::-1][:width] for one, width in zip(each, widths, strict=True) if width > 1]
        lost = [np.sort(one)[::-1][width:] for one, width in zip(each, widths, strict=True)]
        assert min(map(min, kept)) >= max(max(part) for part in lost if len(part)) - 1e-6


def test_isomorphic_pruning_keeps_one_share_of_the_filters_of_each_shape():
    model = scaled()
    groups = channels.find(model).internal()
    widths = trials.ranked_widths(model, groups, 0.5, "isomorphic")
    shapes = [tuple(model.get_submodule(name).weight.shape) for name in groups.names]
    shares, norms = {}, [np.sort(trials.group_norms(model, groups, name))[::-1] for name in groups.names]
    for shape in set(shapes):
        alike = [place for place, one in enumerate(shapes) if one == shape]
        shares[shape] = widths[alike].sum() / groups.dense[alike].sum()
        if len(alike) > 1:
            assert len(set(widths[alike])) > 1
            best = min(norms[place][widths[place] - 1] for place in alike)
            assert best > max(norms[place][widths[place]] for place in alike)
    assert len(shares) == 5 and np.ptp(list(shares.values())) < 0.04
    uniform = trials.ranked_widths(model, groups, 0.5, "global BN")
    assert np.ptp(uniform / groups.dense) > np.ptp(list(shares.values()))


def test_an_unknown_ranking_or_part_of_a_network_is_one_sentence():
    model = models.build("resnet8")
    with pytest.raises(CompanionError, match="Unknown ranking 'l1'.*known are global L1, global BN, group norm, iso"):
        trials.ranked_widths(model, channels.find(model).internal(), 0.5, "l1")
    with pytest.raises(CompanionError, match="Unknown part of a network to prune 'weight' .did you mean weights"):
        trials.prunable(DENSE, "weight")


def test_group_norms_hold_filters_scales_and_the_inputs_of_readers():
    model = scaled("resnet8", channels=1, size=8)
    groups = channels.find(model, 8).internal()
    block = model.layer2[0]
    expected = [
        (block.conv1.weight[k] ** 2).sum() + block.bn1.weight[k] ** 2 + (block.conv2.weight[:, k] ** 2).sum()
        for k in range(32)
    ]
    found = trials.group_norms(model, groups, "layer2.0.conv1")
    assert found == pytest.approx(torch.stack(expected).sqrt().detach().numpy(), rel=1e-5)
    plain = models.build("digits_cnn", channels=1, size=8, width=0.25)
    every = channels.find(plain, 8)
    last = every.names[-1]
    norm, (reader,) = trials.group_norms(plain, every, last), every.readers[-1]
    pixels = plain.get_submodule(reader).weight.detach().double().reshape(10, every.dense[-1], -1)
    scales = plain.get_submodule(last).weight.detach().double().flatten(1).square().sum(1) + 1  # scales start at 1
    assert norm == pytest.approx((scales + pixels.square().sum(dim=(0, 2))).sqrt().numpy())


def test_the_priors_of_a_network_are_stored_by_ranking(folder, groups):
    rows = trials.priors(folder, folder).run([DENSE | {"kept": 0.5, "ranking": name} for name in trials.RANKINGS])
    assert rows["status"].tolist() == ["done"] * 4
    model, _ = baselines.baseline(DENSE, folder)
    for ranking, widths in zip(rows["ranking"], rows["widths"], strict=True):
        assert list(widths) == trials.ranked_widths(model, groups, 0.5, ranking).tolist()


def weights_of(model, groups):
    return np.array([int((model.get_submodule(name).weight != 0).sum()) for name in groups.names])


def test_single_weights_are_counted_as_the_network_counts_them():
    for dense in (DENSE, DENSE | {"network": "vgg16", "dataset": "cifar10"}):
        groups = trials.prunable(dense, "weights")
        model, entry = baselines.untrained(dense), DATASETS[dense["dataset"]]
        macs, parameters = channels.count(groups, groups.dense)
        assert macs == models.count_macs(model, (1, entry["channels"], entry["size"], entry["size"]))
        assert parameters == models.count_parameters(model) and (groups.dense == weights_of(model, groups)).all()
        few = groups.dense.copy()
        few[2] -= 7
        less = channels.count(groups, few)
        assert (macs - less[0], parameters - less[1]) == (7 * groups.area[2], 7)
        first = next(name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
        assert first not in groups.names and len(groups) == sum(isinstance(m, nn.Conv2d) for m in model.modules()) - 1


@pytest.mark.parametrize("mode", ("finetune", "rewind"))
def test_pruned_weights_stay_pruned_while_the_others_are_retrained(folder, mode, monkeypatch):
    groups, seen = trials.prunable(DENSE, "weights"), []
    fit = training.fit

    def recording(model, *arguments, **options):
        before = [model.get_submodule(name).weight.detach().clone() for name in groups.names]
        seen.append(weights_of(model, groups))
        history = fit(model, *arguments, **options)
        after = [model.get_submodule(name).weight.detach() for name in groups.names]
        seen.append(weights_of(model, groups))
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old == 0, new == 0) and not torch.equal(old, new)
        return history

    monkeypatch.setattr(training, "fit", recording)
    (spec,) = trials.ladder_specs(DENSE, 0.3, 3, ASKED | {"mode": mode, "what": "weights"})[:1]
    baselines.baseline(DENSE, folder)
    seen.clear()  # the dense network may have been trained here
    row = trials.retrain(spec, "cpu", None, dense_folder=folder)
    assert len(seen) == 2 and all((found == spec["widths"]).all() for found in seen)
    assert row["kept_macs"] == pytest.approx(0.3, rel=0.01) and row["validation_loss"] != row["proxy_loss"]


def test_pruned_weights_are_the_smallest_of_their_layer(folder):
    model, groups = models.build("resnet8", channels=1, size=8), trials.prunable(DENSE, "weights")
    spec = {"widths": (groups.dense // 3).tolist(), "what": "weights", "retraining": 0}
    row, sparse = trials._pruned(model, groups, spec, 8)
    for name in groups.names:
        old, new = (net.get_submodule(name).weight.detach() for net in (model, sparse))
        assert torch.equal(new[new != 0], old[new != 0]) and old[new == 0].abs().max() <= old[new != 0].abs().min()
    assert row["std"] < 1e-3 and all((net.weight != 0).all() for net in [model.layer1[0].conv1])


def test_pruned_weights_are_drawn_anew_from_scratch():
    model, groups = models.build("resnet8", channels=1, size=8), trials.prunable(DENSE, "weights")
    spec = {"widths": (groups.dense // 3).tolist(), "what": "weights", "retraining": 0}
    _, sparse = trials._pruned(model, groups, spec, 8)
    trials.reinitialise(sparse, 5)
    sparse(torch.zeros(2, 1, 8, 8))  # applies the masks
    for name in groups.names:
        old, new = (net.get_submodule(name).weight for net in (model, sparse))
        assert not torch.equal(old[new != 0], new[new != 0])


def test_a_length_is_a_part_of_an_epoch_or_whole_epochs():
    assert trials.length(512, 1024) == {"train_images": 512, "retraining_epochs": 1}
    assert trials.length(1024, 1024) == {"train_images": 1024, "retraining_epochs": 1}
    assert trials.length(3072, 1024) == {"train_images": 1024, "retraining_epochs": 3}
    with pytest.raises(CompanionError, match=r"^A retraining of 1,500 images is no whole number .* of 1,024 images\.$"):
        trials.length(1500, 1024)


def test_a_ladder_of_specs_names_its_space_and_leaves_rungs_out(groups):
    every = trials.ladder_specs(DENSE, 0.5, 6, ASKED)
    assert [spec["widths"] for spec in every] == samplers.ladder(groups, Regime(0.5), 6).tolist()
    assert {(spec["space"], spec["kept"], spec["budget"]) for spec in every} == {("ladder", 0.5, "macs")}
    assert "what" not in every[0] and trials.ladder_specs(DENSE, 0.5, 6, ASKED, places=range(0, 6, 2)) == every[::2]
    options = {"space": "floor", "floor": 0.25, "reach": 0.8, "budget": "parameters"}
    other = trials.ladder_specs(DENSE, 0.5, 4, ASKED, **options)
    assert other[0]["space"] == "floor" and "floor" not in other[0] and other[0]["budget"] == "parameters"
    assert (np.array([spec["widths"] for spec in other]) >= groups.dense / 4).all()
    (streams,) = trials.ladder_specs(DENSE, 0.5, 2, ASKED | {"what": "all"})[:1]
    assert streams["what"] == "all" and len(streams["widths"]) == len(trials.prunable(DENSE, "all")) > len(groups)


def test_streams_are_pruned_when_asked(folder):
    specs = trials.ladder_specs(DENSE, 0.5, 3, ASKED | {"what": "all"})[1:2]
    row = trials.recipes(folder, folder).run(specs).iloc[0]
    assert row["status"] == "done" and row["kept_macs"] == pytest.approx(0.5, rel=0.01)


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
