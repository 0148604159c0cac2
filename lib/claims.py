"""A claim, its rule, its evidence with interval and n, its forks, its verdict.

A rule is data, written before the run. A verdict is computed from the rule and the interval, never typed.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lib.provenance import write_atomically

# stats and pandas are imported where evidence is judged, because a batch that starts reads only the rules.
if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
INCONCLUSIVE, UNTESTABLE = "inconclusive at this scale", "cannot be tested"
HOLDS, FAILS = "holds", "fails"  # of statements that mathematics settles
PACKAGES = {
    "01_latent_kl": "latent",
    "02_tensor_truncation": "truncation",
    "03_pruning_spaces": "spaces",
    "04_spline_early_bird": "spline",
    "05_which_one": "which",
}
FIELDS = (
    "id section mathematical network dataset regime scale primary fork claim statistic unit relation threshold "
    "tolerance open_if n_unit value low high n p p_holm null verdict why"
).split()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a claim says and when it holds, written before the run.

    Args:
        id: for example "P1.8".
        section: heading of the notebook section that tests it.
        claim: the claim in one sentence.
        statistic: the measured quantity, without its unit.
        unit: of the statistic and of `threshold`; "" for a pure number.
        relation: ">" or "<": the whole interval lies beyond `threshold`; "=": within `tolerance` of it.
        threshold: in `unit`.
        tolerance: half-width of the equivalence range of "="; 0 asks for equality.
        null: the value of the statistic if there is no effect at all.
        open_if: the case in which the statistic has no room to decide, for example at a ceiling.
        n_unit: the things that n counts.
        mathematical: whether mathematics fixes the outcome. Such a statement holds or fails, whatever the networks, and
            is counted apart from the claims that an experiment tests.

    Raises:
        ValueError: for another relation.
    """

    id: str
    section: str
    claim: str
    statistic: str
    unit: str = ""
    relation: str
    threshold: float = 0
    tolerance: float = 0.0
    null: str = "0"
    open_if: str = ""
    n_unit: str
    mathematical: bool = False

    def __post_init__(self) -> None:
        if self.relation not in ("<", ">", "="):
            raise ValueError(f"{self.id}: relation is {self.relation!r}; it must be '<', '>' or '='.")

    @property
    def condition(self) -> str:
        """The condition on the statistic, such as "> 0 points" or "= 0 within 0.095"."""
        within = f" within {self.tolerance:.3g}" if self.tolerance else ""
        return f"{self.relation} {self.threshold:g}{within} {self.unit}".rstrip()

    def __str__(self) -> str:
        left_open = f" It stays open if {self.open_if}." if self.open_if else ""
        return f"{self.id}. {self.claim} Rule: {self.statistic} {self.condition}.{left_open}"

    def verdict(self, low: float, high: float, p_holm: float | None = None) -> str:
        """Judge an interval.

        Args:
            low: lower end of the interval, in `unit`.
            high: upper end.
            p_holm: corrected p of the null; above 1 - `stats.LEVEL` it turns a support into "inconclusive". A p that
                is NaN could not be computed and does the same.

        Returns:
            SUPPORTED, NOT_SUPPORTED or INCONCLUSIVE; HOLDS or FAILS in place of the first two if it is mathematical.
        """
        from lib.stats import LEVEL

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
        if near and p_holm is not None and not p_holm <= 1 - LEVEL:
            return INCONCLUSIVE
        yes, no = (HOLDS, FAILS) if self.mathematical else (SUPPORTED, NOT_SUPPORTED)
        return yes if near else no if far else INCONCLUSIVE


