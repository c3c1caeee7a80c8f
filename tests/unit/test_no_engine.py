"""What lies under tests/unit imports no engine, runs no code that does, and starts no training."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.conftest import ENGINES

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path != Path(__file__)]
STARTERS = {"train", "diagnose", "sweep", "one-click", "demo", "eval"}  # commands of ours that start an engine


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module named in an import, however deep it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def words(tree: ast.AST) -> Iterator[list[str]]:
    """The constant strings of every list and tuple, as a command line for a subprocess has them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple):
            parts = [part.value for part in node.elts if isinstance(part, ast.Constant)]
            yield [part for part in parts if isinstance(part, str)]


def scripts(tree: ast.AST) -> Iterator[ast.AST]:
    """Strings that are Python code with an import, as for `python -c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                yield ast.parse(textwrap.dedent(node.value))
            except SyntaxError:
                continue  # prose


def problems(source: str) -> set[str]:
    tree = ast.parse(source)
    names = {name for part in (tree, *scripts(tree)) for name in imported(part)}
    found = {name for name in names if name.split(".")[0] in ENGINES or name.endswith(".evaluation_python")}
    for line in words(tree):
        if "-m" in line and "nemo_probsft" in line:
            found |= STARTERS & set(line)
    return found


def with_support(path: Path) -> set[Path]:
    """The file and the modules of tests/support that it imports, and that those import."""
    found, new = set(), {path}
    while new:
        found |= new
        names = {name for file in new for name in imported(ast.parse(file.read_text(encoding="utf-8")))}
        files = {ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("tests.support.")}
        new = {file for file in files if file.exists()} - found
    return found


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_nothing_here_needs_an_engine(path):
    assert not problems(path.read_text(encoding="utf-8"))
    for file in with_support(path):
        names = set(imported(ast.parse(file.read_text(encoding="utf-8"))))
        assert not {name for name in names if name.split(".")[0] in ENGINES}, file


@pytest.mark.parametrize(
    "source",
    [
        "def late():\n    from megatron.core import parallel_state",
        "import lightning.pytorch as pl",
        'run([sys.executable, "-c", "import sys\\nfrom nemo.collections import llm"])',
        'run([sys.executable, "-m", "nemo_probsft", "train", recipe])',
        "from nemo_probsft.run.eval_env import evaluation_python",
    ],
)
def test_what_needs_one_is_seen(source):
    assert problems(source)
