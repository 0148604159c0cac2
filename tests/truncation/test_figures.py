"""The figures of paper 2 draw the numbers that they return."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib.truncation import figures, measures
from lib.truncation.measures import CUTS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(methods, cuts, errors=(0.2, 0.5, 0.8)):
    keys = [(m, c, e, k) for m in methods for c in cuts for e in errors for k in range(4)]
    table = pd.DataFrame(keys, columns=["method", "cut", "relative_error", "place"])
    table["drop"] = 10 * table["relative_error"] + table["place"]
    table = table.assign(case="net / set", seed=0, layer="layer" + table["place"].astype(str), depth=table["place"] / 3)
    return table.assign(norm_loss=1 - np.sqrt(1 - table["relative_error"] ** 2), target=table["relative_error"])


def lines(axis):
    return [line for line in axis.lines if len(line.get_xdata()) > 2]


def test_accuracy_curves_start_at_no_loss_and_fall_by_the_drop():
    figure, numbers = figures.accuracy_by_norm_loss(points(["cut"], CUTS))
    assert len(numbers) == 7 * 3 * 4
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert set(panels) == set(CUTS)
    for axis in panels.values():
        assert len(lines(axis)) == 4
        assert lines(axis)[1].get_ydata().tolist() == pytest.approx([0, -3, -6, -9])


def test_two_mode_means_and_quartiles_are_those_of_the_bins():
    figure, numbers = figures.two_mode(points(["cut", "joint2"], ["OUT.KH", "OUT+IN", "OUT"]))
    assert set(numbers["cut"]) == {"OUT.KH", "OUT+IN"}
    first = numbers[numbers["cut"] == "OUT.KH"]
    assert first["drop"].tolist() == pytest.approx([3.5, 6.5, 9.5])
    assert first["lower"].tolist() == pytest.approx([2.75, 5.75, 8.75])
    assert first["upper"].tolist() == pytest.approx([4.25, 7.25, 10.25])


def test_controls_have_one_line_each_with_means_over_layers():
    figure, numbers = figures.controls(
        points(["graded", "noise"], ["OUT", "IN"]), {"graded": "truncated", "noise": "noise"}
    )
    assert numbers.groupby("method")["drop"].apply(list).loc["noise"] == pytest.approx([3.5, 6.5, 9.5])
    assert set(numbers["layers"]) == {4}


def test_bars_are_students_intervals_over_layers():
    figure, numbers = figures.controls(points(["noise"], ["OUT", "IN"]), {"noise": "noise"})
    half = stats.t.ppf(0.975, 3) * np.std([0, 1, 2, 3], ddof=1) / 2
    assert numbers["half"].tolist() == pytest.approx([half] * 3)


def test_maps_and_depth_have_a_panel_a_case():
    cells = [(case, k, cut) for case in ("a / x", "b / x") for k in range(3) for cut in CUTS]
    table = pd.DataFrame(cells, columns=["case", "place", "cut"]).assign(tolerance=0.5, shape="8x8x3x3", n=100)
    table["censored"] = table["cut"] == "OUT"
    table["layer"] = "layer" + table["place"].astype(str)
    figure, _ = figures.tolerance_maps(table)
    assert [image.get_array().shape for axis in figure.axes for image in axis.images][:2] == [(3, 7), (3, 7)]
    figure, _ = figures.tolerance_by_depth(table)
    assert [len(lines(axis)) for axis in figure.axes] == [7 + 1, 7 + 1]  # and the bounds of OUT, hollow


def test_a_form_has_one_look_in_every_figure_and_legends_one_order():
    assert len(set(figures.LOOKS.values())) == len(figures.LOOKS) and set(CUTS) < set(figures.LOOKS)
    table = points(["cut"], CUTS, errors=(0.5,)).assign(tolerance=0.5, shape="8x8x3x3", censored=False)
    table["form_name"], table["kept"] = table["cut"], 0.5
    for backwards in (table, table[::-1]):
        for figure in (figures.tolerance_by_depth(backwards)[0], figures.all_layers(backwards)[0]):
            handles = dict(zip(*figure.axes[0].get_legend_handles_labels()[::-1], strict=True))
            assert list(handles) == list(CUTS)
            assert all(handle.get_color() == figures.LOOKS[cut][0] for cut, handle in handles.items())


def test_spectra_show_trained_and_random_weights_of_every_applicable_cut():
    kernels = [torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)]
    weights = {
        f"weights_{cut}": [measures.weights(measures.spectrum(one, cut)).numpy() for one in kernels] for cut in CUTS
    }
    rows = pd.DataFrame(
        {"case": "c", "layer": ["a", "b"], "shape": [[4, 4, 3, 3]] * 2, "cut": [list(CUTS), ["OUT"]]} | weights
    )
    figure, numbers = figures.spectra(rows)
    places = {"OUT": 4, "IN": 4, "KH": 3, "KW": 3, "OUT.IN": 9, "OUT.KH": 12, "OUT.KW": 12}
    assert numbers.groupby("cut").size().to_dict() == places | {"OUT": 8}
    assert numbers.groupby(["layer", "cut"])["random_weight"].sum().to_numpy() == pytest.approx(1)
    assert len(figure.axes[0].lines) == 4 and len(figure.axes[1].lines) == 2


def test_entropy_panels_hold_every_pair():
    table = points(["cut"], CUTS, errors=(0.5,)).assign(excess=0.1, tolerance=0.4, censored=False)
    figure, numbers = figures.tolerance_by_entropy(table)
    assert sum(len(c.get_offsets()) for axis in figure.axes[:7] for c in axis.collections) == len(numbers) == 28


def test_forms_are_ordered_by_what_they_keep_at_the_last_budget():
    entries = [("cut", "OUT", 0.5, 1.0), ("cp", "", 0.5, 0.5), ("cut", "OUT", 0.25, 3.0)]
    entries += [("cp", "", 0.25, 4.0), ("cp, not converged", "", 0.25, 6.0), ("as cp", "OUT", 0.25, 0.0)]
    table = pd.DataFrame(entries, columns=["method", "cut", "target", "drop"]).assign(case="c", seed=0)
    table = pd.concat([table.assign(layer=name, relative_error=0.5) for name in "ab"])
    figure, numbers = figures.forms(table, [0.5, 0.25])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["OUT", "cp"]
    assert numbers.set_index(["form", "target"])["drop"].to_dict()["cp", 0.25] == 5
    assert set(numbers["layers"]) == {2}


def test_parameters_of_whole_networks_are_shown_only_where_they_are_counted():
    entries = [(form, e, e, 10 * e, 1 - e) for form in ("OUT", "OUT+IN", "KH+KW") for e in (0.2, 0.4)]
    table = pd.DataFrame(entries, columns=["form_name", "target", "relative_error", "drop", "kept"])
    figure, _ = figures.all_layers(table)
    assert [len(axis.lines) for axis in figure.axes] == [3, 2]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0, -2, -4]


def test_the_untruncated_control_of_a_case_is_in_every_panel_of_it():
    rows = []
    for case in ("net / set", "other / set"):
        rows.append({"case": case, "arm": "untruncated", "accuracy": np.full(4, 90.0)})
        for form in ("OUT", "IN"):
            keys = {"case": case, "form_name": form, "target": 0.5}
            rows.append(keys | {"arm": "batch norm", "accuracy": np.array([1.0, 50.0])})
            rows += [keys | {"arm": "dense", "accuracy": np.arange(4.0)}] if case == "net / set" else []
    figure, numbers = figures.recoveries(pd.DataFrame(rows), 3)
    assert [len(lines(axis)) for axis in figure.axes] == [2, 1, 2, 1]
    sizes = numbers.groupby(["case", "arm"]).size().to_dict()
    assert sizes["net / set", "dense"] == sizes["other / set", "untruncated"] == 8
    squares = numbers[numbers["arm"] == "batch norm"]
    assert squares[["epoch", "accuracy"]].values.tolist() == [[0, 50]] * 4


def test_statistics_by_case_have_a_dot_for_each_and_a_bar_at_their_mean():
    table = pd.DataFrame({"median": [1.0, 3.0], "mean": [2.0, np.nan]}, index=["a", "b"])
    figure, numbers = figures.by_case({"first": table, "second": table[["median"]]}, "points")
    assert len(numbers) == 4 and set(numbers["panel"]) == {"first", "second"}
    drawn = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].lines}
    assert drawn["a"] == [1, 2] and drawn["mean"] == [2, 2]
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == ["median"]


def test_a_series_of_networks_is_a_line_over_depth():
    table = pd.DataFrame({"series": list("aab"), "depth": [56, 20, 32], "share": [0.3, 0.1, 0.2]})
    figure, _ = figures.zeroed(table)
    assert list(figure.axes[0].lines[0].get_xdata()) == [20, 56] and len(figure.axes[0].lines) == 2


def test_watched_entropies_are_means_over_layers_with_their_intervals():
    keys = [(labels, epoch, layer) for labels in ("true", "shuffled") for epoch in (0, 1) for layer in "abc"]
    table = pd.DataFrame(keys, columns=["labels", "epoch", "layer"]).assign(cut="OUT")
    table["excess"] = table["epoch"] + table["layer"].map({"a": 0.1, "b": 0.2, "c": 0.3})
    _, numbers = figures.watched(table)
    assert numbers["excess"].tolist() == pytest.approx([0.2, 1.2] * 2)
    assert numbers["half"].tolist() == pytest.approx([stats.t.ppf(0.975, 2) * 0.1 / 3**0.5] * 4)


def test_ways_to_a_tensor_network_stand_beside_the_dense_one():
    entries = [("net", "cp", "scratch", 80.0), ("net", "cp", "truncated", 82.0), ("net", "", "dense", 90.0)]
    table = pd.DataFrame(entries, columns=["case", "form", "way", "accuracy"]).assign(half=1.0)
    figure, _ = figures.tensorised(table)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["cp", "dense"]
    places = {bars.get_label(): bars.lines[0].get_xdata()[0] for bars in figure.axes[0].containers}
    assert places == {"dense": 1, "truncated": -0.1, "scratch": 0.1}


def test_plans_are_drawn_before_and_after_retraining():
    table = pd.DataFrame({"case": "net", "form_name": ["uniform", "outputs", "uniform, equal time"]})
    figure, _ = figures.plans(table.assign(before=[10.0, 20.0, 0.0], after=[80.0, 81.0, 0.0]))
    heights = [line.get_ydata()[0] for line in figure.axes[0].lines]
    assert heights == [20, 81, 10, 80]  # in the order of PLANNED, and no plan that it does not name


def test_signs_are_written_where_they_are_known():
    table = pd.DataFrame([[1.0, 0.0], [np.nan, 1.0]], index=["P2.1", "P2.2"], columns=["a / x", "b / x"])
    figure, numbers = figures.signs(table)
    assert [text.get_text() for text in figure.axes[0].texts] == ["+", "−", "", "+"]
    assert numbers["effect"].tolist() == ["P2.1", "P2.2"]


def test_latency_panels_show_what_macs_promise():
    entries = [("k", "dense", 1.0, 1.0), ("k", "OUT", 0.5, 0.7)]
    table = pd.DataFrame(entries, columns=["kernel", "form", "macs_share", "made_latency_share"])
    figure, _ = figures.latencies(table)
    assert list(figure.axes[0].lines[0].get_ydata()) == [0, 1] and len(figure.axes[0].lines) == 3
