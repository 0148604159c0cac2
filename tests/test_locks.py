"""A lock excludes others while its owner lives, and no longer."""

import os
import signal
import subprocess
import sys

from lib.provenance import locked, root


def test_a_lock_excludes_others_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.lock"
    with locked(path) as first, locked(path, blocking=False) as second:
        assert first and not second
    assert not path.exists()
    with locked(path, blocking=False) as again:
        assert again


def test_the_lock_of_a_killed_process_is_free_though_its_file_stays(tmp_path):
    path = tmp_path / "a.lock"
    code = "from pathlib import Path; from lib.locks import locked\n"
    code += f"with locked(Path({str(path)!r})): print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root(),
        env=os.environ | {"PYTHONPATH": str(root())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        owner.stdout.readline()
        with locked(path, blocking=False) as mine:
            assert not mine
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert path.exists()
    with locked(path, blocking=False) as mine:
        assert mine
    assert not path.exists()
