"""How often a real step makes the host wait for the device, counted on a CPU by the operations that would."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.support.engine import first_error
from tests.support.first_step import ROWS, recipe, write_workspace
from tests.support.synchronisation import NUM_STEPS

MICRO_BATCHES = len(ROWS) // 2
LOSSES = {
    "default": ("original", "default"),
    "power": ("GeneralFamily-10", "ours"),
    "by-label": ("adaptive-by-label", "ours"),
    "by-confidence": ("adaptive-by-confidence", "ours"),
    "threshold": ("OnlyTopLogP-0.004", "ours"),
    "known-wrong": ("GeneralFamily-10", "known wrong"),
}


@pytest.fixture(scope="module", params=["nemo", "bridge"])
def counts(request, tmp_path_factory):
    """{loss: [what was seen in step 1, 2, 3]}; only the steps 2 and 3 log."""
    ranks = request.getfixturevalue({"nemo": "engine", "bridge": "bridge"}[request.param])
    root = write_workspace(tmp_path_factory.mktemp(f"synchronisation-{request.param}"))
    jobs = {}
    for name, (objective, loss) in LOSSES.items():
        path = recipe(
            root,
            name,
            engine=request.param,
            objective=objective,
            parallel={"tensor_model_parallel_size": 1},
            trainer={"devices": 1, "max_steps": NUM_STEPS},
            log={"every_steps": 2},
        )
        task = {"task": "tests.support.synchronisation:train", "world_size": 1, "output": str(root / f"{name}-ranks")}
        jobs[name] = task | {"engine": request.param, "recipe": str(path), "loss": loss}
    ranks.run(jobs.values())
    assert not (error := first_error(jobs.values())), error
    return {name: json.loads((root / f"{name}-ranks" / "rank-0.json").read_text()) for name in jobs}


def before_the_transfer(step: list) -> list:
    """What our code asks of the device before it reads the step's statistics: in micro-batches, that is."""
    of_ours = [whose for _, whose in step if not whose.startswith("engine ")]
    transfer = "nemo_probsft/adapters/megatron/step.py:_read"
    return of_ours[: of_ours.index(transfer)]


@pytest.mark.parametrize("loss", ["power", "by-label", "by-confidence"])
def test_no_micro_batch_waits_without_a_threshold(counts, loss):
    assert [before_the_transfer(step) for step in counts[loss]] == [[]] * NUM_STEPS


def test_with_a_threshold_a_micro_batch_waits_once_in_its_backward_pass(counts):
    for step in counts["threshold"]:
        assert before_the_transfer(step) == ["nemo_probsft/ops/lm_head.py:_active_rows"] * MICRO_BATCHES


def test_a_guard_that_asks_in_every_micro_batch_would_be_seen(counts):
    for step in counts["known-wrong"]:
        assert before_the_transfer(step) == ["tests/support/synchronisation.py:asks_at_once"] * MICRO_BATCHES


@pytest.mark.parametrize("loss", ["power", "by-label", "by-confidence", "threshold"])
def test_a_step_reads_once(counts, loss):
    """Besides the norm that clips the gradient, as Megatron reads its own. Bridge saves its last checkpoint within the
    step, and with it the running means of p; NeMo does after it."""
    read = ["cpu", "nemo_probsft/adapters/megatron/step.py:_read"]
    clips = ["_local_scalar_dense", "nemo_probsft/adapters/megatron/norm.py:grad_norm"]
    for number, step in enumerate(counts[loss], 1):
        of_ours = [place for place in step if not place[1].startswith("engine ")][len(before_the_transfer(step)) :]
        assert of_ours[:2] == [read, clips]
        saves = {"nemo_probsft/adapters/megatron/step.py:state"} if number == NUM_STEPS else set()
        assert {whose for _, whose in of_ours[2:]} <= saves


@pytest.mark.parametrize("loss", ["power", "by-label", "by-confidence", "threshold"])
def test_a_step_waits_no_more_often_than_with_the_loss_of_the_engine(counts, loss, record_property):
    for ours, default in zip(counts[loss], counts["default"], strict=True):
        record_property("ours, default", f"{len(ours)}, {len(default)}")
        more = Counter(map(tuple, ours)) - Counter(map(tuple, default))
        assert len(ours) <= len(default), more
