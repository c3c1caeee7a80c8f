"""Timing, memory and collectives of competing calls in one process, and the table they are printed in."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGES = (
    "triton",
    "megatron-core",
    "quack-kernels",
    "transformer-engine",
    "liger-kernel",
    "flash-attn",
    "cut-cross-entropy",
)


def milliseconds(
    calls: dict[str, tuple[Callable[[], tuple], Callable]], repeats: int, device: str
) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) ms of call(*prepare()) per name; prepare is outside of the clock.

    The names take turns, so that a disturbance hits all of them, after one warm-up each. The CPU time is the calling
    thread's: on a shared machine it leaves out the time spent waiting for a core. On CUDA both are the device's time.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, (prepare, call) in calls.items():
            measured = _once(prepare(), call, device)
            if turn:
                times[name].append(measured)
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in times.items()}


def _once(inputs: tuple, call: Callable, device: str) -> tuple[float, float]:
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call(*inputs)
        end.record()
        torch.cuda.synchronize()
        return (start.elapsed_time(end),) * 2
    wall, cpu = time.perf_counter(), time.thread_time()
    call(*inputs)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - cpu)


def peak_bytes(prepare: Callable[[], tuple], call: Callable, device: str) -> int:
    """Largest number of bytes that call(*prepare()) holds beyond its inputs at any time, its result included."""
    inputs = prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(*inputs)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call(*inputs)
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Collectives(TorchDispatchMode):
    """Counts collectives, in the forward and in the backward of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_calls += func.namespace == "c10d"
        return func(*args, **kwargs or {})


def num_collectives(prepare: Callable[[], tuple], call: Callable) -> int:
    inputs = prepare()
    with Collectives() as counter:
        call(*inputs)
    return counter.num_calls


def num_launches(prepare: Callable[[], tuple], call: Callable, device: str) -> int | None:
    """What call(*prepare()) runs on the device: kernels, copies and fills. None on a CPU."""
    if device != "cuda":
        return None
    inputs = prepare()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(*inputs)
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def relative_error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error as a share of the largest magnitude."""
    truth = truth.to(ours.device)
    return ((ours.double() - truth).abs().max() / truth.abs().max()).item()


def report(title: str, rows: Iterable[dict], path: str | None) -> None:
    """Prints rows as a table, the first one being the base of the ratios, and writes them as JSON where asked."""
    rows = list(rows)
    for row in rows:
        row["ratio"] = row["ms"] / rows[0]["ms"]
        if "cpu_ms" in row:
            row["cpu_ratio"] = row["cpu_ms"] / rows[0]["cpu_ms"]
    versions = ", ".join([f"torch {torch.__version__}", *_installed(), *_machine()])
    print(f"{title} | {versions}")
    keys = list(rows[0])
    cells = [[key.replace("_", " ") for key in keys], *([_cell(row[key]) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first, *(cell.strip().rjust(len(cell)) for cell in others)]))
    if path:
        Path(path).write_text(json.dumps({"title": title, "versions": versions, "rows": rows}, indent=1) + "\n")


def _installed() -> list[str]:
    versions = {dist.name.lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return [f"{name} {versions[name]}" for name in PACKAGES if name in versions]


def _machine() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name()]
    return [platform.machine(), f"{torch.get_num_threads()} thread(s) per rank"]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)
