"""The import rules: which room may know which, and what starts fast."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("nemo_probsft", "conversion", "evaluation", "experiments", "benchmarks")
FRAMEWORKS = {"nemo", "megatron", "lightning", "pytorch_lightning"}
OURS = {*TOPS, "tests"}

# Every room, and the rooms it may import; DESIGN: arrows point one way. A new arrow is a decision: add it here, or not.
ARROWS = {
    "version": (),
    "objectives": (),
    "ops": (),
    "pages": (),
    "progress": (),
    "staging": (),
    "command_line": (),
    "loss": ("objectives",),
    "files": ("version",),
    "config": ("objectives",),
    "conversion": ("command_line", "files", "progress", "staging"),
    "data": ("command_line", "files", "progress", "staging"),
    "run": ("command_line", "config", "conversion", "data", "files", "objectives", "progress"),
    "plan": ("config", "conversion", "data", "run"),
    "diagnosis": ("data", "objectives", "pages"),
    "launch": ("command_line", "config", "objectives", "run"),
    "adapters": (),
    "adapters/megatron": ("config", "data", "loss", "objectives", "ops", "run"),
    "adapters/bridge": ("adapters/megatron", "config", "conversion", "data", "files", "objectives", "run"),
    "adapters/nemo": ("adapters/megatron", "config", "conversion", "ops", "run"),
    "commands": (
        *("command_line", "config", "conversion", "data", "diagnosis", "files", "objectives", "plan", "progress"),
        "run",  # whose engines.trainer_of imports one of the adapters in a rank, by its name
    ),
    "evaluation": ("command_line", "data", "files", "progress", "run"),
    "evaluation/report": ("evaluation", "objectives", "pages", "run"),
    "experiments": (
        *("commands", "config", "data", "evaluation", "files", "loss", "objectives", "ops", "pages", "run", "staging"),
    ),
    "benchmarks": (
        *("adapters/bridge", "adapters/megatron", "adapters/nemo", "commands", "config", "conversion", "data", "loss"),
        *("objectives", "ops", "run"),
    ),
}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that the file imports anywhere, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in OURS}


def room(file: Path) -> str:
    """The room of a file: its folder, or one of the single modules; the commands are one room."""
    top, *rest = file.relative_to(ROOT).with_suffix("").parts
    if top == "evaluation":
        return "evaluation/report" if rest[0] == "report" else top
    if top != "nemo_probsft":
        return top
    if len(rest) == 1:
        single = {"__init__": "version"} | {
            name: name for name in ("loss", "files", "progress", "staging", "command_line")
        }
        return single.get(rest[0], "commands")
    return "/".join(rest[:2]) if rest[0] == "adapters" and len(rest) > 2 else rest[0]


def file_of(module: str) -> Path | None:
    """The file that a dotted name of ours leads to; a name in a module leads to the module."""
    parts = module.split(".")
    while parts:
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        parts.pop()
    return None


def arrows_from(path: Path) -> set[str]:
    """Rooms that the file imports. `from package import module` counts as the module, not as its package."""
    targets = {file_of(name) for name in imports(path) if name.split(".")[0] in TOPS}
    packages_only = {
        target
        for target in targets
        if target
        and target.name == "__init__.py"
        and any(other and target.parent in other.parents for other in targets - {target})
    }
    return {room(target) for target in targets - packages_only if target} - {room(path)}


@pytest.mark.parametrize("name", ARROWS)
def test_a_room_imports_what_is_declared_and_nothing_else(name):
    found = {}
    for path in files(*TOPS):
        if room(path) == name:
            for target in arrows_from(path):
                found.setdefault(target, str(path.relative_to(ROOT)))
    undeclared = {target: path for target, path in found.items() if target not in ARROWS[name]}
    assert not undeclared, f"{name} -> rooms that ARROWS does not declare, with a file that imports them"
    assert found.keys() == set(ARROWS[name]), "ARROWS declares more than there is"


def test_every_file_has_a_room_and_the_rooms_have_no_circle():
    assert {room(path) for path in files(*TOPS)} == ARROWS.keys()
    order = list(graphlib.TopologicalSorter(ARROWS).static_order())  # raises CycleError
    for engine in ("nemo", "bridge"):
        assert order.index("objectives") < order.index("loss") < order.index(f"adapters/{engine}")
    assert order.index("run") < order.index("commands")


def test_the_rule_sees_a_circle_and_an_import_inside_a_function(tmp_path, monkeypatch):
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(ARROWS | {"objectives": ("loss",)}).static_order())
    hidden = tmp_path / "nemo_probsft" / "ops" / "hidden.py"
    hidden.parent.mkdir(parents=True)
    hidden.write_text("def f():\n    from nemo_probsft.loss import token_loss\n")
    loss = tmp_path / "nemo_probsft" / "loss.py"
    loss.write_text("")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert arrows_from(hidden) == {"loss"}


@pytest.mark.parametrize("path", files(*TOPS[:4]), ids=lambda path: str(path.relative_to(ROOT)))
def test_frameworks_and_engines_are_known_only_to_their_rooms(path):
    place = path.relative_to(ROOT).parts
    if place[0] != "conversion" and place[:2] != ("nemo_probsft", "adapters"):
        assert not packages(path) & FRAMEWORKS
    if place[:2] != ("nemo_probsft", "launch"):
        assert "nemo_run" not in packages(path)
    if place[0] != "evaluation":
        assert not packages(path) & {"vllm", "lm_eval"}


def test_objectives_ops_and_loss_need_torch_alone():
    for path in [*files("nemo_probsft/objectives", "nemo_probsft/ops"), ROOT / "nemo_probsft" / "loss.py"]:
        assert packages(path) <= {*sys.stdlib_module_names, "torch", "triton", "nemo_probsft"}, path


def test_process_groups_are_arguments_below_the_adapters():
    package = ROOT / "nemo_probsft"
    for path in [*files("nemo_probsft/ops", "nemo_probsft/objectives"), package / "loss.py"]:
        text = path.read_text(encoding="utf-8")
        assert "parallel_state" not in text
        assert "group.WORLD" not in text


def test_the_shared_step_asks_no_framework_for_its_process_groups():
    """NeMo and Bridge hand them in; only `layout`, `hook` and `head` know Megatron's parallel state or layers."""
    shared = ROOT / "nemo_probsft" / "adapters" / "megatron"
    knows = {path.stem for path in shared.glob("*.py") if "parallel_state" in path.read_text(encoding="utf-8")}
    assert knows == {"layout"}


@pytest.mark.parametrize("module", ["nemo_probsft", "nemo_probsft.__main__", "nemo_probsft.rank"])
def test_nothing_heavy_is_imported_with_the_package_or_its_command_line(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "numpy", "transformers", "nemo", "megatron", "rich", "yaml"} & set(loaded.split())
