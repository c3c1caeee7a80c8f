"""A tokenizer with code of its own: its files travel, its code runs only where that was asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

import conversion
from conversion.hf_files import model_files, tokenizer_code
from nemo_probsft.__main__ import main
from nemo_probsft.demo_data import write_random_base, write_tokenizer
from tests.support import local_hub

ROOT = Path(__file__).resolve().parents[2]
CODE = {
    "tokenization_loud.py": "from transformers import PreTrainedTokenizerFast\n\nfrom .words import MARK\n\n\n"
    "class LoudTokenizer(PreTrainedTokenizerFast):\n    mark = MARK\n",
    "words.py": "MARK = 'loud'\n",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("loud") / "model"
    write_tokenizer(directory)
    write_random_base(directory, seed=0)
    for name, text in CODE.items():
        (directory / name).write_text(text)
    file = directory / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "tokenization_loud.LoudTokenizer"]}, "tokenizer_class": "LoudTokenizer"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    return directory


@pytest.fixture
def recipe(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n' * 2)
    data = {"train": "train.jsonl", "max_length": 32, "global_batch_size": 2}
    content = {"model": {"path": str(model)}, "data": data, "objective": "p", "trainer": {"precision": "fp32"}}
    Path("recipe.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("engine", ["nemo", "bridge"])
def test_the_code_comes_back_and_loads(model, tmp_path, engine):
    conversion.import_hf(model, tmp_path / "checkpoint", engine=engine)
    conversion.export_hf(tmp_path / "checkpoint", tmp_path / "back")
    assert conversion.verify(model, tmp_path / "back").equal
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back", trust_remote_code=True)
    assert (type(tokenizer).__name__, tokenizer.mark) == ("LoudTokenizer", "loud")


def test_two_models_are_not_equal_where_one_lacks_the_code(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "words.py").unlink()
    (found,) = conversion.verify(model, tmp_path / "copy").differences
    assert (found.name, found.b) == ("words.py", "missing")
    (tmp_path / "copy" / "tokenization_loud.py").unlink()
    with pytest.raises(ValueError, match=r"copy: its tokenizer needs tokenization_loud\.py .* download the model with"):
        conversion.verify(model, tmp_path / "copy")
    with pytest.raises(ValueError, match="it cannot be loaded"):
        conversion.import_hf(tmp_path / "copy", tmp_path / "nemo")


def test_scripts_beside_a_tokenizer_without_code_stay_where_they_are(model, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "train.py").write_text("")
    assert Path("train.py") not in model_files(tmp_path)
    assert {Path(name) for name in CODE} < set(model_files(model))
    config = {"auto_map": {"AutoTokenizer": ["them/repository--far.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_code(tmp_path) == []  # it lies on the hub


def test_it_is_refused_in_one_line_unless_it_was_asked_for(recipe, model, capsys):
    assert main(["train", "recipe.yaml", "--plan"]) == 0
    assert (
        "model.path: " + str(model) + " has a tokenizer with code of its own (tokenization_loud.py), which would run "
        "here; read it, and set model.trust_remote_code: true if you trust it"
    ) in capsys.readouterr().out.splitlines()[-1]
    assert main(["train", "recipe.yaml", "--plan", "model.trust_remote_code=true"]) == 0
    assert "would stop here" not in capsys.readouterr().out


def test_it_is_downloaded_with_a_hub_name(recipe, model, tmp_path):
    shutil.copytree(model, tmp_path / "hub" / "them" / "loud")
    program = (
        "from nemo_probsft import config\nfrom nemo_probsft.run import prepare\n"
        "recipe = config.load('recipe.yaml', ['model.path=them/loud', 'model.trust_remote_code=true'])\n"
        "print(type(prepare.load_tokenizer(recipe, prepare.local_model(recipe, 'nemo'))).__name__)\n"
    )
    with local_hub.serve(tmp_path / "hub") as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "LoudTokenizer\n", done.stderr[-3000:]
