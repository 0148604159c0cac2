"""A network of one's own by paper 3: filters removed in one line, and how narrow one channel group may become."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from lib import channels, training
from lib.spaces import measures

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def prune(
    model: nn.Module, recipe: Mapping[str, int] | Sequence[int] | float, *, criterion: str = "l1", size: int = 32
) -> nn.Module:
    """A copy of a network with the widths of a recipe; which channels it kept is in its attribute `surviving`.

    Args:
        model: stays as it is.
        recipe: widths by name of the channel group (`channels.find`), widths of all groups in order, or one share in
            (0, 1] of the channels that every group keeps.
        criterion: as `channels.scores`; the channels of the largest scores stay.
        size: side of the square images (pixels).

    Raises:
        ValueError: as `channels.prune`, and for a share outside (0, 1].
    """
    groups = channels.find(model, size)
    if isinstance(recipe, float | int):
        if not 0 < recipe <= 1:
            raise ValueError(f"A recipe keeps a share in (0, 1] of the channels, not {recipe}.")
        recipe = measures.rounded(groups, np.full(len(groups), 1 - recipe))
    if not isinstance(recipe, Mapping):
        recipe = dict(zip(groups.names, np.asarray(recipe).tolist(), strict=True))
    pruned = channels.prune(model, recipe, criterion, size=size)
    widths = np.array([recipe.get(name, dense) for name, dense in zip(groups.names, groups.dense, strict=True)])
    macs, parameters = measures.kept_shares(groups, widths)
    gone = int((groups.dense - widths).sum())
    print(
        f"spaces.prune: {gone} of {groups.dense.sum()} channels went; {macs:.1%} of MACs, {parameters:.1%} of weights."
    )
    return pruned


def tolerance(
    model: nn.Module,
    group: str,
    images: Tensor,
    labels: Tensor,
    *,
    criterion: str = "l1",
    shares: Sequence[float] = SHARES,
    allowed: float = 1.0,
) -> pd.DataFrame:
    """How narrow one channel group can become before accuracy falls.

    Images are normalised (n, channels, size, size), labels int64 (n,), and `allowed` is a drop in percentage points.

    Returns:
        A row for each of the falling kept shares: `share`, `width`, `kept_macs`, `kept_parameters`, `mcb`, `accuracy`
        (%), `loss` (nats), `drop` (points), and whether it is `tolerated`: no drop up to it exceeds what is allowed.

    Raises:
        ValueError: for an unknown group, and as `channels.prune`.
    """
    size = images.shape[-1]
    groups = channels.find(model, size).only([group])
    dense, rows = training.scores(model, images, labels), []
    for share in sorted(shares, reverse=True):
        widths = measures.rounded(groups, np.array([1 - share]))
        pruned = channels.prune(model, {group: int(widths[0])}, criterion, size=size)
        row = measures.coordinates(groups, widths).iloc[0][["kept_macs", "kept_parameters", "mcb"]].to_dict()
        rows.append({"share": share, "width": int(widths[0])} | row | training.scores(pruned, images, labels))
    return training.tolerated(pd.DataFrame(rows), dense["accuracy"], allowed)