BASELINE_RULES = (  # of the dense networks, which belong to no paper
    Rule(
        id="B0.1",
        section="Do the hidden layers earn their keep?",
        claim="Every dense network is more accurate than a linear classifier on the same pixels.",
        statistic="gain in test accuracy over the linear classifier, of the network where it is smallest",
        unit="points",
        relation=">",
        null="a network whose hidden layers add nothing gains 0 points",
        n_unit="seeds, on one test set",
    ),
    Rule(
        id="B0.2",
        section="Could it be a leak?",
        claim="Trained on shuffled labels, a network is at chance on the test set.",
        statistic="test accuracy minus chance",
        unit="points",
        relation="=",
        tolerance=5,
        null="test labels that reach the network past the training labels keep it far above chance",
        n_unit="seeds, each with its own permutation, on one test set",
    ),
    Rule(
        id="B0.3",
        section="Are the public checkpoints what they say?",
        claim="Public checkpoints misclassify exactly as many test images as their authors publish.",
        statistic="largest difference from the published number of wrong images",
        unit="images",
        relation="=",
        null="any difference in preprocessing or architecture moves some of 10,000 images",
        n_unit="checkpoints, each on 10,000 test images",
    ),
    Rule(
        id="B0.4",
        section="Does bfloat16 cost accuracy?",
        claim="Trained in bfloat16, a network is as accurate as trained in float32.",
        statistic="test accuracy after training in bfloat16 minus that in float32, mean over pairs",
        unit="points",
        relation="=",
        tolerance=0.5,
        null="two trainings in float32 that differ by rounding alone differ by 0 points on average",
        n_unit="pairs of trainings with one seed, on one test set",
    ),
)
NETWORK_RULES = (  # of a reader's own network
    Rule(
        id="N0.1",
        section="Take it elsewhere",
        claim="A network, compressed or masked, computes the same after export, in every format.",
        statistic="largest difference of the outputs after loading, over the largest output",
        relation="=",
        tolerance=1e-5,
        null="a file that lost a channel, a mask or a statistic differs by as much as the outputs themselves",
        n_unit="files, each on the same images",
    ),
)


def rules_of(notebook: str) -> tuple[Rule, ...]:
    """The rules that a notebook tests, in order; none for a notebook that has no claims."""
    if notebook == "00_baselines":
        return BASELINE_RULES
    if notebook == "06_your_network":
        return NETWORK_RULES
    return import_module(f"lib.{PACKAGES[notebook]}.claims").RULES if notebook in PACKAGES else ()


