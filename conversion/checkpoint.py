"""A NeMo 2 checkpoint on disk: where its tensors, its adapters' base, its model files and its run's record are."""

from dataclasses import dataclass
from pathlib import Path

from conversion.families import model_spec
from conversion.lora import Adapters, base_checkpoint, is_lora
from conversion.staging import existing_directory
from conversion.torch_dist import TorchDistReader
from conversion.weights import NeMoWeights, read_config

HF_FILES = "hf"  # folder of an imported checkpoint that keeps config.json, tokenizer, ... byte for byte


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint with its model files; `adapters` when it is one of LoRA, which holds nothing else."""

    files: Path  # directory of config.json, the tokenizer, ...
    config: dict
    weights: NeMoWeights
    adapters: Adapters | None
    directories: tuple[Path, ...]  # all that is read


def open_checkpoint(source: Path, base: Path | None) -> Checkpoint:
    """base: gives config.json and the tokenizer, and the weights of a LoRA checkpoint when it is a checkpoint itself.

    Raises: ValueError when something is missing or the tensors are not those of config.json.
    """
    reader = TorchDistReader(weights_directory(source))
    if not is_lora(reader):
        files = model_files_directory(source, base)
        config = read_config(files)
        return Checkpoint(files, config, NeMoWeights(reader, model_spec(config)), None, (reader.directory, files))
    holds_weights = base is not None and is_nemo(base)
    root = weights_directory(base if holds_weights else base_checkpoint(reader.directory))
    files = model_files_directory(source, base or root.parent)
    config = read_config(files)
    spec = model_spec(config)
    adapters = Adapters(reader, spec)
    weights = NeMoWeights(TorchDistReader(root), spec, adapters)
    return Checkpoint(files, config, weights, adapters, (reader.directory, root, files))


def is_nemo(path: Path) -> bool:
    return (weights_directory(path) / "metadata.json").exists()


def weights_directory(checkpoint: Path) -> Path:
    """`weights/` of a NeMo 2 checkpoint; also accepts that folder itself."""
    return checkpoint / "weights" if (checkpoint / "weights").is_dir() else checkpoint


def model_files_directory(checkpoint: Path, base: Path | None = None) -> Path:
    """Where config.json and the tokenizer are: of `base` when given, else of the checkpoint itself.

    A checkpoint has them in `hf/` (imported) or in the copy of the tokenizer's folder that NeMo makes in `context/`.
    """
    root = weights_directory(checkpoint).parent if base is None else existing_directory(base)
    roots = [root / HF_FILES, root / "context" / HF_FILES]
    for folder in roots if base is None else [root, *roots]:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{base or checkpoint}: no config.json; give the Hugging Face directory or imported checkpoint that the "
        "training started from as base (--base)"
    )
