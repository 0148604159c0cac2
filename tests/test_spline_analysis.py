"""Statistics of paper 4 on made-up rows with known answers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.spline import analysis


def test_a_plateau_is_found_where_a_fall_ends_and_nowhere_else():
    fall = np.exp(-0.5 * np.arange(12))
    flat = np.concatenate([fall, np.full(18, fall[-1])])
    assert analysis.plateau(flat, 30) in range(10, 15)
    assert analysis.plateau(np.exp(-0.5 * np.arange(30)), 30) is None
    assert analysis.plateau(np.ones(30), 30) is None  # it did not fall at first
    assert analysis.plateau(flat, 12) is None  # the plateau would begin after the rate falls


def test_distances_and_steps_read_a_row():
    matrix = np.arange(9.0).reshape(3, 3)
    row = pd.Series({"distance_canvas": matrix.ravel().tolist()})
    assert (analysis.distances(row) == matrix).all()
    assert analysis.steps(matrix).tolist() == [1, 5]
    assert analysis.settled(np.arange(30.0), 20) == pytest.approx(np.mean([14, 15, 16, 17, 18]))


def test_means_have_the_interval_and_the_p_of_students_t():
    found = analysis.mean_above([1.0, 2.0, 3.0, np.nan])
    assert found["n"] == 3
    assert (found["low"], found["high"]) == pytest.approx((2 - 4.3027 / np.sqrt(3), 2 + 4.3027 / np.sqrt(3)), abs=1e-3)
    assert found["p"] == pytest.approx(0.0371, abs=1e-3)
    assert np.isnan(analysis.mean_above([1.0])["low"])
    assert analysis.mean_above([0.0, 0.0])["p"] == 1


def test_paired_differences_stay_within_their_unit():
    rows = pd.DataFrame({"seed": [0, 1, 0, 1, 0], "m": list("aabbb"), "x": [1.0, 2, 5, 7, 7]})
    assert analysis.paired(rows, "x", {"m": "b"}, {"m": "a"}, ["seed"]).tolist() == [5, 5]


def test_long_rows_repeat_their_keys():
    rows = pd.DataFrame({"seed": [0, 1], "v": [[1, 2], [3]], "w": [["a", "b"], ["c"]]})
    found = analysis.long(rows, ["v", "w"], ["seed"])
    assert found.to_dict("list") == {"v": [1, 2, 3], "w": ["a", "b", "c"], "seed": [0, 0, 1]}


def test_shares_follow_sizes_in_either_direction():
    assert analysis.follows([0.1, 0.2, 0.3], [9, 5, 1], [1, 1, 1]) == pytest.approx(1)
    assert analysis.follows([0.2, 0.2, 0.2], [9, 5, 1]) == 0


def test_the_measure_that_orders_losses_wins_within_its_stratum():
    random = np.random.default_rng(0)
    rows = []
    for seed in range(12):
        for ratio in (0.1, 0.5):
            for loss in random.permutation(5):
                rows.append(
                    {
                        "seed": seed,
                        "kind": "nodes",
                        "ratio": ratio,
                        "loss": loss + 10 * ratio,
                        "maps": loss,
                        "codes": random.random() + ratio,
                        "decision": -loss,
                    }
                )
    found = analysis.explains(pd.DataFrame(rows), seed=0)
    assert found["maps"] > 0.8
    assert found["decision"] < -0.8
    assert abs(found["codes"]) < 0.4
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["p"] < 0.01


def test_variants_of_the_detector_that_never_fire_are_nan():
    row = pd.Series(
        {f"distance_{p}": (np.ones((8, 8)) - np.eye(8)).ravel() for p in ("canvas", "images", "noise", "units")}
    )
    assert all(np.isnan(value) for value in analysis.early_birds(row).values())


def test_pictures_draw_lines_boundary_and_regions():
    figure, axes = plt.subplots(1, 2)
    row = pd.Series(
        {"lines": [[0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 2, 3]], "boundary": [[0, 0, 1, 0]], "half": [2.0], "title": ["t"]}
    )
    analysis.draw_panel(axes[0], row, 0)
    assert len(axes[0].collections) == 3
    assert axes[0].get_xlim() == (-2, 2)
    square = {
        "corners": [0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1],
        "count": [3, 3],
        "winner": [0, 1],
        "boundary": [0, 0, 1, 1],
    }
    analysis.draw_slice(axes[1], pd.Series(square), "slice")
    assert len(axes[1].collections[0].get_paths()) == 2
    analysis.legend(figure, {"a": analysis.method_style("merged")})
    assert analysis.arm_colour("early random") == analysis.method_style("random")["color"]
    assert analysis.arm_colour("dense") == "k"
    plt.close(figure)


def test_a_frame_of_the_film_shows_the_loss_until_its_epoch():
    panel = {"lines": [[0.0, 0, 1, 1, 0, 0]], "boundary": [[0.0, 1, 1, 0]], "half": [1.0], "title": ["epoch 2"]}
    figure = analysis.film_frame(pd.Series(panel | {"loss": [3.0, 2.0, 1.0]}), 0, 2)
    above, below = figure.axes
    assert above.get_title() == "epoch 2"
    assert below.lines[0].get_xydata().tolist() == [[1, 3], [2, 2]]
