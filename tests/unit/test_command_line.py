"""The command line as a user meets it: errors come back in one line with exit code 2, and nothing stays behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from nemo_probsft import config, objectives
from nemo_probsft.__main__ import main
from nemo_probsft.data import records, templates
from nemo_probsft.demo_data import write_random_base, write_tokenizer
from nemo_probsft.objectives import parse_objective
from nemo_probsft.plan.show import preview
from nemo_probsft.run import decisions, prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    write_random_base(directory, seed=0)
    return directory


@pytest.fixture
def good(tmp_path, monkeypatch, model):
    """A recipe that would train, as plain data, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(8)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return {
        "run_dir": "run",
        "model": {"path": str(model)},
        "data": {"train": "train.jsonl", "max_length": 32, "global_batch_size": 4, "micro_batch_size": 2},
        "objective": "p",
        "parallel": {"tensor_model_parallel_size": 2},
        "trainer": {"devices": 2, "max_steps": 1, "precision": "fp32"},
    }


def refused(capsys, recipe: dict, *overrides: str) -> str:
    """The one line that `train` answers with; it must exit with 2 and leave the working directory as it was."""
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(Path().rglob("*"))
    assert main(["train", "recipe.yaml", *overrides]) == 2
    assert sorted(Path().rglob("*")) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nemo-probsft: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("nemo-probsft: ")


