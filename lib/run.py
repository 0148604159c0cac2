"""One notebook, executed by papermill and published whole or not at all; and the batch of a profile.

python -m lib.run figures PROFILE [shards=N] [snakemake options]    the whole profile, for `make figures`
python -m lib.run execute PROFILE NOTEBOOK [shard=I/N]              one notebook or one share of its trials
python -m lib.run status PROFILE                                    the progress of a profile, for `make status`
python -m lib.run check PROFILE                                     its notebooks, if all parameters can run
python -m lib.run refresh [NOTEBOOK ...]                            the outputs in notebooks/, for `make notebooks`
python -m lib.run lab [JupyterLab options]                          JupyterLab on the checkout, for `make lab`
"""

import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lib import provenance
from lib.claims import Ledger
from lib.parameters import (
    check_profile,
    checked,
    default_parameters,
    inputs,
    notebook_names,
    picture_formats,
    profile_parameters,
    profiles,
)
from lib.provenance import CompanionError, build_dir, command, figures_dir, locked, root, runs_dir, write_atomically

# Heavy packages are imported where they are used: checking a profile takes less time than importing them.
if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML, Image
    from matplotlib.figure import Figure

    from lib.study import Study

LOCAL = "local"  # the profile of results from a reader's own parameters
LONG = 15  # lines; longer code is folded in JupyterLab and on the site
KEPT = "free some space and start again (finished trials are kept)"


class Run:
    """One run of a notebook: its parameters, where its results go, and the studies that it computes.

    A notebook whose parameters equal its profile's file writes to that profile; any other set of values writes to
    `local`. The setup cell makes `Run("NN_name", globals())`.

    Attributes:
        parameters: the values that stand in the notebook, by name.
        profile: the profile that the results belong to, or `local`.
        folder: of the stores of the notebook's studies.
        baselines: of the dense networks' store, that of the declared profile even if other parameters differ.
        device: "cuda" where torch sees a GPU, else "cpu".

    Raises:
        CompanionError: for a parameter that is unknown, of the wrong type, or out of range.
    """

    def __init__(self, name: str, namespace: dict) -> None:
        import torch

        from lib import figures
        from lib.study import prepare_workers

        self.name, self.parameters = name, {parameter: namespace[parameter] for parameter in default_parameters(name)}
        checked(name, self.parameters, f"{name}.ipynb")
        declared = self.parameters["profile"]
        if declared not in profiles():
            check_profile(declared)
        published = (root() / "runs" / declared / f"{name}.yaml").exists()
        own = not published or self.parameters != profile_parameters(declared, name)
        self.profile, self.device = LOCAL if own else declared, provenance.default_device()
        self.folder, self.baselines = runs_dir() / self.profile, runs_dir() / declared
        stage = os.environ.get("COMPANION_STAGE")
        self._results = Path(stage) / "runs" if stage else self.folder
        self._figures = Path(stage) / "figures" if stage else figures_dir() / self.profile
        self._computed: dict[str, tuple[Study, list[dict]]] = {}
        self._warned = False
        if self._workers() > 1 and not (self.folder / f"{name}.claims.json").exists():
            prepare_workers("lib.baselines", "torch._dynamo")  # heavy imports: of all trials, of an optimizer
        figures.use_style()
        torch.set_num_threads(1)

    @property
    def precision(self) -> str:
        """The precision of the notebook's trainings: its parameter, with "auto" resolved for this machine."""
        from lib.training import resolve_precision

        return resolve_precision(self.parameters["precision"])

    def compute(self, study: "Study", specs: "list[dict] | pd.DataFrame", workers: int | None = None) -> "pd.DataFrame":
        """The rows of trials as `Study.run` returns them, computed where they are missing, and published by `finish`.

        The number of `workers` is by default COMPANION_WORKERS, or else the notebook's parameter. The first study
        whose stored rows were made by other code says so on stderr: they lack what a trial measures since then.
        """
        specs = specs if isinstance(specs, list) else specs.to_dict("records")
        print(f"{study.name}: {len(specs)} trials, profile {self.profile}")
        self._computed.setdefault(study.name, (study, []))[1].extend(specs)
        rows = study.run(specs, workers=workers or self._workers(), device=self.device)
        if not self._warned and (stale := provenance.stale(rows)):
            print(f"{study.name}: {stale}", file=sys.stderr)
            self._warned = True
        return rows

    def save(self, figure: "Figure", slug: str, numbers: "pd.DataFrame", alt: str) -> "Image":
        """Save a figure with the numbers behind it; arguments and result as `figures.save`."""
        from lib import figures

        return figures.save(figure, self._figures, slug, numbers, alt)

    def animate(self, frames: "Iterable[Figure]", slug: str, alt: str) -> "HTML":
        """Save an animation; arguments and result as `figures.animate`."""
        from lib import figures

        return figures.animate(frames, self._figures, slug, alt)

    def finish(self, ledger: Ledger, scale: str = "") -> "pd.DataFrame":
        """Publish the rows of all computed studies and the claims; return the table of verdicts.

        Verdicts carry the `scale` of the experiments, such as "640 images". Statements that mathematics settles are
        shown above the table, in one of their own.

        Raises:
            ValueError: unless every claim has exactly one primary entry.
        """
        from IPython.display import display

        ledger.scale = ledger.scale or scale
        ledger.save(self._results, self.name)
        for study, rows in self._rows():
            study.store.publish(rows, self._results)
        print(ledger.decided(self.parameters["decides"]))
        if any(rule.mathematical for rule in ledger.rules):
            display(ledger.table(mathematical=True))
        return ledger.table()

    def provenance(self) -> "pd.DataFrame":
        """What made the rows of each computed study: trials, seconds, memory, device, versions, commit."""
        return provenance.table({study.name: rows for study, rows in self._rows()})

    def _workers(self) -> int:
        return int(os.environ.get("COMPANION_WORKERS") or self.parameters.get("workers", 1))

    def _rows(self) -> "Iterator[tuple[Study, pd.DataFrame]]":
        return ((study, study.rows(study.distinct(specs))) for study, specs in self._computed.values())


