"""Constructed recipes hit their targets, within the exact feasible range."""

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
        "VGG-16": channels.find(models.build("vgg16")),
    }


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
        log_mcb = np.log(spaces.mean_computation_budget(groups, widths))
        assert log_mcb.std() == pytest.approx(spread, rel=0.13)


TARGETS = {  # net, kept: mean STD at mCB .75, 1, 1.4, 2
    ("R20-A", 0.5): (0.211, 0.084, 0.180, 0.287),
    ("R56-A", 0.3): (0.142, 0.091, 0.133, 0.192),
    ("VGG-16", 0.7): (0.194, 0.086, 0.153, 0.261),
}


@pytest.mark.parametrize("case", TARGETS, ids=str)
def test_targets_of_mcb_are_hit_and_cost_spread(case, nets):
    groups, regime = nets[case[0]], Regime(case[1])
    for target, std in zip((0.75, 1.0, 1.4, 2.0), TARGETS[case], strict=True):
        widths = samplers.with_targets(groups, regime, [target] * 60, seed=0)
        assert len(widths) >= 55 and regime.holds(groups, widths).all()
        assert np.allclose(np.log(spaces.mean_computation_budget(groups, widths) / target), 0, atol=0.05)
        assert spaces.recipe_std(groups, widths).mean() == pytest.approx(std, abs=0.02)


def test_recipes_of_one_std_differ_in_mcb_alone(nets):
    groups, regime = nets["R20-A"], Regime(0.5)
    widths = samplers.with_targets(groups, regime, np.geomspace(0.75, 1.7, 40), seed=0, std=0.25)
    std, mcb = spaces.recipe_std(groups, widths), spaces.mean_computation_budget(groups, widths)
    assert len(widths) >= 38 and std.std() < 0.012 and mcb.min() < 0.78 and mcb.max() > 1.62
    assert abs(np.corrcoef(std, np.abs(np.log(mcb)))[0, 1]) < 0.5


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


def test_no_sampled_recipe_leaves_the_feasible_range(nets):
    groups, regime = nets["R20-A"], Regime(0.3)
    low, high = samplers.feasible_range(groups, regime)
    widths = samplers.with_targets(groups, regime, np.geomspace(0.3, 4, 60), seed=0, sigma=0.02)
    mcb = spaces.mean_computation_budget(groups, widths)
    assert low - 0.02 < mcb.min() < 0.6 and 2.4 < mcb.max() < 1.03 * high  # a regime's tolerance is 1 %


@pytest.mark.parametrize("kept", (0.8, 0.5, 0.3))
def test_a_designed_sample_is_even_in_log_mcb_and_of_one_std(kept, nets):
    groups, regime = nets["R20-A"], Regime(kept)
    widths, std = samplers.designed(groups, regime, 30, seed=0)
    log_mcb = np.log(spaces.mean_computation_budget(groups, widths))
    assert len(widths) >= 27 and np.abs(np.diff(np.sort(log_mcb))).max() < 4 * np.ptp(log_mcb) / len(widths)
    achieved = spaces.recipe_std(groups, widths)
    assert achieved.mean() == pytest.approx(std, abs=0.01) and achieved.std() < 0.02
    assert abs(np.corrcoef(achieved, log_mcb)[0, 1]) < 0.6


def test_tilting_reaches_nearly_the_exact_range(nets):
    for kept in (0.8, 0.5, 0.3):
        exact = samplers.feasible_range(nets["R56-A"], Regime(kept))
        reached = samplers.tilted_range(nets["R56-A"], Regime(kept))
        assert np.allclose(np.log(reached), np.log(exact), rtol=0.05)


def test_impossible_regimes_are_refused(nets):
    with pytest.raises(ValueError, match="linear in the widths"):
        samplers.feasible_range(nets["VGG-16"], Regime(0.5))
    with pytest.raises(CompanionError, match="empty"):
        samplers.with_targets(nets["R20-A"], Regime(0.03), [1.0], seed=0)


def test_tilt_lowers_mcb_and_spread_raises_std(nets):
    groups, regime = nets["R20-A"], Regime(0.5)
    asked = ((0, 0), (0.2, 0), (0, 0.25))
    widths = np.stack([samplers.tilted(groups, regime, *one, seed=0) for one in asked])
    mcb, std = spaces.mean_computation_budget(groups, widths), spaces.recipe_std(groups, widths)
    assert mcb[0] == pytest.approx(1, abs=0.02) and mcb[1] < 0.9
    assert std[0] < 0.02 < 0.1 < std[2] and regime.holds(groups, widths).all()
