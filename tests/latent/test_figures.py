"""Figures of paper 1 are drawn from small tables without a warning, with a panel for each case and their legends."""

import numpy as np
import pandas as pd
import pytest

from lib import stats
from lib.figures import COLOURS
from lib.latent import figures
from lib.masks import METHODS

FRACTIONS, EPOCHS, TRIALS = (0.1, 0.3, 0.5, 0.8), 3, 2
CASES = ("resnet20, cifar10", "resnet56, cifar100")


pytestmark = pytest.mark.usefixtures("drawn")


def by_epoch(methods, fractions):
    rows = [
        {"case": case, "method": method, "fraction": fraction, "trial": trial, "epoch": epoch}
        | {"ap2": 1 + fraction + trial, "t_ap3": 0.5, "pd": 10 * fraction, "train_gap": 0.1, "gap": 0.2}
        for case in CASES
        for method in methods
        for fraction in fractions
        for trial in range(TRIALS)
        for epoch in range(EPOCHS + 1)
    ]
    return pd.DataFrame(rows)


ROWS, CONTROL = by_epoch(METHODS, FRACTIONS), by_epoch(["none"], [0.0])


def at(epoch, rows=ROWS):
    return rows[rows["epoch"] == epoch]


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def legend_title(figure):
    return figure.legends[0].get_title().get_text()


def titles(figure):
    return [axis.get_title("left") for axis in figure.axes]  # where the style puts it


def points(axis):
    return sum(len(dots.get_offsets()) for dots in axis.collections)


def shown_ticks(axis, which="x"):
    """The texts of the labels that stand within a drawn axis."""
    axis.figure.canvas.draw()
    own = getattr(axis, f"{which}axis")
    low, high = own.get_view_interval()
    ticks = [*own.get_major_ticks(), *own.get_minor_ticks()]
    return {t.label1.get_text() for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()}


