"""Statistics of paper 1 on made-up rows in which the answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from lib import stats
from lib.latent import analysis, measures
from lib.masks import METHODS
from lib.provenance import CompanionError

FRACTIONS, EPOCHS, TRIALS = (0.1, 0.3, 0.5, 0.8), 3, 2
CASES = ("resnet20, cifar10", "resnet56, cifar10", "resnet20, cifar100")
HEAD = {"network": "resnet20", "dataset": "cifar10", "status": "done", "trial": 0, "tuning_lr": 0.01, "weights": 640}
DENSE = {"dense_test_accuracy": 90.0, "dense_test_loss": 1.0, "dense_train_loss": 0.5}
ONE_SHOT = {"structure": "weights", "mode": "paper", "method": "lowest", "fraction": 0.5}


def record(pd_of, cases=CASES, seed=0):
    """Rows by epoch; `pd_of(ap2, epoch, random)` gives the performance difference of a configuration in a trial."""
    random, rows = np.random.default_rng(seed), []
    keys = [(c, m, f, t) for c in cases for m in METHODS for f in FRACTIONS for t in range(TRIALS)]
    for case, method, fraction, trial in keys:
        ap2 = (1 + METHODS.index(method)) * 10 * fraction + random.random() * 0.01
        for epoch in range(EPOCHS + 1):
            row = {"case": case, "method": method, "fraction": fraction, "trial": trial, "epoch": epoch}
            row |= {"configuration": f"{method} {fraction}", "ap2": ap2, "r2": ap2 / 4, "weights": 640}
            rows.append(row | {"pd": pd_of(ap2, epoch, random)})
    return pd.DataFrame(rows)


def last(rows):
    return rows[rows["epoch"] == EPOCHS]


def heads(*changes, length=3):
    """Rows of `trials.heads` with `length` recorded epochs and a case; what is not named is alike in all of them."""
    series = {name: [1.0] * length for name in analysis.SERIES} | {"epoch": list(range(length))}
    return analysis.with_case(pd.DataFrame([HEAD | DENSE | ONE_SHOT | series | change for change in changes]))


def ended(*changes):
    """The rows by epoch of `heads`: those of the last epoch, and those of epoch 0."""
    rows = analysis.by_epoch(heads(*changes), FRACTIONS)
    return rows[rows["epoch"] == 2], rows[rows["epoch"] == 0]


FOLLOWING = record(lambda ap2, epoch, random: ap2 / (1 + epoch))
OPPOSED = record(lambda ap2, epoch, random: 100 - ap2)


def test_a_case_is_a_network_with_a_data_set_what_it_sees_and_its_training():
    rows = pd.DataFrame({"network": "net", "dataset": "data", "seed": [np.nan, 0, 2, np.nan]})
    expected = ["net, data", "net, data", "net, data, seed 2"]
    assert analysis.with_case(rows)["case"].tolist() == [*expected, "net, data"]
    assert analysis.with_case(rows.assign(seen=np.nan))["case"].tolist() == [*expected, "net, data"]
    seen = rows.assign(seen=[None, None, None, "other"])
    assert analysis.with_case(seen)["case"].tolist() == [*expected, "net, data to other"]
    assert analysis.with_case(rows.drop(columns="seed"))["case"].unique().tolist() == ["net, data"]


def test_chosen_cases_are_those_asked_for_or_the_first_ones():
    assert analysis.chosen([], CASES) == list(CASES) and analysis.chosen([], CASES, 1) == [CASES[0]]
    assert analysis.chosen(CASES[2:0:-1], CASES, 1) == [CASES[2], CASES[1]]
    with pytest.raises(CompanionError, match="Unknown case 'resnet21, cifar10' .did you mean resnet20, cifar10"):
        analysis.chosen(["resnet21, cifar10"], CASES)


def test_differences_of_a_record_are_absolute_and_by_epoch():
    series = {"test_loss": [2.0, 1.5, 0.8], "train_loss": [1.0, 0.5, 0.25], "test_accuracy": [50.0, 60.0, 92.0]}
    rows = analysis.by_epoch(heads(series, {"status": "failed"}), FRACTIONS)
    assert rows["epoch"].tolist() == [0, 1, 2] and rows["pd"].tolist() == [40, 30, 2]
    assert rows["gap"].tolist() == pytest.approx([1, 0.5, 0.2]) and rows["train_gap"].tolist() == [0.5, 0, 0.25]


def test_the_lambda_rule_makes_the_largest_kl_after_epoch_zero_nineteen_tenths():
    own = {"ap2": [9.0, 2.0, 4.0], "r2": [0.9, 0.2, 0.4]}
    others = [{"fraction": 0.9}, {"method": "none"}, {"mode": "code"}, {"structure": "inputs"}, {"steps_of_pruning": 4}]
    larger = [other | {"ap2": [99.0] * 3} for other in [*others, {"trial": 1}, {"tuning_lr": 0.1}]]
    rows = analysis.by_epoch(heads(own, *larger), FRACTIONS)
    assert rows["kl"][:3].tolist() == pytest.approx([1.9 * 9 / 4, 0.95, 1.9])
    assert rows["scaled_r2"][:3].tolist() == pytest.approx([3.8 * 0.9 / 4, 0.19, 0.38])
    assert rows.groupby(["trial", "tuning_lr"])["largest_ap2"].unique().map(list).tolist() == [[4], [99], [99]]


def test_a_configuration_is_everything_that_was_done_to_a_head():
    none = dict.fromkeys(ONE_SHOT)
    changes = [{}, {"fraction": 0.3}, {"structure": "n:m"}, {"steps_of_pruning": 4}, none | {"rank": 5}]
    changes += [none | {"bits": 4}, none | {"fraction": 0.5, "exponents": [1.5, -2.0]}]
    changes += [none | {"fraction": 0.5, "exponents": [-2.0], "target": 0.3}]
    rows = analysis.by_epoch(heads(*changes), FRACTIONS)
    assert rows["configuration"].nunique() == len(changes)
    assert rows["configuration"][0] == "weights lowest 0.5" and not rows["configuration"].str.contains("nan|None").any()
    assert analysis.plain(rows).tolist() == [True] * 6 + [False] * 18
    assert rows["largest_ap2"].isna().sum() == 0  # what is not one of the twelve has their scale


def test_a_record_without_the_twelve_has_no_scale():
    rows = analysis.by_epoch(heads({"method": None, "structure": None, "mode": None, "exponents": [1.0, 0.0]}), [0.5])
    assert rows["kl"].isna().all() and rows["pd"].notna().all()


@pytest.mark.parametrize(("rows", "sign"), ((FOLLOWING, 1), (OPPOSED, -1)))
def test_a_measure_that_follows_or_opposes_the_loss_has_a_correlation_of_one(rows, sign):
    for within in ((), ("fraction",), ("fraction", "case")):
        found = analysis.per_case(last(rows), analysis.rho("ap2", "pd", *within))
        assert found.index.tolist() == list(CASES) and found.tolist() == pytest.approx([sign] * 3)
    for method in (analysis.pairs_alike("ap2", "pd", ("lowest", {0.3, 0.5})), analysis.pairs_alike("ap2", "pd", ())):
        assert analysis.per_case(last(rows), method).tolist() == [(1 + sign) / 2] * 3
    assert analysis.per_case(rows, analysis.orders_differ("ap2", "pd")).tolist() == [(1 - sign) / 2] * 3


def test_what_sparsities_have_in_common_counts_only_without_strata():
    """AP2 and PD both grow with sparsity and have nothing else in common: the trap of paper 1."""
    found, every = [], tuple(f"net {k}, cifar10" for k in range(6))
    for seed in range(60):
        rows = last(record(lambda ap2, epoch, random: 0.0, every, seed))
        rows = rows.assign(pd=100 * rows["fraction"] + np.random.default_rng(seed).random(len(rows)))
        assert analysis.per_case(rows, analysis.rho("ap2")).min() > 0.5
        found.append(analysis.over_cases(analysis.per_case(rows, analysis.rho("ap2", "pd", "fraction"))))
    assert abs(np.mean([one["value"] for one in found])) < 0.05
    assert sum(one["p"] < 0.05 for one in found) <= 9  # .05 of 60 is 3; 10 or more has a chance of .0007


def test_correlations_are_of_means_over_trials_with_mean_ranks_for_ties():
    rows = pd.DataFrame(
        {"configuration": list("aabbccdd"), "x": [0, 2, 2, 4, 4, 6, 6, 8], "pd": [9, 1, 6, 6, 0, 12, 7, 7]}
    )
    y = [5, 6, 6, 7]
    assert analysis.rho("x")(rows) == pytest.approx(scipy_stats.spearmanr([1, 3, 5, 7], y).statistic)
    assert np.isnan(analysis.rho("x")(rows.assign(pd=1.0)))  # a loss that never varies orders nothing
    part = rows.assign(x=rows["x"].where(rows["configuration"] != "a"))  # NaN removes its configuration
    assert analysis.rho("x")(part) == pytest.approx(scipy_stats.spearmanr([3, 5, 7], y[1:]).statistic)


def test_a_table_of_correlations_has_the_numbers_of_each_case_and_measure():
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(60, 4)), columns=["x", "y", "pd", "gap"])
    rows = rows.assign(case=np.repeat(["one", "two"], 30), configuration=np.tile(np.arange(15), 4))
    rows["fraction"] = rows["configuration"] % 3
    tables = analysis.correlations(rows, {"X": "x", "Y": "y"}, {"points": "pd", "nats": "gap"}, "fraction")
    assert list(tables) == ["points", "nats"] and list(tables["nats"]) == ["X", "Y"]
    for title, target in {"points": "pd", "nats": "gap"}.items():
        for name, column in {"X": "x", "Y": "y"}.items():
            alone = analysis.per_case(rows, analysis.rho(column, target, "fraction"))
            pd.testing.assert_series_equal(tables[title][name], alone, check_names=False)


def test_the_mean_over_cases_has_the_interval_and_p_of_students_t():
    values = pd.Series([0.2, 0.5, 0.6, 0.1], index=list("abcd"))
    found, exact = analysis.over_cases(values, null=0.3), scipy_stats.ttest_1samp(values, 0.3, alternative="greater")
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx({"value": 0.35, "low": low, "high": high, "n": 4, "p": exact.pvalue})
    less = analysis.over_cases(values, null=0.3, less=True)
    assert less["p"] == pytest.approx(1 - exact.pvalue) and less["value"] == found["value"]
    assert analysis.over_cases(pd.concat([values, pd.Series([np.nan])])) == analysis.over_cases(values)


def test_an_interval_over_cases_stays_where_a_mean_can_be():
    assert analysis.over_cases(pd.Series([0.9, 1.0, 0.3]))["high"] == 1
    assert analysis.over_cases(pd.Series([-0.9, -1.0, -0.3]))["low"] == -1
    far = analysis.over_cases(pd.Series([1.2, 1.3, 1.9]))  # differences of two correlations
    assert far["low"] < far["value"] < far["high"] == 2
    one, none = (analysis.over_cases(pd.Series(values, dtype=float)) for values in ([0.5], []))
    assert one["value"] == 0.5 and one["n"] == 1 and none["n"] == 0 and np.isnan(none["value"])
    assert all(np.isnan(found[name]) for found in (one, none) for name in ("low", "high", "p"))


def test_a_correlation_of_two_columns_is_taken_within_strata():
    random = np.random.default_rng(1)
    table = pd.DataFrame({"a": np.repeat(["x", "y"], 20), "b": np.tile(np.repeat([1, 2], 10), 2)})
    level = 100 * (table["a"] == "y") + 10 * table["b"]
    x, noise = level + random.random(40), level + random.random(40)
    assert analysis.correlation(x, noise)["value"] > 0.8
    found = analysis.correlation(x, noise, table)
    assert abs(found["value"]) < 0.4 and found["low"] < 0 < found["high"] and found["p"] > 0.05 and found["n"] == 40
    follows = analysis.correlation(x, x**3, table)
    assert follows["value"] == pytest.approx(1) and follows["p"] == 0.001 and follows["n"] == 40


def test_prune_time_measures_are_those_of_the_same_configuration_trial_and_mode():
    changes = [{"trial": t, "mode": m, "method": n} for t in (0, 1) for m in ("paper", "code") for n in METHODS[1:]]
    changes = [one | {"ap2": [10.0 * k, 0, 0.5], "test_loss": [2.0 + k, 1, 1]} for k, one in enumerate(changes)]
    ending, start = ended(*changes)
    found = analysis.with_prune_time(ending, pd.concat([start, start]))  # asked for twice
    assert len(found) == len(changes) and found["ap2"].unique().tolist() == [0.5]
    assert found["ap2_start"].tolist() == [10.0 * k for k in range(8)]
    assert found["gap_start"].tolist() == [1.0 + k for k in range(8)]
    assert all(found[f"{name}_start"].tolist() == [1.0] * 8 for name in analysis.MEASURES)
    assert found["name"].tolist() == [analysis.NAMES[method] for method in found["method"]]


def test_a_matched_mask_has_the_gamma_that_was_found_and_a_drawn_one_its_own():
    none = dict.fromkeys(ONE_SHOT) | {"fraction": 0.5}
    drawn, matched = {"exponents": [1.5, -2.0]}, {"exponents": [0.5], "target": 0.3, "gamma": -0.7}
    found = analysis.with_exponents(*ended(none | drawn, none | matched))
    assert found["gamma"].tolist() == [1.5, -0.7] and found["delta"].tolist() == [-2, 0.5]
    alone = analysis.with_exponents(*ended(none | drawn))  # a profile may have one kind
    assert alone["gamma"].tolist() == [1.5] and alone["name"].isna().all()


def test_cases_that_share_weights_count_once():
    one, lite = {"network": "resnet20", "dataset": "cifar10"}, {"network": "efficientnet_lite0-pretrained"}
    networks = {"a": one, "b": one | {"dataset": "cifar100"}, "c": one | {"seen": "cifar100"}, "d": one | {"seed": 1}}
    networks |= {"e": lite | {"dataset": "cifar10"}, "f": lite | {"dataset": "cifar100"}}
    assert analysis.one_of_each(networks) == ["a", "b", "d", "e"]


def test_kinds_are_compressions_in_one_shot():
    none = dict.fromkeys(ONE_SHOT)
    changes = [{}, {"structure": "inputs"}, none | {"rank": 3}, none | {"bits": 4}]
    others = [{"steps_of_pruning": 4}, {"method": "random"}, {"mode": "code"}, {"method": "none"}]
    found = analysis.kinds(ended(*changes, *others)[0])
    assert found["kind"].tolist() == ["weights", "inputs", "low rank", "few bits"]


def test_pairs_of_one_kind_say_nothing_about_kinds():
    rows = pd.DataFrame({"kind": list("aabb"), "x": [1, 2, 3, 4], "y": [2, 1, 4, 3]})
    assert analysis.across_kinds("x", "y")(rows) == 1  # although each kind is in reverse order
    rows["y"] = [3, 4, 1, 2]
    assert analysis.across_kinds("x", "y")(rows) == -1
    rows["y"] = [1, 4, 2, 3]  # of four pairs of kinds two are alike
    assert analysis.across_kinds("x", "y")(rows) == 0


def test_the_best_of_others_is_chosen_without_the_case_itself():
    table = pd.DataFrame({"a": [0.9, 0.1, 0.1], "b": [0.2, 0.5, 0.4]}, index=list("xyz"))
    assert analysis.best_of_others(table).to_dict() == {"x": 0.2, "y": 0.1, "z": 0.1}
    assert analysis.best_of_others(table[:1]).isna().all()
    empty = table.assign(b=np.nan)[1:]  # a measure without values is never the best
    assert analysis.best_of_others(empty).tolist() == [0.1, 0.1]
    random = np.random.default_rng(0)  # six measures that know nothing: no advantage from being the best of six
    noise = pd.DataFrame(random.normal(size=(300, 6)), index=map(str, range(300)))
    assert noise.max(axis=1).mean() > 1 and abs(analysis.best_of_others(noise).mean()) < 0.2


def test_hidden_layers_are_compared_with_the_mean_control_of_their_case():
    every = ["first", "second", "head"]

    def row(case, method, after, moved, accuracy, loss):
        scores = {"tuned_test_accuracy": accuracy, "tuned_test_loss": loss}
        return {"case": case, "method": method, "later_layers": after, "later_relative_ap2": moved} | scores

    rows = [row("a", "none", every, [0.1, 0.2, 0.4], 90.0, 1.0), row("a", "none", every, [0.3, 0.4, 0.6], 92.0, 1.2)]
    rows += [row("a", "lowest", every[1:], [1.3, 1.5], 81.0, 1.5), row("a", "lowest", [], [], 95.0, 1.0)]
    rows += [row("b", "none", every, [0.0] * 3, 50.0, 2.0), row("b", "lowest", every[2:], [0.7], 40.0, 3.0)]
    found = analysis.beyond_control(pd.DataFrame(rows)).query("method != 'none'")
    assert found["pd"].tolist() == [10, -4, 10] and found["gap"].tolist() == pytest.approx([0.4, -0.1, 1])
    assert found["later"].tolist() == pytest.approx([1.0, np.nan, 0.7], nan_ok=True)  # 1.4 - (.3 + .5) / 2


def test_tasks_become_a_row_for_each_ordered_pair():
    pair = dict.fromkeys("ap2 ap2_from_zero accuracy loss_gap to_accuracy steps steps_from_zero".split(), [1, 2])
    found = analysis.task_pairs(
        pd.DataFrame([pair | {"from_task": [1, 0], "to_task": [0, 1], "case": c} for c in "ab"])
    )
    assert found["case"].tolist() == ["a", "a", "b", "b"] and found["to_task"].tolist() == [0, 1, 0, 1]
    assert set(map(str, found.drop(columns="case").dtypes)) == {"float64"}


def test_a_share_has_wilsons_interval_and_the_p_of_a_coin():
    found = analysis.share(pd.Series([True] * 8 + [False] * 2))
    assert (found["low"], found["high"]) == stats.wilson(8, 10)
    assert found["value"] == 0.8 and found["p"] == pytest.approx((45 + 10 + 1) / 1024)
    assert analysis.interval_text({"value": 0.123, "low": -0.5, "high": 1}) == "0.12 [-0.50, 1.00]"


def test_one_pair_of_one_method_is_left_out_and_a_tie_counts_half():
    rows = last(record(lambda ap2, *_: ap2, CASES[:1]))
    assert analysis.pairs_alike("ap2", "pd", ())(rows.assign(pd=7.0)) == 0.5
    turned = rows["pd"].where((rows["method"] != "lowest") | (rows["fraction"] != 0.3), 2 * rows["pd"])
    wrong = rows.assign(pd=turned)  # lowest at 30 % harms more than at 50 %, less than at 80 %
    assert analysis.pairs_alike("ap2", "pd", ("lowest", {0.3, 0.5}))(wrong) == 1
    assert analysis.pairs_alike("ap2", "pd", ("random", {0.3, 0.5}))(wrong) == pytest.approx(16 / 17)


def test_orders_are_compared_after_epoch_zero_by_means_over_trials():
    assert analysis.orders_differ("ap2", "pd")(FOLLOWING.assign(pd=lambda r: r["pd"] * np.sign(r["epoch"] - 0.5))) == 0
    late = FOLLOWING.assign(pd=lambda r: np.where(r["epoch"] == EPOCHS, -r["pd"], r["pd"]))
    assert analysis.orders_differ("ap2", "pd")(late) == pytest.approx(1 / EPOCHS)
    noisy = FOLLOWING.assign(pd=lambda r: r["pd"] + 50 * (r["trial"] - 0.5))  # cancels in the mean
    assert analysis.orders_differ("ap2", "pd")(noisy) == 0


def test_unrelated_orders_of_three_agree_once_in_six_times():
    x, y = np.random.default_rng(5).normal(size=(2, 6000, 3))
    assert analysis.same_order(x, y).mean() == pytest.approx(1 / 6, abs=0.02)
    assert analysis.same_order([1, 2, 3], [10, 20, 30]) and not analysis.same_order([1, 2, 3], [1, 3, 2])
    assert not analysis.same_order([1, 2, 3], [1, 1, 2])  # a tie agrees with no strict order


def test_a_border_shows_only_if_agreement_ends_there():
    kept = analysis.border_shares(record(lambda ap2, *_: ap2, CASES[:1]), "r2", border=1.0)
    assert kept["agree below"] == kept["agree above"] == 1 and 0 < kept["above"] and kept["below"] + kept["above"] < 1
    broken = analysis.border_shares(record(lambda ap2, *_: ap2 if ap2 < 8.2 else -ap2, CASES[:1]), "r2", border=1.0)
    assert broken["agree below"] == 1 and broken["agree above"] == 0
    one_sided = analysis.border_shares(record(lambda ap2, *_: 1.0, CASES[:1]), "r2", border=1e9)
    assert one_sided["below"] == 1 and one_sided["agree below"] == 0.5 and np.isnan(one_sided["agree above"])


def test_pairs_at_a_border_share_a_method_or_a_sparsity():
    """Of 12 configurations there are 30 such pairs; two of one method, beyond 2, have 4 more partners each."""
    rows = record(lambda ap2, epoch, random: ap2 if epoch else -ap2, CASES[:1])  # epoch 0 does not count
    far = (rows["method"] == "highest") & rows["fraction"].isin([0.5, 0.8])
    distances = torch.tensor([2.04, 2.05])  # in 107 groups of 6 weights, just below and just above 2
    assert (measures.kl_student_t(distances, 107, 4.0) > 2).tolist() == [False, True]
    rows["r2"] = np.where(far, 2.05**2, 2.04**2) + rows["ap2"] * 1e-6
    found = analysis.border_shares(rows, "r2")
    assert found["below"] == pytest.approx(21 / 30) and found["above"] == pytest.approx(1 / 30)
    assert found["agree below"] == found["agree above"] == 1


def test_methods_are_separated_by_the_logarithms_of_a_measure():
    rows = []
    for place, method in enumerate(("lowest", "random", "highest")):
        for trial, noise in enumerate((-0.3, 0.0, 0.3)):  # a standard deviation of .3 powers of ten
            row = {"fraction": 0.5, "method": method, "trial": trial, "far": 10.0 ** (place + noise)}
            row |= {"near": 10.0 ** (0.55 * place + noise), "half": 1.0 if method == "lowest" else 2.0, "none": 0.0}
            rows.append(row)
    table = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows).assign(fraction=0.8, half=1.0)])
    shares = {name: analysis.share_separated(name)(table) for name in ("far", "near", "half", "none")}
    assert shares == pytest.approx({"far": 1, "near": 1 / 3, "half": 1 / 3, "none": 0})


def test_separation_is_in_pooled_standard_deviations():
    assert analysis.separation([0, 2], [10, 12]) == pytest.approx(10 / np.sqrt(2))
    assert analysis.separation([1, 1], [2, 2]) == float("inf") and analysis.separation([1, 1], [1, 1]) == 0


def test_falling_series_agree_with_any_other_and_their_steps_only_with_their_own():
    random = np.random.default_rng(2)
    steps = -random.random((6, 40))
    levels = np.cumsum(steps, axis=1)
    assert analysis.own_against_others(levels, levels[::-1]) == (1, 1)  # the null that levels have
    own, others = analysis.own_against_others(steps, steps)
    assert own == 1 and abs(others) < 0.15
    own, others = analysis.own_against_others(np.array([[1.0, 2, 3], [5, 5, 5]]), np.array([[1.0, 2, 3], [3, 2, 1]]))
    assert (own, others) == (1, -1)  # a gap that never changes has no tau
    assert np.isnan(analysis.own_against_others(levels[:, :1], levels[:, :1])).all()
    assert np.isnan(analysis.own_against_others(0 * levels, levels)).all()
    one = analysis.own_against_others(levels[:1], levels[:1])
    assert one[0] == 1 and np.isnan(one[1])


def test_the_largest_fraction_is_the_last_one_within_the_tolerance():
    ending = pd.DataFrame({"case": "c", "trial": 0, "method": "lowest", "fraction": [0.9, 0.1, 0.5], "pd": [3, 0, 1.0]})
    more = [ending.assign(trial=1), ending.assign(method="highest", pd=5.0)]
    more.append(ending.assign(method="random", pd=[0.5, 0.0, 2.0]))  # harmless again at 90 %
    found = analysis.largest_fractions(pd.concat([ending, *more]), [1.0, 4.0]).set_index(["method", "delta"])["s"]
    assert found["lowest"].tolist() == [0.5, 0.9] and found["highest"].tolist() == [0, 0]
    assert found["random"].tolist() == [0.1, 0.9]


def test_the_ablation_of_groups_is_a_mean_over_trials():
    sizes = {f"{order}_{what}": [1, 3] for order in ("contiguous", "shuffled") for what in ("dim", "r2", "t_ap3")}
    row = {"case": "c", "fraction": 0.5, "method": "lowest", "groups": [10, 100], "ap2": 2.0} | sizes
    found = analysis.group_ablation(pd.DataFrame([row, row | {"shuffled_t_ap3": [3, 7]}]))
    assert found["groups"].tolist() == [10, 100] and found["contiguous_dim"].tolist() == [1, 3]
    assert found["shuffled_t_ap3"].tolist() == [2, 5] and found["ap2"].tolist() == [2, 2]


def test_bounds_take_the_curvature_of_their_case_and_both_sides_by_hand():
    rows = pd.DataFrame({"case": ["a", "a, seed 1", "b", "b"], "ap2": 4.0, "kl": [0.5, 0.5, 0.5, 2.0], "weights": 10})
    rows = rows.assign(largest_ap2=2 * measures.KL_LIMIT, train_gap=5.0)
    features = pd.DataFrame({"case": ["b", "a", "a, seed 1"], "seed": [np.nan, 0, 1], "hessian_max": [3.0, 1, 2]})
    found = analysis.with_bounds(rows, features)
    assert found["core"].tolist() == [2, 4, 6, 6] and found["core fails"].tolist() == [True, True, False, False]
    assert found["core over gap"].tolist() == pytest.approx([0.4, 0.8, 1.2, 1.2])
    # Lemma 2: half the eigenvalue times 2 (tr + tr) tau / (1 - tau), tau = sqrt(KL / 2) = 1/2, trace = 10
    assert found["lemma"].tolist() == pytest.approx([20, 40, 60, np.inf])


def controls(gap_of, draws=8):
    """Rows of `trials.projections` of one case; each block of equal AP2 has its own level of measure and loss."""
    random, rows = np.random.default_rng(1), []
    for block, (method, fraction) in enumerate((m, f) for m in METHODS for f in FRACTIONS):
        measure = 100 * block + random.random(draws)
        row = {"case": "c", "method": method, "fraction": fraction, "trial": 0, "ap2": 1.0 + block}
        row |= {"control": ["random signs"] * draws, "control_ap2": [1.0 + block] * draws, "dense_test_loss": 1.0}
        row |= {"control_kfac_ap3": measure, "control_test_loss": 1 + gap_of(block, measure, random)}
        rows.append(row)
    return pd.DataFrame(rows)


def test_order_at_equal_ap2_ignores_what_blocks_have_in_common():
    within = analysis.rho("control_kfac_ap3", "gap", "block")
    unrelated = analysis.control_rows(
        controls(lambda block, measure, random: 100 * block + random.random(len(measure)))
    )
    assert len(unrelated) == 12 * 8 and unrelated["block"].nunique() == 12
    assert analysis.rho("control_kfac_ap3", "gap")(unrelated) > 0.9 and abs(within(unrelated)) < 0.3
    opposed = analysis.control_rows(controls(lambda block, measure, random: 1300 - measure))
    assert within(opposed) == pytest.approx(-1)


def test_a_control_of_another_ap2_is_refused():
    rows = controls(lambda block, measure, random: measure)
    assert analysis.control_rows(rows)["gap"].tolist() == pytest.approx(np.concatenate(rows["control_kfac_ap3"]))
    rows.at[3, "control_ap2"] = [4.0] * 7 + [4.002]
    with pytest.raises(ValueError, match="differs from that of its pruning by a factor of 1 . 0.0005"):
        analysis.control_rows(rows)
