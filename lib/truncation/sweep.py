"""One layer with many kernels: the values before it are computed once, several kernels run side by side."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.data import Data, Split, batches, normalise
from lib.models import head_name
from lib.training import autocast

# Kernels side by side: together they fill a GPU, but on a CPU they would overflow the cache.
TOGETHER = {"cpu": 1, "cuda": 16}


def kernel(layer: nn.Module) -> Tensor:
    """The weight of a convolution as a kernel (OUT, IN, KH, KW), of a linear layer as (OUT, IN, 1, 1); detached."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise ValueError(f"Only nn.Conv2d and nn.Linear have a kernel, not {type(layer).__name__}: choose one.")
    weight = layer.weight.detach()
    return weight[..., None, None] if isinstance(layer, nn.Linear) else weight


def layer_names(model: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers before the head, in order, without the projections in shortcuts.

    The head is the last linear layer, or the last convolution of a network without any.
    """
    named = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    inner = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]  # runs without its parts
    linear = any(isinstance(model.get_submodule(name), nn.Linear) for name in named)
    left_out = {head_name(model) if linear else (named or [""])[-1]} | {
        name for name in named if name.startswith(tuple(f"{part}." for part in inner))
    }
    return [name for name in named if name not in left_out and "downsample" not in name]


class LayerSweep:
    """A network in evaluation mode that computes its outputs for many kernels of one layer.

    The network's graph is cut in two: values that do not depend on the layer are computed once for a batch, the others
    for several kernels at once. Every BatchNorm that follows a convolution is folded into it, except after the layer,
    and channels come last in memory: both only save time.

    Raises:
        ValueError: for a layer without a kernel, or one that a forward pass does not call exactly once; for a network
            whose forward pass branches on its values.
    """

    def __init__(self, model: nn.Module, layer: str):
        self.graph = _traced(model)
        self.layer = self.graph.get_submodule(layer)
        self.shape = tuple(kernel(self.layer).shape)
        self.node = _called(self.graph, layer)
        _fold_batch_norms(self.graph, self.node)
        nodes = [node for node in self.graph.graph.nodes if node.op != "output"]
        after = _reached(self.node)
        self.before = [node for node in nodes if node not in after]
        self.after = [node for node in nodes if node in after and node is not self.node]
        needed = {argument for node in (self.node, *self.after) for argument in node.all_input_nodes}
        self.of_images = _reached(nodes[0])
        self.kept = [node for node in self.before if node in needed]

    @torch.inference_mode()
    def __call__(self, images: Tensor, kernels: Sequence[Tensor], together: int | None = None) -> Tensor:
        """Outputs (kernels, images, classes) for normalised images (n, channels, height, width).

        Args:
            images: in the model's dtype and on its device.
            kernels: likewise, each (OUT, IN, KH, KW) of the layer's shape.
            together: number of kernels that run side by side, by default that of TOGETHER.
        """
        shapes = {tuple(one.shape) for one in kernels}
        if shapes != {self.shape}:
            given = " and ".join(map(str, sorted(shapes))) or "an empty one"
            raise ValueError(f"kernels is a list of tensors of shape {self.shape}, not {given}.")
        together = together or TOGETHER[images.device.type]
        interpreter = fx.Interpreter(self.graph)
        interpreter.args_iter = iter((images.contiguous(memory_format=torch.channels_last),))
        _run(interpreter, self.before, self.kept)
        kept = {node: interpreter.env[node] for node in self.kept}
        if not all(isinstance(value, Tensor) for value in kept.values()):
            together = 1  # a number that counts images would be wrong for several copies of them
        groups = [kernels[first : first + together] for first in range(0, len(kernels), together)]
        return torch.cat([self._rest(interpreter, kept, group).unflatten(0, (len(group), -1)) for group in groups])

    def _rest(self, interpreter: fx.Interpreter, kept: dict, kernels: Sequence[Tensor]) -> Tensor:
        inputs = kept[self.node.args[0]]
        copies = len(kernels)
        interpreter.env = {
            node: torch.cat([value] * copies) if copies > 1 and node in self.of_images else value
            for node, value in kept.items()
        }
        interpreter.env[self.node] = changed = torch.cat([self._with(inputs, one) for one in kernels])
        return _run(interpreter, self.after) if self.after else changed

    def _with(self, inputs: Tensor, weight: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(inputs, weight.flatten(1), self.layer.bias)
        return self.layer._conv_forward(inputs, weight, self.layer.bias)


class ZeroSweep:
    """A network in evaluation mode that computes its outputs with the kernel of one layer after another set to zero.

    Of the values of the dense network only those that depend on the layer are computed again.

    Raises:
        ValueError: as `LayerSweep`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        self.graph = _traced(model)
        self.layers = [_called(self.graph, layer) for layer in layers]
        _fold_batch_norms(self.graph)
        self.nodes = [node for node in self.graph.graph.nodes if node.op != "output"]

    @torch.inference_mode()
    def __call__(self, images: Tensor, chosen: Sequence[int]) -> Tensor:
        """Outputs (1 + chosen, images, classes) of the dense network and without each of the layers at these places."""
        interpreter = fx.Interpreter(self.graph)
        interpreter.args_iter = iter((images.contiguous(memory_format=torch.channels_last),))
        scores = [_run(interpreter, self.nodes, self.nodes)]
        values = dict(interpreter.env)
        for layer in (self.layers[k] for k in chosen):
            zero, bias = torch.zeros_like(values[layer]), self.graph.get_submodule(layer.target).bias
            if bias is not None:
                zero += bias.view(-1, *[1] * (zero.ndim - 2))
            interpreter.env = values | {layer: zero}
            reached = _reached(layer) - {layer}
            scores.append(_run(interpreter, [node for node in self.nodes if node in reached]) if reached else zero)
        return torch.stack(scores)


def compare(
    model: nn.Module,
    layer: str,
    kernels: Sequence[Tensor],
    split: Split,
    dataset: Data,
    batch_size: int = 100,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Tensor]:
    """Errors and losses of a network with many kernels of a layer; the first kernel is the reference.

    In the `precision` "bfloat16" convolutions are rounded, in the reference as well.

    Returns:
        `wrong`, bool (kernels, images); `loss`, mean cross-entropy (kernels,), and `kl`, mean divergence of the outputs
        from the reference's, KL(reference || kernel), (kernels,), in nats.
    """
    sweep = LayerSweep(model.to(device), layer)
    weights = [one.to(device, torch.float32, memory_format=torch.channels_last) for one in kernels]
    wrong, loss, kl, count = [], 0, 0, 0
    for images, labels in batches(split, batch_size):
        with autocast(device, precision):
            scores = sweep(normalise(images, dataset.mean, dataset.std), weights)
        logs = scores.double().log_softmax(2)
        wrong.append(scores.argmax(2) != labels)
        loss = loss - logs.gather(2, labels.expand(len(logs), -1)[..., None]).sum((1, 2))
        kl = kl + (logs[0].exp() * (logs[0] - logs)).sum((1, 2))
        count += len(labels)
    return {"wrong": torch.cat(wrong, 1).cpu(), "loss": (loss / count).cpu(), "kl": (kl / count).clamp(min=0).cpu()}


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(deepcopy(model).eval()).to(memory_format=torch.channels_last)
    except fx.proxy.TraceError as error:
        name = type(model).__name__
        raise ValueError(f"The forward pass of {name} branches or loops on values: write it without.") from error


def _called(graph: fx.GraphModule, layer: str) -> fx.Node:
    found = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == layer]
    if len(found) != 1:
        raise ValueError(f"{layer} is called {len(found)} times in a forward pass: choose a layer called once.")
    return found[0]


