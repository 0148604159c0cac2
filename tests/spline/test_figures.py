"""Figures draw what their rows hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lib.spline import figures

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
