"""Which networks, layers and images paper 2 looks at: lists of specs from the names in a profile's parameters.

Which kernels a layer is tried with in paper 2: truncations on a grid, controls of equal error, forms of equal size.

Each function yields pairs of labels (`method` and what else tells the entry apart) and a kernel of the layer's shape.

The trials of paper 2 on single layers: spectra, truncations, controls, forms at equal parameters, latency.

Specs hold the spec of a dense network (`dense_networks.baseline_specs`) beside what is done to it. What a layer's
kernels do is a row of lists of one length, an entry a kernel: the first is the dense one, `analysis.points` makes a
table of them.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib import baselines as dense_networks
from lib import models, training
from lib.baselines import dense_spec
from lib.data import Data, Split
from lib.study import Study, generator
from lib.truncation import cuts, measures, sweep
from lib.truncation.cuts import MODES, applicable_cuts, cut_svd, spectrum, weights
from lib.truncation.forms import cp, decompose, layers, macs, parameters, ranks_at, ranks_within

LARGER = {"dataset": "digits16", "width": 0.25}  # how networks for larger images are trained on digits


def dense_specs(
    names: Iterable[str], known: Sequence[dict], enlarged: Sequence[str] = (), seeds: int = 1
) -> list[dict]:
    """Specs of dense networks: one of each checkpoint ("network/dataset"), `seeds` of each that is trained here.

    Args:
        known: baselines of the profile, among which `dense_networks.find_baseline` looks.
        enlarged: names that are trained on digits of 16 pixels instead, as LARGER says and otherwise like the others.
    """
    specs: list[dict] = []
    for name in names:
        if name in enlarged:
            specs += [known[0] | LARGER | {"network": name, "seed": seed} for seed in range(seeds)]
            continue
        first = dense_networks.find_baseline(name, known)
        times = 1 if first["source"] == "public" else seeds
        specs += [first, *(dense_networks.find_baseline(name, known, seed) for seed in range(1, times))]
    return specs


def layer_specs(dense: Iterable[dict], step: int = 1, **options) -> list[dict]:
    """A spec for every `step`-th layer before the head of each dense network, with the options of a trial."""
    return [
        spec | {"layer": layer} | options
        for spec in dense
        for layer in sweep.layer_names(dense_networks.untrained(spec))[::step]
    ]


def report_specs(dense: Iterable[dict], chosen: pd.DataFrame, **options) -> list[dict]:
    """A spec for every layer of each dense network that truncates it to its chosen ranks, and to nothing else.

    chosen: `truncation_tolerance.lowest_ranks` of these networks.
    """
    specs = []
    for spec in dense:
        for layer, one in of_network(chosen, spec).groupby("layer", sort=False):
            ranks = {"layer": layer, "cuts": one["cut"].tolist(), "ranks": one["rank"].tolist()}
            specs.append(spec | ranks | options)
    return specs


def of_network(rows: pd.DataFrame, spec: dict) -> pd.DataFrame:
    """The named rows (`truncation_analysis.named`) of one dense network."""
    same = (rows["network"] == spec["network"]) & (rows["dataset"] == spec["dataset"])
    return rows[same & (rows["seed"] == spec.get("seed", 0))]


Entry = tuple[dict, Tensor]
MOMENT_IMAGES = 200  # training images behind the patches' second moment
SINGLE = ("OUT", "IN", "OUT.IN", "OUT.KH", "OUT.KW")  # cuts with enough ranks for the controls


def truncated_kernels(kernel: Tensor, spec: dict, **_) -> Iterable[Entry]:
    """Every applicable cut at every rank of a grid, pairs of single-mode cuts at equal error on both, and no kernel.

    spec: `shares` of the number of singular values, to which rank 1 is added; `joint_errors`. Or, to read chosen
    truncations on other images: `cuts` and `ranks`, lists of one length, and nothing else is truncated.
    """
    if "ranks" in spec:
        for cut, rank in zip(spec["cuts"], spec["ranks"], strict=True):
            yield {"method": "cut", "cut": cut, "rank": rank}, measures.truncate(kernel, cut, rank)
        return
    yield {"method": "zero"}, cuts.zeroed(kernel)
    found = {cut: cut_svd(kernel, cut, gram=kernel.is_cuda) for cut in applicable_cuts(kernel.shape)}
    for cut, svd in found.items():
        for rank in rank_grid(len(svd.values), spec["shares"]):
            yield {"method": "cut", "cut": cut, "rank": rank}, svd.kernel(rank).to(kernel)
    for pair in measures.JOINT2:
        for error in spec["joint_errors"] if set(pair) <= found.keys() else ():
            ranks = {cut: found[cut].rank_at(error, "relative_error") for cut in pair}
            labels = {"method": "joint2", "cut": "+".join(pair), "target": error}
            yield labels, measures.truncate_jointly(kernel, ranks)


def rank_grid(largest: int, shares: Iterable[float]) -> list[int]:
    """Ranks 1 and at the shares of the largest one, ascending, without the largest, which truncates nothing."""
    ranks = {1} | {max(1, round(share * largest)) for share in shares}
    return sorted(ranks - set(range(largest, max(ranks) + 1)))


def control_kernels(kernel: Tensor, spec: dict, *, model: nn.Module, dataset: Data) -> Iterable[Entry]:
    """Graded truncations and every control at the relative errors `errors` of a spec, and outputs kept at equal rank.

    Noise, shrinking and pruning know no cut. A random subspace has the rank of the truncation beside it and is graded
    to the same error; the smallest singular values are matched through the rank alone.
    """
    stream = generator(spec.get("seed", 0), "controls", spec["layer"])
    for error in spec["errors"]:
        for draw in (0, 1):
            yield {"method": "noise", "target": error, "draw": draw}, cuts.perturbed(kernel, error, stream)
        yield {"method": "shrunk", "target": error}, cuts.shrunk(kernel, error)
        yield {"method": "pruned", "target": error}, cuts.pruned(kernel, error)
    for cut in applicable_cuts(kernel.shape):
        svd = cut_svd(kernel, cut, gram=kernel.is_cuda)
        losses = svd.losses()["relative_error"]
        for error in spec["errors"]:
            if losses[0] < error:
                continue  # even rank 1 loses less: this error cannot be reached on this cut
            rank = int((losses >= error).sum())
            labels = {"cut": cut, "rank": rank, "target": error}
            yield {"method": "graded", **labels}, measures.graded(kernel, svd.kernel(rank), error)
            if cut not in SINGLE:
                continue
            for side in ("short", "long"):
                random = cuts.projected_at_random(kernel, cut, rank, stream, side)
                if measures.relative_error(kernel, random) >= error:
                    yield {"method": f"random {side}", **labels}, measures.graded(kernel, random, error)
            yield {"method": "smallest", **labels}, cuts.smallest_kept(kernel, cut, rank)
    moment = layer_moment(model, spec["layer"], dataset)
    if moment is not None:
        for rank in rank_grid(min(len(kernel), kernel[0].numel()), (0.125, 0.25, 0.5)):
            labels = {"cut": "OUT", "rank": rank}
            yield {"method": "plain", **labels}, measures.truncate(kernel, "OUT", rank)
            yield {"method": "outputs", **labels}, measures.truncate_outputs(kernel, rank, moment)


def layer_moment(model: nn.Module, name: str, dataset: Data) -> Tensor | None:
    """`truncation.patch_moment` of what a convolution reads on training images; None for other or grouped layers."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return None
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    split = Split(dataset.train.images[:MOMENT_IMAGES], dataset.train.labels[:MOMENT_IMAGES])
    try:
        for _ in training.logits(model, split, dataset, device=str(next(model.parameters()).device)):
            pass
    finally:
        hook.remove()
    return measures.patch_moment(layer, torch.cat(seen).cpu()).to(layer.weight.device)


