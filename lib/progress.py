"""Progress of a long loop: a bar where a person watches, a line now and then in a log, nothing in a worker."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process

from tqdm import tqdm as text_bar
from tqdm.auto import tqdm

LINE_SECONDS = 30.0  # between two lines of progress in batch output


def quiet() -> bool:
    """Whether progress bars would be noise: in batch output, and in worker processes, whose parent shows one."""
    return bool(os.environ.get("COMPANION_QUIET")) or parent_process() is not None


def shown(steps: Iterable, total: int, name: str) -> Iterator:
    """A bar in Jupyter and terminals once it has lasted some seconds; a line now and then in a log.

    COMPANION_QUIET says which in a batch: "bar" where a person watches it in a terminal, "lines" otherwise.
    """
    if not quiet():
        yield from tqdm(steps, total=total, desc=name, delay=5, disable=total == 0)
        return
    if os.environ.get("COMPANION_QUIET") == "bar" and parent_process() is None:
        yield from text_bar(steps, total=total, desc=name, delay=5, mininterval=1, ncols=100, leave=False)
        return
    start = last = time.monotonic()
    for done, step in enumerate(steps, 1):
        if time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            left = (last - start) / done * (total - done)
            print(f"{name}: {done} of {total} trials, about {left:.0f} s left", file=sys.stderr, flush=True)
        yield step
