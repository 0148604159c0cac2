"""Networks against published counts of parameters and MACs, their shapes, gradients and seeds."""

import re

import pytest
import torch
from torch import nn

from lib import models
from lib import models as resnets
from lib import models as weights
from lib.parameters import NETWORKS
from lib.provenance import CompanionError

FORMS = [(name, form) for name, forms in NETWORKS.items() for form in forms]


def build_shape(name: str, **options) -> nn.Module:
    """A network without storage: shapes and counts need no values."""
    with torch.device("meta"):
        return models.build(name, **options)


def counts(model: nn.Module, size: int) -> tuple[int, int]:
    return models.count_macs(model, (1, 3, size, size)), models.count_parameters(model)


@pytest.mark.parametrize(
    ("name", "options", "macs", "parameters"),
    [  # paper 3's specification, "Oracles"; ResNet-18 at 32 pixels from kuangliu/pytorch-cifar
        ("resnet20", {}, 40_551_040, 269_722),
        ("resnet20", {"shortcut": "B"}, 40_813_184, 272_474),
        ("resnet32", {}, 68_862_592, 464_154),
        ("resnet56", {}, 125_485_696, 853_018),
        ("resnet56", {"shortcut": "B"}, 125_747_840, 855_770),
        ("resnet110", {}, 252_887_680, 1_727_962),
        ("resnet18", {}, 555_422_720, 11_173_962),
        ("resnet18", {"size": 224, "classes": 1000}, 1_814_073_344, 11_689_512),
        ("resnet50", {}, 1_297_829_888, 23_520_842),
        ("resnet50", {"form": "imagenet"}, 83_431_424, 23_528_522),
        ("resnet50", {"size": 224, "classes": 1000}, 4_089_184_256, 25_557_032),
        ("vgg16", {}, 313_201_664, 14_724_042),
        ("mobilenet_v2", {"size": 224, "classes": 1000}, 300_774_272, 3_504_872),
        ("resnet20", {"shortcut": "B", "width": 0.75}, 23_040_480, 153_766),
        ("resnet20", {"shortcut": "B", "width": 0.5}, 10_314_048, 68_786),
        ("resnet20", {"shortcut": "B", "width": 0.25}, 2_633_888, 17_534),
        ("resnet56", {"shortcut": "B", "width": 0.75}, 70_816_224, 482_374),
        ("resnet56", {"shortcut": "B", "width": 0.5}, 31_547_712, 215_282),
        ("vgg16", {"width": 0.75}, 176_508_672, 8_285_146),
        ("vgg16", {"width": 0.5}, 78_744_064, 3_684_842),
        ("vgg16", {"width": 0.25}, 19_907_840, 923_130),
    ],
)
def test_macs_and_parameters_equal_the_published_counts(name, options, macs, parameters):
    assert counts(build_shape(name, **options), options.get("size", 32)) == (macs, parameters)


def test_depth_50_of_the_6n_plus_2_family_is_a_fifteenth_of_resnet50():
    with torch.device("meta"):
        assert counts(resnets.CifarResNet(8, 10), 32) == (111_329_920, 755_802)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [  # paper 2's specification, "Stand-ins", and torchvision's table of models
        ("keras_cnn", {}, 1_250_858),
        ("resnet50", {"classes": 100}, 23_705_252),
        ("resnet50", {"classes": 100, "form": "imagenet"}, 23_712_932),
        ("resnet20", {"classes": 100, "shortcut": "B"}, 278_324),
        ("resnet56", {"classes": 100, "shortcut": "B"}, 861_620),
        ("vgg16", {"size": 224, "classes": 1000}, 138_357_544),
        ("alexnet", {"size": 224, "classes": 1000}, 61_100_840),
        ("vit_b_16", {"size": 224, "classes": 1000}, 86_567_656),
    ],
)
def test_parameters_equal_the_published_counts(name, options, parameters):
    assert models.count_parameters(build_shape(name, **options)) == parameters


def test_vanilla_cnn_is_the_published_four_layer_net_with_batchnorm_in_place_of_biases():
    model = build_shape("vanilla_cnn")
    channels = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert channels == 64 + 128 + 256 + 512
    assert models.count_parameters(model) - 2 * channels + channels == 2_605_194
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


def test_alexnet_and_preresnet101_have_the_counts_of_their_layer_tables():
    convolutions = [(3, 96, 11), (48, 256, 5), (256, 384, 3), (192, 384, 3), (192, 256, 3)]  # inputs of one group
    alexnet = sum(inputs * outputs * kernel**2 + 3 * outputs for inputs, outputs, kernel in convolutions)
    alexnet += 1025 * 4096 + 4097 * 4096 + 4097 * 10
    assert models.count_parameters(build_shape("alexnet")) == alexnet
    preresnet, inputs = 3 * 9 * 16, 16
    for planes in (16, 32, 64):
        preresnet += inputs * 4 * planes
        for _ in range(11):
            preresnet += 2 * inputs + inputs * planes + 4 * planes + 9 * planes**2 + 4 * planes**2
            inputs = 4 * planes
    assert models.count_parameters(build_shape("preresnet101")) == preresnet + 2 * 256 + 257 * 10


