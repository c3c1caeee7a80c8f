"""What anyone can check from outside: the figures of metrics.jsonl. tests/gpu has the same on CUDA."""

from __future__ import annotations

from tests.support.parity_cases import Case
from tests.support.parity_metrics import errors

CASES = [
    Case(dp=2, objective="OnlyTopLogP-0.2", denominator="kept"),
    Case(tp=2, pp=2, model="qwen2-tied", objective="p"),
]


def test_metrics_of_the_first_step_are_those_of_float64(engine, tmp_path):
    for name, found in errors(engine, tmp_path, CASES).items():
        mistaken = found.pop("mistaken")
        assert max(found.values()) < 1e-5 < 1e-3 < mistaken, (name, found)
