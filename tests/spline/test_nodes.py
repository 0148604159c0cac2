"""Idle nodes can be skipped at equal outputs; directions keep what they guarantee; shapes are those of networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import channels, models, parameters
from lib.spline import measures, nodes, trials
from lib.store import plain
from lib.study import generator

SPEC = {
    "dataset": "digits", "network": "digits_cnn", "width": 0.25, "limit": 64, "test_images": 50, "seed": 1000,
    "epochs": 6, "lr": 0.05, "batch_size": 32, "weight_decay": 1e-4, "side": 3, "epoch": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def counted(layer: nn.Conv2d, inputs: torch.Tensor) -> int:
    """Products with inputs that are not zero, one by one."""
    (top, left), (height, width), total = layer.padding, layer.kernel_size, 0
    (down, right), (rows, columns) = layer.stride, layer(inputs).shape[2:]
    for _, y, x in (inputs[0] != 0).nonzero().tolist():
        reads = [
            (i, j)
            for i in range(rows)
            for j in range(columns)
            if 0 <= y + top - i * down < height and 0 <= x + left - j * right < width
        ]
        total += len(reads) * layer.out_channels // layer.groups
    return total


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": 1}, {"kernel_size": (3, 1), "padding": (1, 0)}, {"groups": 2}], ids=str
)
def test_products_are_those_that_a_loop_counts(options):
    stream = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(4, 6, **({"kernel_size": 3} | options))
    inputs = torch.randn(1, 4, 5, 6, generator=stream).relu()
    assert nodes.products(layer, inputs).tolist() == [counted(layer, inputs)]


def test_without_padding_all_products_are_the_macs_of_the_one_counter():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 2, stride=2), nn.Flatten(), nn.Linear(36, 2))
    found = nodes.operations(model, torch.randn(2, 3, 8, 8), torch.Generator().manual_seed(0))
    assert sum(found["dense"]) == models.count_macs(model, (1, 3, 8, 8))


def test_a_known_code_leaves_the_network_without_its_idle_filters():
    """Filters that are idle for the one image are pruned; what is left costs what `known` says."""
    model = models.build("digits_cnn", channels=1, size=8, width=0.25, seed=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data = torch.linspace(-6, 2, len(module.bias))
        elif isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
    model = nn.Sequential(*model.features[:6]).append(nn.Conv2d(8, 4, 2)).eval()
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    found = nodes.operations(model, image, torch.Generator().manual_seed(0))
    with nodes.watched(model) as seen:
        expected = model(image)
    kept = {
        writer: (seen[reader] != 0).flatten(2).any(2)[0].nonzero().flatten()
        for writer, reader in (("0", "3"), ("3", "6"))
    }
    assert all(0 < len(alive) < 8 for alive in kept.values())
    small = channels.keep(model, {name: alive.tolist() for name, alive in kept.items()}, size=8)
    assert sum(found["known"]) == pytest.approx(models.count_macs(small, (1, 1, 8, 8)))
    assert torch.allclose(small(image), expected, atol=1e-6)
    assert sum(found["dense"]) == models.count_macs(model, (1, 1, 8, 8))


def test_ways_of_skipping_are_ordered_and_the_first_layer_is_paid_for():
    model = models.build("digits_cnn", channels=1, size=8, width=0.5, seed=1)
    found = nodes.operations(model, torch.randn(6, 1, 8, 8), torch.Generator().manual_seed(0), batch_size=4)
    ways = {way: np.array(found[way]) for way in nodes.WAYS}
    for less, more in (("position", "whole"), ("whole", "static"), ("static", "dense"), ("known", "whole")):
        assert (ways[less] <= ways[more]).all()
    assert ways["position"][0] == ways["dense"][0]
    again = nodes.operations(model, torch.zeros(1, 1, 8, 8), torch.Generator().manual_seed(0))
    assert again["dense"] == found["dense"] and again["static"] == again["whole"]


@pytest.mark.parametrize("name", ["digits_cnn", "resnet8", "mobilenet_v2", "mlp"])
def test_outputs_stay_the_same_without_idle_channels(name):
    model = models.build(name, channels=1, size=16, seed=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(-2.0)  # so that whole maps are idle
    images = torch.randn(3, 1, 16, 16)
    assert nodes.skipping_error(model, images) < 1e-12


def test_a_trained_network_and_the_toy_skip_at_equal_outputs(folder):
    row = nodes.skipped(SPEC | {"images": 20}, "cpu", Path("unused"), folder=folder)
    toy = nodes.toy_skipped({"seed": 1000, "width": 10, "epochs": 5}, "cpu", Path("unused"))
    for found in (row, toy):
        json.dumps({name: plain(value) for name, value in found.items()}, allow_nan=False)
        assert found["error"] < 1e-12
        assert 0 < np.sum(found["position"]) < np.sum(found["dense"])
    assert toy["dense"] == [20.0, 20.0] and toy["position"] == toy["whole"] and toy["known"][0] == toy["known"][1]


ROWS = torch.randn(12, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64) @ torch.diag(
    0.8 ** torch.arange(30.0, dtype=torch.float64)
)


def test_leading_directions_keep_inner_products_within_the_tails():
    unit = F.normalize(ROWS, dim=1)
    for dim in (1, 4, 12):
        small = measures.coordinates(unit, dim)
        tails = (1 - small.square().sum(1)).clamp_min(0).sqrt()
        assert ((small @ small.T - unit @ unit.T).abs() <= tails[:, None] * tails + 1e-12).all()
    assert torch.allclose(small @ small.T, unit @ unit.T)


def test_random_directions_keep_inner_products_on_average():
    draws = [measures.coordinates(ROWS, 8, "random", generator=generator(s, "x")) for s in range(2000)]
    mean = torch.stack([small @ small.T for small in draws]).mean(0)
    assert (mean - ROWS @ ROWS.T).abs().max() < 0.1 * (ROWS @ ROWS.T).diagonal().max()


def test_so_many_random_directions_keep_the_error_as_often_as_is_said():
    needed = nodes.directions_needed(12, 0.9)
    unit = F.normalize(ROWS, dim=1)
    errors = []
    for seed in range(200):
        small = measures.coordinates(unit, needed, "random", generator=generator(seed, "y"))
        errors.append(float((small @ small.T - unit @ unit.T).abs().fill_diagonal_(0).max()))
    assert np.mean(np.array(errors) <= 0.9) >= 0.95
    assert nodes.directions_needed(64, 0.1) > nodes.directions_needed(64, 0.5) > nodes.directions_needed(8, 0.5)


def test_directions_of_means_span_the_means():
    means = torch.randn(4, 30, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    inside = torch.randn(5, 4, dtype=torch.float64) @ means
    small = measures.coordinates(inside, 4, "means", means=means)
    assert torch.allclose(small @ small.T, inside @ inside.T)
    assert torch.allclose(measures.lengthened(small[:, :2], inside).norm(dim=1), inside.norm(dim=1))
    with pytest.raises(ValueError, match="cannot be reduced to 5"):
        measures.coordinates(inside, 5, "means", means=means)
    with pytest.raises(ValueError, match="'tsne'.*pca"):
        measures.coordinates(inside, 2, "tsne")


def test_all_directions_keep_the_whole_ranking_and_random_filters_know_nothing_of_the_images(folder):
    row = nodes.reduction(SPEC | {"images": 40, "dims": [2, 8], "ratio": 0.5}, "cpu", Path("unused"), folder=folder)
    json.dumps({name: plain(value) for name, value in row.items()}, allow_nan=False)
    entries = [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]
    eight = ("features.0", "features.3")  # layers of eight filters
    whole = [e for e in entries if e["kind"] == "none" or (e["kind"], e["dim"]) == ("pca", 8) and e["layer"] in eight]
    assert whole and all(e["rank"] > 0.999 and e["overlap"] == 1 and e["error"] < 1e-12 for e in whole)
    assert all(e["excess"] < 1e-12 for e in entries)
    assert {e["kind"] for e in entries} == {"none", *measures.REDUCTIONS}


def test_class_means_and_disagreement_are_those_of_a_direct_count(folder):
    dataset = trials.loaded(SPEC, "cpu")
    model = trials.snapshot(SPEC, 6, dataset, folder, "cpu")
    own = measures.layers(model, dataset.size)[0]
    images, labels = trials.normalised(dataset, slice(30)), dataset.test.labels[:30]
    patches = F.unfold(images, 3, padding=1).mean(2)
    expected = torch.stack([patches[labels == label].mean(0) for label in labels.unique()])
    assert torch.allclose(nodes.class_means(model, own.name, dataset, 30).float(), expected, atol=1e-6)
    active = (model.features[1](model.features[0](images)) > 0).transpose(0, 1).flatten(1)
    assert nodes.disagreement(model, own, dataset, 30)[2, 5] == pytest.approx(
        float((active[2] ^ active[5]).float().mean())
    )


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "resnet18", "resnet50"])
def test_shapes_are_those_of_the_networks(name):
    found = measures.layers(models.build(name))
    assert [(len(own), own.weights.shape[1]) for own in found] == nodes.SHAPES[name]


def test_every_shape_that_can_be_asked_for_exists():
    assert set(nodes.SHAPES) == set(parameters.SHAPES)


def test_random_filters_give_a_share_of_each_layer():
    row = nodes.filters({"network": "resnet20", "seed": 1000, "share_ratio": 0.5}, "cpu", Path("unused"))
    for name in ("share_trained_full", "share_trained_reduced", "share_random_full", "share_random_reduced"):
        assert np.multiply(row[name], row["width_of"]).sum() == sum(row["width_of"]) // 2
    assert row["share_trained_full"] != row["share_random_full"]


def test_random_filters_of_different_layers_are_drawn_independently(monkeypatch):
    seen = []
    monkeypatch.setattr(measures, "choose", lambda layers, *a, **options: seen.append(layers) or [])
    nodes.filters({"network": "resnet20", "seed": 1000, "share_ratio": 0.5}, "cpu", Path("unused"))
    for layers in seen:
        first, second = (F.normalize(own.weights, dim=1) for own in layers[:2])
        assert first.shape == second.shape
        assert not torch.allclose(first[0], second[0], atol=0.1)
