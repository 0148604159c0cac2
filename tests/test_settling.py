"""How many units would decide a claim, against intervals whose width is known, and what the rows say that they cost."""

import json
import math
import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from lib import parameters, summary
from lib import summary as settling
from lib.claims import INCONCLUSIVE, Rule
from lib.provenance import root
from lib.stats import holm, mean_interval, wilson

SUPPORTED, NOT = "supported", "not supported"


def entry(value, low, high, n=10, relation=">", threshold=0.0, tolerance=0.0, **others):
    rule = str(Rule("P9.1", "S", "It holds.", "gain, > 0 or not (points)", relation, threshold, "0", tolerance))
    evidence = {
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "p": None,
        "p_holm": None,
        "why": "n counts seeds; all",
    }
    return {"id": "P9.1", "rule": rule, "verdict": INCONCLUSIVE} | evidence | others


@pytest.mark.parametrize(
    ("given", "n", "told"),
    [
        (entry(1, -1, 3), 40, SUPPORTED),  # twice too wide on the side of 0
        (entry(-1, -9, 3), 160, NOT),
        (entry(1, -1, 3, relation="<", threshold=2.0), 40, SUPPORTED),
        (entry(0.5, -1, 2, relation="=", tolerance=1.0), 90, SUPPORTED),  # 1.5 wide, the nearer end 0.5 away
        (entry(2, 0.5, 3, relation="=", tolerance=1.0), 23, NOT),
        (entry(1, 0, 2), 11, SUPPORTED),  # at the threshold itself
    ],
)
def test_n_grows_with_the_square_of_how_much_too_wide_the_interval_is(given, n, told):
    assert settling.needed(given) == (n, told)


def test_the_forecast_is_what_more_values_of_the_same_kind_need():
    values = np.random.default_rng(0).normal(0.2, 1, 20)
    values = 0.2 + (values - values.mean()) / values.std(ddof=1)
    n, _ = settling.needed(entry(0.2, *mean_interval(values), n=20))
    longer, shorter = (np.resize(values, 20 * math.ceil(count / 20)) for count in (n, n - 40))
    assert mean_interval(longer)[0] > 0 > mean_interval(shorter)[0]


@pytest.mark.parametrize(("good", "n", "threshold"), [(0, 1, 0.5), (3, 4, 0.5), (5, 8, 0.8), (11, 20, 0.5)])
def test_a_share_is_settled_where_the_interval_of_as_many_units_says_so(good, n, threshold):
    given = entry(good / n, *wilson(good, n), n=n, threshold=threshold)
    needed, told = settling.needed(given)
    rule = Rule("P9.1", "S", "It holds.", "share", ">", threshold, "0")
    for count, verdict in ((needed, told), (needed - 1, INCONCLUSIVE)):
        z, share = 1.959964, good / n  # Wilson's formula, since so many units have no such share in whole numbers
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
        assert rule.verdict(middle - half, middle + half) == verdict


def test_an_estimate_on_the_threshold_and_a_claim_that_hangs_on_another_have_no_n():
    assert settling.needed(entry(0.01, -1, 1)) == (None, "no n in sight: the estimate lies on the threshold")
    assert settling.needed(entry(0.0, -1, 1))[0] is None
    images = "n counts seeds, all on 9 test images, which the interval counts too"
    assert settling.needed(entry(1, -1, 3, why=images))[0] is None
    nan = float("nan")
    assert settling.needed(entry(1, nan, nan, why="P9.0 fails"))[1] == "not a matter of n: P9.0 fails"


def test_where_only_the_corrected_p_is_too_large_z_has_to_grow():
    p = 0.02
    n, told = settling.needed(entry(4, 0.2, 8, n=10, p=p, p_holm=holm([p] * 4)[0]))
    assert n == math.ceil(10 * (2.4977 / 2.3263) ** 2) and told.startswith(
        SUPPORTED
    )  # z of .05 / 4 and of .02, both sides


def test_open_claims_are_told_with_their_cost_and_decided_ones_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(settling.parameters, "profile_parameters", lambda *_: {"decides": ["P9.1", "P9.2"]})
    monkeypatch.setitem(settling.BASIS, "P9.1", ("some", "arm == 'a'"))
    rows = pd.DataFrame({"arm": list("aab"), "made_seconds": [60.0, 60.0, 999.0], "curve": [[1.0]] * 3})
    rows.to_parquet(tmp_path / "09_x.some.parquet")
    entries = [entry(1, -1, 3), entry(1, 0.5, 2) | {"id": "P9.2", "verdict": SUPPORTED}]
    results = {"laptop": {"09_x": entries}}
    assert "| laptop | `09_x` | 2 | 1 | 1 | 0 | 2 | 1 |" in settling.counts_table(results)
    last = settling.open_table(results, {"laptop": tmp_path}).splitlines()[-1]
    assert last == "| laptop | P9.1 * | 1 [-1, 3], n = 10 | > 0 | 40: supported | seeds | about 6 min |"


def test_the_rows_that_claims_rest_on_exist_and_so_do_the_claims():
    sources = [nbformat.read(root() / f"notebooks/{name}.ipynb", 4) for name in parameters.notebook_names()]
    code = "\n".join(cell.source for notebook in sources for cell in notebook.cells if cell.cell_type == "code")
    known = set(re.findall(r'claims\.Rule\(\s*"([^"]+)"', code))
    assert set(settling.BASIS) <= known
    for profile in summary.PUBLISHED:
        folder = root() / "runs" / profile
        for notebook, entries in summary.claims_of(folder).items():
            for claim in {entry["id"] for entry in entries} & set(settling.BASIS):
                assert settling.seconds(folder, notebook, claim) > 0, claim


def test_every_published_rule_can_be_read_back():
    for profile in summary.PUBLISHED:
        for file in (root() / "runs" / profile).glob("*.claims.json"):
            for one in json.loads(file.read_text()):
                relation, threshold, tolerance = settling.bounds(one["rule"])
                told = str(Rule("", "", "", one["statistic"], relation, threshold, "", tolerance))[1:]
                assert one["rule"].partition(" Open if ")[0].endswith(told)
