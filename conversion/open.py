"""Open a model of any kind: its tensors, its model files, and the base of its adapters."""

from dataclasses import dataclass
from pathlib import Path

from conversion import bridge_config, nemo_context
from conversion.checkpoint import RUN_CONFIG, advice, holds_weights, kind_of, model_files_directory, weights_directory
from conversion.families import ModelSpec
from conversion.hf_files import read_model
from conversion.lora import Adapters, is_lora, noted_base
from conversion.lora_settings import LoraSettings
from conversion.torch_dist import TorchDistReader
from conversion.weights import HFWeights, MergedWeights, TorchDistWeights, Weights


@dataclass(frozen=True)
class Model:
    """The tensors of a model with its files; `adapters` if it is a LoRA checkpoint, which has only those."""

    files: Path  # directory of config.json, the tokenizer, ...
    config: dict
    spec: ModelSpec
    weights: Weights
    adapters: Adapters | None
    directories: tuple[Path, ...]  # all that is read


def open_model(source: Path, base: Path | None) -> Model:
    """A checkpoint of an engine, else a Hugging Face directory. base: see `open_checkpoint`."""
    if holds_weights(source):
        return open_checkpoint(source, base)
    _refuse_other_directories(source)
    files = source if base is None else model_files_directory(source, base)
    config, spec = read_model(files)
    return Model(files, config, spec, HFWeights(source, spec), None, (source,))


def open_checkpoint(source: Path, base: Path | None, files: Path | None = None) -> Model:
    """base: gives config.json and the tokenizer; if it has weights, those are the ones under LoRA adapters.

    files: the directory of config.json, where it is known; it says nothing about adapters.
    Raises: ValueError when something is missing or the tensors are not those of config.json.
    """
    if not holds_weights(source):
        _refuse_other_directories(source)
        if kind_of(source) == "huggingface":
            raise ValueError(f"{source}: a Hugging Face directory already; name a checkpoint")
    reader = TorchDistReader(weights_directory(source))
    if not is_lora(reader):
        files = files or model_files_directory(source, base)
        config, spec = read_model(files)
        return Model(files, config, spec, TorchDistWeights(reader, spec), None, (reader.directory, files))
    of_bridge = (reader.directory / RUN_CONFIG).is_file()
    settings, under = _bridge_lora(reader, base) if of_bridge else _nemo_lora(reader, base)
    files = files or _files_of_adapters(source, base, under)
    config, spec = read_model(files)
    adapters = Adapters(reader, spec, settings)
    if holds_weights(under):
        root = weights_directory(under)
        weights: Weights = TorchDistWeights(TorchDistReader(root), spec)
    else:
        root, weights = under, HFWeights(under, spec)
    return Model(files, config, spec, MergedWeights(weights, adapters), adapters, (reader.directory, root, files))


def _refuse_other_directories(source: Path) -> None:
    if kind_of(source) is None and (instead := advice(source)):
        raise ValueError(f"{source}: {instead}")


def _nemo_lora(reader: TorchDistReader, base: Path | None) -> tuple[LoraSettings, Path]:
    """Settings of the adapters, and the checkpoint they were trained on."""
    settings = nemo_context.read_lora_settings(reader.directory.parent / "context")
    return settings, base if base is not None and holds_weights(base) else noted_base(reader.directory)


def _bridge_lora(reader: TorchDistReader, base: Path | None) -> tuple[LoraSettings, Path]:
    """The same for Bridge, which trains adapters on a Hugging Face directory too."""
    settings, noted = bridge_config.read_lora_settings(reader.directory)
    if base is not None and (holds_weights(base) or any(base.glob("*.safetensors"))):
        return settings, base
    if noted is None or kind_of(noted) is None:
        raise ValueError(
            f"{noted or reader.directory}: the base of the LoRA checkpoint is not there; name the checkpoint or the "
            "Hugging Face directory that it was trained on (--base)"
        )
    return settings, noted


def _files_of_adapters(source: Path, base: Path | None, under: Path) -> Path:
    """A checkpoint of adapters may have files of its own; else they are those of what lies under them."""
    if base is not None:
        return model_files_directory(source, base)
    try:
        return model_files_directory(source)
    except ValueError:
        return model_files_directory(source, under)
