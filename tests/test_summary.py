"""Tables of published results are complete and up to date; forecasts of n come true; differences are found."""

import json
import math
import re
from fnmatch import fnmatch

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lib import summary
from lib.claims import FAILS, FIELDS, HOLDS, INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, Rule
from lib.provenance import CompanionError, root
from lib.stats import holm, mean_interval, wilson


def entry(value=1.0, low=-1.0, high=3.0, **others):
    """An inconclusive entry: a gain that should be above 0."""
    given = {
        "id": "P9.1",
        "notebook": "09_x",
        "section": "S",
        "claim": "It holds.",
        "statistic": "gain",
        "primary": True,
    }
    given |= {"relation": ">", "threshold": 0.0, "n": 10, "n_unit": "seeds", "verdict": INCONCLUSIVE, "tolerance": 0.0}
    given["mathematical"] = False
    text = dict.fromkeys(("network", "dataset", "regime", "fork", "unit", "open_if", "null", "why"), "")
    return dict.fromkeys(FIELDS) | text | given | {"value": value, "low": low, "high": high} | others


@pytest.mark.parametrize(
    ("given", "n", "verdict"),
    [
        (entry(1, -1, 3), 40, SUPPORTED),  # twice too wide on the side of 0
        (entry(-1, -9, 3), 160, NOT_SUPPORTED),
        (entry(1, -1, 3, relation="<", threshold=2.0), 40, SUPPORTED),
        (entry(0.5, -1, 2, relation="=", tolerance=1.0), 90, SUPPORTED),  # 1.5 wide, the nearer end 0.5 away
        (entry(2, 0.5, 3, relation="=", tolerance=1.0), 23, NOT_SUPPORTED),
        (entry(1, 0, 2), 11, SUPPORTED),  # at the threshold itself
    ],
)
def test_n_grows_with_the_square_of_the_excess_width(given, n, verdict):
    assert summary.needed(given) == (n, verdict)


def test_the_forecast_is_the_n_that_more_values_of_the_same_kind_need():
    values = np.random.default_rng(0).normal(0.2, 1, 20)
    values = 0.2 + (values - values.mean()) / values.std(ddof=1)
    n, _ = summary.needed(entry(0.2, *mean_interval(values), n=20))
    longer, shorter = (np.resize(values, 20 * math.ceil(count / 20)) for count in (n, n - 40))
    assert mean_interval(longer)[0] > 0 > mean_interval(shorter)[0]


@pytest.mark.parametrize(("good", "n", "threshold"), [(0, 1, 0.5), (3, 4, 0.5), (5, 8, 0.8), (11, 20, 0.5)])
def test_a_share_is_decided_at_the_n_where_its_wilson_interval_leaves_the_threshold(good, n, threshold):
    given = entry(good / n, *wilson(good, n), n=n, threshold=threshold)
    needed, expected = summary.needed(given)
    rule = Rule(id="P9.1", section="", claim="", statistic="", relation=">", threshold=threshold, null="", n_unit="")
    for count, verdict in ((needed, expected), (needed - 1, INCONCLUSIVE)):
        z, share = 1.959964, good / n  # Wilson's formula: this share need not be a whole number of the `count` units
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
        assert rule.verdict(middle - half, middle + half) == verdict


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (entry(0.01), "the estimate is at its threshold"),
        (entry(0.0), "the estimate is at its threshold"),
        (entry(1, math.nan, math.nan, why="P9.0 fails"), "P9.0 fails"),
        (entry(1, 0.5, 2, open_if="all are at the ceiling"), "open because all are at the ceiling"),
        (entry(1, 0.5, 2, p=math.nan, p_holm=math.nan), "its p cannot be computed"),
    ],
)
def test_where_n_is_not_what_an_entry_lacks_the_reason_is_given(given, reason):
    assert summary.needed(given) == (None, reason)


def test_where_only_the_corrected_p_is_too_large_z_has_to_grow():
    n, expected = summary.needed(entry(4, 0.2, 8, p=0.02, p_holm=holm([0.02] * 4)[0]))
    assert n == math.ceil(10 * (2.4977 / 2.3263) ** 2)  # z of .05 / 4 and of .02, both two-sided
    assert expected == f"{SUPPORTED}; only the corrected p is too large"


def test_verdicts_and_claims_that_a_profile_is_sized_for_are_counted():
    entries = [entry(), entry(id="P9.2", verdict=SUPPORTED), entry(id="P9.2", verdict=INCONCLUSIVE, primary=False)]
    table = summary.counts_table(entries, {"P9.1", "P9.2"}).splitlines()
    assert table[2] == "| 09_x | 2 | 1 | 0 | 1 | 0 | 2 | 1 | 0 | 0 | 0 |"
    assert table[3].startswith("| all | 2 | 1 ")


