"""The contest: each compression meets its cost, and retraining keeps what it made."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import data, models, training
from lib.provenance import CompanionError
from lib.which import contest, measures

SPEC = {"source": "trained", "network": "resnet20", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
SPEC |= {"batch_size": 64, "augment": False, "bn_images": 64, "few": 16, "test_images": 60}
RETRAINED = {"retrain_images": 64, "retrain_batch": 32, "retrain_lr": 0.01, "retrain_precision": "float32"}
RETRAINED |= {"retrain_seed": 0}


@pytest.fixture(scope="module")
def dense():
    return measures.reference(models.build("resnet20", channels=1, size=8, seed=1), data.load("digits"), 16)


def made(dense, arm, cost="parameters", budget=0.5):
    spec = SPEC | {"arm": arm, "cost": cost, "budget": budget}
    return contest.compressed(dense, spec), spec


def test_every_arm_meets_every_cost_but_bits_save_no_products():
    specs = contest.contest_specs([SPEC], [0.5, 0.25])
    assert len(specs) == 1 + 2 * (2 * (len(contest.ARMS) - 1) + 1)
    assert {spec["cost"] for spec in specs if spec["arm"] == "quantised"} == {"parameters"}


@pytest.mark.parametrize("cost", contest.COSTS)
@pytest.mark.parametrize("arm", contest.ARMS)
def test_an_arm_keeps_what_its_budget_says(dense, arm, cost):
    if (arm, cost) == ("quantised", "macs"):
        cost = "parameters"
    small, spec = made(dense, arm, cost)
    share = contest.kept(dense, small, spec)[f"kept_{cost}"]
    assert 0.42 < share <= 0.5 * 1.012
    outputs = small.eval()(dense.images)
    assert outputs.shape == dense.logits.shape and outputs.isfinite().all()


def test_a_masked_weight_costs_neither_parameters_nor_macs(dense):
    small, _ = made(dense, "global sparsity")
    layers = [layer for layer in small.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    whole = models.count_parameters(dense.model)
    assert contest.price(small, dense.dataset, "parameters", sparse=True) == whole - zeros
    assert contest.price(dense.model, dense.dataset, "macs") == models.count_macs(dense.model, (1, 1, 8, 8))
    full = contest.areas(dense.model, dense.dataset)
    assert (full["conv1"], full["layer2.0.conv1"], full["fc"]) == (64, 16, 1)


def test_the_smallest_weights_of_the_whole_network_go(dense):
    small, _ = made(dense, "global sparsity")
    gone, left = [], []
    for name, layer in dense.model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            kept = small.get_submodule(name).weight != 0
            gone.append(layer.weight[~kept].abs().flatten())
            left.append(layer.weight[kept].abs().flatten())
    assert torch.cat(gone).max() <= torch.cat(left).min()


def test_retraining_keeps_what_was_set_to_zero(dense):
    small, _ = made(dense, "global sparsity", budget=0.25)
    before = {name: value == 0 for name, value in small.named_parameters() if value.dim() > 1}
    old = {name: value.clone() for name, value in small.named_parameters()}
    few = replace(dense.dataset, train=dense.dataset.train.first(64), validation=dense.dataset.validation.first(1))
    training.fit(small, few, epochs=2, seed=0, lr=0.1, batch_size=16)
    after = dict(small.named_parameters())
    assert all(torch.equal(after[name] == 0, zero) for name, zero in before.items())
    assert not torch.equal(after["conv1.weight"], old["conv1.weight"])


@pytest.mark.parametrize("arm", ["dense", "quantised", contest.BOTH])
def test_a_trial_retrains_measures_and_counts(tmp_path, arm):
    budget = 1.0 if arm == "dense" else 0.5
    spec = SPEC | RETRAINED | {"arm": arm, "cost": "parameters", "budget": budget}
    row = contest.compete(spec, "cpu", tmp_path / "x", dense_folder=tmp_path)
    assert row["kept_parameters"] == pytest.approx(budget, abs=0.02)
    assert row["kl"] >= 0 and row["loss_retrained"] > 0 and row["family"] == "resnet/digits"
    if arm == "dense":
        assert row["accuracy_once"] == row["accuracy_dense"]


def test_an_arm_that_cannot_go_down_to_the_budget_is_refused(tmp_path):
    spec = SPEC | RETRAINED | {"arm": "uniform ranks", "cost": "parameters", "budget": 0.01}
    with pytest.raises(CompanionError, match="uniform ranks: .* are the least that stays, and not 1%"):
        contest.compete(spec, "cpu", tmp_path / "x", dense_folder=tmp_path)


def test_quantised_weights_have_few_levels_in_each_output(dense):
    small = contest.quantise(deepcopy(dense.model), 0.125)
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert max(len(row.unique()) for row in layer.weight.flatten(1)) <= 2**4 - 1


def test_weighted_ranks_err_less_on_outputs_than_uniform_ones(dense):
    errors = {}
    for arm in ("weighted ranks", "uniform ranks"):
        small = made(dense, arm, budget=0.6)[0].eval()
        with torch.inference_mode():
            errors[arm] = (small(dense.images) - dense.logits).norm().item()
    assert errors["weighted ranks"] < errors["uniform ranks"]


def test_pruned_then_truncated_has_fewer_channels_and_factors(dense):
    small, _ = made(dense, contest.BOTH)
    factors = [layer for layer in small.modules() if isinstance(layer, nn.Sequential) and len(layer) == 2]
    assert factors and small.layer1[0].bn1.num_features < dense.model.layer1[0].bn1.num_features
