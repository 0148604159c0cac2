"""A figure is saved with its numbers and its alternative text, the same bytes twice."""

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lib import figures
from lib.parameters import NETWORKS


def draw(line=(3, 4)):
    figures.use_style()
    figure, axis = plt.subplots()
    axis.plot([1, 2], line, label="n = 2")
    axis.set(xlabel="epoch", ylabel="accuracy (%)")
    return figure


def test_a_figure_is_saved_twice_with_equal_bytes(tmp_path):
    numbers = pd.DataFrame({"epoch": [1, 2], "accuracy": [3.0, 4.0]})
    for folder in ("a", "b"):
        figures.save(draw(), tmp_path / folder, "00_t", numbers, "A rising line.")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"00_t.svg", "00_t.png", "00_t.csv"}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_the_alternative_text_is_in_both_pictures_and_on_the_page(tmp_path):
    shown = figures.save(draw(), tmp_path, "00_t", pd.DataFrame(), "A rising line.")
    assert "A rising line." in (tmp_path / "00_t.svg").read_text()
    assert Image.open(tmp_path / "00_t.png").text["Description"] == "A rising line."
    assert shown.alt == "A rising line."


def test_coordinates_of_an_svg_have_two_decimals_and_its_texts_keep_theirs(tmp_path):
    figure, axis = plt.subplots()
    axis.plot([0, 1 / 3, 2 / 3], [0, 1 / 7, 1 / 9])
    axis.set_title("limit 0.00512")
    figures.save(figure, tmp_path, "a", pd.DataFrame(), "A line.")
    svg = (tmp_path / "a.svg").read_text()
    assert "limit 0.00512" in svg
    coordinates = " ".join(re.findall(r'\b(?:d|x|y)="([^"]*)"', svg))
    assert re.search(r"\d\.\d\d", coordinates) and not re.search(r"\.\d{3}", coordinates)


def test_a_figure_without_alternative_text_is_refused(tmp_path):
    figure = draw()
    with pytest.raises(ValueError, match="alternative text"):
        figures.save(figure, tmp_path, "00_t", pd.DataFrame(), " ")
    plt.close(figure)
    assert not list(tmp_path.iterdir())


def test_measured_columns_go_to_the_timing_table_alone(tmp_path):
    numbers = pd.DataFrame({"macs": [1, 2], "made_ms": [0.1, 0.2]})
    figures.save(draw(), tmp_path, "00_t", numbers, "Time against MACs.")
    assert list(pd.read_csv(tmp_path / "00_t.csv")) == ["macs"]
    assert list(pd.read_csv(tmp_path / "00_t.timing.csv")) == ["macs", "made_ms"]


def test_a_saved_figure_is_closed(tmp_path):
    figures.save(draw(), tmp_path, "00_t", pd.DataFrame(), "A line.")
    assert not plt.get_fignums()


def test_the_palette_is_the_style_sheets():
    figures.use_style()
    assert [to_hex(entry["color"]) for entry in plt.rcParams["axes.prop_cycle"]] == list(figures.PALETTE)


def test_each_network_of_a_figure_has_a_colour_and_no_two_the_same():
    found = figures.colours(["linear", "keras_cnn", "resnet20", "resnet8"])  # two of one colour, one of none
    assert len(set(found.values())) == 4 and found["resnet20"] == figures.COLOURS["resnet20"]
    assert len(figures.colours(NETWORKS)) == len(NETWORKS) > len(figures.PALETTE)


def test_an_animation_has_a_frame_a_figure_its_text_and_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        lines = ([1, 2], [2, 1], [1, 1])
        shown = figures.animate((draw(line) for line in lines), tmp_path / folder, "00_t", "A line that turns.")
    saved = Image.open(tmp_path / "a" / "00_t.gif")
    assert saved.n_frames == 3 and saved.info["comment"] == b"A line that turns." == shown.alt.encode()
    assert (tmp_path / "a" / "00_t.gif").read_bytes() == (tmp_path / "b" / "00_t.gif").read_bytes()
    assert not plt.get_fignums()
