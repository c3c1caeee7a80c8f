"""What a Hugging Face directory holds besides weights: config.json, tokenizer, templates, licence."""

import json
import shutil
from pathlib import Path

import torch

from conversion.dtypes import dtype_name
from conversion.families import ModelSpec, model_spec

_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}


def read_model(directory: Path) -> tuple[dict, ModelSpec]:
    """config.json and what it says about the tensors. Raises: ValueError, one line, that names the file."""
    config = read_config(directory)
    try:
        return config, model_spec(config)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}; use another model") from None


def read_config(directory: Path) -> dict:
    """config.json. Raises: ValueError if it is missing or not a JSON object."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: missing; is {directory} a Hugging Face model directory?") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: not a JSON object but a {type(config).__name__}; download the model again")
    return config


def model_files(directory: Path) -> list[Path]:
    """What a Hugging Face directory holds besides weights, relative: configuration, tokenizer, templates, licence.

    A tokenizer's own code is among them; nothing here runs it. Raises: ValueError where such code is missing.
    """
    code = tokenizer_code(directory)
    _refuse_missing_code(directory, code)
    suffixes = _SUFFIXES | ({".py"} if code else set())
    found = []
    for file in sorted(directory.iterdir()):
        is_licence = file.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        if not (is_licence or file.suffix in suffixes) or file.name.endswith(".index.json"):
            continue
        if file.is_symlink() and not file.exists():
            raise ValueError(f"{file}: a link to nothing, or a loop of links; download the model again")
        if file.is_file():
            found.append(Path(file.name))
    templates = directory / "additional_chat_templates"
    if templates.is_dir():
        found += [file.relative_to(directory) for file in sorted(templates.iterdir()) if file.is_file()]
    return found


def tokenizer_code(directory: Path) -> list[str]:
    """Files beside a tokenizer with the code that it would run (`auto_map` in tokenizer_config.json); they may import
    others beside them. What `repo--module` names lies on the hub."""
    file = directory / "tokenizer_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        classes = (settings.get("auto_map") or {}).get("AutoTokenizer") or []
        named = [classes] if isinstance(classes, str) else [name for name in classes if isinstance(name, str)]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON object with a tokenizer's settings ({error}); restore it") from error
    return sorted({f"{name.split('.')[0]}.py" for name in named if "--" not in name})


def _refuse_missing_code(directory: Path, code: list[str]) -> None:
    for name in code:
        if not (directory / name).is_file():
            raise ValueError(
                f"{directory}: its tokenizer needs {name} (auto_map of tokenizer_config.json), which is not there, so "
                "it cannot be loaded; download the model with its code"
            )


def copy_model_files(source: Path, target: Path) -> None:
    for name in model_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def set_config_dtype(file: Path, config: dict, written: set[torch.dtype]) -> None:
    """Change the dtype in config.json where it no longer says what the weights are; otherwise keep every byte."""
    if len(written) != 1:
        return
    name = dtype_name(*written)
    keys = [key for key in ("torch_dtype", "dtype") if key in config]  # transformers 4 and 5
    if not keys and name != "float32":
        keys = ["dtype" if "rope_parameters" in config else "torch_dtype"]
    if any((config.get(key) or "float32") != name for key in keys):
        text = json.dumps(config | dict.fromkeys(keys, name), indent=2)
        file.write_text(text + "\n", encoding="utf-8")
