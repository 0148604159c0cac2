"""The README's tables are those of the published results, and differences between runs are found."""

import json

import pytest

from lib import summary
from lib.provenance import CompanionError, root


def write(folder, verdict="supported", value=0.5, extra=()):
    folder.mkdir()
    entry = {"id": "P9.1", "primary": True, "verdict": verdict, "value": value, "low": 0.1, "high": 0.9, "n": 7}
    text = {"rule": "It holds. Holds if x > 0.", "statistic": "x", "section": "S", "why": ""}
    others = [entry | text | {"primary": False, "value": 9.0}, *extra]
    (folder / "09_some.claims.json").write_text(json.dumps([entry | text, *others]))
    return folder


def test_the_readme_is_in_sync_with_the_published_results():
    text = (root() / "README.md").read_text()
    assert summary.with_tables(text) == text, "run `make readme`"


def test_every_published_primary_claim_is_in_the_readme():
    text = (root() / "README.md").read_text()
    for profile in summary.PUBLISHED:
        for notebook, entries in summary.claims_of(root() / "runs" / profile).items():
            assert f"<code>{notebook}</code>, {profile}" in text
            assert all(f"| {entry['id']} |" in text for entry in entries)


def test_equal_runs_do_not_differ(tmp_path):
    assert summary.compare(write(tmp_path / "a"), write(tmp_path / "b")) == []


def test_a_changed_verdict_a_changed_value_and_a_missing_claim_are_told(tmp_path):
    one = write(tmp_path / "a")
    assert summary.compare(one, write(tmp_path / "b", "not supported")) == [
        "09_some P9.1: supported (0.5 [0.1, 0.9], n = 7) -> not supported (0.5 [0.1, 0.9], n = 7)"
    ]
    assert summary.compare(one, write(tmp_path / "c", value=0.6)) == [
        "09_some P9.1: supported, 0.5 [0.1, 0.9], n = 7 -> 0.6 [0.1, 0.9], n = 7"
    ]
    new = {"id": "P9.2", "primary": True, "verdict": "supported", "value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert "only in" in summary.compare(one, write(tmp_path / "d", extra=[new]))[0]


def test_a_folder_without_claims_and_a_readme_without_marks_are_refused(tmp_path):
    with pytest.raises(CompanionError, match="holds no claims"):
        summary.compare(tmp_path, tmp_path)
    with pytest.raises(CompanionError, match="<!-- claims -->"):
        summary.with_tables("no marks")


def test_evidence_names_the_missing_input_of_what_cannot_be_tested():
    entry = {"value": None, "why": "needs ImageNet"}
    assert summary.evidence(entry) == "needs ImageNet"
