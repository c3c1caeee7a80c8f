"""Keys of a recipe's data that are more than a value: a list of files, and a chat template that stands in a file."""

import json
from pathlib import Path

import pytest

from nemo_probsft import config
from nemo_probsft.config import SourceConfig, strictyaml

TEMPLATE = "{% for m in messages %}{{ m.content }}<|endoftext|>\n{% endfor %}"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(*overrides: str, **data) -> config.Recipe:
    content = {"model": {"path": "m"}, "data": {"train": "a.jsonl", **data}, "objective": "p"}
    Path("r.yaml").write_text(json.dumps(content))  # YAML, too, and in one line
    return config.load("r.yaml", overrides)


def refusal(*overrides: str, **data) -> str:
    with pytest.raises(ValueError, match=r".") as info:
        load(*overrides, **data)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_a_list_of_files_and_one_file_are_sources_alike():
    assert load().data.sources == (SourceConfig("a.jsonl"),)
    given = ["a.jsonl", {"path": "b.jsonl", "weight": 0.5}, {"path": "o/c", "split": "sft", "max_rows": 7}]
    recipe = load(train=given)
    expected = (SourceConfig("a.jsonl"), SourceConfig("b.jsonl", weight=0.5), SourceConfig("o/c", "sft", max_rows=7))
    assert recipe.data.sources == expected
    assert recipe.data.name == "a.jsonl, b.jsonl, o/c"
    assert load("data.train=[a.jsonl, {path: b.jsonl, weight: 0.5}]").data.sources == expected[:2]
    assert load("data.train=z.jsonl", train=given).data.sources == (SourceConfig("z.jsonl"),)


def test_a_list_survives_being_written_and_read_as_run_yaml_does():
    recipe = load(train=["a.jsonl", {"path": "b.jsonl", "weight": 2}])
    text = strictyaml.dump({"recipe": config.dump(recipe)})
    then = strictyaml.plain(strictyaml.parse(text, str))["recipe"]
    assert then == config.dump(recipe)
    assert config.load(then).data == recipe.data
    assert json.dumps(config.dump(recipe))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "r.yaml:1: data.train: [] names no data; give at least one file or data set"),
        ({"path": "a"}, 'r.yaml:1: data.train: {"path": "a"} is not allowed; expected text or a list'),
        (None, "r.yaml:1: data.train: null is not allowed; expected text or a list"),
        ([None], "r.yaml:1: data.train[0]: null is not allowed; expected text or a mapping"),
        (["a", ["b"]], 'r.yaml:1: data.train[1]: ["b"] is not allowed; expected text or a mapping'),
        ([3], 'r.yaml:1: data.train[0]: 3 is not text; put it in quotes: "3"'),
        ([{"weight": 1}], "r.yaml:1: data.train[0].path: missing; give a .jsonl or .parquet file, or the name of a"),
        ([{"path": "a", "wieght": 1}], "r.yaml:1: data.train[0].wieght: unknown key; did you mean data.train[0].weig"),
        ([{"path": "a", "weight": 0}], "r.yaml:1: data.train[0].weight: 0 is out of range; use a number above 0 and"),
        ([{"path": "a", "weight": 1e300}], "r.yaml:1: data.train[0].weight: 1e+300 is out of range; use a number"),
        ([{"path": "a", "max_rows": 0}], "r.yaml:1: data.train[0].max_rows: 0 is out of range; use a number from 1"),
        (["~/a.jsonl"], 'r.yaml:1: data.train: "~/a.jsonl": ~ is not expanded; write the directory itself'),
    ],
)
def test_a_list_that_names_no_data_is_refused(train, message):
    assert refusal(train=train).startswith(message)


def test_a_key_of_an_entry_is_not_suggested_where_a_section_has_it():
    Path("r.yaml").write_text("model: {path: m}\ndata: {train: a.jsonl}\nobjective: p\nsplit: x\n")
    with pytest.raises(ValueError, match=r"split: unknown key; did you mean data\.split\?"):
        config.load("r.yaml")


def test_the_file_of_a_template_becomes_a_part_of_the_recipe():
    Path("templates").mkdir()
    Path("templates/mine.jinja").write_bytes(b"\xef\xbb\xbf" + TEMPLATE.encode())
    recipe = load(chat_template="templates/mine.jinja")
    assert recipe.data.chat_template == TEMPLATE == config.dump(recipe)["data"]["chat_template"]
    assert load("data.chat_template=templates/mine.jinja").data.chat_template == TEMPLATE
    assert load(chat_template=TEMPLATE).data.chat_template == TEMPLATE
    written = strictyaml.dump(config.dump(recipe))
    assert strictyaml.plain(strictyaml.parse(written, str))["data"]["chat_template"] == TEMPLATE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chatml.jinja", '"chatml.jinja" is no Jinja text, which has braces, nor a file (no such file or directory)'),
        ("folder", '"folder" is no Jinja text, which has braces, nor a file (is a directory); give one'),
        ("x" * 300, "is no Jinja text, which has braces, nor a file (file name too long); give one"),
        ("two\nlines", "is no Jinja text, which has braces, nor the name of a file; give one of them"),
        ("latin.jinja", "latin.jinja: byte 0 is not UTF-8; save the template as UTF-8 text"),
        ("long.jinja", "long.jinja: is longer than 1048576 bytes; name a template, which is a page"),
        ("dollar.jinja", "interpolation is not supported; write the value itself"),
        ("empty.jinja", '"" is empty; write something, or remove the key'),
    ],
)
def test_what_is_no_template_is_refused_by_its_key(name, message):
    Path("folder").mkdir()
    Path("latin.jinja").write_bytes(b"\xe9")
    Path("long.jinja").write_text("{{ messages }}" * 80_000)
    Path("dollar.jinja").write_text("${{ messages }}")
    Path("empty.jinja").touch()
    found = refusal(chat_template=name)
    assert found.startswith("r.yaml:1: data.chat_template: ")
    assert message in found


def test_what_is_supervised_is_one_of_three():
    assert load().data.supervise == "answers"
    assert load(supervise="last").data.supervise == "last"
    assert "did you mean flagged?" in refusal(supervise="flaged")
