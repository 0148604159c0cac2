import os
import sys

import torch

from lib import provenance
from tests.bench import batch, channels, latent, partition, store, truncation

BENCHMARKS = {
    benchmark.__name__: benchmark
    for module in (store, batch, latent, truncation, channels, partition)
    for benchmark in module.BENCHMARKS
}

if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(BENCHMARKS):
        sys.exit(f"Unknown benchmarks {', '.join(sorted(unknown))}: known are {', '.join(BENCHMARKS)}.")
    os.environ["COMPANION_QUIET"] = "1"
    device = provenance.device_name(provenance.default_device())
    print(f"{device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    for name in sys.argv[1:] or BENCHMARKS:
        for line in BENCHMARKS[name]():
            print(line, flush=True)
