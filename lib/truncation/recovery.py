"""Paper 2 on whole networks: truncated by a plan and retrained, trained as tensor networks, watched while training.

A plan is three lists of a spec, one entry per layer: `layers` (names), `forms` (one of `forms.RANKS`, or two
single-mode cuts as "OUT+IN") and `ranks` (a list of numbers each). If a spec with a plan is `weighted`, its OUT cuts
keep the main directions of the layers' outputs and not those of their kernels.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib import baselines, data, export, training
from lib.data import Data, Split
from lib.study import Study, generator
from lib.truncation import forms, measures, sweep
from lib.truncation.forms import parameters
from lib.truncation.measures import errors_of_ranks, matrix_shape
from lib.truncation.trials import STUDY, layer_moment, part, spectra_by_cut

ARMS = ("dense", "projected", "factorised", "batch norm", "untruncated")
PATH = (0.0, 0.25, 0.5, 0.75, 1.0)  # places on the line between two solutions
BETWEEN = 50  # batches behind the statistics of BatchNorm at each of them
FITTED = "epochs seed lr batch_size weight_decay schedule augment precision".split()  # of a dense network's spec
WATCHED_DRAWS = 5  # random kernels of each kind behind an entropy after each epoch
Prices = Callable[[str, Sequence[int], str, int], float]  # of a layer, its kernel's shape, a cut ("": dense) and rank


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


def weights_of(layer: str, shape: Sequence[int], cut: str, rank: int) -> int:
    """The price of a layer in parameters."""
    return parameters(shape, cut, rank) if cut else math.prod(shape)


def out_options(spectra: pd.DataFrame, weights: str) -> pd.DataFrame:
    """Every rank of the OUT cut of each layer of one network, with the `squared_error` that it makes at least.

    The table is one for `cheapest_plan`. The error is relative: that of a layer's outputs if `weights` is
    "output_weights", that of its kernel if it is "weights_OUT". A layer without such weights is left out, and so dense.
    """
    found = []
    for row in spectra[spectra[weights].map(len) > 0].to_dict("records"):
        largest = min(matrix_shape(row["shape"], "OUT"))  # directions beyond it carry rounding errors alone
        errors = errors_of_ranks(torch.tensor(row[weights], dtype=torch.float64))[:largest]
        shape = "x".join(map(str, row["shape"]))
        common = {"layer": row["layer"], "shape": shape, "method": "cut", "cut": "OUT"}
        found += [common | {"rank": k, "squared_error": error**2} for k, error in enumerate(errors.tolist(), 1)]
    return pd.DataFrame(found)


def cheapest_plan(table: pd.DataFrame, cost: str, budget: float, prices: Prices = weights_of) -> dict:
    """For each layer of one network the cut and rank that together cost least within a share of the dense price.

    The table holds truncations as `analysis.points`; the cost is a column, such as `rise`, added over layers. It is
    minimised by a Lagrange multiplier. The rest of the budget goes, one layer at a time, where it lowers the cost most
    for each unit of the price. An option that saves nothing is replaced by the dense layer.
    """
    options = {}  # by layer: price, cost, cut and rank
    for layer, one in table[table["method"] == "cut"].groupby("layer", sort=False):
        shape = tuple(int(size) for size in one["shape"].iloc[0].split("x"))
        paid = [prices(layer, shape, entry.cut, entry.rank) for entry in one.itertuples()]
        listed = zip(paid, one[cost].clip(lower=0.0), one["cut"], one["rank"], strict=True)
        dense = prices(layer, shape, "", 0)
        options[layer] = [(dense, 0.0, "", 0), *(one for one in listed if one[0] < dense)]
    budget = budget * sum(listed[0][0] for listed in options.values())
    for multiplier in np.geomspace(1e-9, 1e6, 800):
        chosen = {layer: min(listed, key=lambda o: o[1] + multiplier * o[0]) for layer, listed in options.items()}
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


def uniform_within(spectra: pd.DataFrame, cut: str, budget: float, prices: Prices) -> dict:
    """The plan of `plan_at_share` with the largest share of parameters whose price is within a share of the dense one.

    Shares go in steps of a hundredth; layers to which the cut does not apply stay dense, and all do if that is within.
    """
    plan = {"layers": [], "forms": [], "ranks": []}
    for share in np.arange(1.0, 0.0, -0.01):
        if price_share(spectra, plan, prices) <= budget:
            break
        plan = plan_at_share(spectra, cut, float(share))
    return plan


def timed_specs(spectra: pd.DataFrame, cuts: Sequence[str], shares: Sequence[float], batch: int) -> list[dict]:
    """Specs of `trials.latencies` for every kernel of one network: dense, and some cuts at shares of their ranks.

    Layers of one shape, stride and map are timed once.
    """
    found = []
    for row, kernel in zip(spectra.to_dict("records"), _kernels(spectra).values(), strict=True):
        common = dict(zip(("shape", "map", "stride"), kernel, strict=True)) | {"batch": batch}
        found.append(common | {"form": "dense", "share": 1.0})
        for cut in [cut for cut in cuts if cut in row["cut"]]:
            largest = len(row[f"weights_{cut}"])
            ranks = sorted({max(1, round(share * largest)) for share in (0.0, *shares, 1.0)})
            found += [common | {"form": cut, "rank": rank} for rank in ranks]
    return [one for k, one in enumerate(found) if one not in found[:k]]


def measured_prices(spectra: pd.DataFrame, timed: pd.DataFrame) -> Prices:
    """Prices of one network's layers in measured milliseconds, from rows of `trials.latencies` of `timed_specs`.

    They are linear between the ranks that were timed.
    """
    kernels, timed = _kernels(spectra), timed.assign(rank=timed["rank"].fillna(0))
    keys = [timed["shape"].map(_text), timed["map"], timed["stride"], timed["form"]]
    known = {key: one.sort_values("rank") for key, one in timed.groupby(keys)}

    def price(layer: str, shape: Sequence[int], cut: str, rank: int) -> float:
        size, side, stride = kernels[layer]
        one = known[_text(size), side, stride, cut or "dense"]
        return float(np.interp(rank, one["rank"], one["made_latency_ms"]))

    return price


def price_share(spectra: pd.DataFrame, plan: dict, prices: Prices) -> float:
    """The price of a plan of one network, as a share of that of the dense layers; other layers stay dense."""
    shapes = dict(zip(spectra["layer"], spectra["shape"], strict=True))
    dense = {name: prices(name, shape, "", 0) for name, shape in shapes.items()}
    listed = zip(plan["layers"], plan["forms"], plan["ranks"], strict=True)
    paid = dense | {name: prices(name, shapes[name], cut, ranks[0]) for name, cut, ranks in listed}
    return sum(paid.values()) / sum(dense.values())


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(int(size)) for size in shape)


def _kernels(spectra: pd.DataFrame) -> dict[str, tuple[list[int], int, int]]:
    """Shape of the kernel, side of the map (pixels) and stride of each layer of one network."""
    model, found = baselines.untrained(spectra.iloc[0].to_dict()), {}
    for name, shape, side in zip(spectra["layer"], spectra["shape"], spectra["map"], strict=True):
        layer = model.get_submodule(name)
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        found[name] = [int(size) for size in shape], int(side), stride
    return found


def saved(shapes: Mapping[str, Sequence[int]], plan: dict) -> int:
    """Parameters that a plan saves in factorised form, given the shapes of the kernels by layer.

    A kernel stays dense where its form is larger, and where it has none, as that of OUT+KW.
    """
    return sum(
        max(0, math.prod(shapes[name]) - parameters(shapes[name], form, rank))
        for name, form, rank in named_forms(plan)
        if form in forms.RANKS
    )


def kept_share(spectra: pd.DataFrame, plan: dict) -> float:
    """Share of the parameters of all layers that a plan keeps in factorised form; other layers are dense."""
    shapes = dict(zip(spectra["layer"], spectra["shape"], strict=True))
    total = sum(math.prod(shape) for shape in shapes.values())
    return (total - saved(shapes, plan)) / total


def named_forms(plan: dict) -> Iterator[tuple[str, str, int | tuple[int, ...]]]:
    """Name, form and rank of each layer of a plan, as `forms` takes them: OUT and IN together are Tucker-2."""
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        yield name, {"OUT+IN": "tucker2"}.get(form, form), ranks[0] if len(ranks) == 1 else tuple(ranks)


def plans(folder: Path, dense_folder: Path) -> Study:
    """The study of networks truncated in many layers at once; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.networks", partial(truncate_network, dense_folder=dense_folder), version=1, folder=folder)


