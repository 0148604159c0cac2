"""Figures are drawn from small tables without a warning, with what their titles and legends promise."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.spaces import analysis as spaces_optimum
from lib.spaces import analysis as spaces_published
from lib.spaces import figures as pictures

SHARES = (0.6, 0.4)


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
    return spaces_optimum.regimes(rows[rows["space"] == space])


def test_populations_and_optima_have_a_panel_a_regime(rows):
    figure = pictures.populations(rows, dict.fromkeys(SHARES, (0.5, 2.5)))
    assert [axis.get_title() for axis in figure.axes] == ["60% of MACs kept", "40% of MACs kept"]
    even = part(rows, "designed")
    best = {one["kept"].iloc[0]: spaces_optimum.optimum_interval(one) for one in even}
    figure = pictures.optima(rows, even, best)
    assert "designed, n = 20" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(pictures.edfs(even).axes[0].lines) == 4
    figure, numbers = pictures.winners(rows[rows["space"] != "refined"], best)
    assert numbers.groupby(["kept", "space"])["won"].sum().tolist() == [3] * 4
    plt.close("all")


def test_buckets_and_refined_return_their_numbers(rows):
    _, numbers = pictures.buckets(part(rows, "designed"))
    assert numbers["count"].sum() == 40 and numbers["count"].min() >= 8
    pairs = dict(zip(SHARES, zip(part(rows, "initial"), part(rows, "refined"), strict=True), strict=True))
    _, numbers = pictures.refined(pairs, np.arange(1, 6))
    assert len(numbers) == 20 and (numbers.groupby(["kept", "space"])["best"].diff().dropna() <= 1e-12).all()
    plt.close("all")


def test_the_other_pictures_are_drawn(rows):
    random = np.random.default_rng(1)
    by_seed = pd.DataFrame(random.normal(size=(6, 3)))
    by_mode = pd.DataFrame(random.normal(size=(6, 3)), columns=["finetune", "rewind", "scratch"])
    assert "ICC 0.50" in pictures.noise(by_seed, by_mode, part(rows, "initial"), 0.5).axes[0].get_title()
    figure = pictures.at_fixed_parameters(part(rows, "designed")[0].assign(kept_macs=0.5), 0.6)
    assert figure.axes[0].get_title() == "60% of parameters kept"
    spread = {share: [one] * 2 for share, one in zip(SHARES, part(rows, "designed"), strict=True)}
    assert len(pictures.std_spaces(spread, [0.1, 0.2]).axes) == 2
    places = [{"value": 1.1, "low": 0.9, "high": 1.3}] * 2
    assert "2 regimes" in pictures.limits(np.array(SHARES), np.array([3.0, 8.0]), places).axes[1].get_title()
    scores = pd.DataFrame(random.normal(90, 1, (4, 2)), columns=["a", "uniform"])
    assert pictures.contest(scores, ["a", "uniform"], "title").axes[0].get_title() == "title"
    timed = pd.DataFrame({"space": ["a", "dense"], "macs": [1, 2], "made_latency_128_ms": [3.0, 4.0]})
    assert len(pictures.latency(timed).axes[0].patches) == 2
    plt.close("all")


def test_published_networks_are_told_apart():
    figure = pictures.published(spaces_published.results())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 5 and "uniform: resnet50, imagenet, n = 2" in labels
    assert "93.2 %" in [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)
