"""All measures of one changed layer, by the view that they take: weights, outputs, input-space partition.

A measure compares the network with the changed layer with the dense one. It is computed before anything is repaired,
from the weights alone or from a few training images.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

from lib import data, latent, models, spline, truncation
from lib.data import Data
from lib.latent import head
from lib.latent.trials import head_inputs
from lib.spline import measures as nodes
from lib.study import generator
from lib.truncation.sweep import kernel

VIEWS = {  # measures, by view; the last two views are what anybody would look at without a paper
    "weights": ("ap2", "relative_error", "t_ap3", "norm_loss", "entropy_change", "effective_rank_lost"),
    "outputs": ("output_error", "kl", "fisher_ap3", "curvature_ap3", "taylor_1", "taylor_2"),
    "partition": ("code_change", "last_code_change", "map_change"),
    "baselines": ("size", "depth"),
    "looking": ("gap_few",),
}
MEASURES = tuple(name for view in ("weights", "outputs", "partition") for name in VIEWS[view])
BASELINES = VIEWS["baselines"]
SET_BY_HAND = ("noise", "quantised", "shrunk")  # kinds of change whose strength is chosen for each layer


@dataclass(frozen=True)
class Dense:
    """A dense network in evaluation mode, a few normalised images that measures read, and what they need of it.

    Attributes:
        model: with a linear head.
        dataset: on the model's device.
        images: normalised (n, channels, size, size).
        labels: (n,).
        seconds: that each of the other properties took, by its name.
    """

    model: nn.Module
    dataset: Data
    images: Tensor
    labels: Tensor
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def logits(self) -> Tensor:
        """The outputs (n, classes) on the images."""
        return self._timed("logits", lambda: self.model(self.images).detach())

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy (nats) on the images."""
        return F.cross_entropy(self.logits, self.labels).item()

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Gradient of the mean loss by each weight, by the layer's name."""

        def found() -> dict[str, Tensor]:
            layers = _weighted(self.model)
            loss = F.cross_entropy(self.model(self.images), self.labels)
            gradients = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
            return dict(zip(layers, gradients, strict=True))

        return self._timed("gradients", found)

    @cached_property
    def fisher(self) -> dict[str, Tensor]:
        """Diagonal of the Fisher information of each weight, with labels drawn from the network's own outputs."""

        def found() -> dict[str, Tensor]:
            layers, stream = _weighted(self.model), generator(0, "labels of the Fisher information")
            weights = [layer.weight for layer in layers.values()]
            totals = [torch.zeros_like(weight) for weight in weights]
            for image in self.images.split(1):
                logits = self.model(image)
                label = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=stream)[0]
                for total, gradient in zip(
                    totals, torch.autograd.grad(F.cross_entropy(logits, label.to(logits.device)), weights), strict=True
                ):
                    total.add_(gradient.square(), alpha=1 / len(self.images))
            return dict(zip(layers, totals, strict=True))

        return self._timed("fisher", found)

    @cached_property
    def codes(self) -> spline.Codes:
        """Activation codes on the images."""
        return self._timed("codes", lambda: spline.activation_codes(self.model, self.images))

    @cached_property
    def node_layers(self) -> list[nodes.Layer]:
        """The layers whose nodes can go (`spline.measures.layers`)."""
        return nodes.layers(self.model, self.dataset.size)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What each layer reads for the images, by its name, once `inputs_of` has been asked for it."""
        return {}

    @torch.inference_mode()
    def inputs_of(self, layer: str) -> Tensor:
        """What a layer reads for the images."""
        if layer not in self.inputs:
            with models.inputs_of(self.model.get_submodule(layer)) as seen:
                self._timed(f"inputs of {layer}", lambda: self.model(self.images))
            self.inputs[layer] = seen[0]
        return self.inputs[layer]

    @cached_property
    def directions(self) -> Tensor:
        """Random signs (n, classes): the mean squared change of maps along them is that of whole maps."""
        drawn = torch.randint(2, (len(self.images), self.dataset.classes), generator=generator(0, "directions"))
        return (2.0 * drawn - 1).to(self.images)

    @cached_property
    def maps(self) -> Tensor:
        """The slopes of the affine map of each image's region along its direction: of the shape of the images."""
        return self._timed("maps", lambda: slopes(self.model, self.images, self.directions)[1])

    def _timed(self, name: str, function: Callable) -> object:
        start = time.perf_counter()
        found = function()
        self.seconds[name] = time.perf_counter() - start
        return found


