"""Statistics on simulated populations with a known answer; published recipes against their authors' counts."""

import numpy as np
import pandas as pd
import pytest

from lib import channels, models, spaces, stats
from lib.spaces import analysis, samplers


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
    found = analysis.error_ratio(tables, "level", "constant")
    assert found["low"] <= found["value"] <= found["high"] < 0.3 and found["n"] == 8
    assert analysis.error_ratio(tables, "optimum", "level")["low"] > 1


def test_an_optimum_predicts_limits_that_the_level_does_not():
    random = np.random.default_rng(0)
    tables = []
    for best, kept in zip(np.linspace(-0.2, 0.2, 8), random.permutation(np.linspace(0.3, 0.9, 8)), strict=True):
        table = population(best, 1, kept=kept, noise=0.05, spread=0.5)
        tables.append(table.assign(drop=table["drop"] + 20 * best))
    assert analysis.error_ratio(tables, "optimum", "level")["high"] < 0.6
    assert analysis.error_ratio(tables, "optimum", "constant")["high"] < 0.6


LAWS = {  # the form that data of this kind follow, as a function of m* and of the kept share
    "a + b log m*": lambda m, c: 3 + 4 * np.log(m),
    "a exp(b m*)": lambda m, c: 0.5 * np.exp(2.5 * m),
    "a + b log c": lambda m, c: 1 - 5 * np.log(c),
}


@pytest.mark.parametrize("form", LAWS)
def test_the_form_that_made_the_limits_predicts_them_best(form):
    random = np.random.default_rng(1)
    m, kept = random.uniform(0.6, 1.6, 12), random.permutation(np.tile([0.6, 0.5, 0.4, 0.2], 3))
    found = pd.DataFrame({"log_optimum": np.log(m), "optimum": m, "kept": kept, "name": ["main"] * 6 + ["other"] * 6})
    found["limit"] = LAWS[form](m, kept) + 0.01 * random.normal(size=12)
    errors = analysis.law_errors(found, "main")
    assert (errors.idxmin() == form).all() and set(errors.columns) == {"left out", "other networks"}
    assert errors.loc[form].max() < 0.1 < errors.drop(form).min().min()
    rest = [(found["limit"].sum() - own) / 11 - own for own in found["limit"]]
    assert errors.loc["constant", "left out"] == pytest.approx(np.sqrt(np.mean(np.square(rest))))
    alone = analysis.law_errors(found[:6], "main")
    assert list(alone.columns) == ["left out"] and alone["left out"].idxmin() == form


def test_best_of_k_gain_is_the_shift_between_spaces():
    found = analysis.best_of_k_gain(recipes(6, 0), recipes(5, 1), 1)
    assert found["low"] < 1 < found["high"] and found["n"] == 80
    same = analysis.best_of_k_gain(recipes(6, 0), recipes(6, 1), 5)
    assert same["low"] < 0 < same["high"]


def test_a_price_gives_the_rival_more_tries():
    pair = (recipes(6, 0), recipes(6, 1))
    best = [part.sort_values("drop")["test_drop"].iloc[0] for part in pair]
    found = analysis.best_of_k_gain(*pair, 1, price=10_000)["value"]
    assert found == pytest.approx(best[0] - pair[1]["test_drop"].mean())
    assert found < analysis.best_of_k_gain(*pair, 1)["value"]


def test_the_interval_of_a_best_of_k_is_centred_on_what_was_found():
    """Redrawing loses the best recipe of the rival in a third of the draws, which must not count as a gain."""
    for seed in range(4):
        found = analysis.best_of_k_gain(recipes(6, seed, n=12), recipes(6, seed, n=12), 2, price=40)
        assert (found["low"] + found["high"]) / 2 == pytest.approx(found["value"], abs=0.35)