BAD_OVERRIDES = {
    "optim.lrr=1e-5": ("optim.lrr", "lr"),
    "objective=focall-2": ("objective", "focall-2", "focal"),
    "objective=OnlyTopP-1.5": ("objective", "1.5", "[0, 1]"),
    "model.path=no/where/to/be/found": ("model.path", "no/where/to/be/found"),
    "data.train=missing.jsonl": ("data.train", "missing.jsonl"),
    "data.micro_batch_size=3": ("micro_batch_size", "3", "4"),
    "parallel.tensor_model_parallel_size=3": ("tensor_model_parallel_size", "3"),
    "optim.lr=fast": ("optim.lr", "fast"),
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_value_is_refused_by_name(capsys, good, override):
    line = refused(capsys, good, override)
    assert all(part in line for part in BAD_OVERRIDES[override]), line


def test_tensor_parallelism_must_divide_the_heads(capsys, good):
    line = refused(capsys, good, "parallel.tensor_model_parallel_size=4", "trainer.devices=4")
    assert "tensor_model_parallel_size" in line
    assert "2 key-value heads" in line
    assert "config.json" in line


def test_pipeline_parallelism_must_divide_the_layers(capsys, good):
    changes = ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2")
    line = refused(capsys, good, *changes)
    assert "pipeline_model_parallel_size" in line
    assert "3 layers" in line


def row(prompt="a", response="b", **others) -> bytes:
    return json.dumps({"prompt": prompt, "response": response, **others}).encode() + b"\n"


BAD_DATA = {
    b"": "recipe.yaml:5: data.train: train.jsonl is empty; give it at least one row",
    b"\n\n": "train.jsonl: has no rows: give a source with at least one",
    row() + b'{"prompt": "a", "resp\n': (
        "train.jsonl line 2: is not JSON (Invalid control character at at character 22): write one object a line"
    ),
    row() + '{"prompt": "caf\xe9", "response": "b"}\n'.encode("latin-1"): (
        "train.jsonl line 2: byte 16 is not UTF-8: save the file as UTF-8"
    ),
    row() + row().decode().encode("utf-16"): "train.jsonl line 2: byte 1 is not UTF-8: save the file as UTF-8",
    b'{"prompt": "a", "answer": "b"}\n': (
        "train.jsonl line 1: has no field 'response': its fields are 'prompt', 'answer'; rename one of them, or set "
        "data.response_key=answer"
    ),
    row() + row(response=None): "train.jsonl line 2: response is null: must be a string",
    row(response=" \n"): "train.jsonl line 1: response is empty: there is no answer to learn; drop the row",
    row(prompt=""): "train.jsonl line 1: its prompt has no tokens: the first answer token needs one before it",
    b'{"prompt": "a", "prompt": "b", "response": "c"}\n': (
        "train.jsonl line 1: is not JSON (field 'prompt' is given twice): write one object a line"
    ),
    row(prompt="a" * 99): (
        "train.jsonl line 1: its prompt of 99 tokens fills max_length 32: raise max_length, or set long_prompts to skip"
    ),
    row() + row(prompt="a" * 1_000_000): (
        "train.jsonl line 2: its prompt of 1000000 tokens fills max_length 32: raise max_length, or set long_prompts "
        "to skip"
    ),
    row(prompt="\ud800"): "train.jsonl line 1: prompt holds half a surrogate pair at character 0: remove it",
    b"\x80\x04\x95cos\nsystem\n": "train.jsonl line 1: byte 1 is not UTF-8: save the file as UTF-8",
    row(): "recipe.yaml:2: data.global_batch_size: 4 is more than the 1 examples of train.jsonl; lower it or add data",
}


@pytest.mark.parametrize("content", BAD_DATA, ids=[message[:60] for message in BAD_DATA.values()])
def test_bad_data_is_refused_with_its_line(capsys, good, content):
    Path("train.jsonl").write_bytes(content)
    assert refused(capsys, good) == BAD_DATA[content]


def test_a_line_of_gigabytes_is_not_read_into_memory(capsys, good, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD", 1000)
    Path("train.jsonl").write_bytes(row() + b"a" * 1001)
    assert refused(capsys, good) == "train.jsonl line 2: is longer than 1000 bytes: write one object a line"


def test_sources_that_are_no_file_of_rows_are_refused(capsys, good):
    Path("empty.parquet").touch()
    Path("text.parquet").write_text("not parquet")
    Path("directory.jsonl").mkdir()
    Path("rows.pkl").write_bytes(b"\x80\x04.")
    sources = {
        "empty.parquet": "data.train: empty.parquet is empty; give it at least one row",
        "directory.jsonl": (
            "data.train: directory.jsonl is a directory without a saved data set; name a .jsonl or .parquet file in it"
        ),
        "rows.pkl": "data.train: rows.pkl has ending '.pkl'; use a .jsonl or .parquet file",
    }
    for name, message in sources.items():
        assert refused(capsys, good, f"data.train={name}") == f"override data.train={name}: {message}"
    assert refused(capsys, good, "data.train=text.parquet").startswith(
        "text.parquet: is not readable as parquet after row 0 ("
    )


def test_duplicate_ids_other_fields_and_10_mb_in_one_line_are_no_error(good):
    Path("train.jsonl").write_bytes(3 * row(id=1, tags=["x"], nested={"a": {}}) + row(id=1, notes="x" * 10_000_000))
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    prepared, _ = prepare.prepare(config.load("recipe.yaml"))
    assert prepared.num_examples == 4


CHATML = (
    "{% for m in messages %}<reserved_0>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<reserved_0>assistant\n{% endif %}"
)
CANARY = "touch pwned"
BAD_TEMPLATES = {
    "{{ raise_exception('no') }}": "raised TemplateError (no)",
    "{{ 1 // 0 }}": "raised ZeroDivisionError (",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": (
        "raised TimeoutError (not done after 2 s)"
    ),
    "{{ 'a' * 10**10 }}": "raised MemoryError (",
    "{% for i in range(99999) %}{{ 'a' * 10**6 }}{% endfor %}": "raised MemoryError (",
    "{{ messages[0].role * (2 ** 24 + 1) }}": "wrote 67108868 characters",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "raised RecursionError (",
    "{{ range(10**9) | list }}": "raised OverflowError (",
    "{% include '/etc/passwd' %}": "raised TypeError (",
    "{{ cycler.__init__.__globals__.os.system('" + CANARY + "') }}": "raised SecurityError (",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "raised SecurityError (",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}": "raised SecurityError (",
    "{{ strftime_now.__globals__['os'].system('" + CANARY + "') }}": "raised SecurityError (",
    "{{ messages.clear() }}": "raised SecurityError (",
    CHATML.replace("<|endoftext|>", "</s>"): "ends an answer with ",
    CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else '' }}"): "rewrites earlier text when it adds ",
}


