"""Finding NeMo checkpoints on disk without importing NeMo."""

from __future__ import annotations

from pathlib import Path


def is_nemo(path: Path) -> bool:
    """True for a complete NeMo 2 checkpoint: `weights/` written to its end and `context/`."""
    return (path / "weights" / "metadata.json").exists() and (path / "context").is_dir()


def last_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint `step=N` with the highest N.

    NeMo keeps a file `step=N-unfinished` while it writes or removes one (ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX).
    """
    complete = [
        path
        for path in directory.glob("step=*")
        if is_nemo(path) and not path.with_name(path.name + "-unfinished").exists()
    ]
    return max(complete, key=lambda path: int(path.name.removeprefix("step=")), default=None)