def _fold_batch_norms(graph: fx.GraphModule, kept: fx.Node | None = None) -> None:
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(graph.get_submodule(node.target), nn.BatchNorm2d):
            continue
        source = node.args[0]
        single = source.op == "call_module" and len(source.users) == 1 and source is not kept
        if single and isinstance(conv := graph.get_submodule(source.target), nn.Conv2d):
            graph.set_submodule(source.target, fuse_conv_bn_eval(conv, graph.get_submodule(node.target)))
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    graph.recompile()


def _run(interpreter: fx.Interpreter, nodes: list[fx.Node], kept: Sequence[fx.Node] = ()) -> object:
    """Run nodes in order and return the last value; others are dropped after their last use, unless kept."""
    last_use = {argument: node for node in nodes for argument in node.all_input_nodes if argument not in kept}
    for node in nodes:
        interpreter.env[node] = value = interpreter.run_node(node)
        for argument in node.all_input_nodes:
            if last_use.get(argument) is node:
                interpreter.env.pop(argument, None)
    return value


def _reached(node: fx.Node) -> set[fx.Node]:
    """A node and all that depend on it."""
    found, open_nodes = {node}, [node]
    while open_nodes:
        users = [user for user in open_nodes.pop().users if user not in found]
        found.update(users)
        open_nodes += users
    return found
