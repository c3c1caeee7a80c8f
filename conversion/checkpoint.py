"""What is this directory, which checkpoint of a run is the last, and where are a checkpoint's files?

Light: neither torch nor NeMo is imported, because the launcher of a run asks these questions first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nemo_probsft.staging import existing_directory

Kind = Literal["huggingface", "nemo"]
HF_FILES = "hf"  # folder of an imported checkpoint that keeps config.json, the tokenizer, ... byte for byte


def kind_of(path: Path) -> Kind | None:
    """What a directory is, told by its files; None if it is neither, or if its checkpoint was not written to the end.

    A second engine's checkpoint becomes a third kind here, and its names go into `last_checkpoint`.
    """
    if (path / "weights" / "metadata.json").exists() and (path / "context").is_dir():
        return "nemo"
    return "huggingface" if (path / "config.json").is_file() else None


def is_nemo(path: Path) -> bool:
    """True for a complete NeMo 2 checkpoint, which NeMo can train from: `weights/` and `context/`."""
    return kind_of(path) == "nemo"


def holds_weights(path: Path) -> bool:
    """True for complete torch_dist weights, with or without `context/`: enough to export, too little to train from."""
    return (weights_directory(path) / "metadata.json").exists()


def weights_directory(checkpoint: Path) -> Path:
    """`weights/` of a NeMo 2 checkpoint, or `checkpoint` itself if it is that folder."""
    return checkpoint / "weights" if (checkpoint / "weights").is_dir() else checkpoint


def last_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint `step=N` with the highest N.

    NeMo keeps a file `step=N-unfinished` while it writes or removes one (ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX).
    """
    complete = [
        path
        for path in directory.glob("step=*")
        if is_nemo(path) and not path.with_name(path.name + "-unfinished").exists()
    ]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The number of trained steps that a run's checkpoint is named by."""
    return int(checkpoint.name.removeprefix("step="))


def model_files_directory(checkpoint: Path, base: Path | None = None) -> Path:
    """Where config.json and the tokenizer are: in `base` if given, else in the checkpoint itself.

    A checkpoint has them in `hf/` (imported) or in the copy of the tokenizer's folder that NeMo makes in `context/`.
    """
    root = weights_directory(checkpoint).parent if base is None else existing_directory(base)
    folders = [root / HF_FILES, root / "context" / HF_FILES]
    for folder in folders if base is None else [root, *folders]:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{base or checkpoint}: no config.json; name the Hugging Face directory or the imported checkpoint that "
        "training started from (--base)"
    )
