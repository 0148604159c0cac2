"""One notebook, executed by papermill and published whole or not at all; and the batch of a profile.

python -m lib.run figures PROFILE [shards=N] [cell_seconds=N] [snakemake options]
                                        the whole profile (what `make figures` calls)
python -m lib.run execute PROFILE NOTEBOOK [shard=I/N] [cell_seconds=N]
                                        one notebook, or one share of its trials (what the Snakefile calls)
python -m lib.run status PROFILE        how far a profile is (what `make status` calls)
python -m lib.run refresh               the outputs in notebooks/ (what `make notebooks` calls)
"""

import contextlib
import errno
import fcntl
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lib import provenance
from lib.claims import Ledger
from lib.parameters import check_profile, checked, default_parameters, notebook_names, profile_parameters, profiles
from lib.provenance import (
    PREFIX,
    CompanionError,
    command,
    figures_dir,
    locked,
    no_room,
    root,
    runs_dir,
    unknown,
    write_atomically,
)

# papermill and nbformat are imported where a notebook is run: checking a profile takes less time than importing them.
if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image
    from matplotlib.figure import Figure

    from lib.store import Store
    from lib.study import Study

LOCAL = "local"  # where results of parameters of a reader's own go
CELL_SECONDS = 7200  # that one cell may take, unless a batch says otherwise


class Run:
    """One run of a notebook: its parameters, where its results go, and the studies that it computes.

    A notebook whose parameters equal its profile's file writes to that profile; any other set of values writes to
    `local`. The setup cell makes `Run("NN_name", globals())`.

    Attributes:
        parameters: the values that stand in the notebook, by name.
        profile: the profile that the results belong to, or `local`.
        folder: holds the stores of the notebook's studies.
        baselines: the store of the declared profile, where the dense networks lie even if other parameters differ.
        device: "cuda" where torch sees a GPU, else "cpu".

    Raises:
        CompanionError: for a parameter that is unknown, of the wrong type, or out of range.
    """

    def __init__(self, name: str, namespace: dict) -> None:
        import torch

        from lib import figures

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
        figures.use_style()
        torch.set_num_threads(1)

    def compute(self, study: "Study", specs: "list[dict] | pd.DataFrame", workers: int | None = None) -> "pd.DataFrame":
        """The rows of some trials, computed where they are missing, and published at the end by `finish`.

        Args:
            study: a study of this notebook, in `folder`.
            specs: one dictionary a trial.
            workers: processes that run trials side by side; by default the notebook's parameter of that name.

        Returns:
            The rows in the order of the specs, as `Study.run` returns them.

        Raises:
            CompanionError: as `Study.run`.
        """
        specs = specs if isinstance(specs, list) else specs.to_dict("records")
        print(f"{study.name}: {len(specs)} trials, profile {self.profile}")
        if missing := len(study.missing(specs)):  # on stderr, which no published copy keeps
            print(f"{study.name}: {missing} to be computed on {self.device}", file=sys.stderr)
        self._computed.setdefault(study.name, (study, []))[1].extend(specs)
        return study.run(specs, workers=workers or self.parameters.get("workers", 1), device=self.device)

    def save(self, figure: "Figure", slug: str, numbers: "pd.DataFrame", alt: str) -> "Image":
        """Save a figure with the numbers behind it; arguments and result as `figures.save`."""
        from lib import figures

        return figures.save(figure, self._figures, slug, numbers, alt)

    def animate(self, frames: "Iterable[Figure]", slug: str, alt: str) -> "Image":
        """Save an animation; arguments and result as `figures.animate`."""
        from lib import figures

        return figures.animate(frames, self._figures, slug, alt)

    def finish(self, ledger: Ledger) -> "pd.DataFrame":
        """Publish the rows of all computed studies and the claims; says how many claims are decided.

        Returns:
            The verdicts as a table.

        Raises:
            ValueError: unless every claim has exactly one primary entry.
        """
        ledger.save(self._results, self.name)
        for study, rows in self._rows():
            study.publish(rows, self._results)
        print(ledger.decided(self.parameters["decides"]))
        return ledger.table()

    def provenance(self) -> "pd.DataFrame":
        """What made the rows of each computed study: trials, seconds, memory, device, versions, commit."""
        return provenance.table({study.name: rows for study, rows in self._rows()})

    def _rows(self) -> "Iterator[tuple[Study, pd.DataFrame]]":
        return ((study, study.rows(study.distinct(specs))) for study, specs in self._computed.values())


