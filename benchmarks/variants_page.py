"""docs/variants.md from the lines of benchmarks/variants.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(lines: Path) -> list[dict[str, Any]]:
    """The finished cells; a last line that a kill cut off is left out."""
    if not lines.exists():
        return []
    return [
        json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


def write(lines: Path, page: Path) -> None:
    raise NotImplementedError
