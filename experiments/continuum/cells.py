"""The finished cells and the tasks' diagnoses: JSON lines in docs/continuum, one a cell and one a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path("docs/continuum")


def read_cells(docs: Path = DOCS) -> list[dict[str, Any]]:
    return _read(docs / "cells.jsonl")


def read_diagnoses(docs: Path = DOCS) -> dict[str, dict[str, Any]]:
    """By task."""
    return {line["task"]: line for line in _read(docs / "tasks.jsonl")}


def add_cell(line: dict[str, Any]) -> None:
    _add(DOCS / "cells.jsonl", line)


def add_diagnosis(line: dict[str, Any]) -> None:
    _add(DOCS / "tasks.jsonl", line)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _add(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