def execute(profile: str, name: str, shard: str = "", timeout: int = CELL_SECONDS) -> Path:
    """Run one notebook of a profile in a stage under `.build` and publish what it made.

    Args:
        shard: "i/n" publishes nothing and leaves its trials in the store, the i-th of every n first; see `Study.run`.
        timeout: seconds that one cell may take.

    Returns: the published notebook, or that of the shard in its stage.

    Raises: CompanionError that names notebook, cell, error and the partial notebook; nothing is published then.
    """
    parameters, start = profile_parameters(profile, name), time.monotonic()
    with _stage(profile, name, shard) as stage:
        inside = _run_staged(stage, name, parameters, timeout)
        if shard:
            return stage / f"{name}.ipynb"
        _publish(stage / "runs", runs_dir() / profile, f"{name}.")
        _publish(stage / "figures", figures_dir() / profile, f"{name[:2]}_")
        published = runs_dir() / profile / f"{name}.ipynb"
        write_atomically(published, (stage / f"{name}.ipynb").read_bytes())
    where = os.path.relpath(published, root())
    print(f"{where}: {time.monotonic() - start:.1f} s, of which its cells took {inside:.1f} s")
    return published


def refresh(names: list[str] | None = None) -> None:
    """Run the notebooks with the values that stand in them and store their outputs in `notebooks/`."""
    for name in names or notebook_names():
        with _stage("smoke", name) as stage:
            _run_staged(stage, name, {}, CELL_SECONDS)
            write_atomically(root() / "notebooks" / f"{name}.ipynb", (stage / f"{name}.ipynb").read_bytes())
        print(f"notebooks/{name}.ipynb is fresh.")


@contextlib.contextmanager
def _stage(profile: str, name: str, shard: str = "") -> Iterator[Path]:
    """An empty folder to run one notebook, or one shard of it, in, for one process at a time."""
    folder = f"{name}.{'{}-of-{}'.format(*_share(shard))}" if shard else name
    os.environ["COMPANION_SHARD"] = shard
    stage = root() / ".build" / profile / folder
    with locked(stage.with_name(f"{folder}.lock"), blocking=False) as owner:
        if not owner:
            raise CompanionError(f"{folder} of profile {profile} is running in this checkout already: wait for it.")
        shutil.rmtree(stage, ignore_errors=True)
        for part in ("runs", "figures"):
            (stage / part).mkdir(parents=True)
        yield stage


def _share(shard: str) -> tuple[int, int]:
    """The (i, n) of "i/n", counted from 0."""
    i, _, n = shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise CompanionError(f"The shard {shard!r} is none: the first of four is 0/4, the last 3/4.")
    return int(i), int(n)


def _run_staged(stage: Path, name: str, parameters: dict, timeout: int) -> float:
    """Run a notebook in its stage; returns the seconds that its cells took."""
    # jsonschema would compile 38 grammars of internet addresses for over a second; a missing package it does without.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    source, partial = root() / "notebooks" / f"{name}.ipynb", stage / f"{name}.ipynb"
    os.environ |= {"COMPANION_STAGE": str(stage), "COMPANION_QUIET": "bar" if sys.stderr.isatty() else "lines"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root()), os.environ.get("PYTHONPATH")]))
    options = {"kernel_name": "python3", "cwd": str(root()), "progress_bar": False, "stderr_file": sys.stderr}
    options["extra_arguments"] = ["--IPKernelApp.log_level=ERROR"]  # it warns of unencrypted loopback each time
    try:
        done = papermill.execute_notebook(source, partial, parameters, execution_timeout=timeout, **options)
    except papermill.PapermillExecutionError as error:
        cell, what = error.exec_count, f"{error.ename}: {error.evalue}"
        if os.strerror(errno.ENOSPC) in what:
            what += ": free some space and start again (finished trials are kept)"
        if error.ename != "CompanionError":
            print("\n".join(error.traceback[-3:]), file=sys.stderr)
    except CellTimeoutError:
        cell, what = _last_cell(partial), f"it took longer than {timeout} s"
    except DeadKernelError:
        cell, what = _last_cell(partial), "the kernel died, most likely for lack of memory"
    except OSError as error:
        if not no_room(error):
            raise
        raise CompanionError(
            f"No room on the disk for {partial}: free some space and start again (finished trials are kept)."
        ) from None
    else:
        write_atomically(partial, _cleaned(partial).encode())
        return sum(cell.metadata["papermill"]["duration"] or 0.0 for cell in done.cells)
    (stage / "failed").write_text(f"failed in cell [{cell}]: {what}")  # for `make status`
    raise CompanionError(f"notebooks/{name}.ipynb failed in cell [{cell}]: {what}\nAs far as it ran: {partial}")


