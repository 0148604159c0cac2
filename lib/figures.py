"""The style of every figure, and saving a figure together with its numbers and its alternative text."""

import io
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure
from PIL import Image as Raster
from PIL.PngImagePlugin import PngInfo

from lib.provenance import PREFIX, write_atomically

STYLE = Path(__file__).with_name("companion.mplstyle")
PALETTE = tuple("#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split())
COLOURS = {  # one meaning, one colour, in every notebook
    "linear": PALETTE[8],
    "mlp": PALETTE[1],
    "digits_cnn": PALETTE[2],
    "vanilla_cnn": PALETTE[2],
    "resnet8": PALETTE[0],
    "resnet20": PALETTE[0],
    "resnet56": PALETTE[4],
    "vgg16": PALETTE[3],
    "alexnet": PALETTE[5],
    "alexnet-ungrouped": PALETTE[5],
    "preresnet101": PALETTE[6],
    "resnet18": PALETTE[7],
    "resnet50": PALETTE[9],
    "resnet50-imagenet": PALETTE[4],
    "vit_tiny": PALETTE[2],
    **{f"{name}-pretrained": PALETTE[place] for name, place in {"resnet50": 9, "vgg16": 3, "alexnet": 5}.items()},
    "vit_b_16-pretrained": PALETTE[2],
    "lowest": PALETTE[0],
    "highest": PALETTE[2],
    "random": PALETTE[1],
}


def colours(networks: Iterable[str]) -> dict[str, str]:
    """A colour for each network: its own of COLOURS, or, where it has none or shares it, one that is still free."""
    networks, found = list(networks), {}
    for network in networks:
        if (own := COLOURS.get(network)) and own not in found.values():
            found[network] = own
    for network in networks:
        if network not in found:
            free = [colour for colour in PALETTE if colour not in found.values()] or PALETTE
            found[network] = free[len(found) % len(free)]
    return {network: found[network] for network in networks}


NULL = {"color": "#717581", "linestyle": ":", "linewidth": 1.6}  # what no effect at all would look like


def use_style() -> None:
    """Let every figure of this process follow the companion's style sheet, and show the cells of tables whole."""
    plt.style.use(STYLE)
    pd.set_option("display.max_colwidth", None)


def save(figure: Figure, folder: Path, slug: str, numbers: pd.DataFrame, alt: str) -> Image:
    """Save a figure as SVG and PNG with the numbers behind it as CSV, and close it.

    Args:
        folder: `figures/<profile>`.
        slug: `NN_name`, the files' common name.
        numbers: one row a drawn point or bar. Columns that begin with `made_` (measured seconds, memory) go to
            `slug.timing.csv`, all others to `slug.csv`.
        alt: what a reader who cannot see the figure needs to know, one or two sentences; stored in both files.

    Returns: the PNG, to be the last expression of a cell.
    """
    if not alt.strip():
        raise ValueError(f"{slug}: a figure needs an alternative text.")
    measured = [column for column in numbers if column.startswith(PREFIX)]
    results = numbers.drop(columns=measured)
    picture, sharp = {}, {"svg": 100, "png": plt.rcParams["savefig.dpi"]}  # in an SVG only embedded images have pixels
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    # Without the salt the same figure has other ids each time. Laying it out for each file costs more than drawing.
    with plt.rc_context({"svg.hashsalt": "compression-companion", "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        for kind, metadata in {
            "svg": {"Date": None, "Title": slug, "Description": alt},
            "png": {"Software": None, "Title": slug, "Description": alt},
        }.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata, dpi=sharp[kind])
            picture[kind] = _compact(buffer.getvalue()) if kind == "svg" else _smaller(buffer)
            write_atomically(folder / f"{slug}.{kind}", picture[kind])
    write_atomically(folder / f"{slug}.csv", results.to_csv(index=False, lineterminator="\n").encode())
    if measured:
        write_atomically(folder / f"{slug}.timing.csv", numbers.to_csv(index=False, lineterminator="\n").encode())
    plt.close(figure)
    return Image(picture["png"], alt=alt, width=int(figure.get_figwidth() * 100))


def _compact(svg: bytes) -> bytes:
    """An SVG whose lines are not indented and whose coordinates have two decimals, a hundredth of a point."""
    short = partial(re.compile(rb"(\.\d\d)\d+").sub, rb"\1")
    return re.sub(rb'\b(?:d|x|y)="[^"]*"', lambda found: short(found[0]), re.sub(rb"\n +", b"\n", svg))


def _smaller(png: io.BytesIO) -> bytes:
    """A PNG with its texts in 256 colours: a third of the size, and figures are committed twice, in notebooks too."""
    picture, texts, buffer = Raster.open(png), PngInfo(), io.BytesIO()
    for key, text in picture.text.items():
        texts.add_itxt(key, text)
    picture.convert("RGB").quantize(256, dither=Raster.Dither.NONE).save(buffer, "png", pnginfo=texts, optimize=True)
    return buffer.getvalue()


def animate(frames: Iterable[Figure], folder: Path, slug: str, alt: str, milliseconds: int = 120) -> Image:
    """Save figures of one size as an animated GIF that repeats, and close each; the last one stays a second longer.

    Args:
        folder, slug, alt: as in `save`; the numbers are those of the still figure of the same rows.
        milliseconds: how long a frame is shown.

    Returns: the GIF, to be the last expression of a cell.
    """
    if not alt.strip():
        raise ValueError(f"{slug}: an animation needs an alternative text.")
    pictures = []
    for figure in frames:
        figure.canvas.draw()
        pixels = Raster.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        pictures.append(pixels.quantize(24, dither=Raster.Dither.NONE))
        plt.close(figure)
    buffer, shown = io.BytesIO(), [milliseconds] * (len(pictures) - 1) + [milliseconds + 1000]
    first, *rest = pictures
    first.save(buffer, "gif", save_all=True, append_images=rest, duration=shown, loop=0, comment=alt.encode())
    write_atomically(folder / f"{slug}.gif", buffer.getvalue())
    return Image(buffer.getvalue(), format="gif", alt=alt, width=first.width)
