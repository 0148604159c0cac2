"""Identity of trials, the union of what is known, and files that cannot be trusted."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib import store as stores
from lib.provenance import CompanionError
from lib.store import Store, canonical, parquet
from lib.study import Study
from tests import toy_trials
from tests.toy_checkout import kill_at, killed, without_measurements


def test_identity_ignores_nulls_order_and_floats_that_are_integers():
    assert canonical({"b": 2.0, "a": None, "c": float("nan")}) == {"b": 2}
    store = Store("00_t.s", 1, None)
    assert store.key(canonical({"a": 1, "b": [1.0, 2]})) == store.key(canonical({"b": [1, 2], "a": 1.0, "z": None}))
    assert store.key(canonical({"a": 1})) != store.key(canonical({"a": 1.5}))
    assert store.key(canonical({"a": 1})) != store.key(canonical({"a": "1"}))


def test_identity_is_of_study_and_version_too():
    keys = {Store(name, version, None).key({"a": 1}) for name in ("00_t.s", "00_t.r") for version in (1, 2)}
    assert len(keys) == 4


def test_an_integer_survives_a_dataframe_that_made_it_a_float(tmp_path):
    specs = [{"x": 1, "seed": 3}, {"x": 2}]
    frame = pd.DataFrame(specs)
    assert frame["seed"].dtype == float
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    study.run(specs)
    assert not study.missing(frame)


def test_what_is_known_is_the_union_of_loose_compacted_and_published(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    study.store.publish(study.run([{"x": 1}]), tmp_path)
    for path in study.store.trials.glob("*.json"):
        path.unlink()
    study.run([{"x": 2}])
    study.store.compact(0)
    assert len(list(study.store.trials.glob("*.json"))) == 0 and study.store.has(study.store.key({"x": 2}))
    study.run([{"x": 3}])
    assert not study.missing([{"x": x} for x in (1, 2, 3)])
    assert study.rows([{"x": x} for x in (3, 2, 1)])["square"].tolist() == [9, 4, 1]


def test_published_rows_count_before_stored_ones(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    specs = [{"x": 1}, {"x": 2}]
    study.store.publish(study.run(specs).assign(square=[100, 200]), tmp_path)
    assert study.rows(specs)["square"].tolist() == [100, 200]


def test_published_rows_read_and_published_again_are_the_same_bytes(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    specs = [{"x": 1, "y": None}, {"x": 2, "y": 0.5}]
    study.store.publish(study.run(specs), tmp_path)
    first = study.store.published.read_bytes()
    for path in study.store.trials.glob("*.json"):
        path.unlink()
    study.store.publish(study.run(specs), tmp_path)
    assert study.store.published.read_bytes() == first


@pytest.mark.parametrize(
    ("method", "file", "half"),
    [
        ("write_bytes", ".json", True),
        ("replace", ".json", False),
        ("replace", "parquet", False),
        ("unlink", ".json", False),
    ],
    ids=["a row half written", "a row not renamed", "compacted, not renamed", "compacted, loose rows still there"],
)
def test_killed_while_it_stores_nothing_is_lost_and_the_rest_runs_once(tmp_path, monkeypatch, method, file, half):
    """Rows 0 to 2 are stored; then a process is killed that stores row 3 and compacts."""
    study = Study("00_t.logged", toy_trials.logged, 1, tmp_path)
    specs = [{"x": x} for x in range(4)]
    study.run(specs[:3])
    expected = Study("00_t.logged", toy_trials.logged, 1, tmp_path / "whole").run(specs)

    def store() -> None:
        study.run(specs)
        study.store.compact(0)

    with monkeypatch.context() as deadly:
        kill_at(method, file, deadly, half=half)
        assert killed(store)
    stored = 3 if "json" in file and method != "unlink" else 4
    assert len(study.store.known()) == stored and not list(study.store.trials.glob("set_aside"))
    pd.testing.assert_frame_equal(without_measurements(study.run(specs)), without_measurements(expected))
    assert (tmp_path / "trials" / "log").read_text().count("end") == 4 + (4 - stored)
    study.store.compact(0)
    assert len(list(study.store.trials.glob("*.json"))) == 0 and len(study.store.known()) == 4


def test_many_loose_rows_are_compacted_and_nothing_changes(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    specs = [{"x": x} for x in range(250)]
    rows = study.run(specs)
    assert len(list(study.store.trials.glob("*.json"))) == 0
    pd.testing.assert_frame_equal(study.rows(specs), rows)
    pd.testing.assert_frame_equal(study.run(specs), rows)


def test_publishing_the_same_rows_gives_the_same_bytes_whatever_else_is_known(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    specs = [{"x": 1}, {"x": 2}]
    study.store.publish(study.run(specs), tmp_path / "a")
    Study("00_t.square", toy_trials.unlucky, 1, tmp_path).run([{"x": 13, "other": "z"}])
    study.store.compact(0)
    study.store.publish(study.run(specs), tmp_path / "b")
    a, b = ((tmp_path / folder / "00_t.square.parquet").read_bytes() for folder in "ab")
    assert a == b


def in_steps(study: Study, rows: int, step: int) -> list[dict]:
    """Stores rows in steps, each compacted, as a long run does; returns their specs."""
    specs = [{"x": x} for x in range(rows)]
    for first in range(0, rows, step):
        study.run(specs[first : first + step])
        study.store.compact(0)
    return specs


@pytest.fixture
def small_levels(monkeypatch):
    """Levels of 4, 8, 16 and 32 rows and one for all others."""
    monkeypatch.setattr(stores, "LOOSE", 2)
    monkeypatch.setattr(stores, "GROWTH", 2)


def test_compacted_rows_move_up_level_by_level_so_that_each_is_written_a_few_times(tmp_path, monkeypatch, small_levels):
    written, parquet = [], stores.parquet
    monkeypatch.setattr(stores, "parquet", lambda table, level: written.append(len(table)) or parquet(table, level))
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    specs = in_steps(study, 48, 2)
    assert sum(written) < 48 * 5, "as many rows were written as if each compaction rewrote them all"
    assert all(study.store.has(study.store.key(spec)) for spec in specs) and not study.missing(specs)
    assert study.rows(specs)["square"].tolist() == [x**2 for x in range(48)] and len(study.store.known()) == 48
    assert {path.name for path in study.store.trials.glob("*.parquet")} <= set(stores.LEVELS)


def test_a_row_that_another_process_moves_up_is_found_at_every_moment(tmp_path, monkeypatch, small_levels):
    """The store is asked whenever a file appears or disappears."""
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    stored = [study.store.key(spec) for spec in in_steps(study, 6, 2)]
    study.run([{"x": 6}])
    stored.append(study.store.key({"x": 6}))
    asked = []

    def asking(method):
        def then_asks(*arguments, **options):
            result = method(*arguments, **options)
            asked.append(all(map(study.store.has, stored)) and len(study.store.known()) == len(stored))
            return result

        return then_asks

    with monkeypatch.context() as watched:
        for name in ("replace", "unlink"):
            watched.setattr(Path, name, asking(getattr(Path, name)))
        study.store.compact(0)
    assert len(asked) > 2 and all(asked)


def test_killed_after_rows_moved_up_a_level_nothing_counts_twice(tmp_path, monkeypatch, small_levels):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    specs = in_steps(study, 4, 2)
    study.run([{"x": 4}])
    with monkeypatch.context() as deadly:
        kill_at("unlink", "rows.parquet", deadly)
        assert killed(lambda: study.store.compact(0))
    assert (study.store.trials / "rows.parquet").exists() and (study.store.trials / "rows.1.parquet").exists()
    assert len(study.store.known()) == len(study.store.outcomes()[0]) == 5
    study.store.compact(0)
    assert study.rows([*specs, {"x": 4}])["square"].tolist() == [0, 1, 4, 9, 16]


def test_a_long_run_leaves_few_loose_rows_at_any_time(tmp_path):
    study = Study("00_t.count", toy_trials.neighbours, 1, tmp_path)
    rows = study.run([{"x": x} for x in range(3 * stores.LOOSE)])
    assert rows["rows"].max() <= 2 * stores.LOOSE


@pytest.mark.parametrize(
    "content", ['{"key": ', "[]", "{}", '{"version": 1, "key": "0", "spec": "{}", "status": "done"}']
)
def test_a_truncated_or_foreign_file_is_named_and_set_aside(tmp_path, capsys, content):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    study.run([{"x": 1}])
    path = study.store.trials / f"{study.store.key({'x': 1})}.json"
    path.write_text(content)
    assert study.run([{"x": 1}])["square"].tolist() == [1]
    assert path.name in capsys.readouterr().err
    assert (study.store.trials / "set_aside" / path.name).read_text() == content


def test_a_row_moved_to_another_trials_name_is_not_trusted(tmp_path, capsys):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    study.run([{"x": 1}])
    source, target = (study.store.trials / f"{study.store.key({'x': x})}.json" for x in (1, 2))
    source.rename(target)
    assert study.run([{"x": 2}])["square"].tolist() == [4]
    assert "not a whole row of its trial" in capsys.readouterr().err


def test_a_damaged_compacted_file_is_set_aside_and_a_damaged_published_one_is_a_sentence(tmp_path, capsys):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    study.run([{"x": 1}])
    study.store.compact(0)
    (study.store.trials / "rows.parquet").write_bytes(b"PAR1 no more")
    assert study.run([{"x": 1}])["square"].tolist() == [1]
    assert "moved to" in capsys.readouterr().err
    study.store.published.write_bytes(b"PAR1 no more")
    with pytest.raises(CompanionError, match="restore it from git"):
        study.run([{"x": 1}])


def test_rows_on_disk_are_plain_json(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    study.run([{"x": 2}])
    (path,) = study.store.trials.glob("*.json")
    record = json.loads(path.read_text())
    assert record["x"] == 2 and record["square"] == 4 and record["status"] == "done"


@pytest.mark.parametrize("values", [np.random.default_rng(0).random((200, 9)), np.zeros((200, 9))])
def test_rows_are_published_in_the_smaller_of_two_encodings_and_read_the_same(tmp_path, values):
    rows = pd.DataFrame({"key": [f"{i:016d}" for i in range(200)], "measured": list(values), "mean": values.mean(1)})
    store = Store("00_smaller", 1, tmp_path)
    store.publish(rows, tmp_path)
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    sizes = [len(parquet(table, 12, split=split)) for split in (False, True)]
    assert store.published.stat().st_size == min(sizes) < max(sizes)
    assert pq.read_table(store.published).equals(table)
