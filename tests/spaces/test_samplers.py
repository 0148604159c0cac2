"""Constructed recipes hit their targets and ladders climb evenly, within the feasible range."""

import numpy as np
import pytest
from scipy.optimize import linprog

from lib import channels, models, spaces
from lib.provenance import CompanionError
from lib.spaces import Regime, samplers


@pytest.fixture(scope="module")
def nets():
    return {
        "R20-A": channels.find(models.build("resnet20")).internal(),
        "R56-A": channels.find(models.build("resnet56")).internal(),
        "R20-A at half width": channels.find(models.build("resnet20-x0.5")).internal(),
        "VGG-16": channels.find(models.build("vgg16")),
        "R50-ImageNet": channels.find(models.build("resnet50", form="imagenet", classes=1000, size=224), 224),
        "MobileNetV2": channels.find(models.build("mobilenet_v2", form="imagenet", classes=1000, size=224), 224),
    }


def log_mcb(groups, widths):
    return np.log(spaces.mean_computation_budget(groups, widths))


SPREAD = {  # net, kept: achieved STD and sd of log mCB at sigma .05, .10, .30
    ("R20-A", 0.8): ((0.045, 0.019), (0.090, 0.038), (0.202, 0.090)),
    ("R20-A", 0.3): ((0.046, 0.055), (0.090, 0.105), (0.212, 0.249)),
    ("R56-A", 0.5): ((0.049, 0.019), (0.097, 0.036), (0.264, 0.099)),
}


@pytest.mark.parametrize("case", SPREAD, ids=str)
def test_scattered_patterns_have_the_specified_spread(case, nets):
    groups, regime = nets[case[0]], Regime(case[1])
    noise = np.random.default_rng(0).standard_normal((500, len(groups)))
    for sigma, (std, spread) in zip((0.05, 0.10, 0.30), SPREAD[case], strict=True):
        widths = samplers.patterned(groups, regime, sigma * noise)
        widths = widths[regime.holds(groups, widths)]
        assert len(widths) > 450
        assert spaces.recipe_std(groups, widths).mean() == pytest.approx(std, abs=0.006)
        assert log_mcb(groups, widths).std() == pytest.approx(spread, rel=0.13)


TARGETS = {  # net, kept: mean STD at mCB .75, 1, 1.4, 2
    ("R20-A", 0.5): (0.211, 0.084, 0.180, 0.287),
    ("R56-A", 0.3): (0.142, 0.091, 0.133, 0.192),
    ("VGG-16", 0.7): (0.194, 0.086, 0.153, 0.261),
}


@pytest.mark.parametrize("case", TARGETS, ids=str)
def test_targets_of_mcb_are_hit_in_their_order_and_cost_spread(case, nets):
    groups, regime = nets[case[0]], Regime(case[1])
    for target, std in zip((0.75, 1.0, 1.4, 2.0), TARGETS[case], strict=True):
        widths = samplers.with_targets(groups, regime, [target] * 60, seed=0)
        assert len(np.unique(widths, axis=0)) == 60 and regime.holds(groups, widths).all()
        assert np.allclose(log_mcb(groups, widths), np.log(target), atol=0.05)
        assert spaces.recipe_std(groups, widths).mean() == pytest.approx(std, abs=0.02)
    mixed = np.array([2.0, 0.75, 1.4, 1.0])
    assert np.allclose(log_mcb(groups, samplers.with_targets(groups, regime, mixed, seed=1)), np.log(mixed), atol=0.05)


def test_recipes_of_one_std_differ_in_mcb_alone(nets):
    groups, regime = nets["R20-A"], Regime(0.5)
    widths = samplers.with_targets(groups, regime, np.geomspace(0.75, 1.7, 40), seed=0, std=0.25)
    std, mcb = spaces.recipe_std(groups, widths), spaces.mean_computation_budget(groups, widths)
    assert len(widths) == 40 and std.std() < 0.012 and mcb.min() < 0.78 and mcb.max() > 1.62
    assert abs(np.corrcoef(std, np.abs(np.log(mcb)))[0, 1]) < 0.5


def test_too_few_recipes_and_targets_out_of_reach_are_one_sentence(nets, monkeypatch):
    monkeypatch.setattr(samplers, "TRIES", 3)
    small = channels.find(models.build("resnet8-x0.25")).internal()
    with pytest.raises(
        CompanionError, match=r"^\d+ of 200 different recipes .* of mCB 1.00, 1.00, 1.00: ask for fewer, .*\.$"
    ):
        samplers.with_targets(small, Regime(0.5), [1.0] * 200, seed=0)
    with pytest.raises(CompanionError, match=r"^1 of 2 different .* of mCB 5.00: .* in `tilted_range`\.$"):
        samplers.with_targets(nets["R20-A"], Regime(0.6), [1.0, 5.0], seed=0)


