"""What of the spline view holds for a small vision transformer: where it bends, and when its code settles.

Between two softmaxes a transformer with ReLU is piecewise affine only if attention patterns and the scales of LayerNorm
do not move. `walk` computes it with any of these held at their values for another image.
"""

from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import lazy_loader
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

from lib import data, training
from lib.data import Data
from lib.provenance import unknown
from lib.spline import measures, trials
from lib.study import Study, generator, seed_from

torchvision = lazy_loader.load("torchvision")  # imported when it is used: that takes more than a second
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
DEPTH = 3  # blocks
GRID = 4  # patches a side
SMOOTH = ("attention", "norms")  # what is not piecewise affine beside the MLPs
HELD = ((), SMOOTH, ("gates",), ("gates", "norms"), ("gates", "attention"))  # combinations that are measured
LR = 0.002  # initial learning rate of AdamW
SEGMENTS = 6  # pairs of test images between which bends are measured
LENGTHS = (0.01, 0.1, 1.0)  # of segments, as shares of the way to another image
STEPS = 17  # points of a segment
INSIDE = 0.999  # share of the way to the border of a region that counts as inside


def study(folder: Path) -> Study:
    """The study of small vision transformers; see `trial`."""
    return Study("04_spline_early_bird.transformers", trial, version=1, folder=folder)


def network(
    classes: int, channels: int, size: int, activation: str, *, depth: int, width: int, seed: int = 0
) -> nn.Module:
    """A vision transformer on 4 x 4 patches with four heads; an MLP has twice the width.

    Args:
        classes: number of outputs. The last layer has PyTorch's initialisation of linear layers, and not zeros.
        channels: of the images.
        size: side of the images (pixels), a multiple of 4.
        activation: "relu" or "gelu".
        depth: number of blocks.
        width: of a token, a multiple of 4.
        seed: of the initial weights.

    Raises:
        CompanionError: for another activation.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    plan = {"num_layers": depth, "num_heads": 4, "hidden_dim": width, "mlp_dim": 2 * width, "num_classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torchvision.models.VisionTransformer(image_size=size, patch_size=size // GRID, **plan)
        model.conv_proj = nn.Conv2d(channels, width, size // GRID, size // GRID)
        model.heads.head.reset_parameters()
    for block in model.encoder.layers:
        block.mlp[1] = ACTIVATIONS[activation]()
    return model


@dataclass(frozen=True)
class State:
    """What a forward pass has computed, in the order of the layers; n images, T tokens."""

    attention: list[Tensor] = field(default_factory=list)  # patterns (n, heads, T, T)
    norms: list[Tensor] = field(default_factory=list)  # 1 / standard deviation (n, T, 1) of each LayerNorm
    gates: list[Tensor] = field(default_factory=list)  # output over input of the activation (n, T, units)
    inputs: list[Tensor] = field(default_factory=list)  # of the activation (n, T, units)

    def code(self) -> Tensor:
        """The signs of all inputs of activations (n, units of all layers)."""
        return torch.cat([value.flatten(1) > 0 for value in self.inputs], 1)


def walk(
    model: nn.Module, images: Tensor, held: State | None = None, hold: Collection[str] = ()
) -> tuple[Tensor, State]:
    """Logits (n, classes) of a network in evaluation mode, and its state.

    Args:
        model: of `network`, or another one of torchvision's vision transformers.
        images: normalised, (n, channels, size, size).
        held: the state of one image.
        hold: the parts that are taken from it: "attention", "norms", "gates". With all three the network is affine;
            with the first two it is piecewise affine if its activation is.
    """
    state = State()

    def kept(part: str, fresh: Tensor) -> Tensor:
        own = getattr(state, part)
        own.append(getattr(held, part)[len(own)] if part in hold else fresh)
        return own[-1]

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = kept("norms", (centred.square().mean(-1, keepdim=True) + layer.eps).rsqrt())
        return centred * scale * layer.weight + layer.bias

    def attend(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
        mixed = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
        queries, keys, values = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in mixed)
        pattern = kept("attention", (queries @ keys.mT / layer.head_dim**0.5).softmax(-1))
        return layer.out_proj((pattern @ values).transpose(1, 2).flatten(2))

    def bend(layer: nn.Module, z: Tensor) -> Tensor:
        state.inputs.append(z)
        gate = (z > 0).to(z.dtype) if isinstance(layer, nn.ReLU) else torch.special.ndtr(z)
        return z * kept("gates", gate)

    tokens = model.conv_proj(images).flatten(2).mT
    x = torch.cat([model.class_token.expand(len(images), -1, -1), tokens], 1) + model.encoder.pos_embedding
    for block in model.encoder.layers:
        x = x + attend(block.self_attention, norm(block.ln_1, x))
        x = x + block.mlp[3](bend(block.mlp[1], block.mlp[0](norm(block.ln_2, x))))
    return model.heads(norm(model.encoder.ln, x)[:, 0]), state


@torch.inference_mode()
def codes(model: nn.Module, probes: Tensor) -> measures.Codes:
    """The signs of the inputs of the MLPs' activations on normalised probes, a layer for each block."""
    model.eval()
    inputs = [(value.flatten(1) > 0).cpu().numpy() for value in walk(model, probes)[1].inputs]
    packed = [np.packbits(bits, axis=1) for bits in inputs]
    words = tuple(np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64) for bits in packed)
    names = tuple(f"block {place}" for place in range(len(inputs)))
    return measures.Codes(names, tuple(bits.shape[1] for bits in inputs), words)


