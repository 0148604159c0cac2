"""A network of one's own by paper 4: redundant nodes merged in one line, and how many of one layer can go."""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor, nn

from lib import models, training
from lib.spline import measures

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def merge(model: nn.Module, ratio: float, *, scope: str = "layerwise", size: int = 32) -> nn.Module:
    """A copy of a network whose most redundant nodes are folded into their twins.

    Args:
        model: stays as it is.
        ratio: share of the nodes that go, in [0, 1), rounded down.
        scope: that share of every layer ("layerwise"), or of all layers together ("global").
        size: side of the square images (pixels).

    Raises:
        ValueError: if no layer can lose a node on its own, and as `measures.remove`.
    """
    found = measures.layers(model, size)
    if not found:
        raise ValueError("No layer writes straight into a ReLU and is read by one layer alone: nothing can be merged.")
    chosen = measures.choose(found, ratio, "merged", scope)
    merged = measures.without(model, found, chosen, merging=True, size=size)
    before, after = map(models.count_parameters, (model, merged))
    nodes = sum(map(len, found))
    print(f"spline.merge: {len(chosen)} of {nodes} nodes went; {before:,} -> {after:,} parameters.")
    return merged


def tolerance(
    model: nn.Module,
    layer: str,
    images: Tensor,
    labels: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    allowed: float = 1.0,
) -> pd.DataFrame:
    """How many nodes of one layer can be merged before accuracy falls.

    Images are normalised (n, channels, size, size), labels int64 (n,), and `allowed` is a drop in percentage points.

    Returns:
        A row for each of the growing shares: `share`, `merged` nodes, the signed `redundancy` of the last pair that was
        merged (small is redundant), `accuracy` (%), `loss` (nats), `drop` (points), and whether it is `tolerated`: no
        drop up to it exceeds what is allowed.

    Raises:
        ValueError: for a layer whose nodes cannot go on their own.
    """
    size, found = images.shape[-1], measures.layers(model, images.shape[-1])
    own = [one for one in found if one.name == layer]
    if not own:
        known = ", ".join(one.name for one in found)
        raise ValueError(f"The nodes of {layer!r} cannot go on their own: known are {known or 'none'}.")
    scores, dense, rows = measures.redundancy(own[0].weights, own[0].biases), training.scores(model, images, labels), []
    for share in sorted(shares):
        chosen = measures.choose(own, share, "merged")
        pairs = [scores[gone, twin].item() for _, gone, twin in chosen if twin >= 0]
        row = {"share": share, "merged": len(chosen), "redundancy": pairs[-1] if pairs else 0.0}
        merged = measures.without(model, own, chosen, merging=True, size=size)
        rows.append(row | training.scores(merged, images, labels))
    return training.tolerated(pd.DataFrame(rows), dense["accuracy"], allowed)
