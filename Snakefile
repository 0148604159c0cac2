# One rule runs one notebook of a profile in a process of its own. The stamp is the only output that snakemake knows:
# a declared result is deleted when its job starts and lost when it fails. Results are published by lib.batch.
import sys

from lib import batch

PROFILE = config.get("profile", "smoke")
NOTEBOOKS = batch.check_profile(PROFILE)


STAMPS = expand(".build/{profile}/{name}.done", profile=PROFILE, name=NOTEBOOKS)


rule all:
    input:
        f".build/{PROFILE}/landed" if config.get("fresh") else STAMPS,


rule land:
    # A fresh run replaces what is published when all of it has succeeded, and not a notebook at a time.
    input:
        STAMPS,
    output:
        touch(".build/{profile}/landed"),
    shell:
        "{sys.executable} -m lib.batch land {wildcards.profile}"


rule notebook:
    # The baselines are trained once, first; the other notebooks ask for them.
    input:
        lambda wildcards: [] if wildcards.name == NOTEBOOKS[0] else f".build/{wildcards.profile}/{NOTEBOOKS[0]}.done",
    output:
        touch(".build/{profile}/{name}.done"),
    threads: workflow.cores
    shell:
        "{sys.executable} -m lib.batch execute {wildcards.profile} {wildcards.name}"
