"""Files and versions: what many rooms need and what must have one answer.

Standard library only: the command line, the ranks and the evaluation's environment all import it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SOURCE_ROOT = Path(__file__).resolve().parent.parent  # of nemo_probsft, conversion, evaluation and the recipes


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader or a crash sees either the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """`write_atomically` for one JSON object, indented, with its characters as they are."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of this package with its commit, and of `packages`, "not installed" where they are not."""
    from nemo_probsft import __version__

    found = {"nemo-probsft": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"git": git_commit()}


def git_commit() -> str:
    """Commit of the source tree, "+changes" behind it when it was edited; "unknown" for an installed package."""
    command = ["git", "-C", str(SOURCE_ROOT), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