def test_resnet50_has_53_convolutions_by_stem():
    for form, expected in (("cifar", [36, 17, 0]), ("imagenet", [36, 16, 1])):
        convolutions = [m for m in build_shape("resnet50", form=form).modules() if isinstance(m, nn.Conv2d)]
        sides = [convolution.kernel_size[0] for convolution in convolutions]
        assert [sides.count(side) for side in (1, 3, 7)] == expected and len(sides) == 53


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_output_has_one_column_a_class_whatever_the_size(name, form):
    smallest = NETWORKS[name][form]
    for classes, size in ((10, smallest), (100, max(32, smallest)), (200, 64), (1000, 224)):
        model = build_shape(name, form=form, size=size, classes=classes)
        assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize(("name", "form"), [case for case in FORMS if case[1] == "cifar"])
def test_cifar_forms_keep_every_3x3_kernel_out_of_the_resolution_trap(name, form):
    size = NETWORKS[name][form]
    model, sides = build_shape(name, form=form, size=size, channels=1), []

    def record(module, inputs, output):
        if module.kernel_size[0] > 1:
            sides.append(inputs[0].shape[-1])

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(record)
    model(torch.zeros(2, 1, size, size, device="meta"))
    assert name in ("linear", "mlp") or min(sides) >= 2


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_one_step_gives_finite_outputs_and_a_gradient_everywhere(name, form):
    size = 8 if name == "digits_cnn" else 64 if (name, form) == ("alexnet", "imagenet") else 32
    model = models.build(name, form=form, size=size)
    output = model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    loss = nn.functional.cross_entropy(output, torch.tensor([1, 2]))
    assert output.shape == (2, 10) and torch.isfinite(loss)
    loss.backward()
    assert all(
        weights.grad is not None and torch.isfinite(weights.grad).all()
        for weights in model.parameters()
        if weights.requires_grad
    )


@pytest.mark.parametrize(
    "name", ["mlp", "digits_cnn", "resnet8", "resnet20", "vanilla_cnn", "mobilenet_v2", "resnet18"]
)
def test_cifar_forms_take_grey_images(name):
    size = 32 if name in ("vanilla_cnn", "mobilenet_v2", "resnet18") else 8
    model = build_shape(name, channels=1, size=size)
    assert model(torch.zeros(2, 1, size, size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "keras_cnn", "resnet8", "mobilenet_v2", "resnet18"])
def test_weights_follow_from_the_seed_alone_and_global_random_state_stays(name):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = models.build(name, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    same, other = models.build(name, seed=7), models.build(name, seed=8)
    assert weights.tensor_digest(first.state_dict()) == weights.tensor_digest(same.state_dict())
    differing = [
        not torch.equal(one, two)
        for one, two in zip(first.parameters(), other.parameters(), strict=True)
        if one.ndim > 1
    ]
    assert all(differing)


@pytest.mark.parametrize(("name", "form"), [("vgg16", "imagenet"), ("resnet18", "cifar"), ("mobilenet_v2", "imagenet")])
def test_no_layer_overwrites_what_a_hook_has_kept(name, form):
    assert not any(getattr(module, "inplace", False) for module in build_shape(name, form=form).modules())


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet20", "fc"), ("vgg16", "classifier"), ("alexnet", "classifier.4"), ("vit_b_16", "heads.head")],
)
def test_head_is_the_last_linear_layer(name, head):
    model = build_shape(name, classes=7)
    assert models.head_name(model) == head and model.get_submodule(head).out_features == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet21", {}, "did you mean resnet"),
        ("lenet", {}, "mlp, digits_cnn"),
        ("resnet20", {"form": "imagenet"}, "known are cifar"),
        ("resnet18", {"form": "cifra"}, "did you mean cifar"),
        ("resnet20", {"shortcut": "C"}, "known are A, B"),
        ("alexnet", {"form": "imagenet"}, "cannot take 32-pixel images: their side must be at least 63"),
        ("vanilla_cnn", {"size": 8}, "cannot take 8-pixel images: their side must be at least 16"),
        ("vit_b_16", {"size": 40}, "a multiple of 16"),
        ("resnet50", {"form": "imagenet", "channels": 1}, "3 channels"),
        ("resnet18", {"width": 0.5}, "fixed width"),
        ("vgg16", {"form": "imagenet", "width": 0.5}, "fixed width"),
        ("resnet20", {"pretrained": True}, "form='imagenet'"),
        ("mobilenet_v2", {"size": 224, "width": 0.5, "pretrained": True}, "width=1"),
    ],
)
def test_wrong_argument_is_one_sentence_that_names_the_remedy(name, options, message):
    with pytest.raises(CompanionError, match=re.escape(message)) as caught:
        models.build(name, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [  # torchvision's tables at 224 pixels, with 10 classes in place of 1,000
        ("resnet50-224", 4_089_184_256 - 990 * 2048, 25_557_032 - 990 * 2049),
        ("resnet50-imagenet", 83_431_424, 23_528_522),
        ("vit_b_16-224", None, 86_567_656 - 990 * 769),
        ("vit_tiny", None, 5_362_762),
    ],
)
def test_variants_of_a_network_are_told_apart_by_name(name, macs, parameters):
    model = build_shape(name)
    assert models.count_parameters(model) == parameters
    assert macs in (None, models.count_macs(model, (1, 3, 32, 32)))
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_an_upsampled_network_is_the_network_of_the_upsampled_images():
    model = models.build("resnet18-224", seed=3).eval()
    inner = models.build("resnet18", form="imagenet", size=224, seed=3).eval()
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    larger = nn.functional.interpolate(images, size=(224, 224), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(model(images), inner(larger))


def test_the_architecture_of_a_pretrained_network_needs_no_weights():
    assert models.architecture("vgg16-pretrained") == "vgg16-224" and models.architecture("vgg16") == "vgg16"
