"""Committed rows are what this checkout's code computes, and the other results are what it makes of these rows.

A row of every published study is computed again, drawn by its key; with NIGHTLY=1 two rows.

Keys are hashes, so the smallest among the eligible rows are a random draw that follows from the rows alone. A row
is eligible if it took at most `RECOMPUTE` seconds (2; with NIGHTLY=1 60; "all" for every row), together with the
networks and features that it rests on. Nothing of this checkout's store is used, and nothing is fetched.

On a processor that computes like the one that made the rows (`REFERENCE`), every result is the same to the last bit. On
others a training drifts apart, so the comparison is statistical: half of a row's numbers differ by at most `DRIFT` of
their size. So it is for the rows of `CONTIGUOUS`, which differ in the last digits.
"""

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib import baselines, models, provenance, run, summary
from lib.latent import trials as latent_trials
from lib.provenance import PREFIX, root
from lib.spaces import trials as spaces_trials
from lib.spline import attention, contests, migration, nodes, toy
from lib.spline import trials as spline_trials
from lib.store import plain
from lib.study import Study
from lib.truncation import recovery
from lib.truncation import trials as truncation_trials
from lib.which import contest
from lib.which import trials as which_trials
from tests import toy_checkout
from tests.conftest import NIGHTLY

# `arithmetic` of the processor that made the published rows of a notebook.
REFERENCE = dict.fromkeys(("00", "01", "02", "03"), "0d6d8edd62b204e4") | dict.fromkeys(
    ("04", "05"), "bd126d63edee80b3"
)
# Studies whose published rows come from networks on images that were not yet channels last in memory.
CONTIGUOUS = [f"01_latent_kl.{name}" for name in ("features", "layers")]
SEARCHED = ("oneshots", "slices", "surroundings", "tickets")  # studies of paper 4 that start from a search
DRIFT = 0.02
ROWS = 2 if NIGHTLY else 1
LIMIT = float(os.environ.get("RECOMPUTE", "60" if NIGHTLY else "2").replace("all", "inf"))
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "tiny-imagenet": "tiny-imagenet-200"}
SHAPE_ONLY = ("00_baselines.costs", "03_pruning_spaces.latencies")  # a data set is named but not read
FILES = sorted(file for profile in summary.PUBLISHED for file in (root() / "runs" / profile).glob("*.parquet"))


@cache
def studies(folder: Path) -> dict[str, Study]:
    """Every study by name, in a store of its own."""
    alone = (baselines.baselines, baselines.samples, baselines.costs)
    alone += (truncation_trials.latencies, recovery.watched, spaces_trials.latencies, spaces_trials.streamed)
    resting = (latent_trials.features, latent_trials.heads, latent_trials.projections, latent_trials.layers)
    resting += (latent_trials.tasks,)
    resting += (truncation_trials.spectra, truncation_trials.truncations, truncation_trials.controlled)
    resting += (
        truncation_trials.zeroed,
        truncation_trials.formed,
        recovery.plans,
        recovery.recoveries,
        recovery.tensorised,
    )
    resting += (spaces_trials.recipes, spaces_trials.priors)
    resting += (which_trials.damages, which_trials.ladders, which_trials.layers, contest.contests, contest.latencies)
    made = [one(folder) for one in alone] + [one(folder, folder) for one in resting]
    made += [spline_trials.study(name, folder) for name in ("searches", *SEARCHED)]
    made += [attention.study(folder)]
    made += [nodes.study(name, folder) for name in ("skipped", "toy_skipped", "reductions", "filters")]
    made += [toy.study(name, folder) for name in ("exact", "pruned", "scratch", "changed", "settling", "pictures")]
    made += [contests.study(name, folder) for name in ("routes", "optima")] + [migration.study(folder)]
    return {study.name: study for study in made}


def rests_on(name: str, spec: dict) -> list[tuple[str, dict]]:
    """The trials, by study and spec, whose weights this trial uses."""
    if name in ("01_latent_kl.heads", "01_latent_kl.projections", "01_latent_kl.tasks"):
        features = latent_trials.feature_spec(spec)
        return [("01_latent_kl.features", features), *rests_on("01_latent_kl.features", features)]
    if name in [f"04_spline_early_bird.{one}" for one in [*SEARCHED, "skipped", "reductions"]]:
        return [("04_spline_early_bird.searches", spline_trials.search_spec(spec))]
    if spec.get("source") == "trained" and not name.startswith(("00_", "04_")):
        return [("00_baselines.networks", baselines.dense_spec(spec))]
    return []


