"""A network of one's own by paper 1: sparse in one line, and the sparsity that one layer tolerates."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lib import masks, training
from lib.channels import LAYERS
from lib.latent import measures

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def sparsify(
    model: nn.Module, method: str = "lowest", fraction: float = 0.5, *, generator: torch.Generator | None = None
) -> nn.Module:
    """A copy of a network without a share of the weights of each convolution and linear layer; they are exactly 0.

    Args:
        model: stays as it is; masks and parametrizations that it has become weights of the copy.
        method: "lowest" magnitudes go, "highest" ones, or "random" ones, which need a generator.
        fraction: of the weights of each layer, in [0, 1).
        generator: of random masks.

    Raises:
        ValueError: for weights that are not finite, named by layer, and as `masks.magnitude_mask`.
    """
    copy, removed, weights = masks.permanent(model), 0, 0
    for name, layer in copy.named_modules():
        if isinstance(layer, LAYERS):
            mask = _mask(name, layer, fraction, method, generator)
            with torch.no_grad():
                layer.weight.mul_(mask)
            removed, weights = removed + int((~mask).sum()), weights + mask.numel()
    print(f"latent.sparsify: {removed:,} of {weights:,} weights are zero, {method} first in each layer.")
    return copy


def tolerance(
    model: nn.Module,
    layer: str,
    images: Tensor,
    labels: Tensor,
    *,
    method: str = "lowest",
    fractions: Sequence[float] = FRACTIONS,
    allowed: float = 1.0,
) -> pd.DataFrame:
    """How many weights of one layer can go before accuracy falls.

    Images are normalised (n, ...), labels int64 (n,), and `allowed` is a drop in percentage points.

    Returns:
        A row for each of the growing fractions: `fraction`, AP2, its share of the squared norm, t-AP3, `accuracy` (%),
        `loss` (nats), `drop` (points), and whether it is `tolerated`: no drop up to it exceeds what is allowed.

    Raises:
        ValueError: for a layer that does not exist or has no kernel.
    """
    copy, rows = masks.permanent(model), []
    module = training.layer_of(copy, layer, LAYERS)
    weight = module.weight.detach().clone()
    dense = training.scores(copy, images, labels)
    for fraction in sorted(fractions):
        module.weight.data = weight * _mask(layer, module, fraction, method, None, weight)
        row = {"fraction": fraction, "ap2": measures.ap2(weight, module.weight)}
        row["ap2_share"] = row["ap2"] / measures.ap2(weight, torch.zeros_like(weight))
        row["t_ap3"] = measures.t_ap3(weight, module.weight)
        rows.append(row | training.scores(copy, images, labels))
    return training.tolerated(pd.DataFrame(rows), dense["accuracy"], allowed)


def _mask(name, layer, fraction, method, generator, weight=None) -> Tensor:
    try:
        return masks.magnitude_mask(layer.weight.detach() if weight is None else weight, fraction, method, generator)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
