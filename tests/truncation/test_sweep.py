"""One layer with many kernels, against swapping each kernel into the network and running all of it."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from lib import data, models
from lib.data import Split, normalise
from lib.truncation import measures, recovery, sweep, truncate

# Network, its options, the shape of its images, and how many of its layers: every n-th.
CASES = {
    "resnet8": ("resnet8", {"size": 8, "width": 0.5}, 1),
    "resnet8-B": ("resnet8", {"size": 8, "width": 0.5, "shortcut": "B"}, 1),
    "digits_cnn": ("digits_cnn", {"size": 8, "channels": 1, "width": 0.5}, 1),
    "vgg16": ("vgg16", {"width": 0.125}, 3),
    "mobilenet_v2": ("mobilenet_v2", {"width": 0.25, "size": 9}, 34),
    "keras_cnn": ("keras_cnn", {"size": 10, "width": 0.25}, 1),
    "mlp": ("mlp", {"size": 8, "channels": 1, "width": 0.25}, 1),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def with_statistics(model, images):
    """The model with statistics, scales and shifts of BatchNorm that no fold could get right by accident."""
    random = seeded(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=random, dtype=norm.weight.dtype)
            norm.bias.data = torch.randn(norm.bias.shape, generator=random, dtype=norm.bias.dtype) / 4
            norm.momentum = 0.9
    with torch.no_grad():
        model.train()(images)
    return model.eval()


@torch.no_grad()
def swapped(model, layer, kernels, images):
    """The straightforward loop: each kernel put in its place, the whole network run."""
    model = deepcopy(model).eval()
    weight = model.get_submodule(layer).weight
    found = []
    for kernel in kernels:
        weight.copy_(kernel.view_as(weight))
        found.append(model(images))
    return torch.stack(found)


def variants(model, layer, count=4):
    kernel = sweep.kernel(model.get_submodule(layer))
    noise = [gaussian(*kernel.shape, seed=seed).to(kernel) for seed in range(count - 2)]
    changed = [kernel + 0.3 * kernel.std() * one for one in noise]
    return [kernel, *changed, torch.zeros_like(kernel)]


def disagreement(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def all_layers(model):
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [name for name in names if name != models.head_name(model)]


def built(case):
    name, options, step = CASES[case]
    side, channels = options.get("size", 32), options.get("channels", 3)
    model = with_statistics(models.build(name, **options).double(), gaussian(8, channels, side, side))
    return model, gaussian(3, channels, side, side, seed=2), all_layers(model)[::step]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_gives_the_outputs_of_the_network_with_the_kernel_in_its_place(case):
    model, images, layers = built(case)
    for layer in layers:
        kernels = variants(model, layer)
        expected = swapped(model, layer, kernels, images)
        assert disagreement(expected[1:], expected[:1]) > 1e-6, f"{layer} changes nothing"
        for together in (1, 3):
            got = sweep.LayerSweep(model, layer)(images, kernels, together)
            assert got.shape == expected.shape and disagreement(got, expected) < 1e-12, (layer, together)


def test_layers_of_a_vision_transformer_are_swept_though_its_graph_counts_images():
    sizes = {"image_size": 16, "patch_size": 8, "num_classes": 5}
    model = VisionTransformer(num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, **sizes).double()
    model.heads.head.weight.data = gaussian(5, 16)
    for layer in ("conv_proj", "encoder.layers.encoder_layer_0.mlp.0", "encoder.layers.encoder_layer_0.mlp.3"):
        kernels = variants(model, layer)
        got = sweep.LayerSweep(model, layer)(images := gaussian(4, 3, 16, 16), kernels, 3)
        assert disagreement(got, swapped(model, layer, kernels, images)) < 1e-12, layer


class CountsImages(nn.Module):
    """Its graph depends on the number of images before and after its layers, and one value passes them all by."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2)
        self.token, self.head = nn.Parameter(gaussian(1, 4)), nn.Linear(68, 5)

    def forward(self, x):
        token = self.token.expand(x.shape[0], -1)
        y = F.relu(self.second(self.first(x) + x.mean((1, 2, 3), keepdim=True))).reshape(x.shape[0], -1)
        return self.head(torch.cat([token, y], 1)) / x.shape[0]


