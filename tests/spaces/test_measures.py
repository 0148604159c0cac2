"""Coordinates and random populations against tables computed elsewhere; curves against counting and simulation."""

import numpy as np
import pytest

from lib import channels, models, spaces
from lib.provenance import CompanionError
from lib.spaces import Regime


@pytest.fixture(scope="module")
def nets():
    return {
        "R20-A": channels.find(models.build("resnet20")).internal(),
        "R56-A": channels.find(models.build("resnet56")).internal(),
        "R56-B": channels.find(models.build("resnet56", shortcut="B")),
        "VGG-16": channels.find(models.build("vgg16")),
        "R50-CIFAR": channels.find(models.build("resnet50")).internal(),
        "R50-ImageNet": channels.find(
            models.build("resnet50", form="imagenet", classes=1000, size=224), 224
        ).internal(),
    }


UNIFORM = {  # ratio and mCB at kept .8, .5, .3
    "R20-A": ((0.202, 1.0011), (0.506, 1.0044), (0.708, 1.0103)),
    "R56-A": ((0.201, 1.0000), (0.502, 0.9999), (0.702, 0.9997)),
    "R56-B": ((0.106, 0.9997), (0.293, 0.9989), (0.453, 0.9977)),
    "VGG-16": ((0.106, 1.0005), (0.294, 1.0019), (0.454, 1.0038)),
    "R50-CIFAR": ((0.154, 0.9971), (0.425, 0.9838), (0.655, 0.9522)),
    "R50-ImageNet": ((0.158, 0.9842), (0.440, 0.9355), (0.682, 0.8526)),
}


@pytest.mark.parametrize("net", UNIFORM)
def test_uniform_ratios_and_their_mcb(net, nets):
    groups = nets[net]
    for kept, (ratio, mcb) in zip((0.8, 0.5, 0.3), UNIFORM[net], strict=True):
        found = spaces.uniform_ratio(groups, Regime(kept))
        assert found == pytest.approx(ratio, abs=6e-4)
        widths = np.maximum(groups.dense * (1 - found), 1)
        assert spaces.mean_computation_budget(groups, widths) == pytest.approx(mcb, abs=6e-5)


def test_raw_mcb_of_the_dense_network_and_the_identity_of_shares(nets):
    groups = nets["R56-A"]
    assert spaces.mean_computation_budget(groups, groups.dense, normalised=False) == pytest.approx(147.108, abs=1e-3)
    widths = spaces.sample_recipes(groups, Regime(0.5), 50, seed=0).widths
    table = spaces.coordinates(groups, widths)
    assert np.allclose(table["mcb"] * table["kept_parameters"], table["kept_macs"], rtol=1e-15)
    raw = spaces.mean_computation_budget(groups, widths, normalised=False)
    assert (raw > 64).all() and (raw < 1024).all()
    assert spaces.coordinates(groups, groups.dense)["mcb"].tolist() == [1]  # one recipe may be a vector


def test_exchanging_identical_blocks_moves_no_coordinate(nets):
    groups = nets["R56-A"]
    widths = spaces.sample_recipes(groups, Regime(0.5), 20, seed=0).widths
    identical = np.array([name.startswith("layer3.") and "layer3.0" not in name for name in groups.names])
    exchanged = widths.copy()
    exchanged[:, identical] = widths[:, identical][:, ::-1]
    one, two = spaces.coordinates(groups, widths), spaces.coordinates(groups, exchanged)
    assert not np.array_equal(widths, exchanged) and np.allclose(one, two, rtol=1e-12)