UNFIT_TEMPLATES = {
    "{% for m in messages %}": "is not Jinja (Unexpected end of template. ",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "is not Jinja (nested too deeply): mend it",
    "{{ messages }}{{ lipsum.__globals__['os'].system('" + CANARY + "') }}": "draws at random, so training and ",
    "{{ messages }}{{ ['a', 'b'] | random }}": "draws at random, so training and evaluation would see other prompts",
    "{{ bos_token }}hello": "does not depend on the messages, it is the same text for every row: give Jinja text",
    "chatml.jinja": '"chatml.jinja" is no Jinja text, which has braces, nor a file (no such file or directory)',
    "named.jinja": "does not depend on the messages, it is the same text for every row: give Jinja text that writes",
}


@pytest.mark.parametrize("template", UNFIT_TEMPLATES, ids=range(len(UNFIT_TEMPLATES)))
def test_a_template_that_can_train_no_row_is_refused_by_its_key(capsys, good, template):
    Path("named.jinja").write_text("{{ 'a template without messages' }}")
    good["data"]["chat_template"] = template
    line = refused(capsys, good)
    assert line.startswith(f"recipe.yaml:2: data.chat_template: {UNFIT_TEMPLATES[template]}")


@pytest.mark.parametrize("template", BAD_TEMPLATES, ids=range(len(BAD_TEMPLATES)))
def test_a_bad_template_is_refused_with_its_row_and_runs_nothing(capsys, good, monkeypatch, template):
    monkeypatch.setattr(templates, "SECONDS", 2.0)
    good["data"]["chat_template"] = CHATML
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    good["data"]["chat_template"] = "{% set turns = messages %}" + template  # or it would be refused before it is run
    line = refused(capsys, good)
    assert line.startswith(f"train.jsonl line 1: the chat template {BAD_TEMPLATES[template]}")
    assert not Path("pwned").exists()


def test_text_of_the_data_is_neither_markup_nor_moves_the_cursor(capsys, good):
    Path("train.jsonl").write_bytes(row("[/b][red]", "\x1b[2Jx") * 4)
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    _, found = prepare.prepare(config.load("recipe.yaml"))
    decisions.show(found)
    shown = capsys.readouterr().out
    assert "[/b][red]" in shown
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown


def smaller_vocabulary(model: Path, size: int) -> None:
    """The model of the fixture with the first `size` rows of its vocabulary, in the directory small."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, "small")
    tensors = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:size].clone()
    save_file(tensors, "small/model.safetensors", {"format": "pt"})
    described = json.loads(Path("small/config.json").read_text())
    Path("small/config.json").write_text(json.dumps(described | {"vocab_size": size}))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(capsys, good, model):
    smaller_vocabulary(model, 300)
    assert refused(capsys, good, "model.path=small").endswith(
        "small: has 320 token ids but the model's vocabulary has 300: take the model's own tokenizer, or resize the "
        "model's embeddings"
    )


def test_the_objective_of_a_recipe_is_parsed_once(good, monkeypatch):
    """Load, check, run.yaml, fingerprint and memory plan all take what `load` parsed."""
    parsed = []

    def counting(spec):
        parsed.append(spec)
        return parse_objective(spec)

    monkeypatch.setattr(objectives, "parse_objective", counting)
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    prepare.prepare(config.load("recipe.yaml"))
    assert parsed == ["p"]
    parsed.clear()
    preview("recipe.yaml", ["run_dir=other"])
    assert parsed == ["p"]


def test_a_label_outside_the_vocabulary_is_refused(capsys, good):
    """The tokenizer's ids fit, but not what a damaged cache of an interrupted run holds."""
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    prepared, _ = prepare.prepare(config.load("recipe.yaml"))
    cache = Path(prepared.examples, "input_ids.npy")
    for token in (320, -1, 2**31 - 1):
        ids = np.load(cache)
        ids[9] = token
        np.save(cache, ids)
        assert refused(capsys, good) == (
            f"example 1 holds the token id {token}, outside of the model's vocabulary of 320: remove the directory "
            "data of the run, and check the tokenizer"
        )


