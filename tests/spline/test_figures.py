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
    figure = figures.slices(pd.DataFrame([square | {"boundary": [0, 0, 1, 1], "title": "epoch 1"}] * 5))
    assert [len(axis.collections[0].get_paths()) for axis in figure.axes] == [2] * 5
    plt.close(figure)


def test_both_kinds_of_pruning_are_drawn_one_above_the_other():
    row = {"lines": [LINES] * 4, "boundary": [[0.0, 1, 1, 0]] * 4, "half": [1.0] * 4, "ratio": [0, 0, 0.5, 0.5]}
    row["title"] = ["a: 1 %", "b: 2 %", "c: 3 %", "d: 4 %"]
    figure = figures.both(pd.Series(row), [0.5])
    assert [axis.get_title() for axis in figure.axes] == ["c\n3 %", "d\n4 %"]
    plt.close(figure)


def test_the_figure_of_a_long_training_holds_means_over_networks():
    row = {"kind": "a", "epochs": [0, 1, 16], "radii": [0.1], "relative": 4.0}
    values = [{f"density_{name}": [k, 2.0 * k, 3.0] for name in ("data", "boundary", "elsewhere")} for k in (1.0, 3.0)]
    figure, numbers = figures.migration(pd.DataFrame([row | own for own in values]), 0.1)
    assert numbers[numbers["place"] == "training points"]["density"].tolist() == [2, 4, 3]
    plt.close(figure)


def test_the_figure_of_routes_has_a_panel_for_the_sweep_and_each_depth():
    sweep = pd.DataFrame({"width": [1, 1, 2, 2], "seed": [0, 1] * 2, "accuracy": [1.0, 2, 3, 4], "arms": [4, 2, 4, 4]})
    gain = {"width": 4, "epochs": 9, "factor": 2.0, "value": 1.0, "low": 0.0, "high": 2.0, "n": 3}
    figure, numbers = figures.routes(sweep, pd.DataFrame([gain | {"depth": depth} for depth in (1, 2)]))
    assert len(figure.axes) == 3 and len(numbers) == 6
    assert figure.axes[0].lines[-1].get_ydata().tolist() == [50, 100]
    plt.close(figure)


def test_the_figure_of_subsets_has_every_method_before_and_after_tuning():
    row = {"method": ["raw", "merged"], "subsets": 15}
    row |= {f"{name}{when}": value for when in ("", "_tuned") for name, value in (("best", 9.0), ("mean", 5.0))}
    rows = pd.DataFrame([row | {"chosen": [7.0, 8.0], "chosen_tuned": [5.0, 9.0]}] * 2)
    figure, numbers = figures.subsets(rows, ["raw", "merged"])
    assert numbers["value"].tolist() == [0.5, 0.75, 0, 1]
    plt.close(figure)


def test_ways_to_a_small_network_are_points_of_accuracy_and_operations():
    rows = [
        ("ticket", at, "merged", x, 60 + 30 * x + seed)
        for at, x in (("prompt", 0.3), ("early", 0.5))
        for seed in (0, 2)
    ]
    rows += [("dense", "", "", 1.0, 90.0 + seed) for seed in (0, 2)] + [("end", "early", "magnitude", 1.3, 88.0)] * 2
    table = pd.DataFrame(rows, columns=["label", "drawn", "method", "relative", "accuracy"])
    figure, numbers = figures.operations(table.assign(case="a", seed=[0, 2] * 4))
    ticket = numbers[numbers["way"] == "ticket, merged nodes"]
    assert ticket["relative"].tolist() == [0.3, 0.5]
    assert ticket["value"].tolist() == [70.0, 76.0]
    assert numbers.loc[numbers["way"] == "dense, fewer epochs", "value"].tolist() == [91.0]
    plt.close(figure)


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


def test_densities_are_drawn_as_means_over_trainings():
    row = {"case": "a", "labels": "true labels", "radius": 0.1, "late": 0.0}
    kinds = ("training", "test", "boundary", "noise")
    rows = [row | {"kind": k, "seed": s, "density": [1.0, 2.0, 3.0, 4.0 + 2 * s]} for k in kinds for s in (0, 1)]
    figure, numbers = figures.surroundings(pd.DataFrame(rows))
    assert numbers.loc[numbers["kind"] == "noise", "value"].tolist() == [1, 2, 3, 5]
    plt.close(figure)
