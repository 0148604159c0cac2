"""Whole networks compressed in many ways to one cost, retrained alike: parameters, MACs, or measured latency.

A spec holds that of a dense network, `arm` (one of ARMS), `cost` ("parameters" or "macs") and `budget`, the share of
the dense network's cost that may stay. Every arm comes as close to the budget as whole weights, ranks or channels
allow, and not above it by more than a hundredth. A masked weight costs neither parameters nor MACs, and a weight of b
bits counts as b / 32 parameters.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib import baselines, channels, compare, models, spaces, spline, training, truncation
from lib.channels import Groups
from lib.data import Data
from lib.latent import head
from lib.provenance import CompanionError
from lib.spaces import samplers
from lib.spaces import trials as pruning
from lib.spline import measures as nodes
from lib.study import Study
from lib.truncation import recovery, sweep
from lib.truncation.trials import layer_moment
from lib.which import trials
from lib.which.measures import Dense
from lib.which.trials import STUDY

PAPERS = ("global sparsity", "weighted ranks", "recipe at the optimum", "merged nodes")  # the best form of each paper
PLAIN = ("uniform channels", "uniform ranks", "global L1 channels", "quantised")
BOTH = "pruned, then truncated"
ARMS = (*PAPERS, *PLAIN, BOTH)
WHOLE = ("kl", "ap2_share", "code_change")  # measures of a whole compression
COSTS = ("parameters", "macs")
OPTIMUM = 0.9  # mCB of the recipe: the lowest point of the main network's ladders in notebook 03, exp(-0.094)


def contest_specs(dense: list[dict], budgets: Sequence[float], costs: Sequence[str] = COSTS, **options) -> list[dict]:
    """A spec for each network, arm, cost and budget, and for each network retrained without compression."""
    found = [spec | {"arm": "dense", "cost": COSTS[0], "budget": 1.0} | options for spec in dense]
    for spec, arm in itertools.product(dense, ARMS):
        for cost in COSTS[:1] if arm == "quantised" else costs:  # fewer bits leave as many products
            found += [spec | {"arm": arm, "cost": cost, "budget": budget} | options for budget in budgets]
    return found


def contests(folder: Path, dense_folder: Path) -> Study:
    """The study of compressed and retrained networks; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.contests", partial(compete, dense_folder=dense_folder), version=1, folder=folder)


def latencies(folder: Path, dense_folder: Path) -> Study:
    """The study of measured latencies of compressed networks; its trials run one at a time."""
    return Study(f"{STUDY}.latencies", partial(measure_latency, dense_folder=dense_folder), version=1, folder=folder)


