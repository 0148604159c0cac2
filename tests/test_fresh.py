"""A fresh run neither reads nor touches what is published until it lands, and no unlike rows meet in it."""

import json

import pandas as pd
import pytest

from lib import fresh
from lib.provenance import CompanionError
from lib.study import Study
from tests import toy_trials

NOTEBOOKS = ["00_t"]


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Published results, a store and a figure of an earlier run; the folders are the process's own."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path / "figures"))
    monkeypatch.setattr(fresh.provenance, "root", lambda: tmp_path)
    compute(tmp_path / "runs" / "smoke", {"x": 1})
    (tmp_path / "runs/smoke/00_t.yaml").write_text("profile: smoke")
    for name in ("00_old.svg", "01_other.svg"):
        write(tmp_path / "figures/smoke" / name, "old")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def compute(folder, *specs):
    study = Study("00_t.square", toy_trials.square, 1, folder)
    study.publish(study.run(list(specs)), folder)
    return study


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_its_store_is_empty_and_what_is_published_stays(old):
    before = contents(old / "runs/smoke")
    place = fresh.begin("smoke")
    folder = old / "runs/fresh/smoke"
    assert place == {"RUNS_DIR": str(folder.parent), "FIGURES_DIR": str(old / "figures/fresh")}
    assert len(Study("00_t.square", toy_trials.square, 1, folder).missing([{"x": 1}])) == 1
    compute(folder, {"x": 1})
    assert contents(old / "runs/smoke") == before


def landed(old, monkeypatch, *specs):
    for name, value in fresh.begin("smoke").items():
        monkeypatch.setenv(name, value)
    compute(old / "runs/fresh/smoke", *specs)
    write(old / "figures/fresh/smoke/00_new.svg", "new")
    fresh.land("smoke", NOTEBOOKS)


def test_landing_replaces_rows_store_and_figures_and_leaves_parameters_and_other_notebooks(old, monkeypatch):
    landed(old, monkeypatch, {"x": 2})
    rows = pd.read_parquet(old / "runs/smoke/00_t.square.parquet")
    assert rows["x"].tolist() == [2]
    study = Study("00_t.square", toy_trials.square, 1, old / "runs/smoke")
    assert not study.missing([{"x": 2}]) and study.missing([{"x": 1}]), "an old row is still in the store"
    assert (old / "runs/smoke/00_t.yaml").exists()
    assert sorted(contents(old / "figures/smoke")) == ["00_new.svg", "01_other.svg"]
    assert not contents(old / "runs/fresh") and not contents(old / "figures/fresh")


def test_an_interrupted_run_goes_on_and_a_landing_that_was_cut_short_is_completed(old, monkeypatch, capsys):
    fresh.begin("smoke")
    compute(old / "runs/fresh/smoke", {"x": 2})
    fresh.begin("smoke")
    assert "goes on" in capsys.readouterr().out
    assert not Study("00_t.square", toy_trials.square, 1, old / "runs/fresh/smoke").missing([{"x": 2}])
    with monkeypatch.context() as patched:
        patched.setattr(fresh, "_replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            landed(old, patched, {"x": 2})
    assert not (old / "runs/smoke/trials").exists(), "old rows could meet new ones"
    landed(old, monkeypatch, {"x": 2})
    assert pd.read_parquet(old / "runs/smoke/00_t.square.parquet")["x"].tolist() == [2]
    assert (old / "runs/smoke/trials").exists()


def test_other_code_cannot_go_on_with_an_interrupted_run_nor_land_it(old, monkeypatch):
    fresh.begin("smoke")
    mark = old / "runs/fresh/smoke.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"code": "0" * 12}))
    with pytest.raises(CompanionError, match="begun with another code than there is here.*delete .*smoke.json"):
        fresh.begin("smoke")
    mark.unlink()
    for name, value in fresh.begin("smoke").items():
        monkeypatch.setenv(name, value)
    study = Study("00_t.square", toy_trials.square, 1, old / "runs/fresh/smoke")
    study.publish(study.run([{"x": 2}]).assign(made_code="another"), old / "runs/fresh/smoke")
    before = contents(old / "runs/smoke")
    with pytest.raises(CompanionError, match="00_t.square.parquet has rows of code another"):
        fresh.land("smoke", NOTEBOOKS)
    assert contents(old / "runs/smoke") == before
