"""Trials of the studies that tests run; worker processes import them from here."""

import errno
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lib.provenance import CompanionError


def square(spec: dict, device: str, weights: Path) -> dict:
    return {"square": spec["x"] ** 2, "curve": [0.5, spec["x"] / 3], "text": f"x = {spec['x']}"}


def squares(spec: dict, device: str, weights: Path) -> dict:
    return {"square": [spec["x"] ** 2] * 2}


def logged(spec: dict, device: str, weights: Path) -> dict:
    """Logs beside the studies of its store when it starts and when it ends, and waits while it is held."""
    log = weights.parent.with_name("log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"start {spec['x']} {os.getpid()}\n")
    time.sleep(spec.get("seconds", 0.0))
    while held(log.with_name("hold"), spec["x"]):
        time.sleep(0.05)
    with log.open("a") as file:
        file.write(f"end {spec['x']} {os.getpid()}\n")
    return {"square": spec["x"] ** 2}


def held(hold: Path, x: int) -> bool:
    """Whether a file beside the log holds this trial: it names the first x that must not end."""
    try:
        return x >= int(hold.read_text())
    except FileNotFoundError:
        return False


def unlucky(spec: dict, device: str, weights: Path) -> dict:
    if spec["x"] == 13:
        raise ArithmeticError("the loss became nan in epoch 2")
    return {"square": spec["x"] ** 2}


def needs_data(spec: dict, device: str, weights: Path) -> dict:
    raise CompanionError("cifar10 is not here: fetch it.")


def out_of_memory(spec: dict, device: str, weights: Path) -> dict:
    raise torch.OutOfMemoryError("tried to allocate 1 TiB")


def gpu_failure(spec: dict, device: str, weights: Path) -> dict:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def killed(spec: dict, device: str, weights: Path) -> dict:
    os.kill(os.getpid(), 9)
    return {}


def with_weights(spec: dict, device: str, weights: Path) -> dict:
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((2,), float(spec["x"]))}, weights)
    return {"made_at": time.time()}


def neighbours(spec: dict, device: str, weights: Path) -> dict:
    return {"rows": len(list(weights.parent.glob("*.json")))}


def random_state(spec: dict, device: str, weights: Path) -> dict:
    return {"threads": torch.get_num_threads()}


def greedy(spec: dict, device: str, weights: Path) -> dict:
    """Asks for more memory than any machine can promise."""
    if spec["library"] == "numpy":
        return {"sum": np.ones(2**50).sum()}
    return {"sum": torch.ones(2**50).sum()}


class Program:
    """A pickle that makes a folder when it is loaded, as a foreign one could do anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def disk_full(spec: dict, device: str, weights: Path) -> dict:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def imported(item: dict) -> bool:
    return item["module"] in sys.modules


def raised(item: dict, power: int) -> int:
    return item["x"] ** power
