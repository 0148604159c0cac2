# One rule runs one notebook of a profile in a process of its own. With `shards=n` another rule fills its store first,
# in n jobs that share the trials. Stamps are the only outputs that snakemake knows: a declared result is deleted when
# its job starts and lost when it fails. lib.run publishes the results.
import os
import shlex
import sys

from lib import parameters
from lib.provenance import figures_dir, release_interrupts, root, runs_dir

release_interrupts()

PROFILE = config.get("profile", "smoke")
SHARDS = int(config.get("shards", 1))
NOTEBOOKS = parameters.check_profile(PROFILE)
PYTHON = shlex.quote(sys.executable)


def baselines(wildcards):
    """The first notebook trains them once; the other notebooks need them."""
    return [] if wildcards.name == NOTEBOOKS[0] else f"{PROFILE}/{NOTEBOOKS[0]}.done"


def shards(wildcards):
    places = range(SHARDS) if SHARDS > 1 else []
    return [f"{PROFILE}/{wildcards.name}.{place}-of-{SHARDS}.done" for place in places]


def workers(wildcards):
    return parameters.profile_parameters(PROFILE, wildcards.name).get("workers", 1)


onsuccess:
    results, pictures = (os.path.relpath(folder / PROFILE, root()) for folder in (runs_dir(), figures_dir()))
    print(f"{PROFILE} is complete: results in {results}, figures in {pictures}.", flush=True)


wildcard_constraints:
    name="|".join(NOTEBOOKS),


rule all:
    input:
        expand(f"{PROFILE}/{{name}}.done", name=NOTEBOOKS),


rule shard:
    input:
        baselines,
    output:
        touch(f"{PROFILE}/{{name}}.{{place}}-of-{SHARDS}.done"),
    threads: workers
    shell:
        "{PYTHON} -m lib.run execute {PROFILE} {wildcards.name} shard={wildcards.place}/{SHARDS}"


rule notebook:
    input:
        baselines,
        shards,
    output:
        touch(f"{PROFILE}/{{name}}.done"),
    threads: workers
    resources:
        checkout=1,
    shell:
        "{PYTHON} -m lib.run execute {PROFILE} {wildcards.name}"
