"""The explorer's recipes, places and picture."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lib import channels, models
from lib.spaces import figures as spaces_explorer
from lib.spaces import measures as spaces
from lib.spaces.measures import Regime


@pytest.fixture(scope="module")
def groups():
    return channels.find(models.build("resnet20")).internal()


def test_tilt_lowers_mcb_and_spread_raises_std(groups):
    flat, tilted, spread = (spaces_explorer.recipe(groups, 0.5, *asked) for asked in ((0, 0), (0.2, 0), (0, 0.25)))
    mcb = spaces.mean_computation_budget(groups, np.stack([flat, tilted]))
    assert mcb[0] == pytest.approx(1, abs=0.02) and mcb[1] < 0.9
    assert spaces.recipe_std(groups, flat) < 0.02 < 0.1 < spaces.recipe_std(groups, spread)
    assert Regime(0.5).holds(groups, np.stack([flat, tilted, spread])).all()


def test_sliders_redraw(groups):
    populations = {0.5: spaces.coordinates(groups, spaces.sample_recipes(groups, Regime(0.5), 50, seed=0).widths)}
    own = spaces_explorer.place(groups, groups.dense, populations[0.5])
    assert own["mcb"] == 1 and 20 < own["mcb_percentile"] < 80 and own["std_percentile"] == 0
    widget = spaces_explorer.explore(groups, populations)
    assert [child.description for child in widget.children[:3]] == ["kept", "tilt", "spread"]
    figure = spaces_explorer.draw(groups, spaces_explorer.recipe(groups, 0.5, 0.1, 0.1), populations[0.5])
    assert "MMACs" in figure.axes[0].get_title()
    plt.close(figure)
