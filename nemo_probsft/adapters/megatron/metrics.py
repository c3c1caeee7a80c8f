"""metrics.jsonl and the audit of a run, written after each step by the one rank that has the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemo_probsft.adapters.megatron.layout import holds_the_loss
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import Recipe
from nemo_probsft.run import audit
from nemo_probsft.run.log import RunLog


class MetricsWriter:
    """Made on every rank when training starts after `start_step` steps; the one that `holds_the_loss` writes."""

    def __init__(self, recipe: Recipe, step: TrainingStep, start_step: int, num_micro_batches: int) -> None:
        wandb = recipe.log.wandb
        settings = None if wandb is None else {"project": wandb.project, "name": wandb.name}
        self.run_dir, self.recipe, self.step = Path(recipe.run_dir), recipe, step
        self.runlog = RunLog(self.run_dir, start_step, settings) if holds_the_loss() else None
        self.num_micro_batches, self.audited = num_micro_batches, False

    def write(self, *, lr: float, grad_norm: float) -> None:
        """After `reduce` and before `end` of the step. lr: the one of this step; grad_norm: before clipping."""
        if self.runlog is None:
            return
        step, last = self.step, self.step.number == self.step.num_steps
        seen, expected = len(step.micro_batches), self.num_micro_batches
        assert seen == expected, f"{seen} of {expected} micro-batches went through the objective"
        if not self.audited or last:
            audit.record(self.run_dir, step.measured)
            self.audited = True
        if step.logs:
            self.runlog.write({"step": step.number, **step.metrics(), "grad_norm": grad_norm, "lr": lr})

    def write_row(self, row: Mapping[str, float | int]) -> None:
        """A row that is not of a training step."""
        if self.runlog is not None:
            self.runlog.write(row)

    def close(self) -> None:
        if self.runlog is not None:
            self.runlog.close()
