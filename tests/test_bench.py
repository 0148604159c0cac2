"""The measuring of speed: the numbers that it forms, what it prints, and the page that it writes."""

import math
import re

import pytest

from lib import provenance
from lib.provenance import root
from tests.bench import Growth, Line, __main__, absent, alternated, section


def parsed(page: str) -> dict[str, list[list[str]]]:
    """The cells of all table rows of a page, by section."""
    sections = re.split(r"^## ", page, flags=re.M)[1:]
    rows = {text.split("\n", 1)[0]: re.findall(r"^\| (.*) \|$", text, re.M) for text in sections}
    return {name: [row.split(" | ") for row in found] for name, found in rows.items()}


def test_the_exponent_is_that_of_the_two_largest_decades():
    sizes = [1, 10, 100, 1000, 10_000]
    growth = Growth("sorting", "s", sizes, [7.0, 7.0, 1.0, 10**1.5, 1000.0], 1.6)
    assert growth.exponent == pytest.approx(1.5)
    assert growth.verdict == "< 1.6: kept" and growth._replace(bound=1.4).verdict.endswith("MISSED")
    assert growth._replace(bound=None).verdict == ""


def test_a_bound_is_kept_or_missed_and_a_peer_is_named():
    line = Line("CP", 2.5, "x", ">", 2, "tensorly 0.10: parafac")
    assert "2.5 x" in str(line) and "> 2: kept" in str(line) and "against tensorly 0.10: parafac" in str(line)
    assert line._replace(relation="<").verdict == "< 2: MISSED"
    assert line._replace(relation="").verdict == ""
    missing = absent("torch-pruning", "pip install torch-pruning")
    assert math.isnan(missing.value) and str(missing) == "torch-pruning is not installed: pip install torch-pruning"


def test_calls_take_turns_after_one_that_warms_up():
    order = []
    times = alternated(lambda: order.append("a"), lambda: order.append("b"), repeats=2)
    assert order == ["a", "b"] * 3 and all(0 <= seconds < 1 for seconds in times)


def test_a_section_holds_every_number_of_its_benchmark():
    def example():
        """What it measures."""

    lines = [Line("   one", 1.0, "s", "<", 2, "a peer"), Growth("growth", "s", [1, 10], [1.0, 10.0], 1.1)]
    text = section("example", example, lines)
    assert text.startswith("## example\n\nWhat it measures.\n") and "growth: exponent 1.00 (< 1.1: kept)" in text
    rows = parsed(text)["example"]
    assert rows[2] == ["one", "1 s", "< 2: kept", "a peer"] and rows[-2:] == [["1", "1"], ["10", "10"]]


def test_a_benchmark_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken():
        yield Line("half", 1.0, "s")
        raise OSError("no such peer")

    def sound():
        yield Line("whole", 1.0, "s")

    monkeypatch.setattr(__main__, "BENCHMARKS", {"broken": broken, "sound": sound})
    monkeypatch.setattr(provenance, "root", lambda: tmp_path)
    with pytest.raises(SystemExit, match="Failed: broken"):
        __main__.main([])
    printed = capsys.readouterr().out
    assert "broken FAILED: OSError: no such peer" in printed and "whole" in printed
    __main__.main(["sound"])
    assert not (tmp_path / "docs").exists()
    monkeypatch.setattr(__main__, "BENCHMARKS", {"sound": sound})
    __main__.main([])
    assert parsed((tmp_path / "docs" / "speed.md").read_text()).keys() == {"sound"}


def test_the_committed_page_has_a_section_with_numbers_for_every_benchmark_and_its_count_of_missed_bounds():
    page = (root() / "docs" / "speed.md").read_text()
    sections = parsed(page)
    assert list(sections) == list(__main__.BENCHMARKS), "run `make bench`"
    assert all(len(rows) >= 3 and {len(row) for row in rows} <= {2, 4} for rows in sections.values())
    assert f": {len(re.findall(': MISSED', page))} of {len(re.findall(': (?:kept|MISSED)', page))} are missed" in page