def execute(profile: str, name: str, shard: str = "") -> Path:
    """Run one notebook of a profile in a stage under `.build`, publish its results, and return its published copy.

    A `shard`, "i/n", publishes nothing and leaves its trials in the store; see `Study.run`.

    Raises:
        CompanionError: if data are missing or `lib` changed since the batch began, before a kernel starts. Or naming
            notebook, cell, error and the partial notebook; nothing is published then.
    """
    parameters, start = profile_parameters(profile, name), time.monotonic()
    os.environ["COMPANION_CODE"] = os.environ.get("COMPANION_CODE") or provenance.code_hash()
    provenance.check_code()
    if not (runs_dir() / profile / f"{name}.claims.json").exists():  # published rows need no data
        _fetch(parameters)
    with _stage(profile, name, shard) as stage:
        inside = _run_staged(stage, name, parameters)
        if shard:
            return stage / f"{name}.ipynb"
        _publish(stage / "runs", runs_dir() / profile, f"{name}.")
        _publish(stage / "figures", figures_dir() / profile, f"{name[:2]}_")
        published = runs_dir() / profile / f"{name}.ipynb"
        write_atomically(published, (stage / f"{name}.ipynb").read_bytes())
    where = os.path.relpath(published, root())
    print(f"{where}: {time.monotonic() - start:.1f} s, of which its cells took {inside:.1f} s")
    return published


def _fetch(parameters: dict) -> None:
    """Download the data sets and public checkpoints of a notebook that may be downloaded; say what else is missing."""
    datasets, checkpoints = inputs(parameters)
    if datasets or checkpoints:
        from lib import data, models

        for dataset in sorted(datasets):
            data.fetch(dataset)
        for checkpoint in sorted(checkpoints):
            models.public(*checkpoint.split("/"))


def refresh(names: list[str]) -> None:
    """Run the notebooks with their own parameters and store the outputs in `notebooks/`."""
    for name in names or notebook_names():
        with _stage("smoke", name) as stage:
            _run_staged(stage, name, {})
            write_atomically(root() / "notebooks" / f"{name}.ipynb", (stage / f"{name}.ipynb").read_bytes())
        print(f"notebooks/{name}.ipynb is fresh.")