def form_kernels(kernel: Tensor, spec: dict, **_) -> Iterable[Entry]:
    """Every form that fits in a share of the dense parameters, for the `budgets` of a spec; CP from `starts` starts.

    `target` is the share. For tensor trains `cut` names the order of the modes. "as cp" is every cut graded to the
    error of the best CP kernel.
    """
    shape = kernel.shape
    for budget in spec["budgets"]:
        within = budget * kernel.numel()
        for cut in applicable_cuts(shape):
            if parameters(shape, cut, 1) <= within:
                rank = ranks_within(shape, cut, within)
                labels = {"method": "cut", "cut": cut, "rank": rank, "target": budget}
                yield labels, measures.truncate(kernel, cut, rank)
        for form in ("tucker2", "tucker"):
            if parameters(shape, form, ranks_at(shape, form, 0)) <= within:
                ranks = ranks_within(shape, form, within)
                yield {"method": form, "target": budget}, measures.approximate(kernel, form, ranks)
        for order in itertools.permutations(MODES):
            if parameters(shape, "tt", (1, 1, 1), order) <= within:
                labels = {"method": "tt", "cut": " ".join(order), "target": budget}
                yield labels, measures.approximate(kernel, "tt", ranks_within(shape, "tt", within, order), order)
        if parameters(shape, "cp", 1) > within:
            continue
        fits = [
            cp(kernel, ranks_within(shape, "cp", within), generator(draw, "cp", spec["layer"]), 1, spec["iterations"])
            for draw in range(spec["starts"])
        ]
        for draw, fit in enumerate(fits):
            method = "cp" if fit.converged else "cp, not converged"
            labels = {"method": method, "rank": len(fit.weights), "target": budget, "draw": draw}
            yield labels, fit.kernel().to(kernel)
        error = min(fit.relative_error for fit in fits)
        for cut in applicable_cuts(shape):
            svd = cut_svd(kernel, cut, gram=kernel.is_cuda)
            losses = svd.losses()["relative_error"]
            if losses[0] >= error:
                further = svd.kernel(int((losses >= error).sum())).to(kernel)
                labels = {"method": "as cp", "cut": cut, "target": budget}
                yield labels, measures.graded(kernel, further, error)


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
    noise = [cuts.gaussian_like(kernel, stream) for _ in range(RANDOM_DRAWS)]
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
        "relative_error": [measures.relative_error(kernel, one) for one in kernels],
        "norm_loss": [measures.norm_loss(kernel, one) for one in kernels],
        "effective_norm_loss": [measures.effective_norm_loss(kernel, one, usage) for one in kernels],
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
    return measures.tap_usage(layer, size) if isinstance(layer, nn.Conv2d) else torch.ones(1, 1, dtype=torch.float64)
