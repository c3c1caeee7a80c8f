"""Packed runs: the curve of the unpacked one, on both engines, also if they are continued, and the examples they name.

The first steps are in `test_parity.py` and `test_bridge_parity.py`, against float64.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from conversion.checkpoint import step_of
from nemo_probsft import config
from nemo_probsft.adapters.megatron import guards, micro_batches
from nemo_probsft.data import order
from nemo_probsft.data.batches import collate_packed
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.run import prepare
from nemo_probsft.run.log import read_metrics
from tests.support.first_step import RTOL, recipe, write_workspace

NUM_STEPS = 10
SETTINGS = {
    "data": {"max_length": 80, "global_batch_size": 4, "micro_batch_size": 1},
    "objective": "adaptive-by-label-0.002-0.01-0.5-10",
    "parallel": {"tensor_model_parallel_size": 1},
    "trainer": {"devices": 2, "max_steps": NUM_STEPS, "precision": "fp32"},
    "checkpoint": {"every_steps": 4, "keep_last": 3},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("packing"))


def train(ranks, workspace: Path, name: str, engine: str, *overrides: str) -> tuple[list[dict], str]:
    """metrics.jsonl of a run on two data-parallel ranks, and what rank 0 said."""
    path = recipe(workspace, name, **SETTINGS)
    output = workspace / f"{name}-ranks-{len(list(workspace.iterdir()))}"
    said = ranks.command("train", path, f"engine={engine}", *overrides, world_size=2, output=output)
    return read_metrics(workspace / name), said


def back_to_step_4(workspace: Path, name: str) -> None:
    """As if the run had been killed after its first checkpoint."""
    for checkpoint in (workspace / name / "checkpoints").glob("*/"):
        if step_of(checkpoint) != 4:
            shutil.rmtree(checkpoint)


def is_the_curve_of_the_unpacked_run(ranks, workspace: Path, engine: str, record_property) -> None:
    plain, _ = train(ranks, workspace, f"{engine}-plain", engine)
    name = f"{engine}-packed"
    packed, said = train(ranks, workspace, name, engine, "data.packing=true")
    assert "rows a step instead of 4" in said
    record_property("apart", json.dumps(apart(packed, plain)))
    assert plain[0]["alpha"] == 0 < plain[-1]["alpha"], "it moves, so that a mean of another step would show"
    whole = (workspace / name / "metrics.jsonl").read_bytes()
    back_to_step_4(workspace, name)
    train(ranks, workspace, name, engine, "data.packing=true")
    assert (workspace / name / "metrics.jsonl").read_bytes() == whole
    back_to_step_4(workspace, name)
    apart(train(ranks, workspace, name, engine)[0], plain)  # it may go on without packing


def apart(found: list[dict], wanted: list[dict]) -> dict[str, float]:
    """The largest relative difference of each metric; more than RTOL in none."""
    largest: dict[str, float] = {}
    assert len(found) == len(wanted) == NUM_STEPS
    for row, want in zip(found, wanted, strict=True):
        assert row.keys() == want.keys()
        assert (row["step"], row["num_tokens"], row["lr"]) == (want["step"], want["num_tokens"], want["lr"])
        for metric in row:
            assert row[metric] == pytest.approx(want[metric], rel=RTOL), (row["step"], metric)
            difference = abs(row[metric] - want[metric]) / (abs(want[metric]) or 1)
            largest[metric] = max(largest.get(metric, 0.0), difference)
    return largest


def test_the_curve_is_that_of_the_unpacked_run(engine, workspace, record_property):
    is_the_curve_of_the_unpacked_run(engine, workspace, "nemo", record_property)


def test_the_curve_is_that_of_the_unpacked_run_with_bridge(bridge, workspace, record_property):
    is_the_curve_of_the_unpacked_run(bridge, workspace, "bridge", record_property)


@pytest.fixture(scope="module")
def source(workspace):
    """(MicroBatches of a packed run, its data set)."""
    path = recipe(workspace, "source", **SETTINGS)
    loaded = config.load(path, ["data.packing=true", "data.micro_batch_size=2", "data.global_batch_size=8"])
    prepared, found = prepare.prepare(loaded)
    assert {decision.key for decision in found} >= {"data.packing"}
    return micro_batches.training(loaded, prepared), TokenizedDataset.load(Path(prepared.examples))


def test_every_position_of_a_packed_micro_batch_is_named(source):
    batches, dataset = source
    assert batches.num_rows == 4  # of one micro-batch of 2 on each of 2 ranks
    for step in range(NUM_STEPS):
        seen = []
        for rank in (0, 1):
            for number, rows in enumerate(batches.of_step(step, rank, 2)):
                seen += [index for row in rows for index in row]
                batch = collate_packed([batches.rows[row] for row in rows], 0)
                names = batches.examples(step, number, rank, 2)
                for place in batch["loss_mask"].nonzero().tolist():
                    ids = dataset[names[tuple(place)]].input_ids
                    at = int(batch["position_ids"][tuple(place)])
                    assert (batch["tokens"][tuple(place)], batch["labels"][tuple(place)]) == (ids[at], ids[at + 1])
        assert sorted(seen) == sorted(order.step_indices(len(dataset), 8, 0, step))


def test_the_example_of_a_loss_that_is_no_number_is_named(source):
    batches, _ = source
    rank, number, row, shared = next(
        (rank, number, i, row)
        for rank in (0, 1)
        for number, rows in enumerate(batches.of_step(0, rank, 2))
        for i, row in enumerate(rows)
        if len(row) > 1
    )
    batch = collate_packed([batches.rows[row] for row in batches.of_step(0, rank, 2)[number]], 0)
    names = batches.examples(0, number, rank, 2)
    nll = torch.ones_like(batch["loss_mask"])
    last = int(batch["loss_mask"][row].nonzero()[-1])
    nll[row, last] = torch.nan
    said = guards.describe(nll.sum(), nll, batch["loss_mask"], names)
    assert said.endswith(f"examples of the training set: {shared[-1]}")
