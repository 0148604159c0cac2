"""A figure is saved with its numbers and its alternative text, the same bytes twice; figures of the dense networks."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lib import figures
from lib.parameters import NETWORKS

PAIR = ["linear", "mlp"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def draw(line=(3, 4)):
    figures.use_style()
    figure, axis = plt.subplots()
    axis.plot([1, 2], line, label="n = 2")
    axis.set(xlabel="epoch", ylabel="accuracy (%)")
    return figure


def test_settings_of_the_reader_change_no_figure():
    figures.use_style()
    expected = dict(plt.rcParams)
    plt.rcParams.update({"axes.labelpad": 40, "lines.dash_capstyle": "round", "image.cmap": "hot"})
    figures.use_style()
    assert dict(plt.rcParams) == expected


def test_a_figure_is_saved_twice_with_equal_bytes(tmp_path):
    numbers = pd.DataFrame({"epoch": [1, 2], "accuracy": [3.0, 4.0]})
    for folder in ("a", "b"):
        figures.save(draw(), tmp_path / folder, "00_t", numbers, "A rising line.")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"00_t.svg", "00_t.png", "00_t.csv"}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_pdf_is_saved_on_request_with_its_texts_and_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("FIGURES", "pdf")
    for folder in ("a", "b"):
        shown = figures.save(draw(), tmp_path / folder, "00_t", pd.DataFrame(), "A rising line.")
    pdf = (tmp_path / "a" / "00_t.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"A rising line." in pdf and pdf == (tmp_path / "b" / "00_t.pdf").read_bytes()
    assert shown.data.startswith(b"\x89PNG") and (tmp_path / "a" / "00_t.svg").exists()


def test_the_alternative_text_is_in_both_pictures_and_on_the_page(tmp_path):
    shown = figures.save(draw(), tmp_path, "00_t", pd.DataFrame(), "A rising line.")
    assert "A rising line." in (tmp_path / "00_t.svg").read_text()
    assert Image.open(tmp_path / "00_t.png").text["Description"] == "A rising line."
    assert shown.alt == "A rising line."


def test_coordinates_of_an_svg_have_one_decimal_and_its_texts_keep_theirs(tmp_path):
    figure, axis = plt.subplots()
    axis.plot([0, 1 / 3, 2 / 3], [0, 1 / 7, 1 / 9])
    axis.set_title("limit 0.00512")
    figures.save(figure, tmp_path, "a", pd.DataFrame(), "A line.")
    svg = (tmp_path / "a.svg").read_text()
    assert "limit 0.00512" in svg
    coordinates = " ".join(re.findall(r'\b(?:d|x|y)="([^"]*)"', svg))
    assert re.search(r"\d\.\d", coordinates) and not re.search(r"\.\d{2}", coordinates)


def test_a_path_of_an_svg_goes_through_the_same_points_in_fewer_bytes():
    path = b"M 10.0 -0.5\nL 10.3 20.5\nQ 11.0 20.5 9.7 19.9\nC 1.0 2.0 3.0 4.0 5.5 6.0\nz\nM 0.0 100.0\nL 99.9 -0.4\n"
    assert figures._relative(path) == b"M10-.5l.3 21q.7 0-.6-.6c-8.7-17.9-6.7-15.9-4.2-13.9zM0 100l99.9-100.4"


def test_photographs_keep_more_colours_than_lines(tmp_path):
    noise = np.random.default_rng(0).random((32, 32, 3))
    for slug, colours in (("photographs", 256), ("lines", 64)):
        figure, axis = plt.subplots()
        axis.imshow(noise) if slug == "photographs" else axis.plot(noise[0, :8])
        figures.save(figure, tmp_path, slug, pd.DataFrame({"x": [1]}), "Colours.")
        few = len(Image.open(tmp_path / f"{slug}.png").convert("RGB").getcolors(10**6))
        assert few <= colours and (few > 64) == (slug == "photographs")


def test_colours_that_are_rare_in_a_figure_keep_their_tone():
    rare = [(0x22, 0xAA, 0x33), (0xAA, 0x22, 0x33), (0x88, 0x33, 0xAA)]
    shades = np.full((300, 300, 3), 255, dtype=np.uint8)
    shades[:170] = 80, 90, 200
    shades[:170, :, 2] = np.linspace(170, 230, 300)
    shades[:170, :, 0] = np.linspace(60, 120, 170)[:, None]
    for place, colour in enumerate(rare):
        shades[250:255, 20 * place : 20 * place + 5] = colour
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "png")
    kept = np.asarray(Image.open(io.BytesIO(figures._smaller(buffer.getvalue()))).convert("RGB")).astype(int)
    assert len(np.unique(kept.reshape(-1, 3), axis=0)) <= 64
    for place, colour in enumerate(rare):
        assert np.abs(kept[252, 20 * place + 2] - colour).max() < 20


def test_each_style_of_an_svg_is_written_once_and_keeps_its_elements(tmp_path):
    figure, axis = plt.subplots()
    for height in (0, 1, 2):
        axis.plot([0, 1], [height, height], "o", color="#c0ffee")
    axis.plot([0, 1], [3, 3], color="#facade")
    figures.save(figure, tmp_path, "a", pd.DataFrame(), "Lines.")
    svg = (tmp_path / "a.svg").read_text()
    styles = dict(re.findall(r"^\.(s\d+)\{([^}]*)\}", svg, re.MULTILINE))
    used = re.findall(r'class="(s\d+)"', svg)
    assert "style=" not in svg and set(used) == set(styles) and len(set(styles.values())) == len(styles)
    # Three lines of markers, each with its style, and the shape that they repeat.
    assert [sum("#facade" in styles[name] for name in used), sum("#c0ffee" in styles[name] for name in used)] == [1, 4]


def test_a_group_of_an_svg_stays_if_it_does_something_and_only_what_is_referred_to_has_a_name():
    svg = b"""<g id="axes_1">
