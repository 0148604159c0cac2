"""A network of one's own in one line for each paper: the old one stays, and what a layer tolerates is measured."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lib import channels, data, latent, models, spaces, spline, training, truncation
from lib.provenance import CompanionError
from tests.test_compare import network

SIZE = 32


@pytest.fixture(scope="module")
def model():
    network = models.build("resnet8", size=SIZE, seed=1)
    training.reestimate(network, [torch.randn(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))])
    return network.eval()


@pytest.fixture(scope="module")
def trained():
    """A small network that has learnt something, and normalised images with their labels."""
    digits = data.load("digits", limit=600)
    network = models.build("digits_cnn", channels=1, size=8)
    training.fit(network, digits, epochs=6, seed=0, lr=0.05, batch_size=32, augment=False)
    images = data.normalise(digits.test.images, digits.mean, digits.std)
    return network.eval(), images, digits.test.labels


CALLS = {
    "latent": lambda model: latent.sparsify(model, "lowest", 0.5),
    "truncation": lambda model: truncation.compress(model, truncation.plan(model, 0.5)),
    "spaces": lambda model: spaces.prune(model, 0.5),
    "spline": lambda model: spline.merge(model, 0.5),
}


@pytest.mark.parametrize("paper", CALLS)
def test_one_line_gives_a_new_network_that_computes_and_says_what_it_did(paper, model, capsys):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    small = CALLS[paper](model)
    said = capsys.readouterr().out
    assert said.startswith(f"{paper}.") and said.count("\n") == 1
    assert small is not model and not {*small.parameters()} & {*model.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    assert small.eval()(torch.randn(2, 3, SIZE, SIZE)).shape == (2, 10)


@pytest.mark.parametrize("paper", CALLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_and_frozen_parameters_are_kept(paper, dtype, model):
    own = deepcopy(model).to(dtype)
    own.layer1[0].conv1.weight.requires_grad_(False)
    small = CALLS[paper](own)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert not any(p.requires_grad for p in small.layer1[0].conv1.parameters())
    assert all(p.requires_grad for p in small.layer2[0].conv1.parameters())


def test_sparse_weights_are_those_of_pytorchs_own_pruning(model):
    sparse = latent.sparsify(model, "lowest", 0.3)
    for name, layer in deepcopy(model).named_modules():
        if isinstance(layer, channels.LAYERS):
            prune.l1_unstructured(layer, "weight", 0.3)
            assert torch.equal(sparse.get_submodule(name).weight, layer.weight)


def test_factors_multiply_to_the_best_kernel_of_the_rank(model):
    small = truncation.compress(model, {"layer1.0.conv1": ("OUT", 5), "layer2.0.conv2": ("tucker2", (8, 8))})
    kernel = truncation.forms.dense_kernel(small.layer1[0].conv1)
    assert torch.allclose(kernel, truncation.truncate(model.layer1[0].conv1.weight, "OUT", 5), atol=1e-5)
    assert len(small.layer2[0].conv2) == 3 and isinstance(small.layer3[0].conv1, nn.Conv2d)


def test_a_plan_keeps_within_its_share_and_a_plan_of_a_study_is_taken(model):
    plan = truncation.plan(model, 0.4, "tucker2")
    assert len(plan) == 7 == len(truncation.plan(model, 0.4))
    for name, (form, ranks) in plan.items():
        weight = model.get_submodule(name).weight
        assert truncation.forms.parameters(weight.shape, form, ranks) <= 0.4 * weight.numel()
    listed = {"layers": ["layer1.0.conv1"], "forms": ["OUT+IN"], "ranks": [[8, 8]]}
    assert len(truncation.compress(model, listed).layer1[0].conv1) == 3


def test_a_linear_layer_becomes_two_linear_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 3))
    small = truncation.compress(model, {"1": ("OUT", 40)})
    x = torch.randn(4, 3, 4, 4)
    assert torch.allclose(small(x), model(x), atol=1e-5) and isinstance(small[1][0], nn.Linear)
    with pytest.raises(ValueError, match="1: A linear layer cannot take the form 'cp'"):
        truncation.compress(model, {"1": ("cp", 4)})


def test_pruned_widths_are_those_of_the_recipe(model):
    groups = channels.find(model, SIZE)
    by_name = spaces.prune(model, {"layer2.0.conv1": 7})
    assert by_name.layer2[0].conv1.out_channels == 7 and by_name.layer1[0].conv1.out_channels == 16
    in_order = spaces.prune(model, np.maximum(groups.dense // 3, 1))
    assert [in_order.get_submodule(name).out_channels for name in groups.names] == (groups.dense // 3).tolist()


def test_merging_a_network_of_doubled_nodes_loses_nothing():
    torch.manual_seed(0)
    half = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    double = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    double[1].weight.data = torch.cat([half[1].weight.data, 2 * half[1].weight.data])
    double[1].bias.data = torch.cat([half[1].bias.data, 2 * half[1].bias.data])
    merged, x = spline.merge(double, 0.5), torch.randn(9, 12)
    assert merged[1].out_features == 6 and torch.allclose(merged(x), double(x), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model: latent.sparsify(model, "lowest", 1.0), r"conv1: The fraction to remove must be in \[0, 1\)"),
        (lambda model: truncation.compress(model, {"conv9": ("OUT", 2)}), "Unknown layer 'conv9'"),
        (lambda model: truncation.compress(model, {"conv1": ("OUT", 99)}), "conv1: "),
        (lambda model: truncation.plan(model, 1.5), "a share in"),
        (lambda model: spaces.prune(model, 0.0), r"a share in \(0, 1\]"),
        (lambda model: spaces.prune(model, {"conv9": 3}), "No channel group is called 'conv9'"),
        (lambda model: spline.merge(model, 1.0), "share of nodes"),
        (lambda model: spline.merge(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 0.5, size=2), "channel group"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(call, sentence, model):
    with pytest.raises(ValueError, match=sentence) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_the_weights_of_attention_are_left_alone():
    model = models.build("vit_tiny")
    name = "encoder.layers.encoder_layer_0.self_attention.out_proj"
    with pytest.raises(ValueError, match="attention reads this layer's weight itself"):
        truncation.compress(model, {name: ("OUT", 4)})
    assert name not in truncation.plan(model, 0.5)


@pytest.mark.parametrize("name", ["own", "vit_b_16", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_every_network_is_compressed_or_refused_in_one_sentence(name):
    own, size = network(name)
    calls = CALLS | {
        "spaces": lambda model: spaces.prune(model, 0.5, size=size),
        "spline": lambda model: spline.merge(model, 0.3, size=size),
    }
    for paper, call in calls.items():
        try:
            small = call(own).eval()
        except (ValueError, CompanionError) as error:
            assert paper in ("spaces", "spline") and "\n" not in str(error)
        else:
            assert small(torch.randn(2, 3, size, size)).shape == own(torch.randn(2, 3, size, size)).shape


def test_weights_that_are_not_finite_are_refused_by_layer(model):
    broken = deepcopy(model)
    broken.layer1[0].conv2.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer1.0.conv2: .*finite"):
        latent.sparsify(broken)


def test_tolerances_say_how_far_each_method_can_go(trained):
    model, images, labels = trained
    layer = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][1]
    model.train()
    accuracy = training.scores(model, images, labels)["accuracy"]
    assert accuracy > 80 and model.training
    tables = {
        "latent": latent.tolerance(model, layer, images, labels, allowed=2),
        "spaces": spaces.tolerance(model, layer, images, labels, allowed=2),
        "spline": spline.tolerance(model, layer, images, labels, allowed=2),
    }
    for table in tables.values():
        drops = accuracy - table["accuracy"]
        assert np.allclose(table["drop"], drops) and (table["n"] == len(images)).all()
        assert list(table["tolerated"]) == [bool((drops[: place + 1] <= 2).all()) for place in range(len(table))]
    assert tables["latent"]["ap2"].is_monotonic_increasing and tables["spaces"]["kept_macs"].is_monotonic_decreasing
    cuts = truncation.tolerance(model, layer, images, labels, allowed=2)
    assert set(cuts["cut"]) == set(truncation.CUTS) and cuts["accuracy"].unique() == pytest.approx([accuracy])
    for _, row in cuts[~cuts["censored"]].iterrows():
        kernel = model.get_submodule(layer).weight.detach()
        other = deepcopy(model)
        other.get_submodule(layer).weight.data = truncation.truncate(kernel, row["cut"], row["rank"])
        assert training.scores(other, images, labels)["accuracy"] >= accuracy - 2 - 1e-6
        assert truncation.relative_error(kernel, other.get_submodule(layer).weight) <= row["tolerance"] + 1e-6


def test_a_layer_without_tolerance_is_refused(trained):
    model, images, labels = trained
    for package in (latent, truncation, spaces, spline):
        with pytest.raises(ValueError, match="nothing"):
            package.tolerance(model, "nothing", images, labels)