@pytest.mark.parametrize("name", ("resnet8", "mlp"))
def test_the_head_is_swept_too(name):
    model, images = models.build(name, size=8).double(), gaussian(3, 3, 8, 8)
    head = models.head_name(model)
    kernels = variants(model, head)
    got = sweep.LayerSweep(model, head)(images, kernels, 2)
    assert disagreement(got, swapped(model, head, kernels, images)) < 1e-12


@pytest.mark.parametrize("together", (1, 2, 3, 8))
def test_a_number_of_images_in_the_graph_stays_that_of_one_copy(together):
    model, images = CountsImages().double(), gaussian(5, 3, 8, 8)
    for layer in ("first", "second", "head"):
        kernels = variants(model, layer, 5)
        got = sweep.LayerSweep(model, layer)(images, kernels, together)
        assert disagreement(got, swapped(model, layer, kernels, images)) < 1e-12, layer


def test_a_sweep_serves_batches_of_different_sizes_and_changes_nothing_in_the_model():
    model, _, _ = built("resnet8-B")
    model.train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    swept, kernels = sweep.LayerSweep(model, "layer2.0.conv1"), variants(model, "layer2.0.conv1")
    for count in (5, 2, 1):
        images = gaussian(count, 3, 8, 8, seed=count)
        expected = swapped(model, "layer2.0.conv1", kernels, images)
        assert disagreement(swept(images, kernels, 2), expected) < 1e-12
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits")
    return replace(whole, test=Split(whole.test.images[:50], whole.test.labels[:50]))


@pytest.mark.parametrize("batch_size", (50, 16))
def test_errors_loss_and_divergence_equal_those_of_whole_networks(digits, batch_size):
    model = with_statistics(models.build("digits_cnn", channels=1, size=8, width=0.25), gaussian(20, 1, 8, 8).float())
    layer, split = "features.3", digits.test
    kernels = variants(model, layer, 5)
    found = sweep.compare(model, layer, kernels, split, digits, batch_size)
    scores = swapped(model, layer, kernels, normalise(split.images, digits.mean, digits.std)).double()
    assert torch.equal(found["wrong"], scores.argmax(2) != split.labels)
    assert len({tuple(row) for row in found["wrong"].tolist()}) > 1
    for k, one in enumerate(scores):
        assert found["loss"][k].item() == pytest.approx(F.cross_entropy(one, split.labels).item(), rel=1e-5)
        p, q = (torch.distributions.Categorical(logits=values) for values in (scores[0], one))
        divergence = torch.distributions.kl_divergence(p, q).mean().item()
        assert found["kl"][k].item() == pytest.approx(divergence, rel=1e-4, abs=1e-9)
    assert found["kl"][0] == 0 and (found["kl"][1:] > 0).all()
    again = sweep.compare(model, layer, kernels, split, digits, batch_size)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("layer", ("bn1", "layer1", "layer2.0.bn2"))
def test_a_layer_without_a_kernel_is_refused_in_one_sentence(layer):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        sweep.LayerSweep(models.build("resnet8"), layer)