def test_the_winners_of_redraws_are_the_best_of_each():
    table = recipes(5, 0, n=8).assign(widths=[[k] for k in range(8)])
    best = int(table["drop"].idxmin())
    assert analysis.redrawn_winners(table, 8, 5, seed=0) == [[best]] * 5
    drawn = analysis.redrawn_winners(table, 3, 400, seed=0)
    assert drawn == analysis.redrawn_winners(table, 3, 400, seed=0) != analysis.redrawn_winners(table, 3, 400, seed=1)
    order = table["drop"].rank().astype(int) - 1
    places = np.bincount([order[widths[0]] for widths in drawn], minlength=8) / 400
    law = [21 / 56, 15 / 56, 10 / 56, 6 / 56, 3 / 56, 1 / 56, 0, 0]  # pairs of the worse ones, of all triples
    assert places == pytest.approx(law, abs=0.06) and not places[6:].any()


def test_transfer_gains_what_the_population_loses_on_average():
    x = np.linspace(-0.6, 0.9, 16)
    flat, bowl = (pd.DataFrame({"log_mcb": x, "test_drop": drop}) for drop in (np.full(16, 7.0), 10 * (x + 0.3) ** 2))
    typical = np.random.default_rng(0).normal(0, 0.1, 500)
    assert analysis.transfer_gain(flat, typical, -0.3) == pytest.approx(0, abs=1e-6)
    expected = (10 * (typical + 0.3) ** 2).mean()
    assert analysis.transfer_gain(bowl, typical, -0.3) == pytest.approx(expected, abs=0.1)
    assert analysis.transfer_gain(bowl, typical, 0.5) < -4
    assert analysis.transfer_gain(bowl, typical, 5.0) == pytest.approx(analysis.transfer_gain(bowl, typical, 0.9))


def test_straight_lines_are_not_pulled_up_by_a_steep_wall():
    wall = pd.DataFrame({"log_mcb": np.linspace(-0.5, 0.8, 6), "test_drop": [57, 18, 17, 32, 35, 48]})
    gains = [analysis.transfer_gain(wall, np.array([0.02]), -0.22, fitted) for fitted in (True, False)]
    assert gains[1] == pytest.approx(-0.9, abs=0.2) and gains[0] < gains[1] - 1


def test_the_common_share_does_not_count_luck_with_the_images():
    random = np.random.default_rng(3)
    own, luck = random.normal(0, 3, (300, 1)), random.normal(0, 3, (2, 300, 1))
    noisy = [pd.DataFrame(own + one + random.normal(0, 0.1, (300, 3))) for one in luck]
    found = analysis.common_share(*noisy)
    assert stats.intraclass_correlation(noisy[0].to_numpy())["value"] > 0.99
    assert found["value"] == pytest.approx(0.5, abs=0.1)
    assert found["low"] < 0.5 < found["high"] and found["n"] == 300
    unrelated = analysis.common_share(*(pd.DataFrame(one + random.normal(0, 0.1, (300, 3))) for one in luck))
    assert unrelated["low"] < 0 < unrelated["high"]


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
    mcb, others = ["log_mcb", "log_mcb_squared"], ["std", "smallest_share"]
    for features in (mcb, ["tilt"]):
        assert analysis.prediction_gain([one], features)["low"] > 0.7
    assert analysis.prediction_gain([one], mcb, others)["low"] > 0.7
    assert abs(analysis.prediction_gain([one], mcb, [*others, "tilt"])["value"]) < 0.1


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


def with_z(table, z):
    """The table with standardised drops under one seed."""
    return table.assign(z=z, by_seed=[[one] for one in z])


def population(best, seed, n=40, kept=0.5, noise=1.0, strength=30.0, spread=0.35, even=False):
    """Recipes with log mCB around 0; drop is quadratic around `best`, or flat if strength is 0."""
    random = np.random.default_rng(seed)
    x = np.linspace(-spread, spread, n) if even else random.uniform(-spread, spread, n)
    drop = 5 + strength * (x - best) ** 2 + noise * random.normal(size=n)
    return with_z(pd.DataFrame({"log_mcb": x, "drop": drop, "kept": kept}), (drop - drop.mean()) / drop.std())