<g id="line2d_1" clip-path="url(#p0123)">
<defs><path id="m0123" class="s1"/></defs>
<use xlink:href="#m0123" x="1" class="s1"/>
<use xlink:href="#m0123" x="2" class="s1"/>
</g>
<g id="line2d_2"/>
<clipPath id="p0123"/>
</g>"""
    short = b"""<g clip-path="url(#i0)">
<defs><path id="i1" class="s1"/></defs>
<use xlink:href="#i1" x="1" class="s1"/>
<use xlink:href="#i1" x="2" class="s1"/>
</g>
<clipPath id="i0"/>"""
    assert figures._grouped(figures._renamed(svg)) == short
    markers = b'<g clip-path="url(#i0)">\n<use x="1" class="s1"/>\n<use x="2" class="s1"/>\n</g>'
    assert figures._grouped(markers) == b'<g clip-path="url(#i0)" class="s1">\n<use x="1"/>\n<use x="2"/>\n</g>'
    mixed = markers.replace(b'2" class="s1"', b'2" class="s2"')
    assert figures._grouped(mixed) == mixed


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


def test_numbers_of_a_figure_have_nine_digits(tmp_path):
    figures.save(
        draw(), tmp_path, "00_t", pd.DataFrame({"macs": [231286784.0, None], "share": [1 / 3, 1.0]}), "A line."
    )
    assert (tmp_path / "00_t.csv").read_text() == "macs,share\n231286784,0.333333333\n,1\n"


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
    assert saved.n_frames == 3 and saved.info["comment"] == b"A line that turns."
    assert shown.data.startswith('<img src="data:image/gif;base64,') and 'alt="A line that turns."' in shown.data
    assert (tmp_path / "a" / "00_t.gif").read_bytes() == (tmp_path / "b" / "00_t.gif").read_bytes()
    assert not plt.get_fignums()


def curve_rows():
    rows = [
        {"network": name, "labels": labels, "seed": seed}
        | {"curve_validation_accuracy": [0.1 + seed / 10, 0.5], "curve_train_loss": [2.0, 1.0]}
        for name, labels, seeds in (("linear", "true", 2), ("mlp", "true", 3), ("mlp", "shuffled", 4))
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_curves_have_a_line_a_seed_and_one_for_each_mean():
    figure, numbers = figures.learning_curves(curve_rows(), PAIR)
    assert [len(axis.lines) for axis in figure.axes] == [2 + 1 + 3 + 1 + 1] * 2
    assert len(numbers) == 9 * 2 and numbers["epoch"].tolist()[:2] == [1, 2]
    one = numbers[(numbers["seed"] == 1) & (numbers["network"] == "linear")]
    assert one["validation accuracy (%)"].tolist() == pytest.approx([20, 50])


def test_accuracy_draws_each_seed_and_names_its_interval():
    trained = pd.DataFrame({"network": ["linear"] * 3 + ["mlp"] * 3, "accuracy": [1.0, 2, 3, 4, 5, 6]})
    summary = pd.DataFrame({"mean": [2.0, 5], "low": [1.0, 4], "high": [3.0, 6], "n": [3, 3]}, index=PAIR)
    figure = figures.accuracy(trained, summary, "a title")
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in dots] == [[1, 2, 3], [4, 5, 6]]


def test_latency_has_a_point_a_row_and_batch_and_a_line_through_the_largest_network():
    costs = {"dataset": "d", "network": PAIR, "parameters": [1, 2], "macs": [100, 1000]}
    costs = pd.DataFrame(costs | {"made_latency_1_ms": [1.0, 2.0], "made_latency_128_ms": [12.8, 128.0]})
    figure, numbers = figures.latency(costs, "a device")
    assert numbers["made_ms_per_image"].tolist() == pytest.approx([1, 2, 0.1, 1])
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [
        pytest.approx([0.2, 2]),
        pytest.approx([0.1, 1]),
    ]
    assert "a device" in figure.axes[0].get_title(loc="left") + figure.axes[0].get_title()


def test_augmentation_shows_every_draw_of_every_class():
    random = np.random.default_rng(0).random((4, 5, 1, 8, 8))
    figure, numbers = figures.augmentation(random)
    assert len(figure.axes) == 20 and numbers["mean of the original"].tolist() == pytest.approx(
        random[0].mean((1, 2, 3))
    )
