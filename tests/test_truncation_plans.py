"""Plans keep to their error, their share and their budget."""

import pandas as pd
import pytest
import torch

from lib.truncation import cuts
from lib.truncation import forms as factorisation
from lib.truncation import recovery as plans


@pytest.fixture(scope="module")
def kernels():
    return {f"layer{k}": torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)}


@pytest.fixture
def spectra(kernels):
    rows = []
    for name, kernel in kernels.items():
        weights = {f"weights_{c}": cuts.weights(cuts.spectrum(kernel, c)).numpy() for c in cuts.CUTS}
        rows.append({"layer": name, "shape": [8, 6, 3, 3], "cut": list(cuts.CUTS)} | weights)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("form", ["OUT", "KH", "OUT.KW", "OUT+IN"])
def test_plan_at_an_error_takes_the_ranks_of_the_svd(kernels, spectra, form):
    plan = plans.plan_at_error(spectra, form, 0.5)
    assert plan["layers"] == list(kernels) and set(plan["forms"]) == {form}
    for name, ranks in zip(plan["layers"], plan["ranks"], strict=True):
        expected = [cuts.cut_svd(kernels[name], cut).rank_at(0.5, "relative_error") for cut in form.split("+")]
        assert ranks == expected


def test_plan_leaves_layers_dense_where_the_cut_does_not_apply(spectra):
    spectra.at[1, "cut"] = ["OUT"]
    assert plans.plan_at_error(spectra, "KH", 0.5)["layers"] == ["layer0", "layer2"]
    assert plans.plan_at_share(spectra, "KH", 0.9)["layers"] == ["layer0", "layer2"]


def test_plan_at_a_share_spends_the_budget_as_far_as_whole_ranks_allow(spectra):
    plan = plans.plan_at_share(spectra, "OUT", 0.4)
    sizes = [factorisation.parameters((8, 6, 3, 3), "OUT", rank) for (rank,) in plan["ranks"]]
    one = factorisation.parameters((8, 6, 3, 3), "OUT", 1)
    budget = 0.4 * 3 * 8 * 6 * 9
    assert budget - one < sum(sizes) <= budget
    assert sorted((rank for (rank,) in plan["ranks"]), reverse=True) == [rank for (rank,) in plan["ranks"]]
    assert plans.kept_share(spectra, plan) == pytest.approx(sum(sizes) / (3 * 8 * 6 * 9))


def test_no_rank_is_raised_beyond_what_saves_parameters(spectra):
    for (rank,) in plans.plan_at_share(spectra, "OUT.KH", 0.99)["ranks"]:
        assert factorisation.parameters((8, 6, 3, 3), "OUT.KH", rank) < 8 * 6 * 9


def test_a_layer_outside_a_plan_keeps_all_its_parameters(spectra):
    plan = {"layers": ["layer1"], "forms": ["KH"], "ranks": [[1]]}
    assert plans.kept_share(spectra, plan) == pytest.approx((2 * 432 + 3 + 8 * 6 * 3) / (3 * 432))


def test_cheapest_plan_spends_where_it_costs_least():
    entries = [("a", "OUT", 1, 9.0), ("a", "OUT", 4, 8.0), ("b", "OUT", 1, 0.1), ("b", "OUT", 4, 0.0)]
    table = pd.DataFrame(
        [{"layer": n, "shape": "8x8x3x3", "method": "cut", "cut": c, "rank": r, "rise": v} for n, c, r, v in entries]
    )
    dense = 8 * 8 * 9
    plan = plans.cheapest_plan(table, "rise", dense + 200)
    assert plan == {"layers": ["b"], "forms": ["OUT"], "ranks": [[1]]}
    assert plans.cheapest_plan(table, "rise", 2 * dense) == plan | {"ranks": [[4]]}  # smaller and free


def test_cheapest_plan_spends_what_a_price_leaves_over():
    # By one price per parameter both layers move together; the budget has room for one more step of one of them.
    entries = [(n, r, v) for n in "ab" for r, v in ((1, 8.0), (3, 2.0), (5, 0.0))]
    table = pd.DataFrame([{"layer": n, "cut": "OUT", "rank": r, "rise": v} for n, r, v in entries])
    table = table.assign(shape="8x8x3x3", method="cut")
    plan = plans.cheapest_plan(table, "rise", 80 * 8)
    assert sorted(rank for (rank,) in plan["ranks"]) == [3, 5]


def test_competing_plans_keep_to_the_budget_and_differ(kernels, spectra):
    entries = []
    for name, kernel in kernels.items():
        for cut in ("OUT", "OUT.KH"):
            svd = cuts.cut_svd(kernel, cut)
            for rank, error in enumerate(svd.losses()["relative_error"].tolist(), 1):
                rise = error * (3 if name == "layer0" else 1)
                entries.append({"layer": name, "cut": cut, "rank": rank, "relative_error": error, "rise": rise})
    table = pd.DataFrame(entries).assign(shape="8x6x3x3", method="cut")
    ranking = pd.Series({"OUT": 0.3, "OUT.KH": 0.6})
    found = {name: plan for name, _, plan in plans.competing_plans(table, spectra, ranking, [0.4])}
    dense = 8 * 6 * 9
    for plan in found.values():
        kept = dict(zip(plan["layers"], zip(plan["forms"], plan["ranks"], strict=True), strict=True))
        sizes = [
            factorisation.parameters((8, 6, 3, 3), kept[name][0], kept[name][1][0]) if name in kept else dense
            for name in kernels
        ]
        assert sum(sizes) <= 0.4 * 3 * dense
    assert set(found["uniform"]["forms"]) == {"OUT.KH"} and set(found["worst cut"]["forms"]) == {"OUT"}
    assert found["tolerance"] != found["error"]
    with pytest.raises(ValueError, match=r"^[^\n]*1 were not[^\n]*\.$"):
        next(plans.competing_plans(table[table["layer"] != "layer1"], spectra, ranking, [0.4]))
