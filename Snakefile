# One rule runs one notebook of a profile in a process of its own; with `shards=n` another rule fills its store before,
# in n jobs that share the trials. Stamps are the only outputs that snakemake knows: a declared result is deleted when
# its job starts and lost when it fails. Results are published by lib.run.
import os
import sys

from lib import parameters, run
from lib.provenance import figures_dir, runs_dir

PROFILE = config.get("profile", "smoke")
SHARDS = int(config.get("shards", 1))
CELL_SECONDS = int(config.get("cell_seconds", run.CELL_SECONDS))
NOTEBOOKS = parameters.check_profile(PROFILE)
RUN = f"{sys.executable} -m lib.run execute {PROFILE} {{wildcards.name}}"


def relative(folder):
    return os.path.relpath(folder / PROFILE)


def baselines(wildcards):
    """They are trained once, first; the other notebooks ask for them."""
    return [] if wildcards.name == NOTEBOOKS[0] else f".build/{PROFILE}/{NOTEBOOKS[0]}.done"


def shards(wildcards):
    places = range(SHARDS) if SHARDS > 1 else []
    return [f".build/{PROFILE}/{wildcards.name}.{place}-of-{SHARDS}.done" for place in places]


def workers(wildcards):
    return parameters.profile_parameters(PROFILE, wildcards.name).get("workers", 1)


onsuccess:
    print(f"{PROFILE} is complete: results in {relative(runs_dir())}, figures in {relative(figures_dir())}.", flush=True)


wildcard_constraints:
    name="|".join(NOTEBOOKS),


rule all:
    input:
        expand(f".build/{PROFILE}/{{name}}.done", name=NOTEBOOKS),


rule shard:
    input:
        baselines,
    output:
        touch(f".build/{PROFILE}/{{name}}.{{place}}-of-{SHARDS}.done"),
    threads: workers
    shell:
        f"{RUN} shard={{wildcards.place}}/{SHARDS} cell_seconds={CELL_SECONDS}"


rule notebook:
    input:
        baselines,
        shards,
    output:
        touch(f".build/{PROFILE}/{{name}}.done"),
    threads: workers
    resources:
        checkout=1,
    shell:
        f"{RUN} cell_seconds={CELL_SECONDS}"
