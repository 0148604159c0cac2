"""Paper 2 on whole networks: many layers truncated by a plan, and retrained in five ways.

A plan is three lists of a spec, one entry per layer: `layers` (names), `forms` (one of `forms.RANKS`, or two
single-mode cuts as "OUT+IN") and `ranks` (a list of numbers each).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib import baselines, data, training
from lib.data import Data, Split
from lib.study import Study, generator
from lib.truncation import forms, measures, sweep
from lib.truncation.cuts import errors_of_ranks
from lib.truncation.forms import parameters
from lib.truncation.trials import STUDY, part

ARMS = ("dense", "projected", "factorised", "batch norm", "untruncated")
PATH = (0.0, 0.25, 0.5, 0.75, 1.0)  # places on the line between two solutions


def plan_at_error(spectra: pd.DataFrame, form: str, error: float) -> dict:
    """Every layer truncated to the same relative error on one cut, or on each of two single-mode cuts ("OUT+IN").

    `spectra` are the rows of one network in `trials.spectra`. A layer to which the cut does not apply stays dense.
    """
    chosen = spectra[[set(form.split("+")) <= set(cuts) for cuts in spectra["cut"]]]
    columns = [f"weights_{cut}" for cut in form.split("+")]
    weights = [[torch.tensor(row[name], dtype=torch.float64) for name in columns] for _, row in chosen.iterrows()]
    ranks = [[int((errors_of_ranks(one) > error).sum()) + 1 for one in layer] for layer in weights]
    return {"layers": list(chosen["layer"]), "forms": [form] * len(chosen), "ranks": ranks}


def plan_at_share(spectra: pd.DataFrame, cut: str, budget: float) -> dict:
    """Every layer on one cut at the same share of its own parameters, at least rank 1: uniform ranks.

    Ranks are whole numbers, rounded down. The rest of the budget is spent one rank at a time, layer by layer from the
    input, round after round, until no further rank fits. A layer to which the cut does not apply stays dense.
    """
    chosen = spectra[[cut in cuts for cuts in spectra["cut"]]]
    sizes = np.array([math.prod(shape) for shape in chosen["shape"]])
    prices = np.array([parameters(shape, cut, 1) for shape in chosen["shape"]])
    largest = np.minimum([len(row) for row in chosen[f"weights_{cut}"]], (sizes - 1) // prices).clip(1)
    ranks = np.minimum((budget * sizes / prices).astype(int), largest).clip(1)
    dense = sum(math.prod(shape) for shape in spectra["shape"]) - sizes.sum()
    left = budget * (dense + sizes.sum()) - dense - ranks @ prices
    while ((prices <= left) & (ranks < largest)).any():
        for k, price in enumerate(prices):
            if price <= left and ranks[k] < largest[k]:
                ranks[k], left = ranks[k] + 1, left - price
    return {"layers": list(chosen["layer"]), "forms": [cut] * len(chosen), "ranks": [[int(rank)] for rank in ranks]}


def cheapest_plan(table: pd.DataFrame, cost: str, budget: float) -> dict:
    """For each layer of one network the cut and rank that together cost least within a share of the parameters.

    The table holds truncations as `analysis.points`; the cost is a column, such as `rise`, added over layers. It is
    minimised by a price on parameters (Lagrange). The rest of the budget goes, one layer at a time, where it lowers the
    cost most for each parameter. An option that saves no parameters is replaced by the dense layer.
    """
    options = {}  # by layer: parameters, cost, cut and rank
    for layer, one in table[table["method"] == "cut"].groupby("layer", sort=False):
        shape = tuple(int(size) for size in one["shape"].iloc[0].split("x"))
        sizes = [parameters(shape, entry.cut, entry.rank) for entry in one.itertuples()]
        listed = zip(sizes, one[cost].clip(lower=0.0), one["cut"], one["rank"], strict=True)
        options[layer] = [(math.prod(shape), 0.0, "", 0), *(one for one in listed if one[0] < math.prod(shape))]
    budget = int(budget * sum(listed[0][0] for listed in options.values()))
    for price in np.geomspace(1e-9, 1e3, 600):
        chosen = {layer: min(listed, key=lambda o: o[1] + price * o[0]) for layer, listed in options.items()}
        if sum(option[0] for option in chosen.values()) <= budget:
            break
    left = budget - sum(option[0] for option in chosen.values())
    while moves := [
        ((chosen[layer][1] - one[1]) / (one[0] - chosen[layer][0]), layer, one)
        for layer, listed in options.items()
        for one in listed
        if 0 < one[0] - chosen[layer][0] <= left and one[1] < chosen[layer][1]
    ]:
        _, layer, one = max(moves, key=lambda move: move[0])
        chosen[layer], left = one, left - (one[0] - chosen[layer][0])
    kept = {layer: option for layer, option in chosen.items() if option[2]}
    cuts, ranks = [option[2] for option in kept.values()], [[int(option[3])] for option in kept.values()]
    return {"layers": list(kept), "forms": cuts, "ranks": ranks}


def saved(shapes: Mapping[str, Sequence[int]], plan: dict) -> int:
    """Parameters that a plan saves in factorised form, given the shapes of the kernels by layer.

    A kernel stays dense where its form is larger, and where it has none, as that of OUT+KW.
    """
    return sum(
        max(0, math.prod(shapes[name]) - parameters(shapes[name], form, rank))
        for name, form, rank in _factorised(plan)
        if form in forms.RANKS
    )


def kept_share(spectra: pd.DataFrame, plan: dict) -> float:
    """Share of the parameters of all layers that a plan keeps in factorised form; other layers are dense."""
    shapes = dict(zip(spectra["layer"], spectra["shape"], strict=True))
    total = sum(math.prod(shape) for shape in shapes.values())
    return (total - saved(shapes, plan)) / total


def _factorised(plan: dict) -> Iterator[tuple[str, str, int | tuple[int, ...]]]:
    """Name, form and rank of each layer of a plan, as `forms` takes them: OUT and IN together are Tucker-2."""
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        yield name, {"OUT+IN": "tucker2"}.get(form, form), ranks[0] if len(ranks) == 1 else tuple(ranks)


def plans(folder: Path, dense_folder: Path) -> Study:
    """The study of networks truncated in many layers at once; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.networks", partial(truncate_network, dense_folder=dense_folder), version=1, folder=folder)


