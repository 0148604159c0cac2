"""The trials of paper 2 on single layers: spectra, truncations, controls, forms at equal parameters, latency.

Specs hold the spec of a dense network (`dense_networks.baseline_specs`) beside what is done to it. What a layer's
kernels do is a row of lists of one length, an entry a kernel: the first is the dense one, `analysis.points` makes a
table of them.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import controls, dense_networks, models, sweep, training, truncation
from lib.cp import cp
from lib.cuts import applicable_cuts, spectrum, weights
from lib.data import Data, Split
from lib.decomposition import decompose
from lib.dense_networks import dense_spec
from lib.factorisation import layers, macs, ranks_at
from lib.seeds import generator
from lib.study import Study
from lib.truncation_kernels import Entry, control_kernels, form_kernels, truncated_kernels

STUDY = "02_tensor_truncation"
RANDOM_DRAWS = 20  # random kernels behind each null spectrum


def spectra(folder: Path, baselines: Path) -> Study:
    """The study of a layer's spectra across its cuts; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.spectra", partial(measure_spectra, baselines=baselines), version=1, folder=folder)


def truncations(folder: Path, baselines: Path) -> Study:
    """The study of single layers truncated along every applicable cut, and along two at once."""
    trial = partial(truncate_layer, entries=truncated_kernels, baselines=baselines)
    return Study(f"{STUDY}.truncations", trial, version=1, folder=folder)


def controlled(folder: Path, baselines: Path) -> Study:
    """The study of what else loses as much: graded truncations beside their controls, at equal relative error."""
    trial = partial(truncate_layer, entries=control_kernels, baselines=baselines)
    return Study(f"{STUDY}.controls", trial, version=1, folder=folder)


def forms(folder: Path, baselines: Path) -> Study:
    """The study of single layers in every form at equal numbers of parameters."""
    trial = partial(truncate_layer, entries=form_kernels, baselines=baselines)
    return Study(f"{STUDY}.forms", trial, version=1, folder=folder)


def latencies(folder: Path) -> Study:
    """The study of the time that a factorised layer takes."""
    return Study(f"{STUDY}.latencies", measure_latency, version=1, folder=folder)


def part(dataset: Data, spec: dict) -> Split:
    """The images that a spec's `part` names, at most `images` of them.

    "selection" and "report" are the validation and the test images; for a public checkpoint, whose authors trained on
    all training images, every other test image instead, so that no image of either has been trained on.
    """
    if spec["part"] not in ("selection", "report"):
        raise ValueError(f"A part is selection or report, not {spec['part']!r}: choose one.")
    selection = spec["part"] == "selection"
    if spec["source"] == "public":
        chosen = slice(0 if selection else 1, None, 2)
        split = Split(dataset.test.images[chosen], dataset.test.labels[chosen])
    else:
        split = dataset.validation if selection else dataset.test
    return Split(split.images[: spec["images"]], split.labels[: spec["images"]])


def measure_spectra(spec: dict, device: str, weights_path: Path, *, baselines: Path) -> dict:
    """The trial of `spectra`.

    Args:
        spec: a dense network and `layer`.

    Returns: the kernel's `shape`, `map` (side of the map that it reads, pixels), `usage` (mean share of positions at
    which a tap reads a pixel); for every cut its weights p `weights_<cut>`, and their mean `random_<cut>` over Gaussian
    kernels of the same shape; by applicable cut `entropy` (nats), `random_entropy`, `random_entropy_sd` and
    `random_entropy_lowest`, `half_error` (relative error at half the ranks) and `random_half_error`.
    """
    model, dataset = dense_networks.baseline(dense_spec(spec), baselines, device)
    layer = model.get_submodule(spec["layer"])
    kernel = sweep.kernel(layer)
    values = partial(spectrum, gram=kernel.is_cuda)
    size = sweep.input_sizes(model, (1, dataset.channels, dataset.size, dataset.size))[spec["layer"]]
    usage = _usage(layer, size)
    row = {"shape": list(kernel.shape), "map": size[0], "usage": usage.mean().item(), "norm": kernel.norm().item()}
    row |= {name: [] for name in ("cut", "entropy", "random_entropy", "random_entropy_sd", "random_entropy_lowest")}
    row |= {"half_error": [], "random_half_error": []}
    stream = generator(spec.get("seed", 0), "random kernels", spec["layer"])
    noise = [controls.gaussian_like(kernel, stream) for _ in range(RANDOM_DRAWS)]
    for cut in applicable_cuts(kernel.shape):
        real, drawn = weights(values(kernel, cut)), torch.stack([weights(values(one, cut)) for one in noise])
        entropies = torch.special.entr(drawn).sum(1)
        row |= {f"weights_{cut}": real, f"random_{cut}": drawn.mean(0)}
        found = (cut, torch.special.entr(real).sum(), entropies.mean(), entropies.std(), entropies.min())
        half = len(real) // 2 or 1
        found += (real[half:].sum().sqrt(), drawn[:, half:].sum(1).sqrt().mean())
        names = "cut entropy random_entropy random_entropy_sd random_entropy_lowest half_error random_half_error"
        for name, value in zip(names.split(), found, strict=True):
            row[name].append(value if isinstance(value, str) else value.item())
    return row


