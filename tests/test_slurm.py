"""A batch on a real Slurm of one node, started here from Debian's packages when SLURM_TEST=1 asks for it."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lib.provenance import root
from tests.toy_house import executions, finished, hold, populate, processes_of, results, start_batch, wait_for, waiting

if os.environ.get("SLURM_TEST") != "1":
    pytest.skip("SLURM_TEST=1 installs and starts a Slurm of one node for these tests", allow_module_level=True)

CONFIGURATION = """
ClusterName=companion
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000
PartitionName=test Nodes=ALL Default=YES State=UP
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def install() -> None:
    """Debian's packages; what stands in the way of them is one sentence, never a test that passes silently."""
    if shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("munged"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.fail("SLURM_TEST=1 needs slurm-wlm and munge: install them, or run the tests as root on Debian.", False)
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -qq", "apt-get install -y -qq --no-install-recommends slurm-wlm munge"):
        done = subprocess.run(command.split(), env=quiet, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.fail(f"SLURM_TEST=1 could not install slurm-wlm and munge: {done.stderr.strip()[-300:]}", False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """munged, slurmctld and slurmd with a configuration, keys and ports of their own, ended with the tests."""
    install()
    if os.geteuid() != 0:
        pytest.fail("SLURM_TEST=1 starts slurmd, which only root may do: run these tests as root.", False)
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    ports = {"controller": free_port(), "node": free_port()}
    host = platform.node().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, **ports))
    # snakemake drops SLURM_CONF before it calls srun inside a job, where a cluster has its configuration in /etc.
    (folder / "bin").mkdir()
    wrapper = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
    (folder / "bin" / "srun").write_text(wrapper)
    (folder / "bin" / "srun").chmod(0o755)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    munge = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    munge += [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    commands = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            daemons.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            wait_for(lambda: (folder / "munge.socket").exists(), 10)
        idle = wait_for(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T"), 60)
        assert idle, "\n".join(path.read_text()[-1000:] for path in folder.glob("*.[lo][ou][gt]"))
        yield folder
    finally:
        slurm("scancel", "--user=root")  # of this cluster alone; a test that failed may have left jobs
        wait_for(lambda: not slurm("squeue", "--noheader"), 30)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        monkeypatch.undo()


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    return done.stdout.strip()


def jobs(states: str) -> list[str]:
    return slurm("squeue", "--noheader", f"--states={states}", "--format=%i").split()


def configuration(folder: Path) -> Path:
    """The committed profile of a cluster, with what differs here: a small node without GPUs and without accounting."""
    settings = yaml.safe_load((root() / "slurm" / "config.yaml").read_text())
    settings |= {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 3, "latency-wait": 10}
    settings |= {"default-resources": {"slurm_partition": "test", "mem_mb": 1000, "runtime": 30}}
    settings["set-resources"] = {rule: {"runtime": 10} for rule in settings["set-resources"]}
    (folder / "slurm").mkdir(exist_ok=True)
    (folder / "slurm" / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder / "slurm"


def test_a_population_in_shards_of_slurm_equals_the_local_one_and_a_cancelled_job_loses_nothing(cluster, house):
    populate(house)
    local = start_batch(house)
    finished(local, house)
    expected = results(house)
    assert [len(table) for table in expected] == [40, 5] and len(executions(house)) == 90
    for path in (house / "runs/smoke/trials", *(house / "runs/smoke").glob("*.parquet")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    profile = configuration(house)
    all_here = hold(house / "runs/smoke/trials", 12)
    batch = start_batch(house, "shards=3", "--workflow-profile", str(profile))
    ready = wait_for(lambda: len(waiting(house)) == 3 or batch.poll() is not None, 600)
    assert ready and batch.poll() is None, (house / "batch.log").read_text()
    before, running = executions(house), jobs("RUNNING")
    assert len(running) == 3, slurm("squeue", "--states=all")
    slurm("scancel", running[0])
    assert wait_for(lambda: running[0] not in jobs("RUNNING,COMPLETING"), 60), slurm("squeue", "--states=all")
    all_here.unlink()
    finished(batch, house)

    for found, table in zip(results(house), expected, strict=True):
        pd.testing.assert_frame_equal(found, table)
    assert len(executions(house)) > len(before)
    ended = sorted(int(line.split()[1]) for line in executions(house, "end"))
    assert ended == sorted([*range(40), *(x * x for x in range(35, 40))]), "a trial was lost or computed twice"
    assert len(executions(house, "start")) <= len(ended) + 1, "more was begun again than the cancelled job had in hand"
    assert "CANCELLED" in slurm("squeue", "--states=all", "--noheader", "--format=%T")
    assert len({line.split()[2] for line in executions(house)}) >= 3, "one process did all the work"
    assert wait_for(lambda: not processes_of(house), 60), processes_of(house)


def test_the_end_of_the_batch_leaves_its_jobs_to_finish_and_the_next_batch_finds_their_trials(cluster, house):
    populate(house)
    profile = configuration(house)
    held = hold(house / "runs/smoke/trials", 12)
    batch = start_batch(house, "shards=2", "--workflow-profile", str(profile))
    assert wait_for(lambda: len(executions(house)) >= 4 or batch.poll() is not None, 600) and batch.poll() is None
    batch.send_signal(signal.SIGKILL)
    batch.wait()
    time.sleep(3)  # what ended with the batch would have ended by now
    before = len(executions(house))
    held.unlink()
    assert wait_for(lambda: len(executions(house)) > before, 60), "the jobs ended with the batch that submitted them"
    again = start_batch(house, "shards=2", "--workflow-profile", str(profile))
    finished(again, house)
    assert [len(table) for table in results(house)] == [40, 5]
    assert len(executions(house, "end")) == 45
    assert wait_for(lambda: not processes_of(house), 60), processes_of(house)