def compete(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `contests`: compress in one shot, re-estimate BatchNorm, retrain to the last epoch, measure.

    A spec also holds `few`, `bn_images`, `test_images`, `retrain_images`, `retrain_batch`, `retrain_lr`,
    `retrain_precision`, `retrain_seed`. Zeros and ranks stay; quantised weights are retrained in float and quantised
    again.

    Raises:
        CompanionError: for an arm that cannot go down to the budget, such as ranks where a linear layer is the most.

    Returns:
        `kept_parameters` and `kept_macs`, shares of the dense network; WHOLE of `compare.measure` on the few training
        images, once BatchNorm is re-estimated; and at each stage ("once", "bn", "retrained") the
        accuracy (%) and loss (nats) on test images, also of the dense network.
    """
    dense = trials.loaded(spec, dense_folder, device)
    dataset, test = dense.dataset, dense.dataset.test.first(spec["test_images"])
    small = compressed(dense, spec)
    row = {"family": trials.family(spec["network"], spec["dataset"])} | kept(dense, small, spec)
    if (left := row[f"kept_{spec['cost']}"]) > 1.015 * spec["budget"]:
        arm, cost = spec["arm"], spec["cost"]
        raise CompanionError(f"{arm}: {left:.1%} of the {cost} are the least that stays, and not {spec['budget']:.0%}.")

    def score(stage: str, model: nn.Module) -> dict[str, float]:
        found = training.evaluate(model, test, dataset, device=device)
        return {f"accuracy_{stage}": 100 * found["accuracy"], f"loss_{stage}": found["loss"]}

    row |= score("dense", dense.model) | score("once", small)
    trials.reestimate(small, dataset, spec["bn_images"])
    total = compare.measure(dense.model, small, dense.images).iloc[-1]
    row |= score("bn", small) | {name: float(total[name]) for name in WHOLE}
    few = replace(dataset, train=dataset.train.first(spec["retrain_images"]), validation=dataset.validation.first(1))
    options = {"lr": spec["retrain_lr"], "batch_size": spec["retrain_batch"], "seed": spec["retrain_seed"]}
    options |= {"precision": spec["retrain_precision"], "augment": dataset.flip}  # digits are not augmented
    training.fit(small, few, epochs=1, device=device, **options)
    if spec["arm"] == "quantised":
        quantise(small, spec["budget"])
    return row | score("retrained", small)


def measure_latency(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `latencies`: median milliseconds of a forward pass of 1 and of 128 images."""
    dense = trials.loaded(spec, dense_folder, device)
    small = compressed(dense, spec)
    row = kept(dense, small, spec)
    shape = (dense.dataset.channels, dense.dataset.size, dense.dataset.size)
    return row | {f"made_latency_{n}_ms": training.latency_ms(small, (n, *shape), device) for n in (1, 128)}


def compressed(dense: Dense, spec: dict) -> nn.Module:
    """The network of a spec's arm, not yet repaired."""
    arm, cost, budget = spec["arm"], spec["cost"], spec["budget"]
    model, dataset = deepcopy(dense.model), dense.dataset
    if arm == "dense":
        return model
    if arm == "global sparsity":
        return sparsified(model, dataset, cost, budget)
    if arm == "quantised":
        return quantise(model, budget)
    if arm in ("weighted ranks", "uniform ranks"):
        return truncated(model, table_of(dense.model, dataset), dataset, cost, budget, weighted=arm == "weighted ranks")
    groups = pruning.prunable(baselines.dense_spec(spec))
    if arm == "merged nodes":
        return merged(model, groups, dataset.size, cost, budget)
    share = math.sqrt(budget) if arm == BOTH else budget
    widths = recipe(dense.model, groups, spaces.Regime(share, cost), arm)
    pruned = channels.prune(model, dict(zip(groups.names, widths, strict=True)), size=dataset.size)
    if arm != BOTH:
        return pruned
    trials.reestimate(pruned, dataset, spec["bn_images"])  # the inputs of its layers decide which ranks stay
    size = price(pruned, dataset, cost) / price(dense.model, dataset, cost)
    return truncated(pruned, table_of(pruned, dataset), dataset, cost, budget / size, weighted=True)


def kept(dense: Dense, small: nn.Module, spec: dict) -> dict[str, float]:
    """Shares of the dense network's parameters and MACs that are left."""
    sparse = spec["arm"] == "global sparsity"
    shares = [price(small, dense.dataset, one, sparse) / price(dense.model, dense.dataset, one) for one in COSTS]
    if spec["arm"] == "quantised":
        shares[0] *= bits_of(spec["budget"]) / 32
    return dict(zip(("kept_parameters", "kept_macs"), shares, strict=True))


def price(model: nn.Module, dataset: Data, cost: str, sparse: bool = False) -> float:
    """Parameters or MACs of one image; in a `sparse` network, weights that are 0 cost nothing."""
    shape = (1, dataset.channels, dataset.size, dataset.size)
    whole = models.count_parameters(model) if cost == "parameters" else models.count_macs(model, shape)
    if not sparse:
        return whole
    uses = areas(model, dataset)
    zeros = {name: int((model.get_submodule(name).weight == 0).sum()) for name in uses}
    return whole - sum(count * (uses[name] if cost == "macs" else 1) for name, count in zeros.items())


@torch.inference_mode()
def areas(model: nn.Module, dataset: Data) -> dict[str, int]:
    """Times that each convolution or linear layer uses a weight for one image: its output pixels."""
    found, hooks = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            keep = lambda _, __, output, name=name: found.__setitem__(name, output[0].numel() // output.shape[1])  # noqa: E731
            hooks.append(layer.register_forward_hook(keep))
    device = next(model.parameters()).device
    model.eval()(torch.zeros(1, dataset.channels, dataset.size, dataset.size, device=device))
    for hook in hooks:
        hook.remove()
    return found


def sparsified(model: nn.Module, dataset: Data, cost: str, budget: float) -> nn.Module:
    """The smallest weights of all layers set to 0, at one threshold, until the budget is met.

    Their gradients are 0 from then on, and so are their momentum and decay: training leaves them where they are.
    """
    uses = areas(model, dataset)
    layers = {name: model.get_submodule(name) for name in uses}
    flat = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()])
    each = [float(uses[name]) if cost == "macs" else 1.0 for name in layers]
    counts = torch.tensor([layer.weight.numel() for layer in layers.values()])
    prices = torch.tensor(each, dtype=torch.float64).repeat_interleave(counts).to(flat.device)
    order = flat.argsort(stable=True)
    excess = (1 - budget) * price(model, dataset, cost)
    gone = int((prices[order].cumsum(0) < excess).sum()) + 1
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[order[:gone]] = False
    for layer, part in zip(layers.values(), mask.split(counts.tolist()), strict=True):
        left = part.view_as(layer.weight)
        layer.weight.data.mul_(left)
        layer.weight.register_hook(lambda gradient, left=left: gradient * left)
    return model


