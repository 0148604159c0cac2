"""What the parameters of one notebook ask of each other, beside the type and the range that each has alone."""

from collections.abc import Iterator, Sequence

from lib.names import PUBLIC, SCHEDULES, SCORES

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
