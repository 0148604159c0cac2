"""How far a profile decides its claims, and what would settle each open one: how many more units, at what cost.

Intervals are taken to shrink as 1 / sqrt(n), those of shares as Wilson's do, about an estimate that stays where it is.
That is a forecast for planning the next run, and no part of any verdict.

What published results say, as tables: claims, costs and what is open in the README, and how two runs differ.

python -m lib.summary readme          write the tables into README.md
python -m lib.summary compare A B     verdicts and statistics that differ between two folders of results
"""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from lib import parameters
from lib.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, UNTESTABLE, Rule, bounds
from lib.provenance import PREFIX, CompanionError, command, root, write_atomically
from lib.stats import LEVEL, wilson

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


PUBLISHED = ("laptop", "gpu")  # profiles whose results are committed, in the order of the tables


def claims_of(folder: Path) -> dict[str, list[dict]]:
    """The primary entries of every claims file of a folder such as `runs/laptop`, by notebook."""
    files = sorted(folder.glob("*.claims.json"))
    return {
        file.name.removesuffix(".claims.json"): [entry for entry in json.loads(file.read_text()) if entry["primary"]]
        for file in files
    }


def evidence(entry: dict) -> str:
    """The statistic of an entry with its interval and n, in one short line."""
    if entry["value"] is None:
        return entry["why"]
    interval = "" if entry["low"] == entry["high"] else f" [{_short(entry['low'])}, {_short(entry['high'])}]"
    return f"{_short(entry['value'])}{interval}, n = {entry['n']:,}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def claims_tables() -> str:
    """The claims of every published profile, a folded table a notebook, as Markdown."""
    parts = []
    for profile in PUBLISHED:
        for notebook, entries in claims_of(root() / "runs" / profile).items():
            counts = Counter(entry["verdict"] for entry in entries)
            told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
            parts.append(f"<details><summary><code>{notebook}</code>, {profile}: {told}</summary>\n")
            parts.append(f"Sections of [the executed notebook](runs/{profile}/{notebook}.ipynb).\n")
            parts.append(
                "| claim | what it says | verdict | statistic | evidence | section |\n|---|---|---|---|---|---|"
            )
            for entry in entries:
                claim = entry["rule"].split(" Holds if ")[0]
                cells = (entry["id"], claim, entry["verdict"], entry["statistic"], evidence(entry), entry["section"])
                parts.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
            parts.append("\n</details>\n")
    return "\n".join(parts)


def costs_table() -> str:
    """Time, peak memory of a process and size on disk of every published notebook, as Markdown.

    Wall time is estimated: the seconds of all trials over the processes that run side by side, at least the longest.
    """
    lines = [
        "| profile | notebook | trials | wall time, about | computing | memory of a process | on disk | device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for profile in PUBLISHED:
        wall = spent = size = 0.0
        for notebook in claims_of(root() / "runs" / profile):
            seconds, memory, devices = [], 0.0, set()
            for file in sorted((root() / "runs" / profile).glob(f"{notebook}.*.parquet")):
                columns = [f"{PREFIX}{name}" for name in ("seconds", "memory_mb", "device")]
                table = pq.read_table(file, columns=columns).to_pydict()
                seconds += table[columns[0]]
                memory = max([memory, *table[columns[1]]])
                devices |= set(table[columns[2]])
            files = [*(root() / "runs" / profile).glob(f"{notebook}.*")]
            files += (root() / "figures" / profile).glob(f"{notebook[:2]}_*")
            megabytes = sum(file.stat().st_size for file in files) / 2**20
            longest = max([sum(seconds) / parameters.profile_parameters(profile, notebook)["workers"], *seconds])
            wall, spent, size = wall + longest, spent + sum(seconds), size + megabytes
            cells = (
                profile,
                f"`{notebook}`",
                f"{len(seconds):,}",
                f"{longest / 60:.0f} min",
                f"{sum(seconds) / 60:.0f} min",
            )
            cells += (f"{memory / 1024:.1f} GiB", f"{megabytes:.1f} MiB", ", ".join(sorted(devices)))
            lines.append("| " + " | ".join(cells) + " |")
        if spent:
            cells = (
                f"**{profile}**",
                "all",
                "",
                f"{wall / 3600:.1f} h",
                f"{spent / 3600:.1f} h",
                "",
                f"{size:.1f} MiB",
                "",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def open_tables() -> str:
    """How many claims are decided, and what would settle the others (`settling`), as Markdown."""
    folders = {profile: root() / "runs" / profile for profile in PUBLISHED}
    results = {profile: found for profile, folder in folders.items() if (found := claims_of(folder))}
    return counts_table(results) + "\n" + open_table(results, folders)


def with_tables(text: str) -> str:
    """A README with the tables between their marks made anew. Raises CompanionError if a mark is missing."""
    for name, made in (("claims", claims_tables()), ("costs", costs_table()), ("open", open_tables())):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise CompanionError(f"README.md needs the marks {start.strip()} and {end} once each: put them back.")
        before, rest = text.split(start)
        text = before + start + made + end + rest.split(end)[1]
    return text


def compare(first: Path, second: Path) -> list[str]:
    """One line for each primary claim whose verdict or statistic differs between two folders of results.

    Raises CompanionError if a folder holds no claims.
    """
    lines, sides = [], []
    for folder in (first, second):
        if not (found := claims_of(folder)):
            raise CompanionError(f"{folder} holds no claims: name a folder such as runs/laptop.")
        sides.append({(notebook, entry["id"]): entry for notebook, entries in found.items() for entry in entries})
    for key in sorted(sides[0].keys() | sides[1].keys()):
        a, b = (side.get(key) for side in sides)
        name = f"{key[0]} {key[1]}"
        if a is None or b is None:
            lines.append(f"{name}: only in {first if b is None else second}")
        elif a["verdict"] != b["verdict"]:
            lines.append(f"{name}: {a['verdict']} ({evidence(a)}) -> {b['verdict']} ({evidence(b)})")
        elif any(not _same(a[field], b[field]) for field in ("value", "low", "high", "n")):
            lines.append(f"{name}: {a['verdict']}, {evidence(a)} -> {evidence(b)}")
    return lines


def _same(a: float | None, b: float | None) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return a == b or both_nan


def main(arguments: list[str]) -> None:
    match arguments:
        case ["readme"]:
            readme = root() / "README.md"
            write_atomically(readme, with_tables(readme.read_text()).encode())
        case ["compare", first, second]:
            print("\n".join(compare(Path(first), Path(second))) or "Every verdict and every statistic is the same.")
        case _:
            raise CompanionError(__doc__)


if __name__ == "__main__":
    command(main)
