"""The toy's trials: exactness, counts by formula, and rows that can be stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.spline import partition, toy
from lib.spline import toy as trials
from lib.store import plain
from lib.study import generator

NOWHERE = Path("unused.safetensors")
SMALL = {"seed": 0, "width": 8, "epochs": 8, "levels": [6, 2], "tuned_levels": [2], "tuning": [1, 2]}


@pytest.fixture(scope="module")
def pruned():
    return trials.pruned(SMALL, "cpu", NOWHERE)


@pytest.mark.parametrize("depth", [1, 3])
def test_random_networks_are_affine_in_every_region_and_dropping_a_node_moves_no_first_line(depth):
    row = trials.exact({"seed": 1, "depth": depth, "width": 8}, "cpu", NOWHERE)
    assert max(row["map_error"], row["area_error"], row["bend_distance"], row["first_layer_moved"]) < 1e-9
    assert row["shared_codes"] == 0
    assert row["regions_after"] < row["regions"]
    assert row["count_off"] == (0 if depth == 1 else None)
    assert (row["deeper_moved"] is None) == (depth == 1)
    json.dumps({name: plain(value) for name, value in row.items()})


@pytest.mark.parametrize("seed", range(5))
def test_the_arrangement_formula_counts_what_the_splitter_finds(seed):
    batch = toy.initial([2, 12, 1], 1, generator(seed, "i"))
    found = partition.split(toy.module(batch), trials.BOX)
    assert trials.arrangement(batch[0][0][0], batch[0][1][0], trials.BOX) == len(found)


def test_a_pruned_row_has_every_method_and_level_once(pruned):
    cases = set(zip(pruned["method"], pruned["level"], strict=True))
    assert len(cases) == len(pruned["before"]) == len(pruned["arms_before"]) == 2 * len(trials.METHODS)
    assert set(pruned["tuned_method"]) == {*trials.TUNED, "rewound"}
    assert [len(after) for after in pruned["after"]] == [len(pruned["tuned_method"])] * 2
    assert all(0 <= value <= 100 for value in pruned["before"] + pruned["after"][1])
    json.dumps({name: plain(value) for name, value in pruned.items()})


def test_weight_pruning_loses_no_line_without_a_zero_row(pruned):
    assert pruned["vanished"] == 0
    assert pruned["parallel_magnitude"][2] > pruned["parallel_magnitude"][0] - 1e-9


@pytest.mark.parametrize("method", trials.METHODS)
def test_pruning_keeps_the_asked_number_of_nodes_and_the_shape(method):
    points = toy.draw(0)[0]
    batch = toy.initial([2, 8, 2], 1, generator(0, "i"))
    small = trials.without(batch, 3, method, 0, points)
    assert small[0][0].shape == (1, 8, 2)
    assert small[0][0][0].ne(0).any(1).sum() == 3
    assert small[1][0][0].ne(0).any(0).sum() == 3


def test_merging_a_duplicate_on_the_toy_changes_nothing():
    points = toy.draw(0)[0]
    batch = toy.initial([2, 6, 2], 1, generator(0, "i"))
    batch[0][0][0, 5], batch[0][1][0, 5] = 2 * batch[0][0][0, 2], 2 * batch[0][1][0, 2]
    before = toy.outputs(batch, points)
    merged = toy.outputs(trials.without(batch, 5, "merged", 0, points), points)
    alone = toy.outputs(trials.without(batch, 5, "signed", 0, points), points)
    assert (merged - before).abs().max() < 1e-5
    assert (alone - before).abs().max() > 0.05


def test_small_networks_are_measured_at_every_checkpoint_for_every_seed():
    row = trials.scratch({"seeds": [0, 1, 2], "level": 3, "checkpoints": [1, 3]}, "cpu", NOWHERE)
    assert np.shape(row["accuracy"]) == (2, 3)


def test_changes_are_measured_for_nodes_and_for_as_many_weights():
    row = trials.changed({"seed": 0, "width": 6, "epochs": 3, "ratios": [0.34]}, "cpu", NOWHERE)
    assert row["kind"] == ["nodes"] * 3 + ["weights"] * 2
    assert all(value > 0 for value in row["maps"])
    batch = toy.initial([2, 6, 6, 2], 1, generator(0, "i"))
    small = trials._without_weights(batch, 10, "magnitude", generator(0, "w"))
    gone = sum(int(b.eq(0).sum()) for b, _ in small)
    assert gone == 10
    kept = min(b[b != 0].abs().min() for b, _ in small)
    assert max(a[b == 0].abs().max() for (a, _), (b, _) in zip(batch, small, strict=True) if b.eq(0).any()) <= kept


def test_settling_of_a_network_that_does_not_learn_is_no_movement_at_all():
    spec = {"seed": 0, "width": 5, "epochs": 5, "side": 6, "half": 2.0}
    frozen = trials.settling(spec | {"rate": 0.0}, "cpu", NOWHERE)
    assert np.nanmax(frozen["recent"]) == 0
    assert np.isnan(frozen["recent"][:3]).all()
    moving = trials.settling(spec, "cpu", NOWHERE)
    assert moving["to_last"][-1] == 0
    assert moving["recent"][4] >= moving["step"][4]
    assert torch.isfinite(torch.tensor(moving["loss"])).all()
