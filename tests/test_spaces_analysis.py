"""Verdict statistics on simulated rows with a known answer."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.spaces import analysis


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


def test_a_price_gives_the_rival_more_tries():
    pair = (recipes(6, 0), recipes(6, 1))
    best = [part.sort_values("drop")["test_drop"].iloc[0] for part in pair]
    found = analysis.best_of_k_gain([pair], 1, price=10_000)["value"]
    assert found == pytest.approx(best[0] - pair[1]["test_drop"].mean())
    assert found < analysis.best_of_k_gain([pair], 1)["value"]


def test_the_interval_of_a_best_of_k_is_centred_on_what_was_found():
    """Redrawing loses the best recipe of the rival in a third of the draws, which must not count as a gain."""
    pairs = [(recipes(6, seed, n=12), recipes(6, seed, n=12)) for seed in range(4)]
    found = analysis.best_of_k_gain(pairs, 2, price=40)
    assert (found["low"] + found["high"]) / 2 == pytest.approx(found["value"], abs=0.25)


def test_reliability_is_the_share_of_variance_between_recipes():
    random = np.random.default_rng(0)
    own = random.normal(0, 3, (300, 1))
    found = analysis.reliability(pd.DataFrame(own + random.normal(0, 1, (300, 3))))
    assert found["value"] == pytest.approx(0.9, abs=0.02) and found["low"] < 0.9 < found["high"]
    noise = analysis.reliability(pd.DataFrame(random.normal(size=(300, 3))))
    assert noise["low"] < 0 < noise["high"]


def test_the_common_share_does_not_count_luck_with_the_images():
    random = np.random.default_rng(3)
    own, luck = random.normal(0, 3, (300, 1)), random.normal(0, 3, (2, 300, 1))
    noisy = [pd.DataFrame(own + one + random.normal(0, 0.1, (300, 3))) for one in luck]
    found = analysis.common_share(*noisy)
    assert analysis.reliability(noisy[0])["value"] > 0.99 and found["value"] == pytest.approx(0.5, abs=0.1)
    assert found["low"] < 0.5 < found["high"] and found["n"] == 300
    unrelated = analysis.common_share(*(pd.DataFrame(one + random.normal(0, 0.1, (300, 3))) for one in luck))
    assert unrelated["low"] < 0 < unrelated["high"]


def test_the_weakest_pair_of_schedules_decides():
    random = np.random.default_rng(1)
    own = random.normal(size=60)
    table = pd.DataFrame({"finetune": own, "rewind": own + 0.1 * random.normal(size=60)})
    alike = analysis.schedule_agreement(table)
    assert alike["low"] > 0.9 and alike["p"] < 0.01
    scratch = random.normal(size=60)
    found = analysis.schedule_agreement(table.assign(scratch=scratch))
    pairs = [(0, 1), (0, 2), (1, 2)]
    columns = table.assign(scratch=scratch).to_numpy().T
    smallest = min(stats.spearmanr(columns[i], columns[j]).statistic for i, j in pairs)
    assert found["value"] == pytest.approx(smallest) and found["low"] < 0 < found["high"]


def test_the_smallest_correlation_of_three_unrelated_schedules_is_negative_and_p_is_fair():
    """Its mean is about -0.36 for 6 recipes; the interval holds the true 0 in at least 95 % of repeats."""
    found = [
        analysis.schedule_agreement(pd.DataFrame(np.random.default_rng(seed).normal(size=(6, 3)))) for seed in range(40)
    ]
    assert found[0]["null"][0] == pytest.approx(-0.36, abs=0.03) and found[0]["null"][1] < -0.8
    assert np.mean([one["value"] for one in found]) == pytest.approx(-0.36, abs=0.12)
    assert 0.35 < np.mean([one["p"] for one in found]) < 0.65
    assert np.mean([one["low"] < 0 < one["high"] for one in found]) >= 0.9


def test_a_schedule_that_ties_all_recipes_ranks_none():
    table = pd.DataFrame({"finetune": np.arange(8.0), "rewind": np.arange(8.0), "scratch": 1.0})
    assert analysis.schedule_agreement(table)["value"] == 0


def test_a_proxy_is_judged_within_regimes():
    random = np.random.default_rng(2)
    tables = [recipes(10 * k, k, kept=kept) for k, kept in enumerate((0.8, 0.5, 0.3))]
    useless = [t.assign(proxy_drop=10 * k + random.normal(size=len(t))) for k, t in enumerate(tables)]
    assert abs(analysis.proxy_agreement(useless)["value"]) < 0.3
    good = [t.assign(proxy_drop=t["test_drop"] ** 3) for t in tables]
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


def test_two_names_of_one_variable_predict_alike_and_add_nothing_to_each_other():
    random = np.random.default_rng(4)
    x, rest = random.normal(size=120), random.normal(size=(120, 2))
    one = pd.DataFrame({"log_mcb": x, "log_mcb_squared": x**2, "tilt": -x, "std": rest[:, 0]})
    one = one.assign(smallest_share=rest[:, 1], z=x + 0.3 * random.normal(size=120))
    table = analysis.prediction_table([one])
    assert table.loc["mCB", "low"] > 0.7 and table.loc["tilt", "low"] > 0.7
    assert table.loc["mCB beyond STD and smallest kept share", "low"] > 0.7
    assert abs(table.loc["mCB beyond these two and tilt", "value"]) < 0.1


def test_a_table_of_std_spaces_names_what_was_reached():
    tables = [recipes(mean, mean, n=20).assign(std=std, mcb=1.0) for mean, std in ((5, 0.1), (9, 0.2))]
    table = analysis.spread_table({0.6: tables}, [0.1, 0.2])
    assert table.loc["STD asked 0.2", "60%"] == "STD 0.200, mCB 1.00, n = 20"
    assert float(table.loc["Kolmogorov-Smirnov, outer two, p", "60%"]) < 0.01


def test_a_champion_must_beat_the_best_rival():
    random = np.random.default_rng(4)
    wrong = {
        name: [np.flatnonzero(random.random(400) < p) for _ in range(5)]
        for name, p in zip("abc", (0.3, 0.5, 0.35), strict=True)
    }
    rows = pd.DataFrame(
        [{"space": n, "status": "done", "test_images": 400, "test_wrong": one} for n in wrong for one in wrong[n]]
    )
    found = analysis.contest(rows, "a", ["b", "c"])
    fewer = [np.mean([len(one) for one in wrong[name]]) / 4 for name in "ca"]
    assert found["rival"] == "c" and found["value"] == pytest.approx(fewer[0] - fewer[1])
    assert found["n"] == 5 and found["low"] < found["value"] < found["high"]
    failed = pd.DataFrame([{"space": "a", "status": "failed", "test_images": 400, "test_wrong": None}])
    assert analysis.contest(pd.concat([rows, failed]), "a", ["b", "c"]) == found


def test_a_contest_counts_its_test_images_as_well_as_its_seeds():
    alike = [
        {"space": n, "status": "done", "test_images": 100, "test_wrong": list(range(k))}
        for n, k in (("a", 20), ("b", 22))
        for _ in range(8)
    ]
    found = analysis.contest(pd.DataFrame(alike), "a", ["b"])
    assert (
        found["value"] == 2 and found["low"] == 0 < found["high"] and found["p"] > 0.05
    )  # two images, seeds all equal
