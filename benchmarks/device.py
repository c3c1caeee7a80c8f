"""What a CUDA device and its host did in a stretch of code, by torch's profiler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")  # of the host, for the device


class Event(NamedTuple):
    """A call of the host or an activity of the device; nanoseconds."""

    name: str
    on_device: bool
    start: int
    duration: int


class Summary(NamedTuple):
    busy_ms: float  # the device computes or copies, on whatever stream
    launches: int
    waits: int


def start() -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profile = torch.profiler.profile(activities=activities)
    profile.start()
    return profile


def stop(profile: torch.profiler.profile) -> Summary:
    """Ends it; the device's work of what was begun is waited for and counted."""
    torch.cuda.synchronize()  # cudaDeviceSynchronize, which is not among WAITS
    profile.stop()
    return summary(events_of(profile))


def events_of(profile: torch.profiler.profile) -> Iterator[Event]:
    """Without named ranges, which torch repeats on the device from their first kernel to the last."""
    for event in profile.profiler.kineto_results.events():
        if not event.is_user_annotation():
            on_device = event.device_type() == torch.autograd.DeviceType.CUDA
            yield Event(event.name(), on_device, event.start_ns(), event.duration_ns())


def summary(events: Iterable[Event]) -> Summary:
    """Work on several streams at once counts once."""
    events = list(events)
    host = [event.name for event in events if not event.on_device]
    busy = end = 0
    for event in sorted((event for event in events if event.on_device), key=lambda event: event.start):
        last = event.start + event.duration
        busy += max(0, last - max(end, event.start))
        end = max(end, last)
    return Summary(busy / 1e6, sum(name in LAUNCHES for name in host), sum(name in WAITS for name in host))
