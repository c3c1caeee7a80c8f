"""Say where an exported model came from: run.yaml for programs, README.md (a model card) for people."""

import json
from pathlib import Path

import yaml


def write_card(directory: Path, config: dict, provenance: dict) -> None:
    """provenance: what the run knows about itself (its run.yaml); written whole, and the main facts into the card."""
    (directory / "run.yaml").write_text(
        yaml.safe_dump(provenance, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    base = _find(provenance, "base_model", "hf_id") or _path(provenance.get("model"))
    objective = provenance.get("objective")
    facts = {
        "Base model": base,
        "Revision": _find(provenance, "revision", "hf_revision"),
        "Objective": objective if isinstance(objective, str | None) else json.dumps(objective),
        "f(p)": provenance.get("formula"),
        "Training data": _path(provenance.get("data"), "train"),
        "Steps": provenance.get("step"),
        "Versions": _versions(provenance.get("versions")),
        "Git commit": _find(provenance, "git_sha", "git"),
    }
    header = {"library_name": "transformers", "tags": ["nemo_probsft"]}
    if isinstance(base, str):
        header["base_model"] = base
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    card = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {config['model_type']} fine-tuned with a probability-based objective",
        "",
        "Trained with Megatron-Core and exported by nemo_probsft; `run.yaml` is the complete record of the run.",
        "",
        "| | |",
        "|---|---|",
        *rows,
    ]
    (directory / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")


def _find(provenance: dict, *names: str) -> object:
    return next((provenance[name] for name in names if provenance.get(name) is not None), None)


def _path(section: object, key: str = "path") -> object:
    return section.get(key) if isinstance(section, dict) else section


def _versions(versions: object) -> object:
    return (
        ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else versions
    )


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
