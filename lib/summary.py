"""Published results as tables: the claims of a profile, their cost, the open ones; how two runs differ.

python -m lib.summary readme          write runs/<profile>/README.md for every profile with published results
python -m lib.summary compare A B     list verdicts and statistics that differ between two folders of results
"""

import json
import math
from dataclasses import fields
from pathlib import Path

import pandas as pd
from scipy.stats import norm

from lib import provenance
from lib.claims import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NOT_SUPPORTED,
    SUPPORTED,
    UNTESTABLE,
    Rule,
    evidence,
    forks_text,
    verdict_text,
)
from lib.parameters import profile_parameters
from lib.provenance import CompanionError, command, root, write_atomically
from lib.stats import LEVEL, quantile, wilson

PUBLISHED = ("laptop", "gpu")  # profiles whose results are committed
FAR = 100  # an estimate that needs more than this times its n is at its threshold
PAGE = """\
# Results of the profile `{profile}`

`make readme` writes this page from the published files beside it.
[How to read it](../../docs/results.md) explains every column, and the fields of the files.

## How many claims are decided

{counts}
Claims are what an experiment tests. What mathematics settles is counted apart, in the last three columns.

{claims}
## What would settle the open claims

{open}
## What it cost

{costs}"""


def claims_of(folder: Path) -> list[dict]:
    """All entries of the claims files in a folder such as `runs/laptop`, each with the name of its `notebook`."""
    files = sorted(folder.glob("*.claims.json"))
    return [{"notebook": file.name.split(".")[0]} | entry for file in files for entry in json.loads(file.read_bytes())]


def page(profile: str) -> str:
    """The tables of a profile's published results, as Markdown."""
    entries = claims_of(root() / "runs" / profile)
    notebooks = {entry["notebook"]: [e for e in entries if e["notebook"] == entry["notebook"]] for entry in entries}
    sized = {claim for notebook in notebooks for claim in profile_parameters(profile, notebook)["decides"]}
    claims = []
    for name, own in notebooks.items():
        claims.append(f"## The claims of [`{name}`]({name}.ipynb)\n\n{claims_table(own)}")
        if any(entry["mathematical"] for entry in own):
            claims.append(f"### What mathematics settles in `{name}`\n\n{claims_table(own, mathematical=True)}")
    return PAGE.format(
        profile=profile,
        counts=counts_table(entries, sized),
        claims="\n".join(claims),
        open=open_table(entries, sized),
        costs=costs_table(profile, list(notebooks)),
    )


def counts_table(entries: list[dict], sized: set[str]) -> str:
    """Number of claims by verdict for each notebook, and how many of those in `sized` are decided.

    The last columns count what mathematics settles, which is in no other column.
    """
    verdicts = [SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, UNTESTABLE]
    claims = pd.DataFrame([entry for entry in entries if entry["primary"]])
    statements = claims[claims["mathematical"]]
    claims = claims[~claims["mathematical"]].copy()
    claims["sized for"] = claims["id"].isin(sized)
    claims["of these decided"] = claims["sized for"] & claims["verdict"].isin([SUPPORTED, NOT_SUPPORTED])
    counts = pd.crosstab(claims["notebook"], claims["verdict"]).reindex(columns=verdicts, fill_value=0)
    counts.insert(0, "claims", counts.sum(axis=1))
    counts = counts.join(claims.groupby("notebook")[["sized for", "of these decided"]].sum())
    proved = statements.groupby("notebook")["verdict"].value_counts().unstack().reindex(columns=[HOLDS, FAILS])
    proved.insert(0, "statements of mathematics", statements.groupby("notebook").size())
    counts = counts.join(proved).fillna(0).astype(int)
    counts.loc["all"] = counts.sum()
    return markdown(counts.reset_index().to_dict("records"))


def claims_table(entries: list[dict], mathematical: bool = False) -> str:
    """The primary entries with their rules; with forks, in how many the verdict is the same.

    They are those on claims that an experiment tests, or those on statements that mathematics settles.
    """
    rows = []
    for entry in (e for e in entries if e["primary"] and e["mathematical"] == mathematical):
        row = {"claim": entry["id"], "it says": entry["claim"], "verdict": verdict_text(entry), **_evidence(entry)}
        row |= {"forks": forks_text(entry, entries), "statistic": entry["statistic"]}
        rows.append(row | {"remark": entry["why"], "section": entry["section"]})
    return markdown(rows)


def open_table(entries: list[dict], sized: set[str]) -> str:
    """The inconclusive claims with the n that would settle each; a star marks those in `sized`."""
    rows = []
    for entry in (entry for entry in entries if entry["primary"] and entry["verdict"] == INCONCLUSIVE):
        n, outcome = needed(entry)
        row = {"claim": entry["id"] + " *" * (entry["id"] in sized), **_evidence(entry)}
        rows.append(row | {"n that settles it": f"{n:,}" if n else "", "expected": outcome})
    return markdown(rows)


