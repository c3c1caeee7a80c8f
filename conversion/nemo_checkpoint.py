"""Open a NeMo 2 checkpoint: its tensors, its model files, and the base of its adapters."""

from dataclasses import dataclass
from pathlib import Path

from conversion.checkpoint import holds_weights, model_files_directory, weights_directory
from conversion.hf_files import read_model
from conversion.lora import Adapters, base_checkpoint, is_lora
from conversion.torch_dist import TorchDistReader
from conversion.weights import NeMoWeights


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint with its model files; `adapters` if it is a LoRA checkpoint, which has only those."""

    files: Path  # directory of config.json, the tokenizer, ...
    config: dict
    weights: NeMoWeights
    adapters: Adapters | None
    directories: tuple[Path, ...]  # all that is read


def open_checkpoint(source: Path, base: Path | None) -> Checkpoint:
    """base: gives config.json and the tokenizer; if it is a checkpoint, also the weights under LoRA adapters.

    Raises: ValueError when something is missing or the tensors are not those of config.json.
    """
    reader = TorchDistReader(weights_directory(source))
    if not is_lora(reader):
        files = model_files_directory(source, base)
        config, spec = read_model(files)
        return Checkpoint(files, config, NeMoWeights(reader, spec), None, (reader.directory, files))
    base_weights = base if base is not None and holds_weights(base) else base_checkpoint(reader.directory)
    root = weights_directory(base_weights)
    files = model_files_directory(source, base or root.parent)
    config, spec = read_model(files)
    adapters = Adapters(reader, spec)
    weights = NeMoWeights(TorchDistReader(root), spec, adapters)
    return Checkpoint(files, config, weights, adapters, (reader.directory, root, files))