@contextmanager
def _stage(profile: str, name: str, shard: str = "") -> Iterator[Path]:
    """An empty folder in which one process at a time runs one notebook or one shard of it."""
    i, _, n = (shard or "0/1").partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise CompanionError(f"Invalid shard {shard}: use i/n, such as 0/4.")
    os.environ["COMPANION_SHARD"] = shard
    stage = build_dir() / profile / (f"{name}.{i}-of-{n}" if shard else name)
    with locked(stage.with_name(f"{stage.name}.lock"), blocking=False) as owner:
        if not owner:
            raise CompanionError(f"{stage.name} of profile {profile} is running in this checkout: wait for it.")
        shutil.rmtree(stage, ignore_errors=True)
        for part in ("runs", "figures"):
            (stage / part).mkdir(parents=True)
        yield stage


def _run_staged(stage: Path, name: str, parameters: dict) -> float:
    """Run a notebook in its stage; returns the seconds that its cells took."""
    # jsonschema would compile 38 grammars of internet addresses for over a second; it works without this package.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from nbclient.exceptions import DeadKernelError

    source, partial = root() / "notebooks" / f"{name}.ipynb", stage / f"{name}.ipynb"
    os.environ |= {"COMPANION_STAGE": str(stage), "COMPANION_QUIET": "bar" if sys.stderr.isatty() else "lines"}
    _prepend("PYTHONPATH", root())
    _prepend("JUPYTER_PATH", _own_kernel())
    options = {"kernel_name": "python3", "cwd": str(root()), "progress_bar": False, "stderr_file": sys.stderr}
    options["extra_arguments"] = ["--IPKernelApp.log_level=ERROR"]  # it warns of unencrypted loopback each time
    try:
        done = papermill.execute_notebook(source, partial, parameters, **options)
        write_atomically(partial, _cleaned(partial).encode())
        return sum(cell.metadata["papermill"]["duration"] or 0.0 for cell in done.cells)
    except papermill.PapermillExecutionError as error:
        cell, reason = error.exec_count, f"{error.ename}: {error.evalue}"
        if os.strerror(errno.ENOSPC) in reason:
            reason += f": {KEPT}"
        if error.ename != "CompanionError":
            print("\n".join(error.traceback[-3:]), file=sys.stderr)
    except DeadKernelError:
        cell, reason = _last_cell(partial), "the kernel died, most likely for lack of memory"
    except RuntimeError as error:  # jupyter_client has no type of its own for a kernel that never starts
        if not str(error).startswith("Kernel d"):
            raise
        remedy = "delete .venv, then make creates the environment anew"
        raise CompanionError(f"Jupyter's kernel did not start ({error}): {remedy}.") from None
    except OSError as error:
        if provenance.disk_full(error):
            raise CompanionError(f"No room on the disk for {partial}: {KEPT}.") from None
        raise
    (stage / "failed").write_text(f"failed in cell [{cell}]: {reason}", encoding="utf-8")  # for `make status`
    raise CompanionError(f"notebooks/{name}.ipynb failed in cell [{cell}]: {reason}\nAs far as it ran: {partial}")


def _prepend(variable: str, folder: Path) -> None:
    """Put a folder at the front of a search path in the environment."""
    others = [entry for entry in os.environ.get(variable, "").split(os.pathsep) if entry and entry != str(folder)]
    os.environ[variable] = os.pathsep.join([str(folder), *others])


def _own_kernel() -> Path:
    """A search path of Jupyter whose kernel `python3` is this interpreter, whatever else has that name."""
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    write_atomically(build_dir() / "jupyter" / "kernels" / "python3" / "kernel.json", json.dumps(spec).encode())
    return build_dir() / "jupyter"


