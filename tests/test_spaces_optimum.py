"""Statistics of the optimum on simulated populations whose truth is known, with an effect and without one."""

import numpy as np
import pandas as pd
import pytest

from lib import channels, models
from lib.spaces import analysis as optimum
from lib.spaces import measures as spaces


def population(best, seed, n=40, kept=0.5, noise=1.0, strength=30.0, spread=0.35):
    """Recipes with log mCB uniform around 0; drop is quadratic around `best`, or flat if strength is 0."""
    random = np.random.default_rng(seed)
    x = random.uniform(-spread, spread, n)
    drop = 5 + strength * (x - best) ** 2 + noise * random.normal(size=n)
    return pd.DataFrame({"log_mcb": x, "drop": drop, "z": (drop - drop.mean()) / drop.std(), "kept": kept})


def regimes(best=0.1, **options):
    shares = (0.8, 0.5, 0.3)
    return [population(best, seed, kept=kept, **options) for seed, kept in enumerate(shares)]


def test_drops_are_taken_from_the_control_of_the_same_seed_and_schedule():
    rows = pd.DataFrame(
        {
            "network": "n",
            "dataset": "d",
            "status": ["done"] * 5 + ["failed"],
            "space": ["dense", "dense", "a", "a", "dense", "a"],
            "mode": ["finetune", "rewind", "finetune", "rewind", "none", "none"],
            "retraining": 0,
            "kept": [1, 1, 0.5, 0.5, 1, 0.5],
            "mcb": [1, 1, np.e, 1, 1, 1],
            "validation_accuracy": [90.0, 80, 85, 60, 70, 0],
            "proxy_accuracy": [70.0, 70, 50, 50, 70, 0],
            "test_accuracy": [88.0, 79, 80, 61, 69, 0],
        }
    )
    table = optimum.with_drops(rows)
    assert len(table) == 5 and table["drop"].tolist() == [0, 0, 5, 20, 0]
    assert table["test_drop"].tolist() == [0, 0, 8, 18, 0] and table["proxy_drop"].tolist() == [0, 0, 20, 20, 0]
    assert table["log_mcb"][2] == pytest.approx(1)
    one = optimum.regimes(table[table["mode"] == "finetune"], "test_drop")
    assert len(one) == 1 and one[0]["drop"].tolist() == [8]


def test_the_optimum_is_found_and_its_interval_covers_it():
    table = population(0.1, 0, n=200)
    assert optimum.optimum(table) == pytest.approx(0.1, abs=0.03)
    found = optimum.optimum_interval(table)
    assert found["low"] < np.exp(0.1) < found["high"] and found["high"] - found["low"] < 0.1
    monotone = table.assign(drop=table["log_mcb"])
    assert optimum.optimum(monotone) == table["log_mcb"].min()


def test_a_u_shape_is_seen_and_neither_a_slope_nor_noise_is():
    found = optimum.u_shape(regimes())
    assert found["low"] > 0 and found["p"] < 1e-6 and found["n"] == 120
    slope = [t.assign(z=3 * t["log_mcb"] + 0.1 * t["z"]) for t in regimes(strength=0.0)]
    assert optimum.u_shape(slope)["high"] < 0
    flat = [optimum.u_shape(regimes(strength=0.0, noise=seed + 1.0))["p"] for seed in range(3)]
    assert min(flat) > 0.02


def test_pooled_optimum_and_trend():
    found = optimum.pooled_optimum(regimes(0.1))
    assert found["low"] < 0.1 < found["high"] and found["high"] - found["low"] < 0.12
    rising = [population(-0.15 * np.log(kept), 7, kept=kept, n=100) for kept in (0.8, 0.5, 0.3)]
    trend = optimum.trend(rising)
    assert trend["low"] < 0.15 < trend["high"] and trend["low"] > 0
    none = optimum.trend(regimes(0.0, n=100))
    assert none["low"] < 0 < none["high"]


def test_winners_are_near_the_optimum_only_if_there_is_one():
    found = optimum.winners(regimes(0.1), exchanges=99)
    assert found["high"] < 0 and found["p"] <= 0.01
    null = optimum.winners(regimes(strength=0.0), exchanges=99)
    assert null["low"] < 0 < null["high"] and null["p"] > 0.05


def test_winners_near_one_are_no_evidence_where_the_population_is_there():
    """I.i.d. recipes crowd around mCB = 1: the winners' median is near 1 without any effect, and p is fair."""
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        tables = [t.assign(log_mcb=random.normal(0, 0.1, 100), drop=random.normal(size=100)) for t in regimes(n=100)]
        assert max(abs(t["log_mcb"].iloc[optimum.winning(t["drop"])].median()) for t in tables) < 0.2
        found.append(optimum.winners(tables, exchanges=39)["p"])
    assert np.mean(np.array(found) <= 0.05) <= 0.15 and 0.3 < np.mean(found) < 0.75


def test_deviation_explains_out_of_sample_or_not_at_all():
    found = optimum.deviation_gain(regimes(0.0, strength=60.0))
    assert found["low"] > 0.2
    assert optimum.deviation_gain(regimes(strength=0.0))["high"] < 0.15


def test_the_best_five_per_cent_win_and_at_least_three():
    assert optimum.winning(np.arange(30)[::-1]).tolist() == [29, 28, 27]
    assert [optimum.win_count(n) for n in (6, 60, 80, 200)] == [3, 3, 4, 10]


def test_recipes_are_taken_from_the_pool_or_solved_for_where_it_does_not_reach():
    groups = channels.find(models.build("resnet20")).internal()
    pool = spaces.sample_recipes(groups, spaces.Regime(0.6), 500, seed=0).widths
    taken, mass = optimum.refined_recipes(groups, 0.6, pool, 1.0, 5)
    assert 0.2 < mass < 0.4 and all((pool == row).all(axis=1).any() for row in taken)
    solved, mass = optimum.refined_recipes(groups, 0.6, pool, 1.8, 5)
    assert mass == 0 and len(solved) == 5
    assert spaces.refined(groups, solved, 1.8).all() and spaces.Regime(0.6).holds(groups, solved).all()


def test_one_space_is_numbered_anew():
    rows = pd.DataFrame({"space": ["a", "b", "a"], "kept": [0.5, 0.5, 0.3], "drop": [1, 2, 3]})
    assert optimum.one_space(rows, "a", 0.3)["drop"].to_dict() == {0: 3}
