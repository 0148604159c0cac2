"""What the batch costs beside the notebooks that it runs: processes started, notebooks written and published."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lib.provenance import root
from tests.bench import Line


def checkout(folder: Path) -> None:
    """A checkout of its own with the smoke profile, so that no other batch is in its way."""
    for name in ("lib", "notebooks", "Makefile", "Snakefile", "pyproject.toml", "requirements.txt", ".venv"):
        if (root() / name).exists():  # a conda environment stands in for .venv
            (folder / name).symlink_to(root() / name)
    (folder / "runs/smoke").mkdir(parents=True)
    for path in (root() / "runs/smoke").glob("*.yaml"):
        shutil.copy(path, folder / "runs/smoke")


def first_trial() -> Iterator[Line]:
    """From the command to the first trial in an empty store, whose lock then appears there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RUNS_DIR", "FIGURES_DIR")}
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            folder = Path(name)
            checkout(folder)
            start = time.perf_counter()
            batch = subprocess.Popen(["make", "figures"], cwd=folder, start_new_session=True, **options)
            while batch.poll() is None and not any(folder.glob(f"runs/smoke/trials/*/{16 * '?'}.lock")):
                time.sleep(0.01)
            seconds.append(time.perf_counter() - start if batch.poll() is None else float("nan"))
            os.killpg(batch.pid, signal.SIGTERM)
            batch.wait()
            time.sleep(2)  # until its kernel has noticed
    yield Line("make figures: until the first trial runs", min(seconds), "s on two idle cores", "<", 6)


def overhead() -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout(folder)
        environment = os.environ | {"PYTHONPATH": str(folder), "RUNS_DIR": "", "FIGURES_DIR": ""}
        command = [sys.executable, "-m", "lib.run", "figures", "smoke"]
        for store in ("empty", "warm"):
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - start
            cells = [float(seconds) for seconds in re.findall(r"its cells took ([\d.]+) s", done.stdout)]
            inside = sum(cells)
            yield Line(f"{len(cells)} smoke notebooks, {store} store: their cells", inside, "s")
            yield Line("   the batch beside them", seconds - inside, "s")
            if store == "empty":
                yield Line("   in all", seconds, "s on two idle cores", "<", 240)
                yield Line("   the batch beside them, of the cells' time", 100 * (seconds / inside - 1), "%", "<", 10)


BENCHMARKS = (first_trial, overhead)
