"""A claim, its rule, its statistic with interval and n, its verdict; intervals, bands and corrections.

A rule is data that exists before the rows do. A verdict is computed from the rule and the interval, never typed.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lib.provenance import write_atomically
from lib.stats import LEVEL, holm

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
INCONCLUSIVE, UNTESTABLE = "inconclusive at this scale", "cannot be tested"
FIELDS = "id section network dataset regime primary rule statistic value low high n p p_holm null verdict why".split()


@dataclass(frozen=True)
class Rule:
    """What a claim says and when it holds, written before the run.

    Args:
        id: for example "P1.8".
        section: heading of the notebook section that tests it.
        claim: the claim in one line.
        statistic: what is measured, with its unit.
        relation: ">" or "<": the whole interval must lie beyond `threshold`; "=": within `tolerance` of it.
        threshold: in the statistic's unit.
        null: what would be seen with no effect at all.
        tolerance: half-width of the equivalence range of "="; 0 asks for equality.
        open_if: where the statistic has no room to decide, for example at a ceiling; such evidence stays open.
    """

    id: str
    section: str
    claim: str
    statistic: str
    relation: str
    threshold: float
    null: str
    tolerance: float = 0.0
    open_if: str = ""

    def __post_init__(self) -> None:
        if self.relation not in ("<", ">", "="):
            raise ValueError(f"{self.id}: relation is {self.relation!r}; it must be '<', '>' or '='.")

    def __str__(self) -> str:
        within = f" (within {self.tolerance:g})" if self.tolerance else ""
        left_open = f" Open if {self.open_if}." if self.open_if else ""
        return f"{self.claim} Holds if {self.statistic} {self.relation} {self.threshold:g}{within}.{left_open}"

    def verdict(self, low: float, high: float, p_holm: float | None = None) -> str:
        """Judge an interval [low, high]; a corrected p above 1 - LEVEL turns a support into "inconclusive"."""
        if not low <= high:  # also true of NaN
            return INCONCLUSIVE
        near, far = {
            ">": (low > self.threshold, high <= self.threshold),
            "<": (high < self.threshold, low >= self.threshold),
            "=": (
                abs(low - self.threshold) <= self.tolerance and abs(high - self.threshold) <= self.tolerance,
                low > self.threshold + self.tolerance or high < self.threshold - self.tolerance,
            ),
        }[self.relation]
        if near and p_holm is not None and p_holm > 1 - LEVEL:
            return INCONCLUSIVE
        return SUPPORTED if near else NOT_SUPPORTED if far else INCONCLUSIVE


def bounds(rule: str) -> tuple[str, float, float]:
    """Relation, threshold and tolerance of a rule as a claims file words it (`str(Rule)`).

    Raises ValueError for a text that no rule writes.
    """
    found = re.search(r" ([<>=]) (\S+?)(?: \(within (\S+)\))?\.(?: Open if .*)?$", rule)
    if not found:
        raise ValueError(f"{rule!r} is no rule: it does not name a relation and a threshold at its end.")
    return found[1], float(found[2]), float(found[3] or 0)


@dataclass
class Ledger:
    """The claims of one notebook: rules first, evidence later, verdicts at the end."""

    rules: Sequence[Rule]
    _entries: list[dict] = field(default_factory=list)

    def rule(self, claim: str) -> Rule:
        return next(rule for rule in self.rules if rule.id == claim)

    def enter(
        self,
        claim: str,
        value: float,
        interval: tuple[float, float] | None = None,
        *,
        n: int,
        p: float | None = None,
        network: str = "",
        dataset: str = "",
        regime: str = "",
        primary: bool = True,
        open: bool = False,
        why: str = "",
    ) -> None:
        """Enter the evidence on a claim.

        Args:
            value: the rule's statistic.
            interval: its confidence interval at `LEVEL`; none for an exact value (a count, a closed form).
            n: how many units the statistic is taken over; `why` says what they are and what they share.
            p: of the null hypothesis; primary ones are corrected together.
            primary: whether this entry decides the claim; others are shown beside it.
            open: whether the rule's `open_if` is the case; ValueError if the rule has none.
            why: one line on how to read it.
        """
        rule = self.rule(claim)
        if open and not rule.open_if:
            raise ValueError(f"{claim} has no `open_if`: say in its rule when it stays open.")
        low, high = (value, value) if interval is None else interval
        self._entries.append(
            dict.fromkeys(FIELDS)
            | {"id": claim, "section": rule.section, "network": network, "dataset": dataset, "regime": regime}
            | {"primary": primary, "rule": str(rule), "statistic": rule.statistic, "value": float(value)}
            | {"low": float(low), "high": float(high), "n": int(n), "p": p, "null": rule.null, "why": why}
            | {"verdict": INCONCLUSIVE if open else None}
        )

    def untestable(self, claim: str, why: str) -> None:
        """Enter that a claim cannot be tested, and for lack of which input."""
        rule = self.rule(claim)
        entry = {"id": claim, "section": rule.section, "primary": True, "rule": str(rule), "n": 0}
        entry |= {"statistic": rule.statistic, "null": rule.null, "verdict": UNTESTABLE, "why": why}
        self._entries.append(dict.fromkeys(FIELDS) | entry)

    def entries(self) -> list[dict]:
        """All entries with verdicts, by id; ValueError unless every claim has exactly one primary entry."""
        for rule in self.rules:
            if (found := sum(e["primary"] for e in self._entries if e["id"] == rule.id)) != 1:
                raise ValueError(f"{rule.id} has {found} primary entries; it needs exactly one.")
        tested = [e for e in self._entries if e["primary"] and e["p"] is not None]
        corrected = dict(zip(map(id, tested), holm([e["p"] for e in tested]), strict=True))
        judged = []
        for entry in sorted(self._entries, key=lambda e: [r.id for r in self.rules].index(e["id"])):
            p_holm = corrected.get(id(entry))
            verdict = entry["verdict"] or self.rule(entry["id"]).verdict(entry["low"], entry["high"], p_holm)
            judged.append(entry | {"p_holm": p_holm, "verdict": verdict})
        return judged

    def table(self) -> pd.DataFrame:
        """The primary entries as a table to read."""
        rows = [
            {
                "claim": entry["id"],
                "what it says": self.rule(entry["id"]).claim,
                "statistic": entry["statistic"],
                "value": _interval_text(entry),
                "n": entry["n"],
                "verdict": entry["verdict"],
                "why": entry["why"],
            }
            for entry in self.entries()
            if entry["primary"]
        ]
        return pd.DataFrame(rows).set_index("claim")

    def decided(self, sized_for: Sequence[str]) -> str:
        """A sentence: how many of the claims that a profile is sized to decide were decided."""
        if unknown := sorted(set(sized_for) - {rule.id for rule in self.rules}):
            raise ValueError(f"decides names {unknown}, which no rule has: known are {[r.id for r in self.rules]}.")
        settled = {e["id"] for e in self.entries() if e["primary"] and e["verdict"] in (SUPPORTED, NOT_SUPPORTED)}
        missed = [claim for claim in sized_for if claim not in settled]
        n = len(sized_for)
        sentence = f"{n - len(missed)} of the {n} claims this profile is sized for are decided"
        return sentence + (f"; open: {', '.join(missed)}." if missed else ".")

    def save(self, folder: Path, notebook: str) -> None:
        """Write `NN_name.claims.json`: no times, commits or devices in it."""
        text = json.dumps(self.entries(), indent=1, ensure_ascii=False)
        write_atomically(folder / f"{notebook}.claims.json", (text + "\n").encode())


def _interval_text(entry: dict) -> str:
    if entry["value"] is None:
        return "-"
    exact = entry["low"] == entry["value"] == entry["high"]
    return f"{entry['value']:.4g}" + ("" if exact else f" [{entry['low']:.4g}, {entry['high']:.4g}]")