def reference(model: nn.Module, dataset: Data, few: int, *, held_out: bool = False) -> Dense:
    """A dense network that is measured on the first `few` training images, or on the last test images if `held_out`.

    A network on ImageNet weights, whose last layer knows no class, gets a head by `learnt_head` first.
    """
    split, which = (dataset.test, slice(-few, None)) if held_out else (dataset.train, slice(few))
    images = data.normalise(split.images[which], dataset.mean, dataset.std)
    return Dense(deepcopy(model).eval(), dataset, images, split.labels[which])


def learnt_head(model: nn.Module, dataset: Data, images: int, device: str = "cpu") -> None:
    """Teach the last layer, in place, on some training images.

    The learning rate of `head.LEARNING_LRS` has the least loss on the second half after learning on the first.
    """
    split = dataset.train.first(images)
    inputs, labels, half = head_inputs(model, split, dataset, device), split.labels, images // 2
    losses = {}
    for rate in head.LEARNING_LRS:
        learnt = head.learn_head(inputs[:half], labels[:half], dataset.classes, rate)
        losses[rate] = head.evaluate_head(inputs[half:], labels[half:], *learnt)[1]
    weight, bias = head.learn_head(inputs, labels, dataset.classes, min(losses, key=losses.get))
    last = model.get_submodule(models.head_name(model))
    last.weight.data, last.bias.data = weight, bias


def with_kernel(model: nn.Module, layer: str, changed: Tensor) -> nn.Module:
    """A copy of a network with another kernel (OUT, IN, KH, KW) in one layer."""
    other = deepcopy(model)
    weight = other.get_submodule(layer).weight
    weight.data = changed.reshape(weight.shape).to(weight)
    return other


