"""The places of lines: what does not learn does not move, and straight lines are as dense everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.spline import migration, partition, toy
from lib.store import plain
from lib.study import generator

NOWHERE = Path("unused.safetensors")
SPEC = {"seeds": [1000, 1001], "width": 4, "points": 30, "epochs": [0, 2, 6], "radii": [0.1, 0.3], "watched": 6}


@pytest.fixture(scope="module")
def few_centres():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migration, "CENTRES", 20)
        yield


def test_a_network_that_does_not_learn_keeps_its_lines_and_has_no_relative_early_bird(few_centres):
    row = migration.migrating(SPEC | {"rate": 0.0}, "cpu", NOWHERE)
    for name in ("density_data", "regions_data", "density_elsewhere"):
        values = np.reshape(row[name], (2, 3, 2))
        assert (values == values[:, :1]).all()
    assert np.max(row["from_start"]) == 0
    assert np.isnan(row["relative"]).all() and np.isnan(row["from_relative"]).all()
    assert row["released"] == [4, 4]  # the earliest that the rule allows


def test_rows_hold_every_seed_checkpoint_and_radius(few_centres):
    row = migration.migrating(SPEC | {"labels": "shuffled"}, "cpu", NOWHERE)
    assert np.shape(row["density_boundary"]) == np.shape(row["regions_random"]) == (2, 6)
    assert np.shape(row["accuracy"]) == np.shape(row["from_released"]) == (2, 3)
    assert all(start[0] == 0 and start[-1] > 0 for start in row["from_start"])
    assert all(min(regions) > 1 for regions in row["regions"])
    json.dumps({name: plain(value) for name, value in row.items()})


def test_networks_side_by_side_are_measured_as_alone(few_centres):
    together = migration.migrating(SPEC, "cpu", NOWHERE)
    alone = migration.migrating(SPEC | {"seeds": [1000]}, "cpu", NOWHERE)
    assert alone["density_data"][0] == pytest.approx(together["density_data"][0], rel=1e-4)
    assert alone["from_start"][0] == pytest.approx(together["from_start"][0], abs=1e-3)


def test_random_lines_are_as_dense_near_the_middle_as_near_a_corner():
    places = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    networks = [migration.random_lines(32, generator(seed, "lines")) for seed in range(100)]
    found = np.array([partition.local_complexity(network, places, 0.9)["density"] for network in networks])
    gap, error = (found[:, 0] - found[:, 1]).mean(), (found[:, 0] - found[:, 1]).std() / 10
    assert abs(gap) < 4 * error and error < 0.1 * found.mean()


def test_an_early_bird_keeps_the_code_of_the_epoch_in_which_a_rule_first_fires():
    birds, codes = {name: [None] for name in migration.EARLY_BIRDS}, np.zeros((5, 1, 3, 2), dtype=bool)
    codes[4] = True
    recent = np.array([[np.nan], [0.5], [0.3], [0.04], [0.01]])
    for epoch in range(5):
        migration._note(birds, recent[: epoch + 1], codes[epoch])
    assert birds["relative"][0][0] == 4 and birds["released"][0][0] == 4
    assert not birds["relative"][0][1].any()
    assert toy.WINDOW[0] == toy.WINDOW[1]  # which the grid of probes assumes
