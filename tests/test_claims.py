"""Verdicts follow from rules and intervals; forks are counted; the rules stand before the rows."""

import ast
import json
from dataclasses import fields

import nbformat
import pytest

from lib import claims, summary
from lib.claims import FAILS, HOLDS, INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, UNTESTABLE, Ledger, Rule
from lib.provenance import root

NAN = float("nan")


def rule(id="P0.1", **changes):
    common = {"section": "A section", "claim": "Something holds.", "statistic": "a statistic", "unit": "points"}
    common |= {"relation": ">", "threshold": 0.0, "null": "no effect gives 0", "n_unit": "seeds"}
    return Rule(id=id, **(common | changes))


@pytest.mark.parametrize(
    ("relation", "tolerance", "low", "high", "verdict"),
    [
        (">", 0, 0.1, 2, SUPPORTED),
        (">", 0, -1, 2, INCONCLUSIVE),
        (">", 0, -2, 0, NOT_SUPPORTED),
        ("<", 0, -2, -1, SUPPORTED),
        ("<", 0, 0, 1, NOT_SUPPORTED),
        ("=", 1, -0.5, 0.9, SUPPORTED),
        ("=", 1, -0.5, 1.1, INCONCLUSIVE),
        ("=", 1, 1.1, 3, NOT_SUPPORTED),
        ("=", 0, 0, 0, SUPPORTED),
        ("=", 0, 1, 1, NOT_SUPPORTED),
        (">", 0, NAN, NAN, INCONCLUSIVE),
        (">", 0, 2, 1, INCONCLUSIVE),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(relation, tolerance, low, high, verdict):
    assert rule(relation=relation, tolerance=tolerance).verdict(low, high) == verdict


def test_a_corrected_p_above_five_per_cent_takes_a_support_back_but_makes_none():
    assert rule().verdict(0.1, 1, p_holm=0.04) == SUPPORTED
    assert rule().verdict(0.1, 1, p_holm=0.06) == INCONCLUSIVE
    assert rule().verdict(-1, -0.1, p_holm=0.001) == NOT_SUPPORTED


def test_a_rule_takes_keywords_and_known_relations_only():
    with pytest.raises(TypeError):
        Rule("P0.1", "A section", "Something holds.", "a statistic", "points", ">", 0, 0, "0", "", "seeds")
    with pytest.raises(ValueError, match="must be"):
        rule(relation="!=")


def test_the_sentence_of_a_rule_holds_its_condition():
    assert "a statistic > 0 points" in str(rule())
    assert "a statistic = 2.5 within 0.5 points" in str(rule(relation="=", threshold=2.5, tolerance=0.5))


def test_holm_corrects_primary_ps_together_and_leaves_the_others_out():
    ledger = Ledger([rule("a"), rule("b"), rule("c")])
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=0.03)
    ledger.enter("b", value=1, low=0.5, high=2, n=10, p=0.01)
    ledger.enter("c", value=1, n=10)
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=0.0001, primary=False)
    entries = {(e["id"], e["primary"]): e for e in ledger.entries()}
    assert entries["a", True]["p_holm"] == pytest.approx(0.03)
    assert entries["b", True]["p_holm"] == pytest.approx(0.02)
    assert entries["c", True]["p_holm"] is None and entries["a", False]["p_holm"] is None


def test_a_p_that_could_not_be_computed_leaves_its_claim_open_and_no_other():
    ledger = Ledger([rule("a"), rule("b")])
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=NAN)
    ledger.enter("b", value=1, low=0.5, high=2, n=10, p=0.01)
    assert [entry["verdict"] for entry in ledger.entries()] == [INCONCLUSIVE, SUPPORTED]


def with_forks() -> Ledger:
    ledger = Ledger([rule("a"), rule("b")])
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=0.01)
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=0.015, fork="lr = 0.1")
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=0.03, fork="lr = 1", primary=True)
    ledger.enter("a", value=-1, low=-2, high=-0.5, n=10, p=0.01, fork="no scatter")
    ledger.enter("b", value=1, low=0.5, high=2, n=10, p=0.02)
    return ledger


def test_an_entry_of_a_fork_is_never_primary():
    assert [e["fork"] for e in with_forks().entries() if e["primary"]] == ["", ""]


