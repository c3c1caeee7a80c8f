"""Test sets that cannot be right: one line with file and row, never a traceback, never 0 for every model."""

import json
import re

import pytest

from evaluation.tasks import answers, coding, instructions, knowledge, mathematics, medical, puzzles
from tests.support.evaluation_sets import (
    ALPACA_ROW,
    FIGFONT,
    HUMANEVAL_ROW,
    MBPP_ROW,
    MEDICAL_ROW,
    OPENBOOKQA_ROW,
    write_jsonl,
    write_parquet,
)

OLYMPIAD_ROW = {"question": "Which n?", "final_answer": ["7"]}
MINERVA_ROW = {"question": "How far?", "final_answer": "so $\\boxed{1.6}$"}


def mathematics_set(**options):
    return mathematics.load_problems(dataset="x@test", problem="question", answer="final_answer", **options)


def medicine(file, data_dir):
    return medical.load_questions(source=file, data_dir=data_dir)


def mbpp_plus(**options):
    return coding.load_mbpp(dataset="x@test", plus=True, **options)


def named(load):
    return lambda **options: load(dataset="x@test", **options)


CHOICES = OPENBOOKQA_ROW["choices"]
LOADERS = {
    "mathematics": (mathematics_set, OLYMPIAD_ROW),
    "medicine": (medicine, MEDICAL_ROW),
    "openbookqa": (named(knowledge.load_questions), OPENBOOKQA_ROW),
    "figfont": (named(puzzles.load_puzzles), FIGFONT[0]),
    "humaneval": (named(coding.load_humaneval), HUMANEVAL_ROW),
    "mbpp": (mbpp_plus, MBPP_ROW),
    "alpaca": (named(instructions.load_instructions), ALPACA_ROW),
    "demo": (answers.load_rows, {"prompt": "1+1=", "response": "2"}),
}
BAD = [
    ("mathematics", {"final_answer": None}, "final_answer is null: must be a number or a text"),
    ("mathematics", {"final_answer": [None]}, "final_answer is null: must be a number or a text"),
    ("mathematics", {"final_answer": []}, "final_answer has 0 answers: must have one"),
    ("mathematics", {"final_answer": ["2", "3"]}, "final_answer has 2 answers: must have one"),
    ("mathematics", {"final_answer": " "}, "final_answer is ' ': must be a number or a text"),
    ("mathematics", {"final_answer": True}, "final_answer is true: must be a number or a text"),
    ("mathematics", {"final_answer": float("nan")}, "final_answer is nan: must be a number or a text"),
    ("mathematics", {"final_answer": {"value": 2}}, "final_answer is {'value': 2}: must be a number or a text"),
    ("mathematics", {"final_answer": "First,\nthen 2."}, "must be one answer, or a solution with its answer in"),
    ("mathematics", {"final_answer": "so $\\boxed{}$"}, "must be one answer, or a solution with its answer in"),
    ("mathematics", {"question": None}, "question is null: must be a text"),
    ("mathematics", {"question": 5}, "question is 5: must be a text"),
    ("mathematics", {"question": ""}, "question is '': must be a text that is not empty"),
    ("medicine", {"answer_idx": None}, "answer_idx is null: must be the letter of an option, one of A, B, C"),
    ("medicine", {"answer_idx": 2}, "answer_idx is 2: must be the letter of an option"),
    ("medicine", {"answer_idx": "c"}, "answer_idx is 'c': must be the letter of an option"),
    ("medicine", {"answer_idx": "D"}, "answer_idx is 'D': must be the letter of an option"),  # its text is null
    ("medicine", {"answer_idx": ["C"]}, "answer_idx is ['C']: must be the letter of an option"),
    ("medicine", {"options": ["vitamin A", "vitamin B"]}, "must be an object of letters and texts"),
    ("medicine", {"options": None}, "options is null: must be an object of letters and texts"),
    ("medicine", {"options": {"A": "vitamin A", "B": None}}, "options has 1 options: must have at least two"),
    ("medicine", {"options": {"a": "x", "b": "y"}}, "options has 'a' for a letter: must be one capital"),
    ("medicine", {"options": {"A": "x", "B": ["y"]}}, "option B of options is ['y']: must be a text"),
    ("medicine", {"options": {"A": "x", "B": "y", "C": " "}}, "answer_idx is 'C': must be the letter of an option"),
    ("openbookqa", {"answerKey": "E"}, "answerKey is 'E': must be the letter of an option, one of A, B, C, D"),
    ("openbookqa", {"choices": CHOICES["text"]}, "must be an object with the lists label and text"),
    ("openbookqa", {"choices": CHOICES | {"label": ["A", "B"]}}, "must be a letter for each of 4 texts, from A on"),
    ("openbookqa", {"choices": CHOICES | {"label": ["A", "A", "B", "C"]}}, "must be a letter for each of 4 texts"),
    ("openbookqa", {"choices": CHOICES | {"text": "abcd"}}, "text is 'abcd': must be a list of texts"),
    ("figfont", {"answer": None}, "answer is null: must be a text"),
    ("figfont", {"answer": 10}, "answer is 10: must be a text"),
    ("humaneval", {"entry_point": "ad"}, "entry_point is 'ad': must be a function that prompt begins"),
    ("humaneval", {"test": "assert True"}, "must define check(candidate)"),
    ("humaneval", {"test": None}, "test is null: must be a text"),
    ("mbpp", {"test_list": []}, "test_list is []: must have a test"),
    ("mbpp", {"test_list": "assert True"}, "test_list is 'assert True': must be a list of texts"),
    ("mbpp", {"test": ""}, "test is '': must be a text that is not empty"),
    ("alpaca", {"instruction": None}, "instruction is null: must be a text"),
    ("demo", {"response": 2}, "response is 2: must be a text"),
]


