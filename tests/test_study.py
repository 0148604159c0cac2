"""A study finds its finished trials, computes the missing ones, and loses nothing; worker processes end with it."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pandas as pd
import pytest
import torch
from jupyter_client import BlockingKernelClient, KernelManager

from lib import study as studies
from lib.provenance import PREFIX, CompanionError, root
from lib.study import Study, generator, seed_from, side_by_side
from tests import toy_trials
from tests.toy_checkout import fill, hold, wait_for, without_measurements


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_trials(folder: Path, n: int, seconds: float, workers: int) -> subprocess.Popen:
    """Another process that runs n logged trials."""
    code = (
        "from pathlib import Path; from lib.study import Study; from tests.toy_trials import logged\n"
        "if __name__ == '__main__':\n"
        f"    specs = [dict(x=x, seconds={seconds}) for x in range({n})]\n"
        f"    Study('00_t.logged', logged, 1, Path({str(folder)!r})).run(specs, workers={workers})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root())}
    return subprocess.Popen([sys.executable, "-c", code], cwd=root(), env=environment, stderr=subprocess.DEVNULL)


def logged(folder: Path, kind: str) -> list[list[str]]:
    """x and process of every line of the log that says `start` or `end`."""
    log = folder / "trials" / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1:] for line in lines if line.startswith(kind)]


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
    study = Study("00_t.logged", toy_trials.logged, 1, tmp_path)
    specs = [{"x": x} for x in range(3)]
    first = study.run(specs)
    pd.testing.assert_frame_equal(first, study.run(specs))
    assert len(logged(tmp_path, "end")) == 3


def test_a_raised_version_computes_again(tmp_path):
    for version in (1, 2):
        Study("00_t.logged", toy_trials.logged, version, tmp_path).run([{"x": 1}])
    assert len(logged(tmp_path, "end")) == 2


@pytest.mark.parametrize("place", ["published", "compacted", "loose"])
def test_rows_of_an_older_version_with_other_columns_are_not_in_the_way(tmp_path, place):
    specs = [{"x": 2}, {"x": 3}]
    old = Study("00_t.squares", toy_trials.square, 1, tmp_path)
    rows = old.run(specs)
    if place == "published":
        old.store.publish(rows, tmp_path)
    if place == "compacted":
        old.store.compact(0)
    new = Study("00_t.squares", toy_trials.squares, 2, tmp_path)
    assert new.run(specs)["square"].map(list).tolist() == [[4, 4], [9, 9]]
    new.store.compact(0)
    assert len(new.store.known()) == 2 and len(new.store.outcomes()[0]) == 2


def test_a_shard_begins_with_its_own_share_and_leaves_nothing(tmp_path, monkeypatch):
    specs = [{"x": x} for x in range(7)]
    whole = Study("00_t.logged", toy_trials.logged, 1, tmp_path / "whole").run(specs)
    monkeypatch.setenv("COMPANION_SHARD", "1/3")
    rows = Study("00_t.logged", toy_trials.logged, 1, tmp_path).run(specs)
    assert [x for x, _ in logged(tmp_path, "start")] == list("1425036")
    pd.testing.assert_frame_equal(without_measurements(rows), without_measurements(whole))


def test_a_failing_trial_is_a_row_with_its_reason(tmp_path, capsys):
    study = Study("00_t.unlucky", toy_trials.unlucky, 1, tmp_path)
    rows = study.run([{"x": 12}, {"x": 13}])
    assert rows["status"].tolist() == ["done", "failed"]
    assert rows["reason"][1] == "ArithmeticError: the loss became nan in epoch 2"
    assert "1 of 2 trials failed" in capsys.readouterr().err


def test_a_study_whose_trials_all_fail_stops_with_the_reasons(tmp_path):
    study = Study("00_t.unlucky", toy_trials.unlucky, 1, tmp_path)
    with pytest.raises(CompanionError, match=r"^00_t\.unlucky: 2 of 2 trials failed: 2 x Arithm[^\n]* start again\.$"):
        study.run([{"x": 13, "y": 0}, {"x": 13, "y": 1}])


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_that_the_user_can_fix_stops_the_run_with_its_sentence_and_no_row(tmp_path, workers):
    study = Study("00_t.data", toy_trials.needs_data, 1, tmp_path)
    with pytest.raises(CompanionError, match="fetch it"):
        study.run([{"x": 1}, {"x": 2}], workers=workers)
    assert not len(study.store.known())


@pytest.mark.parametrize(
    ("trial", "spec", "sentence"),
    [
        (toy_trials.greedy, {"library": "numpy"}, "Out of memory in 00_t.trial .*: lower batch_size or workers"),
        (toy_trials.greedy, {"library": "torch"}, "Out of memory in 00_t.trial .*: lower batch_size or workers"),
        (toy_trials.out_of_memory, {"x": 1}, "Out of memory in 00_t.trial .*: lower batch_size or workers"),
        (toy_trials.gpu_failure, {"x": 1}, "The GPU failed in 00_t.trial .*: start again"),
        (toy_trials.disk_full, {"x": 1}, "No room on the disk in 00_t.trial .*: free some space"),
    ],
)
def test_a_failure_of_the_machine_is_no_result_of_the_trial(tmp_path, trial, spec, sentence):
    study = Study("00_t.trial", trial, 1, tmp_path)
    with pytest.raises(CompanionError, match=sentence):
        study.run([spec])
    assert not len(study.store.known())


def test_a_result_named_like_a_parameter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="square"):
        Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": 1, "square": 1}])


def test_a_trial_that_returns_no_dictionary_or_that_workers_cannot_import_is_one_sentence(tmp_path):
    study = Study("00_t.lambda", lambda spec, device, weights: 3, 1, tmp_path)
    with pytest.raises(ValueError, match="returns a dictionary of results, not int"):
        study.run([{"x": 1}])
    with pytest.raises(ValueError, match="make it a function of a module"):
        study.run([{"x": 1}, {"x": 2}], workers=2)


def test_missing_weights_are_made_again_and_the_row_stays(tmp_path, capsys):
    study = Study("00_t.weights", toy_trials.with_weights, 1, tmp_path)
    rows = study.run([{"x": 1}])
    assert "1 to be computed" in capsys.readouterr().out
    path = study.weights({"x": 1.0})
    assert path.exists() and capsys.readouterr() == ("", "")
    path.unlink()
    assert study.weights({"x": 1}) == path and path.exists()
    said = capsys.readouterr()
    assert "trained again" in said.out and not said.err, "a message in red looks like an error"
    pd.testing.assert_frame_equal(study.rows([{"x": 1}]), rows)


def test_asking_for_weights_of_a_trial_that_writes_none_is_one_sentence(tmp_path):
    with pytest.raises(CompanionError, match="wrote no weights"):
        Study("00_t.square", toy_trials.square, 1, tmp_path).weights({"x": 1})


def test_rows_that_were_never_run_are_named(tmp_path):
    with pytest.raises(KeyError, match="'x': 5"):
        Study("00_t.square", toy_trials.square, 1, tmp_path).rows([{"x": 5}])


def executed(code: str) -> subprocess.CompletedProcess:
    """A program in a process of its own, with its output."""
    environment = os.environ | {"PYTHONPATH": str(root())}
    return subprocess.run([sys.executable, "-c", code], cwd=root(), env=environment, capture_output=True, text=True)


def test_workers_find_what_was_imported_for_all_of_them_once():
    code = (
        "import sys; from functools import partial; from lib import study; from tests import toy_trials\n"
        "if __name__ == '__main__':\n"
        "    study.prepare_workers('colorsys')\n"
        "    items = [dict(module='colorsys')] * 8\n"
        "    print({found for _, found in study.side_by_side(toy_trials.imported, items, 2, 's')})\n"
    )
    done = executed(code)
    assert done.stdout.strip() == "{True}", done.stderr


def test_an_interrupt_while_workers_are_prepared_is_handled_by_this_process_alone():
    code = (
        "import os, signal, time; from multiprocessing import forkserver; from lib import study\n"
        "study.prepare_workers('lib.baselines')\n"
        "time.sleep(0.3); os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)\n"
        "print(*study.side_by_side(__import__('operator').itemgetter('x'), [dict(x=1)], 2, 's'))\n"
    )
    done = executed(code)
    assert done.stdout.strip() == "({'x': 1}, 1)" and not done.stderr


def workers_of(folder: Path) -> set[int]:
    return {int(pid) for _, pid in logged(folder, "start")}


def test_of_two_processes_that_fill_one_store_one_is_killed_and_the_other_does_all_the_rest_once(tmp_path):
    n = 20
    held = hold(tmp_path / "trials", 4)
    both = [start_trials(tmp_path, n, 0.01, workers) for workers in (2, 1)]
    assert wait_for(lambda: len(logged(tmp_path, "start")) == 7, 120)  # 4 trials have ended, and each worker is held
    both[0].send_signal(signal.SIGKILL)
    both[0].wait()
    assert wait_for(lambda: sum(map(alive, workers_of(tmp_path))) == 1, 60), "a worker outlived its parent"
    held.unlink()
    assert both[1].wait(120) == 0
    study = Study("00_t.logged", toy_trials.logged, 1, tmp_path)
    assert not study.missing([{"x": x, "seconds": 0.01} for x in range(n)])
    assert sorted(int(x) for x, _ in logged(tmp_path, "end")) == list(range(n)), "a trial was lost or ran twice"
    assert not list(study.store.trials.glob("*.lock")) and not any(map(alive, workers_of(tmp_path)))


@pytest.mark.nightly
def test_killed_at_random_moments_and_restarted_equals_the_uninterrupted_run(tmp_path):
    n, rng, stored = 24, random.Random(0), set()
    study = Study("00_t.logged", toy_trials.logged, 1, tmp_path)
    specs = [{"x": x, "seconds": 0.1} for x in range(n)]
    held = hold(tmp_path / "trials", first := 20)
    for _ in range(3):
        batch = start_trials(tmp_path, n, 0.1, 2)
        enough = min(len(stored) + 2, first)
        assert wait_for(lambda enough=enough: len(list(study.store.trials.glob("*.json"))) >= enough, 300)
        time.sleep(rng.uniform(0, 0.2))
        batch.send_signal(signal.SIGKILL)
        batch.wait()
        assert wait_for(lambda: not any(map(alive, workers_of(tmp_path))), 60), "a worker outlived its parent"
        stored = {path.stem for path in study.store.trials.glob("*.json")}
    assert 0 < len(stored) < n
    held.unlink()
    before = len(logged(tmp_path, "start"))
    rows = study.run(specs)
    ran = {study.store.key(specs[int(x)]) for x, _ in logged(tmp_path, "start")[before:]}
    assert ran.isdisjoint(stored), "a finished trial ran twice"
    whole = Study("00_t.logged", toy_trials.logged, 1, tmp_path / "whole").run(specs)
    pd.testing.assert_frame_equal(without_measurements(rows), without_measurements(whole))


def test_running_trials_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": 1}])
    assert torch.equal(before, torch.get_rng_state())


def test_a_trial_on_the_cpu_has_one_torch_thread_and_the_process_gets_its_own_back(tmp_path):
    before = torch.get_num_threads()
    rows = Study("00_t.threads", toy_trials.random_state, 1, tmp_path).run([{"x": 1}])
    assert rows["threads"].tolist() == [1]
    assert torch.get_num_threads() == before


def test_one_process_and_two_give_the_same_rows(tmp_path):
    specs = [{"x": x} for x in range(20)]
    one = Study("00_t.square", toy_trials.square, 1, tmp_path / "one").run(specs)
    two = Study("00_t.square", partial(toy_trials.square), 1, tmp_path / "two").run(specs, workers=2)
    pd.testing.assert_frame_equal(without_measurements(one), without_measurements(two))


def test_a_killed_worker_stops_the_run_with_a_sentence_and_the_next_run_has_a_pool(tmp_path):
    with pytest.raises(CompanionError, match="fewer workers"):
        Study("00_t.killed", toy_trials.killed, 1, tmp_path).run([{"x": 1}, {"x": 2}], workers=2)
    assert len(Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": 1}, {"x": 2}], workers=2)) == 2


def test_every_item_comes_back_once_with_what_it_gave_and_the_pool_serves_again():
    items = [{"x": x} for x in range(7)]
    for power in (2, 3):
        found = list(side_by_side(partial(toy_trials.raised, power=power), items, 2, "00_t"))
        assert sorted((item["x"], value) for item, value in found) == [(x, x**power) for x in range(7)]
    assert len(active_children()) >= 1


def test_workers_are_killed_when_the_caller_stops():
    running = side_by_side(partial(toy_trials.raised, power=2), [{"x": x} for x in range(50)], 2, "00_t")
    next(running)
    children = active_children()
    running.close()
    deadline = time.monotonic() + 20
    # The pool's own thread waits for them, too, and knows an instant later than the system that they are gone.
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children and not any(child.is_alive() for child in children)


def test_named_streams_differ_by_name_and_seed_and_repeat():
    seeds = {seed_from(seed, name) for seed in (0, 1) for name in ("order", "augmentation")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    first, second = (torch.rand(3, generator=generator(0, "order")) for _ in range(2))
    assert torch.equal(first, second)


def test_progress_is_silent_in_workers_and_a_bar_in_the_terminal_and_in_the_log_of_a_batch(monkeypatch, capsys):
    monkeypatch.setattr(studies, "text_bar", partial(studies.text_bar, file=sys.stderr))
    for kind in ("bar", "lines"):
        monkeypatch.setenv("COMPANION_QUIET", kind)
        bar = studies.shown(range(6), 6, "00_t.counted")
        bar.delay = 0
        assert list(bar) == list(range(6)) and studies.quiet()
    monkeypatch.setattr(studies, "parent_process", lambda: object())
    capsys.readouterr()
    assert list(studies.shown(range(6), 6, "00_t.counted")) == list(range(6)) and not capsys.readouterr().err


def test_progress_goes_to_stderr_in_a_batch_whose_notebooks_do_not_keep_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_QUIET", "lines")
    Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": 1}])
    said = capsys.readouterr()
    assert "1 to be computed" in said.err and not said.out


def reply_to(request: str, client: BlockingKernelClient) -> dict:
    while (message := client.get_shell_msg(timeout=120))["parent_header"]["msg_id"] != request:
        continue
    return message["content"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_notebook_that_is_stopped_says_in_one_sentence_that_finished_trials_are_kept_and_resumes(tmp_path, workers):
    code = f"""from pathlib import Path