def bits_of(budget: float) -> int:
    """Bits of a weight that take a share of 32: 8 at a quarter."""
    return min(max(2, math.floor(32 * budget)), 16)


@torch.no_grad()
def quantise(model: nn.Module, budget: float) -> nn.Module:
    """Round all weights of convolutions and linear layers, in place, to levels of their own for each output."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            form = head.quantised(layer.weight.flatten(1), bits_of(budget))
            layer.weight.copy_(form.weight(form.parts).view_as(layer.weight))
    return model


def recipe(model: nn.Module, groups: Groups, regime: spaces.Regime, arm: str) -> np.ndarray:
    """Widths (G,) within a regime: uniform, at mCB OPTIMUM without scatter, or by the mean |weight| of filters."""
    if arm == "recipe at the optimum":
        return samplers.with_targets(groups, regime, [OPTIMUM], seed=1, sigma=0.0)[0]
    if arm != "global L1 channels":
        return samplers.patterned(groups, regime, np.zeros((1, len(groups))))[0]
    regime.check(groups)
    return _largest(
        lambda share: pruning.ranked_widths(model, groups, share, "global L1"),
        lambda widths: float(regime.share(groups, widths)),
        regime.kept,
    )


def merged(model: nn.Module, groups: Groups, size: int, cost: str, budget: float) -> nn.Module:
    """The most redundant nodes of all layers folded into their twins, as many as the budget asks for."""
    found, regime = nodes.layers(model, size), spaces.Regime(budget, cost)
    regime.check(groups)

    def widths(left: float) -> np.ndarray:
        counts = dict(zip(groups.names, groups.dense.tolist(), strict=True))
        for place, _, _ in nodes.choose(found, 1 - left, "merged", "global") if left < 1 else ():
            counts[found[place].name] -= 1
        return np.array([counts[name] for name in groups.names])

    share = _largest(lambda left: left, lambda left: float(regime.share(groups, widths(left))), budget)
    return spline.remove(model, 1 - share, "merged", "global", size=size)


def _largest(make: Callable, share: Callable, budget: float, steps: int = 10) -> object:
    """What `make` gives for the largest number in (0, 1), found by bisection, whose share is within the budget."""
    low, high, best = 0.0, 1.0, None
    for _ in range(steps):
        middle = (low + high) / 2
        one = make(middle)
        if share(one) <= 1.01 * budget:
            low, best = middle, one
        else:
            high = middle
    return make(low) if best is None else best


@lru_cache(maxsize=2)
def table_of(model: nn.Module, dataset: Data) -> pd.DataFrame:
    """The layers before the head that a plan of ranks may truncate, as `truncation.recovery` reads them.

    One process computes it once for a network, which must not change.

    Also their `moment`, none for linear and grouped layers, and `area`, the uses of each weight for one image.
    """
    uses, found = areas(model, dataset), []
    for name in sweep.layer_names(model):
        whole = sweep.kernel(model.get_submodule(name))
        moment = layer_moment(model, name, dataset)
        if moment is None or min(whole.shape[:2]) < 2:
            continue
        values = truncation.spectrum(whole, "OUT").square()
        row = {"layer": name, "shape": tuple(whole.shape), "cut": ["OUT"], "moment": moment, "area": uses[name]}
        row |= {"weights_OUT": (values / values.sum()).tolist()}
        found.append(row | {"output_weights": truncation.output_weights(whole, moment).tolist()})
    return pd.DataFrame(found)


def truncated(
    model: nn.Module, table: pd.DataFrame, dataset: Data, cost: str, budget: float, *, weighted: bool
) -> nn.Module:
    """A network whose convolutions are factorised on the OUT cut within a budget of the whole network's cost.

    Ranks are the plan of least error of the outputs, if `weighted`, and otherwise equal shares of the largest ones.
    """
    area = dict(zip(table["layer"], table["area"], strict=True))

    def prices(layer: str, shape: tuple, cut: str, rank: int) -> float:
        return recovery.weights_of(layer, shape, cut, rank) * (area[layer] if cost == "macs" else 1)

    total = price(model, dataset, cost)
    own = sum(prices(row.layer, row.shape, "", 0) for row in table.itertuples())
    share = (budget * total - (total - own)) / own
    if weighted:
        plan = recovery.cheapest_plan(recovery.out_options(table, "output_weights"), "squared_error", share, prices)
    else:
        plan = recovery.uniform_within(table, "OUT", share, prices)
    moments: dict[str, Tensor] = dict(zip(table["layer"], table["moment"], strict=True)) if weighted else {}
    recovery.apply_plan(model, plan, moments)
    recovery.factorise_plan(model, plan)
    return model
