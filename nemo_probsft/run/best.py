"""The best checkpoint of a run: `best` in its directory leads to hard links, which stay when the engine removes it."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from conversion.checkpoint import complete_checkpoints, is_checkpoint, step_of
from nemo_probsft.run.log import METRIC, read_validations

LINK, KEPT = "best", "kept"  # in a run directory: the link, and the directory of what it leads to


def update(run_dir: Path, metric: str) -> None:
    """Keep the best checkpoint so far by `metric` on held-out rows; of equal ones, the earlier.

    Called again after a kill at any moment it comes to the same end. Until then the link leads to a whole checkpoint:
    the new one is complete before the link moves, and the former is removed afterwards. One process at a time.
    """
    kept, link = run_dir / KEPT, run_dir / LINK
    values = {row["step"]: row[METRIC + metric] for row in read_validations(run_dir)}
    saved = [*_kept(run_dir), *complete_checkpoints(run_dir / "checkpoints")]
    known = [path for path in saved if step_of(path) in values]
    finite = [path for path in known if math.isfinite(values[step_of(path)])]
    sign = -1 if metric == "p" else 1
    best = min(finite, key=lambda path: (sign * values[step_of(path)], step_of(path)), default=None)
    if best is None:
        return
    target = kept / best.name
    if not is_checkpoint(target):
        _copy(best, target)
    if link.resolve() != target.resolve():
        moved = run_dir / f".{LINK}.new"
        moved.unlink(missing_ok=True)
        moved.symlink_to(Path(KEPT, best.name))
        if link.is_dir() and not link.is_symlink():  # this run is a copy, made by what follows links
            shutil.rmtree(link)
        moved.replace(link)
    for other in kept.iterdir():
        if other != target:
            shutil.rmtree(other)


def _copy(source: Path, target: Path) -> None:
    """Hard links, which take no space until the engine removes its own; no file of a checkpoint is written twice."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=os.link)
    partial.replace(target)


def _kept(run_dir: Path) -> list[Path]:
    """One; two after a kill between the new one and the removal of the former."""
    return [path for path in (run_dir / KEPT).glob("[!.]*") if is_checkpoint(path)]


def step(run_dir: Path) -> int | None:
    """That of the best checkpoint; None where none is kept."""
    link = run_dir / LINK
    if not is_checkpoint(link):
        return None
    return step_of(link.resolve() if link.is_symlink() else _kept(run_dir)[-1])
