"""What README.md shows is true: its Python runs, its recipe loads, its files, commands and figures exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import weights_figure
from nemo_probsft import config
from nemo_probsft.diagnosis.region import SHORTLISTS, STRONG, WEAK
from nemo_probsft.objectives import OBJECTIVE_KEYS, parse_objective

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
OBJECTIVES_PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
PARAMETERS = {"a": "0.5", "g": "2", "q": "0.2"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def documented_keys() -> list[str]:
    table = re.search(r"^\| key \|.*?\n\n", OBJECTIVES_PAGE, re.MULTILINE | re.DOTALL)[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    return [key for cell in first_cells for key in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("key", documented_keys())
def test_every_objective_of_the_table_parses(key):
    name, _, parameter = key.rpartition("-")
    objective = parse_objective(f"{name}-{PARAMETERS[parameter]}" if parameter in PARAMETERS else key)
    assert parse_objective(objective.key) == objective


def test_the_table_has_every_key():
    documented = {key.partition("-")[0] for key in documented_keys()}
    assert documented == {key.partition("-")[0] for key in OBJECTIVE_KEYS} - {"Unlikehood"}  # without a threshold


def test_the_python_runs_and_gives_a_gradient():
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    assert names["num_tokens"] == 32
    assert names["logits"].grad.abs().sum() > 0
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) <= 8


def test_the_recipe_loads(tmp_path):
    (recipe,) = blocks("yaml")
    path = tmp_path / "my.yaml"
    path.write_text(recipe)
    assert config.load(path).resolved.objective.key == "GeneralFamily-10"
    assert config.load(path, ["objective=original", "run_dir=runs/my-run-original"]).objective == "original"


def test_the_commands_exist():
    commands = set(re.findall(r"(?<=nemo-probsft )([a-z]+(?:-[a-z]+)?)", TEXT)) - {"nemo-probsft"}
    assert {"train", "diagnose", "sweep", "one-click", "data"} <= commands
    line = [sys.executable, "-m", "nemo_probsft", "--help"]
    help_text = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert commands <= set(re.findall(r"^ +([a-z]+(?:-[a-z]+)?)\b", help_text, re.MULTILINE))


def test_the_targets_and_recipes_exist():
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE))
    for recipe in re.findall(r"recipes/[\w./-]+\.yaml", TEXT):
        assert (ROOT / recipe).exists(), recipe


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith(("http", "../../actions")):  # on GitHub, the pages of the workflows
            assert (ROOT / target).exists(), target


def test_the_decision_table_is_that_of_the_diagnosis():
    assert f"above {STRONG}" in TEXT
    assert f"below {WEAK}" in TEXT
    rows = re.findall(r"^\| (above|below|0\.\d+ to) .*\| (`.*) \|$", TEXT, re.MULTILINE)
    for (_, cell), region in zip(rows, ("strong", "intermediate", "weak"), strict=True):
        shortlist = [key for key in SHORTLISTS[region] if key != "adaptive-by-label"]
        swept = re.findall(r"`([^`]+)`", cell)
        assert swept == [key for key in shortlist if region != "strong" or key != "original"]


def test_the_picture_is_what_the_objectives_give(tmp_path):
    weights_figure.draw(tmp_path / "weights.svg")
    assert (tmp_path / "weights.svg").read_bytes() == weights_figure.TARGET.read_bytes()


def test_it_is_short_and_starts_with_why_and_how_to_install():
    lines = TEXT.splitlines()
    assert len(lines) < 150
    assert lines.index("## Why") < lines.index("## Install") < 40
    assert max(i for i, line in enumerate(lines) if line.startswith("make ")) < 70
