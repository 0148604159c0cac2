"""Routes to a small network cost the same, the best subset is the best, and pruned networks keep their function."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.spline import contests, toy
from lib.store import plain
from lib.study import generator

NOWHERE = Path("unused.safetensors")


@pytest.mark.parametrize("depth", [1, 2])
def test_a_compact_network_computes_what_the_pruned_one_does(depth):
    points = toy.draw(0)[0]
    batch = toy.initial([2, *[8] * depth, 2], 1, generator(0, "i"))
    pruned = toy.without(batch, 3, "merged", 0, points)
    small = toy.compact(pruned)
    assert [len(bias[0]) for _, bias in small] == [3] * depth + [2]
    assert (toy.outputs(small, points) - toy.outputs(pruned, points)).abs().max() < 1e-6


@pytest.mark.parametrize("depth", [1, 2])
def test_each_line_goes_through_a_training_point(depth):
    points = toy.draw(0)[0]
    batch = contests.through_data(toy.initial([2, *[6] * depth, 2], 1, generator(0, "i")), points, generator(0, "d"))
    value = points
    for weight, bias in batch[:-1]:
        value = value @ weight[0].T + bias
        assert value.abs().amin(0).max() < 1e-5
        value = value.relu()


def test_every_route_trains_for_the_operations_of_training_from_scratch(monkeypatch):
    spent = []

    def counted(batch, points, labels, epochs, stream, rate=1.0):
        widths = [batch[0][0].shape[2], *(len(bias[0]) for _, bias in batch)]
        spent.append((len(batch[0][0]), epochs * contests.macs(widths)))

    monkeypatch.setattr(toy, "fit", counted)
    spec = {"seeds": [0, 1], "depth": 2, "width": 4, "epochs": 4000, "factors": [1.5, 4.0]}
    row = contests.routes(spec, "cpu", NOWHERE)
    whole = 4000 * contests.macs([2, 4, 4, 2])
    assert spent[:2] == [(2, whole)] * 2  # from scratch, and through data
    assert spent[2][1] + spent[3][1] == pytest.approx(whole, rel=0.01)  # layerwise
    for large, small in (spent[4:6], spent[6:8]):
        assert large[1] + small[1] == pytest.approx(whole, rel=0.01)
        assert (large[0], small[0]) == (2, 2 * len(contests.METHODS))
    assert row["route"] == ["scratch", "data", "layerwise"] + ["pruned"] * 6
    assert np.shape(row["accuracy"]) == (9, 2)


def test_routes_of_one_layer_have_no_layerwise_one_and_learn():
    spec = {"seeds": [1000, 1001], "depth": 1, "width": 6, "epochs": 40, "factors": [2.0]}
    row = contests.routes(spec, "cpu", NOWHERE)
    assert row["route"] == ["scratch", "data"] + ["pruned"] * 3
    assert row["method"] == ["", "", *contests.METHODS]
    assert min(map(np.mean, row["accuracy"])) > 55
    json.dumps({name: plain(value) for name, value in row.items()})


def test_the_best_subset_is_the_best_of_all_networks_without_the_other_nodes():
    spec = {"seed": 1000, "width": 6, "epochs": 30, "kept": 2, "tuning": 2}
    row = contests.optimum(spec, "cpu", NOWHERE)
    points, labels, *_ = toy.draw(1000)
    _, dense = toy.trained(spec, [2, 6, 2])
    pruned = [toy.without_nodes(dense, list(gone)) for gone in combinations(range(6), 4)]
    found = [100 * toy.accuracy(small, points, labels)[0] for small in pruned]
    assert row["subsets"] == 15
    assert row["best"] == pytest.approx(max(found)) and row["mean"] == pytest.approx(np.mean(found))
    for name, value in zip(row["method"], row["chosen"], strict=True):
        assert name == "merged" or min(abs(value - own) for own in found) < 1e-6
    subsets = [value for name, value in zip(row["method"], row["chosen_tuned"], strict=True) if name != "merged"]
    assert row["best_tuned"] >= max(subsets) - 1e-6
    json.dumps({name: plain(value) for name, value in row.items()})


def test_the_operations_of_a_network_are_the_products_of_its_widths():
    assert contests.macs([2, 4, 3, 2]) == 8 + 12 + 6
    assert not torch.equal(*(toy.initial([2, 3, 2], 1, generator(0, name))[0][0] for name in ("small", "large 2")))
