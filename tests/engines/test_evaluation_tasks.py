"""The task pack: every task runs by the real harness on the real vLLM; layouts, prompts, scores, documentation."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from evaluation.choices import explicit_letter, medical_letter
from evaluation.tasks import coding, knowledge, medical, puzzles, sets
from evaluation.tasks.answers import load_rows, mean_over_items
from nemo_probsft.data import prompts
from nemo_probsft.run.eval_env import evaluation_python
from tests.support.evaluation_run import ROOT, evaluated, greedy_answer, pack
from tests.support.evaluation_sets import (
    ALPACA_ROW,
    FIGFONT,
    HUMANEVAL_ROW,
    LANGUAGES,
    MBPP_ROW,
    MEDICAL_ROW,
    MEDICAL_SOURCES,
    OPENBOOKQA_ROW,
    PROX_ROW,
    write_jsonl,
    write_parquet,
)

TASKS = Path(__file__).parents[2] / "evaluation" / "tasks"
YAMLS = sorted(path for path in TASKS.glob("*.yaml") if not path.name.startswith("_"))
BUDGETS = {"figfont": 5, "medical": 8000, "low_resource": 1024, "openbookqa": 128, "coding": 768, "instruction": 2048}


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: node.value)


@pytest.fixture(scope="module")
def run():
    return evaluated()


@pytest.mark.parametrize("path", YAMLS, ids=[path.stem for path in YAMLS])
def test_every_task_says_what_it_reproduces_with_version_and_changelog(path):
    text, task = path.read_text(encoding="utf-8"), yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    metadata = task["metadata"]
    assert task["task"] == path.stem
    # A tag may not have a task's name: figfont is ours, openbookqa the harness's.
    assert task["tag"] == {"figfont": "puzzles", "openbookqa": "knowledge"}.get(metadata["domain"], metadata["domain"])
    assert re.search(r"^# Reproduces: .+", text, re.MULTILINE)
    assert f"# Version {metadata['version']:.1f}" in text
    assert metadata["reproduces"]
    readme = (TASKS.parent / "README.md").read_text(encoding="utf-8")
    assert f"`{path.stem}`" in readme
    assert f"`{task['tag']}`" in readme


def test_the_pack_has_the_papers_27_benchmarks():
    """Medicine counts MedBullets and the two journals apart: the paper prints ten columns, and counts eight."""
    domains = [yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)["tag"] for path in YAMLS]
    sizes = {domain: domains.count(domain) for domain in set(domains) - {"demo", "continuum"}}
    assert sizes == dict(math=5, medical=10, puzzles=1, coding=4, low_resource=7, knowledge=1, instruction=1)


def test_figfont_is_greedy_five_tokens_compared_to_the_character(run):
    result, samples = run.read("figfont")
    for sample, row in zip(samples, FIGFONT, strict=True):
        assert sample["prompt"] == prompts.figfont(row["question"])
        assert sample["target"] == row["answer"]
        assert sample["num_tokens"][0] <= 5
        assert sample["answers"][0].startswith(greedy_answer(run.model, run.tokenizer, sample["prompt"], 5))
    assert set(result["extra"]) == {"jaro_winkler"}
    assert 0 <= result["extra"]["jaro_winkler"]["mean"] <= 1
    scores = puzzles.score({"answer": "HI"}, [["HI", "HI ", "hi", "HX", ""]])
    assert scores["score"] == [1, 0, 0, 0, 0]
    # By hand: (1 + 2/3 + 1) / 3 and 0.1 x 2 of what is missing; a similarity under 0.7 gets nothing for its prefix.
    assert scores["jaro_winkler"] == pytest.approx([1, 0.9111111, 0, 0.6666667, 0], abs=1e-6)


@pytest.mark.parametrize("task", MEDICAL_SOURCES)
def test_medical_sources_have_the_m1_protocols_prompt(task):
    (doc,) = pack()[task]
    assert doc["prompt"] == (
        "Which vitamin prevents scurvy?\nA. vitamin A\nB. vitamin B\nC. vitamin C\n" + prompts.BOXED
    )
    assert doc["answer"] == "C"


def test_medical_answers_are_judged_by_their_letter(run):
    result, (sample,) = run.read("nejm")
    options = {letter: text for letter, text in MEDICAL_ROW["options"].items() if text}
    letter, found = medical_letter(sample["answers"][0], options)
    assert sample["prompt"] == pack()["nejm"][0]["prompt"]
    assert sample["scores"] == [float(letter == "C")]
    assert sample["extra"]["letter_found"] == [float(found)]
    assert result["generation"]["temperature"] == 0
    scores = medical.score(
        {"options": json.dumps(options), "answer": "C"}, [["\\boxed{C}", "The answer is B", "vitamin c"]]
    )
    assert scores == {"score": [1, 0, 1], "letter_found": [1, 1, 0]}


@pytest.mark.parametrize("language", LANGUAGES)
def test_mmlu_prox_is_zero_shot_in_the_language(language):
    (doc,) = pack()[f"mmlu_prox_{language}_zero_shot"]
    lines = doc["prompt"].split("\n")
    assert lines[2] == "1+1=?"
    assert lines[4:6] == ["A. 1", "B. 2"]
    assert len(lines) == 7
    assert "(X)" in lines[0]
    assert doc["answer"] == "B"


@pytest.mark.parametrize("language", ["te", "sw"])
def test_mmlu_prox_answers_are_judged_by_their_letter(run, language):
    _, (sample,) = run.read(f"mmlu_prox_{language}_zero_shot")
    assert sample["prompt"] == pack()[f"mmlu_prox_{language}_zero_shot"][0]["prompt"]
    letter = explicit_letter(sample["answers"][0], "ABCDEFGHIJ")
    assert sample["scores"] == [float(letter == "B")]
    assert sample["extra"]["letter_found"] == [float(letter is not None)]


def test_openbookqa_asks_for_a_letter_in_the_words_of_training(run):
    _, (sample,) = run.read("openbookqa_letter")
    assert sample["prompt"].startswith("Please complete the following multiple choice question.\nQuestion: The sun")
    assert sample["prompt"].endswith("C. plants growing\nD. cats")
    assert sample["num_tokens"][0] <= 128
    assert knowledge.score({"answer": "C"}, [["C", "The answer is (B).", "none"]]) == {
        "score": [1, 0, 0],
        "letter_found": [1, 1, 0],
    }


@pytest.mark.parametrize("task", ["humaneval", "humaneval_plus", "mbpp", "mbpp_plus"])
def test_coding_shows_the_problem_and_begins_the_answer(task):
    (doc,) = pack()[task]
    problem = HUMANEVAL_ROW["prompt"] if task.startswith("human") else MBPP_ROW["test_list"][0]
    assert problem.strip() in doc["prompt"]
    assert doc["prompt"].startswith(prompts.CODE)
    assert doc["answer_start"].endswith("```python\n")
    tests = {"mbpp": MBPP_ROW["test_list"][1], "mbpp_plus": MBPP_ROW["test"].split("\n")[1]}
    assert tests.get(task, "check(add)") in doc["answer"]


@pytest.mark.parametrize("task", ["humaneval", "mbpp_plus"])
def test_coding_runs_the_answers(run, task):
    result, (sample,) = run.read(task)
    assert sample["prompt"] == pack()[task][0]["prompt"] + coding.ANSWER_START
    assert sample["scores"] == [0.0]  # a random model's bytes are no program
    assert result["timed_out_judgements"] == 0


def test_programs_are_judged_by_their_tests(tmp_path):
    write_jsonl(tmp_path / "humaneval.jsonl", [HUMANEVAL_ROW])
    humaneval = coding.load_humaneval  # the documents as the harness gets them
    assert humaneval
    doc = coding._document(
        HUMANEVAL_ROW["prompt"], HUMANEVAL_ROW["prompt"], HUMANEVAL_ROW["test"] + "\ncheck(add)\n", "add"
    )
    answers = [
        HUMANEVAL_ROW["prompt"] + "    return a + b\n```\nThis adds.",  # imports and function anew
        "def add(a, b):\n    return a + b\n",  # the prompt's import is still there
        "    return a + b\n",  # the body only
        "def add(a, b):\n    return a - b\n",
        "def add(a, b): import",
    ]
    assert coding.score(doc, [answers]) == {"score": [1, 1, 1, 0, 0], "timed_out": [0] * 5}


def test_mbpp_runs_the_original_or_the_added_tests(tmp_path):
    write_jsonl(tmp_path / "mbppplus.jsonl", [MBPP_ROW])
    answers = ["def add(a, b):\n    return a + b\n", "def add(a, b):\n    return 3 if a == 1 else 0.3\n"]
    for plus, expected in ((False, [1, 1]), (True, [1, 0])):
        loaded = coding.load_mbpp(file="mbppplus", dataset="x@test", plus=plus, data_dir=str(tmp_path))
        assert coding.score(loaded["test"][0], [answers])["score"] == expected


def test_alpaca_answers_are_written_for_the_judge_and_not_scored(run):
    result, (sample,) = run.read("alpaca_eval", "sample")
    assert result["judged"] is False
    assert "mean" not in result
    assert result["samples_per_item"] == 1
    assert (result["generation"]["temperature"], result["generation"]["top_p"]) == (0.7, 0.9)
    (output,) = json.loads((run.results / "alpaca_eval" / "sample" / "model_outputs.json").read_text())
    assert output == {
        "instruction": ALPACA_ROW["instruction"],
        "output": sample["answers"][0].strip(),
        "generator": "run-hf",
        "dataset": "helpful_base",
        "datasplit": "eval",
    }


def test_budgets_are_the_papers(run):
    tasks = {"figfont": "figfont", "medical": "nejm", "low_resource": "mmlu_prox_sw_zero_shot"}
    tasks |= {"openbookqa": "openbookqa_letter", "coding": "mbpp_plus"}
    for domain, task in tasks.items():
        result, _ = run.read(task)
        assert result["generation"]["max_gen_toks"] == BUDGETS[domain]
        assert result["domain"] == domain
    assert run.read("alpaca_eval", "sample")[0]["generation"]["max_gen_toks"] == BUDGETS["instruction"]


def test_bad_rows_name_file_and_line(tmp_path):
    path = tmp_path / "set.jsonl"
    for text, message in (
        (
            '{"prompt": "a", "response": "b"}\n{"prompt": ',
            r"set\.jsonl line 2: is not JSON \(Expecting value at character 12\)",
        ),
        ('{"prompt": "a"}\n', r"set\.jsonl line 1: no 'response' in the row"),
        ("[1]\n", r"set\.jsonl line 1: no 'prompt' in the row"),
        ("\n", r"set\.jsonl: the test set has no rows"),
        ("", r"set\.jsonl: is empty \(0 bytes\)"),
        ('{"prompt": "a", "prompt": "c", "response": "b"}', r"set\.jsonl line 1: .*field 'prompt' is given twice"),
        ('{"prompt": "a", "response": ["\\ud800"]}', r"set\.jsonl line 1: response holds half a surrogate pair"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rows(data_dir=str(tmp_path), file="set")
    path.write_text('{"prompt": "a", "response": "b", "more": 1}\n\n{"prompt": "c", "response": "d"}\n')
    rows = load_rows(data_dir=str(tmp_path), file="set")["test"]
    assert list(rows) == [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet: is not readable as parquet after row 0"):
        load_rows(data_dir=str(tmp_path), file="broken")


def test_mmlu_prox_refuses_rows_that_cannot_be_right(tmp_path):
    """In the Python that has the harness, whose words for the languages are used."""
    changes = [
        ({"answer": "C"}, "answer is 'C': must be the letter of an option, one of A, B"),  # its text is null
        ({"answer": None}, "answer is null: must be the letter of an option, one of A, B"),
        ({"answer": 1}, "answer is 1: must be the letter of an option, one of A, B"),
        ({"option_1": None}, "option_0 to option_9 has 1 options: must have at least two"),
        ({"question": None}, "question is null: must be a text"),
        ({"category": "alchemy"}, "category is 'alchemy': must be one of "),
        ({"category": None}, "category is null: must be a text"),
    ]
    code = (
        "import sys; from evaluation.tasks.low_resource import load_questions\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n        load_questions(language='sw', data_dir=folder)\n"
        "    except ValueError as error:\n        print(error)\n"
    )
    for number, (change, _) in enumerate(changes):
        (tmp_path / str(number)).mkdir()
        write_jsonl(tmp_path / str(number) / "mmlu_prox_sw.jsonl", [PROX_ROW, PROX_ROW | change])
    command = [evaluation_python(), "-c", code, *(str(tmp_path / str(number)) for number in range(len(changes)))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for number, ((_, message), line) in enumerate(zip(changes, lines, strict=True)):
        assert line.startswith(f"{tmp_path}/{number}/mmlu_prox_sw.jsonl line 2: {message}")


def test_a_missing_set_is_one_line_with_path_and_name(tmp_path):
    with pytest.raises(ValueError, match="test set not found") as raised:
        puzzles.load_puzzles(file="figfont", dataset="gaotang/figlet_font@test", data_dir=str(tmp_path))
    assert str(raised.value) == (
        f"{tmp_path}/figfont.jsonl (or .parquet): test set not found; put gaotang/figlet_font@test (`datasets`) there,"
        " one object a line with the fields question, answer, or make it with nemo-probsft data prepare figfont"
    )
    with pytest.raises(
        ValueError, match=r"NEJM\.jsonl .* NEJM of UCSC-VLAA/m1_eval_data .* m1_eval_data\.json beside it"
    ):
        medical.load_questions(source="NEJM", data_dir=str(tmp_path))
    (tmp_path / "m1_eval_data.json").write_text(json.dumps({"Lancet": [MEDICAL_ROW]}))
    with pytest.raises(ValueError, match=r"m1_eval_data\.json: no source 'NEJM', it has Lancet"):
        medical.load_questions(source="NEJM", data_dir=str(tmp_path))
    for text, message in (
        ('{"NEJM": [{}]}', r"m1_eval_data\.json NEJM row 1: no 'question' in the row"),
        ('{"NEJM": []}', r"m1_eval_data\.json NEJM: the test set has no rows"),
        ('{"NEJM": 1}', r"m1_eval_data\.json: must be one object that holds the rows of each source"),
        ('{"NEJM": ', r"m1_eval_data\.json: is not JSON \(Expecting value at character 10\)"),
    ):
        (tmp_path / "m1_eval_data.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            medical.load_questions(source="NEJM", data_dir=str(tmp_path))


def test_sets_are_read_as_json_lines_as_parquet_and_by_name(tmp_path):
    """By name: `datasets` takes a directory for a name, so that the same call can be tried without a network."""
    write_jsonl(tmp_path / "a.jsonl", [OPENBOOKQA_ROW])
    write_parquet(tmp_path / "b.parquet", [OPENBOOKQA_ROW])
    hub = tmp_path / "hub"
    hub.mkdir()
    write_parquet(hub / "test-00000-of-00001.parquet", [OPENBOOKQA_ROW])
    kinds = [
        knowledge.load_questions(file="a", dataset="x@test", data_dir=str(tmp_path)),
        knowledge.load_questions(file="b", dataset="x@test", data_dir=str(tmp_path)),
        knowledge.load_questions(file="none", dataset=f"{hub}@test"),
    ]
    assert kinds[0]["test"].to_list() == kinds[1]["test"].to_list() == kinds[2]["test"].to_list()
    with pytest.raises(ValueError, match=r"split 'test' could not be loaded .*: give a local copy with --data-dir"):
        sets.read_set(data_dir=None, file="x", dataset=f"{tmp_path / 'nowhere'}@test", fields=["a"], document=dict)


def test_one_source_of_medicine_may_be_a_file_of_its_own(tmp_path):
    second = {"options": {"A": "x", "B": None, "D": "y"}, "answer_idx": "D"}
    write_parquet(tmp_path / "NEJM.parquet", [MEDICAL_ROW, MEDICAL_ROW | second])
    first, second = medical.load_questions(source="NEJM", data_dir=str(tmp_path))["test"]
    assert json.loads(first["options"]) == {"A": "vitamin A", "B": "vitamin B", "C": "vitamin C"}
    assert json.loads(second["options"]) == {"A": "x", "D": "y"}


def test_mean_over_items_weighs_items_equally():
    assert mean_over_items([[1, 1, 0, 0], [1]]) == 0.75
    assert mean_over_items([[], []]) != mean_over_items([[], []])  # NaN: nothing was judged
