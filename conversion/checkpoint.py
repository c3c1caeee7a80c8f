"""What is this directory, which checkpoint of a run is the last, and where are a checkpoint's files?

Light: neither torch nor NeMo nor Megatron-Bridge is imported, because the launcher of a run asks these questions first.

A NeMo 2 checkpoint is one directory with `weights/` and `context/`. One of Megatron-Bridge is a directory `iter_N`
below one that has the tracker file; either of them is taken for it. Bridge writes, in this order: the weights with
`.metadata`, `metadata.json`, `train_state.pt`, the tracker, `run_config.yaml` (`save_checkpoint` in
megatron/bridge/training/checkpointing.py), so neither the tracker nor the weights alone say that a save has ended.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from nemo_probsft.staging import existing_directory

Kind = Literal["huggingface", "nemo", "bridge"]
HF_FILES = "hf"  # folder of an imported checkpoint that keeps config.json, the tokenizer, ... byte for byte
TRACKER = "latest_checkpointed_iteration.txt"
RUN_CONFIG = "run_config.yaml"
_ITERATION = "iter_"


def kind_of(path: Path) -> Kind | None:
    """What a directory is, told by its files; None if it is none of them, or if its save did not come to its end."""
    if (path / "weights" / "metadata.json").exists() and (path / "context").is_dir():
        return "nemo"
    if _iteration(path) is not None:
        return "bridge"
    return "huggingface" if (path / "config.json").is_file() else None


def is_nemo(path: Path) -> bool:
    """True for a complete NeMo 2 checkpoint, which NeMo can train from: `weights/` and `context/`."""
    return kind_of(path) == "nemo"


def is_bridge(path: Path) -> bool:
    """True for a complete checkpoint of Megatron-Bridge: `iter_N`, or the directory whose tracker file leads to it."""
    return kind_of(path) == "bridge"


def is_checkpoint(path: Path) -> bool:
    """True for a complete checkpoint of either engine."""
    return kind_of(path) in ("nemo", "bridge")


def iteration_directory(path: Path) -> Path:
    """The `iter_N` that a Bridge checkpoint consists of: `path` itself, or the last complete one below it.

    Raises: ValueError if there is none.
    """
    found = _iteration(path)
    if found is None:
        raise ValueError(f"{path}: neither a complete iter_N of Megatron-Bridge nor a directory with one and {TRACKER}")
    return found


def holds_weights(path: Path) -> bool:
    """True for complete torch_dist weights, with or without what an engine needs to train from them."""
    return (weights_directory(path) / "metadata.json").exists()


def weights_directory(checkpoint: Path) -> Path:
    """`weights/` of a NeMo 2 checkpoint, `iter_N` of one of Bridge, or `checkpoint` itself if it is that folder."""
    if (checkpoint / "weights").is_dir():
        return checkpoint / "weights"
    return _iteration(checkpoint) or checkpoint


def last_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint `step=N` (NeMo) or `iter_N` (Bridge) with the highest N."""
    return max(complete_checkpoints(directory), key=step_of, default=None)


def complete_checkpoints(directory: Path) -> list[Path]:
    """Every complete checkpoint `step=N` (NeMo) or `iter_N` (Bridge) of a run, in no order.

    NeMo keeps a file `step=N-unfinished` while it writes or removes one (ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX).
    Of Bridge's, one beyond the tracker's does not count.
    """
    complete = [
        path
        for path in directory.glob("step=*")
        if is_nemo(path) and not path.with_name(path.name + "-unfinished").exists()
    ]
    return complete + _up_to_tracker(directory)


def advice(path: Path) -> str | None:
    """What to name instead of a directory that is no model, but has one below it; None where that is not known."""
    last = last_checkpoint(path) or last_checkpoint(path / "checkpoints")
    if last is not None:
        return f"it holds the checkpoints of a run: name one of them, for example {last}"
    if path.name == "weights" and is_nemo(path.parent):
        return f"it is a part of a checkpoint: name {path.parent}"
    return None


def remove_incomplete(directory: Path) -> None:
    """Removes each `iter_N` whose save was killed."""
    for path in directory.glob(f"{_ITERATION}*"):
        if not _is_complete(path):
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The number of trained steps that a run's checkpoint is named by: `step=N` or `iter_N`."""
    return int(checkpoint.name.removeprefix("step=").removeprefix(_ITERATION))


def model_files_directory(checkpoint: Path, base: Path | None = None) -> Path:
    """Where config.json and the tokenizer are: in `base` if given, else in the checkpoint itself.

    A checkpoint has them in `hf/` (imported, or of a run on Bridge) or in the copy of the tokenizer's folder that NeMo
    makes in `context/`.
    """
    own = _root(checkpoint) if base is None else _root(existing_directory(base))
    folders = [own / HF_FILES, own / "context" / HF_FILES]
    for folder in folders if base is None else [own, *folders]:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{base or checkpoint}: no config.json; name the Hugging Face directory or the imported checkpoint that "
        "training started from (--base)"
    )


def _root(path: Path) -> Path:
    """The directory of a checkpoint that has everything: above `weights/`, or `iter_N`; any other one as it is."""
    weights = weights_directory(path)
    return weights.parent if weights.name == "weights" else weights


def _iteration(path: Path) -> Path | None:
    return path if _is_complete(path) else _tracked(path)


def _tracked(directory: Path) -> Path | None:
    """The iteration that the tracker names; if its save was killed after the tracker, the last complete one before."""
    return max(_up_to_tracker(directory), key=step_of, default=None)


def _up_to_tracker(directory: Path) -> list[Path]:
    """The complete iterations up to the one that the tracker names."""
    try:
        last = int((directory / TRACKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no tracker, or "release" (Megatron-LM)
        return []
    found = [path for path in directory.glob(f"{_ITERATION}*") if path.name.removeprefix(_ITERATION).isdecimal()]
    return [path for path in found if step_of(path) <= last and _is_complete(path)]


def _is_complete(iteration: Path) -> bool:
    return all((iteration / name).is_file() for name in (".metadata", "metadata.json")) and _ends(iteration)


def _ends(iteration: Path) -> bool:
    """Whether run_config.yaml, the last file, was written to its end: PyYAML sorts the sections, `train` comes late."""
    try:
        text = (iteration / RUN_CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text.endswith("\n") and "\ntrain:" in text
