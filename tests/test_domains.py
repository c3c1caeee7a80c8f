"""The training sets of the domains, made from tiny local copies in the published schemas."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import datasets
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nemo_probsft import data, prompts
from nemo_probsft.__main__ import main
from nemo_probsft.demo_data import write_tokenizer
from nemo_probsft.domains import DOMAINS, Part, figfont, records, sources
from nemo_probsft.domains import prepare as domains_prepare
from nemo_probsft.domains.prepare import MANIFEST, prepare
from tests import local_hub, published_sets

ROOT = Path(__file__).parents[1]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return published_sets.write_all(tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, copies, tokenizer):
    """Every domain, made through the command line: domain -> directory."""
    root = tmp_path_factory.mktemp("data")
    for name in DOMAINS:
        arguments = ["--source", str(copies[name])] if name in copies else ["--limit", "300"]
        if DOMAINS[name].max_tokens:
            arguments += ["--tokenizer", str(tokenizer)]
        assert main(["data", "prepare", name, "--output", str(root / name), *arguments]) == 0
    return {name: root / name for name in DOMAINS}


def test_rows_are_the_published_records_under_the_shared_prompts(prepared):
    expected = {
        "math": [(prompts.boxed(r["problem"]), r["solution"]) for r in published_sets.NUMINA_MATH],
        "medical": [
            (
                f"{published_sets.QUESTION}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
                "Scurvy is a lack of ascorbic acid.\n\nAnswer: C",  # without the reasoning
            )
        ],
        "instruction": [(r["input"], r["output"]) for r in published_sets.MAGPIE]
        + [(r["instruction"], r["output"]) for r in (published_sets.EVOL_INSTRUCT[0], published_sets.EVOL_INSTRUCT[2])],
        "coding": [(published_sets.MAGICODER[0]["problem"], published_sets.MAGICODER[0]["solution"])],
        "low_resource": [
            (r["input"], r["output"]) for code in published_sets.LANGUAGES for r in published_sets.muri_it(code)
        ],
    }
    for name, rows in expected.items():
        assert [(row["prompt"], row["response"]) for row in read(prepared[name] / "train.jsonl")] == rows, name
    row = read(prepared["openbookqa"] / "train.jsonl")[1]
    assert row == {
        "prompt": "Please complete the following multiple choice question.\nQuestion: Which is number 1 of train?\n"
        "Options:\nA. 1.0\nB. 1.1\nC. 1.2\nD. 1.3",
        "response": "B",
    }


def test_train_takes_every_set_as_it_is(prepared, tokenizer, tmp_path):
    for name, directory in prepared.items():
        rows = directory / "train.jsonl"
        examples = data.prepare(rows, AutoTokenizer.from_pretrained(tokenizer), tmp_path, max_length=10_000)
        dataset = data.TokenizedDataset.load(examples)
        assert len(dataset) == len(read(rows)) > 0, name
        end_tokens = len(dataset)
        answers = sum(len(row["response"].encode()) for row in read(rows))
        assert dataset.summary.num_target_tokens == answers + end_tokens, name


def test_manifest_accounts_for_every_record(prepared, tokenizer):
    for name, directory in prepared.items():
        manifest = json.loads((directory / MANIFEST).read_text())
        assert [part["part"] for part in manifest["sources"]] == [part.name for part in DOMAINS[name].parts]
        for part in manifest["sources"]:
            assert part["rows"] + sum(part["dropped"].values()) == part["chosen"] <= part["records"]
        assert sum(part["rows"] for part in manifest["sources"]) == sum(f["rows"] for f in manifest["files"].values())
        for file, facts in manifest["files"].items():
            content = (directory / file).read_bytes()
            assert facts["rows"] == content.count(b"\n")
            assert facts["bytes"] == len(content)
            assert facts["sha256"] == subprocess.check_output(["sha256sum", directory / file]).split()[0].decode()
    manifest = json.loads((prepared["instruction"] / MANIFEST).read_text())
    assert manifest["sources"][1]["dropped"] == {"empty output": 1, "too many tokens": 1}
    assert manifest["tokenizers"] == [str(tokenizer)]
    manifest = json.loads((prepared["medical"] / MANIFEST).read_text())
    assert manifest["sources"][0]["dropped"] == {"empty distilled_answer_string": 1}
    assert list(manifest["sources"][0]["files"]) == ["train.parquet"]
    assert manifest["steps_in_the_paper"] == 91
    assert manifest["versions"]["datasets"] == datasets.__version__


def test_the_same_arguments_write_the_same_bytes(prepared, copies, tokenizer, tmp_path):
    for name in DOMAINS:
        again = prepare(
            name,
            tmp_path / name,
            source=str(copies[name]) if name in copies else None,
            limit=None if name in copies else 300,
            tokenizers=[str(tokenizer)] if DOMAINS[name].max_tokens else [],
        ).parent
        assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in prepared[name].iterdir())
        for path in again.iterdir():
            assert path.read_bytes() == (prepared[name] / path.name).read_bytes()


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_the_format_of_a_copy_does_not_matter(ending, tmp_path):
    """The original schema of NuminaMath-CoT gives the rows that the authors' copy gives."""
    file = published_sets.write(tmp_path / f"numina{ending}", published_sets.NUMINA_MATH)
    prepare("math", tmp_path / "a", source=str(file))
    datasets.Dataset.from_list(published_sets.NUMINA_67K).save_to_disk(tmp_path / "saved")
    prepare("math", tmp_path / "b", source=str(tmp_path / "saved"))
    assert read(tmp_path / "a/train.jsonl") == read(tmp_path / "b/train.jsonl")
    assert len(read(tmp_path / "a/train.jsonl")) == 6


