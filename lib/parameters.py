"""What networks, data sets and methods are called; a profile is checked by it without loading torch.

What the parameters of one notebook ask of each other, beside the type and the range that each has alone.

What a notebook is asked for: plain values, from its cell tagged `parameters` or a profile's YAML file, checked.

A profile is a folder of `runs` with a YAML file for each notebook. Whatever is wrong in one is refused with a sentence
before anything starts: an unknown name, a wrong type, a value that is out of range, a network that does not exist.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch

import yaml

from lib.claims import rules_of
from lib.provenance import CompanionError, root, unknown

DEPTHS = (8, 20, 32, 56, 110)
# The forms of each network and the smallest image side (pixels) that each takes. Smaller images would leave no
# feature map, or, in the CIFAR forms, 3x3 kernels on a 1x1 map, where only the centre tap sees the image.
NETWORKS = {
    "linear": {"cifar": 1},
    "mlp": {"cifar": 1},
    "digits_cnn": {"cifar": 4},
    "vanilla_cnn": {"cifar": 16},
    "keras_cnn": {"cifar": 10},
    **{f"resnet{depth}": {"cifar": 5} for depth in DEPTHS},
    "preresnet101": {"cifar": 5},
    "resnet18": {"cifar": 9, "imagenet": 32},
    "resnet50": {"cifar": 9, "imagenet": 32},
    "vgg16": {"cifar": 32, "imagenet": 32},
    "alexnet": {"cifar": 27, "ungrouped": 27, "imagenet": 63},
    "mobilenet_v2": {"cifar": 9, "imagenet": 32},
    "vit_b_16": {"imagenet": 16},
    "vit_tiny": {"cifar": 8},
}
# What may follow a network's name, so that a list of names can tell its forms apart, and the form that it must have.
VARIANTS = {
    "imagenet": "imagenet",  # torchvision's own, stem included
    "224": "imagenet",  # that form behind an upsampling of the images to 224 pixels
    "pretrained": "imagenet",  # the same, with torchvision's ImageNet weights and a new last layer
    "ungrouped": "ungrouped",  # AlexNet for 32 pixels without its two groups, whose filters cannot be pruned one by one
}
# `padding` (pixels) and `flip` are what augmentation may do: a mirrored digit would be another sign.
DATASETS = {
    "digits": {"classes": 10, "channels": 1, "size": 8, "padding": 1, "flip": False},
    "cifar10": {"classes": 10, "channels": 3, "size": 32, "padding": 4, "flip": True},
    "cifar100": {"classes": 100, "channels": 3, "size": 32, "padding": 4, "flip": True},
    "tiny-imagenet": {"classes": 200, "channels": 3, "size": 64, "padding": 8, "flip": True},
    "imagenet": {"classes": 1000, "channels": 3, "size": 224, "padding": 28, "flip": True},
    "digits16": {"classes": 10, "channels": 1, "size": 16, "padding": 2, "flip": False},  # each pixel as four
}
# Networks whose authors publish weights for a data set (`weights.PUBLIC`).
PUBLIC = ("resnet20/cifar10", "resnet56/cifar10", "resnet20/cifar100", "resnet56/cifar100")
SCHEDULES = ("cosine", "one-cycle", "step", "constant")
# Scores by which nodes are removed (`lib.spline.selection.remove`).
SCORES = ("raw", "normalised", "signed", "merged", "magnitude", "slimming", "median", "random")


def split_name(name: str) -> tuple[str, str]:
    """A name of NETWORKS and the variant behind it, or ""; CompanionError for a name or a variant that is unknown."""
    network, _, variant = name.partition("-")
    if network not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    if variant and variant not in VARIANTS:
        raise unknown(f"variant of {network}", variant, VARIANTS)
    if variant and VARIANTS[variant] not in NETWORKS[network]:
        raise unknown(f"form of {network}", VARIANTS[variant], NETWORKS[network])
    return network, variant


MODES = {"OUT", "IN", "KH", "KW"}
# Lists that may be empty.
EMPTY = set("decides elsewhere enlarged joint_errors levels public trained transfer transfer_quick".split())
# Networks whose MACs are linear in the widths that paper 3 prunes.
LINEAR = ("resnet20", "resnet32", "resnet56", "resnet110", "resnet18")
# Networks without shortcuts and with BatchNorm, which can be trained layer by layer.
PLAIN = ("digits_cnn", "vanilla_cnn", "vgg16", "alexnet-ungrouped")
Check = tuple[bool, str]


def _every(values: dict) -> Iterator[Check]:
    for name, value in values.items():
        yield value != [] or name in EMPTY, f"{name} is empty: give it one entry or more"
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            twice = sorted({entry for entry in value if value.count(entry) > 1})
            yield not twice, f"{name} holds {', '.join(twice)} more than once"


def _dense(values: dict) -> Iterator[Check]:
    enough = "linear" in values["networks"] and len(values["networks"]) > 1
    yield enough, "networks must hold linear, with which the others are compared, and one more"
    yield from _enough(values, 2, "seeds", "null_seeds")
    for entry in values["elsewhere"]:
        yield "/" in entry, f"elsewhere holds {entry!r}: write network/dataset, such as {entry}/cifar10"
    yield from _among(values, "public", PUBLIC)
    yield from _among(values, "schedule", SCHEDULES)


def _latent(values: dict) -> Iterator[Check]:
    several = len(values["trained"]) + len(values["public"]) > 1
    yield several, "trained and public must name two networks or more, over which intervals are taken"
    yield set(values["fractions"]) <= set(values["grid"]), "grid must hold all of fractions"
    yield {0.3, 0.5} <= set(values["grid"]), "grid must hold 0.3 and 0.5, which P1.12b compares"
    yield len(values["fractions"]) > 1, "fractions must hold two or more, whose order is compared"
    yield from _among(values, "layer_networks", [*values["trained"], *values["public"]])
    yield from _enough(values, 2, "trials")
    yield from _among(values, "public", PUBLIC)


def _truncation(values: dict) -> Iterator[Check]:
    listed = {*values["trained"], *values["enlarged"], *values["public"]}
    yield bool(listed), "trained, enlarged and public are all empty: name a network"
    yield from _among(values, "public", PUBLIC)
    names = [*values["trained"], *values["enlarged"], *values["public"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    yield not twice, f"trained, enlarged and public hold {', '.join(twice)} twice: results could not be told apart"
    yield 0.5 in values["errors"], "errors must hold 0.5, at which P2.5c is read"
    for name in ("controlled", "formed", "whole"):
        yield from _among(values, name, sorted(listed))
    partly = sorted(name for name in values["whole"] if values["steps"].get(name, 1) > 1)
    yield not partly, f"steps leaves out layers that whole needs: take {', '.join(partly)} out of steps or out of whole"
    for name in sorted(values["steps"]):
        yield name in listed, f"steps names {name!r}, which is in none of trained, enlarged and public"
    for form, _ in values["cases"]:
        known = set(form.replace("+", ".").split(".")) <= MODES
        yield known, f"cases holds {form!r}: cuts are made of {', '.join(sorted(MODES))}, as in OUT.KH or OUT+IN"


def _spaces(values: dict) -> Iterator[Check]:
    yield values["contest_share"] in values["shares"], "contest_share must be one of shares"
    yield values["retrained"] + 2 <= values["initial"], "retrained must be smaller than initial by 2 or more"
    yield values["repeated"] <= values["retrained"], "repeated must not exceed retrained"
    yield len(values["stds"]) > 1, "stds must hold two or more, which are compared"
    yield from _enough(values, 4, "retrained", "designed", "std_recipes", "refined")
    yield from _enough(values, 3, "repeated")
    yield from _enough(values, 2, "seeds", "contest_seeds")
    if values["levels"]:
        yield from _enough(values, 4, "level_recipes")
    if values["transfer"] or values["transfer_quick"]:
        yield from _enough(values, 4, "transfer_recipes")
    falling = values["shares"] == sorted(set(values["shares"]), reverse=True)
    yield falling, "shares must fall, the mildest regime first"
    both = sorted({*values["shares"]} & {*values["levels"]})
    yield not both, f"levels repeats {', '.join(map(str, both))} of shares"
    yield from _among(values, "source", ("trained", "public"))
    networks = ("main", "transfer", "transfer_quick")
    for name in networks:
        for entry in _listed(values[name]):
            yield "/" in entry, f"{name} holds {entry!r}: write network/dataset, such as {entry}/cifar10"
    if values["source"] == "public":
        for name in networks:
            yield from _among(values, name, PUBLIC)
    network = values["main"].partition("/")[0]
    fits = network.partition("-")[0] in LINEAR
    yield fits, f"main is a {network}, whose MACs are not linear in its widths: take {', '.join(LINEAR)}"


def _spline(values: dict) -> Iterator[Check]:
    sizes = len(values["widths"]), len(values["networks"])
    yield sizes[0] == sizes[1], f"widths has {sizes[0]} entries and networks {sizes[1]}: give each network one width"
    yield set(values["full"]) <= set(values["networks"]), "full must name some of networks"
    for entry in values["full"]:
        fits = entry.partition("/")[0] in PLAIN
        yield fits, f"full holds {entry!r}, which cannot be trained layer by layer: take {', '.join(PLAIN)}"
    yield values["side"] ** 2 <= values["test_images"], "side * side probes must not exceed test_images"
    yield from _enough(values, 2, "seeds", "exact_seeds", "toy_seeds", "change_seeds")
    yield set(values["tuned_levels"]) <= set(values["levels"]), "tuned_levels must be some of levels"
    yield 4 in values["tuned_levels"], "tuned_levels must hold 4, at which P4.9 and P4.10 are read"
    yield max(values["levels"], default=0) >= 8, "levels must hold one of 8 or more, where P4.7 is read"
    yield max(values["levels"], default=0) < values["toy_width"], "levels must lie below toy_width"
    yield from _among(values, "criteria", SCORES)
    needed = [name for name in ("merged", "magnitude", "random") if name not in values["criteria"]]
    yield not needed, f"criteria lacks {', '.join(needed)}, which claims compare"


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _among(values: dict, name: str, known: Sequence[str]) -> Iterator[Check]:
    for entry in _listed(values[name]):
        yield entry in known, f"{name} holds {entry!r}: known are {', '.join(known)}"


def _enough(values: dict, least: int, *names: str) -> Iterator[Check]:
    for name in names:
        yield values[name] >= least, f"{name} is {values[name]}: its intervals need {least} or more"


CHECKS = {
    "00_baselines": _dense,
    "01_latent_kl": _latent,
    "02_tensor_truncation": _truncation,
    "03_pruning_spaces": _spaces,
    "04_spline_early_bird": _spline,
}


def contradiction(notebook: str, values: dict) -> str:
    """The first thing in a notebook's parameters that cannot be run, with its remedy; "" if all of them fit."""
    own = CHECKS[notebook](values) if notebook in CHECKS else ()
    return next((sentence for fits, sentence in (*_every(values), *own) if not fits), "")


