"""What published results say, as tables: claims, costs and what is open in the README, and how two runs differ.

python -m lib.summary readme          write the tables into README.md
python -m lib.summary compare A B     verdicts and statistics that differ between two folders of results
"""

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from lib import parameters, settling
from lib.provenance import PREFIX, CompanionError, command, root, write_atomically

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
    return settling.counts_table(results) + "\n" + settling.open_table(results, folders)


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
