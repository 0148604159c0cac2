"""A study finds what is finished, computes what is missing, and loses nothing."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from lib.provenance import PREFIX, CompanionError, root
from lib.study import Study
from tests import toy_trials
from tests.toy_house import hold, wait_for


def results(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[name for name in rows if not name.startswith(PREFIX)]]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_batch(folder: Path, log: Path, n: int, seconds: float = 0.1) -> subprocess.Popen:
    """Another process that runs n logged trials with two workers."""
    code = (
        "from pathlib import Path; from lib.study import Study; from tests.toy_trials import logged\n"
        "if __name__ == '__main__':\n"
        f"    specs = [dict(x=x, log={str(log)!r}, seconds={seconds}) for x in range({n})]\n"
        f"    Study('00_t.logged', logged, 1, Path({str(folder)!r})).run(specs, workers=2)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=root(), stderr=subprocess.DEVNULL)


def test_rows_come_back_in_the_order_asked_with_results_and_provenance(tmp_path):
    study = Study("00_t.square", toy_trials.square, 1, tmp_path)
    rows = study.run([{"x": 3}, {"x": 1}, {"x": 3}])
    assert rows["x"].tolist() == [3, 1, 3]
    assert rows["square"].tolist() == [9, 1, 9]
    assert rows["curve"].map(list).tolist() == [[0.5, 1.0], [0.5, 1 / 3], [0.5, 1.0]]
    assert {f"{PREFIX}{c}" for c in ("seconds", "memory_mb", "device", "commit", "code")} <= set(rows)


def test_asking_for_nothing_gives_an_empty_table(tmp_path):
    assert Study("00_t.square", toy_trials.square, 1, tmp_path).run([], workers=2).empty


def test_asking_again_computes_nothing(tmp_path):
    log = tmp_path / "log"
    study = Study("00_t.logged", toy_trials.logged, 1, tmp_path)
    specs = [{"x": x, "log": str(log), "seconds": 0.0} for x in range(3)]
    first = study.run(specs)
    lines = log.read_text()
    pd.testing.assert_frame_equal(first, study.run(specs))
    assert log.read_text() == lines


def test_a_raised_version_computes_again(tmp_path):
    log = tmp_path / "log"
    specs = [{"x": 1, "log": str(log), "seconds": 0.0}]
    for version in (1, 2):
        Study("00_t.logged", toy_trials.logged, version, tmp_path).run(specs)
    assert log.read_text().count("end 1") == 2


def test_one_process_and_two_give_the_same_rows(tmp_path):
    specs = [{"x": x} for x in range(20)]
    one = Study("00_t.square", toy_trials.square, 1, tmp_path / "one").run(specs)
    two = Study("00_t.square", toy_trials.square, 1, tmp_path / "two").run(specs, workers=2)
    pd.testing.assert_frame_equal(results(one), results(two))


def test_the_union_of_shards_is_the_whole(tmp_path):
    specs = [{"x": x} for x in range(11)]
    whole = Study("00_t.square", toy_trials.square, 1, tmp_path / "whole").run(specs)
    study = Study("00_t.square", toy_trials.square, 1, tmp_path / "shards")
    parts = [study.run(specs, shard=(i, 3)) for i in range(3)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert not study.missing(specs)
    pd.testing.assert_frame_equal(results(study.rows(specs)), results(whole))


def test_a_failing_trial_is_a_row_with_its_reason(tmp_path, capsys):
    study = Study("00_t.unlucky", toy_trials.unlucky, 1, tmp_path)
    rows = study.run([{"x": 12}, {"x": 13}])
    assert rows["status"].tolist() == ["done", "failed"]
    assert rows["reason"][1] == "ArithmeticError: the loss became nan in epoch 2"
    assert "1 of 2 trials failed" in capsys.readouterr().err


def test_a_study_of_which_nothing_is_left_stops_with_the_reasons(tmp_path):
    study = Study("00_t.unlucky", toy_trials.unlucky, 1, tmp_path)
    with pytest.raises(CompanionError, match=r"^00_t\.unlucky: 2 of 2 trials failed: 2 x ArithmeticError[^\n]*\.$"):
        study.run([{"x": 13, "y": 0}, {"x": 13, "y": 1}])


def test_failed_trials_run_again_only_when_asked(tmp_path, monkeypatch):
    study = Study("00_t.unlucky", toy_trials.unlucky, 1, tmp_path)
    specs = [{"x": 12}, {"x": 13}]
    study.run(specs)
    study.store.compact()
    mended = Study("00_t.unlucky", toy_trials.square, 1, tmp_path)
    assert mended.run(specs)["status"].tolist() == ["done", "failed"]
    assert mended.run(specs, retry_failed=True)["status"].tolist() == ["done", "done"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_user_must_mend_stops_the_run_with_its_sentence(tmp_path, workers):
    specs = [{"x": 1}, {"x": 2}]
    with pytest.raises(CompanionError, match="fetch it"):
        Study("00_t.data", toy_trials.needs_data, 1, tmp_path).run(specs, workers=workers)
    with pytest.raises(CompanionError, match="lower batch_size or workers"):
        Study("00_t.memory", toy_trials.out_of_memory, 1, tmp_path).run(specs, workers=workers)


def test_a_result_named_like_a_parameter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="square"):
        Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": 1, "square": 1}])


def test_missing_weights_are_made_again_and_the_row_stays(tmp_path, capsys):
    study = Study("00_t.weights", toy_trials.with_weights, 1, tmp_path)
    rows = study.run([{"x": 1}])
    path = study.weights({"x": 1.0})
    assert path.exists() and capsys.readouterr().err == ""
    path.unlink()
    assert study.weights({"x": 1}) == path and path.exists()
    assert "training them" in capsys.readouterr().err
    pd.testing.assert_frame_equal(study.rows([{"x": 1}]), rows)


def test_asking_for_weights_of_a_trial_that_writes_none_is_one_sentence(tmp_path):
    with pytest.raises(CompanionError, match="wrote no weights"):
        Study("00_t.square", toy_trials.square, 1, tmp_path).weights({"x": 1})


def test_rows_that_were_never_run_are_named(tmp_path):
    with pytest.raises(KeyError, match="'x': 5"):
        Study("00_t.square", toy_trials.square, 1, tmp_path).rows([{"x": 5}])


def test_killed_at_random_moments_and_restarted_equals_the_uninterrupted_run(tmp_path):
    n, log, folder = 24, tmp_path / "log", tmp_path / "killed"
    study = Study("00_t.logged", toy_trials.logged, 1, folder)
    specs = [{"x": x, "log": str(log), "seconds": 0.1} for x in range(n)]
    stored: list[set] = []
    rng = random.Random(0)
    held = hold(tmp_path, first := 20)
    for _ in range(3):
        batch = start_batch(folder, log, n)
        enough = min(len(list(study.store.trials.glob("*.json"))) + 2, first)
        assert wait_for(lambda enough=enough: len(list(study.store.trials.glob("*.json"))) >= enough, 300)
        time.sleep(rng.uniform(0, 0.2))
        batch.send_signal(signal.SIGKILL)
        batch.wait()
        workers = {int(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("start")}
        assert wait_for(lambda workers=workers: not any(map(alive, workers)), 60), "a worker outlived its parent"
        stored.append({study.store.key(spec) for spec in specs} & {p.stem for p in study.store.trials.glob("*.json")})
    assert 0 < len(stored[-1]) < n
    held.unlink()
    starts_before = log.read_text()
    rows = study.run(specs)
    ran = {int(line.split()[1]) for line in log.read_text().removeprefix(starts_before).splitlines()}
    assert {study.store.key(specs[x]) for x in ran}.isdisjoint(stored[-1]), "a finished trial ran twice"
    whole = Study("00_t.logged", toy_trials.logged, 1, tmp_path / "whole").run(specs)
    pd.testing.assert_frame_equal(results(rows), results(whole))
    assert not list(study.store.trials.glob("*.lock"))


def test_two_processes_filling_one_store_at_once_lose_nothing_and_share_the_work(tmp_path):
    n, log, folder = 30, tmp_path / "log", tmp_path / "both"
    batches = [start_batch(folder, log, n, seconds=0.05) for _ in range(2)]
    assert [batch.wait(120) for batch in batches] == [0, 0]
    study = Study("00_t.logged", toy_trials.logged, 1, folder)
    assert not study.missing([{"x": x, "log": str(log), "seconds": 0.05} for x in range(n)])
    ends = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("end")]
    assert sorted(map(int, ends)) == list(range(n)), "a trial was lost or ran twice"


def test_running_trials_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": 1}])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("free_gib", "workers"), [(100, 6), (10, 2), (1, 1)])
def test_a_gpu_runs_as_many_trials_side_by_side_as_its_memory_holds(tmp_path, monkeypatch, capsys, free_gib, workers):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib * 2**30, 2**37))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    study = Study("00_toy.memory", toy_trials.square, 1, tmp_path, memory=lambda spec: 1024.0 * spec["x"])
    todo = [{"x": x} for x in (1, 2, 4)]  # the largest decides: 4 GiB
    assert study._affordable(todo, 6, "cuda") == workers
    assert f"about 4.0 GiB a trial, {free_gib}.0 GiB free, {workers} side by side" in capsys.readouterr().err
    assert study._affordable(todo, 6, "cpu") == 6 and study._affordable([], 6, "cuda") == 6
