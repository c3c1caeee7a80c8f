"""Say where an exported model came from: run.yaml for programs, README.md (a model card) for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_probsft.files import first_line

RECORD = "run.yaml"


def read_record(checkpoint: Path) -> dict | None:
    """The run.yaml of the training that saved `checkpoint` (<run_dir>/checkpoints/<name>); None without one."""
    file = checkpoint.parent.parent / RECORD
    return read_yaml(file) if checkpoint.parent.name == "checkpoints" and file.is_file() else None


def read_yaml(file: Path) -> dict:
    """Raises: ValueError if the file is not one YAML mapping."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: not valid YAML ({first_line(error)}); restore it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a mapping, not a {type(content).__name__}; name the run.yaml of a run")
    return content


def write_card(directory: Path, config: dict, record: dict, checkpoint: str, changes: Sequence[str] = ()) -> None:
    """record: a run's run.yaml, written whole, and its main facts into the card. checkpoint: name of what was exported.
    changes: made to the base model's files by the export itself, in words.

    Facts that the record does not have are left out of the card.
    """
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    (directory / RECORD).write_text(text, encoding="utf-8")
    objective = record.get("objective")
    facts = {
        "Base model": base_model(record),
        "Revision": _get(record, "model", "revision"),
        "Objective": objective if isinstance(objective, str) else _get(record, "objective", "key"),
        "f(p)": _get(record, "objective", "formula"),
        "Denominator": _get(record, "objective", "denominator"),
        "Training data": _get(record, "recipe", "data", "train"),
        "Answers end with": ", ".join(f"`{text}` ({number})" for text, number in end_tokens(record).items()) or None,
        "Changed files": "; ".join(dict.fromkeys([*_changes(record), *changes])) or None,
        "Checkpoint": checkpoint,
        "Seed": record.get("seed"),
        "Versions": ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()) or None,
    }
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["nemo_probsft"]}
    if base_model(record):
        header["base_model"] = base_model(record)
    card = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {config['model_type']} fine-tuned with a probability-based objective",
        "",
        f"Trained with Megatron-Core and exported by nemo_probsft; `{RECORD}` is the complete record of the run.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None),
    ]
    (directory / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")


def base_model(record: dict | None) -> str | None:
    """Hub name, else path, of the model that a run started from."""
    return _get(record, "model", "id") or _get(record, "model", "path")


def end_tokens(record: dict) -> dict[str, int]:
    """Text and id of each token that answers were trained to end with; empty where the record does not say."""
    found = record.get("end_tokens")
    return (
        {str(text): number for text, number in found.items() if type(number) is int} if isinstance(found, dict) else {}
    )


def _changes(record: dict) -> list[str]:
    found = record.get("changed_model_files")
    return [str(change) for change in found] if isinstance(found, list) else []


def _get(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
