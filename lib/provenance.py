"""Folders, errors and locks of the project, and what made a result: commit, code, versions, device, seconds, memory."""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import importlib
import importlib.util
import logging
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

# torch and pandas are imported where they are used: a batch starts processes that need neither, and seconds for each.
if TYPE_CHECKING:
    import pandas as pd

CONTEXT = ("device", "python", "torch", "commit", "code")  # everything that a row's numbers may depend on
STOPPED = "Stopped. Finished trials are kept: "  # and how to go on
RESUMES = f"{STOPPED}the same command resumes from here."
PREFIX = "made_"  # of the columns that say how a row was made; they are measurements, never results


class CompanionError(RuntimeError):
    """An error that only the user can fix; its message is one sentence that names the remedy."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback through `lib`."""
        return [f"{type(self).__name__}: {self}"]


class Stopped(KeyboardInterrupt):
    """An interrupt of a study; a notebook shows how to go on, and no traceback of threads and processes."""

    def _render_traceback_(self) -> list[str]:
        return [f"{STOPPED}run this cell again to go on from here."]


def own_name(name: object) -> bool:
    """Whether a name stands for code outside this library: "package.module:function"."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def own_file(name: str) -> Path:
    """The file of a "package.module:function", without importing the module itself.

    Raises:
        CompanionError: if no such module can be found.
    """
    module = name.partition(":")[0]
    if str(root()) not in sys.path:  # where the user's module is most likely to be; workers get the same path
        sys.path.append(str(root()))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if not found or not found.origin or not Path(found.origin).is_file():
        remedy = "put its file into the root of the project, or its folder on PYTHONPATH"
        raise CompanionError(f"{name}: there is no module {module}; {remedy}.")
    return Path(found.origin)


def imported(name: str) -> Callable:
    """The function of "package.module:function".

    Raises:
        CompanionError: if the module cannot be found or imported, or has no such function.
    """
    path, (module, _, function) = own_file(name), name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # a user's module may raise anything
        raise CompanionError(f"{path} cannot be imported ({type(error).__name__}: {error}): correct it.") from error
    if not callable(found):
        raise CompanionError(f"{path} has no function {function}: define it there, or name another one.")
    return found


def own_code(values: dict) -> str:
    """The functions and folders of a reader's own that a spec names, each with 12 digits of its SHA-256; "" for none.

    That of a function is of its file, that of a folder of the names and sizes of all files in it.
    """
    found = []
    for value in values.values():
        if own_name(value):
            digest = hashlib.sha256(own_file(value).read_bytes())
        elif isinstance(value, str) and "/" in value and (folder := own_folder(value)[0]).is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sizes = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in files]
            digest = hashlib.sha256("\n".join(sizes).encode())
        else:
            continue
        found.append(f"{value} {digest.hexdigest()[:12]}")
    return ", ".join(dict.fromkeys(found))


def stale(rows: pd.DataFrame) -> str:
    """What to do if rows were made by other code than that which is here; "" if they were not."""
    code = rows.get(f"{PREFIX}code")
    other = 0 if code is None else int((code != code_hash()).sum())
    own = [text for text in rows.get(f"{PREFIX}own", []) if isinstance(text, str)]
    changed = [
        text
        for text in dict.fromkeys(own)
        if text != own_code({part: part.rpartition(" ")[0] for part in text.split(", ")})
    ]
    if changed:
        return f"stored rows were made by another version of {changed[0]}: delete them, so that they are computed anew."
    if other:
        return f"{other} of {len(rows)} stored rows were made by other code; raise the version to compute them anew."
    return ""


def own_folder(name: str) -> tuple[Path, int | None]:
    """The folder of a name "path" or "path@side", relative to the root, and the side of its images (pixels) or none."""
    path, side = re.fullmatch(r"(.*?)(?:@(\d+))?", name, re.S).groups()
    return root() / Path(path).expanduser(), int(side) if side else None


def command(main: Callable[[list[str]], None]) -> None:
    """Run a module's command line; an error that the user can fix prints one sentence and no traceback."""
    try:
        main(sys.argv[1:])
    except CompanionError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would print the traceback of the interrupted cell
        print(RESUMES, file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if not disk_full(error):
            raise
        sys.exit(f"No room on the disk for {error.filename}: free some space and start again.")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let an interrupt wait, also in a program that this process becomes, until that calls `release_interrupts`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_interrupts() -> None:
    """Let interrupts through again, also one that came meanwhile; what nobody catches ends in a sentence."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], *others: object) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(RESUMES, file=sys.stderr)
        else:
            usual(kind, *others)

    sys.excepthook = hook
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def unknown(kind: str, name: object, known: Iterable[str]) -> CompanionError:
    """The error for a name that does not exist: it suggests the nearest known name and lists all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, 1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    return CompanionError(f"Unknown {kind} {name!r}{hint}: known are {', '.join(known)}.")


@cache
def root() -> Path:
    """The checkout: the nearest folder at or above the working directory that holds `pyproject.toml` and `lib`.

    Raises:
        CompanionError: if there is none, or if Python imports the `lib` of another checkout.
    """
    library = Path(__file__).resolve().parent
    for folder in (Path.cwd(), *Path.cwd().parents, library.parent):
        if (folder / "pyproject.toml").is_file() and (folder / "lib").is_dir():
            if (folder / "lib").resolve() == library:
                return folder
            remedy = f"start with make, or set PYTHONPATH={folder}"
            raise CompanionError(f"You are in {folder}, but Python imports lib from {library.parent}: {remedy}.")
    raise CompanionError("No folder above this one holds pyproject.toml and lib: start inside a checkout.")


def _folder(variable: str, name: str) -> Path:
    """A folder of the checkout, or the one that an environment variable names, relative to the checkout."""
    return Path(os.path.abspath(root() / Path(os.environ.get(variable) or name).expanduser()))


def runs_dir() -> Path:
    """Results by profile: `RUNS_DIR`, or `runs` in the root."""
    return _folder("RUNS_DIR", "runs")


def figures_dir() -> Path:
    """Figures by profile: `FIGURES_DIR`, or `figures` in the root."""
    return _folder("FIGURES_DIR", "figures")


def build_dir() -> Path:
    """Unfinished work of batches: `.build` in the root, or in `RUNS_DIR`, so that the checkout may be read-only."""
    return (runs_dir() if os.environ.get("RUNS_DIR") else root()) / ".build"


def data_dir() -> Path:
    """Data sets and public weights: `DATA_DIR` (which must exist), or `data` in the root."""
    folder = _folder("DATA_DIR", "data")
    if os.environ.get("DATA_DIR") and not folder.is_dir():
        raise CompanionError(f"DATA_DIR is {folder}, which does not exist: create that folder or unset DATA_DIR.")
    return folder


def disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or the size limit of a file is exhausted."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path` and rename it, so that a reader sees the whole file or none.

    Raises:
        CompanionError: if the disk is full; no partial file remains.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if disk_full(error):
            remedy = "free some space and start again (finished trials are kept)"
            raise CompanionError(f"No room on the disk for {path}: {remedy}.") from error
        raise


@contextmanager
def locked(path: Path, blocking: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock that the kernel releases when its owner exits, even after a crash.

    It works between processes of one machine, and between machines that share a file system. The file `path` exists
    while the lock is held.

    Yields:
        True, or False at once if the lock has another owner and `blocking` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        # The last owner may have deleted the file between our open and our lock; then this lock protects nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@cache
def code_hash() -> str:
    """First 12 hex digits of the SHA-256 of every Python file below `lib`, the code that a trial runs.

    Line ends do not count: a copy of the repository made on another system is the same code.
    """
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()[:12]


def check_code() -> None:
    """Refuse code that changed after the batch began, so that all rows of a batch are made by one code.

    A batch leaves the hash of its code in COMPANION_CODE; outside a batch nothing is refused.

    Raises:
        CompanionError: if this process imported other code.
    """
    begun = os.environ.get("COMPANION_CODE")
    if begun and begun != code_hash():
        raise CompanionError("lib changed while this batch was running: start it again (finished trials are kept).")


@cache
def git_commit() -> str:
    """The checked-out commit (12 digits), with `+` if tracked files differ from it; `none` outside git.

    A repository around the checkout does not count: its commit says nothing about this code.
    """

    def git(*arguments: str) -> str:
        options = {"cwd": root(), "capture_output": True, "encoding": "utf-8", "check": True, "timeout": 20}
        return subprocess.run(("git", *arguments), **options).stdout.strip()

    try:
        if not os.path.samefile(git("rev-parse", "--show-toplevel"), root()):
            return "none"
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


_version = cache(version)  # it parses a file of its package for half a millisecond


@cache
def device_name(device: str = "cpu") -> str:
    """The marketing name of the processor or GPU behind a torch device."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def default_device() -> str:
    """`cuda` where torch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_memory_mb(device: str = "cpu") -> float:
    """Peak memory in MiB: of this process, or of a CUDA device since its statistics were last reset."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


@contextmanager
def made(device: str = "cpu") -> Iterator[dict]:
    """Fill a dictionary with the provenance columns of the code that runs inside the block."""
    import torch

    record: dict = {}
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        yield record
    finally:
        record |= {
            f"{PREFIX}seconds": time.perf_counter() - start,
            f"{PREFIX}memory_mb": peak_memory_mb(device),
            f"{PREFIX}device": device_name(device),
            f"{PREFIX}commit": git_commit(),
            f"{PREFIX}code": code_hash(),
            f"{PREFIX}torch": _version("torch"),
            f"{PREFIX}python": platform.python_version(),
        }


def table(studies: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A column for each study: trials, failures, total seconds, peak memory, device, versions, commit of its rows."""
    import pandas as pd

    def column(rows: pd.DataFrame) -> dict:
        return {
            "trials": len(rows),
            "failed": int((rows["status"] == "failed").sum()),
            "seconds of computing": round(float(rows[f"{PREFIX}seconds"].sum()), 1),
            "peak memory (MiB)": round(float(rows[f"{PREFIX}memory_mb"].max())),
        } | {name: ", ".join(sorted(set(rows[f"{PREFIX}{name}"].astype(str)))) for name in CONTEXT}

    return pd.DataFrame({name: column(rows) for name, rows in studies.items()})
