"""What the pictures show is what their captions say: lines that vanish, lines that turn, a square, two bundles."""

import json
from pathlib import Path

import numpy as np
import pytest

from lib.spline import figures as pictures
from lib.store import plain


def picture(**spec) -> dict:
    row = pictures.picture(spec, "cpu", Path("unused"))
    json.dumps({name: plain(value) for name, value in row.items()})
    return row


def boundary(row: dict, place: int) -> np.ndarray:
    return np.reshape(row["boundary"][place], (-1, 2, 2))


def test_node_pruning_ends_in_an_exact_square_on_two_diagonals():
    row = picture(kind="nodes")
    assert row["regions"][-1] == 4
    assert np.abs(boundary(row, -1)).max(2) == pytest.approx(1)
    assert sorted(row["regions"], reverse=True) == row["regions"]


def test_weight_pruning_keeps_all_four_lines_and_ends_parallel_to_the_axes():
    row = picture(kind="weights")
    for place in range(4):
        lines = np.reshape(row["lines"][place], (-1, 6))
        assert set(lines[:, 5]) == {0, 1, 2, 3}
    step = np.abs(lines[:, 2:4] - lines[:, :2])
    assert step.min(1) == pytest.approx(0)


def test_two_of_eight_bundled_splines_are_left_one_of_each_bundle():
    row = picture(kind="bundles", seed=2)
    assert len(row["kept"]) == 2
    assert row["kept"][0] % 2 != row["kept"][1] % 2
    assert max(row["score"][::2]) < 0.3 < min(row["score"][1::2])


def test_film_and_pruned_panels_follow_their_epochs_and_levels():
    film = picture(kind="film", seed=0, width=6, frames=[0, 2, 3])
    assert film["title"] == ["epoch 0", "epoch 2", "epoch 3"]
    assert len(film["loss"]) == 3
    row = picture(kind="pruned", seed=0, width=6, epochs=2, levels=[4, 2], method="magnitude", tuning=1)
    assert len(row["title"]) == 5
    assert [
        len(set(np.reshape(lines, (-1, 6))[:, 5])) <= k for lines, k in zip(row["lines"], (6, 4, 2, 4, 2), strict=True)
    ] == [True] * 5


def test_the_deep_picture_has_lines_of_three_layers():
    assert set(np.reshape(picture(kind="deep", seed=2)["lines"][0], (-1, 6))[:, 4]) == {0, 1, 2}