def recoveries(folder: Path, dense_folder: Path) -> Study:
    """The study of truncated networks retrained."""
    trial = partial(retrain, dense_folder=dense_folder)
    return Study(f"{STUDY}.recoveries", trial, version=3, folder=folder, keeps=False)


def tensorised(folder: Path, dense_folder: Path) -> Study:
    """The study of networks that are small tensors from the start, or truncated when they are trained."""
    return Study(f"{STUDY}.tensorised", partial(tensorise, dense_folder=dense_folder), version=1, folder=folder)


def watched(folder: Path) -> Study:
    """The study of spectra while a network is trained."""
    return Study(f"{STUDY}.watched", watch, version=1, folder=folder)


@torch.no_grad()
def apply_plan(model: nn.Module, plan: dict, moments: Mapping[str, Tensor] | None = None) -> None:
    """Truncate the layers of a plan in place; the number of parameters stays the same.

    An OUT cut of a layer among `moments`, those of `plan_moments`, keeps the main directions of its outputs.
    """
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        layer = model.get_submodule(name)
        kernel = sweep.kernel(layer)
        if moments and form == "OUT" and moments[name] is not None:
            truncated = measures.truncate_outputs(kernel, ranks[0], moments[name])
        elif "+" in form:
            truncated = measures.truncate_jointly(kernel, dict(zip(form.split("+"), ranks, strict=True)))
        else:
            truncated = forms.approximate(kernel, form, tuple(ranks))
        layer.weight.copy_(truncated.view_as(layer.weight))


