"""How far a profile decides its claims, and what would settle each open one: how many more units, at what cost.

Intervals are taken to shrink as 1 / sqrt(n), those of shares as Wilson's do, about an estimate that stays where it is.
That is a forecast for planning the next run, and no part of any verdict.
"""

import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from lib import parameters
from lib.claims import INCONCLUSIVE, LEVEL, NOT_SUPPORTED, SUPPORTED, UNTESTABLE, Rule, bounds, wilson
from lib.provenance import PREFIX

FAR = 100  # times n: an estimate that close to its threshold is on it
# The rows that a claim rests on: study, and which of its rows; a claim that is not here rests on its whole notebook.
HEADS = ("heads", "structure == 'weights' and mode == 'paper'")
BASIS = {
    **dict.fromkeys("P1.4b P1.5c P1.7 P1.8 P1.8b P1.8c P1.9 P1.10 P1.11 P1.12 P1.12b P1.13 P1.15".split(), HEADS),
    "P1.6": ("layers", ""),
    "P1.14": ("heads", "structure != 'weights'"),
    **dict.fromkeys(["P1.E1", "P1.E2"], ("projections", "")),
    **dict.fromkeys("P2.1 P2.1b P2.2 P2.5b P2.8 P2.9".split(), ("truncations", "")),
    "P2.5": ("spectra", ""),
    **dict.fromkeys("P2.5c P2.6 P2.E1".split(), ("controls", "")),
    **dict.fromkeys("P2.7 P2.10 P2.E2".split(), ("forms", "")),
    **dict.fromkeys(
        ["P2.3", "P2.4"], ("recoveries", "arm != 'untruncated' and form_name not in ['tolerance', 'uniform', 'error']")
    ),
    "P2.11": ("recoveries", "form_name in ['tolerance', 'uniform', 'error']"),
    "P3.T0": ("recipes", "space == 'initial' and mode == 'finetune' and retraining in [1, 2]"),
    "P3.T8": ("recipes", "mode in ['rewind', 'scratch']"),
    **dict.fromkeys("P3.1 P3.3 P3.4 P3.5 P3.11".split(), ("recipes", "space == 'designed' and mode == 'finetune'")),
    "P3.2": ("recipes", "budget == 'parameters'"),
    **dict.fromkeys(["P3.6", "P3.6b"], ("recipes", "space.str.startswith('STD')")),
    **dict.fromkeys(["P3.7", "P3.10"], ("recipes", "space == 'designed'")),
    "P3.8": ("recipes", "space in ['initial', 'refined'] and mode == 'finetune'"),
    **dict.fromkeys(["P3.9", "P3.12"], ("recipes", "retraining >= 100")),
    "P3.13": ("recipes", "dataset == 'cifar100' or network == 'resnet56'"),
    **dict.fromkeys("P4.1 P4.2 P4.3 P4.3b".split(), ("toy_exact", "")),
    **dict.fromkeys("P4.4 P4.4b P4.7 P4.7b P4.7c P4.9".split(), ("toy_pruned", "")),
    **dict.fromkeys("P4.5 P4.5b P4.5c".split(), ("searches", "")),
    **dict.fromkeys("P4.6 P4.11 P4.11b P4.13".split(), ("tickets", "")),
    "P4.8": ("oneshots", ""),
    "P4.10": ("toy_scratch", ""),
    "P4.12": ("toy_changed", ""),
}


