"""Steps of several implementations that take turns in one process, and what is measured around each of them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks import device

OURS, ALL_ROWS = "ours", "ours, all rows"  # the second with head.skip_rows false
WARM_UP = 2  # steps of each, in which Megatron's fused loss is compiled and buffers are made


class DoneError(Exception):
    """All turns are over: an engine would go on to write a checkpoint."""


@dataclass
class Cell:
    """The measured steps of one implementation on one kind of rows. Seconds; peak in bytes."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0
    profile: device.Summary | None = None


class Turns:
    """Step k, from 0, is of implementation k mod V and of kind (k div V) mod K. kinds: any names of the rows' kinds.

    Of each pair there are WARM_UP steps, `steps` that are timed, and on CUDA one under the profiler, which slows it.
    """

    def __init__(self, stock: str, kinds: list[str], steps: int) -> None:
        self.implementations, self.kinds, self.steps = [OURS, ALL_ROWS, stock], kinds, steps
        self.cells = {(kind, name): Cell() for kind in kinds for name in self.implementations}
        self.rounds = WARM_UP + steps + torch.cuda.is_available()
        self.running: Callable[[], None] | None = None

    @property
    def num_steps(self) -> int:
        return self.rounds * len(self.cells)

    def implementation(self, step: int) -> str:
        return self.implementations[step % len(self.implementations)]

    def kind(self, step: int) -> str:
        return self.kinds[step // len(self.implementations) % len(self.kinds)]

    def begin(self, step: int) -> None:
        """When `implementation(step)` is in place and nothing of the step is done."""
        cell, number = self.cells[self.kind(step), self.implementation(step)], step // len(self.cells)
        if number < WARM_UP:
            self.running = lambda: None
        elif number < WARM_UP + self.steps:
            self.running = _clock(cell)
        else:
            self.running = _profiler(cell)

    def end(self, step: int) -> None:
        """When the weights are updated. Raises DoneError after the last step."""
        assert self.running is not None, "the step has not begun"
        self.running()
        self.running = None
        if step + 1 == self.num_steps:
            raise DoneError

    def rows(self, kind: str, tokens: int) -> list[dict]:
        """The table of one kind. tokens: of a step. None: cannot be measured on a CPU."""
        return [_row(name, self.cells[kind, name], tokens) for name in self.implementations]


def _clock(cell: Cell) -> Callable[[], None]:
    _wait()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started, cpu = time.perf_counter(), time.process_time()

    def stop() -> None:
        _wait()
        cell.wall.append(time.perf_counter() - started)
        cell.cpu.append(time.process_time() - cpu)
        if torch.cuda.is_available():
            cell.peak = max(cell.peak, torch.cuda.max_memory_allocated())

    return stop


def _profiler(cell: Cell) -> Callable[[], None]:
    _wait()
    profile = device.start()

    def stop() -> None:
        cell.profile = device.stop(profile)

    return stop


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(name: str, cell: Cell, tokens: int) -> dict:
    seconds = statistics.median(cell.wall)
    profile = cell.profile
    return {
        "implementation": name,
        "ms": 1e3 * seconds,
        "ratio": None,
        "cpu_ms": 1e3 * statistics.median(cell.cpu),
        "tokens_per_s": tokens / seconds,
        "device_ms": None if profile is None else profile.busy_ms,
        "launches": None if profile is None else profile.launches,
        "waits": None if profile is None else profile.waits,
        "peak_MiB": cell.peak / 2**20 if cell.peak else None,
        "steps": len(cell.wall),
    }


def one_process() -> None:
    """What torchrun would set for a single rank."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
