"""Parameters checked before a notebook starts; one notebook run by papermill and published; a profile's batch.

python -m lib.batch figures PROFILE [--fresh] [snakemake options]   the whole profile (what `make figures` calls)
python -m lib.batch execute PROFILE NOTEBOOK              one notebook (what the Snakefile calls)
python -m lib.batch refresh                               the outputs in notebooks/ (what `make notebooks` calls)
"""

import ast
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from lib import fresh, provenance
from lib.provenance import CompanionError, command, figures_dir, root, runs_dir, unknown, write_atomically
from lib.store import locked
from lib.study import Study

LOCAL = "local"  # where results of parameters of a reader's own go


# Parameters ----------------------------------------------------------------------------------------------------------


def notebook_names() -> list[str]:
    """The numbered notebooks, in order, without `.ipynb`."""
    return sorted(path.stem for path in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def default_parameters(name: str) -> dict:
    """The values in a notebook's cell tagged `parameters`; CompanionError if there is none or a value is not plain."""
    path = root() / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        raise unknown("notebook", name, notebook_names())
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise CompanionError(f"{path.name} has {len(tagged)} cells tagged 'parameters'; it needs exactly one.")
    try:
        return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0]).body}
    except (AttributeError, ValueError):
        raise CompanionError(f"{path.name}: the parameters cell may only assign plain values to names.") from None


def profile_parameters(profile: str, name: str) -> dict:
    """A profile's parameters of one notebook, read from `runs/<profile>/<name>.yaml` and checked.

    Raises: CompanionError naming the known profiles, the nearest parameter, or the type that is expected.
    """
    path = root() / "runs" / profile / f"{name}.yaml"
    if not path.exists():
        raise CompanionError(f"Profile {profile!r} has no {name}: known profiles are {', '.join(profiles())}.")
    try:
        asked = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CompanionError(f"{path.relative_to(root())} is not YAML: {' '.join(str(error).split())}.") from None
    return checked(name, asked, f"runs/{profile}/{name}.yaml") if asked else default_parameters(name)


def checked(name: str, asked: dict, source: str) -> dict:
    """A notebook's defaults with the asked values in their place; CompanionError for an unknown name or type."""
    known = default_parameters(name)
    if not isinstance(asked, dict):
        raise CompanionError(f"{source} holds no `name: value` lines.")
    for parameter, value in asked.items():
        if parameter not in known:
            raise unknown(f"parameter in {source}:", parameter, known)
        expected = type(known[parameter])
        fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
        if not fits or isinstance(value, bool) != (expected is bool):
            raise CompanionError(f"{source}: {parameter} is {value!r}; it must be of type {expected.__name__}.")
    return known | asked


def profiles() -> list[str]:
    """Folders of `runs` that hold a YAML file."""
    return sorted({path.parent.name for path in (root() / "runs").glob("*/*.yaml")})


def check_profile(profile: str) -> list[str]:
    """Check every YAML file of a profile before anything starts; returns its notebooks, in order."""
    if profile not in profiles():
        raise unknown("profile", profile, profiles())
    names = sorted(path.stem for path in (root() / "runs" / profile).glob("*.yaml"))
    for name in names:
        if profile_parameters(profile, name)["profile"] != profile:
            raise CompanionError(f"runs/{profile}/{name}.yaml must say `profile: {profile}`.")
    return names


class Run:
    """Where a notebook's results go, decided by its parameters; its setup cell makes `Run("NN_name", globals())`.

    `folder` holds the stores of its studies, `results` gets its rows and claims, `figures` its figures. A notebook
    whose parameters equal its profile's file writes to that profile; any other set of values writes to `local`.
    """

    def __init__(self, name: str, namespace: dict) -> None:
        defaults = default_parameters(name)
        values = {parameter: namespace[parameter] for parameter in defaults}
        checked(name, values, f"{name}.ipynb")
        self.profile = values["profile"]
        if self.profile not in profiles():
            check_profile(self.profile)
        published = (root() / "runs" / self.profile / f"{name}.yaml").exists()
        if not published or values != profile_parameters(self.profile, name):
            self.profile = LOCAL
        self.name, self.device = name, provenance.default_device()
        self.folder = runs_dir() / self.profile
        stage = os.environ.get("COMPANION_STAGE")
        self.results = Path(stage) / "runs" if stage else self.folder
        self.figures = Path(stage) / "figures" if stage else figures_dir() / self.profile

        #: the store of the declared profile, where baselines lie even if other parameters are a reader's own
        self.baselines = runs_dir() / values["profile"]

    def announce(self, study: Study, specs: list[dict] | pd.DataFrame) -> None:
        """Print what a study will compute; how much of it is stored goes to stderr, which no published copy keeps."""
        print(f"{study.name}: {len(specs)} trials, profile {self.profile}")
        print(f"{study.name}: {len(study.missing(specs))} to be computed on {self.device}", file=sys.stderr)


# One notebook --------------------------------------------------------------------------------------------------------