@pytest.mark.parametrize(("by", "columns"), (("method", 3), ("fraction", 4)))
def test_panels_draw_measure_and_difference_of_every_configuration_and_of_the_control(by, columns):
    figure, numbers = figures.panels(ROWS, CONTROL, "ap2", by, "AP2")
    assert len(figure.axes) == 2 * columns and len(numbers) == 2 * (12 + 1) * (EPOCHS + 1)
    assert {len(axis.lines) for axis in figure.axes} == {2 * (12 // columns + 1)}
    assert {len(axis.collections) for axis in figure.axes} == {2 * (12 // columns + 1)}  # bands
    expected = list(METHODS) if by == "method" else [f"{fraction:.0%} removed" for fraction in FRACTIONS]
    assert titles(figure)[:columns] == expected
    assert [axis.get_ylabel() for axis in figure.axes[::columns]] == ["resnet20\ncifar10", "resnet56\ncifar100"]
    assert numbers["ap2 max"].tolist() == pytest.approx((numbers["ap2 min"] + 1).tolist())
    others = [f"{fraction:.0%}" for fraction in FRACTIONS] if by == "method" else list(METHODS)
    assert texts(figure) == [*others, "dense control", "AP2", "PD (points)"] and legend_title(figure).endswith("n = 2")


def test_what_lies_below_a_logarithmic_axis_is_drawn_at_its_edge():
    figure, _ = figures.panels(ROWS.assign(ap2=0.0, pd=0.0), CONTROL, "ap2", "method", "AP2")
    assert {line.get_ydata().min() for line in figure.axes[0].lines[:2]} == {figures.LOWEST, figures.LOWEST_PD}
    figure = figures.bounds(at(0).assign(core=0.5, lemma=5.0, train_gap=0.0))
    assert figure.axes[0].collections[0].get_offsets()[:, 1].min() == figures.LOWEST_GAP


def test_panels_of_the_released_code_share_one_scale_a_measure():
    modes = pd.concat([ROWS.assign(mode=mode, ap2=ROWS["ap2"] * k) for mode, k in (("paper", 1), ("code", 100))])
    keys = ["case", "method", "fraction", "mode", "epoch"]
    modes = modes[modes["method"] != "lowest"].groupby(keys).mean().reset_index()
    figure = figures.released_code(modes, TRIALS)
    limits = [axis.get_ylim() for axis in figure.axes]
    assert limits[0] == limits[1] == limits[4] != limits[2] == limits[3] == limits[7]
    assert {len(axis.lines) for axis in figure.axes} == {2 * len(FRACTIONS)}
    assert titles(figure)[:2] == ["highest:\nAP2", "random:\nAP2"] and texts(figure)[-2:] == [
        "as defined",
        "released code",
    ]


def test_groups_have_a_line_for_each_method_and_order_and_the_border():
    sizes = {"contiguous_t_ap3": 0.1, "shuffled_t_ap3": 0.2}
    ablation = pd.concat([at(0).assign(contiguous_dim=k, shuffled_dim=k, **sizes) for k in (10, 100)])
    figure = figures.groups(ablation[ablation["trial"] == 0], TRIALS)
    assert {len(axis.lines) for axis in figure.axes} == {2 * 3 + 1} and len(figure.axes) == 8
    assert texts(figure)[-3:] == ["as stored", "shuffled", "t-AP3 = 2"] and legend_title(figure) == "mean of n = 2"


def test_bounds_have_a_row_a_bound_and_leave_out_what_has_none():
    edges = pd.concat([at(0), at(EPOCHS)]).assign(core=0.5, lemma=lambda r: np.where(r["epoch"] > 0, np.inf, 5.0))
    figure = figures.bounds(edges)
    assert [points(axis) for axis in figure.axes] == [24, 24, 48, 48]  # of 12 configurations, 2 trials and 2 epochs
    assert [axis.get_xlabel() for axis in figure.axes[1:3]] == ["Lemma 2 (nats)", "½ λmax AP2 (nats)"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == figure.axes[0].lines[0].get_ydata().tolist() == [5, 5]
    assert texts(figure)[-3:] == ["epoch 0", f"epoch {EPOCHS}", "gap = bound"] and "n = 24" in legend_title(figure)


def test_a_bound_that_no_gap_comes_near_is_within_its_panel():
    edges = at(EPOCHS).assign(core=0.5, lemma=lambda r: 1e6 * r["ap2"])
    axis = figures.bounds(edges).axes[0]
    assert axis.get_ylim()[1] > 1e6 and axis.get_ylim()[0] < 0.1


def test_sparsity_draws_both_ends_of_fine_tuning_and_the_control():
    before, ending = at(0).assign(pd=50.0), at(EPOCHS).sort_values(["case", "fraction"], ascending=[True, False])
    figure, numbers = figures.sparsity(ending, before, at(EPOCHS, CONTROL).assign(pd=0.5))
    assert len(numbers) == 2 * 12 and numbers["epoch 0"].tolist() == [50.0] * 24
    assert titles(figure) == ["resnet20\ncifar10", "resnet56\ncifar100"]
    assert {len(axis.lines) for axis in figure.axes} == {2 * 3 + 1}
    for line in figure.axes[1].lines[:-1]:
        assert line.get_xdata().tolist() == pytest.approx([10, 30, 50, 80])  # from left to right
    assert figure.axes[0].lines[-1].get_ydata()[0] == 0.5 and legend_title(figure).endswith("n = 2")


def test_correlations_draw_every_case_its_mean_and_the_interval_that_claims_have():
    table = pd.DataFrame(
        {"AP2": [0.9, 1.0, 0.3], "γ": [0.1, np.nan, -0.2]}, index=[*CASES, "vit_tiny, cifar10, seed 1"]
    )
    figure, numbers = figures.correlations({"PD": table, "loss gap": -table})
    assert titles(figure) == ["PD", "loss gap"] and len(numbers) == 6
    for axis, sign in zip(figure.axes, (1, -1), strict=True):
        bars = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 5]
        means = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "|"]
        assert means == pytest.approx([sign * 2.2 / 3, -sign * 0.05]) and points(axis) == 5
        low = stats.mean_interval([0.9, 1.0, 0.3])[0]
        assert sorted(sign * end for end in bars[0]) == pytest.approx([low, 1])  # the interval ends where values end
        assert axis.get_xlim()[0] > -1.2 and axis.get_xlim()[1] < 1.2
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["AP2", "γ"]
    assert texts(figure) == ["10 classes", "100 classes", "mean and 95 % interval", "unrelated"]
    assert legend_title(figure) == "a dot a case, n = 3"


def test_a_measure_without_a_value_and_a_single_case_are_drawn_without_an_interval():
    name = "curvature AP3, diagonal"
    table = pd.DataFrame({"AP2": [0.9], name: [np.nan]}, index=["resnet20, cifar10 to cifar100"])
    figure, _ = figures.correlations({title: table for title in ("PD after fine-tuning", "loss gap after", "before")})
    axis = figure.axes[0]
    figure.canvas.draw()
    assert min(label.get_window_extent().x0 for label in axis.get_yticklabels()) >= 0
    assert points(axis) == 1 and np.isnan(axis.lines[0].get_xdata()).all()
    assert texts(figure)[0] == "100 classes"  # a head's classes are those of the data set that it sees


def test_data_sets_with_other_numbers_of_classes_have_entries_of_their_own():
    table = pd.DataFrame({"AP2": [0.9, 0.8, 0.7]}, index=["a, tiny-imagenet", "a, cifar10", "a, imagenet"])
    figure, _ = figures.correlations({"PD": table})
    assert texts(figure)[:3] == ["10 classes", "200 classes", "1000 classes"]
    assert len({figures.CLASSES[count] for count in (10, 100, 200, 1000)}) == 4


@pytest.mark.parametrize(("low", "high"), ((0.02, 7.0), (2.1, 2.9), (2.0, 8.0), (3e-4, 5e-3)))
def test_masks_are_labelled_however_narrow_their_range_is(low, high):
    gamma = np.linspace(0.1, 3, 30)  # an exponent has no logarithm, even if all are above 0
    ap2 = np.geomspace(low, high, 30)
    rows = pd.DataFrame({"case": "c", "fraction": 0.8, "gamma": gamma, "delta": 0.0, "ap2_start": ap2})
    rows = rows.assign(pd=gamma + 4, gap=0.1)
    named = pd.DataFrame({"method": METHODS, "ap2_start": ap2[[0, 29, 15]], "pd": 4.0})
    figure, numbers = figures.masks(rows, named, {"ap2_start": "AP2", "gamma": "γ"}, "title")
    left, right = figure.axes[:2]
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear") and len(shown_ticks(left)) >= 2
    assert points(left) == 30 + 3 and points(right) == 30 and legend_title(figure) == "n = 30 random masks"
    assert list(numbers) == ["case", "fraction", "gamma", "delta", "ap2_start", "pd", "gap"]
    assert texts(figure) == list(METHODS) and figure.axes[2].get_ylabel() == "γ of the mask"


def test_rates_are_ticks_and_every_case_is_a_line():
    lrs = [0.1, 0.01, 0.003]
    changed = pd.DataFrame([{"case": c, "tuning_lr": lr, "change": lr, "ap2": 9 * lr} for c in CASES for lr in lrs])
    figure, numbers = figures.rates(changed, changed[["case", "tuning_lr"]].assign(rho=0.5))
    for axis, lines in zip(figure.axes, (3, 2, 3), strict=True):
        assert shown_ticks(axis) == {"0.1", "0.01", "0.003"} and len(axis.lines) == lines
    assert len(numbers) == 6 and set(numbers) == {"case", "tuning_lr", "change", "ap2", "rho"}
    assert texts(figure) == ["10 classes", "100 classes", "no change, or unrelated"]


def test_predictors_of_the_sparsity_have_a_panel_each():
    table = pd.DataFrame({"case": CASES, "s": [0.5, 0.8], "effective": [0.4, 0.6], "control": [0.1, 0.2]})
    figure = figures.predicted_sparsity(table, {"effective": "E", "control": "C"})
    assert [axis.get_xlabel() for axis in figure.axes] == ["E", "C"] and points(figure.axes[1]) == 2
    assert texts(figure) == ["10 classes", "100 classes"] and legend_title(figure) == "n = 2 cases"
    assert texts(figures.predicted_sparsity(table[:1], {"effective": "E", "control": "C"})) == ["10 classes"]


def layer_rows(case, names):
    keys = [(n, s, m) for n in names for s in ("weights", "filters") for m in METHODS]
    measures = {"relative_ap2": 0.1, "fisher_ap2": 0.1, "inputs_moved": 0.2, "gap": -0.3}
    return pd.DataFrame([{"case": case, "layer": n, "structure": s, "method": m} | measures for n, s, m in keys])


def test_layers_at_one_place_of_different_networks_share_a_colour_and_both_are_named():
    same = pd.concat([layer_rows(case, ["conv1", "conv2"]) for case in CASES])
    figure = figures.layers(same)
    assert texts(figure) == ["conv1", "conv2", "single weights", "filters", "as the control"]
    assert figure.axes[0].get_ylim()[0] < -0.3  # a gain is shown, too
    assert len(figure.axes) == 6 and {points(axis) for axis in figure.axes} == {12}
    figure = figures.layers(pd.concat([same, layer_rows("vgg16, cifar10", ["features.0", "features.3", "features.7"])]))
    assert texts(figure)[:3] == ["conv1\nfeatures.0", "conv2\nfeatures.3", "features.7"]
    first = [axis.collections[0].get_facecolor().tolist() for axis in figure.axes]
    assert all(colour == first[0] for colour in first)
    assert figure.axes[6].get_ylabel() == "vgg16\ncifar10\nloss gap (nats)"


def test_kinds_of_compression_have_a_colour_each_in_every_case():
    names = ["weights", "inputs", "classes", "n:m", "low rank", "few bits"]
    rows = pd.concat([at(0)[:12].assign(kind=name, case=case, configuration="") for name in names for case in CASES])
    figure, numbers = figures.kinds(rows)
    assert texts(figure) == names and [points(axis) for axis in figure.axes] == [72, 72]
    assert list(numbers) == ["case", "kind", "configuration", "ap2", "gap", "pd"] and len(numbers) == 144
    assert len({tuple(dots.get_facecolor()[0]) for dots in figure.axes[0].collections}) == 6


def test_tasks_that_need_no_step_are_drawn_and_the_null_is_from_zero():
    pairs = pd.DataFrame({"case": "resnet20, cifar10 to cifar100", "ap2": [4.0, 5.0], "steps": [0.0, 30.0]})
    axis = figures.tasks(pairs.assign(steps_from_zero=[40.0, 60.0])).axes[0]
    assert axis.collections[0].get_offsets()[:, 1].tolist() == [1, 30] and axis.lines[0].get_ydata()[0] == 50
    assert texts(axis.figure) == ["pair of tasks", "from zero"]


def test_long_names_of_cases_do_not_run_into_each_other():
    names = ["efficientnet_lite0-pretrained, cifar10 to cifar100", "mobilenet_v2-x0.25, cifar100, seed 1"]
    rows = pd.concat([at(0).assign(case=case, kind="weights", configuration="") for case in (*names, *names[::-1])])
    rows["case"] += [", seed 2" if place >= 96 else "" for place in range(len(rows))]
    figure, _ = figures.kinds(rows)
    figure.canvas.draw()
    boxes = [axis._left_title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in zip(boxes[:-1], boxes[1:], strict=True))
    assert boxes[-1].x1 <= figure.bbox.x1


def test_methods_have_the_colours_of_every_notebook():
    assert {name: style["color"] for name, style in figures.method_styles().items()} == {m: COLOURS[m] for m in METHODS}
