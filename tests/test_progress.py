"""Progress is for a person who watches, and its estimates bear a clock that jumps."""

import os
import random
import subprocess
import sys
import time

from lib import study as progress
from lib.provenance import root
from lib.study import Study
from tests import toy_trials


def test_progress_is_a_bar_in_a_terminal_and_lines_in_a_log(tmp_path):
    code = (
        "from pathlib import Path; from lib import progress, study; from tests.toy_trials import counted\n"
        "progress.LINE_SECONDS = 0.2\n"
        "original = progress.text_bar\n"
        "progress.text_bar = lambda *a, **k: original(*a, **(k | dict(delay=0, mininterval=0)))\n"
        "s = study.Study('00_t.counted', counted, 1, Path(FOLDER))\n"
        "s.run([dict(x=x, seconds=0.1) for x in range(6)])\n"
    )
    for kind in ("bar", "lines"):
        environment = os.environ | {"COMPANION_QUIET": kind, "PYTHONPATH": str(root())}
        text = code.replace("FOLDER", repr(str(tmp_path / kind)))
        done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, cwd=root())
        assert ("it/s" in done.stderr) == (kind == "bar"), done.stderr
        assert ("of 6 trials, about" in done.stderr) == (kind == "lines"), done.stderr


def test_a_clock_that_jumps_changes_no_estimate_and_no_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_QUIET", "lines")
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    clock = iter(random.Random(0).uniform(-1e9, 4e9) for _ in range(10**6))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    rows = Study("00_t.square", toy_trials.square, 1, tmp_path).run([{"x": x} for x in range(20)])
    assert rows["made_seconds"].between(0, 60).all()
    lines = [line for line in capsys.readouterr().err.splitlines() if " s left" in line]
    assert lines and all(0 <= float(line.split("about ")[1].split()[0]) < 60 for line in lines)
