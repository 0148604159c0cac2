"""A profile's batch, on this machine or on a cluster, and the commands that run one notebook of it.

python -m lib.run figures PROFILE [shards=N] [cell_seconds=N] [snakemake options]
                                        the whole profile (what `make figures` calls)
python -m lib.run execute PROFILE NOTEBOOK [shard=I/N] [cell_seconds=N]
                                        one notebook, or one share of its trials (what the Snakefile calls)
python -m lib.run status PROFILE      how far a profile is (what `make status` calls)
python -m lib.run refresh             the outputs in notebooks/ (what `make notebooks` calls)
"""

import fcntl
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

from lib.notebook import CELL_SECONDS, execute, refresh
from lib.parameters import check_profile
from lib.status import overview
from lib.provenance import CompanionError, command, root, runs_dir, unknown


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