def execute(profile: str, name: str, timeout: int = 7200) -> Path:
    """Run one notebook of a profile in a stage under `.build` and publish what it made.

    Args:
        timeout: seconds that one cell may take.

    Returns: the published notebook.

    Raises: CompanionError that names notebook, cell, error and the partial notebook; nothing is published then.
    """
    with _stage(profile, name) as stage:
        _run_staged(stage, name, profile_parameters(profile, name), timeout)
        _publish(stage / "runs", runs_dir() / profile, f"{name}.")
        _publish(stage / "figures", figures_dir() / profile, f"{name[:2]}_")
        published = runs_dir() / profile / f"{name}.ipynb"
        write_atomically(published, (stage / f"{name}.ipynb").read_bytes())
    return published


def refresh(names: list[str] | None = None) -> None:
    """Run the notebooks with the values that stand in them and store their outputs in `notebooks/`."""
    for name in names or notebook_names():
        with _stage("smoke", name) as stage:
            _run_staged(stage, name, {}, 7200)
            write_atomically(root() / "notebooks" / f"{name}.ipynb", (stage / f"{name}.ipynb").read_bytes())
        print(f"notebooks/{name}.ipynb is fresh.")


@contextlib.contextmanager
def _stage(profile: str, name: str) -> Iterator[Path]:
    """An empty folder to run one notebook in, for one process at a time."""
    stage = root() / ".build" / profile / name
    with locked(stage.with_suffix(".lock"), blocking=False) as owner:
        if not owner:
            raise CompanionError(f"{name} of profile {profile} is running in this checkout already: wait for it.")
        shutil.rmtree(stage, ignore_errors=True)
        for part in ("runs", "figures"):
            (stage / part).mkdir(parents=True)
        yield stage


def _run_staged(stage: Path, name: str, parameters: dict, timeout: int) -> None:
    source, partial = root() / "notebooks" / f"{name}.ipynb", stage / f"{name}.ipynb"
    os.environ |= {"COMPANION_STAGE": str(stage), "COMPANION_QUIET": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root()), os.environ.get("PYTHONPATH")]))
    options = {"kernel_name": "python3", "cwd": str(root()), "progress_bar": False, "stderr_file": sys.stderr}
    options["extra_arguments"] = ["--IPKernelApp.log_level=ERROR"]  # it warns of unencrypted loopback each time
    try:
        papermill.execute_notebook(source, partial, parameters, execution_timeout=timeout, **options)
    except papermill.PapermillExecutionError as error:
        cell, what = error.exec_count, f"{error.ename}: {error.evalue}"
        if error.ename != "CompanionError":
            print("\n".join(error.traceback[-3:]), file=sys.stderr)
    except CellTimeoutError:
        cell, what = _last_cell(partial), f"it took longer than {timeout} s"
    except DeadKernelError:
        cell, what = _last_cell(partial), "the kernel died, most likely for lack of memory"
    else:
        write_atomically(partial, _cleaned(partial).encode())
        return
    raise CompanionError(f"notebooks/{name}.ipynb failed in cell [{cell}]: {what}\nAs far as it ran: {partial}")


def _last_cell(partial: Path) -> int | str:
    """The number of the last code cell that was started when a notebook stopped."""
    cells = [cell for cell in nbformat.read(partial, as_version=4).cells if cell.cell_type == "code"]
    started = [i for i, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else "?"


def _cleaned(path: Path) -> str:
    """A notebook without what differs from run to run: times, and progress and warnings on stderr."""
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


def _end_with_batch() -> None:
    """End this process and its kernel when the batch that started it on this machine is gone."""
    host, _, pid = os.environ.get("COMPANION_BATCH", "").rpartition(":")
    if host != platform.node():
        return

    def watch() -> None:
        while Path(f"/proc/{pid}").exists() or not Path("/proc").exists():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The batch that started this notebook is gone."))
    threading.Thread(target=watch, daemon=True).start()


# The batch -----------------------------------------------------------------------------------------------------------


def figures(profile: str, options: list[str], anew: bool = False) -> None:
    """Become snakemake on a profile, holding a lock that the kernel releases however this process ends.

    Args:
        anew: compute everything again, in an empty store (`fresh`).
    """
    check_profile(profile)
    lock = root() / ".build" / "lock"
    lock.parent.mkdir(exist_ok=True)
    handle = lock.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sentence = "Another batch is running in this checkout: wait for it, or work in a second one."
        raise CompanionError(sentence) from None
    os.set_inheritable(handle.fileno(), True)
    os.environ |= fresh.begin(profile) if anew else {}
    os.environ["COMPANION_BATCH"] = f"{platform.node()}:{os.getpid()}"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root()), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root() / "Snakefile"), "--directory", str(root())]
    command += ["--nolock", "--rerun-incomplete", "--forceall", "--config", f"profile={profile}", f"fresh={anew}"]
    command += options or ["--executor", "local", "--cores", "all", "--quiet", "all"]
    os.execv(sys.executable, command)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["figures", profile, "--fresh", *options]:
            figures(profile, options, anew=True)
        case ["figures", profile, *options]:
            figures(profile, options)
        case ["land", profile]:
            fresh.land(profile, check_profile(profile))
        case ["execute", profile, name]:
            _end_with_batch()
            start = time.monotonic()
            path = execute(profile, name)
            print(f"{os.path.relpath(path, root())}: {time.monotonic() - start:.0f} s")
        case ["refresh", *names]:
            refresh(names)
        case ["check", profile]:
            print(*check_profile(profile))
        case _:
            raise CompanionError(__doc__)


if __name__ == "__main__":
    command(main)
