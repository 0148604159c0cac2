"""The style of every figure, saving one with its numbers and alternative text; the figures of the dense networks."""

import html
import io
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Image
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image as Raster
from PIL.PngImagePlugin import PngInfo

from lib.parameters import picture_formats
from lib.provenance import PREFIX, write_atomically
from lib.stats import mean_interval

PALETTE = tuple("#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split())
# Readable at half size; the palette, petroff10, is safe for colour-blind readers.
STYLE = {
    "figure.figsize": (7.0, 4.0),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 125,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and edited
    "pdf.fonttype": 42,  # likewise
}
# One meaning, one colour, in every notebook: a line for each colour of the palette.
MEANINGS = (
    "resnet8 resnet20 lowest",
    "mlp random",
    "digits_cnn vanilla_cnn vit_tiny vit_b_16-pretrained highest",
    "vgg16 vgg16-pretrained",
    "resnet56 resnet50-imagenet",
    "alexnet alexnet-ungrouped alexnet-pretrained",
    "preresnet101",
    "resnet18",
    "linear",
    "resnet50 resnet50-pretrained",
)
COLOURS = {name: colour for colour, names in zip(PALETTE, MEANINGS, strict=True) for name in names.split()}
NULL = {"color": "#717581", "linestyle": ":", "linewidth": 1.6}  # what no effect at all would look like
PLACES = {1: "o", 128: "s"}  # images in a batch -> marker


def colours(networks: Iterable[str]) -> dict[str, str]:
    """A colour for each network: its own of COLOURS, or one that is still free if it has none or shares it."""
    networks, found = list(networks), {}
    for network in networks:
        if (own := COLOURS.get(network)) and own not in found.values():
            found[network] = own
    for network in networks:
        if network not in found:
            free = [colour for colour in PALETTE if colour not in found.values()] or PALETTE
            found[network] = free[len(found) % len(free)]
    return {network: found[network] for network in networks}


def use_style() -> None:
    """Let every figure of this process follow STYLE, and do not shorten the cells of tables."""
    plt.style.use(["default", STYLE])
    pd.set_option("display.max_colwidth", None)


def save(figure: Figure, folder: Path, slug: str, numbers: pd.DataFrame, alt: str) -> Image:
    """Save a figure as SVG and PNG with the numbers behind it as CSV, and close it; FIGURES=pdf adds a PDF.

    Args:
        figure: to be saved.
        folder: `figures/<profile>`.
        slug: `NN_name`, the files' common name.
        numbers: one row a drawn point or bar. Columns that begin with `made_` (measured seconds, memory) go to
            `slug.timing.csv`, all others to `slug.csv`.
        alt: one or two sentences for a reader who cannot see the figure; stored in every picture.

    Returns:
        The PNG, to be the last expression of a cell.

    Raises:
        ValueError: without an alternative text.
    """
    _check_alt(slug, alt)
    measured = [column for column in numbers if column.startswith(PREFIX)]
    results = numbers.drop(columns=measured)
    common = {"Title": slug, "Description": alt}
    formats = {  # in an SVG or PDF only embedded images have pixels
        "svg": ({"Date": None} | common, 100),
        "png": ({"Software": None} | common, plt.rcParams["savefig.dpi"]),
        "pdf": ({"CreationDate": None, "Title": slug, "Subject": alt}, 100),
    }
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    # Without the salt the same figure has other ids each time. Laying it out for each file costs more than drawing.
    with plt.rc_context({"svg.hashsalt": "compression-companion", "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        saved, shrink = {}, {"svg": _compact, "png": _smaller}
        for kind in picture_formats():
            metadata, dpi = formats[kind]
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata, dpi=dpi)
            saved[kind] = shrink.get(kind, bytes)(buffer.getvalue())
            write_atomically(folder / f"{slug}.{kind}", saved[kind])
    write_atomically(folder / f"{slug}.csv", _csv(results))
    if measured:
        write_atomically(folder / f"{slug}.timing.csv", _csv(numbers))
    plt.close(figure)
    return Image(saved["png"], alt=alt, width=int(figure.get_figwidth() * 100))


def _check_alt(slug: str, alt: str) -> None:
    if not alt.strip():
        raise ValueError(f"{slug} needs an alternative text: say in `alt` what it shows.")


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n", float_format="%.9g").encode()


def _compact(svg: bytes) -> bytes:
    """An SVG without indentation: coordinates to a tenth of a point, relative in paths; each style written once.

    Groups that do nothing go, names are short, and markers that share a style have it from their group.
    """
    short, styles = partial(re.compile(rb"(\.\d)\d+").sub, rb"\1"), {}

    def named(found: re.Match) -> bytes:
        return b'class="%s"' % styles.setdefault(found[1], b"s%d" % len(styles))

    svg = re.sub(rb'\b(?:d|x|y)="[^"]*"', lambda found: short(found[0]), re.sub(rb" *\n *", b"\n", svg))
    svg = re.sub(rb'\bd="([MLQCz\s\d.-]*)"', lambda found: b'd="%s"' % _relative(found[1]), svg)
    svg = re.sub(rb'\bstyle="([^"]*)"', named, svg)
    svg = re.sub(rb"(?<=data:image/png;base64,)[^\"]*", lambda found: b64encode(_smaller(b64decode(found[0]))), svg)
    svg = svg.replace(b"</style>", b"".join(b"\n.%s{%s}" % (n, s) for s, n in styles.items()) + b"</style>", 1)
    return _grouped(_renamed(svg))


def _renamed(svg: bytes) -> bytes:
    """An SVG in which only what is referred to has a name, a short one."""
    named, names = rb'( id="|xlink:href="#|url\(#)([^")]*)', {}
    for _, name in re.findall(named, re.sub(rb' id="[^"]*"', b"", svg)):
        names.setdefault(name, b"%x" % len(names))
    svg = re.sub(rb' id="([^"]*)"', lambda found: found[0] if found[1] in names else b"", svg)
    return re.sub(named, lambda found: found[1] + b"i" + names[found[2]], svg)


def _grouped(svg: bytes) -> bytes:
    """An SVG without groups that have no attribute, and with a style that all markers of a group have written there."""
    lines, kept = [], []
    for line in re.sub(rb"<g[^>]*/>\n", b"", svg).split(b"\n"):
        if line == b"</g>":
            lines += [line] * kept.pop()
        elif line.startswith(b"<g"):
            kept.append(line != b"<g>")
            lines += [line] * kept[-1]
        else:
            lines.append(line)

    def hoisted(found: re.Match) -> bytes:
        return b"%s%s>%s</g>" % (found[1], found[3], found[2].replace(found[3] + b"/>", b"/>"))

    markers = rb'(<g[^>]*)>((?:\n<use[^>]*)(?= class)( class="s\d+")/>(?:\n<use[^>]*\3/>)*\n)</g>'
    return re.sub(markers, hoisted, b"\n".join(lines))


def _relative(path: bytes) -> bytes:
    """A path of an SVG whose points are relative to the end of the command before; starts (M) stay absolute."""
    commands, here = [], np.zeros(2, dtype=int)
    for letter, numbers in re.findall(rb"([MLQCz])([^MLQCz]*)", path):
        points = np.array([round(10 * float(number)) for number in numbers.split()], dtype=int).reshape(-1, 2)
        shown = points if letter in b"Mz" else points - here
        text = " ".join(f"{number / 10:g}".replace("0.", ".", int(abs(number) < 10)) for number in shown.flat)
        commands.append((letter if letter in b"Mz" else letter.lower()) + text.replace(" -", "-").encode())
        here = points[-1] if len(points) else here
    return b"".join(commands)


def _smaller(png: bytes) -> bytes:
    """A PNG with its texts in 64 colours, or 256 if it holds photographs: notebooks hold figures once more."""
    picture, texts, buffer = Raster.open(io.BytesIO(png)), PngInfo(), io.BytesIO()
    for key, text in picture.text.items():
        texts.add_itxt(key, text)
    if picture.convert("RGBA").getextrema()[3][0] < 255:
        few = picture.convert("RGBA").quantize(256, method=Raster.Quantize.FASTOCTREE)  # the one that keeps alpha
    else:
        whole = picture.convert("RGB")
        few = whole.quantize(64, Raster.Quantize.MAXCOVERAGE, kmeans=1, dither=Raster.Dither.NONE)  # rare ones, too
        error = np.asarray(whole, dtype=int) - np.asarray(few.convert("RGB"), dtype=int)
        if np.abs(error).mean() > 1:  # grey level
            few = whole.quantize(256, dither=Raster.Dither.NONE)
    few.save(buffer, "png", pnginfo=texts, optimize=True)
    return buffer.getvalue()


def animate(frames: Iterable[Figure], folder: Path, slug: str, alt: str, milliseconds: int = 120) -> HTML:
    """Save figures of one size as an animated GIF that repeats, and close each; the last one stays a second longer.

    Each frame is shown for `milliseconds`. Folder, slug and alternative text are as in `save`; the numbers are those of
    the still figure of the same rows. The result is HTML, because exported notebooks leave out images of this format.
    """
    _check_alt(slug, alt)
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
    source = f"data:image/gif;base64,{b64encode(buffer.getvalue()).decode()}"
    return HTML(f'<img src="{source}" alt="{html.escape(alt)}" width="{first.width}">')


def augmentation(pictures: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Images of k classes and random draws of their augmentation: a figure and the numbers behind it.

    The pictures are (1 + draws, k, channels, size, size), the originals first.
    """
    draws, classes = len(pictures) - 1, len(pictures[0])
    figure, axes = plt.subplots(draws + 1, classes, figsize=(7, 3.1))
    for row, title in enumerate(["original", *(f"draw {draw + 1}" for draw in range(draws))]):
        for axis, picture in zip(axes[row], pictures[row], strict=True):
            axis.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray", interpolation="none")  # few bytes in the SVG
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center")
    numbers = {"label": range(classes), "mean of the original": pictures[0].mean(axis=(1, 2, 3))}
    return figure, pd.DataFrame(numbers)


def accuracy(trained: pd.DataFrame, summary: pd.DataFrame, title: str) -> Figure:
    """Test accuracy of each network: a dot a seed, a tick at the mean, a band for its interval; the null dotted.

    `trained` has the columns `network` and `accuracy` (%), `summary` has `mean`, `low`, `high` and `n` by network, with
    "linear" among them.
    """
    figure, axis = plt.subplots(figsize=(7.4, 3.8))
    for place, (network, colour) in enumerate(colours(summary.index).items()):
        values = trained.loc[trained["network"] == network, "accuracy"]
        mean, low, high = summary.loc[network, ["mean", "low", "high"]]
        axis.plot([low, high], [place, place], color=colour, lw=7, alpha=0.3, solid_capstyle="round")
        axis.plot(values, np.full(len(values), place), "o", color=colour, ms=6, mec="white", mew=0.6, zorder=3)
        axis.plot(mean, place, "|", color=colour, ms=22, mew=2.5)
    axis.axvline(summary.loc["linear", "mean"], **NULL, label="linear classifier (mean)")
    axis.plot([], [], "ko", ms=6, label="one seed")
    axis.plot([], [], "k|", ms=12, mew=2.5, ls="", label="mean")
    n = f"n = {int(summary['n'].min())} seeds"
    axis.plot([], [], color="k", lw=7, alpha=0.3, label=f"95 % interval of the mean\n(Student, {n})")
    axis.set(yticks=range(len(summary)), yticklabels=summary.index, xlabel="test accuracy (%)", title=title)
    axis.set_ylim(len(summary) - 0.4, -0.6)
    figure.legend(loc="outside right")
    return figure


def learning_curves(rows: pd.DataFrame, networks: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Validation accuracy and training loss by epoch: a thin line a seed, a thick one for the mean; the null dotted.

    The rows are those of `baselines.train_baseline`, with `labels` "true" or "shuffled". Returns the figure and the
    numbers behind it.
    """
    quantities = {
        "validation accuracy (%)": ("curve_validation_accuracy", 100),
        "training loss (nats)": ("curve_train_loss", 1),
    }
    curves = pd.concat(
        pd.DataFrame({name: scale * np.asarray(row[column]) for name, (column, scale) in quantities.items()})
        .rename_axis("epoch")
        .reset_index()
        .assign(network=row["network"], labels=row["labels"], seed=row["seed"])
        for _, row in rows.iterrows()
    )
    curves["epoch"] += 1
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    null = curves[curves["labels"] == "shuffled"]
    for axis, quantity in zip(axes, quantities, strict=True):
        for network, colour in colours(networks).items():
            one = curves[(curves["network"] == network) & (curves["labels"] == "true")]
            seeds = one.pivot(index="epoch", columns="seed", values=quantity)
            axis.plot(seeds, color=colour, lw=0.7, alpha=0.6)
            axis.plot(seeds.mean(axis=1), color=colour, label=f"{network} (n = {seeds.shape[1]})")
        seeds = null.pivot(index="epoch", columns="seed", values=quantity)
        label = f"{null['network'].iloc[0]}, shuffled\nlabels (n = {seeds.shape[1]})"
        axis.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=NULL["color"], alpha=0.2, lw=0)
        axis.plot(seeds.mean(axis=1), **NULL, label=label)
        axis.set(xlabel="epoch", ylabel=quantity)
    title = "thick: mean; thin: seeds;\ngrey band: their range"
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right", title=title)
    return figure, curves[["network", "labels", "seed", "epoch", *quantities]]


def precisions(pairs: pd.DataFrame, gaps: pd.DataFrame, tolerance: float) -> tuple[Figure, pd.DataFrame]:
    """Training loss by epoch in two precisions, and the gap of the final accuracies of each pair of trainings.

    The pairs are rows of `baselines.train_baseline`, with `precision` and `seed`. The gaps (points) have a row for each
    seed and a column for each set of images; `tolerance` (points) is the shaded range. Returns the figure and the
    numbers behind it.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=[1.3, 1])
    losses = pairs.set_index(["precision", "seed"])["curve_train_loss"].apply(pd.Series).T
    losses.index += 1
    for precision, colour in zip(("float32", "bfloat16"), PALETTE, strict=False):
        left.plot(losses[precision], color=colour, lw=0.7, alpha=0.6)
        left.plot(losses[precision].mean(axis=1), color=colour, label=precision)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    left.legend(title=f"thick: mean of {len(gaps)} trainings;\nthin: one training")
    right.axvspan(-tolerance, tolerance, color=NULL["color"], alpha=0.2, lw=0, label=f"within {tolerance:g} points")
    right.axvline(0, **NULL)
    for place, part in enumerate(gaps):
        low, high = mean_interval(gaps[part])
        right.plot([low, high], [place] * 2, "k", lw=7, alpha=0.3, solid_capstyle="round")
        spread = place + np.linspace(-0.25, 0.25, len(gaps))  # pairs with one gap would hide each other
        right.plot(gaps[part], spread, "ko", ms=6, mec="white", mew=0.6, zorder=3)
        right.plot(gaps[part].mean(), place, "k|", ms=30, mew=2.5)
    right.plot([], [], "ko", ms=6, label="one pair")
    right.plot([], [], "k|", ms=12, mew=2.5, ls="", label="mean")
    right.plot([], [], "k", lw=7, alpha=0.3, label="95 % interval of the mean\n(Student)")
    right.set(
        yticks=range(gaps.shape[1]), yticklabels=[f"{part} images" for part in gaps], ylim=(gaps.shape[1] - 0.4, -0.6)
    )
    right.set_xlabel("accuracy in bfloat16 minus float32 (points)")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right")
    numbers = losses.rename_axis("epoch").melt(ignore_index=False, value_name="training loss (nats)").reset_index()
    return figure, numbers.merge(gaps.add_suffix(" gap (points)"), on="seed")


def latency(costs: pd.DataFrame, device: str) -> tuple[Figure, pd.DataFrame]:
    """Measured time an image against its MACs, for single images and batches, with time proportional to MACs.

    The costs are the rows of `baselines.measure_costs`; `device` is a name for the title. Returns the figure and the
    numbers behind it.
    """
    identity = ["dataset", "network", "parameters", "macs"]
    timing = costs.melt(identity, [f"made_latency_{n}_ms" for n in PLACES], "batch", "made_latency_ms")
    timing["batch"] = timing["batch"].str.extract(r"(\d+)").astype(int)
    timing["made_ms_per_image"] = timing["made_latency_ms"] / timing["batch"]
    by_network = colours(timing["network"].unique())
    figure, axis = plt.subplots(figsize=(8.4, 4.2))
    for (batch, part), line in zip(timing.groupby("batch"), (":", "--"), strict=True):
        own = part["network"].map(by_network)
        axis.scatter(part["macs"], part["made_ms_per_image"], c=own, marker=PLACES[batch], s=42, alpha=0.7)
        axis.scatter([], [], c="k", marker=PLACES[batch], s=42, label=f"batch of {batch}")
        largest, ends = part.loc[part["macs"].idxmax()], part["macs"].agg(["min", "max"])
        style = {"color": NULL["color"], "ls": line, "lw": 1.4}
        label = f"proportional to MACs, batch of {batch},\nthrough {largest['network']}"
        axis.plot(ends, ends * largest["made_ms_per_image"] / largest["macs"], **style, label=label)
    for network, colour in by_network.items():
        axis.scatter([], [], color=colour, marker="D", s=42, label=network)
    axis.set(xscale="log", yscale="log", xlabel="MACs of one image", ylabel="milliseconds per image")
    axis.set_title(f"Time against operations, on {device}", fontsize=11)
    axis.margins(0.15, 0.12)
    figure.legend(loc="outside right", title="median of 20 passes")
    return figure, timing


def legend(figure: Figure, entries: dict[str, dict], title: str | None = None, columns: int = 0) -> None:
    """A legend of texts and line styles, black by default: beside a figure, or below it in columns."""
    handles = [Line2D([], [], label=text, **({"color": "k"} | style)) for text, style in entries.items()]
    place = "outside lower center" if columns else "outside right"
    figure.legend(handles=handles, loc=place, title=title, ncols=columns or 1)


def shades(values: Sequence[float], first: float = 0.0, last: float = 0.88) -> dict[float, tuple]:
    """A colour for each value, dark to light: evenly spaced from `first` to `last` (0 to 1) in viridis."""
    return dict(zip(values, plt.cm.viridis(np.linspace(first, last, len(values))), strict=True))
