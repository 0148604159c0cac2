"""Figures are drawn from small tables without a warning, a panel for each regime, and return their numbers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import channels, models, spaces
from lib.spaces import analysis, figures

SHARES = (0.6, 0.4)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    tables = []
    for share in SHARES:
        for space in ("initial", "designed", "refined"):
            mcb = np.exp(random.uniform(-0.4, 0.4, 20))
            drop = 5 + 20 * np.log(mcb) ** 2 + random.normal(size=20)
            one = {"kept": share, "space": space, "mcb": mcb, "drop": drop, "test_drop": drop, "proxy_drop": 2 * drop}
            tables.append(pd.DataFrame(one).assign(std=0.2, kept_parameters=share / mcb, log_mcb=np.log(mcb)))
    return pd.concat(tables, ignore_index=True)


def part(rows, space):
    return analysis.regimes(rows[rows["space"] == space])


def test_populations_and_optima_have_a_panel_for_each_regime(rows):
    even = part(rows, "designed")
    best = {one["kept"].iloc[0]: analysis.optimum_interval(one) for one in even}
    for figure in (figures.populations(rows, dict.fromkeys(SHARES, (0.5, 2.5))), figures.optima(rows, even, best)):
        assert [axis.get_title() for axis in figure.axes] == ["60% of MACs kept", "40% of MACs kept"]
    assert len(figures.edfs(even).axes[0].lines) == 4
    _, numbers = figures.winners(rows[rows["space"] != "refined"], best)
    assert numbers.groupby(["kept", "space"])["won"].sum().tolist() == [3] * 4


def test_buckets_and_refined_return_their_numbers(rows):
    _, numbers = figures.buckets(part(rows, "designed"))
    assert numbers["count"].sum() == 40 and numbers["count"].min() >= 8
    pairs = dict(zip(SHARES, zip(part(rows, "initial"), part(rows, "refined"), strict=True), strict=True))
    _, numbers = figures.refined(pairs, np.arange(1, 6))
    assert len(numbers) == 20 and (numbers.groupby(["kept", "space"])["best"].diff().dropna() <= 1e-12).all()


def test_the_other_figures_are_drawn(rows):
    random = np.random.default_rng(1)
    by_seed = pd.DataFrame(random.normal(size=(6, 3)))
    by_mode = pd.DataFrame(random.normal(size=(6, 3)), columns=["finetune", "rewind", "scratch"])
    assert len(figures.noise(by_seed, by_mode, part(rows, "initial"), 0.5).axes) == 3
    assert figures.at_fixed_parameters(part(rows, "designed")[0].assign(kept_macs=0.5), 0.6).axes
    spread = {share: [one] * 2 for share, one in zip(SHARES, part(rows, "designed"), strict=True)}
    assert len(figures.std_spaces(spread, [0.1, 0.2]).axes) == 2
    places = [{"value": 1.1, "low": 0.9, "high": 1.3}] * 2
    assert len(figures.limits(np.array(SHARES), np.array([3.0, 8.0]), places).axes) == 2
    scores = pd.DataFrame(random.normal(90, 1, (4, 2)), columns=["a", "uniform"])
    assert figures.contest(scores, ["a", "uniform"], "title").axes
    timed = pd.DataFrame({"space": ["a", "dense"], "macs": [1, 2], "made_latency_128_ms": [3.0, 4.0]})
    assert len(figures.latency(timed).axes[0].patches) == 2


def test_published_networks_of_different_authors_have_different_markers():
    axis = figures.published(analysis.published_results()).axes[0]
    drawn = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert len(drawn) == len({line.get_marker() for line in drawn}) == 5


def test_a_recipe_is_drawn_among_its_population():
    groups = channels.find(models.build("resnet20")).internal()
    population = spaces.coordinates(groups, spaces.sample_recipes(groups, spaces.Regime(0.5), 50, seed=0).widths)
    left, right = figures.recipe(groups, groups.dense // 2, population).axes
    assert [patch.get_height() for patch in left.patches[len(groups) :]] == (groups.dense // 2).tolist()
    assert len(right.collections[0].get_offsets()) == 50