LADDERS = [  # net, kept share of MACs, the most by which recipes are off their step, and ends off the feasible ones
    ("R20-A", 0.6, 0.03, 0.005),
    ("R20-A", 0.4, 0.03, 0.006),
    ("R20-A", 0.2, 0.05, 0.02),
    ("R20-A at half width", 0.6, 0.07, 0.015),
    ("R20-A at half width", 0.4, 0.07, 0.08),
    ("VGG-16", 0.4, 0.01, 0.045),
    ("R50-ImageNet", 0.4, 0.01, 0.025),
    ("MobileNetV2", 0.4, 0.02, 0.015),
]


@pytest.mark.parametrize("case", LADDERS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_ladder_climbs_evenly_from_end_to_end_without_scatter(case, nets):
    (net, kept, off, short), n = case, 16
    groups, regime = nets[net], Regime(kept)
    widths = samplers.ladder(groups, regime, n)
    reached = log_mcb(groups, widths)
    assert len(np.unique(widths, axis=0)) == n and regime.holds(groups, widths).all()
    assert (np.diff(reached) > 0).all()
    assert np.abs(reached - np.linspace(reached[0], reached[-1], n)).max() < off
    assert np.abs(reached[[0, -1]] - np.log(samplers.feasible_range(groups, regime))).max() < short
    shapes = np.stack([groups.area, groups.dense], axis=1)
    for shape in np.unique(shapes, axis=0):
        alike = (shapes == shape).all(axis=1)
        assert np.ptp(widths[:, alike], axis=1).max() <= (2 if "half" in net else 1)


RETRAINED = [  # recipes of ResNet-20 at .6 whose drops show the bottom of the curve
    [2, 1, 1, 24, 24, 24, 64, 64, 64],
    [5, 5, 5, 19, 19, 19, 58, 58, 58],
    [7, 6, 6, 19, 19, 19, 52, 52, 52],
    [8, 8, 8, 19, 19, 19, 46, 46, 46],
    [9, 10, 10, 19, 19, 19, 38, 38, 38],
    [11, 11, 11, 19, 19, 19, 31, 31, 31],
]


def test_the_recipes_around_the_lowest_drop_lie_on_the_ladder(nets):
    widths = samplers.ladder(nets["R20-A"], Regime(0.6), 40)
    assert (np.diff(log_mcb(nets["R20-A"], widths)) > 0).all()
    for recipe in RETRAINED:
        assert np.abs(widths - recipe).max(axis=1).min() <= 2, recipe


def test_a_ladder_has_options_of_reach_floor_and_std(nets):
    groups, regime = nets["R20-A"], Regime(0.4)
    plain = log_mcb(groups, samplers.ladder(groups, regime, 6))
    short = log_mcb(groups, samplers.ladder(groups, regime, 6, reach=0.6))
    assert short[[0, -1]] == pytest.approx(0.6 * plain[[0, -1]], abs=0.05)
    kept = samplers.ladder(groups, regime, 6, floor=0.25)
    assert (kept >= groups.dense / 4).all() and (kept.min(axis=0) == groups.dense / 4).any()
    scattered = samplers.ladder(groups, regime, 6, std=0.25, reach=0.6)
    std = spaces.recipe_std(groups, scattered)
    assert std == pytest.approx(np.full(6, 0.25), abs=0.02) and regime.holds(groups, scattered).all()
    assert np.allclose(log_mcb(groups, scattered), np.linspace(short[0], short[-1], 6), atol=0.1)


def test_a_ladder_at_fixed_parameters_spans_its_range(nets):
    groups, regime = nets["R20-A"], Regime(0.4, "parameters")
    widths = samplers.ladder(groups, regime, 8)
    assert (np.abs(spaces.kept_shares(groups, widths)[1] - 0.4) <= 0.004).all()
    ends = np.log(samplers.feasible_range(groups, regime))
    assert log_mcb(groups, widths)[[0, -1]] == pytest.approx(ends, abs=0.01)


@pytest.mark.parametrize(
    ("net", "kept", "budget", "expected"),
    (
        ("R20-A", 0.8, "macs", (0.824, 1.512)),
        ("R20-A", 0.3, "macs", (0.497, 2.932)),
        ("R56-A", 0.5, "macs", (0.589, 2.789)),
        ("R56-A", 0.15, "macs", (0.577, 1.920)),
        ("R20-A", 0.5, "parameters", (0.512, 1.575)),
        ("R56-A", 0.3, "parameters", (0.558, 2.320)),
    ),
)
def test_the_feasible_range_is_that_of_a_linear_programme(net, kept, budget, expected, nets):
    groups, regime = nets[net], Regime(kept, budget)
    low, high = samplers.feasible_range(groups, regime)
    assert (low, high) == pytest.approx(expected, abs=1e-3)
    constants, linear, _ = groups.polynomials
    dense = channels.count(groups, groups.dense)
    fixed, other = (0, 1) if budget == "macs" else (1, 0)
    bounds = [(n / 16, n) for n in groups.dense]
    target = kept * dense[fixed] - constants[fixed]
    for sign, value in ((1, high if budget == "macs" else low), (-1, low if budget == "macs" else high)):
        found = linprog(sign * linear[:, other], A_eq=linear[None, :, fixed], b_eq=[target], bounds=bounds)
        share = (sign * found.fun + constants[other]) / dense[other]
        assert (kept / share if budget == "macs" else share / kept) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("budget", ("macs", "parameters"))
@pytest.mark.parametrize("kept", (0.8, 0.6, 0.4, 0.2))
def test_programming_finds_the_ends_of_the_knapsack_where_both_can(kept, budget, nets):
    for net in ("R20-A", "R56-A", "R20-A at half width"):
        exact = samplers.feasible_range(nets[net], Regime(kept, budget))
        assert samplers._range_by_programming(nets[net], Regime(kept, budget)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("net", "kept"), (("R20-A", 0.3), ("VGG-16", 0.5), ("VGG-16", 0.2), ("R50-ImageNet", 0.5)))
def test_no_sampled_recipe_leaves_the_feasible_range_and_tilted_ones_reach_it(net, kept, nets):
    groups, regime = nets[net], Regime(kept)
    around = [
        samplers.feasible_range(groups, Regime(kept * (1 + off))) for off in (-regime.tolerance, regime.tolerance)
    ]
    low, high = min(one for one, _ in around), max(one for _, one in around)
    drawn = spaces.sample_recipes(groups, regime, 1000, seed=0).widths
    scattered = samplers.with_targets(groups, regime, np.geomspace(0.8, 1.4, 40), seed=0, sigma=0.02)
    widths = np.concatenate([drawn, scattered, samplers.ladder(groups, regime, 12)])
    mcb = spaces.mean_computation_budget(groups, widths)
    assert low * 0.999 < mcb.min() < 1.1 * low and high / 1.1 < mcb.max() < 1.001 * high


def test_tilting_reaches_nearly_the_exact_range(nets):
    for kept in (0.8, 0.5, 0.3):
        exact = samplers.feasible_range(nets["R56-A"], Regime(kept))
        reached = samplers.tilted_range(nets["R56-A"], Regime(kept))
        assert np.allclose(np.log(reached), np.log(exact), rtol=0.05)


def test_regimes_that_are_empty_are_refused_with_the_share_that_stays(nets):
    groups = nets["R20-A"]
    calls = [
        lambda regime: samplers.with_targets(groups, regime, [1.0], seed=0),
        lambda regime: samplers.ladder(groups, regime, 3),
        lambda regime: samplers.feasible_range(groups, regime),
        lambda regime: samplers.tilted(groups, regime, 0, 0, seed=0),
    ]
    for call in calls:
        with pytest.raises(CompanionError, match="5.0% of the macs is empty: with 6% of each .* still keeps 7.3%"):
            call(Regime(0.05))
    with pytest.raises(CompanionError, match="with 25% of each prunable group this network still keeps 25.8%"):
        samplers.ladder(groups, Regime(0.2), 3, floor=0.25)


def test_tilt_lowers_mcb_and_spread_raises_std(nets):
    groups, regime = nets["R20-A"], Regime(0.5)
    asked = ((0, 0), (0.2, 0), (0, 0.25))
    widths = np.stack([samplers.tilted(groups, regime, *one, seed=0) for one in asked])
    mcb, std = spaces.mean_computation_budget(groups, widths), spaces.recipe_std(groups, widths)
    assert mcb[0] == pytest.approx(1, abs=0.02) and mcb[1] < 0.9
    assert std[0] < 0.02 < 0.1 < std[2] and regime.holds(groups, widths).all()
