"""Prices of the arms by hand, equal operations where they are promised, and masks that hold."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lib import baselines as dense_networks
from lib import models
from lib.provenance import CompanionError
from lib.spline import trials
from lib.spline import trials as spline_arms
from lib.spline.measures import forward_flops
from tests.test_spline_trials import SPEC

TICKET = SPEC | {"ratio": 0.5, "method": "magnitude", "draw": 2}


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("runs"), {}

    def run(name: str, **options) -> dict:
        key = (name, *options.items())
        if key not in rows:
            rows[key] = spline_arms.ticket(TICKET | {"arm": name} | options, "cpu", Path("unused"), folder=folder)
        return rows[key]

    return run


def forward(width: float) -> int:
    return forward_flops(models.build("digits_cnn", channels=1, size=8, width=width), (1, 8, 8))


def test_a_ticket_costs_its_search_its_rest_and_its_detector(arm):
    dense, small = forward(0.25), forward(0.125)
    wanted = 3 * 64 * (2 * dense + 4 * small) + 2 * 9 * dense
    assert arm("ticket")["flops"] == arm("ticket")["ticket_flops"] == arm("reinit")["flops"] == wanted
    assert arm("ticket")["trained_epochs"] == 4
    assert arm("ticket")["dense_flops"] == 3 * 64 * 6 * dense
    assert arm("ticket")["parameters"] <= models.count_parameters(
        models.build("digits_cnn", channels=1, size=8, width=0.125)
    )


def test_rivals_cost_what_they_train(arm):
    dense, small = 3 * 64 * forward(0.25), 3 * 64 * forward(0.125)
    assert arm("end")["flops"] == arm("rewound")["flops"] == 6 * dense + 6 * small
    assert arm("late")["flops"] == 6 * dense + 4 * small
    assert arm("snip")["flops"] == 6 * dense


@pytest.mark.parametrize("name", ["scratch", "short"])
def test_matched_arms_use_the_operations_of_the_ticket(arm, name):
    epoch = 3 * 64 * forward(0.25 if name == "short" else 0.125)
    assert abs(arm(name)["flops"] - arm(name)["ticket_flops"]) <= epoch / 2


def test_layerwise_pretraining_is_paid_for(arm):
    row = arm("layerwise")
    assert abs(row["flops"] / row["ticket_flops"] - 1) < 0.35  # one epoch of each layer may exceed a quarter


def test_snip_removes_single_weights_that_stay_away(arm):
    dataset = trials.loaded(SPEC, "cpu")
    model = dense_networks.build(SPEC, dataset)
    spline_arms.snip(model, 0.5, dataset, 0)
    layers = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    masks = [weight != 0 for weight in layers]
    total = sum(mask.numel() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == total - int(0.5 * total)
    trials.train(model, dataset, SPEC, 0, 1, 1, "x")
    assert all((weight[~mask] == 0).all() for weight, mask in zip(layers, masks, strict=True))
    assert all((weight[mask] != 0).all() for weight, mask in zip(layers, masks, strict=True))


def test_rewound_tickets_start_from_the_weights_of_epoch_0(arm, monkeypatch):
    arm("ticket")
    seen = []
    monkeypatch.setattr(spline_arms, "train", lambda model, *a: seen.append(model.features[0].weight.detach().clone()))
    arm("rewound", test_images=49)
    start = dense_networks.build(SPEC, trials.loaded(SPEC, "cpu")).features[0].weight
    assert all(any(torch.equal(row, other) for other in start) for row in seen[0])


def test_fresh_weights_differ_by_arm_and_unknown_arms_are_refused(arm):
    with pytest.raises(CompanionError, match="arm 'tickets'.*ticket"):
        arm("tickets")
    with pytest.raises(CompanionError, match="without shortcuts"):
        spline_arms.pretrain(models.build("resnet8"), None, SPEC, 1.0)
