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
        for _ in range(n):
            noise = dict(zip(MEASURES, RANDOM.uniform(0.1, 1, len(MEASURES)), strict=True))
            x = RANDOM.uniform(0.5, 5)
            row = noise | {"output_error": x, "gap_once": law(x), "gap_few": law(x), "size": RANDOM.uniform()}
            labels = {"family": f"f{family}", "network": f"n{family}", "dataset": "d", "depth": RANDOM.uniform()}
            rows.append(row | labels | {"layer": "one", "kind": "magnitude", "strength": 0.5})
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


def test_a_power_law_predicts_unseen_families_and_exchanged_damages_are_not_predicted():
    table = damages()
    assert analysis.left_out(table, ["output_error"]).min() > 0.999
    assert analysis.left_out(table, ["t_ap3"]).max() < 0.3
    found = analysis.unseen(table)
    assert set(found["measure"]) == {"output_error"} and (found["one"] > 0.999).all()
    assert analysis.exchanged_p(table) <= 0.001


def test_the_measure_for_a_family_is_chosen_on_the_others():
    table = damages()
    own = table["family"] == "f0"
    table.loc[own, "t_ap3"] = table.loc[own, "gap_once"]  # it is perfect in f0 alone
    table.loc[own, "output_error"] = RANDOM.uniform(0.5, 5, own.sum())
    assert analysis.best_measures(table)["f0"] == "output_error"


def test_looking_gains_nothing_over_a_perfect_measure():
    gain = analysis.look_first(damages(), ("network", "dataset"))
    assert gain["value"] == pytest.approx(0, abs=1e-9)


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


def test_ranks_begin_with_the_best_and_only_clear_pairs_differ():
    table = standings()
    table[BOTH] = table.max(axis=1) + RANDOM.uniform(5, 6, 5)
    ranks = analysis.mean_ranks(table)
    assert ranks["arm"].iloc[0] == BOTH and ranks["mean_rank"].iloc[0] == 1
    pairs = analysis.pairs_apart(table)
    assert sum(BOTH in pair for pair in pairs) == len(table.columns) - 1