def test_what_mathematics_settles_is_counted_and_listed_apart():
    proved = [entry(id=f"P9.{i}", mathematical=True, verdict=FAILS if i == 5 else HOLDS) for i in (3, 4, 5)]
    entries = [entry(), *proved, entry(notebook="08_y", verdict=SUPPORTED)]
    table = summary.counts_table(entries, {"P9.1", "P9.3", "P9.5"}).splitlines()
    assert table[0].endswith("| sized for | of these decided | statements of mathematics | holds | fails |")
    assert table[2:4] == [
        "| 08_y | 1 | 1 | 0 | 0 | 0 | 1 | 1 | 0 | 0 | 0 |",
        "| 09_x | 1 | 0 | 0 | 1 | 0 | 1 | 0 | 3 | 2 | 1 |",
    ]
    assert table[4] == "| all | 2 | 1 | 0 | 1 | 0 | 2 | 1 | 3 | 2 | 1 |"
    listed = [summary.claims_table(entries[:4], mathematical).count("| P9.") for mathematical in (False, True)]
    assert listed == [1, 3]


def test_an_open_claim_is_listed_with_its_forecast_and_marked_if_the_profile_is_sized_for_it():
    entries = [entry(unit="points"), entry(id="P9.2", verdict=SUPPORTED)]
    rows = summary.open_table(entries, {"P9.1"}).splitlines()[2:]
    assert rows == ["| P9.1 * | 1 [-1, 3] | > 0 points | 10 seeds | 40 | supported |"]


def test_a_claim_is_listed_with_the_forks_in_which_its_verdict_flips():
    forks = [entry(fork="lr = 1", primary=False), entry(fork="lr = 2", primary=False, verdict=SUPPORTED)]
    table = summary.claims_table([entry(), *forks]).splitlines()
    assert len(table) == 3 and "2 of 3; supported with lr = 2" in table[2]


def test_costs_are_those_of_the_published_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "root", lambda: tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    made = {"device": "x", "python": "3", "torch": "2", "commit": "c", "code": "h", "memory_mb": [7.0, 9.0]}
    rows = pd.DataFrame({f"made_{name}": value for name, value in (made | {"seconds": [60.0, 1.5]}).items()})
    rows.assign(status="done").to_parquet(tmp_path / "runs/mine/09_x.some.parquet")
    table = summary.costs_table("mine", ["09_x"]).splitlines()
    assert table[2].startswith("| 09_x | 2 | 61.5 | 9 | x |") and table[3].startswith("| all | 2 | 61.5 |")


@pytest.mark.parametrize("profile", summary.PUBLISHED)
def test_the_page_of_a_published_profile_is_up_to_date(profile):
    folder = root() / "runs" / profile
    if summary.claims_of(folder):
        assert (folder / "README.md").read_text() == summary.page(profile), "run `make readme`"


def test_the_page_on_results_explains_every_field_and_every_common_column():
    text = (root() / "docs" / "results.md").read_text()
    assert [name for name in FIELDS if f"`{name}`" not in text] == []
    files = sorted(root().glob("runs/laptop/*.parquet"))
    common = set.intersection(*(set(pd.read_parquet(file).columns) for file in files))
    assert [name for name in sorted(common) if f"`{name}`" not in text] == []


def test_the_dictionary_names_every_column_of_the_published_rows():
    page = (root() / "docs" / "dictionary.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (.*?) \|", page, re.M)
    named = {name for cell in first_cells for name in re.findall(r"`([\w*]+)`", cell)}
    files = [file for profile in summary.PUBLISHED for file in (root() / "runs" / profile).glob("*.parquet")]
    columns = {name for file in files for name in pq.read_schema(file).names}
    assert [column for column in sorted(columns) if not any(fnmatch(column, name) for name in named)] == []


def write(folder, *entries):
    folder.mkdir()
    (folder / "09_x.claims.json").write_text(json.dumps(entries))
    return folder


def test_only_primary_entries_that_differ_are_listed_nan_included(tmp_path):
    same = [entry(math.nan, math.nan, math.nan), entry(9.0, primary=False)]
    one = write(tmp_path / "a", *same)
    assert summary.compare(one, write(tmp_path / "b", same[0], entry(8.0, primary=False))) == []


def test_a_changed_verdict_a_changed_value_and_a_missing_claim_are_listed(tmp_path):
    one = write(tmp_path / "a", entry())
    assert summary.compare(one, write(tmp_path / "b", entry(verdict=SUPPORTED))) == [
        "09_x P9.1: inconclusive at this scale, 1 [-1, 3], n = 10 -> supported, 1 [-1, 3], n = 10"
    ]
    assert "-> inconclusive at this scale, 2 [" in summary.compare(one, write(tmp_path / "c", entry(2.0)))[0]
    assert "P9.2: only in" in summary.compare(one, write(tmp_path / "d", entry(), entry(id="P9.2")))[0]


def test_a_folder_without_claims_is_refused(tmp_path):
    with pytest.raises(CompanionError, match="holds no claims"):
        summary.compare(tmp_path, tmp_path)
