"""What a notebook is asked for: plain values, from its cell tagged `parameters` or a profile's YAML file, checked.

A profile is a folder of `runs` with a YAML file for each notebook. Whatever is wrong in one is refused with a sentence
before anything starts: an unknown name, a wrong type, a value that is out of range, a network that does not exist.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch

import yaml

from lib.consistency import contradiction
from lib.names import DATASETS, split_name
from lib.provenance import CompanionError, root, unknown

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
NAMING_NETWORKS = "networks *_network *_networks elsewhere trained enlarged public main transfer* controlled formed whole full"


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
    if undeclared := [claim for claim in values.get("decides", []) if claim not in _claims(name)]:
        raise unknown(f"claim in {source}: decides:", undeclared[0], _claims(name))
    return values


def _claims(name: str) -> list[str]:
    """The claims whose rules a notebook declares."""
    cells = json.loads((root() / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return [claim for cell in cells for claim in re.findall(r'claims\.Rule\(\s*"([^"]+)"', "".join(cell["source"]))]


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
