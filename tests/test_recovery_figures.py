"""The figures of whole networks draw the numbers that they return."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.truncation import figures as draw


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def curves(axis):
    return [line for line in axis.lines if len(line.get_xdata()) > 2]


def test_parameters_of_whole_networks_are_shown_only_where_they_are_counted():
    entries = [(form, e, e, 10 * e, 1 - e) for form in ("OUT", "OUT+IN", "KH+KW") for e in (0.2, 0.4)]
    table = pd.DataFrame(entries, columns=["form_name", "target", "relative_error", "drop", "kept"])
    figure, _ = draw.all_layers(table)
    assert [len(axis.lines) for axis in figure.axes] == [3, 2]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0, -2, -4]


def test_the_untruncated_control_is_in_every_panel():
    rows = [{"arm": "untruncated", "accuracy": np.full(4, 90.0)}]
    rows += [{"arm": "dense", "form_name": f, "target": 0.5, "accuracy": np.arange(4.0)} for f in ("OUT", "IN")]
    rows += [
        {"arm": "batch norm", "form_name": f, "target": 0.5, "accuracy": np.array([1.0, 50.0])} for f in ("OUT", "IN")
    ]
    figure, numbers = draw.recoveries(pd.DataFrame(rows), 3)
    assert [len(curves(axis)) for axis in figure.axes] == [2, 2]
    sizes = numbers.groupby("arm").size()
    assert (sizes["dense"], sizes["untruncated"], sizes["batch norm"]) == (8, 8, 2)
    assert numbers.loc[numbers["arm"] == "batch norm", ["epoch", "accuracy"]].values.tolist() == [[0, 50]] * 2


def test_latency_panels_show_what_macs_promise():
    entries = [("k", "dense", 1.0, 1.0), ("k", "OUT", 0.5, 0.7)]
    table = pd.DataFrame(entries, columns=["kernel", "form", "macs_share", "made_latency_share"])
    figure, _ = draw.latencies(table)
    assert list(figure.axes[0].lines[0].get_ydata()) == [0, 1] and len(figure.axes[0].lines) == 3
