"""A network of one's own by paper 2: kernels in few small factors in one line, and what one layer tolerates."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib import masks, models, training
from lib.study import generator
from lib.truncation import forms, measures, recovery, sweep
from lib.truncation.analysis import first_crossing

Plan = Mapping[str, tuple[str, forms.Ranks]]
RANKS = 12  # of each cut that are tried for a tolerance, from the largest error on


def plan(model: nn.Module, share: float, form: str = "OUT") -> dict[str, tuple[str, forms.Ranks]]:
    """The same form for every layer, with the ranks of least error within a share of its parameters.

    Layers to which the form does not apply or that are too small for it, and the last layer, stay dense.

    Raises:
        ValueError: for an unknown form or a share outside (0, 1).
    """
    if form not in forms.RANKS or not 0 < share < 1:
        raise ValueError(f"A form is one of {', '.join(forms.RANKS)} and a share in (0, 1), not {form!r} and {share}.")
    found = {}
    for name in sweep.layer_names(model):
        kernel = sweep.kernel(model.get_submodule(name))
        lowest = forms.parameters(kernel.shape, form, forms.ranks_at(kernel.shape, form, 0))
        applies = form not in forms.CUTS or form in measures.applicable_cuts(kernel.shape)
        if applies and lowest <= share * kernel.numel() and kernel.any():
            found[name] = form, forms.best_ranks(kernel, form, share * kernel.numel())
    return found


def compress(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a network in which the layers of a plan are sequences of small ones.

    Args:
        model: stays as it is; masks and parametrizations that it has become weights of the copy.
        plan: form and ranks by layer, such as {"conv1": ("OUT", 8)}, as `plan` makes one; or the fields `layers`,
            `forms` and `ranks` of a plan of `recovery`.

    Raises:
        ValueError: for a layer that does not exist, an unknown form or ranks out of range; it names the layer.
    """
    if {"layers", "forms", "ranks"} <= set(plan):
        plan = {name: (form, rank) for name, form, rank in recovery.named_forms(plan)}
    copy, before = masks.permanent(model), models.count_parameters(model)
    for name, (form, rank) in plan.items():
        layer = training.layer_of(copy, name, (nn.Conv2d, nn.Linear))
        if isinstance(copy.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ValueError(f"{name}: attention reads this layer's weight itself; leave it out of the plan.")
        options = {"generator": generator(0, "factors", name)} if form == "cp" else {}
        try:
            copy.set_submodule(name, recovery.small_layer(layer, form, rank, **options))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    after = models.count_parameters(copy)
    print(f"truncation.compress: {len(plan)} layers in small factors; {before:,} -> {after:,} parameters.")
    return copy


def tolerance(
    model: nn.Module,
    layer: str,
    images: Tensor,
    labels: Tensor,
    *,
    cuts: Sequence[str] = (),
    allowed: float = 1.0,
) -> pd.DataFrame:
    """How far one kernel can be truncated across each cut before accuracy falls.

    Images are normalised (n, channels, height, width), labels int64 (n,), and `allowed` is a drop in percentage points.
    By default all cuts that the kernel has are tried, at up to RANKS ranks evenly spaced in relative error.

    Returns:
        A row for each cut: `tolerance`, the relative error at which accuracy first falls by more than allowed, and
        whether it never does (`censored`); the lowest tolerated `rank` of so many `ranks`; `norm_loss` at the
        tolerance; `accuracy` (%) of the network as it is, and `n` images.

    Raises:
        ValueError: for a layer without a kernel or that a forward pass does not call exactly once; an unknown cut.
    """
    plain, rows = masks.permanent(model), []
    kernel = sweep.kernel(training.layer_of(plain, layer, (nn.Conv2d, nn.Linear)))
    swept = sweep.LayerSweep(plain, layer)
    for cut in cuts or measures.applicable_cuts(kernel.shape):
        svd = measures.cut_svd(kernel, cut)
        errors = svd.errors()
        wanted = torch.linspace(float(errors[0]), 0, RANKS + 1)[:-1].tolist()
        ranks = sorted({svd.rank_at(error) for error in wanted})
        kernels = [kernel, *(svd.kernel(rank).to(kernel) for rank in ranks)]
        accuracy = torch.zeros(len(kernels))
        for part, answer in zip(images.split(100), labels.split(100), strict=True):
            accuracy += (swept(part.to(kernel), kernels).argmax(2) == answer.to(kernel.device)).sum(1).cpu()
        drops = 100 * (accuracy[0] - accuracy[1:]) / len(images)
        reached = [float(errors[rank - 1]) for rank in ranks]
        found, censored = first_crossing(reached, drops.tolist(), allowed)
        harmful = [rank for rank, drop in zip(ranks, drops.tolist(), strict=True) if drop > allowed]
        good = [rank for rank in ranks if rank > max(harmful, default=0)]
        row = {"cut": cut, "tolerance": found, "censored": censored, "rank": min(good, default=len(errors))}
        row |= {"ranks": len(errors), "norm_loss": 1 - np.sqrt(max(0.0, 1 - found**2))}
        rows.append(row | {"accuracy": 100 * float(accuracy[0]) / len(images), "n": len(images)})
    return pd.DataFrame(rows)