def regimes(best=0.1, **options):
    shares = (0.8, 0.5, 0.3)
    return [population(best, seed, kept=kept, **options) for seed, kept in enumerate(shares)]


def finished(**columns):
    """Rows of trials of one network; a value that is no list is shared."""
    rows = {"network": "n", "dataset": "d", "source": "public", "status": "done", "mode": "finetune", "retraining": 0}
    rows |= {"kept": 0.5, "mcb": 1.0, "train_images": 1000, "retraining_epochs": 1, "space": "a"}
    rows |= {name: 0.0 for name in ("validation_accuracy", "proxy_accuracy", "test_accuracy")} | columns
    return pd.DataFrame(rows)


def test_drops_are_taken_from_the_control_of_the_same_seed_and_schedule():
    rows = finished(
        status=["done"] * 5 + ["failed"],
        space=["dense", "dense", "a", "a", "dense", "a"],
        mode=["finetune", "rewind", "finetune", "rewind", "none", "none"],
        kept=[1, 1, 0.5, 0.5, 1, 0.5],
        mcb=[1, 1, np.e, 1, 1, 1],
        widths=[[9], [9], [3], [4], [9], [3]],
        validation_accuracy=[90.0, 80, 85, 60, 70, 0],
        proxy_accuracy=[70.0, 70, 50, 50, 70, 0],
        test_accuracy=[88.0, 79, 80, 61, 69, 0],
    )
    table = analysis.with_drops(rows)
    assert len(table) == 5 and table["drop"].tolist() == [0, 0, 5, 20, 0]
    assert table["test_drop"].tolist() == [0, 0, 8, 18, 0] and table["proxy_drop"].tolist() == [0, 0, 20, 20, 0]
    assert table["log_mcb"][2] == pytest.approx(1) and set(table["what"]) == {"inner"}
    (one,) = analysis.ladders(analysis.part(table, mode="finetune"), "test_drop")
    assert one["drop"].tolist() == [8] and one["widths"].tolist() == [[3]] and one["name"].tolist() == ["n/d"]


def test_the_control_is_retrained_as_long_as_the_recipe_and_is_the_same_network():
    rows = finished(
        space=["dense"] * 4 + ["a"] * 5,
        source=["public", "public", "public", "trained"] + ["public"] * 4 + ["trained"],
        train_images=[1000, 500, 1000, 1000, 1000, 500, 1000, 500, 1000],
        retraining_epochs=[1, 1, 3, 1, 1, 1, 3, 2, 1],
        widths=[[9]] * 4 + [[3]] * 5,
        validation_accuracy=[90.0, 80, 95, 60, 85, 78, 88, 86, 50],
    )
    table = analysis.with_drops(rows)
    assert table["drop"].tolist() == [0, 0, 0, 0, 5, 2, 7, 4, 10]  # 500 images twice are as long as 1000 once
    assert table["images"].tolist() == [1000, 500, 3000, 1000, 1000, 500, 3000, 1000, 1000]
    assert table["name"].iloc[[0, -1]].tolist() == ["n/d", "n/d, trained here"]
    without = analysis.with_drops(rows[4:])
    assert without["drop"].isna().all()


def test_ladders_are_sorted_means_over_seeds_the_mildest_regime_first():
    rows = finished(
        kept=[0.3, 0.3, 0.6, 0.6, 0.3, 0.3],
        mcb=[2.0, 0.5, 1.0, 1.5, 2.0, 0.5],
        retraining=[0, 0, 0, 0, 1, 1],
        widths=[[1], [2], [3], [4], [1], [2]],
        validation_accuracy=[-1.0, -4, -5, -6, -3, -6],
    )
    control = finished(space="dense", widths=[[9]] * 2, retraining=[0, 1], kept=1)
    mild, harsh = analysis.ladders(analysis.with_drops(pd.concat([rows, control])))
    assert mild["drop"].tolist() == [5, 6] and harsh["drop"].tolist() == [5, 2] and harsh["mcb"].tolist() == [0.5, 2]
    assert harsh["widths"].tolist() == [[2], [1]] and harsh["z"].tolist() == pytest.approx([1, -1])


