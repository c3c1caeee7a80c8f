"""What README.md shows is true of the code: its recipe loads, its objectives parse, its files and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemo_probsft import config
from nemo_probsft.__main__ import _parser
from nemo_probsft.objectives import parse_objective

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PARAMETERS = {"a": "0.5", "g": "2", "q": "0.2"}


def objective_keys() -> list[str]:
    table = re.search(r"^\| key \|.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    return [key for cell in first_cells for key in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("key", objective_keys())
def test_every_objective_of_the_table_parses(key):
    name, _, parameter = key.rpartition("-")
    objective = parse_objective(f"{name}-{PARAMETERS[parameter]}" if parameter in PARAMETERS else key)
    assert parse_objective(objective.key) == objective


def test_the_recipe_loads(tmp_path):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "my.yaml"
    path.write_text(recipe)
    loaded = config.load(path)
    assert loaded.resolved.objective.key == "GeneralFamily-10"
    assert config.load(path, ["objective=original", "run_dir=runs/my-run-original"]).objective == "original"


def test_the_commands_exist():
    commands = set(re.findall(r"nemo-probsft ([a-z]+)\b(?!-)", TEXT))
    assert {"train", "diagnose", "convert", "eval", "report"} <= commands
    (choices,) = [action.choices for action in _parser()._actions if action.choices]
    assert commands <= set(choices)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE))


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_it_is_short_and_starts_with_the_two_commands():
    lines = TEXT.splitlines()
    assert len(lines) < 200
    assert max(i for i, line in enumerate(lines) if line.startswith("make ")) < 40