def test_the_p_of_a_fork_is_corrected_in_the_place_of_its_claims_primary_one():
    corrected = {entry["fork"]: entry["p_holm"] for entry in with_forks().entries() if entry["id"] == "a"}
    assert corrected["lr = 0.1"] == pytest.approx(0.03)  # beside b's 0.02; the primary's own 0.01 is left out
    assert corrected["lr = 1"] == pytest.approx(0.04)
    assert corrected[""] == pytest.approx(0.02)
    alone = Ledger([rule("a"), rule("b")])
    alone.enter("a", value=1, low=0.5, high=2, n=10, p=0.01)
    alone.enter("b", value=1, low=0.5, high=2, n=10, p=0.02)
    primary = [entry["p_holm"] for entry in with_forks().entries() if entry["primary"]]
    assert primary == [entry["p_holm"] for entry in alone.entries()]  # forks change nothing for the primary entries


def test_a_fork_without_the_p_that_decides_its_claim_is_refused():
    ledger = Ledger([rule("a")])
    ledger.enter("a", value=1, low=0.5, high=2, n=10, p=0.01)
    ledger.enter("a", value=1, low=0.5, high=2, n=10, fork="lr = 1")
    with pytest.raises(ValueError, match="a: the fork 'lr = 1' needs a p, as the primary entry has one"):
        ledger.entries()


def test_the_table_says_in_how_many_forks_the_verdict_is_the_same_and_where_it_flips():
    table = with_forks().table()
    assert table.loc["a", "forks"] == "3 of 4; not supported with no scatter" and table.loc["b", "forks"] == ""
    plain = Ledger([rule()])
    plain.enter("P0.1", value=1, n=1)
    assert "forks" not in plain.table()


def test_evidence_without_room_to_decide_stays_open_only_where_the_rule_says_so():
    roomless = rule("a", open_if="both are at their ceiling")
    assert str(roomless).endswith("both are at their ceiling.")
    ledger = Ledger([roomless, rule("b")])
    ledger.enter("a", value=0, low=0, high=0, n=9, open=True)
    ledger.enter("b", value=1, low=0.5, high=2, n=9)
    assert [entry["verdict"] for entry in ledger.entries()] == [INCONCLUSIVE, SUPPORTED]
    with pytest.raises(ValueError, match="open_if"):
        ledger.enter("b", value=0, low=0, high=0, n=9, open=True, primary=False)


@pytest.mark.parametrize("end", ["low", "high"])
def test_an_interval_with_one_end_is_refused(end):
    with pytest.raises(ValueError, match="both ends"):
        Ledger([rule()]).enter("P0.1", value=1, n=1, **{end: 0.5})


@pytest.mark.parametrize("entries", [0, 2])
def test_every_claim_has_exactly_one_primary_entry(entries):
    ledger = Ledger([rule()])
    for _ in range(entries):
        ledger.enter("P0.1", value=1, n=1)
    with pytest.raises(ValueError, match="exactly one"):
        ledger.entries()


def test_the_file_has_every_field_and_is_the_same_twice(tmp_path):
    ledger = Ledger([rule("a"), rule("b", unit="nats", n_unit="layers")])
    ledger.enter("b", value=1.5, low=1, high=2, n=3, network="mlp", why="because")
    ledger.enter("b", value=1.5, low=1, high=2, n=3, fork="lr = 1", n_unit="networks")
    ledger.untestable("a", "needs ImageNet")
    for folder in ("x", "y"):
        ledger.save(tmp_path / folder, "00_t")
    texts = [(tmp_path / folder / "00_t.claims.json").read_text() for folder in ("x", "y")]
    assert texts[0] == texts[1]
    entries = json.loads(texts[0])
    assert [e["id"] for e in entries] == ["a", "b", "b"] and all(list(e) == list(claims.FIELDS) for e in entries)
    assert [e["verdict"] for e in entries] == [UNTESTABLE, SUPPORTED, SUPPORTED]
    assert [e["n_unit"] for e in entries] == ["seeds", "layers", "networks"] and entries[1]["unit"] == "nats"


def test_the_sentence_counts_decided_claims():
    ledger = Ledger([rule("a"), rule("b")])
    ledger.enter("a", value=1, low=0.5, high=2, n=9)
    ledger.enter("b", value=1, low=-1, high=2, n=9)
    assert ledger.decided(["a", "b"]) == "1 of the 2 claims this profile is sized for are decided; open: b."
    assert ledger.decided(["a"]).endswith("are decided.")


def with_mathematics() -> Ledger:
    exact = {"relation": "=", "unit": "", "mathematical": True}
    ledger = Ledger([rule("a"), rule("m1", **exact), rule("m2", **exact), rule("m3", **exact)])
    ledger.enter("a", value=1, low=-1, high=2, n=9)
    for claim, value in (("m1", 0), ("m2", 7), ("m3", NAN)):
        ledger.enter(claim, value=value, n=9)
    return ledger