def counts_table(results: dict[str, dict[str, list[dict]]]) -> str:
    """How many claims each published notebook decides, and of those its profile is sized for, as Markdown.

    results: by profile and notebook, the primary entries of the claims file.
    """
    lines = [
        "| profile | notebook | claims | decided | inconclusive | cannot be tested | sized for | of these decided |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for profile, notebooks in results.items():
        total = [0] * 6
        for notebook, entries in notebooks.items():
            decided = {entry["id"] for entry in entries if entry["verdict"] in (SUPPORTED, NOT_SUPPORTED)}
            open_ones = [
                sum(entry["verdict"] == verdict for entry in entries) for verdict in (INCONCLUSIVE, UNTESTABLE)
            ]
            sized = parameters.profile_parameters(profile, notebook)["decides"]
            numbers = [len(entries), len(decided), *open_ones, len(sized), len(decided & set(sized))]
            total = [a + b for a, b in zip(total, numbers, strict=True)]
            lines.append(f"| {profile} | `{notebook}` | " + " | ".join(map(str, numbers)) + " |")
        lines.append(f"| **{profile}** | all | " + " | ".join(map(str, total)) + " |")
    return "\n".join(lines) + "\n"


def open_table(results: dict[str, dict[str, list[dict]]], folders: dict[str, Path]) -> str:
    """What would settle each inconclusive claim, as Markdown; a star marks those that the profile is sized for.

    results: as for `counts_table`. folders: by profile, the published rows.
    """
    lines = [
        "| profile | claim | evidence | holds if | n that settles it | n counts | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for profile, notebooks in results.items():
        for notebook, entries in notebooks.items():
            sized = parameters.profile_parameters(profile, notebook)["decides"]
            for entry in entries:
                if entry["verdict"] != INCONCLUSIVE:
                    continue
                n, told = needed(entry)
                unit = re.search(r"n counts ([^;]+)", entry["why"] or "")
                cost = ""
                if n:
                    told = f"{n:,}: {told}"
                    spent = seconds(folders[profile], notebook, entry["id"])
                    cost = _time(spent * (n / entry["n"] - 1))
                name = entry["id"] + (" *" if entry["id"] in sized else "")
                cells = (profile, name, _evidence(entry), _condition(entry), told, unit[1] if unit else "", cost)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def needed(entry: dict) -> tuple[int | None, str]:
    """The n at which an inconclusive entry would be decided, and how; none, and why, if n is not what it lacks.

    Where the interval lies beyond the threshold already and the corrected p is too large, z is taken to grow as sqrt(n)
    and the correction to stay as it is.
    """
    relation, threshold, tolerance = bounds(entry["rule"])
    value, low, high, n = (entry[name] for name in ("value", "low", "high", "n"))
    if not low <= high:
        return None, "not a matter of n: " + entry["why"]
    if "which the interval counts too" in (entry["why"] or ""):
        return None, "more of these alone may not settle it: test images count, too"
    rule = Rule("", "", "", "", relation, threshold, "", tolerance)
    if rule.verdict(low, high) == SUPPORTED:
        wanted = (1 - LEVEL) * entry["p"] / entry["p_holm"]
        factor = (stats.norm.isf(wanted / 2) / stats.norm.isf(entry["p"] / 2)) ** 2
        told = f"{SUPPORTED} (its interval is beyond the threshold, its corrected p is not small enough)"
        return max(n + 1, math.ceil(n * factor)), told
    holds = rule.verdict(value, value) == SUPPORTED
    edges = [threshold - tolerance, threshold + tolerance] if relation == "=" else [threshold]
    if 0 <= value <= 1 and math.dist(wilson(round(value * n), n), (low, high)) < 1e-9:
        factor = max(_score(value, n, edge) for edge in edges)
    else:
        factor = max(_ratio(value, low, high, edge) for edge in edges) ** 2
    if factor > FAR:
        return None, "no n in sight: the estimate lies on the threshold"
    return max(n + 1, math.ceil(n * factor)), SUPPORTED if holds else NOT_SUPPORTED


def seconds(folder: Path, notebook: str, claim: str) -> float:
    """Seconds of computing of the published rows that a claim rests on."""
    study, chosen = BASIS.get(claim, ("*", ""))
    total = 0.0
    for file in folder.glob(f"{notebook}.{study}.parquet"):
        plain = [field.name for field in pq.read_schema(file) if not pa.types.is_list(field.type)]
        rows = pq.read_table(file, columns=plain).to_pandas()
        total += float((rows.query(chosen) if chosen else rows)[f"{PREFIX}seconds"].sum())
    return total


def _ratio(value: float, low: float, high: float, edge: float) -> float:
    """How many times too wide an interval is on the side of an edge."""
    distance = abs(value - edge)
    return (value - low if edge < value else high - value) / distance if distance else math.inf


def _score(share: float, n: int, edge: float) -> float:
    """How many times as many units bring an end of Wilson's interval to an edge: it inverts the score test."""
    z = stats.norm.isf((1 - LEVEL) / 2)
    return (z / (share - edge)) ** 2 * edge * (1 - edge) / n if share != edge else math.inf


def _evidence(entry: dict) -> str:
    interval = "" if math.isnan(entry["low"]) else f" [{entry['low']:.3g}, {entry['high']:.3g}]"
    return f"{entry['value']:.3g}{interval}, n = {entry['n']:,}"


def _condition(entry: dict) -> str:
    relation, threshold, tolerance = bounds(entry["rule"])
    return f"{relation} {threshold:g}" + (f" within {tolerance:.3g}" if tolerance else "")


def _time(spent: float) -> str:
    if spent < 90:
        return f"about {max(spent, 1):.0f} s"
    return f"about {spent / 60:.0f} min" if spent < 5400 else f"about {spent / 3600:.1f} h"