class Branching(nn.Sequential):
    """A network that looks at its values before it goes on."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_branches_on_values_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^[^\n]*Branching[^\n]+\.$"):
        sweep.LayerSweep(Branching(nn.Conv2d(1, 2, 3)), "0")


@pytest.mark.parametrize("kernels", (lambda k: k, lambda k: [k, k[:1]], lambda k: [k.flatten(1)], lambda k: []))
def test_kernels_of_another_shape_are_refused_in_one_sentence(kernels):
    model = models.build("resnet8")
    layer = sweep.LayerSweep(model, "conv1")
    with pytest.raises(ValueError, match=r"^kernels is a list of tensors of shape \(16, 3, 3, 3\), not [^\n]+\.$"):
        layer(torch.zeros(2, 3, 8, 8), kernels(sweep.kernel(model.conv1)))


def test_kernels_are_views_of_the_weight_with_four_modes():
    conv, linear = nn.Conv2d(6, 4, (3, 5), groups=2), nn.Linear(7, 5)
    assert sweep.kernel(conv).shape == (4, 3, 3, 5) and not sweep.kernel(conv).requires_grad
    assert sweep.kernel(linear).shape == (5, 7, 1, 1)
    assert torch.equal(sweep.kernel(linear).flatten(), linear.weight.flatten())


def test_layers_are_named_in_order_without_the_head_and_projections():
    names = sweep.layer_names(models.build("resnet8", shortcut="B"))
    assert names == ["conv1", *[f"layer{stage}.0.conv{k}" for stage in (1, 2, 3) for k in (1, 2)]]
    assert sweep.layer_names(models.build("mlp", channels=1, size=8)) == ["1", "3"]
    assert len(sweep.layer_names(models.build("vgg16", width=0.125))) == 13


NAMED = (  # network, form, pixels, layers: a large kernel, a 3x3, a 1x1 or linear one
    ("vanilla_cnn", "cifar", 16, ("features.12", "classifier.0")),
    ("resnet50", "imagenet", 32, ("conv1", "layer4.1.conv2", "layer3.2.conv3")),
    ("vit_b_16", "imagenet", 32, ("conv_proj", "encoder.layers.encoder_layer_11.mlp.0")),
)


@pytest.mark.parametrize(("name", "form", "size", "layers"), NAMED)
def test_a_named_network_is_truncated_layer_by_layer_and_as_a_whole(name, form, size, layers):
    model = models.build(name, form=form, size=size).eval()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.get_submodule(models.head_name(model)).weight, std=0.1, generator=generator)
    images = torch.randint(256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    split = data.Split(images, torch.arange(4))
    dataset = data.Data(name, split, split, split, 10, 3, size, (0.5,) * 3, (0.25,) * 3, 4, True)
    assert set(layers) <= set(sweep.layer_names(model))
    x = data.normalise(images, dataset.mean, dataset.std)
    for layer in layers:
        kernel = sweep.kernel(model.get_submodule(layer))
        assert len(measures.applicable_cuts(kernel.shape)) == (1 if kernel.shape[2] == 1 else 7)
        low = truncate(kernel, "OUT", 2)
        with torch.no_grad():
            first, changed = sweep.LayerSweep(model, layer)(x, [kernel, low])
            assert torch.allclose(first, model(x), atol=1e-3)
            weight = model.get_submodule(layer).weight
            recovery.apply_plan(model, {"layers": [layer], "forms": ["OUT"], "ranks": [[2]]})
            assert torch.allclose(weight.view(kernel.shape), low) and torch.allclose(changed, model(x), atol=1e-3)


def test_a_sweep_in_bfloat16_differs_by_rounding_alone():
    model = models.build("resnet8", channels=1, size=8, width=0.25).eval()
    images = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = data.Split(images, torch.arange(40) % 10)
    dataset = data.Data("digits", split, split, split, 10, 1, 8, (0.5,), (0.25,), 1, False)
    kernel = sweep.kernel(model.layer2[0].conv2)
    kernels = [kernel, truncate(kernel, "OUT", 2)]
    exact, rounded = (
        sweep.compare(model, "layer2.0.conv2", kernels, split, dataset, precision=name)
        for name in ("float32", "bfloat16")
    )
    assert not torch.equal(exact["loss"], rounded["loss"])
    assert torch.allclose(exact["loss"], rounded["loss"], rtol=0.02)