def test_a_trained_run_does_not_go_on_with_other_data(capsys, good):
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    prepare.prepare(config.load("recipe.yaml"))
    Path("train.jsonl").write_bytes(row("1", "2") * 4 + row("3", "4") * 4)
    prepare.prepare(config.load("recipe.yaml"))  # nothing is trained yet
    checkpoint = Path("run/checkpoints/step=1")
    (checkpoint / "context").mkdir(parents=True)
    (checkpoint / "weights").mkdir()
    (checkpoint / "weights" / "metadata.json").touch()
    prepare.prepare(config.load("recipe.yaml"))
    Path("train.jsonl").write_bytes(row("1", "2") * 4 + row("3", "5") * 4)
    assert refused(capsys, good) == (
        "recipe.yaml:5: data.train: train.jsonl or the tokenizer has changed since run was started (24 tokens in 8 "
        "examples then, 24 in 8 now); choose another run_dir, for example run_dir=run-2"
    )


def test_more_steps_than_can_be_counted_are_refused(capsys, good):
    good["trainer"] = {"devices": 2, "epochs": 2**31 - 1, "precision": "fp32"}
    assert refused(capsys, good) == (
        "recipe.yaml:14: trainer.epochs: 2147483647 of 2 steps each are more than 2**31 - 1 steps; lower it"
    )


def test_a_tokenizer_that_cannot_be_read_is_refused(capsys, good, model):
    shutil.copytree(model, "m")
    Path("m/tokenizer.json").write_text('{"model": {"type": "none"}}')
    assert refused(capsys, good, "model.path=m").startswith(
        f"override model.path=m: model.path: {Path.cwd()}/m has no tokenizer that can be read ("
    )
    shutil.copy(model / "tokenizer.json", "m")
    Path("m/tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    Path("m/evil.py").write_text("open('pwned', 'w')\n\nclass T: pass\n")
    prepare.prepare(config.load("recipe.yaml", ["model.path=m"]))
    assert not Path("pwned").exists()


def test_nothing_is_left_of_a_refused_run_wherever_it_was_to_be(capsys, good):
    Path("train.jsonl").write_bytes(row() + b"{")
    for run_dir in ("a/b/c", "./a/../run", "linked/run"):
        Path("elsewhere").mkdir(exist_ok=True)
        if not Path("linked").exists():
            Path("linked").symlink_to("elsewhere")
        assert "line 2" in refused(capsys, good, f"run_dir={run_dir}")
    Path("here").mkdir()
    assert "line 2" in refused(capsys, good, "run_dir=here")


def test_a_run_directory_that_cannot_be_is_refused(capsys, good):
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    place = "override run_dir="
    for name, problem in {
        "dangling": "run_dir: dangling: dangling is a link to nothing; name another",
        "dangling/run": "run_dir: dangling/run: {cwd}/dangling is a link to nothing; name another",
        "loop": "run_dir: loop: loop is a link to nothing; name another",
        "train.jsonl/run": "run_dir: train.jsonl/run: {cwd}/train.jsonl is not a writable directory; name another",
        "~/run": 'run_dir: "~/run": ~ is not expanded; write the directory itself',
        "x" * 256: f'run_dir: "{"x" * 56}... is not a usable path; name one',
    }.items():
        line = refused(capsys, good, f"run_dir={name}")
        assert line.startswith(place)
        assert line.endswith(problem.format(cwd=Path.cwd()))


def test_a_model_without_tokenizer_is_refused(capsys, good, model):
    bare = Path("bare")
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    line = refused(capsys, good | {"model": {"path": "bare"}})
    assert "bare has no tokenizer" in line


def test_several_nodes_need_torchrun(capsys, good):
    line = refused(
        capsys, good, "trainer.num_nodes=2", "parallel.tensor_model_parallel_size=1", "data.micro_batch_size=1"
    )
    assert "torchrun or srun" in line
