"""Batched training by hand equals PyTorch's, network by network; the data and the counts of lines are exact."""

import pytest
import torch
from torch.nn import functional as F

from lib.spline import toy
from lib.study import generator

WIDTHS = [2, 7, 5, 2]


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


def test_masked_weights_do_not_move():
    points, labels, _, _ = toy.draw(0)
    batch = toy.initial([2, 6, 2], 1, generator(0, "w"))
    masks = [(torch.rand(W.shape, generator=generator(0, "m")) > 0.5).float() for W, _ in batch]
    before = [W.clone() for W, _ in batch]
    toy.fit(batch, points, labels, 2, generator(0, "o"), masks)
    for (W, _), old, mask in zip(batch, before, masks, strict=True):
        assert torch.equal(W[mask == 0], old[mask == 0])
        assert not torch.equal(W[mask == 1], old[mask == 1])


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