def test_a_statement_of_mathematics_holds_or_fails_and_has_a_table_of_its_own():
    ledger = with_mathematics()
    assert [entry["verdict"] for entry in ledger.entries()] == [INCONCLUSIVE, HOLDS, FAILS, INCONCLUSIVE]
    assert list(ledger.table().index) == ["a"] and list(ledger.table(mathematical=True).index) == ["m1", "m2", "m3"]
    shown = ledger.show().data
    assert shown.count("<details>") == 1 and "3 statements that mathematics settles and 1 claims" in shown
    places = [shown.index(f">{what}<") for what in ("statements that mathematics settles", "m1", "claims", "a")]
    assert places == sorted(places)


def test_a_verdict_carries_the_scale_of_its_experiment_where_one_decides_it():
    ledger = with_mathematics()
    ledger.scale = "640 images"
    assert ledger.table()["verdict"].tolist() == [INCONCLUSIVE]
    assert {entry["id"]: entry["scale"] for entry in ledger.entries()} == dict(a="640 images", m1="", m2="", m3="")
    toy = Ledger([rule("a"), rule("b"), rule("c")], scale="640 images")
    for claim, value in (("a", 2), ("b", -2)):
        toy.enter(claim, value=value, low=value - 1, high=value + 1, n=9)
    toy.enter("c", value=2, low=1, high=3, n=9, scale="a toy")
    verdicts = [f"{SUPPORTED} on 640 images", f"{NOT_SUPPORTED} on 640 images", f"{SUPPORTED} on a toy"]
    assert toy.table()["verdict"].tolist() == verdicts
    assert [entry["verdict"] for entry in toy.entries()] == [SUPPORTED, NOT_SUPPORTED, SUPPORTED]


def test_statements_of_mathematics_do_not_count_as_claims_that_a_profile_decides():
    ledger = with_mathematics()
    mathematics = "Of 3 statements of mathematics 1 hold, 1 fail (m2)."
    sentence = "0 of the 1 claims this profile is sized for are decided; open: a. " + mathematics
    assert ledger.decided(["a", "m1", "m2"]) == sentence
    assert ledger.decided(["m1"]) == mathematics


def test_the_folded_table_shows_every_rule():
    shown = Ledger([rule("a"), rule("b", claim="x < y")]).show().data
    assert "<details" in shown and shown.count("<tr>") == 3 and "x &lt; y" in shown


RULES = sorted((root() / "lib").glob("*/claims.py"))
NOTEBOOKS = sorted((root() / "notebooks").glob("*.ipynb"))
PUBLISHED = sorted(file for name in summary.PUBLISHED for file in (root() / "runs" / name).glob("*.claims.json"))


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.parent.name)
def test_a_papers_rules_are_constants_that_no_row_can_change(file):
    """Beside imports of `Rule` and of numbers' names, `claims.py` holds assignments of literals and of rules."""
    allowed = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Load, ast.Store, ast.Name, ast.Attribute, ast.keyword)
    allowed += (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Call, ast.Assign, ast.JoinedStr)
    allowed += (ast.FormattedValue, ast.Starred)
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            source = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
            assert source in ("lib.claims", "math", "numpy"), f"line {statement.lineno} imports {source}"
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            assert isinstance(statement, ast.Assign), f"line {statement.lineno} is no assignment"
            for node in ast.walk(statement):
                assert isinstance(node, allowed), f"line {statement.lineno} holds {type(node).__name__}"
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called == "Rule" or called.startswith("math."), f"line {node.lineno} calls {called}"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_shows_its_rules_before_its_first_rows(file):
    assert claims.rules_of(file.stem)
    code = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    words = ("Ledger(", "ledger.show()", "run.compute(", "ledger.enter(")
    first = {word: next((i for i, source in enumerate(code) if word in source), None) for word in words}
    assert None not in first.values(), first
    assert first["Ledger("] <= first["ledger.show()"] < min(first["run.compute("], first["ledger.enter("]), first
    assert not any("Rule(" in source for source in code)


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: f"{file.parent.name}-{file.name[:2]}")
def test_published_claims_were_judged_by_the_rules_of_this_checkout(file):
    """A rule that changes after its results needs them to be published anew, so that the change is seen."""
    entries, known = json.loads(file.read_text()), {one.id: one for one in claims.rules_of(file.name.split(".")[0])}
    names = sorted({field.name for field in fields(Rule)} - {"n_unit"})  # an entry may have an `n_unit` of its own
    assert [*dict.fromkeys(entry["id"] for entry in entries)] == list(known)
    for entry in entries:
        changed = [name for name in names if entry[name] != getattr(known[entry["id"]], name)]
        assert not changed, f"{entry['id']}: {', '.join(changed)} changed: publish {file.name} anew"
