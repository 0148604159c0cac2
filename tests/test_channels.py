"""Counting against published and torch's counts, and surgery against masked networks and Torch-Pruning's own choice."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch_pruning as tp
import torchvision
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from lib import channels, models
from lib.study import generator

NETS = {
    "R20-A": ("resnet20", {"shortcut": "A"}, 32),
    "R20-B": ("resnet20", {"shortcut": "B"}, 32),
    "R32-A": ("resnet32", {"shortcut": "A"}, 32),
    "R56-A": ("resnet56", {"shortcut": "A"}, 32),
    "R56-B": ("resnet56", {"shortcut": "B"}, 32),
    "R50-ImageNet": ("resnet50", {"form": "imagenet", "classes": 1000, "size": 224}, 224),
    "R50-CIFAR": ("resnet50", {"form": "cifar"}, 32),
    "R50-stem-32": ("resnet50", {"form": "imagenet"}, 32),
    "VGG-16": ("vgg16", {"form": "cifar"}, 32),
    "MobileNetV2": ("mobilenet_v2", {"form": "imagenet", "classes": 1000, "size": 224}, 224),
    "ResNet-18": ("resnet18", {"form": "imagenet", "classes": 1000, "size": 224}, 224),
}
DENSE = {
    "R20-A": (40_551_040, 269_722),
    "R20-B": (40_813_184, 272_474),
    "R32-A": (68_862_592, 464_154),
    "R56-A": (125_485_696, 853_018),
    "R56-B": (125_747_840, 855_770),
    "R50-ImageNet": (4_089_184_256, 25_557_032),
    "R50-CIFAR": (1_297_829_888, 23_520_842),
    "R50-stem-32": (83_431_424, 23_528_522),
    "VGG-16": (313_201_664, 14_724_042),
    "MobileNetV2": (300_774_272, 3_504_872),
    "ResNet-18": (1_814_073_344, 11_689_512),
}
UNIFORM = {  # kept share of widths: MACs, parameters (specification of paper 3, exact pruned counts)
    ("R20-A", "internal", 0.75): (30_524_032, 202_738),
    ("R20-A", "internal", 0.5): (20_497_024, 135_754),
    ("R20-A", "internal", 0.25): (10_470_016, 68_770),
    ("R20-B", "internal", 0.5): (20_759_168, 138_506),
    ("R20-B", "all", 0.75): (23_040_480, 153_766),
    ("R20-B", "all", 0.5): (10_314_048, 68_786),
    ("R20-B", "all", 0.25): (2_633_888, 17_534),
    ("R56-A", "internal", 0.75): (94_225_024, 640_546),
    ("R56-A", "internal", 0.25): (31_703_680, 215_602),
    ("R56-B", "internal", 0.5): (63_226_496, 430_826),
    ("R56-B", "all", 0.5): (31_547_712, 215_282),
    ("R50-ImageNet", "internal", 0.75): (2_840_002_560, 18_262_120),
    ("R50-ImageNet", "internal", 0.5): (1_822_031_872, 12_381_864),
    ("R50-ImageNet", "all", 0.5): (1_052_311_552, 6_917_640),
    ("R50-ImageNet", "all", 0.25): (278_085_632, 1_993_976),
    ("R50-CIFAR", "internal", 0.75): (889_933_824, 16_225_930),
    ("R50-CIFAR", "internal", 0.25): (300_634_112, 5_880_074),
    ("VGG-16", "all", 0.75): (176_508_672, 8_285_146),
    ("VGG-16", "all", 0.5): (78_744_064, 3_684_842),
    ("VGG-16", "all", 0.25): (19_907_840, 923_130),
}
FLOORS = {  # kept MACs and parameters with every prunable group at one channel
    ("R20-A", "internal"): (0.048, 0.028),
    ("R56-A", "internal"): (0.040, 0.024),
    ("R50-ImageNet", "internal"): (0.120, 0.191),
    ("R50-CIFAR", "internal"): (0.095, 0.121),
    ("R56-B", "all"): (0.002, 0.001),
}


@pytest.fixture(scope="module")
def found():
    cache = {}

    def get(net, part="all"):
        if net not in cache:
            name, options, size = NETS[net]
            cache[net] = channels.find(models.build(name, **options), size)
        return cache[net].internal() if part == "internal" else cache[net]

    return get


@pytest.mark.parametrize("net", NETS)
def test_dense_counts_are_the_published_ones(net, found):
    assert tuple(int(value) for value in channels.count(found(net), found(net).dense)) == DENSE[net]


@pytest.mark.parametrize("case", UNIFORM, ids=str)
def test_uniform_widths_have_the_exact_counts_of_the_specification(case, found):
    net, part, share = case
    groups = found(net, part)
    widths = np.rint(share * groups.dense).astype(int)
    assert tuple(int(value) for value in channels.count(groups, widths)) == UNIFORM[case]


@pytest.mark.parametrize("case", FLOORS, ids=str)
def test_floors_with_one_channel_a_group(case, found):
    groups = found(*case)
    macs, parameters = channels.count(groups, np.ones(len(groups), dtype=int))
    assert (round(macs / DENSE[case[0]][0], 3), round(parameters / DENSE[case[0]][1], 3)) == FLOORS[case]


def test_numbers_of_groups(found):
    expected = {"R20-A": (9, 12), "R20-B": (9, 12), "R56-A": (27, 30), "R50-ImageNet": (32, 37), "VGG-16": (13, 13)}
    assert {net: (len(found(net, "internal")), len(found(net))) for net in expected} == expected
    assert found("R50-ImageNet").names[0] == "conv1" and "conv1" not in found("R50-ImageNet", "internal").names


def random_widths(groups, *names):
    random = torch.rand(len(groups), generator=generator(0, *names)).numpy()
    return np.maximum(1, np.rint(random * groups.dense)).astype(int)


@pytest.mark.parametrize("part", ("internal", "all"))
@pytest.mark.parametrize("net", ("R20-A", "R20-B", "R56-A", "VGG-16", "R50-CIFAR", "R50-stem-32", "MobileNetV2"))
def test_counts_equal_torchs_flop_counter_on_the_pruned_network(net, part, found):
    name, options, size = NETS[net]
    groups = found(net, part)
    widths = random_widths(groups, net, part)
    pruned = channels.prune(models.build(name, **options), dict(zip(groups.names, widths, strict=True)), size=size)
    expected = models.count_macs(pruned, (1, 3, size, size)), models.count_parameters(pruned)
    assert tuple(int(value) for value in channels.count(groups, widths)) == expected


def test_torch_prunings_own_counter_agrees_up_to_what_it_adds_for_batchnorm():
    model = models.build("resnet20", shortcut="B")
    groups = channels.find(model)
    pruned = channels.prune(model, dict(zip(groups.names, groups.dense // 2, strict=True)))
    _, parameters = tp.utils.count_ops_and_params(pruned, torch.zeros(1, 3, 32, 32))
    assert parameters == 68_786 == channels.count(groups, groups.dense // 2)[1]


def test_many_widths_are_counted_as_one_by_one(found):
    groups = found("R20-B")
    widths = np.stack([random_widths(groups, k) for k in range(20)]).reshape(4, 5, -1)
    macs, parameters = channels.count(groups, widths)
    assert macs.shape == (4, 5) and macs.dtype == np.int64
    assert macs[2, 3] == channels.count(groups, widths[2, 3])[0]
    assert np.allclose(channels.count(groups, widths.astype(float))[1], parameters, rtol=1e-12)


@pytest.mark.parametrize("block", (1, 3, 7))
def test_many_widths_are_counted_and_checked_in_blocks_of_any_size(block, found, monkeypatch):
    groups = found("R20-B")
    widths = np.stack([random_widths(groups, k) for k in range(7)])
    expected = np.transpose([channels.count(groups, one) for one in widths])
    monkeypatch.setattr(channels, "BLOCK", block)
    assert np.array_equal(channels.count(groups, widths), expected)
    assert all(counts.shape == (0,) for counts in channels.count(groups, widths[:0]))
    widths[-1, -1] = groups.dense[-1] + 1
    with pytest.raises(ValueError, match=f"Widths of {groups.names[-1]} must be between 1 and {groups.dense[-1]}"):
        channels.count(groups, widths)


def test_a_multilayer_perceptron_without_bias_has_as_many_macs_as_parameters():
    model = nn.Sequential(nn.Linear(20, 16, bias=False), nn.ReLU(), nn.Linear(16, 12, bias=False), nn.Linear(12, 3))
    model[-1].bias = None
    groups = channels.find(model)
    for widths in (groups.dense, np.array([5, 1])):
        macs, parameters = channels.count(groups, widths)
        assert macs == parameters


def test_convolutions_of_one_resolution_use_each_weight_once_a_pixel():
    layers = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ((3, 8), (8, 8), (8, 4))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 2))
    groups = channels.find(model, 8)
    macs, parameters = channels.count(groups.only(groups.names[:2]), np.array([[8, 8], [3, 5]]))
    head = 4 * 64 * 2
    assert np.array_equal(macs - head, 64 * (parameters - head - 2))


def test_macs_are_the_sum_of_weights_times_output_pixels(found):
    model = models.build("resnet20")
    areas = {"conv1": 1024, "layer1": 1024, "layer2": 256, "layer3": 64, "fc": 1}
    weights = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    assert sum(n * areas[name.split(".")[0]] for name, n in weights.items()) == DENSE["R20-A"][0]
    assert sum(weights.values()) == 268_336


def test_exchanging_identical_blocks_changes_no_count(found):
    groups = found("R56-A", "internal")
    widths = random_widths(groups, "exchange")
    stage = [name.startswith("layer2.") and not name.startswith("layer2.0") for name in groups.names]
    exchanged = widths.copy()
    exchanged[stage] = widths[stage][::-1]
    assert np.array_equal(channels.count(groups, widths), channels.count(groups, exchanged))


def batchnorm_behind(model, layer):
    order = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    return order[order.index(model.get_submodule(layer)) + 1]


def randomise(model):
    random = generator(0, "batchnorm")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
    return model.eval()


@pytest.mark.parametrize("net", ("R20-A", "R20-B", "VGG-16", "R50-stem-32", "R56-A"))
def test_a_pruned_network_computes_what_the_masked_one_does(net, found):
    name, options, size = NETS[net]
    model, groups = randomise(models.build(name, **options)).double(), found(net)
    random = generator(0, net)
    kept = {
        name: torch.randperm(width, generator=random)[: 1 + width // 2].tolist()
        for name, width in zip(groups.names, groups.dense.tolist(), strict=True)
    }
    pruned = channels.keep(model, kept, size=size)
    masked = models.build(name, **options).double().eval()
    masked.load_state_dict(model.state_dict())
    for group, writers in zip(groups.names, groups.writers, strict=True):
        for writer in writers:
            norm = batchnorm_behind(masked, writer)
            gone = torch.ones(norm.num_features, dtype=torch.bool)
            gone[kept[group]] = False
            norm.weight.data[gone] = norm.bias.data[gone] = 0
            block = masked.get_submodule(writer.rpartition(".")[0])
            if isinstance(getattr(block, "downsample", None), models.PadShortcut) and writer.endswith("conv2"):
                # what the shortcut carries into a removed channel of the next stream must vanish too
                block.downsample.register_forward_hook(
                    lambda _, __, out, gone=gone: out.masked_fill(gone[:, None, None], 0)
                )
    images = torch.randn(3, 3, size, size, dtype=torch.float64, generator=random)
    with torch.no_grad():
        assert torch.allclose(pruned(images), masked(images), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(pruned(images), model(images), rtol=1e-3)


def test_full_widths_leave_every_output_bit_alone_and_the_model_untouched():
    model = randomise(models.build("resnet20"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = channels.find(model)
    pruned = channels.prune(model, dict(zip(groups.names, groups.dense, strict=True)))
    images = torch.randn(4, 3, 32, 32, generator=generator(0))
    with torch.no_grad():
        assert torch.equal(pruned(images), model(images))
        channels.prune(model, {"conv1": 3})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_l1_keeps_the_filters_that_torch_prunings_plain_l1_norm_keeps():
    model = models.build("resnet20", shortcut="B")
    importance = tp.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first")
    other = models.build("resnet20", shortcut="B")
    convs = {other.get_submodule(name): 0.5 for name in channels.find(model).internal().names}
    ignored = [m for m in other.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in convs]
    pruner = tp.pruner.BasePruner(
        other, torch.zeros(1, 3, 32, 32), importance=importance, pruning_ratio_dict=convs, ignored_layers=ignored
    )
    pruner.step()
    groups = channels.find(model).internal()
    ours = channels.prune(model, dict(zip(groups.names, groups.dense // 2, strict=True)), "l1")
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_torch_prunings_default_is_not_the_l1_norm_of_filters():
    model = models.build("resnet20", shortcut="B")
    conv = model.layer1[0].conv1
    kept = conv.weight.abs().sum((1, 2, 3)).topk(8).indices.sort().values
    wanted = conv.weight.detach().clone()[kept]
    options = {"pruning_ratio_dict": {conv: 0.5}, "pruning_ratio": 0.0, "ignored_layers": [model.fc]}
    tp.pruner.BasePruner(
        model, torch.zeros(1, 3, 32, 32), importance=tp.importance.MagnitudeImportance(), **options
    ).step()
    assert model.layer1[0].conv1.weight.shape == wanted.shape
    assert not torch.equal(model.layer1[0].conv1.weight, wanted)


@pytest.mark.parametrize(("width", "ratio", "kept"), [(100, 0.9, 9), (32, 0.97, 32), (10, 0.9, 10)])
def test_torch_pruning_rounds_down_in_floating_point_and_skips_a_layer_that_would_be_emptied(width, ratio, kept):
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))
    importance = tp.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first")
    options = {"pruning_ratio_dict": {model[0]: ratio}, "pruning_ratio": 0.0, "ignored_layers": [model[2]]}
    tp.pruner.BasePruner(model, torch.zeros(1, 3, 8, 8), importance=importance, **options).step()
    assert model[0].out_channels == kept


@pytest.mark.parametrize(("criterion", "power"), (("l1", 1), ("l2", 2)))
def test_a_streams_score_is_the_norm_over_all_layers_that_write_it(criterion, power):
    model = models.build("resnet20", shortcut="B")
    groups = channels.find(model)
    writers = groups.writers[groups.names.index("layer2.0.conv2")]
    assert set(writers) == {f"layer2.{k}.conv2" for k in range(3)} | {"layer2.0.downsample.0"}
    total = sum(model.get_submodule(name).weight.abs().double().pow(power).sum((1, 2, 3)) for name in writers)
    score = channels.scores(model, groups, "layer2.0.conv2", criterion)
    assert torch.allclose(score, total ** (1 / power))


def test_bn_and_random_scores():
    model = models.build("resnet20")
    model.layer1[0].bn1.weight.data = torch.arange(16.0) - 8
    pruned = channels.prune(model, {"layer1.0.conv1": 3}, "bn")
    assert pruned.layer1[0].bn1.weight.tolist() == [-8, -7, 7]
    drawn = [channels.prune(model, {"conv1": 8}, "random", generator=generator(seed)).bn1 for seed in (0, 0, 1)]
    kept = [torch.cat([drawn[i].weight, drawn[i].running_mean]) for i in range(3)]
    assert all(len(values) == 16 for values in kept)
    one, two, three = (channels.scores(model, channels.find(model), "conv1", "random", generator(s)) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_the_pruned_network_keeps_its_mode_and_learns():
    model = models.build("resnet20").train()
    pruned = channels.prune(model, {"conv1": 5, "layer3.1.conv1": 1})
    assert pruned.training
    pruned(torch.randn(4, 3, 32, 32, generator=generator(0))).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())
    assert not channels.prune(model.eval(), {"conv1": 5}).training
    with torch.no_grad():
        channels.prune(model, {"conv1": 5})


def test_bad_widths_are_refused_in_one_sentence():
    model = models.build("resnet20", shortcut="B")
    groups = channels.find(model)
    with pytest.raises(ValueError, match="Widths of conv1 must be between 1 and 16 channels.$"):
        channels.prune(model, {"conv1": 0})
    with pytest.raises(ValueError, match="between 1 and 64"):
        channels.count(groups, groups.dense + (np.arange(len(groups)) == len(groups) - 1))
    with pytest.raises(ValueError, match="'layer1.1.conv2': layer1.1.conv2 is written together with conv1"):
        channels.prune(model, {"conv1": 8, "layer1.1.conv2": 9})
    with pytest.raises(ValueError, match="No channel group is called 'fc': known are conv1, "):
        channels.prune(model, {"fc": 3})
    with pytest.raises(ValueError, match="12 entries"):
        channels.count(groups, groups.dense[:-1])
    with pytest.raises(ValueError, match="one or more different indices below 16"):
        channels.keep(model, {"conv1": [1, 1]})
    with pytest.raises(ValueError, match="one or more different indices"):
        channels.keep(model, {"conv1": []})
    with pytest.raises(ValueError, match="layer1.1.conv2 is written together with conv1"):
        channels.keep(model, {"conv1": range(16), "layer1.1.conv2": [0, 1]})
    with pytest.raises(ValueError, match="between 1 and 16 channels, not shares"):
        channels.prune(model, {"conv1": 0.5})
    for wrong in (None, 0):
        with pytest.raises(ValueError, match='"random" needs a torch.Generator: pass generator'):
            channels.prune(model, {"conv1": 8}, "random", generator=wrong)
    with pytest.raises(ValueError, match="'l3' must be one of l1, l2, bn, random"):
        channels.prune(model, {"conv1": 8}, "l3")
    with pytest.raises(ValueError, match="must be the side of square images in pixels"):
        channels.find(model, size=(32, 32))
    with pytest.raises(ValueError, match="No channel group is called 'fc'"):
        groups.only(["fc"])
    with pytest.raises(ValueError, match="in 2 groups"):
        channels.find(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 900, 2)))


def test_a_shortcut_continues_the_channels_that_survive_on_both_sides():
    model = models.build("resnet20")
    pruned = channels.keep(model, {"conv1": [0, 3, 9], "layer2.0.conv2": [0, 8, 11, 12, 17, 31]})
    source = pruned.layer2[0].downsample.source.tolist()
    # channel c of the first stream continues as c + 8 in the second; 0, 3 and 9 are now 0, 1 and 2
    assert source == [-1, 0, 1, -1, 2, -1]


def test_output_pixels_are_those_of_each_layers_map(found):
    groups = found("R20-A")
    areas = dict(zip(groups.names, groups.area.tolist(), strict=True))
    assert (areas["conv1"], areas["layer2.0.conv1"], areas["layer3.2.conv1"]) == (1024, 256, 64)


def test_a_pruned_network_can_be_pruned_again():
    model = randomise(models.build("resnet20"))
    once = channels.keep(channels.keep(model, {"conv1": range(4, 12)}), {"conv1": [0, 5]})
    images = torch.randn(2, 3, 32, 32, generator=generator(0))
    with torch.no_grad():
        assert torch.equal(once(images), channels.keep(model, {"conv1": [4, 9]})(images))


class Net(nn.Module):
    """Layers by name, and how they compute."""

    def __init__(self, compute, **layers):
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.compute(self, x)


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def costs(model, size, inputs=3):
    """MACs of all calls of convolutions and linear layers, by hooks, and parameters, on the meta device."""
    model, macs = copy.deepcopy(model).to("meta").eval(), []

    def add(layer, inputs, output):
        tensor, channels = output, getattr(layer, "out_features", None) or layer.out_channels
        if isinstance(layer, nn.ConvTranspose2d):
            tensor, channels = inputs[0], layer.in_channels
        macs.append(tensor.numel() // channels * layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    shape = (1, inputs, size, size) if size else (1, inputs)
    model(torch.zeros(shape, device="meta"))
    return sum(macs), sum(parameter.numel() for parameter in model.parameters())


def counts(groups, widths):
    return tuple(int(value) for value in channels.count(groups, widths))


def pruned_at_random(model, size, inputs=3):
    """A pruned copy at random widths, after its counts were found to be those of its groups."""
    groups = channels.find(model, size)
    assert counts(groups, groups.dense) == costs(model, size, inputs)
    widths = np.minimum(random_widths(groups, size), groups.dense - 1)
    pruned = channels.prune(model, dict(zip(groups.names, widths, strict=True)), size=size)
    assert counts(groups, widths) == costs(pruned, size, inputs) != costs(model, size, inputs)
    with torch.no_grad():
        pruned.eval()(torch.zeros((2, inputs, size, size) if size else (2, inputs)))
    return groups, pruned


BRANCHES = {  # torchvision's networks at 64 pixels and 10 classes: options, groups, MACs and parameters
    "densenet121": ({}, 120, (231_286_784, 6_964_106)),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 57, (122_243_072, 5_610_154)),
    "convnext_tiny": ({}, 22, (363_661_824, 27_827_818)),
    "squeezenet1_0": ({}, 25, (49_409_056, 740_554)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_concatenations_tokens_and_convolutional_heads_are_counted_and_pruned(name):
    options, number, dense = BRANCHES[name]
    groups, _ = pruned_at_random(torchvision.models.get_model(name, num_classes=10, **options), 64)
    assert len(groups) == number and counts(groups, groups.dense) == dense


@pytest.mark.parametrize("name", ("tf_efficientnet_lite0", "vit_tiny_patch16_224"))
def test_timms_networks_are_counted_and_pruned(name):
    options = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **options)
    groups = channels.find(model, 32)
    widths = random_widths(groups, name)
    pruned = channels.prune(model, dict(zip(groups.names, widths, strict=True)), size=32)
    for net, at in ((model, groups.dense), (pruned, widths)):
        assert counts(groups, at) == (models.count_macs(net, (1, 3, 32, 32)), models.count_parameters(net))
    assert not any(".qkv" in writer for writers in groups.writers for writer in writers)  # heads keep their channels


def test_attention_stays_dense_and_its_products_count():
    model = models.build("vit_tiny")
    groups = channels.find(model)
    assert len(groups) == 12 and all(name.endswith("mlp.0") for name in groups.names)
    dense = models.count_macs(model, (1, 3, 32, 32)), models.count_parameters(model)
    assert counts(groups, groups.dense) == dense
    pruned = channels.prune(model, dict.fromkeys(groups.names, 5))
    assert counts(groups, np.full(12, 5)) == (
        models.count_macs(pruned, (1, 3, 32, 32)),
        models.count_parameters(pruned),
    )


def tied():
    return Net(lambda m, x: m.f(m.c(m.c(m.a(x))).mean((2, 3))), a=conv(3, 8), c=conv(8, 8), f=nn.Linear(8, 4))


def decoder():
    layers = [conv(3, 8), nn.GroupNorm(1, 8), nn.PReLU(8), nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)]
    return nn.Sequential(*layers, conv(6, 4), nn.InstanceNorm2d(4, affine=True), nn.PReLU(), conv(4, 2))


def scaled():
    model = Net(lambda m, x: m.f((m.scale * m.c(x)).mean((2, 3))), c=conv(3, 8), f=nn.Linear(8, 4))
    model.scale = nn.Parameter(torch.ones(8, 1, 1))
    return model


SMALL = {  # network, its groups, MACs and parameters at 8 pixels
    "a tied convolution": (tied, ["a"], (64 * (3 * 72 + 2 * 8 * 72) + 32, 224 + 584 + 36)),
    "a decoder": (
        decoder,
        ["0", "3", "5"],
        (64 * (216 + 192) + 256 * (216 + 72), 224 + 16 + 8 + 198 + 12 + 220 + 8 + 1 + 74),
    ),
    "a parameter of its own": (scaled, ["c"], (64 * 216 + 32, 224 + 8 + 36)),
}


@pytest.mark.parametrize("case", SMALL)
def test_every_kind_of_layer_and_parameter_is_counted(case):
    build, names, dense = SMALL[case]
    groups, _ = pruned_at_random(build(), 8)
    assert list(groups.names) == names and counts(groups, groups.dense) == dense


def test_a_multilayer_perceptron_with_batchnorm():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 3)
    )
    groups, _ = pruned_at_random(model, 0, inputs=8)
    assert counts(groups, groups.dense) == (64 + 40 + 15, 72 + 16 + 45 + 10 + 18)


def gated():
    def compute(m, x):
        return m.f(m.c((y := m.a(x)) * m.g(y).sigmoid()).mean((2, 3)))

    return Net(compute, a=conv(3, 16), g=conv(16, 1, 1), c=conv(16, 8), f=nn.Linear(8, 10))


def headed(compute, **layers):
    return Net(lambda m, x: m.f(compute(m, x).mean((2, 3))), a=conv(3, 16), d=conv(8, 8), f=nn.Linear(8, 4), **layers)


LEFT_DENSE = {  # networks of which only these groups are offered
    "a gate of one channel": (gated, ["c"]),
    "a second head": (
        lambda: Net(
            lambda m, x: (m.f(y := m.a(x).mean((2, 3))), m.g(y)), a=conv(3, 8), f=nn.Linear(8, 4), g=nn.Linear(8, 2)
        ),
        ["a"],
    ),
    "a pixel shuffle": (
        lambda: headed(lambda m, x: m.d(m.c(m.s(m.a(x)))), s=nn.PixelShuffle(2), c=conv(4, 8)),
        ["c", "d"],
    ),
    "a split": (lambda: headed(lambda m, x: m.d(torch.mul(*m.a(x).chunk(2, 1)))), ["d"]),
    "a GroupNorm of two groups": (
        lambda: headed(lambda m, x: m.d(m.n(m.c(m.a(x)))), c=conv(16, 8), n=nn.GroupNorm(2, 8)),
        ["a", "d"],
    ),
}


@pytest.mark.parametrize("case", LEFT_DENSE)
def test_what_cannot_lose_a_single_channel_stays_dense(case):
    build, names = LEFT_DENSE[case]
    groups, _ = pruned_at_random(build(), 16)
    assert sorted(groups.names) == names
    if case == "a gate of one channel":
        assert counts(groups, groups.dense) == (409_680, 1_715)


def test_bn_follows_the_graph_and_not_the_order_of_registration():
    model = Net(
        lambda m, x: m.f(m.one(m.b(m.two(m.a(x)))).mean((2, 3))),
        **{"a": conv(3, 4), "one": nn.BatchNorm2d(4), "b": conv(4, 4), "two": nn.BatchNorm2d(4), "f": nn.Linear(4, 2)},
    )
    model.one.weight.data, model.two.weight.data = torch.arange(4.0), torch.arange(4.0) - 9
    groups = channels.find(model, 8)
    assert channels.scores(model, groups, "a", "bn").tolist() == [9, 8, 7, 6]
    assert channels.scores(model, groups, "b", "bn").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="Group a has a layer without BatchNorm behind it: choose the criterion l1"):
        channels.prune(tied(), {"a": 3}, "bn", size=8)


def test_frozen_parameters_stay_frozen_and_one_group_is_enough():
    model = nn.Sequential(conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).requires_grad_(
        False
    )
    groups, pruned = pruned_at_random(model, 8)
    assert len(groups) == 1 and not any(parameter.requires_grad for parameter in pruned.parameters())
    assert counts(channels.find(tied(), 8).only([]), np.zeros(0, int)) == costs(tied(), 8)


def masked():
    model = nn.Sequential(conv(3, 8), conv(8, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def shared():
    model = nn.Sequential(conv(3, 3), conv(3, 3), conv(3, 2))
    model[1].weight = model[0].weight
    return model


REFUSED = {
    "masks: make the pruning permanent first": masked,
    "1 and 0 share a parameter: give each its own": shared,
    "0 is parametrized: remove that first": lambda: nn.Sequential(weight_norm(conv(3, 8)), conv(8, 2)),
    "no channel group that can be pruned while its outputs stay": lambda: nn.Sequential(conv(3, 8)),
    "no convolution and no linear layer": nn.Sequential,
    "One image of shape .3, 8, 8. cannot be computed and counted: check size": lambda: nn.Sequential(
        conv(3, 8), nn.Flatten(), nn.Linear(9, 2)
    ),
    "cannot follow the channels of this network": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_networks_are_refused_in_one_sentence(sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        channels.find(REFUSED[sentence](), 64 if "follow" in sentence else 8)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_pruned_network_that_does_not_compute_is_refused():
    def compute(m, x):
        assert m.a.out_channels > 4, "too narrow"
        return m.f(m.a(x).mean((2, 3)))

    model = Net(compute, a=conv(3, 8), f=nn.Linear(8, 4))
    assert channels.prune(model, {"a": 5}, size=8).a.out_channels == 5
    sentence = "does not compute without these channels of a: keep them .AssertionError: too narrow..$"
    with pytest.raises(ValueError, match=sentence):
        channels.prune(model, {"a": 4}, size=8)