@cache
def seconds(file: Path) -> dict[str, float]:
    rows = pd.read_parquet(file, columns=["key", f"{PREFIX}seconds"])
    return dict(zip(rows["key"], rows[f"{PREFIX}seconds"], strict=True))


def cost(study: Study, spec: dict, folder: Path) -> float:
    """Seconds that a row took when it was made, with what it rests on; infinite if that is not published."""
    needed = [(study.name, spec), *rests_on(study.name, spec)]
    total = 0.0
    for name, one in needed:
        file = folder / f"{name}.parquet"
        known = seconds(file) if file.exists() else {}
        total += known.get(studies(folder)[name].store.key(one), float("inf"))
    return total


def absent(name: str, spec: dict) -> str:
    """The data that a trial would have to fetch, or nothing."""
    dataset = spec.get("dataset")
    if name in SHAPE_ONLY or dataset in (None, "digits", "digits16"):
        return ""
    if dataset not in FOLDERS or not (provenance.data_dir() / FOLDERS[dataset]).is_dir():
        return f"the data set {dataset}"
    checkpoint = models.PUBLIC.get((spec.get("network"), dataset))
    if spec.get("source") == "public" and checkpoint is None:
        return f"the ImageNet weights of {spec['network']}"
    if spec.get("source") == "public" and not (provenance.data_dir() / checkpoint[0] / checkpoint[1]).is_file():
        return f"the public weights of {spec['network']} on {dataset}"
    return ""


@cache
def arithmetic() -> str:
    """A digest of the gradients of a ResNet-20: equal where floating-point sums are taken in the same order."""
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = models.build("resnet20", seed=0)
    torch.nn.functional.cross_entropy(model(images), torch.arange(16) % 10).backward()
    return hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in model.parameters())).hexdigest()[:16]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("recomputed")


def differences(row: dict, stored: pd.Series) -> list[str]:
    """The results of a recomputed row that are not bit for bit the stored ones."""
    return [name for name, value in row.items() if not equal(plain(value), stored.get(name))]


def equal(a: object, b: object) -> bool:
    if isinstance(a, list) or isinstance(b, np.ndarray):
        return flat(a) == flat(b)
    return a == b or (a is None and pd.isna(b)) or (isinstance(a, float) and a != a and b != b)


def flat(value: object) -> list:
    """The entries of nested lists or arrays, with their places; NaN equals NaN."""
    if isinstance(value, list | tuple | np.ndarray):
        return [(place, *one) for place, entry in enumerate(value) for one in flat(entry)] or [()]
    return [("nan",)] if value is None or value != value else [(value,)]


def drift(row: dict, stored: pd.Series) -> float:
    """Median relative difference of a row's numbers; infinite where its words or shapes differ."""
    pairs = []
    for name, value in row.items():
        ours, theirs = flat(plain(value)), flat(stored.get(name))
        if len(ours) != len(theirs) or () in (*ours, *theirs):
            continue  # a list of wrong images has another length each time, and may be empty
        pairs += [(a[-1], b[-1]) for a, b in zip(ours, theirs, strict=True)]
    if any(a != b for a, b in pairs if isinstance(a, str) or isinstance(b, str)):
        return float("inf")
    numbers = np.array([(a, b) for a, b in pairs if not isinstance(a, str)], dtype=float)
    size = np.maximum(np.abs(numbers).max(1), 1e-12)
    return float(np.median(np.abs(numbers[:, 0] - numbers[:, 1]) / size)) if len(numbers) else 0.0


