"""The import rules: who may know whom, and what starts fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = {"nemo", "megatron", "lightning", "pytorch_lightning", "nemo_run"}
ENGINES = {"vllm", "lm_eval"}
OURS = {"nemo_probsft", "conversion", "evaluation", "benchmarks", "tests"}


def imports(path: Path) -> set[str]:
    """Every module that the file imports anywhere, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


PACKAGE_FILES = files("nemo_probsft", "conversion", "evaluation")


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=[str(path.relative_to(ROOT)) for path in PACKAGE_FILES])
def test_engines_are_known_only_to_their_adapters(path):
    place = path.relative_to(ROOT).parts
    if place[0] != "conversion" and place[:2] not in (("nemo_probsft", "adapters"), ("nemo_probsft", "launch")):
        assert not packages(path) & TRAINERS
    if place[0] != "evaluation":
        assert not packages(path) & ENGINES


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in OURS}


def test_objectives_know_only_themselves():
    for path in files("nemo_probsft/objectives"):
        assert all(name.startswith("nemo_probsft.objectives") for name in ours(path)), path
        assert packages(path) <= {*sys.stdlib_module_names, "torch", "nemo_probsft"}, path


def test_ops_know_only_themselves():
    for path in files("nemo_probsft/ops"):
        assert all(name.startswith("nemo_probsft.ops") for name in ours(path)), path
        assert packages(path) <= {*sys.stdlib_module_names, "torch", "triton", "nemo_probsft"}, path


def test_the_loss_knows_only_the_objectives():
    assert all(name.startswith("nemo_probsft.objectives") for name in ours(ROOT / "nemo_probsft" / "loss.py"))


def test_process_groups_are_arguments_below_the_adapters():
    package = ROOT / "nemo_probsft"
    for path in [*files("nemo_probsft/ops", "nemo_probsft/objectives"), package / "loss.py"]:
        text = path.read_text(encoding="utf-8")
        assert "parallel_state" not in text
        assert "group.WORLD" not in text


def test_nothing_heavy_is_imported_with_the_package_or_its_command_line():
    code = "import sys, nemo_probsft, nemo_probsft.__main__ as m; m._parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "numpy", "transformers", "nemo", "megatron", "rich", "yaml"} & set(loaded.split())
