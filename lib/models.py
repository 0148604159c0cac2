"""Networks by name, CIFAR- and ImageNet-shaped, initialised from a seed or with public weights."""

from collections import OrderedDict
from copy import deepcopy

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vision_transformer import interpolate_embeddings

from lib import weights
from lib.data import Statistics
from lib.names import NETWORKS, split_name
from lib.provenance import CompanionError, unknown
from lib.resnets import CifarResNet, PreActResNet

FIXED_WIDTH = ("resnet18", "resnet50", "alexnet", "vit_b_16", "vit_tiny")  # and the ImageNet form of vgg16
PATCH = {"vit_b_16": 16, "vit_tiny": 4}  # side of a patch (pixels), which must divide the image's


def build(
    name: str,
    *,
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    form: str | None = None,
    shortcut: str = "A",
    width: float = 1.0,
    pretrained: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A network of NETWORKS on the CPU; its weights follow from `seed` and leave the global random state alone.

    name: of `names.NETWORKS`, or of one with a variant of `names.VARIANTS` behind it, such as "resnet50-imagenet".
    channels, size: of the square input images; size in pixels.
    form: `cifar`, `imagenet` (torchvision's own) or AlexNet's `ungrouped`; by default `cifar` below 128 pixels, where
        the network has both.
    shortcut: of ResNets of depth 6n + 2, "A" (subsample, pad with zero channels) or "B" (1x1 projection and BN).
    width: factor on every hidden layer's channels or units, for the networks outside FIXED_WIDTH.
    pretrained: torchvision's ImageNet weights, with a new last layer unless classes is 1000.
    Raises CompanionError for an unknown name or a combination that cannot be built or fetched.
    """
    name, variant = split_name(name)
    if variant in ("224", "pretrained"):
        options = {"classes": classes, "channels": channels, "size": max(size, 224), "form": "imagenet"}
        network = build(name, **options, width=width, pretrained=pretrained or variant == "pretrained", seed=seed)
        upsample = nn.Upsample(size=224, mode="bilinear")
        return network if size >= 224 else nn.Sequential(OrderedDict(upsample=upsample, network=network))
    form = form or variant or None
    forms = NETWORKS[name]
    form = form or ("cifar" if "cifar" in forms and (size < 128 or len(forms) == 1) else "imagenet")
    if form not in forms:
        raise unknown(f"form of {name}", form, forms)
    if shortcut not in ("A", "B"):
        raise unknown("shortcut", shortcut, ("A", "B"))
    if size < forms[form] or size % PATCH.get(name, 1):
        needed = f"a multiple of {PATCH[name]}" if name in PATCH else f"at least {forms[form]}"
        raise CompanionError(f"{name} in its {form} form cannot take {size}-pixel images: their side must be {needed}.")
    if form == "imagenet" and channels != 3:
        raise CompanionError(f"{name} in its imagenet form takes 3 channels and not {channels}: choose another form.")
    if width != 1 and (name in FIXED_WIDTH or (name == "vgg16" and form == "imagenet")):
        raise CompanionError(f"{name} in its {form} form has a fixed width: leave width at 1 and not {width}.")
    if pretrained and (form != "imagenet" or width != 1):
        raise CompanionError(
            f"Pretrained weights of {name} need form='imagenet' and width=1: only those are published."
        )

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if pretrained:
            model = _pretrained(name, classes, size)
        elif form == "imagenet":
            model = _imagenet(name, classes, size, width)
        else:
            model = _cifar(name, classes, channels, size, shortcut, width, grouped=form != "ungrouped")
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # a hook that keeps a layer's output must not see it overwritten by the next
    return model


def architecture(name: str) -> str:
    """The name of the same network without the weights that its own name asks for."""
    return name.removesuffix("-pretrained") + "-224" * name.endswith("-pretrained")


def public(name: str, dataset: str) -> tuple[nn.Module, Statistics]:
    """A public CIFAR ResNet in evaluation mode, and the mean and standard deviation that its images need.

    Raises CompanionError if there is no such checkpoint, or if it is damaged or cannot be fetched.
    """
    state, shortcut, statistics = weights.public_state(name, dataset)
    model = build(name, classes=len(state["fc.bias"]), shortcut=shortcut)
    model.load_state_dict(state)
    return model.eval(), statistics


def head_name(model: nn.Module) -> str:
    """The name of a classifier's last linear layer, such as `fc` or `classifier.6`."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; running statistics of BatchNorm are buffers and do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of convolutions and matrix products, for one input of `shape` (batch first)."""
    copy = deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy(torch.zeros(shape, device="meta", dtype=next(copy.parameters()).dtype))
    return counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two operations


def _imagenet(name: str, classes: int, size: int = 224, width: float = 1.0) -> nn.Module:
    options = {"vit_b_16": {"image_size": size}, "mobilenet_v2": {"width_mult": width}}
    return torchvision.models.get_model(name, num_classes=classes, **options.get(name, {}))


def _pretrained(name: str, classes: int, size: int) -> nn.Module:
    state = weights.imagenet_state(name)
    if name == "vit_b_16" and size != 224:
        state = interpolate_embeddings(size, 16, state)
    model = _imagenet(name, 1000, size)
    model.load_state_dict(state)
    if classes != 1000:
        head = head_name(model)
        model.set_submodule(head, nn.Linear(model.get_submodule(head).in_features, classes))
    return model


def _cifar(name: str, classes: int, channels: int, size: int, shortcut: str, width: float, grouped: bool) -> nn.Module:
    """The CIFAR forms, with He's initialisation of convolutions and PyTorch's own of linear layers."""

    def wide(*plan: int | str) -> list:
        return [step if step == "M" else max(1, round(step * width)) for step in plan]

    if name == "linear":
        model = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))
    elif name == "mlp":
        (hidden,) = wide(128)
        layers = (nn.Linear(channels * size**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(hidden, classes))
    elif name == "digits_cnn":
        plan = wide(32, 32, "M", 64, 64)
        model = _plain([*_convolutions(channels, plan), nn.AdaptiveAvgPool2d(1)], nn.Linear(plan[-1], classes))
    elif name == "vgg16":
        plan = wide(64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3)
        model = _plain([*_convolutions(channels, plan), nn.AdaptiveAvgPool2d(1)], nn.Linear(plan[-1], classes))
    elif name == "vanilla_cnn":
        plan, (hidden,) = wide(64, "M", 128, "M", 256, "M", 512, "M"), wide(512)
        dense = (nn.Linear(hidden * (size // 16) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        model = _plain(_convolutions(channels, plan), nn.Sequential(*dense))
    elif name == "keras_cnn":
        (narrow, broad, hidden), side = wide(32, 64, 512), ((size - 2) // 2 - 2) // 2
        layers = []
        for inputs, outputs in ((channels, narrow), (narrow, broad)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3), nn.ReLU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
        dense = (nn.Linear(broad * side**2, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, classes))
        model = _plain(layers, nn.Sequential(*dense))
    elif name == "alexnet":
        model = _alexnet(classes, channels, size, grouped)
    elif name == "preresnet101":
        model = PreActResNet(11, classes, channels, width)
    elif name in ("resnet18", "resnet50"):
        model = _imagenet(name, classes)
        model.conv1, model.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    elif name == "vit_tiny":
        return _vit_tiny(classes, channels, size)
    elif name == "mobilenet_v2":
        model = _imagenet(name, classes, width=width)
        model.features[0][0] = nn.Conv2d(channels, model.features[0][0].out_channels, 3, 1, 1, bias=False)
        model.features[2].conv[1][0].stride = (1, 1)
    else:
        model = CifarResNet((int(name.removeprefix("resnet")) - 2) // 6, classes, channels, shortcut, width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d) and name in ("vgg16", "preresnet101"):
            nn.init.constant_(module.weight, 0.5)  # as in the released code of paper 4
    return model


def _convolutions(inputs: int, plan: list) -> list[nn.Module]:
    """3x3 conv-BN-ReLU for each number of channels in the plan, 2x2 max-pooling for each "M"."""
    layers = []
    for step in plan:
        if step == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, step, 3, padding=1, bias=False), nn.BatchNorm2d(step), nn.ReLU()]
            inputs = step
    return layers


def _plain(features: list[nn.Module], classifier: nn.Module) -> nn.Sequential:
    stages = {"features": nn.Sequential(*features), "flatten": nn.Flatten(), "classifier": classifier}
    return nn.Sequential(OrderedDict(stages))


def _vit_tiny(classes: int, channels: int, size: int) -> nn.Module:
    """ViT-Ti (Touvron et al. 2021: 12 layers of width 192, 3 heads) on patches of 4 pixels, torchvision's own init."""
    plan = {"num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768, "num_classes": classes}
    model = torchvision.models.VisionTransformer(image_size=size, patch_size=PATCH["vit_tiny"], **plan)
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, 192, PATCH["vit_tiny"], PATCH["vit_tiny"])
    return model


def _alexnet(classes: int, channels: int, size: int, grouped: bool) -> nn.Sequential:
    """AlexNet as the released code of paper 4 shapes it for 32 pixels: BN, two groups, one pooling, no dropout."""
    features = [nn.Conv2d(channels, 96, 11, stride=4), nn.BatchNorm2d(96), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs, kernel, groups in ((96, 256, 5, 2), (256, 384, 3, 1), (384, 384, 3, 2), (384, 256, 3, 2)):
        features.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups if grouped else 1))
        features += [nn.BatchNorm2d(outputs), nn.ReLU()]
    side = ((size - 11) // 4 + 1 - 3) // 2 + 1
    dense = (nn.Linear(256 * side**2, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes))
    return _plain(features, nn.Sequential(*dense))