@torch.no_grad()
def reach(model: nn.Module, image: Tensor, way: Tensor, held: State) -> float:
    """The t at which image + t * way (each (1, channels, size, size)) leaves the region of the image's code.

    Attention and the scales of LayerNorm are held. Inside the region all inputs of activations are then affine in t,
    so the t of the first sign change has a closed form; it is infinite if there is none.
    """
    start, end = (
        torch.cat([value.flatten() for value in walk(model, at, held, ("attention", "norms", "gates"))[1].inputs])
        for at in (image, image + way)
    )
    times = start / (start - end)
    return float(times[times > 0].min()) if (times > 0).any() else float("inf")


def deviation(outputs: Tensor, size: Tensor) -> float:
    """The largest distance of outputs (points, classes) at equal steps from their chord, over a `size`."""
    share = torch.linspace(0, 1, len(outputs), dtype=outputs.dtype, device=outputs.device)[:, None]
    chord = outputs[0] + share * (outputs[-1] - outputs[0])
    return float((outputs - chord).norm(dim=1).max() / size)


def turn(slopes: Tensor) -> float:
    """The largest relative change of a slope (points, classes) from its first value."""
    return float((slopes - slopes[0]).norm(dim=1).max() / slopes[0].norm())


@torch.no_grad()
def bends(model: nn.Module, images: Tensor, others: Tensor) -> dict:
    """How far from affine a network is on segments from images towards others (n, channels, size, size), in float64.

    Everything that is held has its value at the image. Inside regions, which are small, the change of the slope is
    measured, by `turn`: differences of outputs would lose digits. On long segments it is the distance of the outputs
    from their chord, over the distance of the network's outputs at the ends.

    Returns:
        `reach` of the region (median, in ways to the other image); inside it the turn with attention and norms held
        (`inside`, largest) and with nothing held (`inside_free`, median); `same_code`, the share of segments on which
        no sign changes when nothing is held; `border`: log10 of the turn inside over that on an equally long segment
        centred on the border, attention and norms held (mean); `log_bend`, flat: median log10 of the deviation for
        each of HELD and LENGTHS.
    """
    model, images, others = deepcopy(model).double().eval(), images.double(), others.double()
    reached, inside, free, same, border, logs = [], [], [], [], [], []
    for image, other in zip(images.split(1), others.split(1), strict=True):
        way, at = other - image, walk(model, image)[1]
        end = reach(model, image, way, at) * INSIDE

        def along(start: float, stop: float, way=way, image=image) -> Tensor:
            return (
                image + torch.linspace(start, stop, STEPS, dtype=way.dtype, device=way.device).view(-1, 1, 1, 1) * way
            )

        def slopes(points: Tensor, hold: Collection[str], way=way, at=at) -> Tensor:
            return jvp(lambda x: walk(model, x, at, hold)[0], (points,), (way.expand_as(points),))[1]

        region = along(0, end)
        code = walk(model, region)[1].code()
        same.append(bool((code == code[:1]).all()))
        free.append(turn(slopes(region, ())))
        inside.append(turn(slopes(region, SMOOTH)))
        border.append(inside[-1] / turn(slopes(along(end / 2, 1.5 * end), SMOOTH)))
        reached.append(end)
        for length in LENGTHS:
            outputs = [walk(model, along(0, length), at, hold)[0] for hold in HELD]
            size = (outputs[0][-1] - outputs[0][0]).norm()
            logs.append([deviation(own, size) for own in outputs])
    table = np.log10(np.maximum(logs, 1e-16)).reshape(len(images), len(LENGTHS), -1)
    return {
        "reach": float(np.median(reached)), "inside": max(inside), "inside_free": float(np.median(free)),
        "same_code": float(np.mean(same)), "border": float(np.log10(np.maximum(border, 1e-16)).mean()),
        "log_bend": np.median(table, 0).T.ravel().tolist(),
    }  # fmt: skip


