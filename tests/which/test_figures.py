"""Every figure is drawn without a warning, and its numbers are those that it shows."""

import numpy as np
import pandas as pd
import pytest

from lib.which import analysis, figures
from lib.which.contest import ARMS, COSTS, PAPERS
from lib.which.measures import MEASURES, VIEWS
from tests.which.test_analysis import damages, standings

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def table():
    columns = {name: 0.1 for name in MEASURES}
    return damages().assign(**{f"made_seconds_{name}": value for name, value in columns.items()})


def contest_rows():
    random, rows = np.random.default_rng(0), []
    for network in ("resnet8", "mlp"):
        for arm in ARMS:
            for cost in COSTS:
                row = {"network": network, "dataset": "digits", "arm": arm, "cost": cost, "budget": 0.5}
                row |= {"kept_parameters": 0.5, "kept_macs": 0.6, "made_latency_128_ms": 1.0}
                rows.append(row | {"fall": random.uniform(-1, 75)})
    return pd.DataFrame(rows)


def test_all_measures_are_shown_by_view(table):
    found = analysis.correlations(table, {"one, two": ("network",), "three": ("family",)})
    _, numbers = figures.measures_by_question(found)
    assert list(numbers["measure"]) == [name for view in VIEWS.values() for name in view]


def test_every_change_is_a_dot(table):
    _, numbers = figures.against_damage(table, ["relative_error", "output_error"])
    assert len(numbers) == len(table)
    _, numbers = figures.scattered(table, "ap2", "code_change", "family", ("a", "b"), log="xy")
    assert len(numbers) == len(table)


def test_predictions_and_prices_name_each_measure(table):
    _, numbers = figures.unseen(analysis.predictions(table))
    assert set(MEASURES) < set(numbers["predictors"])
    found = analysis.correlations(table, {"one": ("network",)})["one"]
    _, numbers = figures.price_of_measures(found, analysis.seconds(table))
    assert list(numbers["correlation"]) == sorted(numbers["correlation"])
    figures.after_repair(pd.DataFrame({"at once": found[["ap2", "kl"]], "later": found[["ap2", "kl"]]}))


def test_curves_show_networks_that_were_matched_in_the_cost_of_the_panel():
    _, numbers = figures.curves(contest_rows(), {"kept_parameters": "parameters", "kept_macs": "MACs"})
    assert set(numbers.loc[numbers["kept_macs"].notna(), "cost"]) == {"macs"}
    assert set(numbers["n"]) == {2}
    _, numbers = figures.curves(contest_rows(), {"made_latency_128_ms": "milliseconds"})
    assert set(numbers["cost"]) == {*COSTS}


def test_ranks_and_recipes_are_drawn():
    _, numbers = figures.ranks({cost: analysis.mean_ranks(standings()) for cost in COSTS})
    assert set(PAPERS) < set(numbers["arm"])
    climb = {"mcb": [0.8, 1.0], "relative_ap2": [0.1, 0.2], "loss": [1.0, 2.0], "accuracy": [50.0, 40.0]}
    _, numbers = figures.recipes(pd.DataFrame(climb | {"network": "resnet8", "dataset": "digits", "kept": 0.5}))
    assert len(numbers) == 2
