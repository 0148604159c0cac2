"""Floating-point operations of a training, by the counting rule of the precursor's tables (You et al. 2020)."""

from copy import deepcopy
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
BACKWARD = 3  # a training step counts as three forward passes
EPOCH_UNIT = 0.05e15  # the precursor's tables count in 0.05 P


def _elements(*_, out_shape: tuple, **__) -> int:
    return prod(out_shape)


def _norm(shape: tuple, *_, **__) -> int:
    return 2 * prod(shape)


def _inputs(shape: tuple, *_, **__) -> int:
    return prod(shape)


def _max_pool(shape: tuple, window: list[int], *_, out_shape: tuple, **__) -> int:
    return prod(out_shape[0]) * prod(window if len(window) == 2 else [*window, *window])


def _avg_pool(shape: tuple, window: list[int], *_, out_shape: tuple, **__) -> int:
    return prod(out_shape) * prod(window if len(window) == 2 else [*window, *window])


def _affine(bias: tuple, a: tuple, b: tuple, *_, **__) -> int:
    return 2 * a[0] * a[1] * b[1] + a[0] * b[1]


COUNTED = {
    aten.addmm: _affine,
    aten.relu: _elements,
    aten.native_batch_norm: _norm,
    aten._native_batch_norm_legit_no_training: _norm,
    aten.cudnn_batch_norm: _norm,
    aten.max_pool2d_with_indices: _max_pool,
    aten.avg_pool2d: _avg_pool,
    aten._adaptive_avg_pool2d: _inputs,
    aten.mean: _inputs,
}


def forward_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Operations of one forward pass of one input of `shape` (without batch).

    A multiply-accumulate counts 2 and a bias of a linear layer 1 an output, BatchNorm 2 and ReLU 1 an element, pooling
    one for each input of each window. Sums of residual blocks are not counted.
    Source: the precursor's `compute_flops.py`, as rules; it reproduces two published totals.
    """
    copy = deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        copy(torch.zeros((1, *shape), device="meta", dtype=next(copy.parameters()).dtype))
    return int(counter.get_total_flops())


def training_flops(forward: float, images: int, epochs: float) -> float:
    """Operations of a training: three forward passes an image (`images` an epoch)."""
    return BACKWARD * forward * images * epochs
