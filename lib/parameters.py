"""What a notebook can be asked for: plain values from its cell tagged `parameters` or from a profile's YAML file.

A profile is a folder of `runs` with one YAML file for each notebook. Whatever cannot run is refused with a sentence
before anything starts: an unknown name, a wrong type, a value out of range, two values that do not fit together. The
names of networks, data sets and methods are here and not beside their code, so that no check has to import torch.
"""

import ast
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch

import yaml

from lib.claims import rules_of
from lib.provenance import CompanionError, own_file, own_folder, own_name, root, unknown

DEPTHS = (8, 20, 32, 44, 56, 110)  # of ResNets for small images
# The forms of each network and the smallest image side (pixels) that each takes. Smaller images would leave no
# feature map, or, in the CIFAR forms, 3x3 kernels on a 1x1 map, where only the centre tap sees the image.
NETWORKS = {
    "linear": {"cifar": 1},
    "mlp": {"cifar": 1},
    "digits_cnn": {"cifar": 4, "5x5": 4, "7x7": 4},
    "vanilla_cnn": {"cifar": 16, "5x5": 16, "7x7": 16},
    "keras_cnn": {"cifar": 10},
    **{f"resnet{depth}": {"cifar": 5} for depth in DEPTHS},
    "preresnet101": {"cifar": 5},
    "resnet18": {"cifar": 9, "imagenet": 32},
    "resnet50": {"cifar": 9, "imagenet": 32},
    "vgg16": {"cifar": 32, "imagenet": 32},
    "alexnet": {"cifar": 27, "ungrouped": 27, "imagenet": 63},
    "mobilenet_v2": {"cifar": 9, "imagenet": 32},
    "efficientnet_lite0": {"imagenet": 32},
    "vit_b_16": {"imagenet": 16},
    "vit_tiny": {"cifar": 8},
}
# A variant follows a network's name after a hyphen and stands for one of its forms; so does a factor on the width of
# every hidden layer, such as "x0.5".
VARIANTS = {
    "imagenet": "imagenet",  # torchvision's own, stem included
    "224": "imagenet",  # that form behind an upsampling of the images to 224 pixels
    "pretrained": "imagenet",  # the same, with torchvision's ImageNet weights and a new last layer
    "B": "cifar",  # a ResNet of depth 6n + 2 with projection shortcuts
    "5x5": "5x5",  # of a four-layer network, with kernels of 5x5 in all layers
    "7x7": "7x7",  # or of 7x7 in the first one
    "ungrouped": "ungrouped",  # AlexNet for 32 pixels without its two groups, whose filters cannot be pruned one by one
}
# `padding` (pixels) and `flip` are the augmentations that keep a label: a mirrored digit would be another sign.
DATASETS = {
    "digits": {"classes": 10, "channels": 1, "size": 8, "padding": 1, "flip": False},
    "cifar10": {"classes": 10, "channels": 3, "size": 32, "padding": 4, "flip": True},
    "cifar100": {"classes": 100, "channels": 3, "size": 32, "padding": 4, "flip": True},
    "tiny-imagenet": {"classes": 200, "channels": 3, "size": 64, "padding": 8, "flip": True},
    "imagenet": {"classes": 1000, "channels": 3, "size": 224, "padding": 28, "flip": True},
    "digits16": {"classes": 10, "channels": 1, "size": 16, "padding": 2, "flip": False},  # each pixel as four
}
STARTING = ("01_latent_kl", "02_tensor_truncation", "05_which_one")  # from 00_baselines; 03_pruning_spaces may
PUBLIC = (  # keys of `models.PUBLIC`
    "resnet20/cifar10",
    "resnet56/cifar10",
    *(f"resnet{depth}/cifar100" for depth in (20, 56, 32, 44)),
    *(f"resnet{depth}-B/cifar10" for depth in (20, 32, 44, 56)),
)
PRECISIONS = ("auto", "float32", "bfloat16")  # of a training; "auto" is resolved before a spec is made
SCHEDULES = ("cosine", "one-cycle", "step", "constant")
SCORES = ("raw", "normalised", "signed", "merged", "magnitude", "slimming", "median", "random")  # for removing nodes
RIVALS = ("end", "rewound", "slimming", "snip")  # prior ways to a pruned network
SHAPES = (  # architectures whose shapes random filters can have at full width
    *("vgg11", "vgg13", "vgg16", "vgg19", "resnet20", "resnet32", "resnet44", "resnet56"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet", "mobilenet_v2"),
)
MODES = {"OUT", "IN", "KH", "KW"}
CHANGES = (  # of a layer: masks, truncations, and others
    *("magnitude", "random", "drawn", "filters"),
    *("OUT", "IN", "KH", "KW", "OUT.IN", "OUT.KH", "OUT.KW", "cp", "tucker2", "tt", "outputs"),
    *("noise", "quantised", "shrunk", "dropped", "merged"),
)
# Networks that have one width only.
FIXED_WIDTH = ("resnet18", "resnet50", "alexnet", "efficientnet_lite0", "vit_b_16", "vit_tiny")
PLAIN = ("digits_cnn", "vanilla_cnn", "vgg16", "alexnet-ungrouped")  # BatchNorm, no shortcuts: trained layer by layer
LATENT_CASES = ("also_trained", "public", "pretrained", "tasks_of")  # a case for each entry of these lists of 01
MAY_BE_EMPTY = set(
    "also_trained decides drawn_cases elsewhere falls layered lengths levels masked pretrained public ruled "
    "tasks_of trained wide zeroed".split()
)
# The range of a number follows from the name of its parameter; the first line that fits decides.
RANGES = (
    ("0 or more", lambda value: value >= 0, "epoch_images"),
    (
        "1 or more",
        lambda value: value >= 1,
        "workers batch *_batch batch_size *seeds *trials *epochs starts iterations side draws *images *step *steps "
        "*_count *_counts bits *_widths *_depth token_width",
    ),
    (
        "above 0 and at most 1",
        lambda value: 0 < value <= 1,
        "*share *shares *fraction *fractions *ratio *ratios *budgets *errors grid structured ranks falls",
    ),
    ("above 0", lambda value: value > 0, "lr *_lr *_lrs stds widths slice_half"),
    ("0 or more", lambda value: value >= 0, "*"),
)
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "a map"}
# Parameters that hold a network, or a network and a data set as "network/dataset".
NAMING_NETWORKS = (
    "network networks *_network *_networks compared elsewhere trained also_trained public pretrained tasks_of main "
    "ruled controlled formed whole full wide zeroed tensorised timed"
)
PICTURES = ("pdf",)  # formats of figures on request, besides SVG and PNG
Check = tuple[bool, str]  # whether something fits, and the sentence if it does not