def recoveries(folder: Path, dense_folder: Path) -> Study:
    """The study of truncated networks retrained."""
    return Study(f"{STUDY}.recoveries", partial(retrain, dense_folder=dense_folder), version=2, folder=folder)


@torch.no_grad()
def apply_plan(model: nn.Module, plan: dict) -> None:
    """Truncate the layers of a plan in place; the number of parameters stays the same."""
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        layer = model.get_submodule(name)
        kernel = sweep.kernel(layer)
        if "+" in form:
            truncated = measures.truncate_jointly(kernel, dict(zip(form.split("+"), ranks, strict=True)))
        else:
            truncated = forms.approximate(kernel, form, tuple(ranks))
        layer.weight.copy_(truncated.view_as(layer.weight))


def factorise_plan(model: nn.Module, plan: dict) -> None:
    """Replace the layers of a plan in place by small ones; a linear layer is a 1x1 kernel."""
    for name, form, rank in _factorised(plan):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            small = nn.Sequential(*map(_as_linear, forms.factorise(_as_convolution(layer), form, rank)))
        else:
            small = forms.factorise(layer, form, rank)
        model.set_submodule(name, small)


def multiply_out(model: nn.Module, factorised: nn.Module, names: Sequence[str]) -> nn.Module:
    """A factorised network in the shape of the dense network `model`, the factors of the named layers multiplied."""
    other = deepcopy(factorised)
    for name in names:
        layer, small = deepcopy(model.get_submodule(name)), factorised.get_submodule(name)
        if isinstance(layer, nn.Linear):
            small = nn.Sequential(*map(_as_convolution, small))
        with torch.no_grad():
            kernel = forms.dense_kernel(small, layer.groups if isinstance(layer, nn.Conv2d) else 1)
            layer.weight.copy_(kernel.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(small[-1].bias)
        other.set_submodule(name, layer)
    return other


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.weight = nn.Parameter(linear.weight[..., None, None], linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight, linear.bias = nn.Parameter(conv.weight.flatten(1), conv.weight.requires_grad), conv.bias
    return linear


def truncate_network(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `plans`. The spec holds a dense network, a plan, `part`, `images`, and the notebook's own labels.

    Returns:
        `wrong` and `dense_wrong` images, `lost` and `gained` ones, `n`; `loss`, `dense_loss`; `parameters`,
        `dense_parameters`; `relative_error` of all kernels of the plan together.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    images, other = part(dataset, spec), deepcopy(model)
    apply_plan(other, spec)
    before, after = (training.evaluate(one, images, dataset, device=device) for one in (model, other))
    right, wrong = set(before["wrong"]), set(after["wrong"])
    dense = sum(parameter.numel() for parameter in model.parameters())
    shapes = {name: sweep.kernel(model.get_submodule(name)).shape for name in spec["layers"]}
    return {
        "wrong": len(wrong),
        "dense_wrong": len(right),
        "lost": len(wrong - right),
        "gained": len(right - wrong),
        "n": after["n"],
        "loss": after["loss"],
        "dense_loss": before["loss"],
        "parameters": dense - saved(shapes, spec),
        "dense_parameters": dense,
        "relative_error": _distance(model, other, spec["layers"]),
    }


def retrain(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `recoveries`: a truncated network after each epoch of retraining.

    The spec holds a dense network, a plan (none for "untruncated"), `part`, `images`; `retrain_epochs`,
    `retrain_images` (an epoch), `retrain_lr`, `retrain_batch`, `retrain_precision`, `retrain_seed`; and `arm`, one of
    ARMS. "dense" leaves every kernel free, "projected" truncates again after every epoch, "factorised" trains the small
    convolutions, "batch norm" re-estimates statistics on frozen weights, "untruncated" is the control that was never
    truncated.

    Returns:
        By epoch from 0, `wrong` and `loss` on `n` images; `dense_wrong`; `refilled`, the relative error that truncating
        the retrained kernels once more would make (0: the rank was kept); `distance` from the dense kernels; and, for
        arms that train a compressed network, `barrier` as `loss_barrier`.
    """
    if spec["arm"] not in ARMS:
        raise ValueError(f"An arm of retraining is one of {', '.join(ARMS)}, not {spec['arm']!r}.")
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    images, other = part(dataset, spec), deepcopy(model)
    if spec["arm"] != "untruncated":
        apply_plan(other, spec)
    record = [training.evaluate(other, images, dataset, device=device)]
    row = {"dense_wrong": len(training.evaluate(model, images, dataset, device=device)["wrong"])}
    few = Split(images.images[:100], images.labels[:100])  # `fit` evaluates on some; the record has its own
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

        options = {"epochs": spec["retrain_epochs"], "lr": spec["retrain_lr"], "batch_size": spec["retrain_batch"]}
        options |= {"seed": spec["retrain_seed"], "augment": dataset.flip}  # digits are not augmented
        options["precision"] = spec.get("retrain_precision", "float32")
        training.fit(other, seen, device=device, after_epoch=after_epoch, **options)
    row |= {"wrong": [len(one["wrong"]) for one in record], "loss": [one["loss"] for one in record], "n": len(images)}
    row["last_wrong"] = record[-1]["wrong"]
    other = multiply_out(model, other, spec["layers"]) if spec["arm"] == "factorised" else other
    row["distance"] = _distance(model, other, spec.get("layers") or sweep.layer_names(model))
    if spec["arm"] not in ("batch norm", "untruncated"):
        again = deepcopy(other)
        apply_plan(again, spec)
        row["refilled"] = _distance(other, again, spec["layers"])
        row["barrier"] = loss_barrier(model, other, first, images, device)
    return row


def epoch_images(dataset: Data, spec: dict, epoch: int) -> Split:
    """The `retrain_images` training images of an epoch, from 0: the next piece of a random order of the training split.

    No image comes again before the whole pieces of an order are spent; then another order begins. `retrain_seed` draws
    the orders, the same for every arm.
    """
    whole = len(dataset.train)
    count = min(spec["retrain_images"], whole)
    lap, piece = divmod(epoch, whole // count)
    order = torch.randperm(whole, generator=generator(spec["retrain_seed"], "retraining images", lap))
    some = order[piece * count : (piece + 1) * count].to(dataset.train.labels.device)
    return Split(dataset.train.images[some], dataset.train.labels[some])


def reestimate_batch_norm(model: nn.Module, dataset: Data, batches: int = 200) -> None:
    """`training.reestimate` on at most this number of batches of 128 training images."""
    some = zip(range(batches), data.batches(dataset.train, 128), strict=False)
    training.reestimate(model, (data.normalise(images, dataset.mean, dataset.std) for _, (images, _) in some))


def loss_barrier(model: nn.Module, other: nn.Module, dataset: Data, images: Split, device: str = "cpu") -> float:
    """Largest excess of the loss on the line between two networks over the straight line, over the gap to chance.

    BatchNorm statistics are re-estimated at every point. The gap is ln(classes) minus the loss of `model`.

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


def _distance(model: nn.Module, other: nn.Module, names: Sequence[str]) -> float:
    """Relative error of all named kernels together."""
    pairs = [(sweep.kernel(model.get_submodule(n)), sweep.kernel(other.get_submodule(n))) for n in names]
    difference = sum((a - b).double().square().sum() for a, b in pairs)
    return (difference / sum(a.double().square().sum() for a, _ in pairs)).sqrt().item()
