"""Which kernels a layer is tried with in paper 2: truncations on a grid, controls of equal error, forms of equal size.

Each function yields pairs of labels (`method` and what else tells the entry apart) and a kernel of the layer's shape.
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lib import controls, training, truncation
from lib.cp import cp
from lib.cuts import MODES, applicable_cuts, cut_svd
from lib.data import Data, Split
from lib.factorisation import parameters, ranks_at, ranks_within
from lib.seeds import generator

Entry = tuple[dict, Tensor]
MOMENT_IMAGES = 200  # training images behind the patches' second moment
SINGLE = ("OUT", "IN", "OUT.IN", "OUT.KH", "OUT.KW")  # cuts with enough ranks for the controls


def truncated_kernels(kernel: Tensor, spec: dict, **_) -> Iterable[Entry]:
    """Every applicable cut at every rank of a grid, pairs of single-mode cuts at equal error on both, and no kernel.

    spec: `shares` of the number of singular values, to which rank 1 is added; `joint_errors`. Or, to read chosen
    truncations on other images: `cuts` and `ranks`, lists of one length, and nothing else is truncated.
    """
    if "ranks" in spec:
        for cut, rank in zip(spec["cuts"], spec["ranks"], strict=True):
            yield {"method": "cut", "cut": cut, "rank": rank}, truncation.truncate(kernel, cut, rank)
        return
    yield {"method": "zero"}, controls.zeroed(kernel)
    found = {cut: cut_svd(kernel, cut, gram=kernel.is_cuda) for cut in applicable_cuts(kernel.shape)}
    for cut, svd in found.items():
        for rank in rank_grid(len(svd.values), spec["shares"]):
            yield {"method": "cut", "cut": cut, "rank": rank}, svd.kernel(rank).to(kernel)
    for pair in truncation.JOINT2:
        for error in spec["joint_errors"] if set(pair) <= found.keys() else ():
            ranks = {cut: found[cut].rank_at(error, "relative_error") for cut in pair}
            labels = {"method": "joint2", "cut": "+".join(pair), "target": error}
            yield labels, truncation.truncate_jointly(kernel, ranks)


def rank_grid(largest: int, shares: Iterable[float]) -> list[int]:
    """Ranks 1 and at the shares of the largest one, ascending, without the largest, which truncates nothing."""
    ranks = {1} | {max(1, round(share * largest)) for share in shares}
    return sorted(ranks - set(range(largest, max(ranks) + 1)))


def control_kernels(kernel: Tensor, spec: dict, *, model: nn.Module, dataset: Data) -> Iterable[Entry]:
    """Graded truncations and every control at the relative errors `errors` of a spec, and outputs kept at equal rank.

    Noise, shrinking and pruning know no cut. A random subspace has the rank of the truncation beside it and is graded
    to the same error; the smallest singular values are matched through the rank alone.
    """
    stream = generator(spec.get("seed", 0), "controls", spec["layer"])
    for error in spec["errors"]:
        for draw in (0, 1):
            yield {"method": "noise", "target": error, "draw": draw}, controls.perturbed(kernel, error, stream)
        yield {"method": "shrunk", "target": error}, controls.shrunk(kernel, error)
        yield {"method": "pruned", "target": error}, controls.pruned(kernel, error)
    for cut in applicable_cuts(kernel.shape):
        svd = cut_svd(kernel, cut, gram=kernel.is_cuda)
        losses = svd.losses()["relative_error"]
        for error in spec["errors"]:
            if losses[0] < error:
                continue  # even rank 1 loses less: this error cannot be reached on this cut
            rank = int((losses >= error).sum())
            labels = {"cut": cut, "rank": rank, "target": error}
            yield {"method": "graded", **labels}, truncation.graded(kernel, svd.kernel(rank), error)
            if cut not in SINGLE:
                continue
            for side in ("short", "long"):
                random = controls.projected_at_random(kernel, cut, rank, stream, side)
                if truncation.relative_error(kernel, random) >= error:
                    yield {"method": f"random {side}", **labels}, truncation.graded(kernel, random, error)
            yield {"method": "smallest", **labels}, controls.smallest_kept(kernel, cut, rank)
    moment = layer_moment(model, spec["layer"], dataset)
    if moment is not None:
        for rank in rank_grid(min(len(kernel), kernel[0].numel()), (0.125, 0.25, 0.5)):
            labels = {"cut": "OUT", "rank": rank}
            yield {"method": "plain", **labels}, truncation.truncate(kernel, "OUT", rank)
            yield {"method": "outputs", **labels}, truncation.truncate_outputs(kernel, rank, moment)


def layer_moment(model: nn.Module, name: str, dataset: Data) -> Tensor | None:
    """`truncation.patch_moment` of what a convolution reads on training images; None for other or grouped layers."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return None
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    split = Split(dataset.train.images[:MOMENT_IMAGES], dataset.train.labels[:MOMENT_IMAGES])
    try:
        for _ in training.logits(model, split, dataset, device=str(next(model.parameters()).device)):
            pass
    finally:
        hook.remove()
    return truncation.patch_moment(layer, torch.cat(seen).cpu()).to(layer.weight.device)


def form_kernels(kernel: Tensor, spec: dict, **_) -> Iterable[Entry]:
    """Every form that fits in a share of the dense parameters, for the `budgets` of a spec; CP from `starts` starts.

    `target` is the share. For tensor trains `cut` names the order of the modes. "as cp" is every cut graded to the
    error of the best CP kernel.
    """
    shape = kernel.shape
    for budget in spec["budgets"]:
        within = budget * kernel.numel()
        for cut in applicable_cuts(shape):
            if parameters(shape, cut, 1) <= within:
                rank = ranks_within(shape, cut, within)
                labels = {"method": "cut", "cut": cut, "rank": rank, "target": budget}
                yield labels, truncation.truncate(kernel, cut, rank)
        for form in ("tucker2", "tucker"):
            if parameters(shape, form, ranks_at(shape, form, 0)) <= within:
                ranks = ranks_within(shape, form, within)
                yield {"method": form, "target": budget}, truncation.approximate(kernel, form, ranks)
        for order in itertools.permutations(MODES):
            if parameters(shape, "tt", (1, 1, 1), order) <= within:
                labels = {"method": "tt", "cut": " ".join(order), "target": budget}
                yield labels, truncation.approximate(kernel, "tt", ranks_within(shape, "tt", within, order), order)
        if parameters(shape, "cp", 1) > within:
            continue
        fits = [
            cp(kernel, ranks_within(shape, "cp", within), generator(draw, "cp", spec["layer"]), 1, spec["iterations"])
            for draw in range(spec["starts"])
        ]
        for draw, fit in enumerate(fits):
            method = "cp" if fit.converged else "cp, not converged"
            labels = {"method": method, "rank": len(fit.weights), "target": budget, "draw": draw}
            yield labels, fit.kernel().to(kernel)
        error = min(fit.relative_error for fit in fits)
        for cut in applicable_cuts(shape):
            svd = cut_svd(kernel, cut, gram=kernel.is_cuda)
            losses = svd.losses()["relative_error"]
            if losses[0] >= error:
                further = svd.kernel(int((losses >= error).sum())).to(kernel)
                labels = {"method": "as cp", "cut": cut, "target": budget}
                yield labels, truncation.graded(kernel, further, error)
