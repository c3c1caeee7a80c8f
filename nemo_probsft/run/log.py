"""What a run leaves behind: run.yaml, metrics.jsonl, TensorBoard and, when configured, W&B."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_probsft.files import write_atomically
from nemo_probsft.progress import Progress

METRIC = "validation_"  # before the names of a validation's numbers


class RunLog:
    """Appends one JSON object a step to `metrics.jsonl` and the same numbers to TensorBoard and W&B.

    Opened at `start_step`, it drops what an interrupted run wrote beyond the checkpoint it resumes from: no step stands
    twice.
    """

    def __init__(self, run_dir: Path, start_step: int, wandb: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run_dir / "metrics.jsonl"
        # A run that starts anew also validates anew before its first step.
        keep = [row for row in _rows(run_dir) if 0 < start_step >= row["step"]]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in keep))
        self.file = self.path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1 if start_step else 0)
        self.wandb = _wandb_run(run_dir, wandb)

    def write(self, row: Mapping[str, float | int]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step":
                self.tensorboard.add_scalar(name, value, row["step"])
        if self.wandb is not None:
            self.wandb.log(dict(row), step=row["step"])

    def close(self) -> None:
        self.file.close()
        self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def _wandb_run(run_dir: Path, settings: Mapping[str, Any] | None) -> Any:
    if not settings:
        return None
    import wandb

    return wandb.init(dir=str(run_dir), resume="allow", **settings)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The training steps of metrics.jsonl; a last line cut off by a crash is left out."""
    return [row for row in _rows(run_dir) if not is_validation(row)]


def read_validations(run_dir: Path) -> list[dict[str, Any]]:
    """The validations of metrics.jsonl."""
    return [row for row in _rows(run_dir) if is_validation(row)]


def is_validation(row: Mapping[str, Any]) -> bool:
    """Whether a row of metrics.jsonl is of held-out rows; then each of its names but `step` begins with METRIC."""
    return f"{METRIC}nll" in row


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def last_row(run_dir: Path) -> dict[str, Any] | None:
    """The last complete row of metrics.jsonl, read from its end."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else None


class Follower:
    """Called while ranks run: shows the last row that they wrote to metrics.jsonl."""

    def __init__(self, progress: Progress, run_dir: Path) -> None:
        self.progress, self.run_dir = progress, run_dir
        self.shown = last_row(run_dir)
        self.trained, self.validated = "", ""  # what the last row of either kind says

    def __call__(self) -> None:
        row = last_row(self.run_dir)
        if row is None or row == self.shown:
            self.progress.advance(0)  # the display's clock goes on
            return
        self.shown = row
        if is_validation(row):
            self.validated = f"  held out: nll {row[METRIC + 'nll']:.4f}  p {row[METRIC + 'p']:.3f}"
        else:
            self.trained = f"objective {row['objective']:.4f}  nll {row['nll']:.4f}  p {row['p']:.3f}"
        self.progress.update(row["step"], (self.trained + self.validated).strip())