def test_more_records_than_the_paper_took_are_drawn_as_datasets_draws_them(tmp_path, monkeypatch):
    """The paper's code: `dataset.shuffle(seed=42).select(range(70000))`."""
    few = {"magpie": Part("train", records.magpie, num_sampled=5)}
    monkeypatch.setitem(DOMAINS, "few", domains_prepare.Domain((few["magpie"],)))
    file = published_sets.write(tmp_path / "magpie.parquet", published_sets.MAGPIE)
    drawn = datasets.Dataset.from_list(published_sets.MAGPIE).shuffle(seed=42).select(range(5))
    prepare("few", tmp_path / "out", source=str(file))
    rows = {row["prompt"] for row in read(tmp_path / "out/train.jsonl")}
    assert rows == set(drawn["input"])
    prepare("few", tmp_path / "other", source=str(file), seed=1)
    assert {row["prompt"] for row in read(tmp_path / "other/train.jsonl")} != rows


def test_noise_flips_the_answers_that_the_paper_flips_and_no_other(prepared):
    clean, noisy = read(prepared["openbookqa"] / "train.jsonl"), read(prepared["openbookqa_noisy"] / "train.jsonl")
    assert [row["prompt"] for row in clean] == [row["prompt"] for row in noisy]
    flipped = {i for i, (a, b) in enumerate(zip(clean, noisy, strict=True)) if a["response"] != b["response"]}
    assert flipped == set(random.Random(42).sample(range(40), 12))  # of the 40 of `train`, none of `validation`
    assert {row["response"] for row in noisy} <= set("ABCD")
    manifest = json.loads((prepared["openbookqa_noisy"] / MANIFEST).read_text())
    assert [part["wrong_answers"] for part in manifest["sources"]] == [12, 0]


def test_wrong_letters_are_uniform():
    wrong = domains_prepare._wrong_letters(DOMAINS["openbookqa_noisy"].parts[0], 100_000, 0)
    counts = [list(wrong.values()).count(k) for k in range(3)]
    assert sum(counts) == 30_000
    assert all(abs(count - 10_000) < 4 * (30_000 * 2 / 9) ** 0.5 for count in counts)


def test_openbookqa_test_items_are_copied_for_the_evaluation(prepared):
    assert read(prepared["openbookqa"] / "openbookqa.jsonl") == published_sets.openbookqa("test", 5)


def test_puzzles_do_not_depend_on_the_order_of_the_font_directory(monkeypatch):
    """reasoning_gym takes the order of the file system; its first use in this process may have sorted it already."""
    from reasoning_gym.cognition import figlet_fonts

    puzzles = list(figfont.puzzles(range(20)))
    fonts = [*figlet_fonts.OK_FONTS, "a font of another package"]
    random.Random(0).shuffle(fonts)
    monkeypatch.setattr(figlet_fonts, "OK_FONTS", fonts)
    config = figlet_fonts.FigletFontConfig(seed=figfont.SEED, size=20, **figfont.PARAMETERS)
    shuffled = figlet_fonts.FigletFontDataset(config)
    assert [shuffled[i]["question"] for i in range(20)] != [puzzle["question"] for puzzle in puzzles]
    assert list(figfont.puzzles(range(20))) == puzzles
    assert puzzles[0]["answer"] == "USNIC"


