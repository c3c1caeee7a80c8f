"""What the parity tests of each engine ask of a first step: metrics, gradients, and that a mistake would show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import conversion
from conversion.families import model_spec
from tests.support.parity_cases import Case, case_rows, make_models, write_job
from tests.support.parity_gradients import hugging_face_gradients, load_ranks, overall, worst
from tests.support.parity_lora import adapter_gradients, expected_gradients, merged_reference
from tests.support.parity_reference import Reference, Row

RTOL = 1e-5


@dataclass
class Launch:
    """The first steps of all `cases`, by name, on one engine."""

    root: Path
    engine: str
    cases: dict[str, Case]
    references: dict[str, Reference]  # by model
    rows: dict[str, list[Row]]  # by case

    def first_step(self, name: str, dtype: torch.dtype = torch.float32):
        """(case, its reference, its rows, what the ranks saved, the gradients under Hugging Face's names)."""
        case = self.cases[name]
        ranks = self.ranks(name)
        spec = model_spec(json.loads((self.root / "hf" / case.model / "config.json").read_text()))
        plain = dtype == torch.float32
        reference = self.references[case.model] if plain else Reference(self.root / "hf" / case.model, dtype)
        return case, reference, self.rows[name], ranks, hugging_face_gradients(ranks, spec)

    def ranks(self, name: str) -> list[dict]:
        return load_ranks(self.root / "runs" / name / "ranks", self.cases[name].world_size)


def prepare(root: Path, engine: str, cases: dict[str, Case]) -> tuple[Launch, list[dict]]:
    """The models and rows of `cases`, and a job for each. NeMo starts from an imported checkpoint, Bridge from the
    Hugging Face directory."""
    make_models(root)
    references = {model: Reference(root / "hf" / model) for model in dict.fromkeys(c.model for c in cases.values())}
    if engine == "nemo":
        for model in references:
            conversion.import_hf(root / "hf" / model, root / "nemo" / model)
    rows = {name: case_rows(references[case.model], case) for name, case in cases.items()}
    launch = Launch(root, engine, cases, references, rows)
    return launch, [write_job(root, case, rows[name], engine) for name, case in cases.items()]


def written(ranks: list[dict]) -> dict:
    """The metrics of the one rank that writes them."""
    (found,) = [rank["metrics"] for rank in ranks if rank["writes"]]
    return found


def is_that_of_one_process_in_float64(launch: Launch, name: str, record_property) -> None:
    case, reference, rows, ranks, gradients = launch.first_step(name)
    found = written(ranks)
    for metric, value in reference.metrics(rows, case.objective, case.denominator).items():
        assert found[metric] == pytest.approx(value, rel=RTOL), metric
    assert found["num_tokens"] == sum(len(row.targets) for row in rows)
    truth = reference.gradients(reference.loss(rows, case.objective, case.denominator))
    error, parameter = worst(gradients, truth)
    record_property("worst_parameter", f"{error:.1e} {parameter}")
    record_property("all_parameters", f"{overall(gradients, truth):.1e}")
    assert error < RTOL, parameter


def shows_the_known_mistakes(launch: Launch, name: str) -> None:
    case, reference, rows, _, gradients = launch.first_step(name)
    groups = {"mean of micro-batch means": case.micro_batches(rows)}
    if case.dp > 1:
        groups["local counts"] = [[row for batch in share for row in batch] for share in case.shares(rows)]
    mistakes = {
        name: reference.mean_of_means(parts, case.objective, case.denominator) for name, parts in groups.items()
    }
    if case.objective != "original":
        mistakes["plain -log p"] = reference.loss(rows, "original", "target")
    for mistake, loss in mistakes.items():
        assert overall(gradients, reference.gradients(loss)) > 100 * RTOL, mistake


def shows_the_mistakes_of_packing(launch: Launch, name: str) -> None:
    """Positions that go on from example to example are none: rotary attention depends on distances."""
    case, reference, rows, _, gradients = launch.first_step(name)
    packed = [[rows[i] for i in row] for share in case.packed(rows) for batch in share for row in batch if row]
    assert len(packed) < len(rows)
    mistakes = {
        "attention across examples": reference.attending_across(packed, case.objective, case.denominator),
        "an example in two rows": reference.loss([*rows, packed[0][0]], case.objective, case.denominator),
    }
    for mistake, loss in mistakes.items():
        assert overall(gradients, reference.gradients(loss)) > 100 * RTOL, mistake


def had_an_uneven_batch(launch: Launch, name: str) -> None:
    case, reference, rows, ranks, _ = launch.first_step(name)
    times = (case.vp or 1) if launch.engine == "nemo" else 1  # NeMo's event is that of every virtual stage
    counts = [[sum(len(row.targets) for row in batch) for batch in share] for share in case.shares(rows)]
    for rank in ranks:
        if rank["pp"] == case.pp - 1:
            assert sorted(rank["targets"]) == sorted(counts[rank["dp"]] * times)
    assert 0 in counts[0]
    assert max(map(max, counts)) > 4 * min(count for part in counts for count in part if count)
    if case.dp > 1 and case.objective.startswith("Only"):
        starved = [row for position, row in enumerate(rows) if case.rank_of(position) == 1]
        assert reference.metrics(starved, case.objective, "target")["kept_fraction"] == 0


def is_that_of_the_merged_model(launch: Launch, name: str, record_property) -> None:
    case, rows, ranks = launch.cases[name], launch.rows[name], launch.ranks(name)
    directory = launch.root / "hf" / case.model
    reference = merged_reference(directory, ranks)
    loss = reference.loss(rows, case.objective, case.denominator)
    assert written(ranks)["objective"] == pytest.approx(loss.item(), rel=RTOL)
    expected = expected_gradients(directory, ranks, reference.gradients(loss))
    assert len(expected) == 2 * 4 * 4  # two factors on four weights of four layers, and nothing else is trained
    gradients = adapter_gradients(ranks)
    error, (stem, layer) = worst(gradients, expected)
    record_property("worst_parameter", f"{error:.1e} layers.{layer}.{stem.removeprefix('decoder.layers.')}")
    record_property("all_parameters", f"{overall(gradients, expected):.1e}")
    assert error < RTOL, (stem, layer)
    mistakes = {
        "mean of micro-batch means": reference.mean_of_means(
            case.micro_batches(rows), case.objective, case.denominator
        ),
        "plain -log p": reference.loss(rows, "original", "target"),
    }
    for mistake, wrong in mistakes.items():
        other = expected_gradients(directory, ranks, reference.gradients(wrong))
        assert overall(gradients, other) > 100 * RTOL, mistake