def test_tilt_tells_early_from_late_pruning_where_std_cannot(nets):
    groups = nets["R20-A"]
    early = np.where(groups.area == 1024, groups.dense // 4, groups.dense)
    late = np.where(groups.area == 64, groups.dense // 4, groups.dense)
    tilt = spaces.coordinates(groups, np.stack([early, late]))["tilt"]
    assert tilt[0] > 0 > tilt[1]
    assert spaces.recipe_std(groups, early) == pytest.approx(spaces.recipe_std(groups, late))


POPULATIONS = [  # kept, acceptance (%) at 0.005 absolute, quantiles of mCB, mean STD
    ("R20-A", 0.8, 10.0, (0.916, 1.001, 1.103), 0.112),
    ("R20-A", 0.3, 8.4, (0.775, 1.007, 1.438), 0.135),
    ("R20-A", 0.15, 21.6, (0.830, 1.024, 1.335), 0.050),
    ("R56-A", 0.8, 17.5, (0.952, 1.000, 1.055), 0.115),
    ("R56-A", 0.3, 14.3, (0.857, 0.999, 1.203), 0.141),
    ("R56-B", 0.5, 5.2, (0.785, 0.998, 1.341), 0.166),
    ("VGG-16", 0.5, 5.4, (0.785, 1.007, 1.340), 0.164),
    ("R50-CIFAR", 0.8, 20.1, (0.946, 0.998, 1.053), 0.088),
]


@pytest.mark.parametrize("case", POPULATIONS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_random_populations_have_the_specified_acceptance_and_coordinates(case, nets):
    net, kept, acceptance, quantiles, std = case
    groups, regime = nets[net], Regime(kept, tolerance=0.005 / kept)
    sample = spaces.sample_recipes(groups, regime, 4000, seed=0)
    assert 100 * sample.acceptance == pytest.approx(acceptance, rel=0.06)
    mcb = spaces.mean_computation_budget(groups, sample.widths)
    assert np.quantile(mcb, [0.025, 0.5, 0.975]) == pytest.approx(quantiles, abs=0.05)
    assert spaces.recipe_std(groups, sample.widths).mean() == pytest.approx(std, abs=0.006)


def test_recipes_are_different_in_the_regime_and_follow_from_the_seed(nets):
    groups, regime = nets["R20-A"], Regime(0.5)
    one, two, three = (spaces.sample_recipes(groups, regime, 300, seed=seed).widths for seed in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, three)
    assert len(np.unique(one, axis=0)) == 300 and regime.holds(groups, one).all()
    assert (np.abs(spaces.kept_shares(groups, one)[0] - 0.5) <= 0.005).all()
    by_parameters = spaces.sample_recipes(groups, Regime(0.3, "parameters"), 100, seed=0).widths
    assert (np.abs(spaces.kept_shares(groups, by_parameters)[1] - 0.3) <= 0.003).all()


def test_the_refined_space_holds_the_specified_mass(nets):
    for net, kept, mass in (("R56-A", 0.8, 0.94), ("R20-A", 0.8, 0.69), ("R20-A", 0.5, 0.22), ("VGG-16", 0.3, 0.14)):
        widths = spaces.sample_recipes(nets[net], Regime(kept), 1500, seed=1).widths
        assert spaces.refined(nets[net], widths, 1.0).mean() == pytest.approx(mass, abs=0.035)


def test_an_empty_regime_names_the_floor(nets):
    with pytest.raises(CompanionError, match="still keeps 12.0%"):
        spaces.sample_recipes(nets["R50-ImageNet"], Regime(0.1), 10, seed=0)
    with pytest.raises(CompanionError, match="still keeps 4.8%"):
        spaces.uniform_ratio(nets["R20-A"], Regime(0.04))
    with pytest.raises(ValueError, match="share in"):
        Regime(1.5)


@pytest.mark.parametrize("above", (1.0, 1.001, 1.02))
def test_a_regime_just_above_the_floor_has_a_range_of_ratios(above, nets):
    for net in ("R20-A", "VGG-16", "R50-ImageNet"):
        groups = nets[net]
        regime = Regime(above * float(Regime(0.5).share(groups, np.ones(len(groups), dtype=int))))
        low, high = spaces.ratio_range(groups, regime)
        assert 0.7 < low <= high < 1
        middle = np.maximum(groups.dense * (1 - (low + high) / 2), 1)
        assert regime.share(groups, middle) == pytest.approx(regime.kept, rel=1e-3)
    assert spaces.sample_recipes(nets["VGG-16"], Regime(0.0005), 20, seed=0).widths.max() > 1


def test_a_regime_is_checked_against_the_smallest_share_that_is_kept(nets):
    groups = nets["R20-A"]
    Regime(0.05).check(groups)
    Regime(0.26).check(groups, 0.25)
    with pytest.raises(CompanionError, match="5.0% of the macs is empty: with 6% of each .* keeps 7.3%; keep more"):
        Regime(0.05).check(groups, 1 / 16)
    with pytest.raises(CompanionError, match="5.0% of the parameters is empty: with 25% of each"):
        Regime(0.05, "parameters").check(groups, 0.25)
    with pytest.raises(CompanionError, match="with one channel in each prunable group"):
        Regime(0.01).check(groups)


def test_a_range_that_would_take_too_many_draws_is_refused_at_once(nets):
    with pytest.raises(CompanionError, match="too few to find 100 recipes: .*with_targets"):
        spaces.sample_recipes(nets["R56-A"], Regime(0.8), 100, seed=0, ratios=(0, 0.95))


def test_floored_widths_follow_eagleeyes_rule_and_rounded_ones_the_nearest(nets):
    groups = nets["R20-A"]
    ratios = np.full(9, 0.35)
    assert spaces.floored(groups, ratios)[[0, 3, 6]].tolist() == [11, 21, 42]
    assert spaces.rounded(groups, ratios)[[0, 3, 6]].tolist() == [10, 21, 42]
    assert spaces.rounded(groups, np.ones(9)).min() == 1


def test_an_edf_counts_drops_strictly_below():
    random = np.random.default_rng(0)
    drops = random.normal(size=40).round(1)
    curve = spaces.edf(drops)
    at = np.linspace(-4, 4, 81)
    assert np.allclose(curve(at), [(drops < d).mean() for d in at])
    assert curve(drops.min()) == 0 and curve(drops.max() + 1e-9) == pytest.approx(1)
    assert np.allclose(spaces.edf(random.permutation(drops))(at), curve(at))
    between = at + 0.05
    assert np.allclose(spaces.edf(drops + 2)(between + 2), curve(between))


def test_complexity_weights_make_complexity_uniform():
    complexity = np.concatenate([np.linspace(0, 1, 90), np.linspace(9, 10, 10)])
    weights = spaces.complexity_weights(complexity, 5)
    assert weights.sum() == pytest.approx(1) and weights[:90].sum() == pytest.approx(0.5)
    assert np.allclose(spaces.complexity_weights(complexity, 1), 0.01)
    drops = np.arange(100.0)
    assert np.allclose(spaces.edf(drops, np.full(100, 0.01))(drops), spaces.edf(drops)(drops))


def test_best_of_k_is_the_mean_over_all_draws():
    random = np.random.default_rng(3)
    selection, result = random.normal(size=12), random.normal(size=12)
    draws = random.integers(12, size=(200_000, 3))
    simulated = result[draws[np.arange(len(draws)), selection[draws].argmin(axis=1)]].mean()
    found = spaces.best_of_k(selection, result, [1, 3, 100_000])
    assert found[0] == pytest.approx(result.mean()) and found[1] == pytest.approx(simulated, abs=0.01)
    assert found[2] == pytest.approx(result[selection.argmin()])


def test_ties_in_selection_share_their_results():
    assert spaces.best_of_k([1, 1, 1], [0, 3, 6], [1, 5]) == pytest.approx([3, 3])


def test_regnets_bootstrap_draws_the_best_few_networks():
    """It redraws a quarter of the networks and takes the best: rank k has probability (1-k/n)^s - (1-(k+1)/n)^s."""
    n, s = 200, 50
    law = -np.diff((1 - np.arange(n + 1) / n) ** s)
    assert law[:15].sum() == pytest.approx(0.98, abs=1e-3)
    ranks = np.random.default_rng(4).integers(n, size=(50_000, s)).min(axis=1)
    assert np.bincount(ranks, minlength=n) / len(ranks) == pytest.approx(law, abs=0.006)
