"""Paper 2's statistics give what they say on tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest

from lib.truncation import analysis
from tests.truncation_rows import row


def test_points_are_differences_from_the_dense_kernel_of_the_same_row():
    table = analysis.points(pd.DataFrame([row("a"), row("b", wrong=[20, 90, 40, 20, 22], shape=[8, 8, 1, 1])]))
    assert table.loc[table["layer"] == "a", "drop"].tolist() == [0, 40, 10, 0, 0.5]
    assert table.loc[table["layer"] == "b", "drop"].tolist() == [0, 35, 10, 0, 1]
    assert np.allclose(table.loc[table["layer"] == "a", "rise"], [0, 2.5, 1, 0.1, 0.2])
    halves = (table["drop_even"] + table["drop_odd"]) / 2
    assert np.allclose(halves, table["drop"])
    assert table.groupby("layer")["depth"].first().tolist() == [0, 1]
    assert set(table["shape"]) == {"8x4x3x3", "8x8x1x1"}


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


def test_share_has_wilsons_interval():
    found = analysis.share([True, True, False])
    assert (found["value"], found["n"]) == (pytest.approx(2 / 3), 3) and 0 < found["low"] < 0.66 < found["high"] < 1


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


def test_a_paired_difference_of_one_retraining_varies_with_its_images():
    found = analysis.paired_interval([[0, 1, 2]], [[2, 3, 4, 5, 6]], n=100)
    assert found["value"] == pytest.approx(2.0) and found["n"] == 1
    deviation = 100 * np.std([1] * 4 + [-1] * 2 + [0] * 94) / 10
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_a_paired_difference_of_retrainings_that_disagree_is_less_certain():
    same = analysis.paired_interval([[0]] * 4, [[1, 2]] * 4, n=200)
    other = analysis.paired_interval([[0], list(range(20))] * 2, [[1, 2], []] * 2, n=200)
    assert same["value"] == 0.5 and same["n"] == other["n"] == 4
    assert other["high"] - other["low"] > 2 * (same["high"] - same["low"])


def test_the_weakest_of_several_must_exceed_alone():
    found = [{"value": 2, "low": 1, "high": 3, "n": 9}, {"value": 1.5, "low": 1.2, "high": 5, "n": 7}]
    assert analysis.weakest(found) == {"value": 1.5, "low": 1, "high": 3, "n": 7}


def test_sign_flips_are_counted_exactly_for_few_and_drawn_for_many():
    assert analysis.sign_flip_p([1, 2, 3]) == 2 / 8
    assert analysis.sign_flip_p([1, -1]) == 1
    assert analysis.sign_flip_p(np.ones(30)) == pytest.approx(1 / 4096)
    assert analysis.sign_flip_p([1, -1] * 15) == pytest.approx(1)


def test_a_control_that_is_made_on_cuts_is_compared_with_truncations_on_these():
    entries = [("graded", cut, layer, drop) for layer in "ab" for cut, drop in (("OUT", 1.0), ("KH", 5.0))]
    entries += [("noise", None, layer, 4.0) for layer in "ab"] + [("random short", "OUT", layer, 3.0) for layer in "ab"]
    table = pd.DataFrame(entries, columns=["method", "cut", "layer", "drop"]).assign(case="c", seed=0, target=0.5)
    drops = analysis.beside_controls(table, 0.5, ["noise", "random short"])
    assert drops["graded"].tolist() == [3, 3] and drops["graded: random short"].tolist() == [1, 1]
    found = analysis.against_controls(drops, ["noise", "random short"])
    assert found["value"].tolist() == [1, 2]


def test_controls_are_judged_layer_by_layer_and_corrected_together():
    layers = {"case": "c", "seed": 0, "layer": list("abcdef"), "graded": [1.0, 2, 3, 4, 5, 6]}
    drops = pd.DataFrame(layers).assign(noise=lambda t: t["graded"] + 2, shrunk=[2.0, 1, 4, 3, 6, np.nan])
    found = analysis.against_controls(drops, ["noise", "shrunk"])
    assert found.loc["noise", ["value", "low", "high"]].tolist() == [2, 2, 2]
    assert found["n"].tolist() == [6, 5] and found.loc["shrunk", "value"] == pytest.approx(0.2)
    assert found.loc["noise", "p"] == pytest.approx(2 / 64) and found.loc["noise", "p_holm"] == pytest.approx(4 / 64)