def truncate_layer(
    spec: dict, device: str, weights_path: Path, *, entries: Callable[..., Iterable[Entry]], baselines: Path
) -> dict:
    """The trial of `truncations`, `controlled` and `forms`: one layer with each of many kernels, nothing else changed.

    Args:
        spec: a dense network, `layer`, `part`, `images`, `batch`, and what `entries` reads from it.

    Returns: lists, an entry a kernel: `method`, `cut`, `rank`, `target` (the error or share aimed at), `draw`;
    `relative_error`, `norm_loss`, `effective_norm_loss`; `wrong` images, of them in even places `wrong_even`; `lost`
    and `gained` against the dense kernel; `loss` and `kl` (nats). Also `n`, and the kernel's `shape`.
    """
    model, dataset = dense_networks.baseline(dense_spec(spec), baselines, device)
    layer = model.get_submodule(spec["layer"])
    kernel = sweep.kernel(layer)
    size = sweep.input_sizes(model, (1, dataset.channels, dataset.size, dataset.size))[spec["layer"]]
    usage = _usage(layer, size)
    listed = [({"method": "dense"}, kernel), *entries(kernel, spec, model=model, dataset=dataset)]
    kernels = [one for _, one in listed]
    found = sweep.compare(model, spec["layer"], kernels, part(dataset, spec), dataset, spec["batch"], device)
    wrong = found["wrong"]
    blank = {"cut": "", "rank": 0, "target": 0.0, "draw": 0}
    row = {name: [(blank | labels)[name] for labels, _ in listed] for name in ("method", *blank)}
    row |= {
        "relative_error": [truncation.relative_error(kernel, one) for one in kernels],
        "norm_loss": [truncation.norm_loss(kernel, one) for one in kernels],
        "effective_norm_loss": [truncation.effective_norm_loss(kernel, one, usage) for one in kernels],
        "wrong": wrong.sum(1),
        "wrong_even": wrong[:, ::2].sum(1),
        "lost": (wrong & ~wrong[0]).sum(1),
        "gained": (~wrong & wrong[0]).sum(1),
        "loss": found["loss"],
        "kl": found["kl"],
    }
    return row | {"n": wrong.shape[1], "shape": list(kernel.shape)}


def measure_latency(spec: dict, device: str, weights_path: Path) -> dict:
    """The trial of `latencies`; it is timed, so it must run alone.

    Args:
        spec: `shape` of a kernel (OUT, IN, KH, KW), `map` (side, pixels), `batch`, `form` ("dense" or one of
            `decomposition.RANKS`) and `share` of the dense MACs that the ranks may cost at most.

    Returns: `parameters`, `macs` of one image, `ranks`, and the median milliseconds of one pass; zeros if no rank fits.
    """
    outputs, inputs, *window = spec["shape"]
    conv = nn.Conv2d(inputs, outputs, window, padding=window[0] // 2, bias=False, device="meta").to_empty(device="cpu")
    torch.nn.init.normal_(conv.weight, generator=generator(0, "latency"))
    image, shape, form = (spec["map"], spec["map"]), conv.weight.shape, spec["form"]
    layer, rank = conv, []
    if form != "dense":
        within = spec["share"] * models.count_macs(conv, (1, inputs, *image))
        choices = [ranks_at(shape, form, step / 200) for step in range(201)]
        fitting = [choice for choice in choices if macs(conv, image, form, choice) <= within]
        if not fitting:
            return {"parameters": 0, "macs": 0, "ranks": []}
        rank = fitting[-1]
        fit = cp(conv.weight, rank, generator(0, "cp"), 1, 1) if form == "cp" else decompose(conv.weight, form, rank)
        layer = layers(conv, fit)
    row = {"parameters": models.count_parameters(layer), "macs": models.count_macs(layer, (1, inputs, *image))}
    row["made_latency_ms"] = training.latency_ms(layer, (spec["batch"], inputs, *image), device)
    return row | {"ranks": [rank] if isinstance(rank, int) else list(rank)}


def _usage(layer: nn.Module, size: tuple[int, int]) -> Tensor:
    return truncation.tap_usage(layer, size) if isinstance(layer, nn.Conv2d) else torch.ones(1, 1, dtype=torch.float64)
