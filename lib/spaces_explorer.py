"""A recipe to play with: tilt and spread of the pruned shares, and where the recipe lies in its population."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lib import figures, spaces, spaces_samplers
from lib.channels import Groups
from lib.seeds import seed_from
from lib.spaces import Regime


def recipe(groups: Groups, kept: float, tilt: float, spread: float, seed: int = 0) -> np.ndarray:
    """Widths (G,) that keep a share of the MACs; tilt > 0 prunes layers with many pixels more, spread scatters them."""
    noise = np.random.default_rng(seed_from(seed, "explorer")).standard_normal(len(groups))
    pattern = tilt * spaces.resolution(groups) + spread * noise
    return spaces_samplers.patterned(groups, Regime(kept), pattern[None])[0]


def place(groups: Groups, widths: np.ndarray, population: pd.DataFrame) -> pd.Series:
    """Coordinates of one recipe, with the percentiles of its mCB and STD in a population (`spaces.coordinates`)."""
    own = spaces.coordinates(groups, widths[None]).iloc[0]
    for name in ("mcb", "std"):
        own[f"{name}_percentile"] = 100 * (population[name] < own[name]).mean()
    return own


def draw(groups: Groups, widths: np.ndarray, population: pd.DataFrame) -> Figure:
    """The widths beside the dense ones, and the recipe among its population."""
    own = place(groups, widths, population)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    x = np.arange(len(groups))
    left.bar(x, groups.dense, color="#e3e3e3", label="dense")
    left.bar(x, widths, color=figures.PALETTE[0], label="kept")
    left.set_xticks(x, groups.names, rotation=60, ha="right", fontsize=7)
    left.set(ylabel="channels", title=f"{own['macs'] / 1e6:.2f} MMACs, {own['parameters'] / 1e3:.0f} k parameters")
    left.legend(loc="upper left")
    right.scatter(population["mcb"], population["std"], s=10, color="#94a4a2", label=f"random, n = {len(population)}")
    right.scatter(own["mcb"], own["std"], s=80, marker="*", color=figures.PALETTE[2], label="this recipe", zorder=3)
    right.axvline(1, **figures.NULL)
    right.set(xscale="log", xlabel="mCB (dense = 1)", ylabel="STD of the pruned shares")
    right.set_title(f"mCB {own['mcb']:.2f} (percentile {own['mcb_percentile']:.0f}), STD {own['std']:.2f}")
    right.xaxis.set_minor_formatter(plt.NullFormatter())
    right.set_xticks([0.7, 1, 1.4, 2], ["0.7", "1", "1.4", "2"])
    right.legend()
    return figure


def explore(groups: Groups, populations: dict[float, pd.DataFrame]):
    """Sliders for tilt, spread and kept share over `draw`; needs a live Jupyter.

    populations: by kept share, as `spaces.coordinates` gives them.
    """
    import ipywidgets  # only where somebody can move a slider

    def show(kept: float, tilt: float, spread: float) -> None:
        figure = draw(groups, recipe(groups, kept, tilt, spread), populations[kept])
        plt.show()
        plt.close(figure)

    return ipywidgets.interactive(
        show,
        kept=ipywidgets.SelectionSlider(options=sorted(populations), description="kept"),
        tilt=ipywidgets.FloatSlider(0.0, min=-0.3, max=0.3, step=0.02, description="tilt"),
        spread=ipywidgets.FloatSlider(0.1, min=0.0, max=0.4, step=0.02, description="spread"),
    )