def _last_cell(partial: Path) -> int | str:
    """The number of the last code cell that was started when a notebook stopped."""
    import nbformat

    cells = [cell for cell in nbformat.read(partial, as_version=4).cells if cell.cell_type == "code"]
    started = [i for i, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else "?"


def _cleaned(path: Path) -> str:
    """A notebook without the parts that differ from run to run: times, and progress and warnings on stderr.

    Long code is folded, and where papermill injected parameters, the cell that they replace.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    for number, cell in enumerate(notebook.cells):
        fold(cell, injected)
        cell["id"] = f"cell-{number:02d}"  # papermill's own cell has another random one each time
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _joined([output for output in cell.outputs if output.get("name") != "stderr"])
    return nbformat.writes(notebook) + "\n"


def fold(cell: dict, injected: bool = False) -> None:
    """Fold a cell of long code, or unfold it; the parameters stay in sight until `injected` ones replace them."""
    tags = [tag for tag in cell["metadata"].get("tags", []) if tag != "hide-input"]
    long = cell["cell_type"] == "code" and len("".join(cell["source"]).splitlines()) > LONG
    hidden = injected if "parameters" in tags else long and "injected-parameters" not in tags
    cell["metadata"]["tags"] = [*tags, *(["hide-input"] if hidden else [])]
    cell["metadata"].pop("jupyter", None)
    if hidden:
        cell["metadata"]["jupyter"] = {"source_hidden": True}


def _joined(outputs: list) -> list:
    """Outputs with consecutive prints in one piece: the number of pieces depends on time."""
    joined: list = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _publish(stage: Path, target: Path, prefix: str) -> None:
    """Rename a stage's files into place; delete those of an earlier run with this prefix that were not made again."""
    made = {path.name for path in stage.iterdir()}
    for name in sorted(made):
        write_atomically(target / name, (stage / name).read_bytes())
    for path in target.glob(f"{prefix}*"):
        if path.name not in made and path.suffix not in (".yaml", ".ipynb"):
            path.unlink()


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would choose."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def study_state(folder: Path, name: str) -> dict:
    """The progress of a study: trials `done`, `failed` and `left`, of those requested since the batch began.

    Without a batch these are the stored rows. `spent` is the computing time of the trials in seconds. `still` is an
    estimate for the remaining ones, from their mean cost and the number of processes: None before the first has ended.
    """
    from lib.store import Store

    requested = Store(name, 0, folder).requested()
    status, seconds = Store(name, requested["version"], folder).outcomes()
    known = [key for key in requested["keys"] or status if key in status]
    failed = sum(status[key] == "failed" for key in known)
    spent, left = sum(seconds[key] for key in known), max(len(requested["keys"]) - len(known), 0)
    still = None if left else 0.0
    if left and known:
        still = left * spent / len(known) / min(left, requested["processes"])
    return {"done": len(known) - failed, "failed": failed, "left": left, "spent": spent, "still": still}


def notebook_state(folder: Path, name: str, begun: bool, left: int) -> str:
    """One of: not started, begun, failed (with its cell and reason), published."""
    for failed in sorted((build_dir() / folder.name).glob(f"{name}*/failed")):
        return failed.read_text(encoding="utf-8").partition("\n")[0][:80]
    if not left and (folder / f"{name}.ipynb").exists():
        return "published"
    return "begun" if begun else "not started"


def overview(profile: str) -> str:
    """The table of `make status`: the notebooks of a profile and their studies."""
    folder, total = runs_dir() / profile, 0.0
    lines = [f"{'notebook, study':<30} {'done':>8} {'failed':>8} {'left':>8} {'spent':>9} {'still about':>12}"]
    for name in check_profile(profile):
        names = {path.stem for path in folder.glob(f"{name}.*.parquet")}
        names |= {path.name for path in (folder / "trials").glob(f"{name}.*") if path.is_dir()}
        states = {study: study_state(folder, study) for study in sorted(names)}
        left = sum(state["left"] for state in states.values())
        lines.append(f"{name:<30} {notebook_state(folder, name, bool(states), left)}")
        for study, state in states.items():
            still = "?" if state["still"] is None else duration(state["still"]) if state["left"] else ""
            total += state["still"] or 0.0
            counts = " ".join(f"{state[key]:>8}" for key in ("done", "failed", "left"))
            lines.append(f"  {study.removeprefix(f'{name}.'):<28} {counts} {duration(state['spent']):>9} {still:>12}")
    return "\n".join([*lines, *([f"Studies that have begun need about {duration(total)} more."] if total else [])])


def figures(profile: str, options: list[str]) -> None:
    """Become snakemake on a profile, holding a lock that the kernel releases however this process ends.

    The options are perhaps `shards=N`, then snakemake's own.

    Raises:
        CompanionError: if a parameter cannot run, or another batch is running.
    """
    check_profile(profile)
    picture_formats()
    shards, options = (options[0], options[1:]) if options and "=" in options[0].lstrip("-") else ("shards=1", options)
    name, _, count = shards.partition("=")
    if name != "shards" or not count.isdecimal() or not int(count):
        raise CompanionError(f"Invalid setting {shards}: use shards=N with N of 1 or more, such as shards=4.")
    build = build_dir()
    build.mkdir(parents=True, exist_ok=True)
    handle = (build / "lock").open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sentence = "Another batch is running in this checkout: wait for it, or work in a second one."
        raise CompanionError(sentence) from None
    os.set_inheritable(handle.fileno(), True)
    # Requests and failures of an earlier batch say nothing about this one.
    for path in (*(runs_dir() / profile / "trials").glob("*/requested"), *(build / profile).glob("*/failed")):
        path.unlink()
    os.environ |= {"COMPANION_BATCH": _batch_id(), "COMPANION_CODE": provenance.code_hash(), "PYTHONUTF8": "1"}
    os.environ.pop("SNAKEMAKE_PROFILE", None)  # settings of the user's other projects
    _prepend("PYTHONPATH", root())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        (cache / "snakemake").mkdir(parents=True, exist_ok=True)
    except OSError:  # the home folder is read-only
        os.environ["XDG_CACHE_HOME"] = str(build / "cache")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root() / "Snakefile"), "--directory", str(build)]
    command += ["--nolock", "--rerun-incomplete", "--forceall", "--config", f"profile={profile}", shards]
    # One notebook at a time, unless the options describe the machine or the cluster.
    command += options or ["--executor", "local", "--cores", "all", "--resources", "checkout=1", "--quiet", "all"]
    with provenance.interrupts_held():  # until the Snakefile is read: imports of snakemake take seconds
        os.execv(sys.executable, command)