def test_a_part_is_numbered_anew():
    rows = pd.DataFrame({"space": ["a", "b", "a"], "kept": [0.5, 0.5, 0.3], "drop": [1, 2, 3]})
    assert analysis.part(rows, space="a", kept=0.3)["drop"].to_dict() == {0: 3}
    assert len(analysis.part(rows, space="c")) == 0


def test_the_optimum_is_found_and_its_interval_covers_it():
    table = population(0.1, 0, n=200)
    assert analysis.optimum(table) == pytest.approx(0.1, abs=0.05)
    found = analysis.optimum_interval(table)
    assert found["low"] < np.exp(0.1) < found["high"] and found["high"] - found["low"] < 0.15
    assert analysis.limit(table) == pytest.approx(5, abs=0.4)
    monotone = table.assign(drop=table["log_mcb"])
    assert analysis.optimum(monotone) == table["log_mcb"].min() == pytest.approx(analysis.limit(monotone))


@pytest.mark.parametrize("test", (analysis.two_lines, analysis.parabola))
def test_a_u_shape_is_seen_and_neither_a_slope_nor_noise_is(test):
    found = test(regimes())
    assert found["low"] > 0 and found["p"] < 0.01 and found["n"] == 120
    slope = [with_z(t, 3 * t["log_mcb"] + 0.1 * t["z"]) for t in regimes(strength=0.0)]
    assert test(slope)["low"] < 0 and test(slope)["p"] > 0.3
    flat = [test(regimes(strength=0.0, noise=seed + 1.0))["p"] for seed in range(3)]
    assert min(flat) > 0.02


def two_seeds(shape, noise, seed, kept=0.5):
    """A ladder of 16 recipes under two seeds of retraining, with drops on two sets of images."""
    random, x = np.random.default_rng(seed), np.linspace(-0.7, 0.9, 16)
    tables = []
    for retraining in (0, 1):
        drop = shape(x) + noise * random.normal(size=16)  # of the seed, so it is nearly that on the other images
        drops = {"drop": drop, "test_drop": drop + 0.1 * noise * random.normal(size=16)}
        table = {"log_mcb": x, "recipe": [f"[{k}]" for k in range(16)], "retraining": retraining, "kept": kept}
        tables.append(pd.DataFrame(table | drops))
    return pd.concat(tables, ignore_index=True)


def test_an_optimum_gains_its_depth_on_a_bowl_and_nothing_on_a_plateau():
    bowl = pd.concat([two_seeds(lambda x: 20 * (x + 0.4) ** 2, 0.3, k, kept) for k, kept in enumerate((0.6, 0.4))])
    found = analysis.optimum_gain(bowl)
    assert found["low"] < 20 * 0.4**2 < found["high"] and found["low"] > 2 and found["n"] == 32
    flat = [analysis.optimum_gain(two_seeds(lambda x: 0 * x, 1.0, seed)) for seed in range(12)]
    assert np.mean([one["value"] for one in flat]) == pytest.approx(0, abs=0.5)
    assert np.mean([one["low"] <= 0 <= one["high"] for one in flat]) >= 0.8


def test_the_gain_of_an_optimum_takes_any_number_of_seeds():
    bowl = two_seeds(lambda x: 20 * (x + 0.4) ** 2, 0.3, seed=4)
    third = bowl[bowl["retraining"] == 0].assign(retraining=2)
    for rows in (bowl[bowl["retraining"] == 0], pd.concat([bowl, third])):
        assert 2 < analysis.optimum_gain(rows)["low"] < 20 * 0.4**2 < analysis.optimum_gain(rows)["high"]