@dataclass
class Ledger:
    """The claims of one notebook: rules first, evidence later, verdicts at the end."""

    rules: Sequence[Rule]
    scale: str = ""  # of the experiments, such as "640 images"; verdicts carry it
    _entries: list[dict] = field(default_factory=list)

    def rule(self, claim: str) -> Rule:
        """The rule of a claim, by its id."""
        return next(rule for rule in self.rules if rule.id == claim)

    def show(self) -> "HTML":
        """All rules in one table that unfolds: the statements that mathematics settles, then the claims."""
        from IPython.display import HTML

        names = ("id", "claim", "statistic", "condition", "null", "n_unit")
        heads = ("claim", "it says", "statistic", "holds if", "without any effect", "n counts")
        kinds = {"statements that mathematics settles": True, "claims": False}
        kinds = {what: [rule for rule in self.rules if rule.mathematical == kind] for what, kind in kinds.items()}
        kinds, lines = {what: rules for what, rules in kinds.items() if rules}, []
        for what, rules in kinds.items():
            lines += [f"<th colspan={len(heads)}>{what}</th>"] if len(kinds) > 1 else []
            lines.append("".join(f"<th>{head}</th>" for head in heads))
            for rule in rules:
                lines.append("".join(f"<td>{html.escape(str(getattr(rule, name)))}</td>" for name in names))
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        counts = " and ".join(f"{len(rules)} {what}" for what, rules in kinds.items())
        summary = f"{counts}, with their rules, written before the run: open to read"
        return HTML(f"<details><summary>{summary}</summary><table>{table}</table></details>")

    def enter(
        self,
        claim: str,
        *,
        value: float,
        n: int,
        low: float | None = None,
        high: float | None = None,
        p: float | None = None,
        network: str = "",
        dataset: str = "",
        regime: str = "",
        fork: str = "",
        primary: bool = True,
        open: bool = False,
        n_unit: str = "",
        scale: str = "",
        why: str = "",
    ) -> None:
        """Enter the evidence on a claim.

        Args:
            claim: id of its rule.
            value: the rule's statistic.
            n: number of units that the statistic is taken over.
            low: lower end of its confidence interval at `stats.LEVEL`; none for an exact value, such as a count.
            high: upper end.
            p: of the null hypothesis; the primary ones are corrected together. NaN if it cannot be computed.
            network: the network that the evidence is about, if it is about one.
            dataset: likewise the data set.
            regime: any other part of the trials that the evidence is about.
            fork: a choice that differs from the primary entry, such as "tuning_lr = 0.01".
            primary: whether this entry decides the claim; the others are shown beside it. An entry of a fork never is.
            open: whether the rule's `open_if` is the case.
            n_unit: the things that n counts, where they differ from the rule's.
            scale: of the experiment, where it differs from the notebook's.
            why: one line on how to read it.

        Raises:
            ValueError: if `open` is set and the rule has no `open_if`, or if an interval has one end only.
        """
        rule = self.rule(claim)
        if open and not rule.open_if:
            raise ValueError(f"{claim} has no `open_if`: say in its rule when it stays open.")
        if (low is None) != (high is None):
            raise ValueError(f"{claim} needs both ends of its interval, or none for an exact value.")
        low, high = (value, value) if low is None else (low, high)
        self._entries.append(
            self._blank(rule)
            | {"network": network, "dataset": dataset, "regime": regime, "scale": scale}
            | {"primary": primary and not fork, "fork": fork, "n_unit": n_unit or rule.n_unit}
            | {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}
            | {"p": None if p is None else float(p), "why": why, "verdict": INCONCLUSIVE if open else None}
        )

    def untestable(self, claim: str, why: str) -> None:
        """Enter that a claim cannot be tested; `why` names the missing input."""
        entry = {"primary": True, "n": 0, "verdict": UNTESTABLE, "why": why}
        self._entries.append(self._blank(self.rule(claim)) | entry)

    def entries(self) -> list[dict]:
        """All entries with their verdicts, by claim.

        The p-values of the primary entries are corrected together (Holm). That of a fork is corrected in the place of
        its claim's primary one, so that a fork differs by its data alone.

        Raises:
            ValueError: unless every claim has exactly one primary entry, and each fork a p where that entry has one.
        """
        for rule in self.rules:
            own = [entry for entry in self._entries if entry["id"] == rule.id]
            if len(primary := [entry for entry in own if entry["primary"]]) != 1:
                raise ValueError(f"{rule.id} has {len(primary)} primary entries; it needs exactly one.")
            for entry in own:
                if entry["fork"] and entry["p"] is None and primary[0]["p"] is not None:
                    raise ValueError(f"{rule.id}: the fork {entry['fork']!r} needs a p, as the primary entry has one.")
        order = {rule.id: place for place, rule in enumerate(self.rules)}
        judged = []
        for entry in sorted(self._entries, key=lambda entry: order[entry["id"]]):
            p_holm = self._corrected(entry) if entry["primary"] or entry["fork"] else None
            verdict = entry["verdict"] or self.rule(entry["id"]).verdict(entry["low"], entry["high"], p_holm)
            scale = "" if entry["mathematical"] else entry["scale"] or self.scale
            judged.append(entry | {"p_holm": p_holm, "verdict": verdict, "scale": scale})
        return judged

    def table(self, mathematical: bool = False) -> "pd.DataFrame":
        """The primary entries as a table to read, with the number of forks that share each verdict and the others.

        It is about the claims that an experiment tests, or about the statements that mathematics settles.
        """
        import pandas as pd

        entries, rows = self.entries(), []
        for entry in (e for e in entries if e["primary"] and e["mathematical"] == mathematical):
            rows.append(
                {
                    "claim": entry["id"],
                    "it says": entry["claim"],
                    "statistic": f"{entry['statistic']} ({entry['unit']})" if entry["unit"] else entry["statistic"],
                    "value": evidence(entry),
                    "n": f"{entry['n']:,} {entry['n_unit'] or ''}",
                    "verdict": verdict_text(entry),
                    "forks": forks_text(entry, entries),
                    "remark": entry["why"],
                }
            )
        table = pd.DataFrame(rows).set_index("claim")
        return table if table["forks"].any() else table.drop(columns="forks")

    def decided(self, sized_for: Sequence[str]) -> str:
        """Sentences with the numbers of decided claims and of statements that hold.

        Claims count if a profile is sized to decide them; what mathematics settles is counted apart, on every profile.
        """
        verdicts = {entry["id"]: entry["verdict"] for entry in self.entries() if entry["primary"]}
        statements = {rule.id: verdicts[rule.id] for rule in self.rules if rule.mathematical}
        claims = [claim for claim in sized_for if claim not in statements]
        missed = [claim for claim in claims if verdicts[claim] not in (SUPPORTED, NOT_SUPPORTED)]
        sentences = []
        if claims:
            left = f"; open: {', '.join(missed)}." if missed else "."
            decided = f"{len(claims) - len(missed)} of the {len(claims)} claims"
            sentences = [f"{decided} this profile is sized for are decided{left}"]
        if statements:
            failed = [claim for claim, verdict in statements.items() if verdict == FAILS]
            held, names = [*statements.values()].count(HOLDS), f" ({', '.join(failed)})" if failed else ""
            sentences.append(f"Of {len(statements)} statements of mathematics {held} hold, {len(failed)} fail{names}.")
        return " ".join(sentences)

    def save(self, folder: Path, notebook: str) -> None:
        """Write `NN_name.claims.json`: no times, commits or devices in it."""
        text = json.dumps(self.entries(), indent=1, ensure_ascii=False)
        write_atomically(folder / f"{notebook}.claims.json", (text + "\n").encode())

    @staticmethod
    def _blank(rule: Rule) -> dict:
        empty = dict.fromkeys(("network", "dataset", "regime", "scale", "fork"), "")
        return dict.fromkeys(FIELDS) | empty | asdict(rule)

    def _corrected(self, entry: dict) -> float | None:
        """The p of an entry after Holm's correction among the primary entries of the other claims."""
        from lib.stats import holm

        if entry["p"] is None:
            return None
        others = [e["p"] for e in self._entries if e["primary"] and e["p"] is not None and e["id"] != entry["id"]]
        return holm([entry["p"], *others])[0]


def evidence(entry: dict) -> str:
    """The value of an entry with its interval, to four digits."""
    if entry["value"] is None:
        return "-"
    exact = entry["low"] == entry["value"] == entry["high"]
    return f"{entry['value']:.4g}" + ("" if exact else f" [{entry['low']:.4g}, {entry['high']:.4g}]")


def verdict_text(entry: dict) -> str:
    """The verdict of an entry with the scale of its experiment, such as "not supported on 640 images"."""
    decided = entry["verdict"] in (SUPPORTED, NOT_SUPPORTED)
    return f"{entry['verdict']} on {entry['scale']}" if decided and entry.get("scale") else entry["verdict"]


def forks_text(primary: dict, entries: Sequence[dict]) -> str:
    """The number of forks that share the verdict of a claim's primary entry, which counts as one, and the others."""
    forks = [entry for entry in entries if entry["id"] == primary["id"] and entry["fork"]]
    if not forks:
        return ""
    flips = [f"{entry['verdict']} with {entry['fork']}" for entry in forks if entry["verdict"] != primary["verdict"]]
    return "; ".join([f"{1 + len(forks) - len(flips)} of {1 + len(forks)}", *flips])
