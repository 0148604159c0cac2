"""Verdict statistics on simulated rows with a known answer."""

import numpy as np
import pandas as pd
import pytest

from lib import spaces_analysis as analysis


def recipes(mean, seed, n=40, kept=0.5, spread=1.0):
    random = np.random.default_rng(seed)
    drop = mean + spread * random.normal(size=n)
    table = pd.DataFrame({"drop": drop, "test_drop": drop + 0.2 * random.normal(size=n), "kept": kept})
    table["z"] = (drop - drop.mean()) / drop.std()
    return table.assign(log_mcb=random.uniform(-0.3, 0.3, n))


def test_spread_effect_has_the_sign_and_size_of_the_shift_and_a_fair_p():
    found = analysis.spread_effect([(recipes(5, seed), recipes(6, seed + 10)) for seed in range(3)])
    assert found["low"] < 1 < found["high"] and found["low"] > 0 and found["p"] < 0.01 and found["n"] == 240
    null = analysis.spread_effect([(recipes(5, seed), recipes(5, seed + 10)) for seed in range(3)])
    assert null["low"] < 0 < null["high"] and null["p"] > 0.05


def test_a_level_predicts_regimes_that_it_has_not_seen():
    levels = np.linspace(0.3, 0.9, 8)
    tables = [recipes(-20 * np.log(kept), seed, kept=kept, spread=0.5) for seed, kept in enumerate(levels)]
    errors = analysis.left_out_errors(tables)
    assert errors["level"] < 0.7 < 4 < errors["constant"]
    found = analysis.error_ratio(tables, "level", "constant")
    assert found["high"] < 0.3 and found["n"] == 8
    assert analysis.error_ratio(tables, "optimum", "level")["low"] > 1


def test_left_out_error_of_a_constant_is_exact():
    tables = [recipes(mean, 0, kept=kept, spread=1e-9) for mean, kept in ((0, 0.8), (3, 0.5), (6, 0.3))]
    assert analysis.left_out_errors(tables)["constant"] == pytest.approx(np.sqrt(2 * 4.5**2 / 3), abs=1e-6)


def test_best_of_k_gain_is_the_shift_between_spaces():
    found = analysis.best_of_k_gain([(recipes(6, 0), recipes(5, 1)), (recipes(9, 2), recipes(8, 3))], 1)
    assert found["low"] < 1 < found["high"] and found["n"] == 160
    same = analysis.best_of_k_gain([(recipes(6, 0), recipes(6, 1))], 5)
    assert same["low"] < 0 < same["high"]


def test_reliability_is_the_share_of_variance_between_recipes():
    random = np.random.default_rng(0)
    own = random.normal(0, 3, (300, 1))
    found = analysis.reliability(pd.DataFrame(own + random.normal(0, 1, (300, 3))))
    assert found["value"] == pytest.approx(0.9, abs=0.02) and found["low"] < 0.9 < found["high"]
    noise = analysis.reliability(pd.DataFrame(random.normal(size=(300, 3))))
    assert noise["low"] < 0 < noise["high"]


def test_the_weakest_pair_of_schedules_decides():
    random = np.random.default_rng(1)
    own = random.normal(size=60)
    table = pd.DataFrame({"finetune": own, "rewind": own + 0.1 * random.normal(size=60)})
    assert analysis.schedule_agreement(table)["low"] > 0.9
    found = analysis.schedule_agreement(table.assign(scratch=random.normal(size=60)))
    assert found["low"] < 0 < found["high"]


def test_a_proxy_is_judged_within_regimes():
    random = np.random.default_rng(2)
    tables = [recipes(10 * k, k, kept=kept) for k, kept in enumerate((0.8, 0.5, 0.3))]
    useless = [t.assign(proxy_drop=10 * k + random.normal(size=len(t))) for k, t in enumerate(tables)]
    assert abs(analysis.proxy_agreement(useless)["value"]) < 0.3
    good = [t.assign(proxy_drop=t["drop"] ** 3) for t in tables]
    assert analysis.proxy_agreement(good)["value"] == pytest.approx(1)


def test_prediction_gain_counts_only_what_is_new():
    random, tables = np.random.default_rng(3), []
    for kept in (0.8, 0.5):
        std = random.normal(size=80)
        z = std + 0.5 * random.normal(size=80)
        tables.append(
            pd.DataFrame({"std": std, "copy": 2 * std, "noise": random.normal(size=80), "z": z, "kept": kept})
        )
    assert analysis.prediction_gain(tables, ["std"])["low"] > 0.6
    assert analysis.prediction_gain(tables, ["copy"], ["std"])["value"] == pytest.approx(0, abs=1e-9)
    assert analysis.prediction_gain(tables, ["noise"], ["std"])["high"] < 0.1


def test_a_champion_must_beat_the_best_rival():
    random = np.random.default_rng(4)
    table = pd.DataFrame({"a": 70 + random.normal(size=5), "b": 60.0, "c": 69 + random.normal(size=5)})
    found = analysis.contest(table, "a", ["b", "c"])
    assert found["rival"] == "c" and found["value"] == pytest.approx((table["a"] - table["c"]).mean())
    assert found["n"] == 5 and found["low"] < found["value"] < found["high"]