def lab(options: list[str]) -> None:
    """Become JupyterLab on the whole checkout, with this interpreter as its kernel.

    Raises:
        CompanionError: as root, unless the options allow it.
    """
    if os.geteuid() == 0 and "--allow-root" not in options:
        remedy = 'become another user, or say make lab LAB="--allow-root"'
        raise CompanionError(f"You are root, and so would be whoever opens this JupyterLab: {remedy}.")
    if os.environ.get("SSH_CONNECTION"):
        options = [*options, *({"--no-browser"} - {*options})]
        print("Over SSH: run `ssh -N -L 8888:localhost:8888 <this machine>` on your own computer, with the port below,")
        print("and open the address below there.")
    print("Saving a notebook changes a file of the checkout: duplicate it in JupyterLab's list and work in the copy.")
    sys.stdout.flush()
    _prepend("PYTHONPATH", root())
    _prepend("JUPYTER_PATH", _own_kernel())
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root()}", *options]
    os.execv(sys.executable, command)


def _batch_id() -> str:
    """Names this process on its machine and, on a cluster, in its job: one job cannot see the processes of another."""
    return f"{platform.node()}:{os.environ.get('SLURM_JOB_ID', '')}:{os.getpid()}"


def _end_with_batch() -> None:
    """End this process and its kernel on SIGTERM, or when the batch that started it on this machine is gone.

    A job of a cluster outlives the batch that submitted it: its trials are stored, and the next batch finds them.
    """

    def terminated(*_: object) -> None:
        logging.disable()  # asyncio and nbclient would print the traceback of the cell
        sys.exit("This notebook was terminated; its finished trials are kept.")

    signal.signal(signal.SIGTERM, terminated)
    machine, _, pid = os.environ.get("COMPANION_BATCH", "").rpartition(":")
    if machine != _batch_id().rpartition(":")[0]:
        return

    def watch() -> None:
        while Path(f"/proc/{pid}").exists() or not Path("/proc").exists():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> None:
    """Run one of the commands in the module's docstring."""
    match arguments:
        case ["figures", profile, *options]:
            figures(profile, options)
        case ["execute", profile, name, *shard] if len(shard) < 2:
            _end_with_batch()
            execute(profile, name, "".join(shard).removeprefix("shard="))
        case ["status", profile]:
            print(overview(profile))
        case ["check", profile]:
            print(*check_profile(profile))
        case ["refresh", *names]:
            refresh(names)
        case ["lab", *options]:
            lab(options)
        case _:
            raise CompanionError(__doc__)


if __name__ == "__main__":
    command(main)