def test_training_and_test_puzzles_are_disjoint_by_index(prepared):
    assert not set(figfont.TRAIN) & set(figfont.TEST)
    assert (len(figfont.TRAIN), len(figfont.TEST)) == (40_000, 5_000)
    test = read(prepared["figfont"] / "figfont.jsonl")
    assert test[0] == next(figfont.puzzles([40_000]))
    train = read(prepared["figfont"] / "train.jsonl")
    assert train[3]["prompt"] == prompts.figfont(next(figfont.puzzles([3]))["question"])
    assert all(2 <= len(row["response"]) <= 5 for row in train)


def test_every_recipe_reads_what_the_command_writes():
    recipes = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "demo")
    assert {path.parent.name for path in recipes} == set(DOMAINS) - {"openbookqa_noisy"}
    for path in recipes:
        assert yaml.safe_load(path.read_text())["data"]["train"] == f"data/{path.parent.name}/train.jsonl"


def test_help_and_documentation_name_every_domain(capsys):
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--help"])
    text = capsys.readouterr().out
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/data.md").read_text(), re.MULTILINE)
    assert documented == list(DOMAINS)
    assert all(re.search(rf"\b{name}\b", text) for name in DOMAINS)


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
    "not JSON": ("m.jsonl", '{"prompt": "a"', "m.jsonl line 1: is not readable as JSON"),
    "not UTF-8": ("m.jsonl", b'{"prompt": "\xff"}', "m.jsonl line 1: is not readable as JSON"),
    "empty": ("m.jsonl", "", "m.jsonl: has no records"),
    "blank lines": ("m.jsonl", "\n\n", "m.jsonl: has no records"),
    "empty list": ("m.json", "[]", "m.json: has no records"),
    "no list": ("m.json", NO_BRACKET, "m.json: is not readable as a JSON list (one object a line: name it .jsonl)"),
    "list not ended": ("m.json", f"[{NO_BRACKET},", "m.json: is not readable as a JSON list"),
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
    manifest = json.loads(prepare("openbookqa_noisy", tmp_path / "out", source=str(tmp_path)).read_text())
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


def test_a_hub_data_set_gives_the_rows_of_its_copy_and_its_commit(from_hub, prepared, tmp_path):
    done = from_hub("low_resource", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out/train.jsonl") == read(prepared["low_resource"] / "train.jsonl")
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_preparation_leaves_no_set(number, status, tmp_path):
    output = tmp_path / "new" / "figfont"
    command = [sys.executable, "-m", "nemo_probsft", "data", "prepare", "figfont", "--output", output]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    partial = output.parent / ".figfont.partial" / "train.jsonl"
    while not partial.exists() or not partial.stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == status
    assert not output.exists()
    if number != signal.SIGKILL:
        assert error.splitlines()[-1] == f"nemo-probsft: interrupted; {output} was not written"
        assert list(tmp_path.iterdir()) == []
    prepare("figfont", output, limit=2)
    assert [path.name for path in output.parent.iterdir()] == ["figfont"]


def test_long_preparations_say_how_far_they_are(monkeypatch, capsys, copies, tmp_path):
    monkeypatch.setattr(domains_prepare, "SECONDS_BETWEEN_NEWS", -1)
    prepare("math", tmp_path / "out", source=str(copies["math"]))
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  train: 3 of 6 records, \d+ s left", lines[2])
    assert lines[-1] == f"{tmp_path / 'out'}: 6 rows in train.jsonl"


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
        sources.BLOCK = block
        assert [record for record, _ in sources.READERS[".json"](file)] == objects
    sources.BLOCK = 1 << 20


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_memory_does_not_grow_with_the_source(ending, tmp_path):
    rows = [{"problem": f"{i} " + "x" * 3000, "solution": "y" * 1000, "lang": "python"} for i in range(6000)]
    file = published_sets.write(tmp_path / f"big{ending}", rows)
    if ending == ".parquet":
        published_sets.parquet.write_table(published_sets.pa.Table.from_pylist(rows), file, row_group_size=1000)
    del rows
    size = 6000 * 4000
    tracemalloc.start()
    prepare("coding", tmp_path / "out", source=str(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out/train.jsonl").stat().st_size > size
    assert peak < size / 2
