"""What the parameters of one notebook ask of each other, beside the type and the range that each has alone."""

from collections.abc import Iterator, Sequence

from lib.names import PUBLIC, SCHEDULES, SCORES

MODES = {"OUT", "IN", "KH", "KW"}
LINEAR = ("resnet20", "resnet32", "resnet56", "resnet110", "resnet18")  # MACs are linear in the prunable widths
Check = tuple[bool, str]


def _every(values: dict) -> Iterator[Check]:
    for name, value in values.items():
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            twice = sorted({entry for entry in value if value.count(entry) > 1})
            yield not twice, f"{name} holds {', '.join(twice)} more than once"


def _dense(values: dict) -> Iterator[Check]:
    enough = "linear" in values["networks"] and len(values["networks"]) > 1
    yield enough, "networks must hold linear, with which the others are compared, and one more"
    yield from _several(values, "seeds", "null_seeds")
    for entry in values["elsewhere"]:
        yield "/" in entry, f"elsewhere holds {entry!r}: write network/dataset, such as {entry}/cifar10"
    yield from _among(values, "public", PUBLIC)
    yield from _among(values, "schedule", SCHEDULES)


def _latent(values: dict) -> Iterator[Check]:
    several = len(values["trained"]) + len(values["public"]) > 1
    yield several, "trained and public must name two networks or more, over which intervals are taken"
    yield set(values["fractions"]) <= set(values["grid"]), "grid must hold all of fractions"
    yield from _among(values, "public", PUBLIC)


def _truncation(values: dict) -> Iterator[Check]:
    listed = {*values["trained"], *values["enlarged"], *values["public"]}
    yield bool(listed), "trained, enlarged and public are all empty: name a network"
    yield from _among(values, "public", PUBLIC)
    for name in sorted(values["steps"]):
        yield name in listed, f"steps names {name!r}, which is in none of trained, enlarged and public"
    for form, _ in values["cases"]:
        known = set(form.replace("+", ".").split(".")) <= MODES
        yield known, f"cases holds {form!r}: cuts are made of {', '.join(sorted(MODES))}, as in OUT.KH or OUT+IN"


def _spaces(values: dict) -> Iterator[Check]:
    yield values["contest_share"] in values["shares"], "contest_share must be one of shares"
    yield from _among(values, "source", ("trained", "public"))
    networks = ("main", "transfer", "transfer_quick")
    for name in networks:
        for entry in _listed(values[name]):
            yield "/" in entry, f"{name} holds {entry!r}: write network/dataset, such as {entry}/cifar10"
    if values["source"] == "public":
        for name in networks:
            yield from _among(values, name, PUBLIC)
    network = values["main"].partition("/")[0]
    yield network in LINEAR, f"main is a {network}, whose MACs are not linear in its widths: take {', '.join(LINEAR)}"


def _spline(values: dict) -> Iterator[Check]:
    sizes = len(values["widths"]), len(values["networks"])
    yield sizes[0] == sizes[1], f"widths has {sizes[0]} entries and networks {sizes[1]}: give each network one width"
    yield bool(values["full"]) and set(values["full"]) <= set(values["networks"]), "full must name some of networks"
    yield from _several(values, "seeds")
    yield set(values["tuned_levels"]) <= set(values["levels"]), "tuned_levels must be some of levels"
    yield max(values["levels"], default=0) < values["toy_width"], "levels must lie below toy_width"
    yield from _among(values, "criteria", SCORES)
    needed = [name for name in ("merged", "magnitude", "random") if name not in values["criteria"]]
    yield not needed, f"criteria lacks {', '.join(needed)}, which claims compare"


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _among(values: dict, name: str, known: Sequence[str]) -> Iterator[Check]:
    for entry in _listed(values[name]):
        yield entry in known, f"{name} holds {entry!r}: known are {', '.join(known)}"


def _several(values: dict, *names: str) -> Iterator[Check]:
    for name in names:
        yield values[name] > 1, f"{name} is {values[name]}: an interval needs 2 or more"


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
