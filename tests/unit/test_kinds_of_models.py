"""Every command with every kind of model: it works, or one line says what to name instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import conversion
from nemo_probsft import sweep
from nemo_probsft.__main__ import main
from nemo_probsft.demo_data import write_random_base, write_tokenizer

STEP, ITERATION = "run/checkpoints/step=3", "brun/checkpoints/iter_0000004"
MODELS = ("hf", "nemo", "bridge", "bridge/iter_0000000", STEP, ITERATION, "brun/checkpoints")
OTHERS = {
    "run": f"name one of them, for example {STEP}",
    "run/checkpoints": f"name one of them, for example {STEP}",
    "brun": f"name one of them, for example {ITERATION}",
    "nowhere": "nowhere",
    "hf/model.safetensors": "not a directory",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    write_tokenizer(folder / "hf")
    write_random_base(folder / "hf", seed=0)
    for target, engine in (("nemo", "nemo"), (STEP, "nemo"), ("bridge", "bridge"), ("other", "bridge")):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        conversion.import_hf(folder / "hf", folder / target, engine=engine)
    (folder / ITERATION).parent.mkdir(parents=True)
    shutil.move(folder / "other" / "iter_0000000", folder / ITERATION)
    (folder / "brun" / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("4")
    rows = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "run_dir": "out",
        "model": {"path": "hf"},
        "data": {"train": "train.jsonl", "max_length": 32, "global_batch_size": 4},
        "objective": "p",
        "trainer": {"max_steps": 1, "precision": "fp32"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


COMMANDS = {
    "train": ("train", "recipe.yaml", "--plan", "model.path={}"),
    "sweep": ("sweep", "recipe.yaml", "--plan", "--objectives", "p", "--tasks", "demo", "model.path={}"),
    "import": ("convert", "import", "{}", "made"),
    "export": ("convert", "export", "{}", "made"),
    "verify": ("convert", "verify", "{}", "hf"),
}


def run(capsys, command: str, model: str) -> tuple[int, str, str]:
    code = main([part.format(model) for part in COMMANDS[command]])
    shutil.rmtree("made", ignore_errors=True)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_taken(folder, monkeypatch, capsys, command, model):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, command, model)
    if (command, model) == ("export", "hf"):
        assert (code, err.splitlines()[-1]) == (
            2,
            f"nemo-probsft: {folder / 'hf'}: a Hugging Face directory already; name a checkpoint",
        )
        return
    assert code == 0, err
    assert "would stop here" not in out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("model", OTHERS)
def test_what_is_no_model_is_answered_with_what_to_name(folder, monkeypatch, capsys, command, model):
    monkeypatch.chdir(folder)
    code, _, err = run(capsys, command, model)
    assert code == 2
    assert OTHERS[model] in err.splitlines()[-1].replace(f"{folder}/", "")
    assert not Path("made").exists()


@pytest.mark.parametrize("model", ["hf", "nemo"])
def test_a_cell_has_its_directory_whatever_it_starts_from(folder, monkeypatch, tmp_path, model):
    """Its log lies there, also where no base was imported beside it."""
    monkeypatch.chdir(folder)
    planned = sweep.plan_sweep(
        "recipe.yaml", [f"model.path={model}", f"run_dir={tmp_path}/sweep"], "p", sweep.Options("demo")
    )
    base = sweep.import_base(planned.recipe)
    (cell,) = planned.cells
    sweep.link_base(base, cell.run_dir)
    assert cell.run_dir.is_dir()
    assert (cell.run_dir / "base").is_symlink() == (model == "hf")


def test_a_report_names_the_path_that_is_not_there(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["report", "run", "--results", "nowhere"]) == 2
    assert "nowhere does not exist; name what `train`, `eval` or `diagnose` wrote" in capsys.readouterr().err