def split_name(name: str) -> tuple[str, str]:
    """A network's name and its variant, or ""; the name "package.module:function" has none.

    Raises:
        CompanionError: if the network or the variant does not exist, or the network lacks that form.
    """
    if own_name(name):
        own_file(name)
        return name, ""
    network, _, variant = name.partition("-")
    if network not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    if re.fullmatch(r"x\d+(\.\d+)?", variant) and float(variant[1:]) > 0:
        if network in FIXED_WIDTH:
            raise CompanionError(f"{network} has a fixed width: leave {variant} out.")
        return network, variant
    if variant == "B" and network not in map("resnet{}".format, DEPTHS):
        raise CompanionError(f"{network} has no shortcut B: only ResNets of depth {', '.join(map(str, DEPTHS))} do.")
    if variant and variant not in VARIANTS:
        raise unknown(f"variant of {network}", variant, [*VARIANTS, "a factor on its width such as x0.5"])
    if variant and VARIANTS[variant] not in NETWORKS[network]:
        raise unknown(f"form of {network}", VARIANTS[variant], NETWORKS[network])
    return network, variant


def check_dataset(name: str) -> None:
    """Refuse a data set that is neither known, nor "package.module:function", nor a folder "path" or "path@side".

    Raises:
        CompanionError: with what there is, or what the folder lacks.
    """
    if name in DATASETS:
        return
    if own_name(name):
        own_file(name)
    elif "/" in name:
        folder, _ = own_folder(name)
        missing = [part for part in ("train", "test") if not (folder / part).is_dir()]
        if missing:
            raise CompanionError(f"{folder} has no folder {missing[0]}: put images there, a folder for each class.")
    else:
        known = [*DATASETS, "package.module:function", "the path of a folder, with a slash"]
        raise unknown("data set", name, known)


def notebook_names() -> list[str]:
    """The numbered notebooks, in order, without `.ipynb`."""
    return sorted(path.stem for path in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def default_parameters(name: str) -> dict:
    """The values in a notebook's cell tagged `parameters`.

    Raises:
        CompanionError: if there is no such notebook or cell, or a value is not plain.
    """
    if name not in notebook_names():
        raise unknown("notebook", name, notebook_names())
    cells = json.loads((root() / "notebooks" / f"{name}.ipynb").read_bytes())["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise CompanionError(f"{name}.ipynb has {len(tagged)} cells tagged 'parameters'; it needs exactly one.")
    try:
        return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0]).body}
    except (AttributeError, ValueError):
        raise CompanionError(f"{name}.ipynb: the parameters cell may only assign plain values to names.") from None


