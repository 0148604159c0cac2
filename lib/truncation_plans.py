"""Plans for whole networks of paper 2: which cut and which rank for every layer, as `lib.recovery` reads them."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from lib.factorisation import parameters


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
