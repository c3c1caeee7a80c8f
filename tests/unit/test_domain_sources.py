"""Where the records of a training set come from: files, directories and a hub, sound and broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import datasets
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_probsft.__main__ import main
from nemo_probsft.data import records
from nemo_probsft.data.domains.write import MANIFEST, write_domain
from tests.support import local_hub, published_sets

ROOT = Path(__file__).parents[2]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return published_sets.write_all(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_the_format_of_a_copy_does_not_matter(ending, tmp_path):
    """The original schema of NuminaMath-CoT gives the rows that the authors' copy gives."""
    file = published_sets.write(tmp_path / f"numina{ending}", published_sets.NUMINA_MATH)
    write_domain("math", tmp_path / "a", source=str(file))
    datasets.Dataset.from_list(published_sets.NUMINA_67K).save_to_disk(tmp_path / "saved")
    write_domain("math", tmp_path / "b", source=str(tmp_path / "saved"))
    assert read(tmp_path / "a/train.jsonl") == read(tmp_path / "b/train.jsonl")
    assert len(read(tmp_path / "a/train.jsonl")) == 6


def refused(capsys, *arguments) -> str:
    """The one line that `data prepare` answers with; it must exit with 2 and leave nothing."""
    before = sorted(Path.cwd().rglob("*"))
    assert main(["data", "prepare", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert sorted(Path.cwd().rglob("*")) == before
    return lines[0].removeprefix("nemo-probsft: ")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


NO_BRACKET = '{"instruction": "a", "output": "b"}'
FAULTS = {
    "renamed field": (
        "m.jsonl",
        '{"prompt": "a", "answer": "b"}',
        "has no field 'distilled_answer_string'; its fields",
    ),
    "no object": ("m.jsonl", "[1]", "m.jsonl line 1: has no field 'prompt'; its fields are none: it is no object"),
    "not JSON": ("m.jsonl", '{"prompt": "a"', "m.jsonl line 1: is not JSON (Expecting ',' delimiter"),
    "not UTF-8": ("m.jsonl", b'{"prompt": "\xff"}', "m.jsonl line 1: byte 13 is not UTF-8: save the file as UTF-8"),
    "empty": ("m.jsonl", "", "m.jsonl: is empty (0 bytes)"),
    "blank lines": ("m.jsonl", "\n\n", "m.jsonl: has no records"),
    "empty list": ("m.json", "[]", "m.json: has no records"),
    "no list": ("m.json", NO_BRACKET, "m.json object 1: is not readable as a JSON list (no [ at its beginning)"),
    "list not ended": (
        "m.json",
        f"[{NO_BRACKET},",
        "m.json object 2: is not readable as a JSON list (no ] at its end)",
    ),
    "no parquet": ("m.parquet", "PAR1", "m.parquet: is not readable as parquet"),
    "unknown ending": ("m.csv", "a,b", "m.csv: unknown ending '.csv': must be one of .parquet, .jsonl, .json"),
    "all dropped": (
        "m.jsonl",
        '{"prompt": "a", "distilled_answer_string": " "}',
        "no row is left of part 'train', dropped: {'empty distilled_answer_string': 1}",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_in_one_line(fault, here, capsys):
    name, content, message = FAULTS[fault]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(capsys, "medical", "--output", "new/out", "--source", name)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choices": {"text": ["a"], "label": None}}, "options without letters"),
        ({"choices": {"text": ["a"], "label": ["A", "B"]}}, "options without letters"),
        ({"answerKey": "E"}, "the answer is none of the options"),
        ({"answerKey": None}, "empty answerKey"),
        ({"answerKey": 1}, "answerKey is no text"),
        ({"question_stem": "\ud800"}, "half a surrogate pair in question_stem"),
    ],
)
def test_a_question_that_cannot_be_asked_is_dropped_for_a_reason(changes, reason, tmp_path):
    (good,) = published_sets.openbookqa("train", 1)
    for split in ("train", "validation"):
        published_sets.write(tmp_path / f"{split}.jsonl", [good | changes, good])
    manifest = json.loads(write_domain("openbookqa_noisy", tmp_path / "out", source=str(tmp_path)).read_text())
    assert [part["dropped"] for part in manifest["sources"]] == [{reason: 1}] * 2
    assert manifest["files"]["train.jsonl"] | {"bytes": 0, "sha256": ""} == {
        "rows": 2,
        "duplicate_rows": 1,
        "bytes": 0,
        "sha256": "",
    }


def test_other_mistakes_are_refused_in_one_line(here, capsys, copies):
    answer = refused(capsys, "medcial", "--output", "out")
    assert answer == "unknown domain 'medcial': did you mean medical?"
    assert "must be one of math, medical" in refused(capsys, "x", "--output", "out")
    Path("taken").mkdir()
    answer = refused(capsys, "coding", "--output", "taken", "--source", copies["coding"])
    assert answer.startswith("taken: exists already and is never overwritten")
    assert "no such file or directory" in refused(capsys, "coding", "--output", "out", "--source", "./no.jsonl")
    answer = refused(capsys, "instruction", "--output", "out", "--source", copies["coding"])
    assert "has the parts magpie, evol_instruct: give a directory" in answer
    answer = refused(capsys, "low_resource", "--output", "out", "--source", copies["math"])
    assert "has no 'mar': must hold one of mar.parquet, mar.jsonl, mar.json, mar-*.parquet" in answer
    published_sets.write(Path("part/train-00001-of-00003.parquet"), published_sets.NUMINA_MATH)
    answer = refused(capsys, "math", "--output", "out", "--source", "part")
    assert answer == "part: shard 00000 of 00003 is missing: copy it too"
    answer = refused(capsys, "instruction", "--output", "out", "--source", copies["instruction"], "--tokenizer", "part")
    assert answer.startswith("tokenizer part: could not be loaded")
    answer = refused(capsys, "coding", "--output", "out", "--source", copies["coding"], "--tokenizer", "part")
    assert "leave the tokenizer out" in answer
    answer = refused(capsys, "coding", "--output", "out", "--source", copies["coding"], "--revision", "main")
    assert "comes from no hub: leave the revision out" in answer
    assert "figfont comes from no hub" in refused(capsys, "figfont", "--output", "out", "--revision", "main")
    assert "nothing of figfont is drawn at random" in refused(capsys, "figfont", "--output", "out", "--seed", 1)
    assert "limit is 0" in refused(capsys, "coding", "--output", "out", "--source", copies["coding"], "--limit", 0)


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory, copies):
    """Runs `data prepare` with a hub that has MURI-IT, with its configurations, and nothing else."""
    root = tmp_path_factory.mktemp("hub")
    repository = root / "hub" / "akoksal" / "muri-it-language-split"
    shutil.copytree(copies["low_resource"], repository)
    configs = [
        {"config_name": code, "data_files": [{"split": "train", "path": f"{code}/train-*"}]}
        for code in published_sets.LANGUAGES
    ]
    (repository / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    with local_hub.serve(root / "hub") as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(root / "home")}
        environment |= {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}

        def run(*arguments) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "nemo_probsft", "data", "prepare", *map(str, arguments)]
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        yield run


