"""The figures of a first step's metrics.jsonl, grad_norm before clipping among them, against float64."""

from __future__ import annotations

from pathlib import Path

import torch

import conversion
from nemo_probsft.run.log import read_metrics
from tests.support.engine import Engine, first_error
from tests.support.parity_cases import Case, case_rows, make_models, write_job
from tests.support.parity_reference import Reference


def errors(engine: Engine, root: Path, cases: list[Case]) -> dict[str, dict[str, float]]:
    """{case: {metric: relative error}} of the first step; "mistaken" is that of the mean of micro-batch means."""
    make_models(root)
    references, rows, jobs = {}, {}, []
    for case in cases:
        if case.model not in references:
            references[case.model] = Reference(root / "hf" / case.model)
            conversion.import_hf(root / "hf" / case.model, root / "nemo" / case.model)
        rows[case.name] = case_rows(references[case.model], case)
        jobs.append(write_job(root, case, rows[case.name]) | {"task": "tests.support.parity_ranks:whole_step"})
    engine.run(jobs)
    return {case.name: _errors(root, case, references[case.model], rows[case.name]) for case in cases}


def first_steps(engine: Engine, root: Path, cases: list[Case]) -> list[dict]:
    """The line of metrics.jsonl of each case's first step."""
    make_models(root)
    jobs = []
    for case in cases:
        if not (root / "nemo" / case.model).exists():
            conversion.import_hf(root / "hf" / case.model, root / "nemo" / case.model)
        rows = case_rows(Reference(root / "hf" / case.model), case)
        jobs.append(write_job(root, case, rows) | {"task": "tests.support.parity_ranks:whole_step"})
    engine.run(jobs)
    assert not (error := first_error(jobs)), error
    return [row for case in cases for row in read_metrics(root / "runs" / case.name)]


def _errors(root: Path, case: Case, reference: Reference, rows) -> dict[str, float]:
    failed = list((root / "runs" / case.name).rglob("*.error"))
    assert not failed, failed[0].read_text()
    (found,) = read_metrics(root / "runs" / case.name)
    truth = reference.metrics(rows, case.objective, case.denominator)
    truth["grad_norm"] = _norm(reference, reference.loss(rows, case.objective, case.denominator))
    mistaken = _norm(reference, reference.mean_of_means(case.micro_batches(rows), case.objective, case.denominator))
    result = {name: abs(found[name] / value - 1) for name, value in truth.items()}
    return result | {"mistaken": abs(mistaken / truth["grad_norm"] - 1)}


def _norm(reference: Reference, loss: torch.Tensor) -> float:
    return torch.cat([part.flatten() for part in reference.gradients(loss).values()]).norm().item()
