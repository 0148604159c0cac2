"""Trials side by side: worker processes that start once, die with their parent and use one torch thread each."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import active_children, get_context

import torch

from lib.provenance import CompanionError


def side_by_side(
    function: Callable[[dict], bool], specs: list[dict], workers: int, name: str
) -> Iterator[tuple[dict, bool]]:
    """Each spec with what the function returns for it, as they finish.

    Args:
        function: can be pickled; it is called in worker processes.
        workers: how many of them.
        name: of the study, for the error.

    Raises: CompanionError if a worker is killed. On any other error, an interrupt too, the workers are killed.
    """
    pool, left = _pool(workers), iter(specs)
    waiting: dict[Future, dict] = {}
    try:
        while True:
            while len(waiting) < 2 * workers and (spec := next(left, None)) is not None:
                waiting[pool.submit(function, spec)] = spec
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        _pool.cache_clear()
        raise CompanionError(
            f"A worker process of {name} was killed, most likely for lack of memory: use fewer workers and "
            "start again (finished trials are kept)."
        ) from None
    except BaseException:
        _pool.cache_clear()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.kill()
        raise


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One torch thread on the CPU: several on busy cores are many times slower, and sums depend on their number."""
    threads = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    torch.set_num_threads(1)

    def die_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """The one pool of so many processes, made when first needed: an import of torch costs seconds a process."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read by the children when they load their libraries
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (os.getpid(),))
