"""`nemo-probsft data check`: every refusal, what is cut, duplicates and overlap; nothing is written."""

import json
from pathlib import Path

import pytest
import yaml

from nemo_probsft.__main__ import main
from nemo_probsft.data.overlap import NUM_WORDS, Overlap
from nemo_probsft.data.prompts import boxed
from nemo_probsft.data_check import _histogram
from nemo_probsft.demo_data import write_tokenizer

QUESTION = "How many of the seven cats that sat on a mat are there, if two of them left?"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tokenizer(Path("model"))
    Path("model/config.json").write_text('{"vocab_size": 320}')
    content = {
        "model": {"path": "model"},
        "data": {"train": "a.jsonl", "max_length": 120, "global_batch_size": 2},
        "objective": {"name": "nll", "keep": {"min_percentile": 10, "diagnosis": "not-there-yet.json"}},
    }
    Path("r.yaml").write_text(yaml.safe_dump(content))
    return "r.yaml"


def write(name: str, *rows) -> None:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def pair(prompt: str, response: str = "5", **fields):
    return {"prompt": prompt, "response": response, **fields}


def check(capsys, *arguments: str) -> tuple[int, str]:
    before = sorted(Path().rglob("*"))
    code = main(["data", "check", *arguments])
    output = capsys.readouterr()
    assert sorted(Path().rglob("*")) == before
    return code, " ".join((output.out + output.err).replace("\u2502", " ").split())


def test_all_refusals_are_shown_and_reading_goes_on(recipe, capsys):
    write("a.jsonl", pair("a"), "{broken", pair("b", ""), {"prompt": "c"}, pair("d" * 200), pair("e"), "[]")
    code, text = check(capsys, recipe)
    assert code == 1
    for line, reason in {2: "is not JSON", 3: "response is empty", 4: "has no field", 7: "is a JSON array"}.items():
        assert f"refused: a.jsonl line {line}: {reason}" in text
    assert "refused: a.jsonl line 5: its prompt of 200 tokens fills max_length 120" in text
    assert "rows 7 2 of them can be trained on" in text
    code, text = check(capsys, recipe, "data.long_prompts=skip")
    assert (
        "skipped 1 a prompt that leaves no room for an answer; data.long_prompts is skip: a.jsonl line 5 (200" in text
    )
    write("a.jsonl", pair("a"))
    assert check(capsys, recipe)[0] == 0
    write("a.jsonl", "{", "}")
    code, text = check(capsys, recipe)
    assert (code, "refused 2" in text, "rows 2 0 of them can be trained on" in text) == (1, True, True)


def test_what_is_cut_repeated_or_unused_is_counted_with_its_places(recipe, capsys):
    write("a.jsonl", pair("a"), pair("b", "x" * 200), pair("a", id=1), pair("a", "6"))
    code, text = check(capsys, recipe)
    assert code == 0
    assert "cut 1 longer than data.max_length 120, answers lose their end: a.jsonl line 2 (202 tokens)" in text
    assert "duplicates 1 equal to an earlier row: a.jsonl line 3 = a.jsonl line 1" in text
    assert "other answers 1 the prompt of an earlier row with another answer: a.jsonl line 4, a.jsonl line 1" in text
    assert "rows 1 (first: a.jsonl line 3) have a field that nothing is made of: 'id'" in text
    assert "a[[5<|endoftext|>]]" in text
    assert "tokens 211 of a row at least 3, at most 3 in 50 %, 202 in 90 %, 202 in 99 %, 202 in all" in text
    # Of the row that is cut the first token is the prompt.
    assert "targets 125 of a row at least 2, at most 2 in 50 %, 119 in 90 %" in text


def test_sources_are_counted_with_their_weights(recipe, capsys):
    write("a.jsonl", *(pair(f"a{i}") for i in range(10)))
    write("b.jsonl", *(pair(f"b{i}") for i in range(10)))
    code, text = check(capsys, recipe, "data.train=[{path: a.jsonl, weight: 0.5}, {path: b.jsonl, max_rows: 4}]")
    assert code == 0
    assert "a.jsonl 5 examples weight 0.5 x 10 rows" in text
    assert "b.jsonl 4 examples weight 1 x 4 rows" in text
    assert "steps 4 an epoch 9 examples, data.global_batch_size 2" in text


def test_items_of_evaluation_sets_are_found_whole_and_in_part(recipe, capsys):
    Path("sets").mkdir()
    write(
        "sets/math.jsonl",
        {"problem": QUESTION, "answer": "5"},
        {"problem": "Another one, which nobody trained on at all."},
    )
    changed = QUESTION.replace("two of them", "three of them").upper()
    write("a.jsonl", pair("x"), pair(boxed(f"  {QUESTION}\n")), pair(changed), pair("Unrelated " * 8))
    code, text = check(capsys, recipe, "data.max_length=500", "--data-dir", "sets")
    assert code == 0
    assert "math 2 1 0 item 1 = a.jsonl line 2" in text
    write("a.jsonl", pair(changed))
    assert "math 2 0 1 item 1 ~ a.jsonl line 1 (" in check(capsys, recipe, "--data-dir", "sets")[1]


def test_a_directory_without_sets_is_refused(recipe, capsys):
    write("a.jsonl", pair("x"))
    for name, problem in {
        "r.yaml": "r.yaml is no directory",
        "model": "model holds no .jsonl or .parquet file",
    }.items():
        assert main(["data", "check", recipe, "--data-dir", name]) == 2
        assert f"--data-dir: {problem}; name" in capsys.readouterr().err


def test_an_item_of_few_words_is_compared_as_a_whole(tmp_path):
    short = " ".join(["word"] * (NUM_WORDS - 1))
    (tmp_path / "set.parquet.txt").touch()  # no set
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": short}) + "\n" + json.dumps({"note": 1}) + "\n")
    overlap = Overlap(tmp_path)
    (found,) = overlap.sets
    overlap.add(["something"], f"before {short} after", "line 1")
    assert (found.num_items, found.exact, found.partial) == (1, {}, {})
    overlap.add([short.upper()], short, "line 2")
    assert found.exact == {1: "line 2"}


@pytest.mark.parametrize("lengths", [[1], [3, 3, 4], [2, 17, 30_000], list(range(1, 2000, 7))])
def test_bins_hold_every_row_once_and_are_few(lengths):
    _, lines = _histogram(lengths, max_length=100)
    counts = [int(line[1].replace(",", "")) for line in lines]
    assert sum(counts) == len(lengths)
    assert len(lines) <= 16
    assert all(bool(bar) == bool(count) for count, (_, _, bar, _) in zip(counts, lines, strict=True))