def test_a_hub_data_set_gives_the_rows_of_its_copy_and_its_commit(from_hub, copies, tmp_path):
    done = from_hub("low_resource", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    write_domain("low_resource", tmp_path / "copy", source=str(copies["low_resource"]))
    assert read(tmp_path / "out/train.jsonl") == read(tmp_path / "copy/train.jsonl")
    sources = json.loads((tmp_path / "out" / MANIFEST).read_text())["sources"]
    assert [(part["config"], part["revision"]) for part in sources] == [
        (code, local_hub.COMMIT) for code in published_sets.LANGUAGES
    ]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("UCSC-VLAA/m23k-tokenized", ["medical"]),
        ("akoksal/muri-it-language-split", ["low_resource", "--revision", "v7"]),
        ("akoksal/muri-it-language-split", ["low_resource", "--revision", "f" * 40]),
        ("akoksal/muri-it-language-split", ["openbookqa", "--source", "akoksal/muri-it-language-split"]),
    ],
    ids=["no such set", "no such tag", "no such commit", "no such configuration"],
)
def test_a_hub_data_set_that_cannot_be_had_is_one_line(from_hub, name, arguments, tmp_path):
    done = from_hub(*arguments, "--output", tmp_path / "a" / "out")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # above it, `datasets` may say what it found in the cache instead
    assert line.startswith(f"nemo-probsft: {name}: split 'train' could not be loaded (")
    assert "local copy" in line
    assert not (tmp_path / "a").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", "}", "{[,]"]),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=4), value, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=4), max_size=6), st.sampled_from([None, 1]))
def test_a_json_list_is_read_in_blocks_as_json_reads_it_at_once(tmp_path_factory, objects, indent):
    file = tmp_path_factory.getbasetemp() / "list.json"
    file.write_text(json.dumps(objects, indent=indent, ensure_ascii=bool(indent)), encoding="utf-8")
    for block in (1, 7, 1 << 20):
        records.BLOCK = block
        assert [record.fields for record in records.read_file(file)] == objects
    records.BLOCK = 1 << 20


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_memory_does_not_grow_with_the_source(ending, tmp_path):
    rows = [{"problem": f"{i} " + "x" * 3000, "solution": "y" * 1000, "lang": "python"} for i in range(6000)]
    file = published_sets.write(tmp_path / f"big{ending}", rows)
    if ending == ".parquet":
        published_sets.parquet.write_table(published_sets.pa.Table.from_pylist(rows), file, row_group_size=1000)
    del rows
    size = 6000 * 4000
    tracemalloc.start()
    write_domain("coding", tmp_path / "out", source=str(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out/train.jsonl").stat().st_size > size
    assert peak < size / 2
