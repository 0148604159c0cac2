"""A random stream follows from a seed and a name, and from nothing else."""

import torch

from lib.study import generator, seed_from


def test_named_streams_differ_by_name_and_seed_and_repeat():
    seeds = {seed_from(seed, name) for seed in (0, 1) for name in ("order", "augmentation")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    first, second = (torch.rand(3, generator=generator(0, "order")) for _ in range(2))
    assert torch.equal(first, second)
