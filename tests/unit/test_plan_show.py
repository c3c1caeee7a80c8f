"""`train --plan` as a user meets it: what it prints, what it needs, and that it leaves nothing behind."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from nemo_probsft.__main__ import main
from nemo_probsft.demo_data import write_random_base, write_tokenizer
from tests.engines.test_plan_memory import published_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
IN_PAGE = re.findall(r"```\n\$ nemo-probsft (.*?)\n(.*?)```", PAGE, re.DOTALL)
PLANS = sorted((ROOT / "tests" / "support" / "plans").glob("*.txt"))
BLOCKS = IN_PAGE + [
    tuple(path.read_text(encoding="utf-8").removeprefix("$ nemo-probsft ").split("\n", 1)) for path in PLANS
]
ROWS = re.findall(r"^\| (\S+)\.yaml \| `(.*?)` \| ([\d.]+) \|", PAGE, re.MULTILINE)
MODELS = {
    "qwen2.5-math-1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
}


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A working directory with the recipes, and nothing of the models but config.json."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(ROOT / "recipes")
    for name in MODELS.values():
        directory = Path("shapes", name.split("/")[1])
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(published_config(name)))


def everything() -> list[Path]:
    return sorted(Path().rglob("*"))


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command.split()[1] for command, _ in BLOCKS])
def test_the_page_shows_what_is_printed(shapes, capsys, command, shown):
    before = everything()
    assert main(shlex.split(command)) == 0
    printed = capsys.readouterr().out
    assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()
    assert everything() == before


@pytest.mark.parametrize(("recipe", "overrides", "total"), ROWS)
def test_the_table_of_the_page_is_what_is_printed(shapes, capsys, recipe, overrides, total):
    model = f"model.path=shapes/{MODELS[recipe].split('/')[1]}"
    assert main(["train", f"recipes/math/{recipe}.yaml", model, *overrides.split(), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"largest rank │ ([\d.]+) GiB", printed)[1] == total
    assert ("does NOT fit 80 GiB" in printed) == (float(total) > 80)


def test_the_page_has_one_gpu_one_node_and_eight():
    assert len(IN_PAGE) == 1
    assert len(BLOCKS) == 3
    assert len(ROWS) >= 6
    assert {"1", "8", "64"} <= set(re.findall(r"\| (\d+) \| [^|]*\|$", PAGE, re.MULTILINE))


def test_a_model_that_is_not_on_this_disk_is_asked_for_in_one_line(shapes, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("no-cache").absolute()))
    assert main(["train", "--plan", "recipes/math/qwen2.5-7b.yaml", "model.path=Nobody/Qwen9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Nobody/Qwen9 is not on this disk" in line
    assert "hf download Nobody/Qwen9 config.json" in line


def test_a_layout_that_the_model_cannot_have_is_refused(shapes, capsys):
    overrides = ["model.path=shapes/Qwen2.5-7B", "parallel.tensor_model_parallel_size=8"]
    assert main(["train", "recipes/math/qwen2.5-7b.yaml", "--plan", *overrides]) == 2
    assert "does not divide the 28 attention heads" in capsys.readouterr().err


def test_what_stands_behind_the_option_is_an_override_or_refused(shapes, capsys):
    overrides = ["model.path=shapes/Qwen2.5-7B"]
    assert main(["train", "recipes/math/qwen2.5-7b.yaml", "--plan", *overrides, "--plann"]) == 2
    assert "unrecognized arguments: --plann;" in capsys.readouterr().err


def test_where_the_data_is_here_its_tokens_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    write_tokenizer(Path("model"))
    write_random_base(Path("model"), seed=0)
    rows = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(9)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "run_dir": "run",
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "max_length": 32, "global_batch_size": 4, "micro_batch_size": 2},
        "objective": "p",
        "trainer": {"epochs": 3},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = everything()
    assert main(["train", "recipe.yaml", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert everything() == before
    assert re.search(r"│ steps +│ 6 +│ 2 an epoch of 9 examples", printed)
    assert "would stop" not in printed
    mean = int(re.search(r"│ tokens +│ (\d+) a step", printed)[1])
    assert 4 < mean < 4 * 32
    assert "tokenizer is not here" not in printed
    assert "data.packing" not in printed
    assert main(["train", "recipe.yaml", "--plan", "data.packing=true"]) == 0
    packed = capsys.readouterr().out
    assert re.search(
        r"│ data.packing +│ 2 rows a step instead of 4 +│ [\d.]+% padding, without packing [\d.]+%", packed
    )
    assert "with T 64, e 2" in " ".join(packed.split())  # micro-batches of 2 rows of max_length, which examples fill
    assert everything() == before
    Path("train.jsonl").write_text('{"prompt": "1+1="}\n')
    assert main(["train", "recipe.yaml", "--plan"]) == 0
    assert "train would stop here: train.jsonl line 1: has no field 'response'" in capsys.readouterr().out