def plan_moments(model: nn.Module, plan: dict, dataset: Data) -> dict[str, Tensor | None]:
    """The moments of the inputs of a plan's layers (`trials.layer_moment`); none if the plan is not `weighted`."""
    return {name: layer_moment(model, name, dataset) for name in plan["layers"]} if plan.get("weighted") else {}


def factorise_plan(model: nn.Module, plan: dict) -> None:
    """Replace the layers of a plan in place by small ones; a linear layer is a 1x1 kernel."""
    for name, form, rank in named_forms(plan):
        model.set_submodule(name, small_layer(model.get_submodule(name), form, rank))


def small_layer(layer: nn.Module, form: str, rank: forms.Ranks, **options) -> nn.Sequential:
    """A layer in a form, as `forms.factorise`; the factors of a linear layer are linear layers.

    Raises:
        ValueError: as `forms.factorise`, and for a form whose factors a linear layer cannot be made of, such as CP.
    """
    if not isinstance(layer, nn.Linear):
        return forms.factorise(layer, form, rank, **options)
    steps = forms.factorise(_as_convolution(layer), form, rank, **options)
    if any(step.groups > 1 for step in steps):
        raise ValueError(f"A linear layer cannot take the form {form!r}: use OUT or tucker2.")
    return nn.Sequential(*map(_as_linear, steps))


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
    apply_plan(other, spec, plan_moments(model, spec, dataset))
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