def slopes(model: nn.Module, images: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the slopes by each pixel of the sum of an image's outputs along its direction."""
    images = images.detach().clone().requires_grad_()
    outputs = model(images)
    return outputs.detach(), torch.autograd.grad((outputs * directions).sum(), images)[0]


def change_of_layer(dense: Dense, layer: str, changed: Tensor) -> dict[str, float]:
    """All of MEASURES and "gap_few" for one layer with a changed kernel, and the seconds that each took (`made_`).

    Args:
        dense: the network before the change.
        layer: name of a convolution or a linear layer.
        changed: its kernel (OUT, IN, KH, KW) after the change.

    Returns:
        By view. *Weights*: `ap2`; `relative_error`, whose square is AP2 over the squared norm; `t_ap3`; `norm_loss`;
        `entropy_change`, the entanglement entropy (nats) across the OUT cut that goes; `effective_rank_lost`, the share
        of the effective rank of this cut. *Outputs*: `output_error`, relative, of the layer; `kl` (nats) of the
        network; `fisher_ap3` and `curvature_ap3`, half of the change squared in the metric of the Fisher diagonal and
        of the Gauss-Newton matrix; `taylor_1`, the loss to first order, and `taylor_2`, which adds `curvature_ap3`.
        *Partition*: shares of activation codes that flip, of the layers from this one on (`code_change`) and of the
        last (`last_code_change`); `map_change`, the relative change of the maps of the regions in which the images lie.
        `gap_few` is the rise of the loss on the images themselves. A measure that is undefined, such as the entropy of
        a zero kernel, is NaN.
    """
    module, row = dense.model.get_submodule(layer), {}
    before, after = kernel(module), changed.to(module.weight)
    delta = (after - before).reshape(module.weight.shape)
    other = with_kernel(dense.model, layer, changed)

    def timed(names: Sequence[str], function: Callable[[], Sequence[float]]) -> None:
        start = time.perf_counter()
        row.update(zip(names, function(), strict=True))
        for name in names:
            row[f"made_seconds_{name}"] = (time.perf_counter() - start) / len(names)

    def spectra() -> tuple[float, float]:
        if not after.any():
            return float("nan"), 1.0
        entropies = [truncation.entropy(truncation.spectrum(one, "OUT")) for one in (before, after)]
        lost = 1 - float(torch.tensor(entropies[1] - entropies[0]).exp())
        return entropies[0] - entropies[1], lost

    def fisher() -> float:
        covariance = latent.fisher_covariance(dense.fisher[layer])
        flat = [one.flatten().double() for one in (before, after)]
        return latent.kl_gaussian(flat[0], covariance, flat[1], covariance)

    def seen() -> tuple[float, ...]:
        """What one forward and backward pass shows."""
        logits, found = slopes(other, dense.images, dense.directions)
        kl = F.kl_div(logits.log_softmax(1), dense.logits.log_softmax(1), log_target=True, reduction="batchmean")
        map_change = (found - dense.maps).norm() / dense.maps.norm()
        gap = F.cross_entropy(logits, dense.labels).item() - dense.loss
        return max(kl.item(), 0.0), map_change.item(), gap

    def flipped() -> tuple[float, float]:
        distance = spline.code_distance(dense.codes, spline.activation_codes(other, dense.images))
        order = [name for name, _ in other.named_modules()]
        behind = [order.index(name) >= order.index(layer) for name in dense.codes.names]  # no other code can change
        return float(distance[behind].mean()), float(distance[-1])

    timed(["ap2"], lambda: [latent.ap2(before, after)])
    timed(["relative_error"], lambda: [truncation.relative_error(before, after)])
    timed(["t_ap3"], lambda: [latent.t_ap3(before, after)])
    timed(["norm_loss"], lambda: [truncation.norm_loss(before, after)])
    timed(["entropy_change", "effective_rank_lost"], spectra)
    timed(["output_error"], lambda: [output_error(dense, layer, delta)])
    timed(["fisher_ap3"], lambda: [fisher()])
    timed(["curvature_ap3"], lambda: [half_curvature(dense, layer, delta)])
    timed(["taylor_1"], lambda: [(dense.gradients[layer] * delta).sum().item()])
    row["taylor_2"] = row["taylor_1"] + row["curvature_ap3"]
    timed(["kl", "map_change", "gap_few"], seen)
    timed(["code_change", "last_code_change"], flipped)
    return row


@torch.inference_mode()
def output_error(dense: Dense, layer: str, delta: Tensor) -> float:
    """|change of the layer's outputs| / |outputs| on the images, both without bias; 0 where there are none."""
    module, inputs = dense.model.get_submodule(layer), dense.inputs_of(layer)
    nothing = {} if module.bias is None else {"bias": torch.zeros_like(module.bias)}
    weights = (module.weight, delta)
    whole, change = (functional_call(module, nothing | {"weight": one}, (inputs,)).norm() for one in weights)
    return (change / whole).item() if whole > 0 else 0.0


def half_curvature(dense: Dense, layer: str, delta: Tensor) -> float:
    """Half the quadratic form of a change of weights in the Gauss-Newton matrix of the loss on the images."""
    name = f"{layer}.weight"
    outputs = lambda weight: functional_call(dense.model, {name: weight}, (dense.images,))  # noqa: E731
    with torch.no_grad():
        logits, moved = jvp(outputs, (dense.model.get_submodule(layer).weight.detach(),), (delta,))
    p = logits.softmax(1)
    return 0.5 * ((p * moved.square()).sum(1) - (p * moved).sum(1).square()).mean().item()


def _weighted(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