def test_optima_say_where_they_are_how_surely_and_whether_inside():
    tables = [
        population(best, k, n=60, kept=kept, even=True) for k, (best, kept) in enumerate(((0.1, 0.6), (-0.9, 0.4)))
    ]
    tables = [table.assign(name=f"n{k}/d", space="ladder") for k, table in enumerate(tables)]
    found = analysis.optima(tables)
    assert found["name"].tolist() == ["n0/d", "n1/d"] and found["kept"].tolist() == [0.6, 0.4]
    assert found["inside"].tolist() == [True, False] and found["n"].tolist() == [60, 60]
    assert found["log_optimum"].tolist() == [analysis.optimum(table) for table in tables]
    assert found["best_rung"].tolist() == [np.exp(t.loc[t["drop"].idxmin(), "log_mcb"]) for t in tables]
    assert (found["low"] <= found["optimum"]).all() and (found["optimum"] <= found["high"]).all()
    assert found["error"].min() >= 0.7 / 59 / np.sqrt(12) * 0.999 and found["limit"][0] == analysis.limit(tables[0])


def test_pooled_optimum_and_trend():
    tables = [table.assign(name="n/d", space="ladder") for table in regimes(0.1, n=100)]
    found = analysis.pooled_optimum(analysis.optima(tables))
    assert found["low"] < 0.1 < found["high"] and found["high"] - found["low"] < 0.2 and found["n"] == 3

    def seeds(slope):
        tables = [
            population(-slope * np.log(kept), k, kept=kept, n=30, noise=0.3, spread=0.5, even=True).assign(
                retraining=seed, recipe=[str(k) for k in range(30)], widths=[[1]] * 30, name="n/d", space="ladder"
            )
            for seed in (0, 1)
            for k, kept in enumerate((0.8, 0.6, 0.45, 0.3), 4 * seed)
        ]
        return analysis.trend(pd.concat(tables, ignore_index=True))

    rising, none = seeds(0.2), seeds(0.0)
    assert rising["low"] < 0.2 < rising["high"] and rising["low"] > 0 and rising["n"] == 8 and rising["p"] < 0.01
    assert none["low"] < 0 < none["high"] and none["p"] > 0.05


def test_winners_are_near_the_optimum_only_if_there_is_one():
    found = analysis.winners(regimes(0.1, n=60), exchanges=99)
    assert found["high"] < 0 and found["p"] <= 0.01
    null = analysis.winners(regimes(strength=0.0), exchanges=99)
    assert null["low"] < 0 < null["high"] and null["p"] > 0.05


def test_winners_near_one_are_no_evidence_where_the_population_is_there(monkeypatch):
    """I.i.d. recipes crowd around mCB = 1: the winners' median is near 1 without any effect, and p is fair."""
    monkeypatch.setattr(analysis, "RESAMPLES", 2)  # of the interval, which is not asked for
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        tables = [t.assign(log_mcb=random.normal(0, 0.1, 100), drop=random.normal(size=100)) for t in regimes(n=100)]
        assert max(abs(t["log_mcb"].iloc[analysis.winning(t["drop"])].median()) for t in tables) < 0.2
        found.append(analysis.winners(tables, exchanges=39)["p"])
    assert np.mean(np.array(found) <= 0.05) <= 0.15 and 0.3 < np.mean(found) < 0.75


def test_deviation_explains_out_of_sample_or_not_at_all():
    found = analysis.deviation_gain(regimes(0.0, strength=60.0))
    assert found["low"] > 0.2
    assert analysis.deviation_gain(regimes(strength=0.0))["high"] < 0.15


def test_the_best_five_per_cent_win_and_at_least_three():
    assert analysis.winning(np.arange(30)[::-1]).tolist() == [29, 28, 27]
    assert [analysis.win_count(n) for n in (6, 60, 80, 200)] == [3, 3, 4, 10]


