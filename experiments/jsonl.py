"""Files of JSON lines, one a finished cell: what a grid continues from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line; [] where there is no file. A kill may have cut the last one off."""
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, over one that a kill cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if done else "wb") as file:
        file.seek(done.rfind(b"\n") + 1)
        file.truncate()
        file.write(json.dumps(line).encode() + b"\n")
