"""Figures draw what their rows hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lib.spline import attention, figures

LINES = [0.0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 2, 3]  # of layers 0 and 2


def test_panels_draw_lines_by_layer_and_the_boundary():
    figure, axis = plt.subplots()
    row = pd.Series({"lines": [LINES], "boundary": [[0, 0, 1, 0]], "half": [2.0], "title": ["t"]})
    figures.panel(axis, row, 0)
    assert len(axis.collections) == 3
    assert axis.get_xlim() == axis.get_ylim() == (-2, 2)
    plt.close(figure)


def test_slices_draw_one_polygon_a_region():
    square = {"corners": [0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1], "count": [3, 3], "winner": [0, 1], "regions": 2}
    figure = figures.slices(pd.DataFrame([square | {"boundary": [0, 0, 1, 1], "title": "epoch 1"}] * 4))
    assert [len(axis.collections[0].get_paths()) for axis in figure.axes] == [2] * 4
    plt.close(figure)


def test_tickets_have_the_colour_of_their_method():
    assert figures.arm_colour("early random") == figures.METHODS["random"]["color"]
    assert figures.arm_colour("dense") == "k"
    assert figures.arm_colour("slimming") == figures.arm_colour("end") != figures.arm_colour("scratch")


def test_a_frame_of_the_film_shows_the_loss_until_its_epoch():
    row = {"lines": [LINES], "boundary": [[0.0, 1, 1, 0]], "half": [1.0], "title": ["epoch 2"]}
    (figure,) = figures.film_frames(pd.Series(row | {"loss": [3.0, 2.0, 1.0]}))
    above, below = figure.axes
    assert above.get_title() == "epoch 2"
    assert below.lines[0].get_xydata().tolist() == [[1, 3], [2, 2]]
    plt.close(figure)


def test_the_numbers_behind_curves_are_those_of_the_rows():
    matrix = np.abs(np.subtract.outer(range(4), range(4))) / 10
    row = {"case": "a", "kind": "true labels", "seed": 0, "distance_canvas": matrix.ravel()}
    figure, numbers = figures.settling(pd.DataFrame([row]), 2)
    assert numbers["step"].tolist() == [0.1] * 3
    assert numbers["to_last"].tolist() == [0.2, 0.1, 0.0]
    plt.close(figure)


def transformer(kind: str, seed: int, activation: str = "relu") -> dict:
    bends = np.linspace(-3, -1, len(attention.HELD) * len(attention.LENGTHS))
    distances = np.abs(np.subtract.outer(range(14), range(14))) / 20
    row = {"kind": kind, "seed": seed, "activation": activation, "distance_canvas": distances.ravel()}
    return row | {"log_bend": bends + seed, "log_bend_untrained": bends - 1}


def test_bends_are_drawn_as_powers_of_the_mean_and_the_untrained_ones_dotted():
    kinds = ("true labels", "random labels")
    rows = [transformer(kind, seed, act) for act in ("relu", "gelu") for kind in kinds for seed in (0, 1)]
    figure, numbers = figures.transformers(pd.DataFrame(rows), 7)
    first = figure.axes[0].lines[0]
    assert np.allclose(np.log10(first.get_ydata()), np.linspace(-3, -1, 15)[:3] + 0.5)
    assert (numbers["step"].dropna() == 0.05).all()
    free = numbers[(numbers["free"] == "norms") & numbers["trained"].eq(False)]
    assert np.allclose(free["log10 of the deviation"].iloc[:3], np.linspace(-3, -1, 15)[12:] - 1)
    plt.close(figure)


def test_savings_are_drawn_for_each_epoch_and_layer():
    counts = {"layer": ["a", "b"], "dense": [10.0, 30.0], "whole": [10.0, 20.0], "position": [10.0, 10.0]}
    counts |= {"known": [5.0, 10.0], "static": [10.0, 30.0], "shuffled": [10.0, 25.0]}
    rows = [counts | {"case": "n", "label": label, "seed": seed} for label in ("untrained", "end") for seed in (0, 1)]
    figure, numbers = figures.skipped(pd.DataFrame(rows))
    total = numbers.dropna(subset="label").groupby("way")["saved"].unique()
    assert {way: values.tolist() for way, values in total.items()} == {
        "whole": [25.0], "position": [50.0], "known": [62.5], "static": [0.0], "shuffled": [12.5]
    }  # fmt: skip
    plt.close(figure)


def test_directions_and_signed_correlations_are_drawn_as_they_are():
    entries = [
        {"case": "n", "seed": seed, "layer": "a", "filters": filters, "kind": kind, "dim": dim}
        | {"rank": 0.5, "data": 0.25, "overlap": 0.1}
        for seed in (0, 1)
        for filters in ("trained", "random")
        for kind, dim in (("none", 0), ("pca", 2), ("random", 2), ("means", 2), ("pca", 4))
    ]
    signed = [
        {"case": "n", "filters": filters, "rows": rows, "fan_in": value, "width_of": 0.0}
        for filters in ("own", "random")
        for rows, value in (("full", -0.5), ("reduced", 0.5))
    ]
    figure, numbers = figures.reductions(pd.DataFrame(entries), pd.DataFrame(signed))
    assert [line.get_xdata()[0] for line in figure.axes[2].lines[:4]] == [-0.5, 0.5, -0.5, 0.5]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2", "4"]
    assert len(numbers) == len(entries) + len(signed)
    plt.close(figure)
