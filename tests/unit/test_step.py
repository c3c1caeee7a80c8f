"""The shared step, driven as an engine would, on two gloo ranks: what it computes, reduces, refuses and saves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.objectives import parse_objective
from tests.support.ranks import run_ranks

NUM_STEPS, NUM_LABELS = 3, 7


def a_step(key: str, denominator: str = "target") -> TrainingStep:
    return TrainingStep(
        ResolvedObjective(parse_objective(key), denominator, key),
        num_steps=NUM_STEPS,
        num_labels=NUM_LABELS,
        examples=lambda step, micro_batch: np.array([[10 * step], [10 * micro_batch]]),
    )


def micro_batches(rank: int, number: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """nll, labels, loss_mask [2, 5] of a rank's micro-batches; their target counts differ, and one has none."""
    generator = torch.Generator().manual_seed(100 * number + rank)
    found = []
    for share in (0.9, 0.3, 0.0):
        nll = -torch.rand(2, 5, generator=generator).clamp(0.01, 0.99).log()
        labels = torch.randint(0, NUM_LABELS, (2, 5), generator=generator)
        found.append((nll, labels, (torch.rand(2, 5, generator=generator) < share).float()))
    return found


def train(key: str, denominator: str, start: int = 1, state: dict | None = None) -> dict:
    """The metrics of every step from `start` on, and the state after each."""
    step, rank = a_step(key, denominator), dist.get_rank()
    if state is not None:
        step.load_state(state)
    rows, states = {}, {}
    for number in range(start, NUM_STEPS + 1):
        step.begin(number)
        for nll, labels, loss_mask in micro_batches(rank, number):
            step.loss(nll, labels, loss_mask)
        step.reduce(None)
        rows[number] = step.metrics()
        step.end()
        states[number] = step.state(None, 1, "cpu")
    return {"rows": rows, "states": states, "measured": step.measured}


def expected(key: str, denominator: str, number: int) -> float:
    """The mean of f over the global batch, in float64; the objective does not move."""
    objective = parse_objective(key)
    parts = [part for rank in (0, 1) for part in micro_batches(rank, number)]
    logp = torch.cat([-nll[mask > 0].double() for nll, _, mask in parts])
    kept = objective.keep(logp)
    return float(objective.value(logp)[kept].sum() / (len(logp) if denominator == "target" else kept.sum()))


@pytest.mark.parametrize(("key", "denominator"), [("p", "target"), ("OnlyTopLogP-0.3", "kept"), ("original", "target")])
def test_the_metrics_are_the_token_mean_over_all_ranks_and_micro_batches(key, denominator):
    first, second = run_ranks(train, 2, key, denominator)
    assert first["rows"] == second["rows"]
    for number, row in first["rows"].items():
        assert row["objective"] == pytest.approx(expected(key, denominator, number), rel=1e-6)
        assert row["num_tokens"] == sum(int(m.sum()) for rank in (0, 1) for _, _, m in micro_batches(rank, number))
        means = [
            float(-nll[mask > 0].double().mean())
            for rank in (0, 1)
            for nll, _, mask in micro_batches(rank, number)
            if mask.any()
        ]
        assert row["nll"] != pytest.approx(-np.mean(means), rel=1e-3), "a mean of means would pass"


@pytest.mark.parametrize("key", ["adaptive", "adaptive-by-label", "GeneralFamily-0to1"])
def test_a_run_that_goes_on_from_a_state_has_the_same_bits(key):
    whole = run_ranks(train, 2, key, "target")
    resumed = run_ranks(train, 2, key, "target", start=3, state=whole[0]["states"][2])
    assert resumed[0]["rows"][3] == whole[0]["rows"][3]
    fresh = run_ranks(train, 2, key, "target", start=3)
    moves_by_the_clock = key == "GeneralFamily-0to1"
    assert (fresh[0]["rows"][3] == whole[0]["rows"][3]) == moves_by_the_clock


def test_what_is_measured_is_of_the_last_step():
    for rank in run_ranks(train, 2, "GeneralFamily-0to1", "target"):
        assert rank["measured"]["moment"]["fraction"] == 1.0


def refused(bad: float) -> str:
    step = a_step("p")
    step.begin(2)
    nll, labels, loss_mask = micro_batches(0, 2)[0]
    step.loss(nll, labels, loss_mask)
    nll = nll.clone()
    nll[1][loss_mask[1] > 0] = bad
    with pytest.raises(FloatingPointError) as error:
        step.loss(nll, labels, loss_mask)
    return str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_log_p_that_is_no_number_names_step_rank_micro_batch_and_example(bad):
    for rank, said in enumerate(run_ranks(refused, 2, bad)):
        assert said.startswith(f"step 2, rank {rank}, micro-batch 2: the loss is ")
        assert said.endswith("examples of the training set: 10")