def _last_cell(partial: Path) -> int | str:
    """The number of the last code cell that was started when a notebook stopped."""
    import nbformat

    cells = [cell for cell in nbformat.read(partial, as_version=4).cells if cell.cell_type == "code"]
    started = [i for i, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else "?"


def _cleaned(path: Path) -> str:
    """A notebook without what differs from run to run: times, and progress and warnings on stderr."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # papermill's own cell has another random one each time
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _joined([output for output in cell.outputs if output.get("name") != "stderr"])
    return nbformat.writes(notebook) + "\n"


def _joined(outputs: list) -> list:
    """Outputs with consecutive prints in one piece: in how many they arrive depends on time."""
    joined: list = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _publish(stage: Path, target: Path, prefix: str) -> None:
    """Rename a stage's files into place; files of an earlier run with this prefix that were not made again go."""
    made = {path.name for path in stage.iterdir()}
    for name in sorted(made):
        write_atomically(target / name, (stage / name).read_bytes())
    for path in target.glob(f"{prefix}*"):
        if path.name not in made and path.suffix not in (".yaml", ".ipynb"):
            path.unlink()


HEADER = f"{'notebook, study':<30} {'done':>8} {'failed':>8} {'left':>8} {'spent':>9} {'still about':>12}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would choose."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def study_state(store: "Store") -> dict:
    """Trials of a study `done`, `failed` and `left`, of those asked for since the batch began.

    Without a batch these are the stored rows. `spent` is the computing time of the trials in seconds, `still` what is
    left at their mean cost and with as many processes as the notebook asked for: None before the first has finished.
    """
    import pyarrow.compute as pc

    asked = store.asked()
    known = replace(store, version=asked["version"]).known()
    if asked["keys"]:
        known = known.filter(pc.is_in(known["key"], pc.cast(asked["keys"], "string")))
    failed = pc.sum(pc.equal(known["status"], "failed")).as_py() or 0
    seconds = f"{PREFIX}seconds"
    spent = (pc.sum(known[seconds]).as_py() if seconds in known.column_names else None) or 0.0
    left = max(len(asked["keys"]) - len(known), 0)
    still = None if left else 0.0
    if left and len(known):
        still = left * spent / len(known) / min(left, asked["processes"])
    return {"done": len(known) - failed, "failed": failed, "left": left, "spent": spent, "still": still}


def notebook_state(folder: Path, name: str, studies: dict[str, dict]) -> str:
    """One of: not started, begun, failed (with its cell and why), published; `folder` is that of the profile's runs."""
    stages = root() / ".build" / folder.name
    for failed in sorted([*stages.glob(f"{name}/failed"), *stages.glob(f"{name}.*-of-*/failed")]):
        return failed.read_text().partition("\n")[0][:80]
    if any(state["left"] for state in studies.values()):
        return "begun"
    if (folder / f"{name}.ipynb").exists():
        return "published"
    return "begun" if studies else "not started"


def overview(profile: str) -> str:
    """What `make status` prints: notebooks of a profile and their studies."""
    from lib.store import Store

    folder = runs_dir() / profile
    lines, total = [], 0.0
    for name in check_profile(profile):
        names = {path.stem for path in folder.glob(f"{name}.*.parquet")}
        names |= {path.name for path in (folder / "trials").glob(f"{name}.*") if path.is_dir()}
        studies = {study: study_state(Store(study, 0, folder)) for study in sorted(names)}
        lines.append(f"{name:<30} {notebook_state(folder, name, studies)}")
        for study, state in studies.items():
            still = "?" if state["still"] is None else duration(state["still"]) if state["left"] else ""
            total += state["still"] or 0.0
            counts = " ".join(f"{state[key]:>8}" for key in ("done", "failed", "left"))
            lines.append(f"  {study.removeprefix(f'{name}.'):<28} {counts} {duration(state['spent']):>9} {still:>12}")
    ending = f"Studies that have begun need about {duration(total)} more." if total else ""
    return "\n".join([HEADER, *lines, *filter(None, [ending])])


def _batch_id() -> str:
    """Names this process on its machine and, on a cluster, in its job: one process cannot see those of another job."""
    return f"{platform.node()}:{os.environ.get('SLURM_JOB_ID', '')}:{os.getpid()}"


def _end_with_batch() -> None:
    """End this process and its kernel when it is told to, or when the batch that started it here is gone.

    A job of a cluster outlives the batch that submitted it: its trials are stored, and the next batch finds them.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("This notebook was told to end: its finished trials are kept."))
    place, _, pid = os.environ.get("COMPANION_BATCH", "").rpartition(":")
    if place != _batch_id().rpartition(":")[0]:
        return

    def watch() -> None:
        while Path(f"/proc/{pid}").exists() or not Path("/proc").exists():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def figures(profile: str, options: list[str]) -> None:
    """Become snakemake on a profile, holding a lock that the kernel releases however this process ends.

    options: first settings of the batch, `shards=N` and `cell_seconds=N`, then snakemake's own options.
    """
    check_profile(profile)
    settings, options = _settings(options, {"shards": 1, "cell_seconds": CELL_SECONDS})
    lock = root() / ".build" / "lock"
    lock.parent.mkdir(exist_ok=True)
    handle = lock.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sentence = "Another batch is running in this checkout: wait for it, or work in a second one."
        raise CompanionError(sentence) from None
    os.set_inheritable(handle.fileno(), True)
    # What an earlier batch asked for and where it failed is no longer how far the profile is.
    for path in (*(runs_dir() / profile / "trials").glob("*/asked"), *(root() / ".build" / profile).glob("*/failed")):
        path.unlink()
    os.environ["COMPANION_BATCH"] = _batch_id()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root()), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root() / "Snakefile"), "--directory", str(root())]
    command += ["--nolock", "--rerun-incomplete", "--forceall"]
    command += ["--config", f"profile={profile}", *(f"{name}={value}" for name, value in settings.items())]
    # One notebook at a time, unless the options say what the machine or the cluster has.
    command += options or ["--executor", "local", "--cores", "all", "--resources", "checkout=1", "--quiet", "all"]
    os.execv(sys.executable, command)


def _settings(words: list[str], known: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """The leading `name=value` words over their defaults, and the words after them."""
    settings = dict(known)
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if not sign or word.startswith("-"):
            return settings, words[place:]
        if name not in known:
            raise unknown("setting of a batch:", name, known)
        if not value.isdecimal() or not int(value):
            raise CompanionError(f"{word}: {name} must be a whole number, 1 or more.")
        settings[name] = int(value)
    return settings, []


def main(arguments: list[str]) -> None:
    match arguments:
        case ["figures", profile, *options]:
            figures(profile, options)
        case ["execute", profile, name, *words]:
            _end_with_batch()
            shard = words.pop(0).removeprefix("shard=") if words and words[0].startswith("shard=") else ""
            execute(profile, name, shard, _settings(words, {"cell_seconds": CELL_SECONDS})[0]["cell_seconds"])
        case ["status", profile]:
            print(overview(profile))
        case ["refresh", *names]:
            refresh(names)
        case ["check", profile]:
            print(*check_profile(profile))
        case _:
            raise CompanionError(__doc__)


if __name__ == "__main__":
    command(main)
