"""NeMo imported once, for the jobs of many tests: every rank of a job is a fork of a server that has it loaded.

With CUDA, ranks are spawned: a fork cannot use what its parent has touched, and the import of NeMo touches it.

A job is {"task": "module:function", "world_size": n, "output": new directory, ...}. Each rank calls
function(job, output / "rank-<r>.pt") as torchrun would have started it; what it says goes to rank-<r>.log, the
traceback of one that failed to rank-<r>.error.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import select
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ["nemo_probsft.adapters.nemo.trainer", "torch._dynamo"]
PATIENCE_S = 900


class Engine:
    """A context manager; the server starts with the first job."""

    def __init__(self):
        self.server = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *raised) -> None:
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait(60)

    def run(self, jobs: Sequence[dict]) -> None:
        """One job after the other. A rank that fails ends its job and leaves its traceback; see `first_error`."""
        if self.server is None:
            command = [sys.executable, "-m", "tests.support.engine"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.server = subprocess.Popen(command, env=environment(), text=True, bufsize=1, **pipes)
        for job in jobs:
            print(json.dumps(job), file=self.server.stdin)
            if not select.select([self.server.stdout], [], [], PATIENCE_S)[0]:
                self.server.kill()
                raise TimeoutError(f"not over after {PATIENCE_S} s: {job}")
            assert self.server.stdout.readline() == "done\n", f"the engine's server died; the job was {job}"

    def command(self, *arguments, world_size: int, output: Path) -> str:
        """`nemo-probsft ARGUMENTS` as under the user's torchrun. Returns what rank 0 printed."""
        # As the launcher shares the cores: a sum by another number of threads may differ in its last bit.
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // world_size))
        job = {"task": "tests.support.engine:command", "world_size": world_size, "output": str(output)}
        self.run([job | {"arguments": [*map(str, arguments)], "threads": threads}])
        assert not (error := first_error([job])), error
        return (output / "rank-0.log").read_text(encoding="utf-8")


def first_error(jobs: Sequence[dict]) -> str:
    """The traceback of the first rank that failed by itself; "" when none did."""
    errors = [file.read_text() for job in jobs for file in sorted(Path(job["output"]).glob("rank-*.error"))]
    by_itself = [error for error in errors if "Connection closed by peer" not in error]
    return next(iter(by_itself or errors), "")


def command(job: dict, output: Path) -> None:
    from nemo_probsft.__main__ import main

    torch.set_num_threads(job["threads"])
    assert main(job["arguments"]) == 0
    end_helpers()


def end_helpers() -> None:
    """The process of Megatron's checkpoint writer would stay for ever."""
    for child in psutil.Process().children(recursive=True):
        child.kill()


def environment() -> dict[str, str]:
    """Ranks share the cores; `tests` is found from anywhere, and so is what PYTHONPATH named before."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def serve() -> None:
    """Jobs, one a line, from stdin; "done" to stdout after each. What the import of an engine says goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(PRELOADED)
    for line in sys.stdin:
        job = json.loads(line)
        Path(job["output"]).mkdir(parents=True)
        port = _free_port()
        ranks = [context.Process(target=_rank, args=(job, rank, port)) for rank in range(job["world_size"])]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        print("done", file=answers, flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(job: dict, rank: int, port: int) -> None:
    size = str(job["world_size"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "tests"}
    output = Path(job["output"])
    log = (output / f"rank-{rank}.log").open("w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    module, name = job["task"].split(":")
    try:
        getattr(importlib.import_module(module), name)(job, output / f"rank-{rank}.pt")
    except BaseException:  # whatever a rank dies of is for the test that reads this file
        (output / f"rank-{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # the other ranks wait for this one in a collective
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    serve()
