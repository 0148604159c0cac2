"""The figures of paper 2 on whole networks and factorised layers: truncated everywhere, retrained, timed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lib.cuts import CUTS
from lib.figures import NULL
from lib.truncation_figures import BLUE, ORANGE, PURPLE, RED, Drawn, in_order, look

ARMS = {"untruncated": ("black", "."), "dense": (RED, "."), "projected": (BLUE, "."), "factorised": (ORANGE, ".")}
ARMS |= {"batch norm": (PURPLE, "s")}
COUNTED = (*CUTS, "OUT+IN")  # forms of a whole network whose factorised parameters are counted


def all_layers(table: pd.DataFrame) -> Drawn:
    """Change of accuracy with all layers truncated, against the relative error and against the parameters left.

    table: `form_name`, `target`, `relative_error`, `drop`, `kept`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    means = table.groupby(["form_name", "target"], sort=False)[["relative_error", "drop", "kept"]].mean().reset_index()
    for form in in_order(means["form_name"]):
        one = means[means["form_name"] == form]
        axes[0].plot([0, *one["relative_error"]], [0, *-one["drop"]], **look(form), label=form)
        if form in COUNTED:
            axes[1].plot([1, *one["kept"]], [0, *-one["drop"]], **look(form))
    axes[0].set(xlabel="relative error of all kernels together", ylabel="change of accuracy (points)")
    axes[1].set(xlabel="share of the network's parameters, factorised")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right")
    return figure, means


def recoveries(rows: pd.DataFrame, few: int) -> Drawn:
    """Accuracy by epoch of retraining, a line an arm, a panel a truncation, mean over trainings; dotted: `few` epochs.

    rows: `arm`, `form_name`, `target`, `accuracy` (lists, percent); the untruncated arm goes into every panel.
    Re-estimated BatchNorm statistics are no epoch: they are a square at epoch 0.
    """
    panels = list(rows[rows["arm"] != "untruncated"].groupby(["form_name", "target"], sort=False).groups)
    figure, axes = plt.subplots(1, len(panels), figsize=(1.8 + 1.95 * len(panels), 3.8), sharey=True, squeeze=False)
    numbers = []
    for axis, (form, error) in zip(axes.flat, panels, strict=True):
        here = ((rows["form_name"] == form) & (rows["target"] == error)) | (rows["arm"] == "untruncated")
        for arm in [name for name in ARMS if name in set(rows["arm"])]:
            line = np.mean(rows.loc[here & (rows["arm"] == arm), "accuracy"].tolist(), axis=0)
            line = line[1:] if arm == "batch norm" else line
            colour, marker = ARMS[arm]
            style = {"color": colour, "marker": marker, "linestyle": "--" if arm == "dense" else "-"}
            axis.plot(range(len(line)), line, **style, zorder=3 if arm == "dense" else 2, label=arm)
            labels = {"arm": arm, "form": form, "target": error}
            numbers.append(pd.DataFrame({"epoch": range(len(line)), "accuracy": line} | labels))
        axis.axvline(few, **NULL)
        axis.set_title(f"{form}\nε = {error:g}", fontsize=9)
        axis.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
    axes[0, 0].set_ylabel("accuracy (%)")
    figure.supxlabel("epoch of retraining")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right")
    return figure, pd.concat(numbers)


def latencies(table: pd.DataFrame) -> Drawn:
    """Measured time against MACs of factorised layers, as shares of the dense layer; dotted: what MACs promise.

    table: `kernel`, `form`, `macs_share`, `made_latency_share`.
    """
    kernels = list(dict.fromkeys(table["kernel"]))
    figure, axes = plt.subplots(1, len(kernels), figsize=(1.4 + 3.8 * len(kernels), 3.8), sharey=True, squeeze=False)
    for axis, kernel in zip(axes.flat, kernels, strict=True):
        axis.plot([0, 1], [0, 1], **NULL)
        here = table[table["kernel"] == kernel]
        for form in in_order(here["form"]):
            one = here[here["form"] == form]
            style = look(form) | {"linestyle": "", "markersize": 6}
            axis.plot(one["macs_share"], one["made_latency_share"], **style, label=form)
        axis.set(title=kernel, xlabel="MACs, share of the dense layer", xlim=(0, 1.05))
    axes[0, 0].set_ylabel("measured time, share of the dense layer")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right")
    return figure, table