from lib.study import Study
from tests.toy_trials import logged
study = Study("00_t.logged", logged, 1, Path({str(tmp_path)!r}))
rows = study.run([{{"x": x}} for x in range(4)], workers={workers})
print(rows["square"].tolist())"""
    manager = KernelManager(kernel_name="python3")
    environment = os.environ | {"PYTHONPATH": str(root())}
    manager.start_kernel(cwd=str(root()), env=environment)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        held = hold(tmp_path / "trials", 2)
        request = client.execute(code, stop_on_error=False)  # or the kernel aborts a request that follows at once
        assert wait_for(lambda: len(list((tmp_path / "trials").glob("*/*.json"))) == 2, 120)
        manager.interrupt_kernel()
        reply = reply_to(request, client)
        sentence = "Stopped. Finished trials are kept: run this cell again to go on from here."
        assert reply["traceback"] == [sentence], "a traceback of threads looks like a defect"
        held.unlink()
        assert reply_to(client.execute(code), client)["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert sorted(x for x, _ in logged(tmp_path, "end")) == ["0", "1", "2", "3"], "a finished trial ran again"
    assert not list((tmp_path / "trials").rglob("*.lock")) or workers == 2  # a killed worker leaves its file, unlocked


def test_a_clock_that_jumps_changes_no_measured_time(tmp_path, monkeypatch):
    clock = iter(random.Random(0).uniform(-1e9, 4e9) for _ in range(10**6))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    rows = Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": x} for x in range(20)])
    assert rows["made_seconds"].between(0, 60).all()


def test_a_full_disk_stops_a_study_with_a_sentence_and_what_was_stored_stays_whole(tiny_disk):
    folder = tiny_disk / "runs"
    specs = [{"x": x} for x in range(200)]
    study = Study("00_t.square", toy_trials.square, 1, folder)
    filler = fill(tiny_disk, 64 * 1024)
    with pytest.raises(CompanionError, match="No room on the disk for .*: free some space and start again"):
        study.run(specs)
    stored = study.store.known()
    assert 0 < len(stored) < 200
    assert not list(study.store.trials.glob(".*.tmp")) and not list(study.store.trials.glob("*.lock"))
    filler.unlink()
    assert len(study.run(specs)) == 200