def pairs(dataset: Data, number: int) -> tuple[Tensor, Tensor]:
    """The first test images, normalised, and for each the next one of another class."""
    labels = dataset.test.labels.tolist()
    others = [next(j for j in range(i + 1, len(labels)) if labels[j] != labels[i]) for i in range(number)]
    return trials.normalised(dataset, slice(number)), trials.normalised(dataset, others)


def fit(model: nn.Module, dataset: Data, spec: dict, after: Callable[[], None]) -> None:
    """Train in place with AdamW, with which transformers train faster than with SGD.

    The learning rate falls by 10 after a half and three quarters of the epochs. `after` is called after each of them.
    """
    device, seed = str(dataset.train.labels.device), spec["seed"]
    order, noise = generator(seed, "order", device=device), generator(seed, "augmentation", device=device)
    optimizer = torch.optim.AdamW(model.parameters(), spec["lr"], weight_decay=spec["weight_decay"])
    half, step = spec["epochs"] // 2, training.Backward(model, device, spec["precision"])
    schedule = MultiStepLR(optimizer, [half, spec["epochs"] * 3 // 4])
    for _ in range(spec["epochs"]):
        model.train()
        for images, labels in data.batches(dataset.train, spec["batch_size"], order):
            shifted = data.augment(images, noise, padding=dataset.padding, flip=dataset.flip)
            step(data.normalise(shifted, dataset.mean, dataset.std), labels)
            optimizer.step()
        schedule.step()
        after()


def trial(spec: dict, device: str, weights: Path) -> dict:
    """The trial of a transformer that is trained as a search is, and whose bends are measured before and after.

    The spec holds the fields of a search but `network` and `width`, and `activation`, `depth` and `token_width`.

    Returns:
        Distances of codes between all epochs, flat, on the canvas and on test images; training loss by epoch; test
        accuracy (%); what `bends` returns, and for the untrained network under names that end in "_untrained".
    """
    dataset = trials.loaded(spec, device)
    options = {"depth": spec["depth"], "width": spec["token_width"], "seed": seed_from(spec["seed"], "initialisation")}
    build = partial(network, dataset.classes, dataset.channels, dataset.size, spec["activation"], **options)
    model, ends, losses = build().to(device), pairs(dataset, SEGMENTS), []
    sets = {name: probes for name, probes in trials.probes(dataset, spec["side"]).items() if name != "noise"}
    history = {name: [] for name in sets}

    def after() -> None:
        for name, probes in sets.items():
            history[name].append(codes(model, probes))
        losses.append(training.evaluate(model, dataset.train.first(trials.WATCHED), dataset, device=device)["loss"])

    fit(model, dataset, spec, after)
    row = {"loss": losses, "test_accuracy": trials.accuracy(model, dataset)}
    for name, own in history.items():
        row[f"distance_{name}"] = measures.distance_matrix(own).mean(0).round(6).ravel().tolist()
    untrained = bends(build().to(device), *ends)
    return row | bends(model, *ends) | {f"{name}_untrained": value for name, value in untrained.items()}
