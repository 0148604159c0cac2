"""Figures of paper 1 draw every configuration, the dense control and their legends from small tables."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from lib.latent import figures
from lib.masks import METHODS

FRACTIONS, EPOCHS, TRIALS = (0.1, 0.3, 0.5, 0.8), 3, 2


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def by_epoch(methods, fractions):
    rows = [
        {"case": "net, data", "method": method, "fraction": fraction, "trial": trial, "epoch": epoch}
        | {"ap2": 1 + fraction + trial, "t_ap3": 0.5, "pd": 10 * fraction, "train_gap": 0.1, "weights": 640}
        for method in methods
        for fraction in fractions
        for trial in range(TRIALS)
        for epoch in range(EPOCHS + 1)
    ]
    return pd.DataFrame(rows)


ROWS, CONTROL = by_epoch(METHODS, FRACTIONS), by_epoch(["none"], [0.0])


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("by", "columns"), (("method", 3), ("fraction", 4)))
def test_panels_draw_measure_and_difference_of_every_configuration_and_of_the_control(by, columns):
    figure, numbers = figures.panels(ROWS, CONTROL, "ap2", by, "AP2")
    assert len(figure.axes) == columns and len(numbers) == (12 + 1) * (EPOCHS + 1)
    assert {len(axis.lines) for axis in figure.axes} == {2 * (12 // columns + 1)}
    assert numbers["ap2 max"].tolist() == pytest.approx((numbers["ap2 min"] + 1).tolist())
    assert texts(figure)[-3:] == ["dense control", "AP2", "PD (points)"]


def test_panels_of_the_released_code_share_one_scale_a_measure():
    modes = pd.concat([ROWS.assign(mode=mode, ap2=ROWS["ap2"] * k) for mode, k in (("paper", 1), ("code", 100))])
    modes = (
        modes[modes["method"] != "lowest"].groupby(["case", "method", "fraction", "mode", "epoch"]).mean().reset_index()
    )
    figure = figures.released_code(modes, TRIALS)
    limits = [axis.get_ylim() for axis in figure.axes]
    assert limits[0] == limits[1] != limits[2] == limits[3]
    assert {len(axis.lines) for axis in figure.axes} == {2 * len(FRACTIONS)}


def test_bounds_have_a_row_a_bound_and_leave_out_what_has_none():
    edges = ROWS[ROWS["epoch"].isin([0, EPOCHS])].assign(
        core=0.5, lemma=lambda r: np.where(r["epoch"] > 0, np.inf, 5.0)
    )
    figure = figures.bounds(edges)
    points = [sum(len(dots.get_offsets()) for dots in axis.collections) for axis in figure.axes]
    assert points == [len(edges) // 2, len(edges)]
    assert texts(figure)[-3:] == ["epoch 0", f"epoch {EPOCHS}", "gap = bound"]


def test_controls_are_drawn_relative_to_what_has_equal_ap2():
    frame = pd.DataFrame({"control": list(figures.CONTROLS)}).merge(ROWS[ROWS["epoch"] == 0], how="cross")
    frame = frame.assign(control_fisher_ap3=1 + frame.index % 7, gap=(1 + frame["fraction"]) * (2 + frame.index % 5))
    figure, numbers = figures.controls(frame)
    assert len(numbers) == 12 * 4 and len(figure.axes) == 1
    assert np.log(numbers["relative gap"]).groupby(numbers["block"]).mean().abs().max() < 1e-12


def test_sparsity_layers_and_groups_say_their_n():
    last, first = (frame[frame["epoch"] == epoch] for frame, epoch in ((ROWS, EPOCHS), (ROWS, 0)))
    figure, numbers = figures.sparsity(last, first, CONTROL)
    assert len(numbers) == 12 and figure.legends[0].get_title().get_text().endswith("n = 2")
    shown = pd.concat([last.assign(structure=s, layer="conv", relative_ap2=0.1) for s in ("weights", "filters")])
    figure = figures.layers(shown)
    assert [axis.get_title() for axis in figure.axes] == ["single weights removed, n = 24", "filters removed, n = 24"]
    sizes = {"contiguous_dim": 10, "shuffled_dim": 10, "contiguous_t_ap3": 0.1, "shuffled_t_ap3": 0.2}
    figure = figures.groups(last.assign(**sizes), TRIALS)
    assert {len(axis.lines) for axis in figure.axes} == {2 * 3 + 1}
