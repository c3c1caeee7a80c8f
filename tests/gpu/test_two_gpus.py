"""Layouts on two GPUs against one GPU alone, in the figures of metrics.jsonl.

The distributed optimizer keeps only shards of a gradient, so its norm is what there is to compare. Transformer Engine
multiplies fp32 as TF32, with errors that no constant of ours would fit: a layout may be twice as far from float64 as
one GPU alone is. These have not been run, no two GPUs were at hand; tests/engines/test_parity_metrics.py runs the same
code on a CPU.
"""

from __future__ import annotations

import pytest

from tests.support.parity_cases import Case
from tests.support.parity_metrics import errors

ALONE = [Case(objective="OnlyTopLogP-0.2"), Case(objective="OnlyTopLogP-0.2", precision="bf16")]
LAYOUTS = [
    Case(cp=2, objective="OnlyTopLogP-0.2"),
    Case(cp=2, objective="OnlyTopLogP-0.2", precision="bf16"),
    Case(dp=2, objective="OnlyTopLogP-0.2"),
    Case(tp=2, sp=True, objective="OnlyTopLogP-0.2", precision="bf16"),
]


@pytest.mark.gpu(2)
def test_layouts_on_gpus_are_as_near_to_float64_as_one_gpu(engine, tmp_path):
    """Context parallelism with Transformer Engine's attention, NCCL, the distributed optimizer, bf16."""
    found = errors(engine, tmp_path, ALONE + LAYOUTS)
    for case in LAYOUTS:
        alone = found[Case(objective=case.objective, precision=case.precision).name]
        for metric in ("objective", "nll", "p", "grad_norm"):
            assert found[case.name][metric] <= 2 * alone[metric] + 1e-6, (case.name, metric)
        assert found[case.name]["grad_norm"] < found[case.name]["mistaken"] / 2
