"""Plans for whole networks of paper 2: which cut and which rank for every layer, as `lib.recovery` reads them.

Paper 2 on whole networks: many layers truncated by a plan, and retrained in five ways.

A plan is three lists of a spec, an entry a layer: `layers` (names), `forms` (a cut, a form of `decomposition.RANKS`, or
two single-mode cuts as "OUT+IN") and `ranks` (a list of numbers each).
"""

import json
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib import baselines as dense_networks
from lib import data, training
from lib.baselines import dense_spec
from lib.data import Data, Split
from lib.study import Study, generator
from lib.truncation import forms as factorisation
from lib.truncation import measures, sweep
from lib.truncation.forms import parameters
from lib.truncation.trials import STUDY, part


def plan(layers: Sequence[str], forms: Sequence[str], ranks: Sequence[Sequence[int]]) -> dict:
    """A plan as `recovery` reads it."""
    return {"layers": list(layers), "forms": list(forms), "ranks": [list(map(int, one)) for one in ranks]}


def plan_at_error(spectra: pd.DataFrame, form: str, error: float) -> dict:
    """Every layer truncated to the same relative error on one cut, or on each of two single-mode cuts ("OUT+IN").

    spectra: rows of one network (`truncation_trials.spectra`). A layer where the cut is not applicable stays dense.
    """
    chosen = spectra[[set(form.split("+")) <= set(cuts) for cuts in spectra["cut"]]]
    ranks = [[_rank_at(row[f"weights_{cut}"], error) for cut in form.split("+")] for _, row in chosen.iterrows()]
    return plan(chosen["layer"], [form] * len(chosen), ranks)


def _rank_at(weights: Sequence[float], error: float) -> int:
    """The smallest rank with at most this relative error, from the weights p of a spectrum."""
    beyond = np.append(np.cumsum(np.asarray(weights)[::-1])[::-1][1:], 0)
    return int((np.sqrt(beyond) > error).sum()) + 1


