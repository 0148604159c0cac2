"""The trials of paper 1, on a small network of digits that is trained for one epoch, and on networks by name."""

import math

import numpy as np
import pytest
import torch

from lib import baselines, data, latent, models, training
from lib.latent import head as heads
from lib.latent import trials
from lib.masks import magnitude_mask
from lib.study import generator

DENSE = {"source": "trained", "network": "digits_cnn", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
DENSE |= {"width": 0.25, "batch_size": 64, "augment": False}
TUNING = {"tuning_epochs": 3, "tuning_lr": 0.1, "tuning_batch": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


def head_row(folder, **changes):
    spec = DENSE | TUNING | {"method": "lowest", "fraction": 0.5, "trial": 0, "structure": "weights", "mode": "paper"}
    return trials.heads(folder, folder).run([spec | changes]).iloc[0]


def test_cached_inputs_give_the_accuracy_of_the_whole_network(folder):
    study = trials.features(folder, folder)
    row = study.run([DENSE]).iloc[0]
    model, dataset = baselines.baseline(DENSE, folder)
    assert row["dense_test_accuracy"] == pytest.approx(
        100 * training.evaluate(model, dataset.test, dataset)["accuracy"]
    )
    assert row["dense_test_loss"] == pytest.approx(training.evaluate(model, dataset.test, dataset)["loss"], rel=1e-5)
    assert row["hessian_max"] > 0 and row["gradient_norm"] > 0


def test_epoch_zero_is_the_pruned_network_and_ap2_never_falls_below_it(folder):
    row = head_row(folder)
    model, dataset = baselines.baseline(DENSE, folder)
    head = model.get_submodule(models.head_name(model))
    with torch.no_grad():
        magnitude = head.weight.abs().flatten().sort().values
        head.weight[head.weight.abs() <= magnitude[row["removed"] - 1]] = 0
    assert row["removed"] == row["weights"] // 2 and len(row["ap2"]) == 4
    assert row["ap2"][0] == pytest.approx(magnitude[: row["removed"]].double().square().sum().item(), rel=1e-5)
    pruned = training.evaluate(model, dataset.test, dataset)
    assert row["test_accuracy"][0] == pytest.approx(100 * pruned["accuracy"])
    assert min(row["ap2"]) == row["ap2"][0] and row["ap2_to_last"][-1] == 0


def test_the_dense_control_removes_nothing_and_still_moves(folder):
    row = head_row(folder, method="none", fraction=0.0)
    assert row["removed"] == 0 and row["ap2"][0] == 0 < row["ap2"][-1]
    assert row["test_accuracy"][0] == row["dense_test_accuracy"]


def test_random_masks_differ_by_trial_and_are_nested_in_the_fraction(folder):
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    spec = {"method": "random", "mode": "paper", "structure": "weights"}
    masks = {
        (trial, fraction): trials.pruned_head(weight, spec | {"trial": trial, "fraction": fraction})[1]
        for trial in (0, 1)
        for fraction in (0.3, 0.8)
    }
    assert not torch.equal(masks[0, 0.3], masks[1, 0.3])
    assert (masks[0, 0.3] | ~masks[0, 0.8]).all()


def test_mode_code_moves_the_survivors_and_repeats_the_last_epoch(folder):
    plain, code = (head_row(folder, method="highest", mode=mode) for mode in ("paper", "code"))
    assert code["ap2"][0] > 1.5 * plain["ap2"][0] and code["removed"] == plain["removed"]
    aliased = head_row(folder, method="random", mode="code")
    assert len(set(aliased["ap2"])) == 1 and len(set(aliased["test_loss"])) > 1


@pytest.mark.parametrize(("structure", "shape"), (("inputs", (1, 16)), ("classes", (10, 1)), ("n:m", None)))
def test_structures_remove_whole_columns_rows_or_a_share_of_each_group(structure, shape):
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    for method in ("lowest", "highest", "random"):
        spec = {"fraction": 0.5, "method": method, "structure": structure, "trial": 0}
        mask = trials.structured_mask(weight, spec)
        assert (~mask).sum() == 80
        if shape:
            assert (mask == mask.any(0 if shape[0] == 1 else 1, keepdim=True)).all()
        else:
            assert (mask.view(10, 2, 8).sum(-1) == 4).all()


def test_controls_have_equal_ap2_and_the_pruning_is_the_first(folder):
    spec = DENSE | {"method": "highest", "fraction": 0.3, "trial": 0, "groups": [10, 100, 10**6], "draws": 2}
    row = trials.projections(folder, folder).run([spec]).iloc[0]
    assert row["control"][0] == "pruning" and len(row["control"]) == 7
    assert np.allclose(row["control_ap2"], row["ap2"], rtol=1e-5)
    assert len(set(row["control_test_loss"])) == 7
    assert row["contiguous_r2"][-1] == pytest.approx(row["ap2"], rel=1e-6)  # groups of one weight average nothing
    assert row["shuffled_r2"][-1] == pytest.approx(row["ap2"], rel=1e-6)
    one = head_row(folder, method="highest", fraction=0.3)
    assert one["test_loss"][0] == pytest.approx(row["control_test_loss"][0], rel=1e-5)
    assert one["fisher_ap3"][0] == pytest.approx(row["control_fisher_ap3"][0], rel=1e-5)


@pytest.mark.parametrize("structure", ("weights", "filters"))
def test_pruning_a_hidden_layer_leaves_the_others_and_the_stored_network_alone(folder, structure):
    model, dataset = baselines.baseline(DENSE, folder)
    layer = trials.hidden_layers(model, 2)[1]
    spec = DENSE | TUNING | {"method": "highest", "fraction": 0.5, "trial": 0, "structure": structure, "layer": layer}
    row = trials.layers(folder, folder).run([spec | {"images": 200}]).iloc[0]
    weight = model.get_submodule(layer).weight
    assert 0.5 < row["relative_ap2"] < 1 and row["inputs_moved"] > 0
    assert row["ap2"] == pytest.approx(row["relative_ap2"] * latent.ap2(weight, 0 * weight), rel=1e-6)
    inputs = trials.head_inputs(model, training.Split(dataset.test.images[:200], dataset.test.labels[:200]), dataset)
    head = model.get_submodule(models.head_name(model))
    accuracy, _ = trials.evaluate_head(inputs, dataset.test.labels[:200], head.weight.detach(), head.bias.detach())
    assert row["dense_test_accuracy"] == pytest.approx(accuracy)


def test_layers_are_spread_from_the_first_to_the_last_and_leave_out_the_head():
    model = models.build("resnet20")
    names = trials.hidden_layers(model, 4)
    assert names[0] == "conv1" and names[-1] == "layer3.2.conv2" and len(set(names)) == 4 and "fc" not in names
    assert trials.hidden_layers(models.build("digits_cnn", channels=1, size=8), 99)[-1] != "classifier"


# The networks that paper 1 names, one step at reduced resolution

NAMED = (("alexnet", 64, 40960), ("vgg16", 32, 40960), ("resnet50", 32, 20480), ("vit_b_16", 32, 7680))


@pytest.mark.parametrize(("name", "size", "weights"), NAMED)
def test_a_named_network_is_pruned_measured_and_tuned_for_one_step(name, size, weights):
    model = models.build(name, form="imagenet", size=size).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, size, size), generator=generator, dtype=torch.uint8)
    split = data.Split(images, torch.arange(8) % 10)
    dataset = data.Data(name, split, split, split, 10, 3, size, (0.5,) * 3, (0.25,) * 3, 4, True)
    inputs = trials.head_inputs(model, split, dataset)
    head = model.get_submodule(models.head_name(model))
    torch.nn.init.normal_(head.weight, std=0.02, generator=generator)  # that of a new ViT is zero
    weight, bias = head.weight.detach(), head.bias.detach()
    assert weight.numel() == weights and inputs.shape == (8, weight.shape[1])
    with torch.no_grad():
        logits = model(data.normalise(images, dataset.mean, dataset.std))
    assert torch.allclose(inputs @ weight.T + bias, logits, atol=1e-4)

    spec = {"method": "random", "fraction": 0.8, "mode": "paper", "structure": "weights", "trial": 0}
    start, mask = trials.pruned_head(weight, spec)
    record = trials.finetune_head(inputs, split.labels, start, bias, mask, tuning(1, 0.01, 8))
    assert (record[-1][0][~mask] == 0).all() and not torch.equal(record[0][0], record[-1][0])
    assert 0 < latent.ap2(weight, start) <= latent.ap2(weight, record[-1][0])
    groups = len(latent.group_means(weight))
    assert groups == math.ceil(weights / (weights // 100)) and latent.t_ap3(weight, start) > 0
    covariance = latent.fisher_covariance(trials.head_hessian_diagonal(inputs, weight, bias))
    assert latent.kl_gaussian(weight.flatten(), covariance, start.flatten(), covariance) > 0
    assert 0 <= trials.evaluate_head(inputs, split.labels, *record[-1])[0] <= 100

    layer = trials.hidden_layers(model, 3)[1]
    hidden = model.get_submodule(layer).weight
    filters = trials.structured_mask(hidden, spec | {"fraction": 0.5, "structure": "filters"})
    assert (~filters).sum() == filters.numel() // 2
