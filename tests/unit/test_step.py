"""The shared step, driven as an engine would, on two gloo ranks: what it computes, reduces, refuses and saves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nemo_probsft.adapters.megatron.statistics import sum_of
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.objectives import parse_objective
from tests.support.ranks import run_ranks
from tests.support.waits import Waits

NUM_STEPS, NUM_LABELS = 3, 7


def a_step(key: str, denominator: str = "target", log_every: int = 1) -> TrainingStep:
    return TrainingStep(
        ResolvedObjective(parse_objective(key), denominator, key),
        num_steps=NUM_STEPS,
        num_labels=NUM_LABELS,
        log_every=log_every,
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


def loss_of(step: TrainingStep, nll: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """That of a micro-batch whose likeliest token the hook has noted."""
    if step.head_rows.wants_top:
        step.head_rows.top_logp = (-nll.detach() + 0.1 * labels).clamp(max=0)
    return step.loss(nll, labels, loss_mask)[0]


def train(key: str, denominator: str, start: int = 1, state: dict | None = None, log_every: int = 1) -> dict:
    """The metrics of every step from `start` on that logs, and the state after each."""
    step, rank = a_step(key, denominator, log_every), dist.get_rank()
    if state is not None:
        step.load_state(state)
    rows, states = {}, {}
    for number in range(start, NUM_STEPS + 1):
        step.begin(number)
        for nll, labels, loss_mask in micro_batches(rank, number):
            loss_of(step, nll, labels, loss_mask)
        step.reduce(None)
        if step.logs:
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


ADAPTIVE = ("adaptive", "adaptive-by-label", "adaptive-by-confidence")


@pytest.mark.parametrize("key", [*ADAPTIVE, "GeneralFamily-0to1"])
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


def test_what_a_step_that_does_not_log_computes_is_what_the_next_one_needs():
    """Of three steps only the last one logs: the objective of each has moved by the same bits."""
    for key in ADAPTIVE:
        all_log, last_logs = (run_ranks(train, 2, key, "target", log_every=every)[0] for every in (1, 5))
        assert list(last_logs["rows"]) == [NUM_STEPS]
        assert last_logs["rows"][NUM_STEPS] == all_log["rows"][NUM_STEPS]
        assert last_logs["states"].keys() == all_log["states"].keys()
        for number, state in all_log["states"].items():
            for name, value in state.items():
                assert torch.equal(torch.as_tensor(last_logs["states"][number][name]), torch.as_tensor(value))


def test_fewer_pairs_of_a_micro_batch_have_the_same_sums():
    pairs = list(1e3 * torch.rand(40, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(sum_of([pair[:6] for pair in pairs])[:6], sum_of(pairs)[:6])
    narrow, wide = (torch.stack(pairs)[:, :width].contiguous().sum(0)[:4] for width in (6, 8))
    assert not torch.equal(narrow, wide), "if torch adds in one order now, nothing needs to be padded"


WITHOUT_A_WAIT = {
    **dict.fromkeys(("original", "GeneralFamily-10", "dft", "focal-2", "trsft-0.3", "UnlikehoodTop-0.2"), "target"),
    **dict.fromkeys((*ADAPTIVE, "GeneralFamily-0to1", "OnlyTopLogP-0to0.5"), "target"),
    **dict.fromkeys(("OnlyTopP-0.2", "OnlyBottomP-0.5"), "kept"),
}


@pytest.mark.parametrize(("key", "denominator"), WITHOUT_A_WAIT.items())
def test_a_micro_batch_asks_the_device_nothing(key, denominator):
    step, waits = a_step(key, denominator), Waits()
    step.begin(NUM_STEPS)  # where the objective is probed, too
    with waits:
        for nll, labels, loss_mask in micro_batches(0, 1):
            loss_of(step, nll.requires_grad_(), labels, loss_mask).backward()
    assert not waits.seen
    with waits:
        assert torch.isfinite(nll).all()
    assert len(waits.seen) == 1, "a guard that asks would have been seen"


def refused(key: str, bad: float, of_rank: int) -> str:
    """What `reduce` raises where the second of three micro-batches of a rank has a log p that is no number."""
    step = a_step(key)
    step.begin(2)
    nll, labels, loss_mask = micro_batches(0, 2)[0]
    worse = nll.clone()
    worse[1][loss_mask[1] > 0] = bad if dist.get_rank() == of_rank else 1.0
    worse[loss_mask == 0] = math.nan  # what is masked may be anything
    for values in (nll, worse, nll):
        step.loss(values, labels, loss_mask)
    said = []
    for look in (step.check, lambda: step.reduce(None)):
        try:
            look()
            said.append("")
        except FloatingPointError as error:
            said.append(str(error))
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize(
    ("key", "bad"), [("p", math.nan), ("p", math.inf), ("OnlyTopP-0.2", math.inf), ("GeneralFamily--8", 30.0)]
)
def test_log_p_that_is_no_number_names_step_rank_micro_batch_and_example(key, bad):
    """A threshold drops p = 0 from the sum of f(p); the negative power of a small p overflows."""
    said = run_ranks(refused, 2, key, bad, of_rank=1)
    assert said[0] == "", "the other rank would wait for it where gradients are reduced"
    assert said[1].startswith("step 2, rank 1, micro-batch 2: the loss is ")
    assert f"of {int(micro_batches(0, 2)[0][2].sum())} target tokens" in said[1]
    assert said[1].endswith("examples of the training set: " + ("none alone" if bad == 30 else "10"))
