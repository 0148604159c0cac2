"""Which networks, layers and images paper 2 looks at: lists of specs from the names in a profile's parameters."""

from collections.abc import Iterable, Sequence

import pandas as pd

from lib import dense_networks, sweep

LARGER = {"dataset": "digits16", "width": 0.25}  # how networks for larger images are trained on digits


def dense_specs(
    names: Iterable[str], known: Sequence[dict], enlarged: Sequence[str] = (), seeds: int = 1
) -> list[dict]:
    """Specs of dense networks: one of each checkpoint ("network/dataset"), `seeds` of each that is trained here.

    Args:
        known: baselines of the profile, among which `dense_networks.find_baseline` looks.
        enlarged: names that are trained on digits of 16 pixels instead, as LARGER says and otherwise like the others.
    """
    specs: list[dict] = []
    for name in names:
        if name in enlarged:
            specs += [known[0] | LARGER | {"network": name, "seed": seed} for seed in range(seeds)]
            continue
        first = dense_networks.find_baseline(name, known)
        times = 1 if first["source"] == "public" else seeds
        specs += [first, *(dense_networks.find_baseline(name, known, seed) for seed in range(1, times))]
    return specs


def layer_specs(dense: Iterable[dict], step: int = 1, **options) -> list[dict]:
    """A spec for every `step`-th layer before the head of each dense network, with the options of a trial."""
    return [
        spec | {"layer": layer} | options
        for spec in dense
        for layer in sweep.layer_names(dense_networks.untrained(spec))[::step]
    ]


def report_specs(dense: Iterable[dict], chosen: pd.DataFrame, **options) -> list[dict]:
    """A spec for every layer of each dense network that truncates it to its chosen ranks, and to nothing else.

    chosen: `truncation_tolerance.lowest_ranks` of these networks.
    """
    specs = []
    for spec in dense:
        for layer, one in of_network(chosen, spec).groupby("layer", sort=False):
            ranks = {"layer": layer, "cuts": one["cut"].tolist(), "ranks": one["rank"].tolist()}
            specs.append(spec | ranks | options)
    return specs


def of_network(rows: pd.DataFrame, spec: dict) -> pd.DataFrame:
    """The named rows (`truncation_analysis.named`) of one dense network."""
    same = (rows["network"] == spec["network"]) & (rows["dataset"] == spec["dataset"])
    return rows[same & (rows["seed"] == spec.get("seed", 0))]
