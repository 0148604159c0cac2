"""Paper 2's tolerances, and what goes with them, give what they say on tables whose answers are known."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.truncation import analysis
from lib.truncation import analysis as tolerance
from tests.truncation_rows import row


def test_tolerance_lies_where_the_line_between_two_ranks_crosses_one_point():
    assert tolerance.first_crossing([0.8, 0.4], [3.0, 0.0]) == (pytest.approx(0.4 + 0.4 / 3), False)
    assert tolerance.first_crossing([0.5], [2.0]) == (pytest.approx(0.25), False)


def test_a_pair_that_never_drops_is_censored_at_its_largest_error():
    assert tolerance.first_crossing([0.3, 0.7, 0.5], [0.2, 1.0, -1.0]) == (0.7, True)


def test_the_first_crossing_counts_even_if_accuracy_comes_back():
    assert tolerance.first_crossing([0.2, 0.4, 0.6], [0.0, 2.0, 0.0]) == (pytest.approx(0.3), False)


def test_tolerances_name_idle_layers_and_what_a_cut_can_lose():
    rows = [row("a"), row("idle", wrong=[10, 12, 10, 10, 10])]
    found = tolerance.tolerances(analysis.points(pd.DataFrame(rows))).set_index(["layer", "cut"])
    assert not found.loc[("a", "OUT"), "idle"] and found.loc[("idle", "OUT"), "idle"]
    assert found.loc[("a", "OUT"), "tolerance"] == pytest.approx(0.44)
    assert found.loc[("a", "KH"), "censored"] and found.loc[("a", "KH"), "tolerance"] == pytest.approx(0.6)
    assert found.loc[("a", "KH"), ["largest_norm", "largest_error"]].tolist() == pytest.approx([0.2, 0.6])
    assert found.loc[("a", "KH"), "tolerated_norm"] == pytest.approx(0.2)


def test_the_lowest_harmless_rank_has_only_harmless_ranks_above_it():
    entries = [("OUT", 8, 0.0), ("OUT", 4, 2.0), ("OUT", 2, 0.5), ("IN", 8, 1.0), ("IN", 4, 0.0), ("KH", 2, 1.1)]
    keys = {"case": "c", "network": "n", "dataset": "d", "seed": 0, "layer": "a", "method": "cut"}
    table = pd.DataFrame([keys | {"cut": c, "rank": r, "drop": d} for c, r, d in entries])
    found = tolerance.lowest_ranks(table).set_index("cut")["rank"].to_dict()
    assert found == {"OUT": 8, "IN": 4}


def tolerated(values, idle=False):
    cells = product("abcd", ("OUT", "IN", "KH"))
    table = [
        {"case": "c", "seed": 0, "layer": layer, "cut": cut, "shape": "8x8x3x3", "tolerance": value, "idle": idle}
        | {"largest_error": 0.9, "censored": False}
        for (layer, cut), value in zip(cells, values, strict=True)
    ]
    return pd.DataFrame(table)


def test_shares_count_pairs_and_layers_and_idle_layers_against():
    table = tolerated([0.6, 0.6, 0.1] * 2 + [0.6, 0.1, 0.1] * 2)
    assert tolerance.share_tolerating(table) == 0.5
    assert tolerance.share_with_several(table) == 0.5
    assert tolerance.share_tolerating(table.assign(idle=True)) == 0
    assert math.isnan(tolerance.share_with_several(table.assign(shape="8x8x1x1")))


def test_intervals_draw_layers_with_all_their_cuts():
    same = analysis.over_layers(tolerated([0.6, 0.6, 0.1] * 4), tolerance.share_tolerating)
    assert same == {"value": pytest.approx(2 / 3), "low": pytest.approx(2 / 3), "high": pytest.approx(2 / 3), "n": 4}
    mixed = analysis.over_layers(tolerated([0.6] * 6 + [0.1] * 6), tolerance.share_tolerating)
    assert mixed["value"] == 0.5 and mixed["low"] == 0 and mixed["high"] == 1
    assert mixed == analysis.over_layers(tolerated([0.6] * 6 + [0.1] * 6), tolerance.share_tolerating)


def test_several_cuts_of_a_layer_that_is_drawn_twice_are_not_added_up():
    one = tolerated([0.6, 0.1, 0.1] * 4)
    assert tolerance.share_with_several(pd.concat([one, one])) == 0


def test_chosen_ranks_are_judged_by_other_images():
    keys = {"case": "c", "seed": 0, "layer": "a"}
    chosen = pd.DataFrame([keys | {"cut": c, "rank": 2, "drop": 0.0, "relative_error": 0.6} for c in ("OUT", "IN")])
    read = pd.DataFrame([keys | {"method": "cut", "cut": c, "drop": d} for c, d in (("OUT", 0.5), ("IN", 1.5))])
    limits = pd.DataFrame([keys | {"cut": c, "idle": False, "largest_error": 0.9} for c in ("OUT", "IN")])
    found = tolerance.read_again(chosen, read, limits).set_index("cut")
    assert found["harmless"].to_dict() == {"OUT": True, "IN": False}
    assert found["tolerance"].to_dict() == {"OUT": 0.6, "IN": 0.0}
    assert found["drop_read"].to_dict() == {"OUT": 0.5, "IN": 1.5}


def test_what_rank_one_does_not_lose_is_no_evidence_either_way():
    table = tolerated([0.6, 0.6, 0.3] * 4)
    short = table.assign(largest_error=[0.9, 0.9, 0.4] * 4)
    assert tolerance.share_tolerating(table) == pytest.approx(2 / 3) and tolerance.share_tolerating(short) == 1
    one_left = table.assign(largest_error=[0.9, 0.4, 0.4] * 4)
    assert tolerance.share_with_several(short) == 1 and math.isnan(tolerance.share_with_several(one_left))
    losses = table.assign(tolerated_norm=[0.6, 0.1, 0.1] * 4, largest_norm=[0.7, 0.6, 0.2] * 4)
    assert tolerance.share_tolerating(losses, "tolerated_norm") == 0.5
    assert math.isnan(tolerance.share_tolerating(table.assign(largest_error=0.4)))


def layered(values, predictor, censored=False, cut="OUT", case="c", shape="8x8x3x3"):
    layers = [f"layer{k}" for k in range(len(values))]
    table = pd.DataFrame({"layer": layers, "tolerance": values, "x": predictor, "censored": censored})
    return table.assign(case=case, seed=0, cut=cut, shape=shape)


def test_without_bounds_or_ties_the_concordance_is_kendalls_tau():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 30))
    found = tolerance.concordance(layered(x + y, x), "x", "case", "cut")
    assert found["value"] == pytest.approx(stats.kendalltau(x + y, x).statistic)
    assert found["low"] < found["value"] < found["high"] and found["n"] == 30 and found["p"] < 0.02
    assert found == tolerance.concordance(layered(x + y, x), "x", "case", "cut")


def test_a_bound_is_compared_only_with_what_is_known_to_lie_below_it():
    table = layered([0.3, 0.5, 0.4], [1, 3, 2], censored=[False, False, True])
    # known: 0.3 < 0.5 and 0.3 < at least 0.4; whether at least 0.4 is more or less than 0.5 is not
    assert tolerance.concordance(table, "x", "case", "cut")["value"] == 1
    assert tolerance.concordance(table.assign(x=[1, 3, 0]), "x", "case", "cut")["value"] == 0
    tied = tolerance.concordance(table.assign(x=[1, 3, 1]), "x", "case", "cut")
    assert (tied["value"], tied["n"]) == (1, 2)
    nothing = tolerance.concordance(table.assign(censored=True), "x", "case", "cut")
    assert math.isnan(nothing["value"]) and (nothing["n"], nothing["p"]) == (0, 1)


def test_bounds_that_depend_on_the_predictor_make_no_correlation():
    random = np.random.default_rng(1)
    x, true = random.normal(size=600), random.uniform(0.2, 1, size=600)
    bound = 0.8 - 0.15 * x  # the more compressible, the earlier the curve ends
    table = layered(np.minimum(true, bound), x, censored=true > bound)
    assert abs(tolerance.concordance(table, "x", "case", "cut", resamples=2)["value"]) < 0.06
    assert stats.spearmanr(table["tolerance"], x).statistic < -0.15


def test_pairs_are_taken_within_strata():
    apart = pd.concat([layered([0.3, 0.2], [1, 2], shape="a"), layered([0.8, 0.7], [11, 12], shape="b")])
    apart["layer"] = list("wxyz")
    assert tolerance.concordance(apart, "x", "cut", "shape")["value"] == -1
    assert tolerance.concordance(apart, "x", "cut")["value"] == pytest.approx((4 - 2) / 6)
    with pytest.raises(ValueError, match=r"^[^\n]+cut[^\n]+\.$"):
        tolerance.concordance(apart, "x", "shape")


def test_cuts_that_repeat_one_layer_are_no_further_evidence():
    random = np.random.default_rng(2)
    values, x = random.uniform(size=(2, 8))
    once = layered(values, x)
    often = pd.concat([layered(values, x, cut=cut) for cut in ("OUT", "IN", "KH", "KW")])
    first, second = (tolerance.concordance(table, "x", "case", "cut") for table in (once, often))
    assert first == second


def test_the_p_of_an_unrelated_predictor_is_not_small_more_often_than_it_says():
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        layers, x = random.normal(size=(2, 9))
        table = pd.concat([layered(layers + 0.3 * random.normal(size=9), x, cut=cut) for cut in ("OUT", "IN", "KH")])
        found.append(tolerance.concordance(table, "x", "case", "cut", resamples=100)["p"])
    assert np.mean(np.array(found) <= 0.05) <= 0.12  # exchanging single pairs gives about a fifth
