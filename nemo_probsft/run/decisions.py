"""What a run is about to do and why, printed before it starts and kept in run.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_probsft import files
from nemo_probsft.config import Recipe, dump

LOG_WIDTH = 140  # columns, where the output is no terminal
PACKAGES = ("torch", "nemo-toolkit", "megatron-bridge", "megatron-core", "transformers", "datasets")


@dataclass(frozen=True)
class Decision:
    """Something the recipe left open or that follows from several keys, with the reason."""

    key: str
    value: str
    reason: str


def show(decisions: list[Decision], title: str = "What will be done") -> None:
    """One row a decision: key, value, reason; below them, over the whole width, values of several lines."""
    rows = [found for found in decisions if "\n" not in found.value]
    table(title, ("key", "value", "why"), [(found.key, found.value, found.reason) for found in rows])
    for found in decisions:
        if "\n" in found.value:
            print(_printable(f"{found.key} ({found.reason}): {found.value}"), flush=True)


def table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table; long cells are folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", show_lines=False)
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for line in lines:
        # Text: what stands in the data is no markup, and moves no cursor.
        drawn.add_row(*(Text(_printable(part)) for part in line))
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(drawn)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def run_yaml(recipe: Recipe, source: Path, engine: str) -> dict[str, Any]:
    """The content of run.yaml: the resolved recipe, the objective it means, and what it ran on."""
    resolved = recipe.resolved
    objective = resolved.objective
    return {
        "recipe": dump(recipe),
        "engine": engine,
        "objective": {"key": objective.key, "formula": objective.formula, "denominator": resolved.denominator},
        "model": {"path": str(source), "id": recipe.model.path, "revision": recipe.model.revision},
        "seed": recipe.trainer.seed,
        "versions": files.versions(PACKAGES),
    }
