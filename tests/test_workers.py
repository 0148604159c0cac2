"""Worker processes take one torch thread each, and none outlives the run that needs it."""

import time
from functools import partial
from multiprocessing import active_children

import pytest
import torch

from lib.provenance import CompanionError
from lib.study import Study, side_by_side
from tests import toy_trials


def test_a_trial_on_the_cpu_has_one_torch_thread_and_the_process_gets_its_own_back(tmp_path):
    before = torch.get_num_threads()
    rows = Study("00_t.threads", toy_trials.random_state, 1, tmp_path).run([{"x": 1}])
    assert rows["threads"].tolist() == [1]
    assert torch.get_num_threads() == before


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


def test_workers_are_killed_when_whoever_asked_stops_asking():
    running = side_by_side(partial(toy_trials.raised, power=2), [{"x": x} for x in range(50)], 2, "00_t")
    next(running)
    children = active_children()
    running.close()
    deadline = time.monotonic() + 20
    # The pool's own thread waits for them, too, and knows an instant later than the system that they are gone.
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children and not any(child.is_alive() for child in children)
