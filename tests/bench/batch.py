"""What the batch costs beside the notebooks that it runs: processes started, notebooks written and published."""

import os
import re
import shutil
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
    for name in ("lib", "notebooks", "Snakefile", "pyproject.toml"):
        (folder / name).symlink_to(root() / name)
    (folder / "runs/smoke").mkdir(parents=True)
    for path in (root() / "runs/smoke").glob("*.yaml"):
        shutil.copy(path, folder / "runs/smoke")


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
                yield Line("   the batch beside them, of the cells' time", 100 * (seconds / inside - 1), "%", "<", 10)


BENCHMARKS = (overhead,)
