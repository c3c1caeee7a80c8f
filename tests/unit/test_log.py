"""metrics.jsonl, TensorBoard and W&B hold the same numbers, and a resumed run writes no step twice."""

from __future__ import annotations

import json
import math

import numpy as np

from nemo_probsft.adapters.megatron.quantiles import LIMIT, NUM_BINS, logit_counts, quantile
from nemo_probsft.run import log

ROWS = [{"step": step, "objective": 1 / step, "p": 0.1 * step} for step in range(1, 6)]


def written(run_dir, rows, start_step=0):
    runlog = log.RunLog(run_dir, start_step)
    for row in rows:
        runlog.write(row)
    runlog.close()


def test_rows_come_back(tmp_path):
    written(tmp_path, ROWS)
    assert log.read_metrics(tmp_path) == ROWS
    assert log.last_row(tmp_path) == ROWS[-1]


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint_and_a_line_cut_by_a_crash(tmp_path):
    written(tmp_path, ROWS[:4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "obj')
    assert log.last_row(tmp_path) == ROWS[3]
    written(tmp_path, ROWS[2:], start_step=2)
    assert log.read_metrics(tmp_path) == ROWS


def test_a_long_log_is_read_from_its_end(tmp_path):
    rows = [{"step": step, "note": "x" * 300} for step in range(1, 201)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert log.last_row(tmp_path) == rows[-1]
    assert log.last_row(tmp_path / "nowhere") is None


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(tmp_path, ROWS)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("p")}
    assert found.keys() == {row["step"] for row in ROWS}
    assert all(abs(found[row["step"]] - row["p"]) < 1e-6 for row in ROWS)


def test_wandb_gets_them_when_it_is_configured(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    runlog = log.RunLog(tmp_path, 0, {"project": "probsft", "name": "test"})
    for row in ROWS:
        runlog.write(row)
    assert runlog.wandb.summary["p"] == ROWS[-2]["p"]  # W&B commits a step when the next one or the end comes
    runlog.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_quantiles_are_exact_to_a_bin_at_both_ends():
    import torch

    p = torch.tensor([1e-7, 1e-3, 0.3, 0.5, 0.7, 0.999, 1 - 1e-6], dtype=torch.float64)
    mask = torch.ones(7)
    logp = torch.cat([p[:-1].log(), torch.log1p(torch.tensor([-1e-6], dtype=torch.float64))]).float()
    counts = logit_counts(logp, mask)
    assert counts.sum() == 7
    for q, exact in ((0.1, 1e-7), (0.5, 0.5), (0.99, 1 - 1e-6)):
        odds = quantile(counts, q) / (1 - quantile(counts, q))
        assert 0.85 < odds / (exact / (1 - exact)) < 1.18
    assert logit_counts(logp, mask * 0).sum() == 0


def test_counts_are_those_of_numpy_over_the_supervised_tokens():
    import torch

    generator = torch.Generator().manual_seed(0)
    logp = torch.cat([-torch.logspace(-9, 2, 4000), torch.tensor([0.0, -math.inf, math.nan])])
    mask = (torch.rand(logp.shape, generator=generator) < 0.7).float()
    mask[-2:] = torch.tensor([1.0, 0.0])
    x = logp[mask > 0].double().numpy()
    with np.errstate(divide="ignore"):
        logit = np.where(x == 0, np.inf, x - np.log(-np.expm1(x)))
    edges = np.arange(1, NUM_BINS) * (2 * LIMIT / NUM_BINS) - LIMIT
    near = np.abs(logit[:, None] - edges).min(1) < 1e-4  # fp32 may put these on the other side
    expected = np.bincount(np.searchsorted(edges, logit, side="right"), minlength=NUM_BINS)
    counts = logit_counts(logp, mask)
    assert counts.sum() == mask.sum()
    assert np.abs(counts.numpy() - expected).sum() <= 2 * near.sum() < 20
    parts = sum(logit_counts(part, of_it) for part, of_it in zip(logp.split(321), mask.split(321), strict=True))
    assert torch.equal(counts, parts), "micro-batches, counted together or one by one"
    assert not torch.equal(counts, logit_counts(logp, torch.ones_like(mask)))