def retrain(spec: dict, device: str, weights: Path | None, *, dense_folder: Path) -> dict:
    """The trial of `recoveries`: a truncated network after each epoch of retraining.

    The network at the end is kept if there is a path for its `weights`: `export.rebuild` reads it.

    The spec holds a dense network, a plan (none for "untruncated"), `part`, `images`; `retrain_epochs`,
    `retrain_images` (an epoch), `retrain_lr`, `retrain_batch`, `retrain_precision`, `retrain_seed`; and `arm`, one of
    ARMS. "dense" leaves every kernel free, "projected" truncates again after every epoch, "factorised" trains the small
    convolutions, "batch norm" re-estimates statistics on frozen weights, "untruncated" is the control that was never
    truncated.

    Returns:
        By epoch from 0, `wrong` and `loss` on `n` images; `dense_wrong`; `refilled`, the relative error that truncating
        the retrained kernels once more would make (0: the rank was kept); `distance` from the dense kernels; and, for
        arms that train a truncated network and a spec that asks for the `barrier`, `loss_barrier`.
    """
    if spec["arm"] not in ARMS:
        raise ValueError(f"An arm of retraining is one of {', '.join(ARMS)}, not {spec['arm']!r}.")
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    images, other = part(dataset, spec), deepcopy(model)
    if spec["arm"] != "untruncated":
        apply_plan(other, spec, plan_moments(model, spec, dataset))
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
    if weights:
        export.write(other, weights)
    other = multiply_out(model, other, spec["layers"]) if spec["arm"] == "factorised" else other
    names = spec.get("layers") or sweep.layer_names(model)  # a plan may leave all layers dense
    row["distance"] = _distance(model, other, names)
    if spec["arm"] not in ("batch norm", "untruncated"):
        again = deepcopy(other)
        apply_plan(again, spec)
        row["refilled"] = _distance(other, again, names)
        if spec.get("barrier"):
            row["loss_barrier"] = loss_barrier(model, other, first, images, device)
    return row


