"""The toy: training by hand equals PyTorch's, counts of lines are exact, and rows and pictures show what they claim."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib.spline import measures, partition, toy
from lib.store import plain
from lib.study import generator

WIDTHS = [2, 7, 5, 2]
NOWHERE = Path("unused.safetensors")
SMALL = {"seed": 0, "width": 8, "epochs": 8, "levels": [6, 2], "tuned_levels": [2], "tuning": [1, 2]}


def test_the_data_are_an_x_with_a_split_for_each_seed():
    points, labels, test_points, test_labels = toy.draw(0)
    assert (len(points), len(test_points)) == (1600, 400)
    assert points.abs().max() <= 5
    assert labels.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (test_labels == (test_points[:, 1].abs() > test_points[:, 0].abs())).all()
    assert not torch.equal(points, toy.draw(1)[0])
    assert torch.equal(points, toy.draw(0)[0])


def test_a_new_split_of_the_same_points_tests_a_network_on_points_it_was_trained_on():
    stream, seen = generator(0, "splits"), torch.zeros(toy.POINTS, dtype=torch.bool)
    shares = []
    for _ in range(10):  # the released code goes on training one network over such runs
        order = torch.randperm(toy.POINTS, generator=stream)
        shares.append(seen[order[: toy.TEST]].double().mean().item())
        seen[order[toy.TEST :]] = True
    assert shares[0] == 0 and shares[1] == pytest.approx(0.8, abs=0.06) and min(shares[3:]) > 0.97


def test_a_batch_trains_as_each_network_alone_does_with_autograd():
    points, labels, _, _ = toy.draw(0)
    batch = toy.initial(WIDTHS, 3, generator(0, "i"))
    models = [toy.module(batch, k) for k in range(3)]
    toy.fit(batch, points, labels, 2, generator(0, "order"))
    stream = generator(0, "order")
    order = [torch.randperm(1600, generator=stream) for _ in range(2)]
    for k, model in enumerate(models):
        optimizer = torch.optim.SGD(model.parameters(), toy.LR)
        for permutation in order:
            for chosen in permutation.split(toy.BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(points[chosen].double()), labels[chosen]).backward()
                optimizer.step()
        for mine, theirs in zip(toy.module(batch, k).parameters(), model.parameters(), strict=True):
            assert (mine - theirs).abs().max() < 1e-5


def test_networks_with_points_of_their_own_train_as_alone():
    sets = [toy.draw(seed)[:2] for seed in (0, 1)]
    batch = toy.initial(WIDTHS, 2, generator(0, "i"))
    alone = [toy.one(batch, k) for k in range(2)]
    both = [torch.stack(part) for part in zip(*sets, strict=True)]
    losses = toy.fit(batch, *both, 3, generator(0, "order"))
    assert losses[-1] < losses[0]
    for k, (points, labels) in enumerate(sets):
        toy.fit(alone[k], points, labels, 3, generator(0, "order"))
        for (W, b), (V, c) in zip(alone[k], batch, strict=True):
            assert (W[0] - V[k]).abs().max() < 1e-6
            assert (b[0] - c[k]).abs().max() < 1e-6


def test_removed_nodes_stay_away_and_narrow_networks_train_in_wide_batches():
    points, labels, test_points, _ = toy.draw(0)
    wide, narrow = toy.initial([2, 6, 2], 1, generator(0, "w")), toy.initial([2, 3, 2], 1, generator(0, "n"))
    pruned = toy.without_nodes(wide, [1, 4])
    together = toy.stacked([pruned, narrow])
    before = toy.outputs(narrow, test_points)
    assert (toy.outputs(together, test_points)[1] - before[0]).abs().max() < 1e-6
    toy.fit(together, points, labels, 3, generator(0, "o"))
    toy.fit(narrow, points, labels, 3, generator(0, "o"))
    assert together[0][0][0, [1, 4]].eq(0).all()
    assert (toy.outputs(together, test_points)[1] - toy.outputs(narrow, test_points)[0]).abs().max() < 1e-5


def test_accuracy_of_a_module_is_that_of_its_batch():
    points, labels, _, _ = toy.draw(0)
    batch = toy.initial([2, 6, 2], 2, generator(0, "w"))
    own = (toy.module(batch, 1)(points.double()).argmax(1) == labels).double().mean().item()
    assert toy.accuracy(batch, points, labels)[1] == pytest.approx(own, abs=1e-3)


def test_lines_are_counted_in_the_parameters():
    weight = torch.tensor([[1.0, 2], [2, 4], [-1, -2], [0, 3], [0, 0], [1, 0]])
    bias = torch.tensor([1.0, 2, -1, 1, 5, 0])
    assert toy.distinct_lines(weight, bias) == 3
    assert toy.parallel_share(weight) == pytest.approx(2 / 5)
    assert toy.distinct_lines(weight[4:5], bias[4:5]) == 0


@pytest.fixture(scope="module")
def pruned():
    return toy.pruned(SMALL, "cpu", NOWHERE)


@pytest.mark.parametrize("depth", [1, 3])
def test_random_networks_are_affine_in_every_region_and_dropping_a_node_moves_no_first_line(depth):
    row = toy.exact({"seed": 1, "depth": depth, "width": 8}, "cpu", NOWHERE)
    assert max(row["map_error"], row["area_error"], row["bend_distance"], row["first_layer_moved"]) < 1e-9
    assert row["shared_codes"] == 0
    assert row["regions_after"] < row["regions"]
    assert row["count_off"] == (0 if depth == 1 else None)
    assert (row["deeper_moved"] is None) == (depth == 1)
    json.dumps({name: plain(value) for name, value in row.items()})


@pytest.mark.parametrize("seed", range(5))
def test_the_arrangement_formula_counts_what_the_splitter_finds(seed):
    batch = toy.initial([2, 12, 1], 1, generator(seed, "i"))
    found = partition.split(toy.module(batch), toy.BOX)
    assert toy.arrangement(batch[0][0][0], batch[0][1][0], toy.BOX) == len(found)


def test_a_pruned_row_has_every_method_and_level_once(pruned):
    cases = set(zip(pruned["method"], pruned["level"], strict=True))
    assert len(cases) == len(pruned["before"]) == len(pruned["arms_before"]) == 2 * len(toy.METHODS + toy.CHOICES)
    assert set(pruned["tuned_method"]) == {*toy.TUNED, "rewound"}
    assert [len(after) for after in pruned["after"]] == [len(pruned["tuned_method"])] * 2
    assert all(0 <= value <= 100 for value in pruned["before"] + pruned["after"][1])
    json.dumps({name: plain(value) for name, value in pruned.items()})


def test_weight_pruning_loses_no_line_without_a_zero_row(pruned):
    assert pruned["vanished"] == 0
    assert pruned["parallel_magnitude"][2] > pruned["parallel_magnitude"][0] - 1e-9


@pytest.mark.parametrize("depth", [1, 2])
def test_layers_of_a_batch_are_those_of_its_module(depth):
    batch = toy.initial([2, *[5] * depth, 2], 1, generator(0, "i"))
    for own, wanted in zip(toy.layers(batch), measures.layers(toy.module(batch)), strict=True):
        assert (own.name, own.reader, own.norm) == (wanted.name, wanted.reader, wanted.norm)
        for name in ("weights", "biases", "outgoing", "scale"):
            assert (getattr(own, name) - getattr(wanted, name)).abs().max() < 1e-12


def dropped(batch, kept, method):
    return [node for _, node, _ in toy.chosen(batch, kept, method, generator(0, "n"), toy.draw(0)[0])]


def test_choices_of_the_score_weigh_offsets_twins_and_norms_as_they_say():
    # Rows 0 and 1 are parallel with distant offsets, rows 2 and 3 are 0.4 apart in angle and have one offset.
    angle = torch.tensor([0.0, 0.0, 1.0, 1.4])
    rows = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([1.0, 1.1, 1.0, 1.1])[:, None]
    reader = torch.ones(1, 2, 4)
    reader[0, :, [0, 2]] = 2.0  # the smaller rows have the larger product of norms
    batch = [(rows[None], torch.tensor([[0.1, 0.4, 0.0, 0.0]])), (reader, torch.zeros(1, 2))]
    assert dropped(batch, 3, "raw, rho = 0.25") == [1]
    assert dropped(batch, 3, "raw, rho = 4") == [3]
    assert dropped(batch, 3, "raw") == [3]
    assert dropped(batch, 3, "raw, weaker by row") == [2]
    assert sorted(dropped(batch, 2, "magnitude")) == [0, 2]
    assert sorted(dropped(batch, 2, "magnitude, both norms")) == [1, 3]


@pytest.mark.parametrize("method", toy.METHODS + toy.CHOICES)
def test_pruning_keeps_the_asked_number_of_nodes_and_the_shape(method):
    points = toy.draw(0)[0]
    batch = toy.initial([2, 8, 2], 1, generator(0, "i"))
    small = toy.without(batch, 3, method, 0, points)
    assert small[0][0].shape == (1, 8, 2)
    assert small[0][0][0].ne(0).any(1).sum() == 3
    assert small[1][0][0].ne(0).any(0).sum() == 3


def test_merging_a_duplicate_on_the_toy_changes_nothing():
    points = toy.draw(0)[0]
    batch = toy.initial([2, 6, 2], 1, generator(0, "i"))
    batch[0][0][0, 5], batch[0][1][0, 5] = 2 * batch[0][0][0, 2], 2 * batch[0][1][0, 2]
    before = toy.outputs(batch, points)
    merged = toy.outputs(toy.without(batch, 5, "merged", 0, points), points)
    alone = toy.outputs(toy.without(batch, 5, "signed", 0, points), points)
    assert (merged - before).abs().max() < 1e-5
    assert (alone - before).abs().max() > 0.05


def test_small_networks_are_measured_at_every_checkpoint_for_every_seed():
    row = toy.scratch({"seeds": [0, 1, 2], "level": 3, "checkpoints": [1, 3]}, "cpu", NOWHERE)
    assert np.shape(row["accuracy"]) == (2, 3)
    assert len(row["arms"]) == 3


def test_changes_are_measured_for_nodes_and_for_as_many_weights():
    row = toy.changed({"seed": 0, "width": 6, "epochs": 3, "ratios": [0.34]}, "cpu", NOWHERE)
    assert row["kind"] == ["nodes"] * 3 + ["weights"] * 2
    assert all(value > 0 for value in row["maps"])
    batch = toy.initial([2, 6, 6, 2], 1, generator(0, "i"))
    small = toy.without_weights(batch, 10, "magnitude", generator(0, "w"))
    gone = sum(int(b.eq(0).sum()) for b, _ in small)
    assert gone == 10
    kept = min(b[b != 0].abs().min() for b, _ in small)
    assert max(a[b == 0].abs().max() for (a, _), (b, _) in zip(batch, small, strict=True) if b.eq(0).any()) <= kept


def test_settling_of_a_network_that_does_not_learn_is_no_movement_at_all():
    spec = {"seed": 0, "width": 5, "epochs": 5, "side": 6, "half": 2.0}
    frozen = toy.settling(spec | {"rate": 0.0}, "cpu", NOWHERE)
    assert np.nanmax(frozen["recent"]) == 0
    assert np.isnan(frozen["recent"][:3]).all()
    moving = toy.settling(spec, "cpu", NOWHERE)
    assert moving["to_last"][-1] == 0
    assert moving["recent"][4] >= moving["step"][4]
    assert torch.isfinite(torch.tensor(moving["loss"])).all()


def picture(**spec) -> dict:
    row = toy.picture(spec, "cpu", NOWHERE)
    json.dumps({name: plain(value) for name, value in row.items()})
    return row


def boundary(row: dict, place: int) -> np.ndarray:
    return np.reshape(row["boundary"][place], (-1, 2, 2))


def test_node_pruning_ends_in_an_exact_square_on_two_diagonals():
    row = picture(kind="nodes")
    assert row["regions"][-1] == 4
    assert np.abs(boundary(row, -1)).max(2) == pytest.approx(1)
    assert sorted(row["regions"], reverse=True) == row["regions"]


def test_weight_pruning_keeps_all_four_lines_and_ends_parallel_to_the_axes():
    row = picture(kind="weights")
    for place in range(4):
        lines = np.reshape(row["lines"][place], (-1, 6))
        assert set(lines[:, 5]) == {0, 1, 2, 3}
    step = np.abs(lines[:, 2:4] - lines[:, :2])
    assert step.min(1) == pytest.approx(0)


def test_two_of_eight_bundled_splines_are_left_one_of_each_bundle():
    row = picture(kind="bundles", seed=2)
    assert len(row["kept"]) == 2
    assert row["kept"][0] % 2 != row["kept"][1] % 2
    assert max(row["score"][::2]) < 0.3 < min(row["score"][1::2])


def test_film_and_pruned_panels_follow_their_epochs_and_levels():
    film = picture(kind="film", seed=0, width=6, frames=[0, 2, 3])
    assert film["title"] == ["epoch 0", "epoch 2", "epoch 3"]
    assert len(film["loss"]) == 3
    both = picture(kind="both", seed=0, width=6, epochs=2, ratios=[0.0, 0.5])
    assert both["ratio"] == [0, 0, 0.5, 0.5] and both["lines"][0] == both["lines"][1]
    units = [len(set(np.reshape(lines, (-1, 6))[:, 5])) for lines in both["lines"]]
    assert units[2] <= 3 and units[3] > units[2]
    row = picture(kind="pruned", seed=0, width=6, epochs=2, levels=[4, 2], method="magnitude", tuning=1)
    assert len(row["title"]) == 5
    assert [
        len(set(np.reshape(lines, (-1, 6))[:, 5])) <= k for lines, k in zip(row["lines"], (6, 4, 2, 4, 2), strict=True)
    ] == [True] * 5


def test_the_deep_picture_has_lines_of_three_layers():
    assert set(np.reshape(picture(kind="deep", seed=2)["lines"][0], (-1, 6))[:, 4]) == {0, 1, 2}