def plan_at_share(spectra: pd.DataFrame, cut: str, budget: float) -> dict:
    """Every layer on one cut at the same share of its own parameters, at least rank 1: uniform ranks.

    Ranks are whole numbers, rounded down. What that leaves of the budget is spent one rank at a time, layer by layer
    from the input, round after round, until no further rank fits. A layer to which the cut does not apply stays dense.
    """
    chosen = spectra[[cut in cuts for cuts in spectra["cut"]]]
    sizes = [math.prod(shape) for shape in chosen["shape"]]
    prices = [parameters(tuple(shape), cut, 1) for shape in chosen["shape"]]
    largest = [
        max(1, min(len(row), (size - 1) // price))
        for row, size, price in zip(chosen[f"weights_{cut}"], sizes, prices, strict=True)
    ]
    ranks = [
        max(1, min(int(budget * size / price), most)) for size, price, most in zip(sizes, prices, largest, strict=True)
    ]
    dense = sum(math.prod(shape) for shape in spectra["shape"]) - sum(sizes)
    left = budget * (dense + sum(sizes)) - dense - np.dot(ranks, prices)
    raised = True
    while raised:
        raised = False
        for k, price in enumerate(prices):
            if price <= left and ranks[k] < largest[k]:
                ranks[k], left, raised = ranks[k] + 1, left - price, True
    return plan(chosen["layer"], [cut] * len(chosen), [[rank] for rank in ranks])


def kept_share(spectra: pd.DataFrame, plan: dict) -> float:
    """Share of the parameters of all layers that a plan of single cuts keeps, factorised; other layers are dense."""
    planned = zip(plan["layers"], plan["forms"], plan["ranks"], strict=True)
    form = {name: (form, rank) for name, form, (rank,) in planned}
    total = kept = 0
    for name, shape in zip(spectra["layer"], map(tuple, spectra["shape"]), strict=True):
        total += math.prod(shape)
        kept += parameters(shape, *form[name]) if name in form else math.prod(shape)
    return kept / total


def cheapest_plan(table: pd.DataFrame, cost: str, budget: int) -> dict:
    """For each layer the cut and rank that together cost least within a number of parameters of all layers.

    table: truncations of one network (`points`); an option that saves no parameters is replaced by the dense layer.
    cost: a column, such as `rise` or `squared_error`, added over layers. Solved by a price on parameters (Lagrange);
    what that leaves of the budget goes, one layer at a time, where it lowers the cost most for each parameter.
    """
    options = {}
    for layer, one in table[table["method"] == "cut"].groupby("layer", sort=False):
        shape = tuple(int(size) for size in one["shape"].iloc[0].split("x"))
        listed = [(math.prod(shape), 0.0, "", 0)]
        for entry in one.itertuples():
            size = parameters(shape, entry.cut, entry.rank)
            if size < math.prod(shape):
                listed.append((size, max(0.0, getattr(entry, cost)), entry.cut, entry.rank))
        options[layer] = listed
    for price in np.geomspace(1e-9, 1e3, 600):
        chosen = {layer: min(listed, key=lambda o: o[1] + price * o[0]) for layer, listed in options.items()}
        if sum(option[0] for option in chosen.values()) <= budget:
            break
    left = budget - sum(option[0] for option in chosen.values())
    while True:
        moves = [
            ((chosen[layer][1] - one[1]) / (one[0] - chosen[layer][0]), layer, one)
            for layer, listed in options.items()
            for one in listed
            if 0 < one[0] - chosen[layer][0] <= left and one[1] < chosen[layer][1]
        ]
        if not moves:
            break
        _, layer, one = max(moves, key=lambda move: move[0])
        chosen[layer], left = one, left - (one[0] - chosen[layer][0])
    kept = {layer: option for layer, option in chosen.items() if option[2]}
    return plan(kept, [option[2] for option in kept.values()], [[option[3]] for option in kept.values()])


def competing_plans(
    table: pd.DataFrame, spectra: pd.DataFrame, ranking: pd.Series, budgets: Sequence[float]
) -> Iterator[tuple[str, float, dict]]:
    """Name, budget and plan of four ways to spend a share of the parameters of all layers of one network.

    table: its truncations (`truncation_analysis.points`). spectra: its rows. ranking: tolerance by cut.
    "tolerance": least rise of the loss, measured layer by layer. "error": least squared relative error, without data.
    "uniform" and "worst cut": equal shares on the cut that tolerates most, and on the one that tolerates least. All
    spend the budget as far as whole ranks allow. Raises ValueError for a layer without truncations.
    """
    if missing := set(spectra["layer"]) - set(table["layer"]):
        raise ValueError(
            f"A plan needs every layer swept, and {len(missing)} were not: take the network out of `steps`."
        )
    table = table.assign(squared_error=table["relative_error"] ** 2)
    total = sum(math.prod(shape) for shape in spectra["shape"])
    for budget in budgets:
        yield "tolerance", budget, cheapest_plan(table, "rise", int(budget * total))
        yield "error", budget, cheapest_plan(table, "squared_error", int(budget * total))
        yield "uniform", budget, plan_at_share(spectra, ranking.idxmax(), budget)
        yield "worst cut", budget, plan_at_share(spectra, ranking.idxmin(), budget)


ARMS = ("dense", "projected", "factorised", "batch norm", "untruncated")
PATH = (0.0, 0.25, 0.5, 0.75, 1.0)  # places on the line between two solutions


def plans(folder: Path, baselines: Path) -> Study:
    """The study of networks truncated in many layers at once; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.networks", partial(truncate_network, baselines=baselines), version=1, folder=folder)


def recoveries(folder: Path, baselines: Path) -> Study:
    """The study of truncated networks retrained."""
    return Study(f"{STUDY}.recoveries", partial(retrain, baselines=baselines), version=2, folder=folder)


def truncated(kernel: Tensor, form: str, ranks: Sequence[int]) -> Tensor:
    """The dense kernel of an entry of a plan. Raises ValueError as `truncation.approximate`."""
    if "+" in form:
        return measures.truncate_jointly(kernel, dict(zip(form.split("+"), ranks, strict=True)))
    return measures.approximate(kernel, form, ranks[0] if len(ranks) == 1 else tuple(ranks))


@torch.no_grad()
def apply_plan(model: nn.Module, plan: dict) -> None:
    """Truncate the layers of a plan in place; parameters stay as many as they are."""
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        layer = model.get_submodule(name)
        layer.weight.copy_(truncated(sweep.kernel(layer), form, ranks).view_as(layer.weight))


def factorise_plan(model: nn.Module, plan: dict) -> None:
    """Replace the layers of a plan in place by the small ones that they stand for; a linear layer is a 1x1 kernel."""
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        rank = ranks[0] if len(ranks) == 1 else tuple(ranks)
        form = {"OUT+IN": "tucker2"}.get(form, form)
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            small = nn.Sequential(*map(_as_linear, measures.factorise(_as_convolution(layer), form, rank)))
        else:
            small = measures.factorise(layer, form, rank)
        model.set_submodule(name, small)


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.weight, conv.bias = nn.Parameter(linear.weight[..., None, None]), linear.bias
    return conv


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight, linear.bias = nn.Parameter(conv.weight.flatten(1)), conv.bias
    return linear


def plan_parameters(model: nn.Module, plan: dict) -> int:
    """Parameters of the network of a plan in factorised form, where that is smaller than the dense kernel.

    Pairs of cuts other than OUT+IN have no form of their own here and count as dense.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        shape = sweep.kernel(model.get_submodule(name)).shape
        form = {"OUT+IN": "tucker2"}.get(form, form)
        if form in factorisation.RANKS:
            kept = factorisation.parameters(shape, form, ranks[0] if len(ranks) == 1 else tuple(ranks))
            total -= max(0, math.prod(shape) - kept)
    return total


def truncate_network(spec: dict, device: str, weights: Path, *, baselines: Path) -> dict:
    """The trial of `plans`.

    Args:
        spec: a dense network, a plan, `part`, `images`, and names of the notebook's own (`method`, `target`).

    Returns: `wrong` and `dense_wrong` images, `lost` and `gained` ones, `n`; `loss`, `dense_loss`; `parameters`,
        `dense_parameters`; `relative_error` of all kernels of the plan together.
    """
    model, dataset = dense_networks.baseline(dense_spec(spec), baselines, device)
    images, other = part(dataset, spec), deepcopy(model)
    apply_plan(other, spec)
    before = _dense_evaluation(json.dumps([dense_spec(spec), spec["part"], spec["images"]]), baselines, device)
    row = _compared(before, training.evaluate(other, images, dataset, device=device)) | {
        "parameters": plan_parameters(model, spec)
    }
    row["dense_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return row | {"relative_error": _distance(model, other, spec["layers"])}


def retrain(spec: dict, device: str, weights: Path, *, baselines: Path) -> dict:
    """The trial of `recoveries`: a truncated network after each epoch of retraining.

    Args:
        spec: a dense network, a plan (none for "untruncated"), `part`, `images`; `arm` of ARMS: "dense" lets every
            kernel go where it will, "projected" truncates again after every epoch, "factorised" trains the small
            convolutions, "batch norm" re-estimates statistics on frozen weights, "untruncated" is the control that was
            never truncated; `retrain_epochs`, `retrain_images` (an epoch), `retrain_lr`, `retrain_batch` and
            `retrain_seed`.

    Returns: by epoch from 0, `wrong` and `loss` on `n` images; `dense_wrong`; `refilled`, the relative error that
        truncating the retrained kernels once more would make (0: the rank was kept); `distance` from the dense
        kernels; and, for arms that train a compressed network, `barrier`: the largest excess of the loss on the line
        from the dense network over the straight line, over the dense network's gap to chance, with BatchNorm
        re-estimated at every point.
    """
    if spec["arm"] not in ARMS:
        raise ValueError(f"An arm of retraining is one of {', '.join(ARMS)}, not {spec['arm']!r}.")
    model, dataset = dense_networks.baseline(dense_spec(spec), baselines, device)
    images, other = part(dataset, spec), deepcopy(model)
    if spec["arm"] != "untruncated":
        apply_plan(other, spec)
    record = [training.evaluate(other, images, dataset, device=device)]
    row = {"dense_wrong": len(training.evaluate(model, images, dataset, device=device)["wrong"])}
    few = Split(images.images[:100], images.labels[:100])  # `fit` wants some; the record below has its own
    first = replace(dataset, train=epoch_images(dataset, spec, 0), validation=few)
    if spec["arm"] == "batch norm":
        reestimate_batch_norm(other, first)
        record.append(training.evaluate(other, images, dataset, device=device))
    else:
        if spec["arm"] == "factorised":
            factorise_plan(other, spec)
        seen = replace(first, train=epoch_images(dataset, spec, 0))

        def after_epoch(done: int, trained: nn.Module) -> None:
            if spec["arm"] == "projected":
                apply_plan(trained, spec)
            record.append(training.evaluate(trained, images, dataset, device=device))
            fresh = epoch_images(dataset, spec, done)
            seen.train.images.copy_(fresh.images)
            seen.train.labels.copy_(fresh.labels)

        options = {"lr": spec["retrain_lr"], "batch_size": spec["retrain_batch"], "seed": spec["retrain_seed"]}
        augment = dataset.flip  # digits are not augmented
        epochs = spec["retrain_epochs"]
        training.fit(other, seen, epochs=epochs, augment=augment, device=device, after_epoch=after_epoch, **options)
    row |= {"wrong": [len(one["wrong"]) for one in record], "loss": [one["loss"] for one in record], "n": len(images)}
    row["last_wrong"] = record[-1]["wrong"]
    other = _densified(model, other, spec["layers"]) if spec["arm"] == "factorised" else other
    row["distance"] = _distance(model, other, spec.get("layers") or sweep.layer_names(model))
    if spec["arm"] not in ("batch norm", "untruncated"):
        again = deepcopy(other)
        apply_plan(again, spec)
        row["refilled"] = _distance(other, again, spec["layers"])
        row["barrier"] = loss_barrier(model, other, first, images, device)
    return row


def epoch_images(dataset: Data, spec: dict, epoch: int) -> Split:
    """The `retrain_images` training images of an epoch, from 0: the next piece of a random order of the training split.

    No image comes again before the whole pieces of an order are spent; then another order begins. The same for every
    arm; drawn by `retrain_seed`.
    """
    whole = len(dataset.train)
    count = min(spec["retrain_images"], whole)
    lap, piece = divmod(epoch, whole // count)
    order = torch.randperm(whole, generator=generator(spec["retrain_seed"], "retraining images", lap))
    some = order[piece * count : (piece + 1) * count].to(dataset.train.labels.device)
    return Split(dataset.train.images[some], dataset.train.labels[some])


def reestimate_batch_norm(model: nn.Module, dataset: Data, batches: int = 200) -> None:
    """`batch_norm.reestimate` on at most so many batches of 128 training images of a data set."""
    some = zip(range(batches), data.batches(dataset.train, 128), strict=False)
    training.reestimate(model, (data.normalise(images, dataset.mean, dataset.std) for _, (images, _) in some))


def loss_barrier(model: nn.Module, other: nn.Module, dataset: Data, images: Split, device: str = "cpu") -> float:
    """Largest excess of the loss on the line between two networks over the straight line, over the gap to chance.

    Every point gets statistics of its own (`reestimate_batch_norm`). The gap is ln(classes) minus the loss of `model`.
    Source: paper 2's "same minimum" reading, as linear mode connectivity; the statistic is this companion's.
    """
    start, end = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (model, other))
    between, losses = deepcopy(model), []
    for place in PATH:
        nn.utils.vector_to_parameters(torch.lerp(start, end, place), between.parameters())
        reestimate_batch_norm(between, dataset)
        losses.append(training.evaluate(between, images, dataset, device=device)["loss"])
    excess = max(loss - (1 - t) * losses[0] - t * losses[-1] for t, loss in zip(PATH, losses, strict=True))
    return excess / (math.log(dataset.classes) - losses[0])


@lru_cache(maxsize=4)
def _dense_evaluation(asked: str, baselines: Path, device: str) -> dict:
    """The dense network on the images of a spec, once a process and not once a plan."""
    dense, which, images = json.loads(asked)
    model, dataset = dense_networks.baseline(dense, baselines, device)
    split = part(dataset, dense | {"part": which, "images": images})
    return training.evaluate(model, split, dataset, device=device)


def _compared(before: dict, after: dict) -> dict:
    right_before, right_after = set(before["wrong"]), set(after["wrong"])
    return {
        "wrong": len(right_after),
        "dense_wrong": len(right_before),
        "lost": len(right_after - right_before),
        "gained": len(right_before - right_after),
        "n": after["n"],
        "loss": after["loss"],
        "dense_loss": before["loss"],
    }


def _distance(model: nn.Module, other: nn.Module, names: Sequence[str]) -> float:
    """Relative error of all named kernels together."""
    pairs = [(sweep.kernel(model.get_submodule(n)), sweep.kernel(other.get_submodule(n))) for n in names]
    difference = sum((a - b).double().square().sum() for a, b in pairs)
    return (difference / sum(a.double().square().sum() for a, _ in pairs)).sqrt().item()


def _densified(model: nn.Module, factorised: nn.Module, names: Sequence[str]) -> nn.Module:
    """A factorised network with its layers multiplied out again, in the shape of the dense network."""
    other = deepcopy(factorised)
    for name in names:
        layer, small = deepcopy(model.get_submodule(name)), factorised.get_submodule(name)
        if isinstance(layer, nn.Linear):
            small = nn.Sequential(*map(_as_convolution, small))
        with torch.no_grad():
            layer.weight.copy_(factorisation.dense_kernel(small).view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(small[-1].bias)
        other.set_submodule(name, layer)
    return other
