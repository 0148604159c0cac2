"""Figures are drawn from small tables without a warning, a panel for each regime, and return their numbers."""

import numpy as np
import pandas as pd
import pytest

from lib import channels, models, spaces
from lib.spaces import analysis, figures, samplers

SHARES = (0.6, 0.4)


pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def rows():
    """Two regimes of three spaces, each recipe under two seeds of retraining."""
    random, tables = np.random.default_rng(0), []
    for share in SHARES:
        for space in ("ladder", "random", "refined"):
            x = np.linspace(-0.4, 0.6, 12) if space == "ladder" else random.uniform(-0.4, 0.4, 12)
            for seed in (0, 1):
                drop = 5 + 20 * x**2 + random.normal(size=12)
                one = {"kept": share, "space": space, "mcb": np.exp(x), "log_mcb": x, "drop": drop, "test_drop": drop}
                one |= {"proxy_drop": 2 * drop, "retraining": seed, "std": 0.2, "kept_parameters": share / np.exp(x)}
                one |= {"recipe": [f"[{k}]" for k in range(12)], "name": "n/d", "kept_macs": share, "status": "done"}
                tables.append(pd.DataFrame(one).assign(widths=[[k] for k in range(12)]))
    return pd.concat(tables, ignore_index=True)


def means(rows, space):
    return analysis.ladders(analysis.part(rows, space=space))


def titles(figure):
    return [axis.get_title("left") for axis in figure.axes]  # where the style puts it


def test_populations_and_optima_have_a_panel_for_each_regime(rows):
    even, each = means(rows, "ladder"), analysis.part(rows, space="ladder")
    best = {one["kept"].iloc[0]: analysis.optimum_interval(one) for one in even}
    for figure in (figures.populations(rows, dict.fromkeys(SHARES, (0.5, 2.5))), figures.optima(each, even, best)):
        assert titles(figure) == ["60% of MACs kept", "40% of MACs kept"]
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert stars[0].get_xdata()[0] == pytest.approx(best[0.6]["value"])


def test_three_samplings_share_axes_and_say_their_slopes(rows):
    tables = [means(rows, "ladder")[0], means(rows, "random")[0].assign(space="first design"), means(rows, "random")[0]]
    slopes = [analysis.two_lines([one]) for one in tables]
    figure = figures.samplings(tables, slopes, "title")
    assert [title.split(",")[0] for title in titles(figure)] == ["ladder", "first design", "random"]
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == [f"two lines: p = {slope['p']:.3f}" for slope in slopes]


def test_refined_returns_its_numbers(rows):
    pair = means(rows, "random")[0], means(rows, "refined")[0]
    _, numbers = figures.refined(pair, np.arange(1, 6), "title")
    assert len(numbers) == 10 and (numbers.groupby("space")["best"].diff().dropna() <= 1e-12).all()


def test_lengths_return_the_place_of_the_optimum(rows):
    one = means(rows, "ladder")[0]
    figure, numbers = figures.lengths({512: one, 1024: one.assign(drop=one["log_mcb"])}, "title")
    assert numbers["images"].tolist() == [512, 1024] and len(figure.axes) == 2
    assert numbers["optimum"].tolist() == pytest.approx([np.exp(analysis.optimum(one)), one["mcb"].min()])
    assert (numbers["low"] <= numbers["high"]).all() and numbers["n"].tolist() == [12, 12]


def test_ladders_of_one_network_share_a_panel(rows):
    one = means(rows, "ladder")[0]
    drawn = [
        figures.factors({name: one for name in ("plain", "scatter", "floor")}),
        figures.kinds({name: one for name in ("filters", "streams", "weights")}, "title"),
    ]
    for figure in drawn:
        assert len(figure.axes[0].get_legend().get_texts()) == 3
        assert sum(line.get_marker() == "*" for line in figure.axes[0].lines) == 3
    axis = figures.transfer([one.assign(name=f"n{k}") for k in range(12)], 0.8).axes[0]  # more than ten colours
    assert len(axis.get_legend().get_texts()) == 13
    assert {line.get_ydata().min() for line in axis.lines[:12]} == {0}


