"""The training sets of the domains, made from tiny local copies in the published schemas."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import yaml
from transformers import AutoTokenizer

from nemo_probsft import progress
from nemo_probsft.__main__ import main
from nemo_probsft.data import prompts, tokens
from nemo_probsft.data.domains import DOMAINS, Part, figfont, schemas, write
from nemo_probsft.data.domains.write import MANIFEST, write_domain
from nemo_probsft.demo_data import write_tokenizer
from tests.support import published_sets

ROOT = Path(__file__).parents[2]


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
        examples = tokens.tokenized(rows, AutoTokenizer.from_pretrained(tokenizer), tmp_path, max_length=10_000)
        dataset = tokens.TokenizedDataset.load(examples)
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
        again = write_domain(
            name,
            tmp_path / name,
            source=str(copies[name]) if name in copies else None,
            limit=None if name in copies else 300,
            tokenizers=[str(tokenizer)] if DOMAINS[name].max_tokens else [],
        ).parent
        assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in prepared[name].iterdir())
        for path in again.iterdir():
            assert path.read_bytes() == (prepared[name] / path.name).read_bytes()


def test_more_records_than_the_paper_took_are_drawn_as_datasets_draws_them(tmp_path, monkeypatch):
    """The paper's code: `dataset.shuffle(seed=42).select(range(70000))`."""
    few = {"magpie": Part("train", schemas.magpie, num_sampled=5)}
    monkeypatch.setitem(DOMAINS, "few", write.Domain((few["magpie"],)))
    file = published_sets.write(tmp_path / "magpie.parquet", published_sets.MAGPIE)
    drawn = datasets.Dataset.from_list(published_sets.MAGPIE).shuffle(seed=42).select(range(5))
    write_domain("few", tmp_path / "out", source=str(file))
    rows = {row["prompt"] for row in read(tmp_path / "out/train.jsonl")}
    assert rows == set(drawn["input"])
    write_domain("few", tmp_path / "other", source=str(file), seed=1)
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
    wrong = write._wrong_letters(DOMAINS["openbookqa_noisy"].parts[0], 100_000, 0)
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
    recipes = sorted(
        path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name not in ("demo", "continuum", "real")
    )
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
    write_domain("figfont", output, limit=2)
    assert [path.name for path in output.parent.iterdir()] == ["figfont"]


def test_long_preparations_say_how_far_they_are(monkeypatch, capsys, copies, tmp_path):
    monkeypatch.setattr(progress, "LOG_SECONDS", -1)
    write_domain("math", tmp_path / "out", source=str(copies["math"]))
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"train: 3 records of 6, \d+ s left", lines[3])
    assert lines[-1] == f"{tmp_path / 'out'}: 6 rows in train.jsonl"
