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
from tests import toy_checkout
from tests.toy_checkout import (
    executions,
    finished,
    hold,
    processes_of,
    results,
    start_batch,
    wait_for,
    waiting,
    write_yaml,
)

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
    """Install Debian's packages; an obstacle is one sentence, never a test that passes silently."""
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


def test_shards_on_slurm_equal_the_local_rows_and_a_cancelled_job_loses_nothing(cluster, checkout, tmp_path_factory):
    local = toy_checkout.build(tmp_path_factory.mktemp("local") / "checkout")
    for place in (checkout, local):
        write_yaml(place, n=40, rate=0.1)
    finished(start_batch(local), local)
    expected = results(local)
    assert [len(table) for table in expected] == [2, 40] and len(executions(local)) == 84

    profile = configuration(checkout)
    all_here = hold(checkout / "runs/smoke/trials", 12)
    batch = start_batch(checkout, "shards=3", "--workflow-profile", profile.name)
    ready = wait_for(lambda: len(waiting(checkout)) == 3 or batch.poll() is not None, 600)
    assert ready and batch.poll() is None, (checkout / "batch.log").read_text()
    before, running = executions(checkout), jobs("RUNNING")
    assert len(running) == 3, slurm("squeue", "--states=all")
    slurm("scancel", running[0])
    assert wait_for(lambda: running[0] not in jobs("RUNNING,COMPLETING"), 60), slurm("squeue", "--states=all")
    all_here.unlink()
    finished(batch, checkout)

    for found, table in zip(results(checkout), expected, strict=True):
        pd.testing.assert_frame_equal(found, table)
    assert len(executions(checkout)) > len(before)
    ended = sorted(int(line.split()[1]) for line in executions(checkout, "end"))
    assert ended == [*range(40), 38**2, 39**2], "a trial was lost or computed twice"
    assert len(executions(checkout, "start")) <= len(ended) + 1, (
        "more was begun again than the cancelled job was running"
    )
    assert "CANCELLED" in slurm("squeue", "--states=all", "--noheader", "--format=%T")
    assert len({line.split()[2] for line in executions(checkout)}) >= 3, "one process did all the work"
    assert wait_for(lambda: not processes_of(checkout), 60), processes_of(checkout)


def test_the_end_of_the_batch_leaves_its_jobs_to_finish_and_the_next_batch_finds_their_trials(cluster, checkout):
    write_yaml(checkout, n=40, rate=0.1)
    profile = configuration(checkout)
    held = hold(checkout / "runs/smoke/trials", 12)
    batch = start_batch(checkout, "shards=2", "--workflow-profile", profile.name)
    assert wait_for(lambda: len(executions(checkout)) >= 4 or batch.poll() is not None, 600) and batch.poll() is None
    batch.send_signal(signal.SIGKILL)
    batch.wait()
    time.sleep(3)  # what ended with the batch would have ended by now
    before = len(executions(checkout))
    held.unlink()
    assert wait_for(lambda: len(executions(checkout)) > before, 60), "the jobs ended with the batch that submitted them"
    again = start_batch(checkout, "shards=2", "--workflow-profile", profile.name)
    finished(again, checkout)
    assert [len(table) for table in results(checkout)] == [2, 40]
    assert len(executions(checkout, "end")) == 42
    assert wait_for(lambda: not processes_of(checkout), 60), processes_of(checkout)
