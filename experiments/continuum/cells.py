"""The finished cells and the tasks' diagnoses: JSON lines in docs/continuum, one a cell and one a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.jsonl import append, read

DOCS = Path("docs/continuum")


def read_cells(docs: Path = DOCS) -> list[dict[str, Any]]:
    return read(docs / "cells.jsonl")


def read_diagnoses(docs: Path = DOCS) -> dict[str, dict[str, Any]]:
    """By task."""
    return {line["task"]: line for line in read(docs / "tasks.jsonl")}


def add_cell(line: dict[str, Any]) -> None:
    append(DOCS / "cells.jsonl", line)


def add_diagnosis(line: dict[str, Any]) -> None:
    append(DOCS / "tasks.jsonl", line)