def test_a_different_result_is_seen_and_a_small_drift_is_distinguished_from_another_result():
    row = {"loss": 0.5, "curve": [1.0, float("nan"), 3.0], "removed": 7, "none": None, "name": "a", "wrong": [1, 2]}
    stored = pd.Series(row | {"curve": np.array([1.0, np.nan, 3.0]), "none": float("nan"), "other": 1})
    assert not differences(row, stored) and drift(row, stored) == 0
    assert differences(row | {"loss": np.nextafter(0.5, 1), "curve": [1.0, 3.0, 3.0]}, stored) == ["loss", "curve"]
    assert differences(row | {"gone": 1.0}, stored) == ["gone"]
    little = {"loss": 0.505, "curve": [1.01, float("nan"), 3.01], "removed": 7, "name": "a", "wrong": [1, 2, 5]}
    assert 0 < drift(little, stored) <= DRIFT
    assert drift(little | {"loss": 0.9, "curve": [2.0, 1.0, 5.0], "removed": 9}, stored) > DRIFT
    assert drift(row | {"name": "b"}, stored) == float("inf")
    assert drift(row | {"wrong": []}, stored) == drift(row, pd.Series(stored.to_dict() | {"wrong": np.array([])})) == 0


def test_every_published_study_is_known_here():
    assert FILES and {file.stem for file in FILES} <= set(studies(root()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_rows_of_a_published_study_are_computed_again(file, place, record_property):
    study = studies(place)[file.stem]
    stored = pd.read_parquet(file)
    stored = stored[stored["status"] == "done"].set_index("key").sort_index()
    specs = {key: json.loads(text) for key, text in stored["spec"].items()}
    for key, spec in specs.items():
        assert study.store.key(spec) == key, f"{key} is a row of another version of {study.name}"
    if torch.cuda.is_available() != stored[f"{PREFIX}device"].str.contains("NVIDIA").any():
        pytest.skip(f"made on {stored[f'{PREFIX}device'].iloc[0]}")
    missing = {key: absent(study.name, spec) for key, spec in specs.items()}
    cheap = [key for key, spec in specs.items() if cost(study, spec, file.parent) <= LIMIT]
    eligible = [key for key in cheap if not missing[key]]
    record_property("recomputed", f"{study.name} {len(eligible[:ROWS])} of {len(eligible)} eligible of {len(stored)}")
    if not eligible:
        why = f"none of {len(stored)} rows takes at most {LIMIT:g} s with what it rests on (RECOMPUTE=all)"
        pytest.skip(f"{next(missing[key] for key in cheap)} is not here" if cheap else why)
    for key in eligible[:ROWS]:
        row = study.trial(specs[key], provenance.default_device(), study.store.trials / f"{key}.safetensors")
        row = {name: value for name, value in row.items() if not name.startswith(PREFIX)}
        if arithmetic() == REFERENCE[study.name[:2]] and study.name not in CONTIGUOUS:
            assert not differences(row, stored.loc[key]), f"{study.name} {specs[key]}"
        assert drift(row, stored.loc[key]) <= DRIFT, f"{study.name} {specs[key]}"


NOTEBOOKS = [file.stem for file in sorted((root() / "runs/laptop").glob("*.ipynb"))]


@pytest.mark.parametrize(
    "notebook", [NOTEBOOKS[0], *(pytest.param(n, marks=pytest.mark.nightly) for n in NOTEBOOKS[1:])]
)
def test_results_are_remade_byte_for_byte_where_neither_data_nor_weights_are(notebook, tmp_path, monkeypatch):
    if arithmetic() != REFERENCE[notebook[:2]]:
        pytest.skip("this processor adds in another order than the one that made the published results")
    for folder in ("notebooks", "runs/laptop", "runs/smoke"):
        shutil.copytree(root() / folder, tmp_path / folder, ignore=shutil.ignore_patterns("trials"))
    for name in ("lib", "pyproject.toml"):
        (tmp_path / name).symlink_to(root() / name)
    (tmp_path / "empty").mkdir()
    files = [*(root() / "runs/laptop").glob(f"{notebook}.*"), *(root() / "figures/laptop").glob(f"{notebook[:2]}_*")]
    expected = {path.relative_to(root()): path.read_bytes() for path in files}
    toy_checkout.enter(tmp_path, monkeypatch)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "empty"))
    run.execute("laptop", notebook)
    changed = [str(name) for name, content in expected.items() if (tmp_path / name).read_bytes() != content]
    assert not changed, "run `make figures PROFILE=laptop`"