def test_places_and_the_law_show_every_ladder(rows):
    tables = [*means(rows, "ladder"), *(one.assign(name="other/d") for one in means(rows, "ladder"))]
    found = analysis.optima(tables)
    found.loc[0, "inside"] = False
    axis = figures.places(found, analysis.pooled_optimum(found)).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()][0::4] == ["n/d, 60%, n = 12", "random-effects mean"]
    hollow = [line.get_markerfacecolor() == "w" for line in axis.lines if line.get_marker() == "o"]
    assert hollow == [True, False, False, False]
    left, right = figures.law(found, "n/d").axes
    assert left.lines[0].get_xdata().tolist() == [60, 40]
    assert right.lines[0].get_xdata().tolist() == found["optimum"][:2].tolist()


def test_the_other_figures_are_drawn(rows):
    random = np.random.default_rng(1)
    by_mode = pd.DataFrame(random.normal(size=(6, 3)), columns=["finetune", "rewind", "scratch"])
    ladder = means(rows, "ladder")
    assert len(figures.noise(analysis.part(rows, space="ladder"), by_mode, ladder).axes) == 3
    assert figures.at_fixed_parameters(ladder[0], 0.6).axes
    spread = {share: [one] * 2 for share, one in zip(SHARES, ladder, strict=True)}
    assert titles(figures.std_spaces(spread, [0.1, 0.2]))[1] == "40% of MACs kept, mCB 1"
    scores = pd.DataFrame({"space": ["refined winner", "uniform"] * 3, "test_accuracy": random.normal(90, 1, 6)})
    assert len(figures.contest(scores, ["refined winner", "uniform"], "title").axes[0].collections) == 2
    timed = pd.DataFrame({"space": ["a", "dense"], "macs": [1, 2], "made_latency_128_ms": [3.0, 4.0]})
    assert len(figures.latency(timed).axes[0].patches) == 2


def test_a_rule_is_drawn_against_uniform_pruning():
    scores = pd.DataFrame(
        {"the rule": [91.0, 80], "uniform": [90.0, 82], "global L1": [89.0, 80]}, index=["a/d", "b/d"]
    )
    axis = figures.ruled(scores).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["the rule", "global L1"]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "o"] == [1, -2, -1, -2]


def test_a_ladder_is_a_map_with_the_width_in_every_field():
    groups = channels.find(models.build("resnet8", channels=1, size=8), 8).internal()
    widths = samplers.ladder(groups, spaces.Regime(0.5), 4)
    axis = figures.rungs(groups, widths).axes[0]
    assert [int(text.get_text()) for text in axis.texts] == widths.ravel().tolist()
    assert np.allclose(axis.images[0].get_array(), (widths / groups.dense).T)


def test_the_shapes_of_architectures_are_bars():
    shapes = [analysis.shape_of(f"net {k}", "resnet8", 32, {}, kept) for k, kept in enumerate((0.5, 0.3))]
    axis = figures.shapes(pd.DataFrame(shapes)).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["net 0", "net 1"]
    assert list(axis.lines[0].get_xdata()) == [shapes[0]["lowest"], shapes[0]["highest"]]


def test_published_networks_of_different_authors_have_different_markers():
    axis = figures.published(analysis.published_results()).axes[0]
    drawn = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert len(drawn) == len({line.get_marker() for line in drawn}) == 5


def test_a_recipe_is_drawn_among_its_population():
    groups = channels.find(models.build("resnet20")).internal()
    population = spaces.coordinates(groups, spaces.sample_recipes(groups, spaces.Regime(0.5), 50, seed=0).widths)
    nearest = pd.DataFrame(
        {"space": ["ladder", "random"], "mcb": [1.1, 0.9], "distance": [0.1, 0.2], "drop": [3.0, 4.0]}
    )
    left, right, drops = figures.recipe(groups, groups.dense // 2, population, nearest).axes
    assert [patch.get_width() for patch in drops.patches] == [3, 4]
    assert [patch.get_height() for patch in left.patches[len(groups) :]] == (groups.dense // 2).tolist()
    assert len(right.collections[0].get_offsets()) == 50