@pytest.mark.parametrize(("kind", "change", "message"), BAD)
def test_a_row_that_cannot_be_right_is_refused_in_its_place(tmp_path, kind, change, message):
    load, row = LOADERS[kind]
    path = tmp_path / "set.jsonl"
    write_jsonl(path, [row])
    assert len(load(file="set", data_dir=str(tmp_path))["test"]) == 1
    write_jsonl(path, [row, row | change])
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        load(file="set", data_dir=str(tmp_path))
    assert str(refusal.value).startswith(f"{path} line 2: ")
    assert str(refusal.value).endswith("; correct the row, or take it out")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", LOADERS)
def test_every_field_that_is_read_must_be_there(tmp_path, kind):
    load, _ = LOADERS[kind]
    write_jsonl(tmp_path / "set.jsonl", [{"id": 1}])
    with pytest.raises(ValueError, match=r"set\.jsonl line 1: no '\w+' in the row; every row needs "):
        load(file="set", data_dir=str(tmp_path))


def test_rows_of_m1s_own_file_and_of_parquet_are_named_by_source_and_number(tmp_path):
    rows = [MEDICAL_ROW, MEDICAL_ROW | {"answer_idx": "B "}]
    write_parquet(tmp_path / "NEJM.parquet", rows)
    with pytest.raises(ValueError, match=r"NEJM\.parquet row 2: answer_idx is 'B ': must be the letter"):
        medicine("NEJM", str(tmp_path))
    (tmp_path / "m1_eval_data.json").write_text(json.dumps({"NEJM": rows}))
    with pytest.raises(ValueError, match=r"m1_eval_data\.json NEJM row 2: answer_idx is 'B ': must be the letter"):
        medicine("NEJM", str(tmp_path))


def test_answers_that_are_right_are_taken():
    assert mathematics.gold_answer(27.0) == "27"
    assert mathematics.gold_answer(0.5) == "0.5"
    assert mathematics.gold_answer([" $7$ "]) == "$7$"
    assert mathematics.gold_answer(MINERVA_ROW["final_answer"]) == "1.6"
    assert mathematics.gold_answer(10**400) == str(10**400)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: text.encode("utf-16"), r"line 1: byte 1 is not UTF-8: save the file as UTF-8"),
        (lambda text: text.encode("utf-16-le"), r"line 1: byte \d+ is not UTF-8: save the file as UTF-8"),
        (lambda text: text.encode("latin-1"), r"line 1: byte \d+ is not UTF-8: save the file as UTF-8"),
        (lambda text: b"", r"is empty \(0 bytes\)"),
        (lambda text: b"\n\n", r"the test set has no rows"),
        (lambda text: f"[{text}]".encode(), r"line 1: no 'question' in the row"),
        (lambda text: (text + "\n" + text[:20]).encode(), r"line 2: is not JSON"),
        (lambda text: text.replace('"n?"', '"n?", "question": "m?"').encode(), r"line 1: .* 'question' is given twice"),
        (lambda text: text.replace('"7"', "9" * 5000).encode(), r"line 1: is not JSON \(Exceeds the limit"),
        (lambda text: text.replace('"7"', "1e999").encode(), r"line 1: final_answer is inf: must be a number"),
    ],
    ids=["utf-16", "utf-16 without mark", "latin-1", "empty", "blank", "list", "cut", "field twice", "digits", "inf"],
)
def test_files_that_are_no_set_are_one_line(tmp_path, encode, message):
    (tmp_path / "set.jsonl").write_bytes(encode('{"question": "n?", "final_answer": "7", "note": "\u00e9"}'))
    with pytest.raises(ValueError, match=rf"set\.jsonl:? ?{message}") as refusal:
        mathematics_set(file="set", data_dir=str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "set.jsonl").write_text(json.dumps(OLYMPIAD_ROW), encoding="utf-8-sig")
    assert mathematics_set(file="set", data_dir=str(tmp_path))["test"][0]["answer"] == "7"
