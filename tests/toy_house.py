"""A small checkout with one notebook, whose batches tests start, stop and look into; conftest makes it a fixture."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.provenance import PREFIX, root

PARAMETERS = 'profile = "smoke"  # a comment\nn = 3\nrate = 0.5\nquick = True\nnames = ["a"]\ntrouble = ""'
SETUP = """
import os, sys, time
import pandas as pd, matplotlib.pyplot as plt
from lib import claims, figures, notebook
from lib.provenance import CompanionError
from lib.study import Study
from tests.toy_trials import logged
run = notebook.Run("00_toy", globals())
"""
RESULTS = """
study = Study("00_toy.squares", logged, 1, run.folder)
specs = [{"x": x, "log": str(run.folder / "log"), "seconds": rate} for x in range(n)]
run.announce(study, specs)
rows = study.run(specs)
study.publish(rows, run.results)
ledger = claims.Ledger([claims.Rule("T1", "s", "Squares grow.", "last square", ">", 0, "0")])
ledger.enter("T1", rows["square"].iloc[-1], n=n)
ledger.save(run.results, run.name)
figure, axis = plt.subplots()
axis.plot(rows["x"], rows["square"])
figures.save(figure, run.figures, f"00_squares_{n}", rows[["x", "square"]], "Squares.")
"""
TROUBLE = """
if trouble == "error": raise CompanionError("the data are not here: fetch them.")
if trouble == "bug": raise ZeroDivisionError("division by zero")
if trouble == "death": os._exit(9)
"""
# Two studies, of which the second asks for trials that the rows of the first decide.
POPULATION_PARAMETERS = 'profile = "smoke"  # a comment\nn = 40\nworkers = 1'
POPULATION = """
from lib import notebook
from lib.study import Study
from tests.toy_trials import counted
run = notebook.Run("00_toy", globals())
first = Study("00_toy.first", counted, 1, run.folder)
rows = first.run([{"x": x, "seconds": 0.25} for x in range(n)], workers=workers)
second = Study("00_toy.second", counted, 1, run.folder)
best = second.run([{"x": int(x), "seconds": 0.1} for x in rows["square"].nlargest(5)], workers=workers)
first.publish(rows, run.results)
second.publish(best, run.results)
"""


def write_notebook(folder: Path, *sources: str, tag: str = "parameters") -> None:
    cells = [new_markdown_cell("# Toy"), *(new_code_cell(source.strip()) for source in sources)]
    cells[1].metadata["tags"] = [tag]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "00_toy.ipynb")


def build(house: Path) -> None:
    for name in ("lib", "tests", "Snakefile", "pyproject.toml"):
        (house / name).symlink_to(root() / name)
    write_notebook(house / "notebooks", PARAMETERS, SETUP, RESULTS, TROUBLE)
    (house / "runs" / "smoke").mkdir(parents=True)
    write_yaml(house)


def populate(house: Path) -> None:
    write_notebook(house / "notebooks", POPULATION_PARAMETERS, POPULATION)
    (house / "runs/smoke/00_toy.yaml").write_text("profile: smoke\n")


def populate_with_claims(house: Path) -> None:
    """As `populate`, with a claim and a figure, whose files must come out the same however a batch came about."""
    values = {"n": 40, "workers": 2}
    claims_and_figure = RESULTS[RESULTS.index("ledger =") :].replace("n=n", "n=int(n)")
    write_notebook(house / "notebooks", POPULATION_PARAMETERS, SETUP, POPULATION, claims_and_figure)
    lines = [f"{name}: {value}\n" for name, value in values.items()]
    (house / "runs/smoke/00_toy.yaml").write_text("profile: smoke\n" + "".join(lines))


def executions(house: Path, what: str = "") -> list[str]:
    """Lines of the log of `counted`: those that say `start` or `end`, or both."""
    log = house / "runs/smoke/trials/log"
    return [line for line in log.read_text().splitlines() if line.startswith(what)] if log.exists() else []


def waiting(house: Path) -> set[str]:
    """The processes of `counted` whose trial waits for `trials/hold` to be taken away."""
    first = int((house / "runs/smoke/trials/hold").read_text())
    lines = [line.split() for line in executions(house)]
    ended = {(x, pid) for what, x, pid in lines if what == "end"}
    return {pid for what, x, pid in lines if what == "start" and int(x) >= first and (x, pid) not in ended}


def hold(folder: Path, first: int) -> Path:
    """No trial logged in this folder whose x is `first` or more ends before the returned file is taken away."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hold").write_text(str(first))
    return folder / "hold"


def results(house: Path) -> list[pd.DataFrame]:
    """The published rows of every study, without what was measured."""
    tables = [pq.read_table(path).to_pandas() for path in sorted((house / "runs/smoke").glob("*.parquet"))]
    return [table[[name for name in table if not name.startswith(PREFIX)]] for table in tables]


def write_yaml(house: Path, **changes: object) -> None:
    values = {"profile": "smoke", "n": 3, "rate": 0.0} | changes
    (house / "runs" / "smoke" / "00_toy.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))


def published(house: Path) -> dict[str, bytes]:
    files = [*(house / "runs" / "smoke").glob("00_toy.*"), *(house / "figures").rglob("*.*")]
    return {path.name: path.read_bytes() for path in files if path.suffix != ".yaml"}


def start_batch(house: Path, *options: str) -> subprocess.Popen:
    """`make figures` of this house in another process; `batch.log` gets what it prints."""
    command = [sys.executable, "-m", "lib.run", "figures", "smoke", *options]
    environment = os.environ | {"PYTHONPATH": str(house)}
    with (house / "batch.log").open("a") as log:
        return subprocess.Popen(command, cwd=house, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def finished(batch: subprocess.Popen, house: Path) -> str:
    """What a batch and those before it printed, once it has ended well."""
    code, output = batch.wait(900), (house / "batch.log").read_text()
    assert code == 0, output
    return output


def processes_of(house: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and (folder / "cwd").resolve() == house:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())
