"""Statistics of damage and of the contest, on made-up rows whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from lib.which import analysis
from lib.which.contest import BOTH, PAPERS, PLAIN
from lib.which.measures import MEASURES

RANDOM = np.random.default_rng(0)


def damages(n=40, families=4, law=lambda x: 0.01 * x**2):
    """Changes whose damage follows the output error by a law; all other measures are noise."""
    rows = []
    for family in range(families):
        for number in range(n):
            noise = dict(zip(MEASURES, RANDOM.uniform(0.1, 1, len(MEASURES)), strict=True))
            x = RANDOM.uniform(0.5, 5)
            row = noise | {"output_error": x, "gap_once": law(x), "gap_few": law(x), "size": RANDOM.uniform()}
            labels = {"family": f"f{family}", "network": f"n{family}", "dataset": "d", "depth": RANDOM.uniform()}
            place = {"layer": f"layer {number % 5}", "kind": f"kind {number // 5}", "strength": 0.5}
            rows.append(row | labels | place)
    return pd.DataFrame(rows)


def test_a_measure_that_damage_follows_ranks_it_and_noise_does_not():
    table = damages()
    strata = ("network", "dataset")
    found = analysis.ranking(table, "output_error", strata)
    assert found["value"] == pytest.approx(1) and found["p"] <= 0.001 and found["n"] == 4
    assert analysis.ranking(table, "t_ap3", strata)["p"] > 0.001
    assert analysis.ranking_gain(table, "output_error", "t_ap3", strata)["low"] > 0


def test_a_difference_between_strata_ranks_nothing():
    table = damages()
    table["gap_once"] = table["network"].str[1:].astype(float)
    table["ap2"] = table["gap_once"]
    assert np.isnan(analysis.correlation(table, "ap2", "gap_once", ("network", "dataset")))


def test_outcomes_of_one_layer_are_no_independent_evidence():
    strata, found = ("network", "dataset", "kind"), []
    for _ in range(30):  # a measure and a damage that both hang on the layer, and not on each other
        table = damages(n=40, families=2)
        for column in ("ap2", "gap_once"):
            effects = {key: RANDOM.normal() for key in set(zip(table["network"], table["layer"], strict=True))}
            keys = zip(table["network"], table["layer"], strict=True)
            table[column] = [effects[key] + 0.01 * RANDOM.normal() for key in keys]
        found.append(analysis.ranking(table, "ap2", strata)["p"])
    assert np.mean(np.array(found) <= 0.05) < 0.2  # values exchanged one by one: about half


def test_an_exchange_moves_whole_layers_and_leaves_gaps_where_a_network_has_no_such_change():
    table = damages(n=10, families=1).iloc[:-1]
    y = np.arange(9.0)
    found = analysis.exchanged(table, y, analysis.FACTORS, ["layer"])
    assert found.shape == (analysis.DRAWS, 9) and np.isnan(found).any()
    pairs = found[:, :4] + 5 - found[:, 5:]  # rows 0 to 4 are layers of one kind, 5 to 8 of another
    assert np.nanmax(np.abs(pairs)) == 0


def test_a_baseline_counts_with_the_sign_that_it_has_elsewhere():
    table = damages()
    table["size"] = -table["gap_once"]
    gain = analysis.ranking_gain(table, "output_error", "size", ("network", "dataset"))
    assert gain["value"] == pytest.approx(0)
    assert analysis.correlations(table, {"all": ("network", "dataset")}).loc["size", "all"] == pytest.approx(1)


def test_the_best_measure_of_a_question_is_named_with_its_price():
    table = damages().assign(**{f"made_seconds_{name}": 0.5 for name in MEASURES})
    found = analysis.correlations(table, {"all": ("network", "dataset")})
    row = analysis.advice(found, analysis.seconds(table)).loc["all"]
    assert row["measure"] == "output_error" and row["seconds"] == 0.5 and row["looking"] == pytest.approx(1)


def test_a_power_law_predicts_unseen_families():
    table = damages()
    assert analysis.left_out(table, ["output_error"]).min() > 0.999
    assert analysis.left_out(table, ["t_ap3"]).max() < 0.3
    found = analysis.unseen(table)
    assert set(found["measure"]) == {"output_error"} and (found["one"] > 0.999).all()


def test_the_measure_for_a_family_is_chosen_on_the_others():
    table = damages()
    own = table["family"] == "f0"
    table.loc[own, "t_ap3"] = table.loc[own, "gap_once"]  # it is perfect in f0 alone
    table.loc[own, "output_error"] = RANDOM.uniform(0.5, 5, own.sum())
    assert analysis.best_measures(table)["f0"] == "output_error"


def test_looking_gains_nothing_over_a_perfect_measure():
    gain = analysis.look_first(damages(), ("network", "dataset"))
    assert gain["value"] == pytest.approx(0, abs=1e-9)


def test_the_ceiling_is_what_damage_without_noise_would_have():
    table, whole = damages(), {"all": ("network", "dataset")}
    assert analysis.ceilings(table.assign(gap_odd=table["gap_once"], gap_even=table["gap_once"]), whole)["all"] == 1
    noise = RANDOM.normal(0, table["gap_once"].std(), (2, len(table)))
    both = table.assign(gap_odd=table["gap_once"] + noise[0], gap_even=table["gap_once"] + noise[1])
    both["measured"] = both["gap_odd"] + both["gap_even"]
    perfect = analysis.by_family(
        both, lambda one: analysis.correlation(one, "gap_once", "measured", whole["all"])
    ).mean()
    assert perfect < 0.9 and analysis.ceilings(both, whole)["all"] == pytest.approx(perfect, abs=0.1)
    reversed_halves = table.assign(gap_odd=table["gap_once"], gap_even=-table["gap_once"])
    assert analysis.ceilings(reversed_halves, whole)["all"] == 0


def standings():
    arms = [*PAPERS, *PLAIN, BOTH]
    return pd.DataFrame(RANDOM.uniform(60, 70, (5, len(arms))), columns=arms, index=[f"n{k}" for k in range(5)])


def test_an_arm_is_chosen_without_the_network_on_which_it_is_judged():
    table = standings()
    table.loc["n0", PAPERS[0]] = 1000.0  # lucky on one network alone
    table.loc["n1":, PAPERS[1]] = 90.0
    chosen = analysis.winners_elsewhere(table, PAPERS)
    assert chosen["n0"] == table.loc["n0", PAPERS[1]]


def test_a_duel_of_equal_groups_is_undecided_and_of_better_ones_is_won():
    table = standings()
    for k, arm in enumerate(PAPERS):
        table[arm] = table[PLAIN[k]] + [2, 4, 3, 2, 4]
    found = analysis.duel(table, PAPERS, PLAIN)
    assert found["value"] == pytest.approx(3) and found["n"] == 5
    table[BOTH] = table["uniform channels"].clip(lower=table["weighted ranks"]) + 1
    assert analysis.combined(table)["value"] >= 1


def test_costs_that_order_arms_alike_agree():
    table = pd.concat({"parameters": standings(), "macs": standings()}, names=["cost", "name"])
    table.loc["macs"] = table.loc["parameters"].to_numpy() - 5
    assert analysis.agreement(table)["value"] == pytest.approx(1)
    table.loc["macs"] = -table.loc["parameters"].to_numpy()
    assert analysis.agreement(table)["value"] == pytest.approx(-1)


def test_an_arm_without_a_budget_has_no_mean_and_a_fall_is_that_below_the_dense_network_retrained():
    row = {"network": "n", "dataset": "d", "cost": "parameters", "retrain_lr": 0.01, "retrain_seed": 0}
    rows = [row | {"arm": arm, "budget": b, "accuracy_retrained": 80 * b} for arm in ("x", "y") for b in (0.5, 0.25)]
    rows.append(row | {"arm": "dense", "budget": 1.0, "accuracy_retrained": 90.0})
    table = pd.DataFrame(rows)
    assert analysis.standings(table).loc[("parameters", "n/d")].tolist() == [30, 30]
    assert np.isnan(analysis.standings(table.drop(index=3)).loc[("parameters", "n/d"), "y"])
    assert analysis.falls(table)["fall"].tolist() == [50, 70, 50, 70, 0]


def test_accuracy_at_one_time_lies_between_the_points_around_it():
    columns = ["arm", "milliseconds", "accuracy_retrained"]
    rows = [("slow", 100.0, 90.0), ("slow", 1.0, 50.0), ("fast", 10.0, 80.0), ("late", 20.0, 99.0)]
    found = analysis.at_equal_time(pd.DataFrame(rows, columns=columns), "milliseconds")  # at 15 ms
    assert found["slow"] == pytest.approx(50 + 40 * np.log(15) / np.log(100))
    assert np.isnan(found[["fast", "late"]]).all()


def test_ranks_begin_with_the_best_and_only_clear_pairs_differ():
    table = standings()
    table[BOTH] = table.max(axis=1) + RANDOM.uniform(5, 6, 5)
    ranks = analysis.mean_ranks(table)
    assert ranks["arm"].iloc[0] == BOTH and ranks["mean_rank"].iloc[0] == 1
    pairs = analysis.pairs_apart(table)
    assert sum(BOTH in pair for pair in pairs) == len(table.columns) - 1