def test_eagleeyes_recipes_have_the_published_macs_and_parameters():
    groups = analysis.eagleeye_groups()
    counts = {name: channels.count(groups, np.array(widths)) for name, widths in analysis.EAGLEEYE.items()}
    assert {name: round(macs / 1e9, 3) for name, (macs, _) in counts.items()} == {"3G": 3.080, "2G": 2.057, "1G": 1.034}
    stds = [spaces.recipe_std(groups, np.array(widths)) for widths in analysis.EAGLEEYE.values()]
    assert np.allclose(stds, [0.084, 0.129, 0.214], atol=0.0015)


def test_eagleeyes_recipes_are_at_the_specified_percentiles_of_their_populations():
    places = analysis.eagleeye_places(400).set_index("recipe")
    # 29.4, 21.2 and 43.2 % of a large population; 400 recipes have a standard error of 2.5 %
    assert places["mcb_percentile"].tolist() == pytest.approx([29.4, 21.2, 43.2], abs=7)
    assert (places["std"] < places["std_median"]).all()
    assert places["mcb_median"].tolist() == pytest.approx([0.998, 0.985, 0.958], abs=0.02)


def test_published_results_scatter_around_one():
    table = analysis.published_results().set_index(["method", "network"])["mcb"]
    expected = {"ABCPruner-100": 0.876, "ABCPruner-80": 0.994, "ABCPruner-70": 0.986, "ABCPruner-50": 0.879}
    for method, value in expected.items():
        assert table[method, "resnet50"] == pytest.approx(value, abs=0.0015)
    assert table["uniform 0.5x", "resnet50"] == pytest.approx(0.951, abs=0.001)
    assert table["ABCPruner", "vgg16"] == pytest.approx(2.33, abs=0.02)
    assert table["ABCPruner", "resnet110"] == pytest.approx(1.07, abs=0.01)


def test_the_resnet50_of_62_million_operations_is_no_mildly_pruned_one_of_cifar_shape():
    stem, cifar = (models.count_macs(models.build("resnet50", form=f), (1, 3, 32, 32)) for f in ("imagenet", "cifar"))
    assert (stem, cifar) == (83_431_424, 1_297_829_888)
    assert 62.23e6 / stem == pytest.approx(0.746, abs=1e-3) and 62.23e6 / cifar < 0.05


def test_the_shape_of_an_architecture_needs_no_weights_and_orders_its_mcb():
    row = analysis.shape_of("half", "resnet20-x0.5", 32, {})
    groups, regime = channels.find(models.build("resnet20", width=0.5)), spaces.Regime(0.5)
    assert (row["network"], row["groups"], row["macs"], row["parameters"]) == ("half", 12, 10_248_512, 68_050)
    assert (row["lowest"], row["highest"]) == samplers.feasible_range(groups, regime)
    assert row["lowest"] < row["random_low"] < row["uniform"] < row["random_high"] < row["highest"]
    assert row["macs_per_parameter"] == row["macs"] / row["parameters"] and row["fixed_macs"] == 0
    assert row["fixed_parameters"] == pytest.approx(10 / row["parameters"])


def test_the_nearest_recipes_are_those_of_the_most_alike_kept_shares_with_the_mean_drop_of_their_seeds():
    groups = channels.find(models.build("resnet20")).internal()
    half, third = groups.dense // 2, groups.dense // 3
    rows = [
        {"recipe": name, "space": name, "widths": widths, "mcb": 1.0, "std": 0.1, "drop": drop}
        for name, widths, drops in (("far", third, (9.0, 9.0)), ("near", half, (1.0, 3.0)))
        for drop in drops
    ]
    found = analysis.nearest(groups, half, pd.DataFrame(rows))
    assert found["space"].tolist() == ["near", "far"] and found["drop"].tolist() == [2, 9]
    away = np.sqrt(np.mean((half / groups.dense - third / groups.dense) ** 2))
    assert found["distance"].tolist() == pytest.approx([0, away])
    assert len(analysis.nearest(groups, half, pd.DataFrame(rows)[:0])) == 0
    assert len(analysis.nearest(groups, half, pd.DataFrame(rows), count=1)) == 1
