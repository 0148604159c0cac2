"""Searches keep what happened in every epoch; their networks can be taken up, pruned and sliced."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib import baselines, data, models, training
from lib.provenance import CompanionError
from lib.spline import measures, trials
from lib.store import plain

SPEC = {
    "dataset": "digits", "network": "digits_cnn", "width": 0.25, "limit": 64, "test_images": 50, "seed": 0,
    "epochs": 6, "lr": 0.05, "batch_size": 32, "weight_decay": 1e-4, "side": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def row(folder):
    return trials.study("searches", folder).run([SPEC]).iloc[0]


def test_a_search_keeps_distances_and_losses_of_every_epoch(row):
    assert row["status"] == "done", row["reason"]
    for probes in ("canvas", "images", "noise", "units"):
        matrix = np.reshape(row[f"distance_{probes}"], (6, 6))
        assert (matrix == matrix.T).all()
        assert (np.diag(matrix) == 0).all()
        assert 0 < matrix.max() < 1
    assert len(row["loss"]) == 6
    assert row["loss"][-1] < row["loss"][0]


def test_its_network_can_be_taken_up_at_any_epoch(folder, row):
    dataset = trials.loaded(SPEC, "cpu")
    last, first = (trials.snapshot(SPEC, epoch, dataset, folder, "cpu") for epoch in (6, 0))
    assert trials.accuracy(last, dataset) == row["test_accuracy"]
    fresh = baselines.build(SPEC, dataset)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), fresh.parameters(), strict=True))
    codes = [measures.activation_codes(model, trials.probes(dataset, 3)["canvas"]) for model in (last, first)]
    assert measures.code_distance(*codes).mean() > 0.05


def test_the_rate_falls_at_a_half_and_three_quarters_and_phases_join(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "fit", lambda model, dataset, **options: seen.append(options))
    dataset = trials.loaded(SPEC, "cpu")
    trials.train(None, dataset, SPEC | {"epochs": 8}, range(8), 8, "x")
    trials.train(None, dataset, SPEC, range(3, 8), 8, "x")
    trials.train(None, dataset, SPEC | {"rate": 0.01}, range(8), 8, "x")
    assert [(o["epochs"], round(o["lr"], 6)) for o in seen] == [
        *((4, 0.05), (2, 0.005), (2, 0.0005)), *((1, 0.05), (2, 0.005), (2, 0.0005)), (8, 0.0005)
    ]  # fmt: skip


def test_shuffled_labels_move_training_labels_alone():
    plain_, shuffled = trials.loaded(SPEC, "cpu"), trials.loaded(SPEC | {"labels": "shuffled"}, "cpu")
    assert not torch.equal(plain_.train.labels, shuffled.train.labels)
    assert torch.equal(plain_.train.labels.bincount(), shuffled.train.labels.bincount())
    assert torch.equal(plain_.test.labels, shuffled.test.labels)
    assert len(plain_.test) == 50


def test_probes_come_in_three_sets_and_the_canvas_mixes_two_classes():
    dataset = trials.loaded(SPEC, "cpu")
    sets = trials.probes(dataset, 3)
    assert {name: tuple(probes.shape) for name, probes in sets.items()} == dict.fromkeys(sets, (9, 1, 8, 8))
    images = data.normalise(dataset.test.images[:1], dataset.mean, dataset.std)
    assert torch.equal(sets["canvas"][6], images[0])  # a = 1, b = 0
    assert (sets["canvas"][0] == 0).all()


def test_a_penalty_on_scales_makes_them_smaller(folder, row):
    dataset = trials.loaded(SPEC, "cpu")
    penalised = SPEC | {"penalty": 0.1}
    trials.study("searches", folder).run([penalised])
    networks = [trials.snapshot(s, 6, dataset, folder, "cpu") for s in (SPEC, penalised)]
    norms = [[m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)] for network in networks]
    sizes = [torch.cat(scales).abs().mean() for scales in norms]
    assert sizes[1] < 0.9 * sizes[0]


def test_oneshot_rows_and_shares(folder, row):
    spec = SPEC | {"epoch": 6, "ratios": [0.5], "share_ratio": 0.5}
    found = trials.oneshot(spec, "cpu", None, folder=folder)
    json.dumps({name: plain(value) for name, value in found.items()})
    assert len(found["accuracy"]) == 2 * 8
    assert found["dense"] == row["test_accuracy"]
    for name in ("share_trained_full", "share_trained_reduced", "share_random_full", "share_random_reduced"):
        gone = np.multiply(found[name], found["width_of"]).sum()
        assert gone == sum(found["width_of"]) // 2


def test_a_slice_fills_its_window_and_pruning_coarsens_it(folder, row):
    spec = SPEC | {"epoch": 6, "half": 0.01}
    rows = [
        trials.picture(spec | extra, "cpu", None, folder=folder) for extra in ({}, {"method": "random", "ratio": 0.5})
    ]
    for found in rows:
        corners = np.split(np.reshape(found["corners"], (-1, 2)), np.cumsum(found["count"])[:-1])
        area = sum(
            0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) for x, y in (c.T - c.T[:, :1] for c in corners)
        )
        assert area == pytest.approx(4e-4, rel=1e-2)
        assert len(found["winner"]) == found["regions"]
    assert rows[1]["regions"] < rows[0]["regions"]


def test_a_slice_without_small_weights_is_that_of_the_network_that_keeps_the_others(folder, row, monkeypatch):
    spec = SPEC | {"epoch": 6, "half": 0.01}
    pruned = spec | {"kind": "weights", "method": "magnitude", "ratio": 0.5}
    seen, split = [], trials.partition.split
    monkeypatch.setattr(trials.partition, "split", lambda network, *a: seen.append(network) or split(network, *a))
    found = [trials.picture(one, "cpu", Path("unused"), folder=folder) for one in (spec, pruned)]
    dense, small = (
        torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)])
        for network in seen
    )
    assert int((small == 0).sum()) == round(0.5 * len(dense))
    assert dense[small == 0].abs().max() <= dense[small != 0].abs().min()
    assert (small == dense)[small != 0].all()
    assert found[0]["corners"] != found[1]["corners"]
    assert all(1 <= one["maps"] <= one["regions"] for one in found)


def test_surroundings_are_counted_for_every_epoch_kind_and_radius(folder, row):
    spec = SPEC | {"at": [0, 6], "images": 5, "radii": [0.1, 0.4]}
    found = trials.surroundings(spec, "cpu", Path("unused"), folder=folder)
    json.dumps({name: plain(value) for name, value in found.items()})
    table = pd.DataFrame(found)
    counts = table.groupby(["epoch_seen", "kind", "radius"])["image"].nunique().unstack("kind")
    assert (counts[["noise", "test", "training"]] == 5).all(axis=None)
    small, large = (table[table["radius"] == radius].reset_index() for radius in (0.1, 0.4))
    assert (small["regions"] <= large["regions"]).all()  # the larger square holds the smaller one
    assert (small["regions"] >= 1).all() and (large["regions"] > 1).any()
    assert trials.surroundings(spec, "cpu", Path("unused"), folder=folder) == found


def test_boundary_points_lie_between_two_images_where_the_decision_changes():
    head = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    stream = torch.Generator().manual_seed(0)
    head[1].weight.data, head[1].bias.data = torch.randn(3, 4, generator=stream).double(), torch.zeros(3).double()
    images = torch.randn(12, 1, 2, 2, generator=stream).double()
    points = trials.boundary_points(head, images)
    top = head(points).sort(1, descending=True).values
    assert points.shape == images.shape
    assert (top[:, 0] - top[:, 1]).abs().max() < 1e-9
    first = head(images).argmax(1)
    for k, point in enumerate(points):
        partner = next(j for j in [*range(k, 12), *range(k)] if first[j] != first[k])
        way, gone = (images[partner] - images[k]).flatten(), (point - images[k]).flatten()
        assert (gone - (gone @ way) / (way @ way) * way).norm() < 1e-9
    assert trials.boundary_points(head, images[:1].expand(3, 1, 2, 2)).shape == (0, 1, 2, 2)


def test_the_middle_of_a_slice_is_where_the_decision_first_changes():
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
    head[1].weight.data = torch.tensor([[1.0], [-1.0]])
    first, second = torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), -3.0)
    assert trials.decision_change(head, first, second) == pytest.approx(0.25, abs=1e-3)
    assert trials.decision_change(head, first, first) == 0.5


TICKET = SPEC | {"ratio": 0.5, "method": "magnitude", "draw": 2}


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("runs"), {}

    def run(name: str, **options) -> dict:
        key = (name, *options.items())
        if key not in rows:
            rows[key] = trials.ticket(TICKET | {"arm": name} | options, "cpu", None, folder=folder)
        return rows[key]

    return run


def forward(width: float) -> int:
    return measures.forward_flops(models.build("digits_cnn", channels=1, size=8, width=width), (1, 8, 8))


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
    model = baselines.build(SPEC, dataset)
    trials.snip(model, 0.5, dataset, 0)
    layers = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    masks = [weight != 0 for weight in layers]
    total = sum(mask.numel() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == total - int(0.5 * total)
    trials.train(model, dataset, SPEC, range(1), 1, "x")
    assert all((weight[~mask] == 0).all() for weight, mask in zip(layers, masks, strict=True))
    assert all((weight[mask] != 0).all() for weight, mask in zip(layers, masks, strict=True))


def test_rewound_tickets_start_from_the_weights_of_epoch_0(arm, monkeypatch):
    arm("ticket")
    seen = []
    monkeypatch.setattr(trials, "train", lambda model, *a: seen.append(model.features[0].weight.detach().clone()))
    arm("rewound", ratio=0.25)
    start = baselines.build(SPEC, trials.loaded(SPEC, "cpu")).features[0].weight
    assert all(any(torch.equal(row, other) for other in start) for row in seen[0])


def test_fresh_weights_differ_by_arm_and_unknown_arms_are_refused(arm):
    with pytest.raises(CompanionError, match="arm 'tickets'.*ticket"):
        arm("tickets")
    with pytest.raises(CompanionError, match="without shortcuts"):
        trials.pretrain(models.build("resnet8"), None, SPEC, 1.0)
