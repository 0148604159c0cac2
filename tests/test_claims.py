"""Verdicts follow from rules and intervals; intervals and corrections agree with independent computations."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lib import claims, stats
from lib.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, UNTESTABLE, Ledger, Rule


def rule(relation=">", threshold=0.0, tolerance=0.0, id="P0.1"):
    return Rule(id, "A section", "Something holds.", "a statistic (points)", relation, threshold, "0", tolerance)


@pytest.mark.parametrize(
    ("relation", "tolerance", "low", "high", "verdict"),
    [
        (">", 0, 0.1, 2, SUPPORTED),
        (">", 0, -1, 2, INCONCLUSIVE),
        (">", 0, -2, 0, NOT_SUPPORTED),
        ("<", 0, -2, -1, SUPPORTED),
        ("<", 0, 0, 1, NOT_SUPPORTED),
        ("=", 1, -0.5, 0.9, SUPPORTED),
        ("=", 1, -0.5, 1.1, INCONCLUSIVE),
        ("=", 1, 1.1, 3, NOT_SUPPORTED),
        ("=", 0, 0, 0, SUPPORTED),
        ("=", 0, 1, 1, NOT_SUPPORTED),
        (">", 0, float("nan"), float("nan"), INCONCLUSIVE),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(relation, tolerance, low, high, verdict):
    assert rule(relation, tolerance=tolerance).verdict(low, high) == verdict


def test_a_corrected_p_above_five_per_cent_takes_a_support_back_but_makes_none():
    assert rule().verdict(0.1, 1, p_holm=0.04) == SUPPORTED
    assert rule().verdict(0.1, 1, p_holm=0.06) == INCONCLUSIVE
    assert rule().verdict(-1, -0.1, p_holm=0.001) == NOT_SUPPORTED


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="must be"):
        rule("!=")


def test_holm_corrects_primary_ps_together_and_leaves_the_others_out():
    ledger = Ledger([rule(id="a"), rule(id="b"), rule(id="c")])
    ledger.enter("a", 1, (0.5, 2), n=10, p=0.03)
    ledger.enter("b", 1, (0.5, 2), n=10, p=0.01)
    ledger.enter("c", 1, n=10)
    ledger.enter("a", 1, (0.5, 2), n=10, p=0.0001, primary=False)
    entries = {(e["id"], e["primary"]): e for e in ledger.entries()}
    assert entries["a", True]["p_holm"] == pytest.approx(0.03)
    assert entries["b", True]["p_holm"] == pytest.approx(0.02)
    assert entries["c", True]["p_holm"] is None and entries["a", False]["p_holm"] is None


def test_evidence_without_room_to_decide_stays_open_only_where_the_rule_says_so():
    roomless = Rule(
        "a", "A section", "Something holds.", "a statistic", ">", 0, "0", open_if="both are at their ceiling"
    )
    assert str(roomless).endswith("Open if both are at their ceiling.")
    ledger = Ledger([roomless, rule(id="b")])
    ledger.enter("a", 0, (0, 0), n=9, open=True)
    ledger.enter("b", 1, (0.5, 2), n=9)
    assert [entry["verdict"] for entry in ledger.entries()] == [INCONCLUSIVE, SUPPORTED]
    with pytest.raises(ValueError, match="open_if"):
        ledger.enter("b", 0, (0, 0), n=9, open=True, primary=False)


@pytest.mark.parametrize("entries", [0, 2])
def test_every_claim_has_exactly_one_primary_entry(entries):
    ledger = Ledger([rule()])
    for _ in range(entries):
        ledger.enter("P0.1", 1, n=1)
    with pytest.raises(ValueError, match="exactly one"):
        ledger.entries()


def test_the_file_has_every_field_no_times_and_is_the_same_twice(tmp_path):
    ledger = Ledger([rule(id="a"), rule(id="b")])
    ledger.enter("b", 1.5, (1, 2), n=3, network="mlp", why="because")
    ledger.untestable("a", "needs ImageNet")
    for folder in ("x", "y"):
        ledger.save(tmp_path / folder, "00_t")
    texts = [(tmp_path / folder / "00_t.claims.json").read_text() for folder in ("x", "y")]
    assert texts[0] == texts[1]
    entries = json.loads(texts[0])
    assert [e["id"] for e in entries] == ["a", "b"] and all(set(e) == set(claims.FIELDS) for e in entries)
    assert entries[0]["verdict"] == UNTESTABLE and entries[1]["verdict"] == SUPPORTED


def test_the_sentence_counts_decided_claims_and_refuses_unknown_ones():
    ledger = Ledger([rule(id="a"), rule(id="b")])
    ledger.enter("a", 1, (0.5, 2), n=9)
    ledger.enter("b", 1, (-1, 2), n=9)
    assert ledger.decided(["a", "b"]) == "1 of the 2 claims this profile is sized for are decided; open: b."
    with pytest.raises(ValueError, match="no rule has"):
        ledger.decided(["c"])


def test_holm_agrees_with_its_definition_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_wilson_agrees_with_its_closed_form():
    z, n, p = scipy_stats.norm.ppf(0.975), 300, 291 / 300
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert stats.wilson(291, 300) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))


@pytest.mark.parametrize("interval", ["t", "bootstrap"])
def test_intervals_of_a_mean_cover_at_their_level(interval):
    random, hits, n = np.random.default_rng(0), 0, 300
    for repeat in range(n):
        values = random.normal(1, 2, size=100)
        if interval == "t":
            low, high = stats.mean_interval(values)
        else:
            low, high = stats.bootstrap_interval(np.mean, values, seed=repeat, resamples=300)
        hits += low <= 1 <= high
    assert hits / n > 0.90 and hits < n, f"{hits} of {n}"


def test_an_interval_of_one_value_is_refused():
    with pytest.raises(ValueError, match="more seeds"):
        stats.mean_interval([1.0])


def test_the_bootstrap_repeats_by_seed_and_keeps_pairs_together():
    x = np.random.default_rng(0).normal(size=50)
    correlation = lambda a, b: np.corrcoef(a, b)[0, 1]  # noqa: E731
    one, two, other = (stats.bootstrap_interval(correlation, x, 2 * x, seed=s) for s in (0, 0, 1))
    assert one == two and one == pytest.approx((1, 1))
    assert stats.bootstrap_interval(np.mean, x, seed=0) != stats.bootstrap_interval(np.mean, x, seed=1)
    assert other == pytest.approx((1, 1))


def test_the_band_holds_whole_distribution_functions_at_its_level():
    random, n, hits = np.random.default_rng(0), 40, 0
    for _ in range(400):
        values = np.sort(random.uniform(size=n))
        steps = np.arange(n + 1) / n
        hits += max((steps[1:] - values).max(), (values - steps[:-1]).max()) <= stats.dkw_half_width(n)
    assert hits / 400 > 0.93


def test_a_paired_gain_counts_seeds_and_images():
    random = np.random.default_rng(0)
    images = random.random(400) < 0.7
    a, b = (np.tile(images, (3, 1)).astype(float) for _ in range(2))
    same = stats.paired_gain(a, b, seed=0, resamples=200)
    assert same == {"gain": 0, "low": 0, "high": 0, "p": 1}  # the same images right: pairing takes their luck out
    b[:, :40] = 0
    found = stats.paired_gain(a, b, seed=0, resamples=500)
    assert found["gain"] == pytest.approx(a[0, :40].sum() / 400) and 0 < found["low"] < found["gain"] < found["high"]
    error = np.sqrt(found["gain"] * (1 - found["gain"]) / 400)  # only images vary: a binomial standard error
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.2) and found["p"] == 1 / 501


@pytest.mark.parametrize(("relation", "tolerance"), [(">", 0.0), ("<", 0.0), ("=", 0.5)])
def test_a_rules_words_give_back_its_bounds_and_other_words_are_refused(relation, tolerance):
    rule = claims.Rule("P", "S", "A > 3 (within 2).", "gain, = 0 or more", relation, -0.25, "0", tolerance)
    assert claims.bounds(str(rule)) == (relation, -0.25, tolerance)
    assert claims.bounds(str(replace(rule, open_if="it is > 9."))) == (relation, -0.25, tolerance)
    with pytest.raises(ValueError, match="is no rule"):
        claims.bounds("It holds.")
