"""The trials of paper 1, on a small network of digits that is trained for one epoch."""

import numpy as np
import pytest
import torch

from lib import baselines as dense_networks
from lib import models, training
from lib.latent import measures as latent
from lib.latent import trials as latent_trials
from lib.latent.trials import evaluate_head

DENSE = {"source": "trained", "network": "digits_cnn", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
DENSE |= {"width": 0.25, "batch_size": 64, "augment": False}
TUNING = {"tuning_epochs": 3, "tuning_lr": 0.1, "tuning_batch": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


def head_row(folder, **changes):
    spec = DENSE | TUNING | {"method": "lowest", "fraction": 0.5, "trial": 0, "structure": "weights", "mode": "paper"}
    return latent_trials.heads(folder, folder).run([spec | changes]).iloc[0]


def test_cached_inputs_give_the_accuracy_of_the_whole_network(folder):
    study = latent_trials.features(folder, folder)
    row = study.run([DENSE]).iloc[0]
    model, dataset = dense_networks.baseline(DENSE, folder)
    assert row["dense_test_accuracy"] == pytest.approx(
        100 * training.evaluate(model, dataset.test, dataset)["accuracy"]
    )
    assert row["dense_test_loss"] == pytest.approx(training.evaluate(model, dataset.test, dataset)["loss"], rel=1e-5)
    assert row["hessian_max"] > 0 and row["gradient_norm"] > 0


def test_epoch_zero_is_the_pruned_network_and_ap2_never_falls_below_it(folder):
    row = head_row(folder)
    model, dataset = dense_networks.baseline(DENSE, folder)
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
        (trial, fraction): latent_trials.pruned_head(weight, spec | {"trial": trial, "fraction": fraction})[1]
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
        mask = latent_trials.structured_mask(weight, 0.5, method, structure, 0)
        assert (~mask).sum() == 80
        if shape:
            assert (mask == mask.any(0 if shape[0] == 1 else 1, keepdim=True)).all()
        else:
            assert (mask.view(10, 2, 8).sum(-1) == 4).all()


def test_controls_have_equal_ap2_and_the_pruning_is_the_first(folder):
    spec = DENSE | {"method": "highest", "fraction": 0.3, "trial": 0, "groups": [10, 100, 10**6], "draws": 2}
    row = latent_trials.projections(folder, folder).run([spec]).iloc[0]
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
    model, dataset = dense_networks.baseline(DENSE, folder)
    layer = latent_trials.hidden_layers(model, 2)[1]
    spec = DENSE | TUNING | {"method": "highest", "fraction": 0.5, "trial": 0, "structure": structure, "layer": layer}
    row = latent_trials.layers(folder, folder).run([spec | {"images": 200}]).iloc[0]
    weight = model.get_submodule(layer).weight
    assert 0.5 < row["relative_ap2"] < 1 and row["inputs_moved"] > 0
    assert row["ap2"] == pytest.approx(row["relative_ap2"] * latent.ap2(weight, 0 * weight), rel=1e-6)
    inputs = latent_trials.head_inputs(
        model, training.Split(dataset.test.images[:200], dataset.test.labels[:200]), dataset
    )
    head = model.get_submodule(models.head_name(model))
    accuracy, _ = evaluate_head(inputs, dataset.test.labels[:200], head.weight.detach(), head.bias.detach())
    assert row["dense_test_accuracy"] == pytest.approx(accuracy)


def test_layers_are_spread_from_the_first_to_the_last_and_leave_out_the_head():
    model = models.build("resnet20")
    names = latent_trials.hidden_layers(model, 4)
    assert names[0] == "conv1" and names[-1] == "layer3.2.conv2" and len(set(names)) == 4 and "fc" not in names
    assert latent_trials.hidden_layers(models.build("digits_cnn", channels=1, size=8), 99)[-1] != "classifier"
