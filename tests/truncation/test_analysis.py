"""Paper 2's statistics give what they say on tables whose answers are known."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from lib.truncation import analysis

ENTRIES = [  # method, cut, rank, relative error, lost, gained, of these in even places, of these among the first
    ("dense", "", 0, 0.0, (0, 0), (0, 0), (0, 0)),
    ("zero", "", 0, 1.0, (80, 0), (41, 0), (38, 0)),
    ("cut", "OUT", 1, 0.8, (24, 4), (11, 1), (9, 1)),
    ("cut", "OUT", 2, 0.4, (3, 3), (1, 1), (0, 1)),
    ("cut", "KH", 1, 0.6, (5, 4), (2, 1), (2, 2)),
]


def row(layer="a", **change):
    """A row as `truncation_trials.truncate_layer` returns it, with one entry per kernel."""
    columns = list(zip(*ENTRIES, strict=True))
    lists = dict(zip(("method", "cut", "rank", "relative_error"), map(list, columns[:4]), strict=True))
    for name, pairs in zip(("", "_even", "_first"), columns[4:], strict=True):
        lists |= {f"lost{name}": [lost for lost, _ in pairs], f"gained{name}": [gained for _, gained in pairs]}
    lists |= {"norm_loss": [1 - math.sqrt(1 - e**2) for e in lists["relative_error"]], "draw": [0] * 5, "kl": [0.0] * 5}
    lists |= {"effective_norm_loss": lists["norm_loss"], "rise": [0.0] * 5, "n": [200] * 5, "wrong": [0] * 5}
    known = {
        "status": "done",
        "network": "net",
        "dataset": "set",
        "layer": layer,
        "n_first": 100,
        "shape": [8, 4, 3, 3],
    }
    return known | lists | {"target": [0.0] * 5} | change


def test_points_are_differences_of_images_lost_and_gained():
    table = analysis.points(pd.DataFrame([row("a"), row("b", n=[200, 200, 100, 200, 200], shape=[8, 8, 1, 1])]))
    assert table.loc[table["layer"] == "a", "drop"].tolist() == [0, 40, 10, 0, 0.5]
    assert table.loc[table["layer"] == "b", "drop"].tolist() == [0, 40, 20, 0, 0.5]  # its own number of images
    one = table[table["layer"] == "a"]
    assert one["drop_even"].tolist() == [0, 41, 10, 0, 1] and one["drop_first"].tolist() == [0, 38, 8, -1, 0]
    assert np.allclose((one["drop_even"] + one["drop_odd"]) / 2, one["drop"])
    assert table.groupby("layer")["depth"].first().tolist() == [0, 1]
    assert set(table["shape"]) == {"8x4x3x3", "8x8x1x1"}


def test_mcnemar_is_a_sign_test_of_the_images_that_change():
    for lost, gained in ((0, 0), (5, 4), (9, 2), (3, 12)):
        expected = scipy_stats.binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
        assert analysis.mcnemar_p([lost], [gained])[0] == pytest.approx(expected)


def harmed(harm, zero=(60, 2), cut=(20, 2), first=(9, 1)):
    keys = {"case": "c", "seed": 0, "layer": "a"}
    table = pd.DataFrame([keys | {"method": "zero", "lost": zero[0], "gained": zero[1]}, keys | {"method": "cut"}])
    table.loc[1, ["lost", "gained"]] = cut
    table["drop"], table["drop_first"] = (table["lost"] - table["gained"]) / 10, [5.0, (first[0] - first[1]) / 10]
    table["p"], table["p_first"] = analysis.mcnemar_p(table["lost"], table["gained"]), [0.0, 0.5]
    return analysis.harmed(table, harm).iloc[1]


def test_harm_is_a_share_of_the_cost_of_zeroing_that_chance_does_not_explain():
    found = harmed(analysis.Harm())  # zeroing costs 5.8 points, the cut 1.8
    assert found["allowed"] == pytest.approx(0.29) and found["harmful"] and not found["idle"]
    assert not harmed(analysis.Harm(share=0.5))["harmful"]
    assert not harmed(analysis.Harm(), cut=(6, 2))["harmful"]  # .4 points are more than .29, and p is .14
    assert harmed(analysis.Harm(tested=False), cut=(6, 2))["harmful"]
    assert not harmed(analysis.Harm(points=2.0))["harmful"]
    assert (
        not harmed(analysis.Harm(first=True))["harmful"] and harmed(analysis.Harm(first=True, tested=False))["harmful"]
    )


def test_a_layer_is_idle_if_zeroing_it_costs_little_or_chance_explains_the_cost():
    assert harmed(analysis.Harm(), zero=(9, 0))["idle"] and not harmed(analysis.Harm(), zero=(12, 0))["idle"]
    noisy = {"zero": (150, 130)}  # 2 points of many images that change, p = .13
    assert harmed(analysis.Harm(), **noisy)["idle"] and not harmed(analysis.Harm(tested=False), **noisy)["idle"]
    assert harmed(analysis.Harm(idle=2.0, tested=False), **noisy)["idle"]


def test_a_failed_trial_is_left_out():
    rows = pd.DataFrame([row("a"), row("b", status="failed")])
    assert set(analysis.points(rows)["layer"]) == {"a"}


def test_correlation_within_a_stratum_ignores_what_strata_have_in_common():
    table = pd.DataFrame({"x": [1, 2, 3, 11, 12, 13], "y": [3, 2, 1, 13, 12, 11], "s": [0, 0, 0, 1, 1, 1]})
    assert analysis.within(table, "x", "y") > 0
    assert analysis.within(table, "x", "y", "s") == pytest.approx(-1)


def test_equal_error_compares_only_where_both_groups_reach_it():
    keys = {"case": "c", "seed": 0, "layer": "a", "shape": "8x8x3x3", "method": "graded"}
    entries = [("OUT", 0.3, 1.0), ("IN", 0.3, 3.0), ("KH", 0.3, 5.0), ("OUT", 0.7, 9.0)]
    table = pd.DataFrame([keys | {"cut": c, "target": t, "drop": d} for c, t, d in entries])
    found = analysis.at_equal_error(table, ("OUT", "IN"), ("KH", "KW"))
    assert found[["target", "first", "second", "difference"]].values.tolist() == [[0.3, 2.0, 5.0, 3.0]]


def test_equal_share_reads_drops_between_ranks():
    keys = {"case": "c", "seed": 0, "layer": "a", "shape": "6x6x3x3", "method": "cut"}
    entries = [("OUT", 1, 10.0), ("OUT", 3, 6.0), ("KH", 1, 20.0), ("KH", 2, 2.0)]
    table = pd.DataFrame([keys | {"cut": c, "rank": r, "drop": d} for c, r, d in entries])
    found = analysis.at_equal_share(table, ["OUT"], ["KH"]).set_index("target")
    assert found.loc[1 / 3, ["first", "second"]].tolist() == [8.0, 20.0]  # rank 2 of 6, rank 1 of 3
    assert found.loc[2 / 3, ["first", "second"]].tolist() == [4.0, 2.0]  # rank 4 of 6, between 3 and 6


def test_the_best_of_noise_is_no_better_than_the_mean_of_it():
    random = np.random.default_rng(0)
    even, odd = random.normal(size=(2, 200, 20))
    table = pd.DataFrame({"k": np.repeat(range(200), 20), "drop_even": even.ravel(), "drop_odd": odd.ravel()})
    assert abs(analysis.cross_fitted(table, ["k"]).mean()) < 0.2  # the plain best would be about -1.9


def test_recovery_is_measured_against_the_untruncated_control_of_the_same_seed():
    shared = {"case": "c", "seed": 0}
    rows = [
        shared | {"arm": "untruncated", "accuracy": np.array([90.0, 91.0, 92.0])},
        shared | {"arm": "projected", "accuracy": np.array([40.0, 90.6, 91.0])},
        shared | {"arm": "batch norm", "accuracy": np.array([40.0, 80.0])},
    ]
    arms = analysis.recovery_gaps(pd.DataFrame(rows), margin=0.5, few=1).set_index("arm")
    assert arms.loc["projected", ["before", "late", "epochs"]].tolist() == [50, 1, 1]
    assert arms.loc["projected", "soon"] == pytest.approx(0.4)
    assert arms.loc["batch norm", ["soon", "late", "epochs"]].tolist() == [11, 11, np.inf]


def test_a_train_cuts_at_its_ends_and_in_its_middle():
    assert analysis.train_cuts("OUT KH KW IN") == ["OUT", "OUT.KH", "IN"]
    assert analysis.train_cuts("KH KW OUT IN") == ["KH", "OUT.IN", "IN"]
    assert analysis.train_cuts("IN KW OUT KH") == ["IN", "OUT.KH", "KH"]


def test_best_forms_are_read_on_other_images_than_they_were_chosen_on():
    keys = {"case": "c", "seed": 0, "layer": "a", "target": 0.5}
    entries = [("cut", 5.0, 1.0, 0.5), ("cut", 2.0, 4.0, 0.6), ("tt", 3.0, 3.0, 0.7), ("as cp", 1.0, 1.0, 0.4)]
    entries += [("cp", 7.0, 7.0, 0.4), ("cp, not converged", 6.0, 6.0, 0.5)]
    table = [
        keys | {"method": m, "drop_even": a, "drop_odd": b, "drop": (a + b) / 2, "relative_error": e}
        for m, a, b, e in entries
    ]
    found = analysis.best_form(pd.DataFrame(table)).iloc[0]
    assert found["cut"] == (4.0 + 5.0) / 2  # chosen on even images: the second; on odd ones: the first
    assert (found["other form"], found["as cp"], found["CP"]) == (3.0, 1.0, 7.0)


def test_trains_get_the_mean_tolerance_of_the_cuts_they_make():
    keys = {"case": "c", "seed": 0, "layer": "a"}
    limits = pd.DataFrame([keys | {"cut": c, "tolerance": t} for c, t in (("OUT", 0.2), ("OUT.KH", 0.4), ("IN", 0.6))])
    rows = [keys | {"method": "tt", "cut": order, "drop": 3.0} for order in ("OUT KH KW IN", "OUT IN KH KW")]
    found = analysis.train_tolerances(pd.DataFrame(rows), limits)
    assert found[["cut", "kept"]].values.tolist() == [["OUT KH KW IN", -3.0]]
    assert found["tolerance"].tolist() == pytest.approx([0.4])


def test_latency_is_a_share_of_the_dense_kernel_and_what_does_not_fit_is_left_out():
    rows = [("dense", 100, 2.0), ("OUT", 50, 1.5), ("KH", 0, 0.0)]
    table = pd.DataFrame(rows, columns=["form", "macs", "made_latency_ms"]).assign(map=8, share=0.5, parameters=9)
    found = analysis.latency_shares(table.assign(shape=[[4, 4, 3, 3]] * 3))
    assert found["form"].tolist() == ["dense", "OUT"]
    assert found["macs_share"].tolist() == [1, 0.5] and found["made_latency_share"].tolist() == [1, 0.75]


def test_the_weakest_of_several_must_exceed_alone():
    found = [{"value": 2, "low": 1, "high": 3, "n": 9, "p": 0.1}]
    found += [{"value": 1.5, "low": 1.2, "high": 5, "n": 7, "p": 0.2}]
    assert analysis.smallest_of_all(found) == {"value": 1.5, "low": 1, "high": 3, "n": 7, "p": 0.2}
    nothing = [found[0] | {"p": math.nan}, found[1]]
    assert math.isnan(analysis.smallest_of_all(nothing)["p"])


def test_a_control_that_is_made_on_cuts_is_compared_with_truncations_on_these():
    entries = [("graded", cut, layer, drop) for layer in "ab" for cut, drop in (("OUT", 1.0), ("KH", 5.0))]
    entries += [("noise", None, layer, 4.0) for layer in "ab"] + [("random short", "OUT", layer, 3.0) for layer in "ab"]
    table = pd.DataFrame(entries, columns=["method", "cut", "layer", "drop"]).assign(case="c", seed=0, target=0.5)
    drops = analysis.beside_controls(table, 0.5, ["noise", "random short"])
    assert drops["graded"].tolist() == [3, 3] and drops["graded: random short"].tolist() == [1, 1]
    found = [analysis.against_control(drops, name)["c"] for name in ("noise", "random short")]
    assert found == [1, 2]


def test_an_average_over_layers_is_taken_in_each_case_and_a_median_ignores_one_layer():
    drops = pd.DataFrame({"case": list("ccccccd"), "seed": 0, "layer": list("abcdefa"), "graded": 0.0})
    drops["noise"] = [1.0, 1, 2, 3, 3, -80, 7]
    assert analysis.against_control(drops, "noise").to_dict() == {"c": 1.5, "d": 7}
    assert analysis.against_control(drops, "noise", "mean")["c"] == pytest.approx(-70 / 6)
    assert analysis.against_control(drops, "noise", "20 % trimmed mean")["c"] == pytest.approx(7 / 4)


def test_tolerance_lies_where_the_line_between_two_ranks_crosses_one_point():
    assert analysis.first_crossing([0.8, 0.4], [3.0, 0.0], 1) == (pytest.approx(0.4 + 0.4 / 3), False)
    assert analysis.first_crossing([0.5], [2.0], 1) == (pytest.approx(0.25), False)


def test_a_pair_that_never_drops_is_censored_at_its_largest_error():
    assert analysis.first_crossing([0.3, 0.7, 0.5], [0.2, 1.0, -1.0], 1) == (0.7, True)


def test_the_first_crossing_counts_even_if_accuracy_comes_back():
    assert analysis.first_crossing([0.2, 0.4, 0.6], [0.0, 2.0, 0.0], 1) == (pytest.approx(0.3), False)


def test_a_rank_that_is_not_harmful_is_tolerated_whatever_its_drop():
    found = analysis.first_crossing([0.2, 0.4, 0.6], [0.0, 2.0, 3.0], 1, harmful=[False, False, True])
    assert found == (0.4, False)
    assert analysis.first_crossing([0.2, 0.4], [0.0, 2.0], 1, harmful=[False, False]) == (0.4, True)


def test_tolerances_name_idle_layers_and_what_a_cut_can_lose():
    rows = [row("a"), row("idle", lost=[0, 2, 0, 0, 0], gained=[0] * 5)]
    found = analysis.tolerances(analysis.points(pd.DataFrame(rows))).set_index(["layer", "cut"])
    assert not found.loc[("a", "OUT"), "idle"] and found.loc[("idle", "OUT"), "idle"]
    assert found.loc[("a", "OUT"), "tolerance"] == pytest.approx(0.4 + 0.4 * 2 / 10)  # 5 % of 40 points
    assert found.loc[("a", "KH"), "censored"] and found.loc[("a", "KH"), "tolerance"] == pytest.approx(0.6)
    assert found.loc[("a", "KH"), ["largest_norm", "largest_error"]].tolist() == pytest.approx([0.2, 0.6])
    assert found.loc[("a", "KH"), "tolerated_norm"] == pytest.approx(0.2)
    fork = analysis.tolerances(analysis.points(pd.DataFrame(rows[:1])), analysis.Harm(points=1.0, tested=False))
    assert fork.set_index("cut").loc["OUT", "tolerance"] == pytest.approx(0.4 + 0.4 / 10)


def test_the_lowest_harmless_rank_has_only_harmless_ranks_above_it():
    entries = [("OUT", 8, 0.0), ("OUT", 4, 9.0), ("OUT", 2, 0.5), ("IN", 8, 1.0), ("IN", 4, 0.0), ("KH", 2, 9.0)]
    keys = {"case": "c", "network": "n", "dataset": "d", "seed": 0, "layer": "a", "method": "cut", "p": 0.0}
    table = pd.DataFrame([keys | {"cut": c, "rank": r, "drop": d} for c, r, d in entries])
    table = pd.concat([table, pd.DataFrame([keys | {"method": "zero", "drop": 40.0}])])
    found = analysis.lowest_ranks(table).set_index("cut")["rank"].to_dict()
    assert found == {"OUT": 8, "IN": 4}


def tolerated(values, idle=False):
    cells = product("abcd", ("OUT", "IN", "KH"))
    table = [
        {"case": "c", "seed": 0, "layer": layer, "cut": cut, "shape": "8x8x3x3", "tolerance": value, "idle": idle}
        | {"largest_error": 0.9, "censored": False}
        for (layer, cut), value in zip(cells, values, strict=True)
    ]
    return pd.DataFrame(table)


def share(table, column="tolerance"):
    return analysis.tolerating(table, column).mean()


def share_with_several(table):
    return analysis.tolerating_several(table)["several"].mean()


def test_shares_count_pairs_and_layers_and_idle_layers_against():
    table = tolerated([0.6, 0.6, 0.1] * 2 + [0.6, 0.1, 0.1] * 2)
    assert share(table) == 0.5
    assert share_with_several(table) == 0.5
    assert share(table.assign(idle=True)) == 0
    assert math.isnan(share_with_several(table.assign(shape="8x8x1x1")))


def test_intervals_draw_layers_with_all_their_cuts():
    same = analysis.over_layers(tolerated([0.6, 0.6, 0.1] * 4), share)
    assert same == {"value": pytest.approx(2 / 3), "low": pytest.approx(2 / 3), "high": pytest.approx(2 / 3), "n": 4}
    mixed = analysis.over_layers(tolerated([0.6] * 6 + [0.1] * 6), share)
    assert mixed["value"] == 0.5 and mixed["low"] == 0 and mixed["high"] == 1
    assert mixed == analysis.over_layers(tolerated([0.6] * 6 + [0.1] * 6), share)


def test_chosen_ranks_are_judged_by_other_images():
    keys = {"case": "c", "seed": 0, "layer": "a"}
    chosen = pd.DataFrame([keys | {"cut": c, "rank": 2, "drop": 0.0, "relative_error": 0.6} for c in ("OUT", "IN")])
    read = pd.DataFrame([keys | {"method": "cut", "cut": c, "drop": d} for c, d in (("OUT", 0.5), ("IN", 2.5))])
    read = pd.concat([read, pd.DataFrame([keys | {"method": "zero", "drop": 40.0}])]).assign(p=0.0)
    limits = [keys | {"cut": c, "idle": False, "largest_error": 0.9, "tolerance": 0.7} for c in ("OUT", "IN", "KH")]
    found = analysis.read_again(chosen, read, pd.DataFrame(limits)).set_index("cut")
    assert found["tolerance"].to_dict() == {"OUT": 0.6, "IN": 0.0, "KH": 0.0}
    assert found.loc[["OUT", "IN"], "drop_read"].tolist() == [0.5, 2.5]


def test_what_rank_one_does_not_lose_is_no_evidence_either_way():
    table = tolerated([0.6, 0.6, 0.3] * 4)
    short = table.assign(largest_error=[0.9, 0.9, 0.4] * 4)
    assert share(table) == pytest.approx(2 / 3) and share(short) == 1
    one_left = table.assign(largest_error=[0.9, 0.4, 0.4] * 4)
    assert share_with_several(short) == 1 and math.isnan(share_with_several(one_left))
    losses = table.assign(tolerated_norm=[0.6, 0.1, 0.1] * 4, largest_norm=[0.7, 0.6, 0.2] * 4)
    assert share(losses, "tolerated_norm") == 0.5
    assert math.isnan(share(table.assign(largest_error=0.4)))


def layered(values, predictor, censored=False, cut="OUT", case="c", shape="8x8x3x3"):
    layers = [f"layer{k}" for k in range(len(values))]
    table = pd.DataFrame({"layer": layers, "tolerance": values, "x": predictor, "censored": censored})
    return table.assign(case=case, seed=0, cut=cut, shape=shape)


def test_without_bounds_or_ties_the_concordance_is_kendalls_tau():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 30))
    found = analysis.concordance(layered(x + y, x), "x", "case", "cut")
    assert found == pytest.approx(scipy_stats.kendalltau(x + y, x).statistic)


def test_a_bound_is_compared_only_with_what_is_known_to_lie_below_it():
    table = layered([0.3, 0.5, 0.4], [1, 3, 2], censored=[False, False, True])
    # known: 0.3 < 0.5 and 0.3 < at least 0.4; whether at least 0.4 is more or less than 0.5 is not
    assert analysis.concordance(table, "x", "case", "cut") == 1
    assert analysis.concordance(table.assign(x=[1, 3, 0]), "x", "case", "cut") == 0
    assert analysis.concordance(table.assign(x=[1, 3, 1]), "x", "case", "cut") == 1
    assert math.isnan(analysis.concordance(table.assign(censored=True), "x", "case", "cut"))


def test_bounds_that_depend_on_the_predictor_make_no_correlation():
    random = np.random.default_rng(1)
    x, true = random.normal(size=600), random.uniform(0.2, 1, size=600)
    bound = 0.8 - 0.15 * x  # the more compressible, the earlier the curve ends
    table = layered(np.minimum(true, bound), x, censored=true > bound)
    assert abs(analysis.concordance(table, "x", "case", "cut")) < 0.06
    assert scipy_stats.spearmanr(table["tolerance"], x).statistic < -0.15


def test_pairs_are_taken_within_strata():
    apart = pd.concat([layered([0.3, 0.2], [1, 2], shape="a"), layered([0.8, 0.7], [11, 12], shape="b")])
    apart["layer"] = list("wxyz")
    assert analysis.concordance(apart, "x", "cut", "shape") == -1
    assert analysis.concordance(apart, "x", "cut") == pytest.approx((4 - 2) / 6)
    with pytest.raises(ValueError, match=r"^[^\n]+cut[^\n]+\.$"):
        analysis.concordance(apart, "x", "shape")


def test_a_statistic_is_the_mean_over_trainings_of_each_case_and_cases_count_once():
    table = pd.DataFrame({"case": list("aaab"), "seed": [0, 0, 1, 0], "x": [1.0, 3.0, 6.0, 8.0]})
    found = analysis.per_case(table, "x")
    assert found.to_dict() == {"a": 4.0, "b": 8.0}
    assert analysis.per_case(table, lambda one: len(one)).to_dict() == {"a": 1.5, "b": 1}
    over = analysis.over_cases(found)
    assert (over["value"], over["n"]) == (6.0, 2)
    assert (over["low"], over["high"]) == pytest.approx(scipy_stats.t.interval(0.95, 1, 6.0, 2.0))
    assert analysis.share(found / 10)["low"] == 0
    assert analysis.over_cases(found / 10 - 0.5, bounded=True)["low"] == -1
    assert "p" not in analysis.share(found / 10)


def test_a_network_recovers_if_most_of_its_truncations_do_in_both_arms_and_not_by_statistics_alone():
    entries = [
        ("a", 0.1, 0.2, 5.0),
        ("a", 0.4, 0.3, 4.0),
        ("a", 2.0, 0.1, 4.0),
        ("b", 0.1, 0.1, 0.3),
        ("b", 0.1, 0.1, 9),
    ]
    rows = []
    for target, (case, *soon) in enumerate(entries):
        keys = {"case": case, "seed": 0, "form_name": "OUT", "target": target}
        arms = ("projected", "factorised", "batch norm")
        rows += [keys | {"arm": arm, "soon": s} for arm, s in zip(arms, soon, strict=True)]
    arms = pd.DataFrame(rows)
    assert analysis.recovered(arms, 0.5).to_dict() == {"a": True, "b": False}
    assert not analysis.recovered(arms, 0.35)["a"]
    assert analysis.recovered(arms, 0.35, alone="factorised")["a"]
    late = arms.assign(late=arms["soon"], loss_barrier=0.05)
    assert analysis.settled(late, 0.5, 0.1).to_dict() == {"a": True, "b": True}
    assert not analysis.settled(late, 0.5, 0.01).any()


def test_series_are_the_networks_of_one_author_and_data_set():
    entries = [("resnet20", "cifar10", 0.0), ("resnet56", "cifar10", 0.5)]
    entries += [(f"resnet{depth}-B", "cifar10", share) for depth, share in ((20, 0.3), (32, 0.2), (56, 0.1))]
    idle = [
        {"network": n, "dataset": d, "idle": k < 10 * s, "drop": float(k)} for n, d, s in entries for k in range(10)
    ]
    found = analysis.in_series(pd.DataFrame(idle)).set_index(["network", "dataset"])
    assert found["share"].tolist() == [0.0, 0.5, 0.3, 0.2, 0.1] and found["depth"].tolist() == [20, 56, 20, 32, 56]
    assert set(found["median"]) == {4.5}
    assert found["rho"].tolist() == [1, 1, -1, -1, -1] and found["series"].nunique() == 2
    # of 2 x 6 arrangements only the one with both correlations 1, and those with sums of 0.5 or more than 0, reach 0
    assert analysis.deeper_p(found.reset_index()) == 7 / 12
    assert analysis.deeper_p(found.assign(rho=1.0).reset_index()) == 1 / 12


def test_a_network_left_out_is_predicted_from_the_others_alone():
    random = np.random.default_rng(3)
    parts = []
    for case, slope in (("a", 1), ("b", 1), ("c", -1)):
        for cut, level in (("OUT", 0.3), ("IN", 0.6)):
            x = random.normal(size=12)
            parts.append(layered(level + 0.1 * slope * x, x, cut=cut, case=case))
    table = pd.concat(parts)
    found = analysis.left_out(table[table["case"] != "c"], ["x"])
    assert found.to_dict() == {"a": 1.0, "b": 1.0}
    assert analysis.left_out(table, ["x"])["c"] == -1  # its own layers would have said otherwise
    alike = analysis.left_out(table.assign(kind=table["case"].replace({"c": "b"})), ["x"], "kind")
    assert alike.to_dict() == {"a": alike["a"], "b": 1.0, "c": -1.0}  # b and c learn from a alone
    assert math.isnan(analysis.left_out(table[(table["case"] == "a") | (table["cut"] == "IN")], ["x"])["a"])


def test_a_sign_is_known_where_an_effect_is():
    found = analysis.signs({"x": pd.Series({"a": 0.1, "b": -0.1}), "y": pd.Series({"b": 2.0})})
    assert found.loc["x"].tolist() == [1, 0] and found.loc["y", "b"] == 1 and math.isnan(found.loc["y", "a"])
