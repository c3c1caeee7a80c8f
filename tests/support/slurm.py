"""A real Slurm on this machine: munged, slurmctld and one slurmd a node, in a directory and on ports of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where Debian has the daemons
DAEMONS = ("munged", "slurmctld", "slurmd")
PATIENCE_S = 60


def installed() -> bool:
    """Debian's slurm-wlm and munge."""
    return all(shutil.which(name, path=PATH) for name in (*DAEMONS, "sbatch"))


@contextlib.contextmanager
def cluster(directory: Path, num_nodes: int) -> Iterator[dict[str, str]]:
    """The environment in which `sbatch` finds the cluster, which ends with the block."""
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(_configure(directory, num_nodes))}
    key, munge = directory / "munge.key", directory / "munge"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    files = [f"--{kind}={munge}.{kind.split('-')[0]}" for kind in ("socket", "pid-file", "log-file", "seed-file")]
    commands = [["munged", "--force", "--foreground", f"--key-file={key}", *files], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", f"node{number}"] for number in range(num_nodes)]
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((directory / f"{command[0]}{number}.out").open("w"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(daemon.wait, timeout=PATIENCE_S)
            stack.callback(daemon.terminate)
        _wait_until(lambda: _idle_nodes(environment) == num_nodes, f"{num_nodes} idle nodes, see {directory}")
        yield environment


def states(environment: dict[str, str], job: str) -> set[str]:
    """Of the job, or of every element of an array."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T"]
    return set(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split())


def wait_for(environment: dict[str, str], job: str, seconds: float) -> set[str]:
    """The states in which the job's elements ended."""
    _wait_until(lambda: not states(environment, job) & {"PENDING", "RUNNING", "COMPLETING"}, f"job {job}", seconds)
    return states(environment, job)


def _configure(directory: Path, num_nodes: int) -> Path:
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(num_nodes + 1)
    nodes = [
        f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={os.cpu_count()}"
        for number, port in enumerate(ports[1:])
    ]
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        f"SlurmUser={getpass.getuser()}",
        f"SlurmdUser={getpass.getuser()}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={directory}/munge.socket,cred_expire=10",  # seconds: a requeued job waits as long
        f"StateSaveLocation={directory}",
        f"SlurmdSpoolDir={directory}/%n",
        f"SlurmctldPidFile={directory}/slurmctld.pid",
        f"SlurmdPidFile={directory}/%n.pid",
        f"SlurmctldLogFile={directory}/slurmctld.log",
        f"SlurmdLogFile={directory}/%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "MpiDefault=none",
        "KillWait=5",
        *nodes,
        "PartitionName=all Nodes=ALL Default=YES State=UP",
    ]
    path = directory / "slurm.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for open_socket in sockets:
            open_socket.bind(("127.0.0.1", 0))
        return [open_socket.getsockname()[1] for open_socket in sockets]


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()
    return sum(map(int, found))


def _wait_until(condition, what: str, seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)
