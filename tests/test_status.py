"""The status of a profile counts what is stored against what its notebooks asked for."""

import pytest

from lib import run as notebook
from lib import run as status
from lib.provenance import PREFIX, CompanionError
from lib.store import Store
from lib.study import Study
from tests import toy_trials
from tests.toy_house import executions, finished, hold, populate, start_batch, wait_for, write_yaml


def put(store: Store, x: int, state: str = "done", seconds: float = 10.0) -> None:
    store.put(store.key({"x": x}), {"x": x}, {"status": state, "reason": "", f"{PREFIX}seconds": seconds})


def test_done_failed_and_left_add_up_to_what_was_asked_and_the_rest_costs_as_the_first(tmp_path):
    store = Store("00_toy.squares", 3, tmp_path)
    store.ask([store.key({"x": x}) for x in range(10)], processes=2)
    put(store, 0)
    put(store, 1, seconds=30.0)
    put(store, 2, "failed", 20.0)
    put(store, 99)  # of other parameters: nobody asked for it
    expected = {"done": 2, "failed": 1, "left": 7, "spent": 60.0, "still": 7 * 20 / 2}
    assert status.study_state(Store("00_toy.squares", 0, tmp_path)) == expected
    store.compact()
    assert status.study_state(Store("00_toy.squares", 0, tmp_path)) == expected


def test_nothing_is_estimated_before_the_first_trial_has_ended_nor_after_the_last(tmp_path):
    store = Store("00_toy.squares", 1, tmp_path)
    store.ask([store.key({"x": 0})], processes=2)
    assert status.study_state(store)["still"] is None
    put(store, 0)
    assert status.study_state(store)["still"] == 0.0


def test_studies_that_ask_again_add_up_and_a_raised_version_forgets(tmp_path):
    for version, first in ((1, 0), (2, 10), (2, 12)):
        study = Study("00_toy.squares", toy_trials.square, version, tmp_path)
        study.run([{"x": x} for x in range(first, first + 3)], workers=1)
    assert sorted(study.store.asked()["keys"]) == sorted(study.store.key({"x": x}) for x in range(10, 15))
    assert status.study_state(study.store)["done"] == 5


def test_a_fresh_clone_shows_the_published_rows(tmp_path):
    study = Study("00_toy.squares", toy_trials.square, 1, tmp_path / "made")
    study.publish(study.run([{"x": 1}, {"x": 2}]), tmp_path / "clone")
    state = status.study_state(Store("00_toy.squares", 0, tmp_path / "clone"))
    assert (state["done"], state["failed"], state["left"], state["still"]) == (2, 0, 0, 0.0)


def test_a_fresh_run_that_is_not_complete_has_a_table_of_its_own(house, monkeypatch):
    monkeypatch.setattr("lib.run.root", lambda: house)
    populate(house)
    fresh_runs = house / "runs/fresh"
    study = Study("00_toy.squares", toy_trials.square, 1, fresh_runs / "smoke")
    study.run([{"x": 1}, {"x": 2}])
    assert "fresh" not in status.overview("smoke")
    (fresh_runs / "smoke.json").write_text("{}")
    published, _, beside = status.overview("smoke").partition("A fresh run of smoke")
    assert "not started" in published and "squares" not in published
    assert "begun" in beside and "squares                             2" in beside


def test_a_profile_in_one_glance_before_during_and_after_its_batch(house, monkeypatch):
    monkeypatch.setattr("lib.run.root", lambda: house)
    populate(house)
    assert "00_toy                         not started" in status.overview("smoke")
    held = hold(house / "runs/smoke/trials", 8)
    run = start_batch(house)
    assert wait_for(lambda: len(executions(house, "end")) >= 5, 300), (house / "batch.log").read_text()
    during = status.overview("smoke")
    assert "00_toy                         begun" in during and "Studies that have begun need about" in during
    counts = next(line.split()[1:4] for line in during.splitlines() if line.startswith("  first"))
    assert sum(map(int, counts)) == 40 and int(counts[0]) >= 4
    held.unlink()
    finished(run, house)
    after = status.overview("smoke")
    assert "00_toy                         published" in after and "need about" not in after
    assert [line.split()[1:4] for line in after.splitlines()[2:]] == [["40", "0", "0"], ["5", "0", "0"]]


def test_a_notebook_that_failed_is_shown_with_its_cell(house, monkeypatch):
    monkeypatch.setattr("lib.run.root", lambda: house)
    for trouble, why in (("bug", "ZeroDivisionError: division by zero"), ("death", "the kernel died")):
        write_yaml(house, trouble=trouble)
        with pytest.raises(CompanionError):
            notebook.execute("smoke", "00_toy")
        assert f"failed in cell [5]: {why}" in status.overview("smoke")
    write_yaml(house)
    notebook.execute("smoke", "00_toy")
    assert "failed" not in status.overview("smoke").splitlines()[1]


def test_an_unknown_profile_is_one_sentence():
    with pytest.raises(CompanionError, match="Unknown profile 'smok' .did you mean smoke"):
        status.overview("smok")


def test_durations_read_as_a_person_says_them():
    assert [status.duration(s) for s in (0, 40, 119, 120, 5400, 86400, 200000)] == [
        "0 s",
        "40 s",
        "119 s",
        "2 min",
        "90 min",
        "24 h",
        "2.31 d",
    ]
