"""How much memory a training needs, before it starts; and a forward pass that halves a batch that does not fit."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT_MB = 1500  # of a process on a GPU: the driver's context, cuDNN's workspaces, fragments
IMAGES = 60_000  # of the data sets that lie on the device


def training_mb(model: nn.Module, shape: tuple[int, ...], half: bool = False) -> float:
    """MiB that one step of SGD with momentum needs at its peak, estimated without computing anything.

    Weights, gradients and momenta; what autograd keeps for the backward pass, counted tensor by tensor on shapes
    alone; and twice the largest of these, for the gradients that pass through.

    Args:
        shape: of a batch of inputs (batch first).
        half: activations in 16 bits, with copies of the weights in 16 bits beside them, as `autocast` does.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    kept = _kept(model, shape)
    activations = sum(kept) + 2 * max(kept, default=0)
    return (12 * weights + 4 * buffers + (activations / 2 + 2 * weights if half else activations)) / 2**20


def _kept(model: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Bytes of each tensor that autograd keeps in one forward pass, beside the weights."""
    copy, kept = deepcopy(model).to("meta").train(), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # holding it keeps its address from being given to another
        return tensor

    dtype = next(copy.parameters()).dtype
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = copy(torch.zeros(shape, device="meta", dtype=dtype))
        F.cross_entropy(outputs, torch.zeros(shape[0], dtype=torch.long, device="meta"))
    own = {tensor.untyped_storage()._cdata for tensor in (*copy.parameters(), *copy.buffers())}
    return [storage.nbytes() for place, storage in kept.items() if place not in own]


def halving(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """`forward` of a batch; where the device's memory does not suffice, of its halves, one after the other.

    For networks in evaluation mode, which see every image alone. Raises torch.OutOfMemoryError for a single image.
    """
    try:
        return forward(inputs)
    except torch.OutOfMemoryError:
        if len(inputs) == 1:
            raise
    if inputs.is_cuda:
        torch.cuda.empty_cache()
    return torch.cat([halving(forward, half) for half in inputs.chunk(2)])