# What a number may be, by the name of its parameter; the first line that fits decides. Any other is 0 or more.
RANGES = (
    (
        "1 or more",
        "workers batch *_batch batch_size *seeds *trials *epochs starts iterations side draws *images *step steps",
    ),
    ("above 0 and at most 1", "*share *shares *fractions *ratio *ratios *budgets *errors grid structured"),
    ("above 0", "lr *_lr stds widths slice_half"),
)
WITHIN = {
    "1 or more": lambda value: value >= 1,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
    "above 0": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
}
KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
# Parameters that hold names: of a network, or of a network and a data set as "network/dataset".
NAMING_NETWORKS = (
    "networks *_network *_networks elsewhere trained enlarged public main transfer* controlled formed whole full"
)


def notebook_names() -> list[str]:
    """The numbered notebooks, in order, without `.ipynb`."""
    return sorted(path.stem for path in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def default_parameters(name: str) -> dict:
    """The values in a notebook's cell tagged `parameters`; CompanionError if there is none or a value is not plain."""
    if name not in notebook_names():
        raise unknown("notebook", name, notebook_names())
    cells = json.loads((root() / "notebooks" / f"{name}.ipynb").read_text())["cells"]
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


def profile_parameters(profile: str, name: str) -> dict:
    """A profile's parameters of one notebook, read from `runs/<profile>/<name>.yaml` and checked.

    Raises: CompanionError naming the known profiles, the nearest parameter, or the type or range that is expected.
    """
    if profile not in profiles():
        raise unknown("profile", profile, profiles())
    path = root() / "runs" / profile / f"{name}.yaml"
    if name not in notebook_names():
        raise unknown(f"notebook in runs/{profile}:", name, notebook_names())
    if not path.exists():
        raise CompanionError(f"Profile {profile!r} has no {name}: known profiles are {', '.join(profiles())}.")
    try:
        asked = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CompanionError(f"{path.relative_to(root())} is not YAML: {' '.join(str(error).split())}.") from None
    lines = re.findall(r"^(\w+)\s*:", path.read_text(), re.MULTILINE)
    if twice := sorted({line for line in lines if lines.count(line) > 1}):
        raise CompanionError(
            f"{path.relative_to(root())} has {', '.join(twice)} more than once: keep one line of each."
        )
    return checked(name, asked, f"runs/{profile}/{name}.yaml") if asked else default_parameters(name)


def checked(name: str, asked: dict, source: str) -> dict:
    """A notebook's defaults with the asked values in their place.

    Raises: CompanionError for an unknown name, a wrong type, a number out of range, an unknown network or data set.
    """
    known = default_parameters(name)
    if not isinstance(asked, dict):
        raise CompanionError(f"{source} holds no `name: value` lines.")
    for parameter, value in asked.items():
        if parameter not in known:
            raise unknown(f"parameter in {source}:", parameter, known)
        _check_type(parameter, value, known[parameter], source)
        _check_range(parameter, value, source)
        if value != known[parameter]:  # what stands in the notebook is known to run
            _check_names(parameter, value, source)
    values = known | asked
    if values != known and (sentence := contradiction(name, values)):
        raise CompanionError(f"{source}: {sentence}.")
    known_claims = [rule.id for rule in rules_of(name)]
    if undeclared := [claim for claim in values.get("decides", []) if claim not in known_claims]:
        raise unknown(f"claim in {source}: decides:", undeclared[0], known_claims)
    return values


def check_profile(profile: str) -> list[str]:
    """Check every YAML file of a profile before anything starts; returns its notebooks, in order."""
    if profile not in profiles():
        raise unknown("profile", profile, profiles())
    names = sorted(path.stem for path in (root() / "runs" / profile).glob("*.yaml"))
    for name in names:
        if profile_parameters(profile, name)["profile"] != profile:
            raise CompanionError(f"runs/{profile}/{name}.yaml must say `profile: {profile}`.")
    return names


def _leaves(value: object) -> Iterator[object]:
    """The plain values inside lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _check_type(parameter: str, value: object, default: object, source: str) -> None:
    """A value has its default's type, and what a list holds has one of the types that the default's list holds."""

    def fits(value: object, types: Iterable[type]) -> bool:
        return type(value) in types or (type(value) is int and float in types)

    if not fits(value, {type(default)}):
        raise CompanionError(f"{source}: {parameter} is {value!r}; it must be {KINDS[type(default)]}.{_hint(value)}")
    inside = {type(leaf) for leaf in _leaves(default)}
    for leaf in _leaves(value):
        if inside and not fits(leaf, inside):
            kinds = " or ".join(sorted(KINDS[kind] for kind in inside))
            raise CompanionError(f"{source}: {parameter} holds {leaf!r}; each must be {kinds}.{_hint(leaf)}")


def _hint(value: object) -> str:
    """YAML 1.1 reads 1e-2 as text."""
    try:
        return f" Write {float(value):g}." if isinstance(value, str) else ""
    except ValueError:
        return ""


def _check_range(parameter: str, value: object, source: str) -> None:
    fitting = (kind for kind, names in RANGES if any(fnmatch(parameter, name) for name in names.split()))
    kind = next(fitting, "0 or more")
    for leaf in _leaves(value):
        if type(leaf) in (int, float) and not (math.isfinite(leaf) and WITHIN[kind](leaf)):
            raise CompanionError(f"{source}: {parameter} is out of range with {leaf}; it must be {kind}.")


def _check_names(parameter: str, value: object, source: str) -> None:
    """Networks and data sets exist."""
    if parameter != "dataset" and not any(fnmatch(parameter, name) for name in NAMING_NETWORKS.split()):
        return
    for leaf in (leaf for leaf in _leaves(value) if isinstance(leaf, str)):
        network, slash, dataset = leaf.partition("/") if parameter != "dataset" else ("", "/", leaf)
        try:
            if network:
                split_name(network)
        except CompanionError as error:
            raise CompanionError(f"{source}: {parameter}: {error}") from None
        if slash and dataset not in DATASETS:
            raise unknown(f"data set in {source}: {parameter}:", dataset, DATASETS)
