import os
import sys
import traceback

import torch
from threadpoolctl import threadpool_limits

from lib import provenance
from tests.bench import batch, channels, latent, partition, section, store, training, truncation

BENCHMARKS = {
    benchmark.__name__: benchmark
    for module in (training, store, batch, latent, truncation, channels, partition)
    for benchmark in module.BENCHMARKS
}
HEAD = """# Speed

Measured on {machine}. `make bench` writes this page, and nothing in it is typed by hand.
Each ratio comes from one run in which both sides take turns. Times are the fastest of several. "Kept" means that a
number keeps the bound which the benchmark states, "MISSED" that it does not: {missed} of {bounds} are missed. An
exponent is the slope of log cost on log size over the two largest decades of sizes.
"""


def measure(name: str) -> list | None:
    """The results of one benchmark, printed as they come; None if it failed."""
    results = []
    try:
        for result in BENCHMARKS[name]():
            print(result, flush=True)
            results.append(result)
    except Exception as error:
        traceback.print_exc()
        print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
        return None
    return results


def main(names: list[str]) -> None:
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"Unknown benchmarks {', '.join(sorted(unknown))}: known are {', '.join(BENCHMARKS)}.")
    os.environ["COMPANION_QUIET"] = "1"
    device = provenance.device_name(provenance.default_device())
    machine = f"{device}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    threads, results = torch.get_num_threads(), {}
    for name in names or BENCHMARKS:
        torch.set_num_threads(threads)  # whatever the benchmark before has set
        with threadpool_limits(1, "blas"):  # numpy's threads would count in CPU seconds
            results[name] = measure(name)
    if failed := [name for name, found in results.items() if found is None]:
        sys.exit(f"Failed: {', '.join(failed)}. The table is not written.")
    if names:
        return
    verdicts = [result.verdict for found in results.values() for result in found if result.verdict]
    missed = sum(verdict.endswith("MISSED") for verdict in verdicts)
    sections = [section(name, BENCHMARKS[name], found) for name, found in results.items()]
    page = "\n\n".join([HEAD.format(machine=machine, missed=missed, bounds=len(verdicts)).strip(), *sections]) + "\n"
    provenance.write_atomically(provenance.root() / "docs" / "speed.md", page.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