def profiles() -> list[str]:
    """Folders of `runs` that hold a YAML file, by names that are safe in a path and on a command line."""
    folders = {path.parent.name for path in (root() / "runs").glob("*/*.yaml")}
    return sorted(folder for folder in folders if re.fullmatch(r"\w[\w.-]*", folder))


def check_profile(profile: str) -> list[str]:
    """Check every YAML file of a profile before anything starts; returns its notebooks, in order.

    Raises:
        CompanionError: for the first value that cannot run (see `profile_parameters`), or if notebooks start from
            dense networks that the profile does not describe.
    """
    if profile not in profiles():
        raise unknown("profile", profile, profiles())
    names = sorted(path.stem for path in (root() / "runs" / profile).glob("*.yaml"))
    for name in names:
        values = profile_parameters(profile, name)
        if values["profile"] != profile:
            raise CompanionError(f"runs/{profile}/{name}.yaml must say `profile: {profile}`.")
        if (name in STARTING or values.get("source") == "trained") and "00_baselines" not in names:
            raise CompanionError(f"runs/{profile} needs 00_baselines.yaml, from which {name} starts: copy it there.")
    return names


def profile_parameters(profile: str, name: str) -> dict:
    """A profile's parameters of one notebook, read from `runs/<profile>/<name>.yaml` and checked.

    Raises:
        CompanionError: for an unknown profile or notebook, a file that is not YAML, and as `checked`.
    """
    if profile not in profiles():
        raise unknown("profile", profile, profiles())
    source = f"runs/{profile}/{name}.yaml"
    if name not in notebook_names():
        raise unknown(f"notebook in runs/{profile}:", name, notebook_names())
    if not (root() / source).exists():
        raise CompanionError(f"There is no {source}: copy it from another profile.")
    content = (root() / source).read_bytes()
    try:
        asked, lines = yaml.safe_load(content), yaml.compose(content, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CompanionError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None
    if asked is None:
        return default_parameters(name)
    if not isinstance(asked, dict):
        raise CompanionError(f"{source} holds no `name: value` lines.")
    if twice := _repeated([key.value for key, _ in lines.value]):
        raise CompanionError(f"{source} has {', '.join(twice)} more than once: keep one line of each.")
    return checked(name, asked, source)


def checked(name: str, asked: dict, source: str) -> dict:
    """A notebook's default parameters, replaced by those values that are asked for; `source` is their file.

    Raises:
        CompanionError: for an unknown name, a wrong type, a number out of range, values that do not fit together.
    """
    known = default_parameters(name)
    for problem in _problems(name, asked, known):
        raise CompanionError(f"{source}: {problem}")
    return known | asked


def inputs(values: dict) -> tuple[set[str], set[str]]:
    """The data sets that a notebook's parameters name and that must lie in DATA_DIR, and the public checkpoints.

    Checkpoints are "network/dataset". What is bundled or generated is left out.
    """
    public = [values.get(name, []) for name in ("public", "tasks_of", "zeroed")]
    public += [values["main"]] if values.get("source") == "public" else []
    named = {leaf.partition("/")[2] for leaf in _leaves(values) if isinstance(leaf, str)} | {values.get("dataset")}
    named |= {values.get("seen")} if values.get("tasks_of") else set()
    named |= {"imagenet"} if values.get("imagenet_recipes") else set()
    return {name for name in named & DATASETS.keys() if not name.startswith("digits")}, {*_leaves(public)} & {*PUBLIC}


def picture_formats() -> tuple[str, ...]:
    """The formats in which figures are saved: SVG, PNG, and those in the environment variable FIGURES.

    Raises:
        CompanionError: for a format that does not exist.
    """
    asked = os.environ.get("FIGURES", "").lower().split()
    if odd := [name for name in asked if name not in ("svg", "png", *PICTURES)]:
        raise CompanionError(f"FIGURES asks for {', '.join(odd)}: say FIGURES=pdf, or leave it out for SVG and PNG.")
    return ("svg", "png", *(name for name in PICTURES if name in asked))


def _problems(name: str, asked: dict, known: dict) -> Iterator[str]:
    for parameter, value in asked.items():
        if parameter not in known:
            yield str(unknown("parameter", parameter, known))
        yield from _wrong_type(parameter, value, known[parameter])
        yield from _out_of_range(parameter, value)
        if value != known[parameter]:  # the notebook's own value is known to run
            yield from _unknown_names(parameter, value)
    values = known | asked
    if values != known and (sentence := contradiction(name, values)):
        yield f"{sentence}."
    rules = [rule.id for rule in rules_of(name)]
    for claim in values.get("decides", []):
        if claim not in rules:
            yield str(unknown("claim in decides:", claim, rules))


def _leaves(value: object) -> Iterator[object]:
    """The plain values inside lists and dictionaries."""
    if isinstance(value, list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry)
    else:
        yield value


def _wrong_type(parameter: str, value: object, default: object) -> Iterator[str]:
    """A value has its default's type, and an entry of a list has one of the types in the default's list."""

    def fits(value: object, types: set[type]) -> bool:
        return type(value) in types or (type(value) is int and float in types)

    if not fits(value, {type(default)}):
        yield f"{parameter} is {value!r}; it must be {KINDS[type(default)]}.{_hint(value)}"
    inside = {type(leaf) for leaf in _leaves(default)}
    for leaf in _leaves(value):
        if inside and not fits(leaf, inside):
            kinds = " or ".join(sorted(KINDS[kind] for kind in inside))
            yield f"{parameter} holds {leaf!r}; each must be {kinds}.{_hint(leaf)}"


def _hint(value: object) -> str:
    """YAML 1.1 reads 1e-2 as text."""
    try:
        return f" Write {float(value):g}." if isinstance(value, str) else ""
    except ValueError:
        return ""


def _out_of_range(parameter: str, value: object) -> Iterator[str]:
    lines = (line for line in RANGES if any(fnmatch(parameter, name) for name in line[2].split()))
    words, within, _ = next(lines)
    for leaf in _leaves(value):
        if type(leaf) in (int, float) and not (math.isfinite(leaf) and within(leaf)):
            yield f"{parameter} is out of range with {leaf}; it must be {words}."


def _unknown_names(parameter: str, value: object) -> Iterator[str]:
    """Networks and data sets exist."""
    if parameter != "dataset" and not any(fnmatch(parameter, name) for name in NAMING_NETWORKS.split()):
        return
    for leaf in (leaf for leaf in _leaves(value) if isinstance(leaf, str)):
        network, slash, dataset = leaf.partition("/") if parameter != "dataset" else ("", "/", leaf)
        try:
            if network:
                split_name(network)
            if slash:
                check_dataset(dataset)
        except CompanionError as error:
            yield f"{parameter}: {error}"


def contradiction(notebook: str, values: dict) -> str:
    """The first contradiction among a notebook's parameters, with its remedy; "" if all of them fit together."""
    own = CHECKS[notebook](values) if notebook in CHECKS else ()
    return next((sentence for fits, sentence in (*_every(values), *own) if not fits), "")


def _repeated(entries: list) -> list:
    return sorted({entry for entry in entries if entries.count(entry) > 1})


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _among(values: dict, name: str, known: Sequence[str]) -> Iterator[Check]:
    for entry in _listed(values[name]):
        yield entry in known, f"{name} holds {entry!r}: known are {', '.join(known)}"


def _enough(values: dict, least: int, *names: str) -> Iterator[Check]:
    for name in names:
        yield values[name] >= least, f"{name} is {values[name]}: its intervals need {least} or more"


def _with_data(values: dict, *names: str) -> Iterator[Check]:
    for name in names:
        for entry in _listed(values[name]):
            yield "/" in entry, f"{name} holds {entry!r}: write network/dataset, such as {entry}/cifar10"


def _every(values: dict) -> Iterator[Check]:
    for name, value in values.items():
        yield value != [] or name in MAY_BE_EMPTY, f"{name} is empty: give it one entry or more"
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            twice = _repeated(value)
            yield not twice, f"{name} holds {', '.join(twice)} more than once"
    if "precision" in values:
        yield from _among(values, "precision", PRECISIONS)


def _dense(values: dict) -> Iterator[Check]:
    enough = "linear" in values["networks"] and len(values["networks"]) > 1
    yield enough, "networks must hold linear, with which the others are compared, and one more"
    yield from _enough(values, 2, "seeds", "null_seeds", "compared_seeds")
    yield from _with_data(values, "elsewhere")
    yield from _among(values, "public", PUBLIC)
    yield from _among(values, "schedule", SCHEDULES)


def _latent(values: dict) -> Iterator[Check]:
    some = values["trained"] or any(values[name] for name in LATENT_CASES)
    yield bool(some), "trained, public and the other lists are all empty: name a network"
    yield {0.3, 0.5} <= set(values["grid"]), "grid must hold 0.3 and 0.5, which P1.12b compares"
    yield len(values["fractions"]) > 1, "fractions must hold two or more, whose order is compared"
    yield values["tuning_epochs"] % values["pruning_steps"] == 0, "pruning_steps must divide tuning_epochs"
    yield from _enough(values, 2, "trials", "masks_per_sparsity", "matched")
    yield from _with_data(values, "also_trained")
    yield from _with_data(values, "pretrained")
    yield from _among(values, "public", PUBLIC)
    yield from _among(values, "tasks_of", PUBLIC)


def _truncation(values: dict) -> Iterator[Check]:
    listed = [*values["trained"], *values["also_trained"], *values["public"]]
    yield bool(listed), "trained, also_trained and public are all empty: name a network"
    yield from _with_data(values, "also_trained", "pretrained", "wide", "tensorised")
    for name in ("public", "zeroed"):
        yield from _among(values, name, PUBLIC)
    twice = _repeated(listed)
    yield not twice, f"trained, also_trained and public hold {', '.join(twice)} twice: their results would be mixed up"
    yield 0.5 in values["errors"], "errors must hold 0.5, at which P2.5c is read"
    for name in ("controlled", "formed", "whole"):
        yield from _among(values, name, sorted(listed))
    partly = sorted(name for name in values["whole"] if values["steps"].get(name, 1) > 1)
    yield not partly, f"steps leaves out layers that whole needs: take {', '.join(partly)} out of steps or out of whole"
    for name in sorted(values["steps"]):
        yield name in listed, f"steps names {name!r}, which is in none of trained, also_trained and public"
    for form, _ in values["cases"]:
        known = set(form.replace("+", ".").split(".")) <= MODES
        yield known, f"cases holds {form!r}: cuts are made of {', '.join(sorted(MODES))}, as in OUT.KH or OUT+IN"
    yield from _among(values, "evaluation", PRECISIONS[1:])
    fewer = values["tensor_retrain_epochs"] < values["tensor_epochs"]
    yield fewer, "tensor_retrain_epochs must be below tensor_epochs, of which they are a part"


def _spaces(values: dict) -> Iterator[Check]:
    falling = values["shares"] == sorted(set(values["shares"]), reverse=True)
    yield falling, "shares must fall, the mildest regime first"
    both = sorted({*values["shares"]} & {*values["levels"]})
    yield not both, f"levels repeats {', '.join(map(str, both))} of shares"
    yield len(values["stds"]) > 1, "stds must hold two or more, which are compared"
    yield from _enough(values, 6, "rungs")
    yield from _enough(values, 5, "short_rungs", "std_recipes", "space_recipes")
    yield from _enough(values, 2, "seeds", "winners", "rival_seeds", "proxies")
    yield values["best_of"] < values["space_recipes"], "best_of must be smaller than space_recipes, which it draws from"
    asked = [*values["lengths"], values["long_images"], values["short_images"]]
    odd = [str(n) for n in asked if n > values["train_images"] and n % values["train_images"]]
    yield not odd, f"{', '.join(odd)} images of retraining are no whole number of epochs of train_images"
    missing = {values["long_images"], values["short_images"]} - {*values["lengths"]}
    yield not missing, f"lengths must hold long_images and short_images: add {', '.join(map(str, sorted(missing)))}"
    yield from _among(values, "source", ("trained", "public"))
    yield from _among(values, "pruned", ("inner", "all"))
    yield from _with_data(values, "main", "public", "trained")
    yield from _among(values, "public", PUBLIC)
    if values["source"] == "public":
        yield from _among(values, "main", PUBLIC)
    yield from _among(values, "ruled", [*values["public"], *values["trained"]])


def _spline(values: dict) -> Iterator[Check]:
    sizes = len(values["widths"]), len(values["networks"])
    yield sizes[0] == sizes[1], f"widths has {sizes[0]} entries and networks {sizes[1]}: give each network one width"
    yield set(values["full"]) <= set(values["networks"]), "full must name some of networks"
    for entry in values["full"]:
        fits = entry.partition("/")[0] in PLAIN
        yield fits, f"full holds {entry!r}, which cannot be trained layer by layer: take {', '.join(PLAIN)}"
    falls, drop = values["falls"], int(values["epochs"] * (values["falls"] or [0.5])[0])
    yield falls == sorted(set(falls)) and max(falls, default=0) < 1, "falls must rise and stay below 1"
    yield drop >= 4, "epochs leaves fewer than 4 before the learning rate first falls, where P4.5 is read"
    yield from _among(values, "rivals", RIVALS)
    yield "end" in values["rivals"], "rivals lacks end, to which P4.11b compares"
    yield values["side"] ** 2 <= values["test_images"], "side * side probes must not exceed test_images"
    yield from _enough(values, 2, "seeds", "other_seeds", "toy_seeds", "fresh_seeds", "migration_seeds")
    yield 4 in values["route_widths"], "route_widths must hold 4, at which P4.E1 is read"
    larger = 2 in values["factors"] and min(values["factors"]) > 1
    yield larger, "factors must be above 1 and hold 2, where P4.E1 is read"
    long = values["migration_epochs"]
    fits = long == sorted({*long}) and long[-1] / 16 in long
    yield fits, "migration_epochs must rise, and hold a sixteenth of the last one, where P4.E5 begins"
    yield values["transformer_epochs"] >= 12, "transformer_epochs must be 12 or more: half of them hold five distances"
    yield values["token_width"] % 4 == 0, "token_width must be a multiple of 4, the number of heads"
    yield from _among(values, "random_shapes", SHAPES)
    yield from _among(values, "public", PUBLIC)
    yield 4 in values["levels"][-2:], "4 must be among the last two of levels, where P4.9 and P4.10 are read"
    yield max(values["levels"], default=0) >= 8, "levels must hold one of 8 or more, where P4.7 is read"
    yield max(values["levels"], default=0) < 20, "levels must be below 20, the width of the toy network"
    yield from _among(values, "criteria", SCORES)
    needed = [name for name in ("merged", "magnitude", "random") if name not in values["criteria"]]
    yield not needed, f"criteria lacks {', '.join(needed)}, which claims compare"


def _which(values: dict) -> Iterator[Check]:
    listed = [*values["networks"], *values["wide"]]
    families = {re.sub(r"\d+", "", name, count=1) for name in listed}
    yield from _among(values, "masks", CHANGES[:4])
    yield from _among(values, "forms", CHANGES[4:-5])
    yield from _among(values, "others", CHANGES[-5:])
    yield from _among(values, "wide_kinds", CHANGES)
    yield "magnitude" in values["masks"], "masks must hold magnitude, of which a figure is drawn"
    yield len(families) > 2, "networks must be of three families or more, such as digits_cnn, mlp and resnet8"
    yield from _enough(values, 2, "layers")
    yield from _enough(values, 5, "rungs")
    inside = all(0 < strength < 1 for strength in values["strengths"])
    yield inside and len(values["strengths"]) > 1, "strengths must hold two or more shares between 0 and 1"
    for name in ("ladder_networks", "contest_networks"):
        yield len(values[name]) > 1, f"{name} must hold two or more, over which intervals are taken"
    yield all(budget < 1 for budget in values["budgets"]), "budgets must be below 1"
    yield values["head_images"] <= values["learnt_images"], "head_images must not exceed learnt_images"


def _own(values: dict) -> Iterator[Check]:
    yield values["dataset"] != "imagenet", "dataset is imagenet, which does not fit in memory: take a folder of images"
    public = f"{values['network']}/{values['dataset']}" in PUBLIC
    somehow = values["train"] or values["weights"] or public or values["network"].endswith("-pretrained")
    yield somehow, "train is false and weights is empty: name a file of weights, or set train to true"
    yield not (values["weights"] and values["train"]), "weights are read as they are: set train to false"
    yield values["images"] >= 3, "images must be 3 or more, which span the plane where maps are compared"
    yield values["removed_fraction"] < 1, "removed_fraction must be below 1: a layer keeps a weight or more"
    yield values["merged_ratio"] < 1, "merged_ratio must be below 1: each layer keeps a node"
    yield values["factor_share"] < 1, "factor_share must be below 1: factors of the size of the kernel save nothing"


CHECKS = {
    "00_baselines": _dense,
    "01_latent_kl": _latent,
    "02_tensor_truncation": _truncation,
    "03_pruning_spaces": _spaces,
    "04_spline_early_bird": _spline,
    "05_which_one": _which,
    "06_your_network": _own,
}
