"""A batch is one at a time, survives what ends it, and says where it failed."""

import signal

from lib import run as notebook
from tests.toy_house import (
    finished,
    hold,
    processes_of,
    published,
    start_batch,
    wait_for,
    write_yaml,
)


def test_a_second_batch_is_refused_a_killed_one_leaves_nothing_behind_and_a_restart_completes(house):
    n = 20
    write_yaml(house, n=n, rate=0.1)
    held = hold(house / "runs/smoke", 8)
    first = start_batch(house)
    trials = house / "runs/smoke/trials/00_toy.squares"
    assert wait_for((house / ".build/smoke/00_toy").exists, 300), (house / "batch.log").read_text()
    assert start_batch(house).wait(300) != 0
    assert "Another batch is running" in (house / "batch.log").read_text()
    assert wait_for(lambda: len(list(trials.glob("*.json"))) > 3, 300), (house / "batch.log").read_text()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert wait_for(lambda: not processes_of(house), 60), processes_of(house)
    done = len(list(trials.glob("*.json")))
    assert 3 < done < n and not published(house)
    log = (house / "runs/smoke/log").read_text()
    held.unlink()
    finished(start_batch(house), house)
    assert "00_toy.claims.json" in published(house)
    started = (house / "runs/smoke/log").read_text().removeprefix(log).count("start")
    assert started <= n - done, "a finished trial ran again"


def test_a_failing_notebook_fails_the_batch_and_says_where(house):
    write_yaml(house, trouble="error")
    assert start_batch(house).wait(600) != 0
    output = (house / "batch.log").read_text()
    assert "failed in cell [5]: CompanionError: the data are not here" in output, output


def test_a_fresh_batch_computes_everything_anew_goes_on_after_a_kill_and_replaces_the_results_at_the_end(house):
    notebook.execute("smoke", "00_toy")
    before, log = published(house), house / "runs/smoke/log"
    assert log.read_text().count("start") == 3
    write_yaml(house, n=4, trouble="error")
    assert start_batch(house, "fresh=1").wait(600) != 0
    assert "A fresh run of smoke begins" in (house / "batch.log").read_text()
    assert published(house) == before, "a fresh run that fails leaves what was published"
    fresh_log = house / "runs/fresh/smoke/log"
    assert fresh_log.read_text().count("start") == 4, "published rows were taken for new ones"
    write_yaml(house, n=4)
    output = finished(start_batch(house, "fresh=1"), house)
    assert "The fresh run of smoke" in output and "goes on" in output
    assert "00_squares_4.svg" in published(house) and "00_squares_3.svg" not in published(house)
    assert log.read_text().count("start") == 4, "a finished trial of the interrupted run was computed again"
    assert not list((house / "runs/fresh").iterdir()) and len(list((house / "runs/smoke/trials").rglob("*.json"))) == 4
