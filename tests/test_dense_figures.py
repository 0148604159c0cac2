"""Figures of dense networks show what their legends promise, and return the numbers behind them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from lib import baselines as pictures

NETWORKS = ["linear", "mlp"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curve_rows():
    rows = [
        {"network": name, "labels": labels, "seed": seed}
        | {"curve_validation_accuracy": [0.1 + seed / 10, 0.5], "curve_train_loss": [2.0, 1.0]}
        for name, labels, seeds in (("linear", "true", 2), ("mlp", "true", 3), ("mlp", "shuffled", 4))
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_curves_have_a_line_a_seed_and_one_for_each_mean():
    figure, numbers = pictures.learning_curves(curve_rows(), NETWORKS)
    assert [len(axis.lines) for axis in figure.axes] == [2 + 1 + 3 + 1 + 1] * 2
    assert texts(figure) == ["linear (n = 2)", "mlp (n = 3)", "mlp, shuffled\nlabels (n = 4)"]
    assert len(numbers) == 9 * 2 and numbers["epoch"].tolist()[:2] == [1, 2]
    one = numbers[(numbers["seed"] == 1) & (numbers["network"] == "linear")]
    assert one["validation accuracy (%)"].tolist() == pytest.approx([20, 50])


def test_accuracy_draws_each_seed_and_names_its_interval():
    trained = pd.DataFrame({"network": ["linear"] * 3 + ["mlp"] * 3, "accuracy": [1.0, 2, 3, 4, 5, 6]})
    summary = pd.DataFrame({"mean": [2.0, 5], "low": [1.0, 4], "high": [3.0, 6], "n": [3, 3]}, index=NETWORKS)
    figure = pictures.accuracy(trained, summary, "a title")
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in dots] == [[1, 2, 3], [4, 5, 6]]
    assert "95 % interval of the mean\n(Student, n = 3 seeds)" in texts(figure)


def test_latency_has_a_point_a_row_and_batch_and_a_line_through_the_largest_network():
    costs = {"dataset": "d", "network": NETWORKS, "parameters": [1, 2], "macs": [100, 1000]}
    costs = pd.DataFrame(costs | {"made_latency_1_ms": [1.0, 2.0], "made_latency_128_ms": [12.8, 128.0]})
    figure, numbers = pictures.latency(costs, "a device")
    assert numbers["made_ms_per_image"].tolist() == pytest.approx([1, 2, 0.1, 1])
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [
        pytest.approx([0.2, 2]),
        pytest.approx([0.1, 1]),
    ]
    assert "a device" in figure.axes[0].get_title(loc="left") + figure.axes[0].get_title()


def test_augmentation_shows_every_draw_of_every_class():
    random = np.random.default_rng(0).random((4, 5, 1, 8, 8))
    figure, numbers = pictures.augmentation(random)
    assert len(figure.axes) == 20 and numbers["mean of the original"].tolist() == pytest.approx(
        random[0].mean((1, 2, 3))
    )
