"""The layers of a dense network, found again by name in a compressed one, each with both kernels in one shape."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lib import channels
from lib.truncation import forms


@dataclass
class Layer:
    """A dense kernel (OUT, IN, ...) and the compressed one in its shape, with zeros where channels are gone."""

    name: str
    before: Tensor
    parameter: str  # name of the dense parameter
    stored: int  # parameters of the dense layer
    after: Tensor | None = None
    shape_after: tuple[int, ...] = ()
    stored_after: int = 0
    match: str = ""
    precision: torch.dtype = torch.float32  # of the compressed kernel
    outputs: list[int] = field(default_factory=list)  # those of the dense kernel that are left
    reasons: list[str] = field(default_factory=list)


def kernels(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Name of each layer with a kernel, name of the kernel's parameter, and the module that holds it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield f"{name}.in_proj".lstrip("."), f"{name}.in_proj_weight".lstrip("."), module
        elif isinstance(module, channels.LAYERS):
            yield name, f"{name}.weight".lstrip("."), module


def _kernel(module: nn.Module, parameter: str) -> Tensor:
    """A kernel as (OUT, IN, ...) in float32; that of a quantised layer dequantised."""
    weight = getattr(module, parameter.rpartition(".")[2])
    weight = weight() if callable(weight) else weight
    weight = weight.dequantize() if weight.is_quantized else weight.detach()
    if isinstance(module, _ConvTransposeNd):
        parts = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
        weight = parts.flatten(0, 1)
    return weight.float()


def match(before: nn.Module, after: nn.Module, compressed: nn.Module) -> list[Layer]:
    """The layers of a dense network, each with its kernel in a compressed one or the reason why it has none.

    `before` and `after` are float32 copies without masks; `compressed` tells the precision of the stored weights.
    """
    found = []
    for name, parameter, module in kernels(before):
        attention = isinstance(module, nn.MultiheadAttention)
        stored = module.in_proj_weight.numel() if attention else sum(p.numel() for p in module.parameters())
        layer = Layer(name, _kernel(module, parameter), parameter, stored)
        try:
            place = parameter.rpartition(".")[0]
            layer.precision = next((p.dtype for p in compressed.get_submodule(place).parameters()), torch.int8)
            _fill(layer, module, after.get_submodule(place), after)
        except AttributeError:
            layer.reasons.append("the compressed network has no layer of this name: keep the names")
        except ValueError as error:
            layer.reasons.append(str(error))
        found.append(layer)
    return found


def _fill(layer: Layer, module: nn.Module, other: nn.Module, after: nn.Module) -> None:
    """Fill in the compressed side of a layer; ValueError, in one sentence, if it cannot be compared."""
    own = layer.parameter.rpartition(".")[2]
    layer.stored_after = sum(p.numel() for p in other.parameters())
    factorised = isinstance(other, nn.Sequential)
    if not factorised and getattr(other, own, None) is None:
        raise ValueError(f"a {type(other).__name__} stands in its place: use a layer with a weight, or nn.Sequential")
    small = _multiplied_out(other, getattr(module, "groups", 1)) if factorised else _kernel(other, own)
    layer.shape_after = tuple(small.shape)
    if isinstance(other, nn.MultiheadAttention):
        layer.stored_after = other.in_proj_weight.numel()
    layer.stored_after = layer.stored_after or small.numel()  # a quantised layer has no parameters
    if small.shape == layer.before.shape:
        layer.after, layer.outputs = small, list(range(len(small)))
        layer.match = "factorised" if factorised else "same"
        return
    if small.shape[2:] != layer.before.shape[2:] or np.greater(small.shape, layer.before.shape).any():
        raise ValueError(f"its kernel {text(small)} is no part of the dense {text(layer.before)}")
    outputs, inputs = channels.surviving(after, layer.name, tuple(layer.before.shape[:2]))
    if (len(outputs), len(inputs)) != tuple(small.shape[:2]):
        if factorised:
            raise ValueError(f"its factors multiply to {text(small)} and not to {text(layer.before)}")
        outputs, inputs = _recovered(layer.before.to(layer.precision).float(), small)
    layer.after = torch.zeros_like(layer.before)
    layer.after[torch.tensor(outputs)[:, None], torch.tensor(inputs)] = small
    layer.match, layer.outputs = "factorised" if factorised else "fewer channels", outputs


def _recovered(dense: Tensor, small: Tensor) -> tuple[list[int], list[int]]:
    """The outputs and inputs of a dense kernel of which a smaller one is a copy, found by its values."""
    values, places = dense.flatten().sort()
    taps, wanted = dense[0, 0].numel(), small.flatten().contiguous()
    found = places[torch.searchsorted(values, wanted).clamp(max=len(values) - 1)].view(len(small), small.shape[1], -1)
    outputs = (found // (dense.shape[1] * taps)).flatten(1).mode(1).values
    inputs = (found // taps % dense.shape[1]).transpose(0, 1).flatten(1).mode(1).values
    if not torch.equal(dense[outputs][:, inputs], small) or len(outputs.unique()) < len(outputs):
        raise ValueError(
            f"its kernel {text(small)} is no copy of a part of the dense {text(dense)}, and no record says which "
            "channels are left: remove them with spaces.prune or channels.keep"
        )
    return outputs.tolist(), inputs.tolist()


def _multiplied_out(factors: nn.Sequential, groups: int) -> Tensor:
    """The kernel of a sequence of convolutions or of linear layers."""
    steps = [module for module in factors.modules() if not isinstance(module, nn.Sequential)]
    odd = [type(step).__name__ for step in steps if not isinstance(step, nn.Linear | nn.Conv2d)]
    if odd or not steps or len({isinstance(step, nn.Linear) for step in steps}) > 1:
        raise ValueError(f"its factors cannot be multiplied out: {', '.join(odd) or 'none, or of two kinds'}")
    if isinstance(steps[0], nn.Linear):
        product = steps[0].weight.double()
        for step in steps[1:]:
            product = step.weight.double() @ product
        return product.float()
    return forms.dense_kernel(nn.Sequential(*deepcopy(steps)).double(), groups).float()


def text(kernel: Tensor) -> str:
    """The shape of a kernel, such as 16x3x3x3."""
    return "x".join(map(str, kernel.shape))
