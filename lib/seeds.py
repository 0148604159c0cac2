"""Random streams by name: a trial has one seed, and each thing drawn in it a stream of its own."""

import hashlib
import json

import torch


def seed_from(seed: int, *names: object) -> int:
    """A 63-bit seed of the random stream that these names stand for, spawned from a trial's own seed."""
    text = json.dumps([int(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """A torch generator of the named random stream of a trial's seed, for example `generator(3, "augmentation")`."""
    return torch.Generator(device).manual_seed(seed_from(seed, *names))
