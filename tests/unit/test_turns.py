"""The benchmark of a step, without an engine: whose turn it is, on which rows, and what a profile says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import step
from benchmarks.device import Event, events_of, summary
from benchmarks.turns import ALL_ROWS, OURS, WARM_UP, DoneError, Turns
from nemo_probsft.data import order

STOCK = "theirs"


def run(turns: Turns) -> None:
    for number in range(turns.num_steps):
        turns.begin(number)
        torch.ones(1).sum()
        turns.end(number)


def test_every_implementation_has_its_steps_on_every_kind_of_rows():
    turns = Turns(STOCK, ["75%", "25%"], steps=3)
    with pytest.raises(DoneError):
        run(turns)
    assert [turns.implementation(number) for number in range(4)] == [OURS, ALL_ROWS, STOCK, OURS]
    assert [turns.kind(number) for number in (0, 2, 3, 5, 6)] == ["75%", "75%", "25%", "25%", "75%"]
    for kind in turns.kinds:
        rows = turns.rows(kind, tokens=100)
        assert [row["implementation"] for row in rows] == [OURS, ALL_ROWS, STOCK]
        for row in rows:
            assert row["steps"] == 3
            assert row["tokens_per_s"] == pytest.approx(100 / (row["ms"] / 1e3))
    assert turns.rounds == WARM_UP + 3 + torch.cuda.is_available()


@pytest.mark.parametrize("lengths", ["fixed", "math"])
def test_the_shuffle_gives_all_implementations_the_same_rows_of_the_kind_that_is_due(lengths):
    args = SimpleNamespace(batch=4, length=40, prompt=[0.75, 0.25], lengths=lengths)
    turns = Turns(STOCK, ["75%", "25%"], steps=1)
    drawn = list(step._lengths(args, turns))
    rows = step._rows(args, turns, drawn)
    seen = {}
    for number in range(turns.num_steps):
        indices = order.step_indices(len(rows), args.batch, seed=0, step=number)
        found = [(len(rows[index]["prompt"]), len(rows[index]["response"])) for index in indices]
        share = {"75%": 0.75, "25%": 0.25}[turns.kind(number)]
        assert all(prompt == round(share * (prompt + response)) for prompt, response in found)
        assert all(response > 0 and prompt + response <= args.length for prompt, response in found)
        seen.setdefault(number // len(turns.implementations), []).append(found)
    assert all(first == other for first, *others in seen.values() for other in others)
    assert len({tuple(first) for first, *_ in seen.values()}) == (2 if lengths == "fixed" else len(seen))


def test_a_device_that_is_busy_on_two_streams_at_once_is_busy_once():
    microsecond = 1000
    events = [
        Event("gemm", True, 10 * microsecond, 30 * microsecond),
        Event("copy", True, 20 * microsecond, 40 * microsecond),  # to 60
        Event("short", True, 25 * microsecond, 5 * microsecond),  # within both
        Event("later", True, 100 * microsecond, 10 * microsecond),
        Event("cudaLaunchKernel", False, 0, microsecond),
        Event("cudaLaunchKernelExC", False, 1, microsecond),
        Event("cuLaunchKernelEx", False, 2, microsecond),
        Event("cudaStreamSynchronize", False, 3, 500 * microsecond),
        Event("cudaMemcpyAsync", False, 3, microsecond),  # does not wait
        Event("cudaDeviceSynchronize", False, 4, microsecond),  # of the benchmark itself
    ]
    found = summary(reversed(events))
    assert found.busy_ms == pytest.approx((60 - 10 + 10) / 1e3)
    assert (found.launches, found.waits) == (3, 1)
    assert summary([]) == (0, 0, 0)


def test_a_profile_of_torch_is_read_without_its_named_ranges():
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile, torch.profiler.record_function("a range"):
        torch.ones(10).sum()
    found = list(events_of(profile))
    names = [event.name for event in found]
    assert "aten::sum" in names
    assert "a range" not in names
    assert all(event.duration > 0 and not event.on_device for event in found if event.name.startswith("aten::"))
