"""A small checkout with one notebook, which tests execute, start as a batch, kill and look into."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.provenance import PREFIX, root

PARAMETERS = """
profile = "smoke"  # a comment
n = 3
rate = 0.5
workers = 1
quick = True
names = ["a"]
trouble = ""
decides = []
"""
SETUP = """
import os
import matplotlib.pyplot as plt
from lib.claims import Ledger, Rule
from lib.provenance import CompanionError
from lib.run import Run
from lib.study import Study
from tests.toy_trials import logged

run = Run("00_toy", globals())
ledger = Ledger([Rule(id="T1", section="s", claim="c", statistic="s", relation=">", threshold=0, null="0", n_unit="x")])
"""
# The second study asks for trials that the rows of the first decide.
RESULTS = """
rows = run.compute(Study("00_toy.squares", logged, 1, run.folder), [{"x": x, "seconds": rate} for x in range(n)])
largest = [{"x": int(square), "seconds": rate} for square in rows["square"].nlargest(2)]
best = run.compute(Study("00_toy.best", logged, 1, run.folder), largest)
ledger.enter("T1", value=int(best["square"].max()), n=n)
figure, axis = plt.subplots()
axis.plot(rows["x"], rows["square"])
run.save(figure, f"00_squares_{n}", rows[["x", "square"]], "Squares.")
run.finish(ledger)
"""
TROUBLE = """
if trouble == "error": raise CompanionError("the data are not here: fetch them.")
if trouble == "death": os._exit(9)
"""
MODULES = ("lib.run", "lib.parameters", "lib.provenance")  # that look for the root


def write_notebook(folder: Path, *sources: str, tag: str = "parameters") -> None:
    cells = [new_markdown_cell("# Toy"), *(new_code_cell(source.strip()) for source in sources)]
    cells[1].metadata["tags"] = [tag]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "00_toy.ipynb")


def write_yaml(checkout: Path, **changes: object) -> None:
    values = {"profile": "smoke", "n": 3, "rate": 0.0} | changes
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
    (checkout / "runs" / "smoke" / "00_toy.yaml").write_text(text)


def build(checkout: Path) -> Path:
    checkout.mkdir(parents=True, exist_ok=True)
    for name in ("lib", "tests", "Snakefile", "pyproject.toml"):
        (checkout / name).symlink_to(root() / name)
    write_notebook(checkout / "notebooks", PARAMETERS, SETUP, RESULTS, TROUBLE)
    (checkout / "runs" / "smoke").mkdir(parents=True)
    write_yaml(checkout)
    return checkout


def enter(checkout: Path, monkeypatch) -> Path:
    """Let this process work in a checkout, as if it had been started there."""
    for module in MODULES:
        monkeypatch.setattr(f"{module}.root", lambda: checkout)
    for variable in ("RUNS_DIR", "FIGURES_DIR", "PYTHONPATH", "JUPYTER_PATH", "FIGURES"):
        monkeypatch.setenv(variable, "")
    for variable in ("STAGE", "BATCH", "QUIET", "SHARD", "CODE"):
        monkeypatch.setenv(f"COMPANION_{variable}", "")
    return checkout


def executions(checkout: Path, kind: str = "") -> list[str]:
    """Lines of the log of trials: those that say `start` or `end`, or both."""
    log = checkout / "runs/smoke/trials/log"
    return [line for line in log.read_text().splitlines() if line.startswith(kind)] if log.exists() else []


def waiting(checkout: Path) -> set[str]:
    """The processes whose trial waits until `trials/hold` is deleted."""
    first = int((checkout / "runs/smoke/trials/hold").read_text())
    lines = [line.split() for line in executions(checkout)]
    ended = {(x, pid) for kind, x, pid in lines if kind == "end"}
    return {pid for kind, x, pid in lines if kind == "start" and int(x) >= first and (x, pid) not in ended}


def hold(folder: Path, first: int) -> Path:
    """A file in a folder of studies: until it is deleted, no logged trial ends whose x is `first` or more."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hold").write_text(str(first))
    return folder / "hold"


def without_measurements(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[name for name in rows if not name.startswith(PREFIX)]]


def results(checkout: Path) -> list[pd.DataFrame]:
    """The published rows of every study, without measurements."""
    files = sorted((checkout / "runs/smoke").glob("*.parquet"))
    return [without_measurements(pq.read_table(path).to_pandas()) for path in files]


def published(checkout: Path) -> dict[str, bytes]:
    files = [*(checkout / "runs" / "smoke").glob("00_toy.*"), *(checkout / "figures").rglob("*.*")]
    return {path.name: path.read_bytes() for path in files if path.suffix != ".yaml"}


def start_batch(checkout: Path, *options: str) -> subprocess.Popen:
    """`make figures` of a checkout in another process; `batch.log` gets its output."""
    command = [sys.executable, "-m", "lib.run", "figures", "smoke", *options]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    with (checkout / "batch.log").open("a") as log:
        return subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def finished(batch: subprocess.Popen, checkout: Path) -> str:
    """The output of a batch and of those before it, once it has ended well."""
    code, output = batch.wait(900), (checkout / "batch.log").read_text()
    assert code == 0, output
    return output


def processes_of(checkout: Path) -> dict[int, str]:
    """The commands of all processes that work in a checkout, by number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and (folder / "cwd").resolve().is_relative_to(checkout):
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def wait_for(condition: Callable, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


def killed(function: Callable[[], object]) -> bool:
    """Call a function in a copy of this process; whether the copy was killed by a signal."""
    copy = get_context("fork").Process(target=function)
    copy.start()
    copy.join()
    return copy.exitcode == -signal.SIGKILL


def kill_at(method: str, name: str, monkeypatch, *, half: bool = False) -> None:
    """Let this process be killed when a method of `Path` begins on a file whose name contains `name`.

    half: when it has written half of the content.
    """
    original = getattr(Path, method)

    def deadly(path: Path, *arguments: object, **options: object) -> object:
        target = arguments[0] if method == "replace" else path
        if name in Path(target).name and (method != "unlink" or path.exists()):
            if half:
                original(path, arguments[0][: len(arguments[0]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, method, deadly)


def fill(folder: Path, leave: int) -> Path:
    """Take all the space of a file system but the last bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(file.tell() - leave, 0))
    return filler