def tensorise(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `tensorised`: the convolutions before the head in one form, within a share of their parameters each.

    The spec holds a dense network, `images`, and its `way`. "dense" evaluates that network and does nothing else. The
    others also need `tensor_form` and `budget`. A "truncated" network has been trained dense; it takes the best ranks,
    and is retrained factorised as the spec's `retrain_epochs`, `retrain_lr`, `retrain_batch` and `retrain_precision`
    say. From "scratch", factors with ranks that are equal shares of the largest ones are trained for the `epochs` of
    the dense network's spec. A layer with no such ranks stays dense.

    Returns:
        `wrong` images of `n` report images, `selection_wrong` of `selection_n` ones; `parameters` and
        `dense_parameters`.
    """
    if spec["way"] not in ("dense", "scratch", "truncated"):
        raise ValueError(f"A way to a tensorised network is dense, scratch or truncated, not {spec['way']!r}.")
    scratch, own = spec["way"] == "scratch", baselines.dense_spec(spec)
    if scratch:
        dataset = data.load(own["dataset"], device=device, seed=own["seed"], limit=own.get("limit"))
        model = baselines.build(own, dataset).to(device)
        options = {name: own[name] for name in FITTED if name in own}
    else:
        model, dataset = baselines.baseline(own, dense_folder, device)
        asked = {"epochs": "epochs", "lr": "lr", "batch_size": "batch", "precision": "precision"}
        options = {name: spec.get(f"retrain_{short}") for name, short in asked.items()}
        options |= {"seed": own["seed"], "augment": dataset.flip}
    row = {"dense_parameters": sum(one.numel() for one in model.parameters())}
    random = generator(own["seed"], "factors")
    for name in sweep.layer_names(model) if spec["way"] != "dense" else ():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and (ranks := _ranks(layer, spec, best=not scratch)):
            factors = {"generator": random, "starts": 1, "iterations": 1 if scratch else spec["iterations"]}
            small = forms.factorise(layer, spec["tensor_form"], ranks, **factors if spec["tensor_form"] == "cp" else {})
            model.set_submodule(name, initialised(small, ranks, layer.weight, random) if scratch else small)
    row["parameters"] = sum(one.numel() for one in model.parameters())
    if spec["way"] != "dense":
        training.fit(model, dataset, device=device, **options)
    for prefix, name in (("", "report"), ("selection_", "selection")):
        found = training.evaluate(model, part(dataset, spec | {"part": name}), dataset, device=device)
        row |= {f"{prefix}wrong": len(found["wrong"]), f"{prefix}n": found["n"]}
    return row


def _ranks(layer: nn.Conv2d, spec: dict, best: bool) -> int | tuple[int, ...] | None:
    """The ranks of a convolution's form within a share of its parameters; none if there are none."""
    shape, within = layer.weight.shape, spec["budget"] * layer.weight.numel()
    if forms.parameters(shape, spec["tensor_form"], forms.ranks_at(shape, spec["tensor_form"], 0)) > within:
        return None
    if best:
        return forms.best_ranks(layer.weight.detach(), spec["tensor_form"], within)
    return forms.ranks_within(shape, spec["tensor_form"], within)


@torch.no_grad()
def initialised(small: nn.Sequential, ranks: int | Sequence[int], dense: Tensor, random: torch.Generator) -> nn.Module:
    """A factorised layer with random factors whose product has the variance of the entries of a dense kernel.

    An entry of the product is a sum, over all values of the bonds that `ranks` count, of products of one weight of each
    stage. Weights are independent and normal, of one standard deviation. So the layer's outputs have the variance of a
    dense layer with independent entries, such as He's initialisation.
    """
    terms = math.prod(ranks) if isinstance(ranks, Sequence) else ranks
    deviation = (dense.square().mean().item() / terms) ** (0.5 / len(small))
    for stage in small:
        noise = torch.randn(stage.weight.shape, generator=random)
        stage.weight.copy_(deviation * noise)
    return small


def watch(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `watched`: the entropies of all kernels of a network, before training and after every epoch.

    The spec is that of a dense network; if `labels` are "shuffled", it is trained on permuted ones.

    Returns:
        Lists with an entry for each epoch, layer and cut: `epoch` (0 before training), `layer`, `cut`, `entropy`, and
        the mean entropies of random kernels, `random_entropy` and `profile_entropy` (`trials.spectra_by_cut`). Also
        `train_loss`, by epoch.
    """
    dataset = data.load(spec["dataset"], device=device, seed=spec["seed"], limit=spec.get("limit"))
    if spec.get("labels") == "shuffled":
        order = torch.randperm(len(dataset.train), generator=generator(spec["seed"], "shuffled labels"))
        dataset.train.labels.copy_(dataset.train.labels[order.to(device)])
    model, found = baselines.build(spec, dataset).to(device), []

    def after_epoch(done: int, trained: nn.Module) -> None:
        for name in sweep.layer_names(trained):
            stream = generator(spec["seed"], "random kernels", name, done)
            by_cut = spectra_by_cut(sweep.kernel(trained.get_submodule(name)), stream, WATCHED_DRAWS)
            columns = ["cut", "entropy", "random_entropy", "profile_entropy"]
            found.append(pd.DataFrame({column: by_cut[column] for column in columns}).assign(epoch=done, layer=name))

    after_epoch(0, model)
    options = {name: spec[name] for name in FITTED if name in spec}
    history = training.fit(model, dataset, device=device, after_epoch=after_epoch, **options)
    table = pd.concat(found, ignore_index=True)
    return table.to_dict("list") | {"train_loss": [epoch["train_loss"] for epoch in history]}


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
        reestimate_batch_norm(between, dataset, batches=BETWEEN)
        losses.append(training.evaluate(between, images, dataset, device=device)["loss"])
    excess = max(loss - (1 - t) * losses[0] - t * losses[-1] for t, loss in zip(PATH, losses, strict=True))
    return excess / (math.log(dataset.classes) - losses[0])


def _distance(model: nn.Module, other: nn.Module, names: Sequence[str]) -> float:
    """Relative error of all named kernels together."""
    pairs = [(sweep.kernel(model.get_submodule(n)), sweep.kernel(other.get_submodule(n))) for n in names]
    difference = sum((a - b).double().square().sum() for a, b in pairs)
    return (difference / sum(a.double().square().sum() for a, _ in pairs)).sqrt().item()
