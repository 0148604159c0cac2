"""Greedy removal keeps one of each bundle; quotas, controls and surgery."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lib import channels, models
from lib.parameters import SCORES
from lib.provenance import CompanionError
from lib.spline import measures
from lib.study import generator


def network(rows: list[list[float]], outgoing: list[float]) -> nn.Sequential:
    """Hidden units w1 x + w2 y + b from rows (w1, w2, b), and one output."""
    model = nn.Sequential(nn.Linear(2, len(rows)), nn.ReLU(), nn.Linear(len(rows), 1)).double()
    table = torch.tensor(rows).double()
    model[0].weight.data, model[0].bias.data = table[:, :2].clone(), table[:, 2].clone()
    model[2].weight.data = torch.tensor([outgoing]).double()
    return model


def randomised(name: str, **options) -> nn.Module:
    model = models.build(name, channels=1, size=8, **options).double().eval()
    stream = generator(0, "norms")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=stream)
            module.running_var.uniform_(0.5, 2, generator=stream)
            module.weight.data.uniform_(0.3, 1.5, generator=stream)
            module.bias.data.normal_(generator=stream)
    return model


PROBES = torch.randn(40, 1, 8, 8, generator=generator(0, "probes"), dtype=torch.float64)


def test_two_bundles_leave_two_survivors():
    rows = [[1, 0, 0.1], [1, 0.02, 0.1], [1, -0.02, 0.1], [0, 1, -0.2], [0.02, 1, -0.2]]
    found = measures.layers(network(rows, [1, 2, 1, 1, 3]))
    dropped = measures.choose(found, 0.6, "signed")
    kept = set(range(5)) - {node for _, node, _ in dropped}
    assert len(kept) == 2
    assert len(kept & {0, 1, 2}) == len(kept & {3, 4}) == 1
    assert kept == {1, 4}  # the stronger of each pair stays


def test_opposite_nodes_are_twins_without_a_sign_only():
    found = measures.layers(network([[1, 0, 0], [-1, 0, 0], [0.6, 0.8, 0.5]], [1, 1, 1]))
    assert measures.choose(found, 0.34, "normalised")[0][1] in (0, 1)
    scores = measures.redundancy(found[0].weights, found[0].biases, "signed")
    assert scores[0, 1] == 2


@pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
@pytest.mark.parametrize("method", SCORES)
def test_every_method_removes_the_asked_share_of_each_layer_and_the_network_still_runs(name, method):
    model = randomised(name, width=0.5)
    found = measures.layers(model, 8)
    small = measures.remove(model, 0.5, method, size=8, generator=generator(0, "nodes"))
    modules = dict(small.named_modules())
    assert [len(modules[own.name].weight) for own in found] == [len(own) - len(own) // 2 for own in found]
    with torch.no_grad():
        assert small.eval()(PROBES).shape == (40, 10)


@pytest.mark.parametrize("method", ["signed", "magnitude", "random"])
def test_the_global_scope_removes_the_asked_share_of_all_and_empties_no_layer(method):
    found = measures.layers(randomised("digits_cnn", width=0.5), 8)
    for ratio in (0.3, 0.99):
        dropped = measures.choose(found, ratio, method, "global", generator=generator(0, "nodes"))
        assert len(dropped) == len(set(dropped)) == min(int(ratio * 96), 92)
        gone = [sum(layer == k for layer, _, _ in dropped) for k in range(len(found))]
        assert all(n < len(own) for n, own in zip(gone, found, strict=True))


def test_the_layers_of_a_resnet_are_the_convolutions_inside_blocks():
    found = measures.layers(models.build("resnet20"))
    assert [own.name for own in found] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(3)]
    single = measures.layers(models.build("resnet8"))
    assert [own.name for own in single] == [f"layer{s}.0.conv1" for s in (1, 2, 3)]  # one block a stage: same rule
    assert {own.norm.rpartition(".")[2] for own in found} == {"bn1"}
    assert {own.reader.rpartition(".")[2] for own in found} == {"conv2"}


@pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
def test_removing_merged_duplicates_changes_nothing_and_removing_them_alone_does(name):
    model = randomised(name, width=0.25)
    for own in measures.layers(model, 8):
        writer, norm = model.get_submodule(own.name), model.get_submodule(own.norm)
        half = len(own) // 2
        for tensor in (writer.weight.data, norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor[half : 2 * half] = tensor[:half]
        norm.weight.data[half : 2 * half] *= 2.7  # node k + half is 2.7 times node k
        norm.bias.data[half : 2 * half] *= 2.7
    with torch.no_grad():
        before = model(PROBES)
        merged = measures.remove(model, 0.5, "merged", size=8).eval()(PROBES)
        alone = measures.remove(model, 0.5, "signed", size=8).eval()(PROBES)
    assert (merged - before).abs().max() < 1e-10
    assert (alone - before).abs().max() > 0.1


def test_a_node_without_a_hyperplane_goes_first_and_leaves_its_constant():
    model = network([[1, 0, 0.5], [0, 0, 2.0], [0, 1, -0.5], [1, 1, 0]], [1, 3, 1, 1])
    probes = torch.randn(50, 2, generator=generator(0, "x"), dtype=torch.float64)
    found = measures.layers(model)
    assert measures.choose(found, 0.25, "signed") == [(0, 1, -1)]
    small = measures.remove(model, 0.25, "signed")
    assert (small(probes) - model(probes)).abs().max() < 1e-12
    deep = randomised("digits_cnn", width=0.25)
    deep.features[1].weight.data[2] = 0
    with torch.no_grad():
        whole = deep.features[:5](PROBES)
        cut = measures.without(deep, measures.layers(deep, 8), [(0, 2, -1)], size=8).eval().features[:5](PROBES)
    assert (whole - cut)[:, :, 1:-1, 1:-1].abs().max() < 1e-10


def test_controls_take_what_they_name():
    model = network([[3, 0, 0], [0, 0.1, 0], [1, 1, 0], [1, 0.9, 0.1]], [1, 1, 1, 1])
    found = measures.layers(model)
    assert measures.choose(found, 0.25, "magnitude") == [(0, 1, -1)]
    assert measures.choose(found, 0.25, "median")[0][1] in (2, 3)
    deep = randomised("digits_cnn", width=0.25)
    deep.features[4].weight.data[5] = -0.01
    found = measures.layers(deep, 8)
    assert (1, 5, -1) in measures.choose(found, 0.2, "slimming", "global")


def test_ratios_methods_and_scopes_that_do_not_exist_are_refused():
    model = network([[1, 0, 0], [0, 1, 0]], [1, 1])
    with pytest.raises(ValueError, match="each layer keeps at least one"):
        measures.remove(model, 1.0, "signed")
    with pytest.raises(CompanionError, match="score .sigend'.*signed"):
        measures.remove(model, 0.5, "sigend")
    with pytest.raises(CompanionError, match="scope"):
        measures.remove(model, 0.5, "signed", "local")
    with pytest.raises(ValueError, match="pass generator"):
        measures.remove(model, 0.5, "random")


def test_the_network_given_is_left_alone():
    model = randomised("digits_cnn", width=0.25)
    state = copy.deepcopy(model.state_dict())
    measures.remove(model, 0.5, "merged", size=8)
    assert all((value == state[name]).all() for name, value in model.state_dict().items())
    assert channels.find(model, 8).dense.tolist() == [len(own) for own in measures.layers(model, 8)]


@pytest.mark.parametrize(("room", "total"), [([7, 4], 11), ([11, 8], 12)])
def test_greedy_removal_takes_the_closest_pair_of_what_is_left_each_time(room, total):
    stream = torch.Generator().manual_seed(4)
    found, scores = [], []
    for nodes in (12, 9):
        weights, outgoing = torch.randn(nodes, 3, generator=stream), torch.randn(nodes, 2, generator=stream)
        parts = (weights, torch.zeros(nodes), outgoing, torch.ones(nodes))
        found.append(measures.Layer("a", "b", "", *(part.double() for part in parts)))
        rough = torch.randint(6, (nodes, nodes), generator=stream).double()  # with many ties
        scores.append(rough + rough.T)
    left = [set(range(len(layer))) for layer in found]
    dropped, room = measures.twins(found, scores, room, total), list(room)
    assert len(dropped) == total
    for layer, gone, kept in dropped:
        pairs = {
            k: min(float(scores[k][a, b]) for a in left[k] for b in left[k] if a != b) for k in (0, 1) if room[k] > 0
        }
        assert scores[layer][gone, kept] == pairs[layer] == min(pairs.values())
        strength = [(found[layer].weights[n].norm() * found[layer].outgoing[n].norm()).item() for n in (kept, gone)]
        assert strength[0] >= strength[1] and {gone, kept} <= left[layer]
        left[layer].discard(gone)
        room[layer] -= 1


NAMED = {
    "vgg16": ({"width": 0.125}, 13, 12 + 1),
    "preresnet101": ({"width": 0.25}, 11 * 3 * 3 + 1, 11 * 3 * 2),
    "resnet18": ({}, 20, 8),
    "alexnet-ungrouped": ({}, 5, 5 + 2),
    "resnet20": ({"width": 0.5}, 19, 9),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_network_is_coded_compared_and_pruned(name):
    options, coded, prunable = NAMED[name]
    model, other = (models.build(name, **options, seed=seed).eval() for seed in (0, 1))
    probes = torch.randn(2, 3, 32, 32, generator=generator(0, "probes"))
    codes = [measures.activation_codes(network, probes) for network in (model, other)]
    assert len(codes[0].names) == coded
    distance = measures.code_distance(*codes)
    assert ((0 < distance) & (distance < 1)).all()
    found = measures.layers(model)
    assert len(found) == prunable
    method = "magnitude" if name.startswith("alexnet") else "signed"  # all pairs of 4,096 nodes take too long here
    small = measures.remove(model, 0.5, method).eval()
    modules = dict(small.named_modules())
    assert [len(modules[own.name].weight) for own in found] == [len(own) - len(own) // 2 for own in found]
    with torch.no_grad():
        assert np.isfinite(small(probes).numpy()).all()
    assert models.count_parameters(small) < models.count_parameters(model)


def test_alexnet_is_coded_in_its_five_convolutions_and_its_groups_are_refused():
    model = models.build("alexnet").eval()
    codes = measures.activation_codes(model, torch.randn(1, 3, 32, 32, generator=generator(0, "probes")))
    assert len(codes.names) == 5
    with pytest.raises(ValueError, match="ungrouped and depthwise"):
        measures.layers(model)


class Silent(nn.Module):
    """A convolution whose maps two layers read: none of its nodes can go on its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return (self.second(x) + self.third(x)).mean((2, 3))


REFUSED = {
    "layer 0 go into GELU": lambda: nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 2)),
    "layer 0 go into ReLU6": lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU6(), nn.Conv2d(5, 2, 3)
    ),
    "layer features.0.0 go into ReLU6": lambda: models.build("mobilenet_v2"),
    "cannot be followed": lambda: models.build("efficientnet_lite0"),
    "Silent has no layer whose nodes": Silent,
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_networks_whose_nodes_do_not_draw_one_line_each_are_refused_and_not_returned_whole(sentence):
    with pytest.raises(CompanionError, match=sentence):
        measures.remove(REFUSED[sentence]().eval(), 0.5, "magnitude")


def test_identity_and_dropout_on_the_way_to_a_relu_are_looked_through():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    parts = [plain[0], nn.Identity(), plain[1], nn.Dropout(), nn.Identity(), *plain[2:]]
    longer = nn.Sequential(*parts).eval()
    small = [measures.remove(model.eval(), 0.5, "signed", size=8) for model in (plain, longer)]
    assert small[1][0].out_channels == 2
    probes = torch.randn(3, 1, 8, 8, generator=generator(0, "x"))
    assert torch.equal(small[0](probes), small[1](probes))