def needed(entry: dict) -> tuple[int | None, str]:
    """The n that would decide an inconclusive entry, and the verdict then; or None, and why no n would.

    The estimate is kept and its interval shrinks as 1/√n, or as Wilson's for a share. Where only the corrected p is
    too large, z grows as √n under an unchanged correction.
    """
    rule, n, p = _rule(entry), entry["n"], entry["p"]
    if not entry["low"] <= entry["high"]:
        return None, entry["why"]
    by_interval, outcome = rule.verdict(entry["low"], entry["high"]), rule.verdict(entry["value"], entry["value"])
    if by_interval == SUPPORTED and p is not None and entry["p_holm"] > 1 - LEVEL:
        wanted = (1 - LEVEL) * p / entry["p_holm"]
        growth = (norm.isf(wanted / 2) / norm.isf(p / 2)) ** 2
        outcome += "; only the corrected p is too large"
    elif by_interval != INCONCLUSIVE:
        return None, f"open because {rule.open_if}" if rule.open_if else "its p cannot be computed"
    else:
        growth = max(_growth(entry, rule.threshold + side * rule.tolerance) for side in (-1, 1))
    if growth > FAR:
        return None, "the estimate is at its threshold"
    return max(n + 1, math.ceil(n * growth)), outcome


def _growth(entry: dict, end: float) -> float:
    """The factor by which n must grow until the interval of an entry no longer contains `end`."""
    value, low, high, n = (entry[name] for name in ("value", "low", "high", "n"))
    if value == end:
        return math.inf
    if 0 <= value <= 1 and math.dist(wilson(round(value * n), n), (low, high)) < 1e-9:
        return (quantile() / (value - end)) ** 2 * end * (1 - end) / n  # Wilson's interval inverts the score test
    return ((value - low if end < value else high - value) / (value - end)) ** 2


def costs_table(profile: str, notebooks: list[str]) -> str:
    """Computing time, peak memory of a process and size on disk of each notebook."""
    runs, figures = root() / "runs" / profile, root() / "figures" / profile
    rows = {name: pd.concat(map(pd.read_parquet, runs.glob(f"{name}.*.parquet"))) for name in notebooks}
    costs = provenance.table(rows).T[["trials", "seconds of computing", "peak memory (MiB)", "device"]]
    files = {name: [*runs.glob(f"{name}.*"), *figures.glob(f"{name[:2]}_*")] for name in notebooks}
    costs["MiB on disk"] = [round(sum(file.stat().st_size for file in files[name]) / 2**20, 1) for name in notebooks]
    costs.loc["all"] = costs.drop(columns=["peak memory (MiB)", "device"]).sum()
    return markdown(costs.fillna("").rename_axis("notebook").reset_index().to_dict("records"))


def compare(first: Path, second: Path) -> list[str]:
    """One line for each primary claim whose verdict or statistic differs between two folders of results.

    Raises:
        CompanionError: if a folder holds no claims.
    """
    sides, lines = [], []
    for folder in (first, second):
        sides.append({f"{entry['notebook']} {entry['id']}": entry for entry in claims_of(folder) if entry["primary"]})
        if not sides[-1]:
            raise CompanionError(f"{folder} holds no claims: name a folder such as runs/laptop.")
    for claim in sorted(sides[0].keys() | sides[1].keys()):
        a, b = (side.get(claim) for side in sides)
        if a is None or b is None:
            lines.append(f"{claim}: only in {first if b is None else second}")
        elif any(str(a[name]) != str(b[name]) for name in ("verdict", "value", "low", "high", "n")):
            before, after = (f"{side['verdict']}, {evidence(side)}, n = {side['n']:,}" for side in (a, b))
            lines.append(f"{claim}: {before} -> {after}")
    return lines


def _evidence(entry: dict) -> dict:
    n = f"{entry['n']:,} {entry['n_unit'] or ''}".strip()
    return {"value": evidence(entry), "holds if": _rule(entry).condition, "n": n}


def _rule(entry: dict) -> Rule:
    return Rule(**{field.name: entry[field.name] for field in fields(Rule)})


def markdown(rows: list[dict]) -> str:
    """Rows of equal keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)] if rows else [["none"], ["---"]]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main(arguments: list[str]) -> None:
    """Run the command that the first argument names."""
    match arguments:
        case ["readme"]:
            for profile in PUBLISHED:
                if claims_of(root() / "runs" / profile):
                    write_atomically(root() / "runs" / profile / "README.md", page(profile).encode())
        case ["compare", first, second]:
            print("\n".join(compare(Path(first), Path(second))) or "Every verdict and every statistic is the same.")
        case _:
            raise CompanionError(__doc__)


if __name__ == "__main__":
    command(main)
