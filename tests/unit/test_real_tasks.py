"""The tasks of the real model: right answers by other means than the tasks' own, splits, noise, and what is known."""

import json
import random
import re
from collections import Counter
from functools import cache

import pytest

from experiments.real import data, known, questions, tasks
from experiments.real.tasks import NUM_TRAIN, NUM_VALIDATION, SEEDS, TASKS, held_out_rows, train_rows

ANSWERED = [name for name, task in TASKS.items() if task.judged == "answer"]
NOISY = [name for name in ANSWERED if TASKS[name].noise]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """MATH-500 and HumanEval in small: every tenth solution is too long, and one problem is there twice."""
    directory = tmp_path_factory.mktemp("sets")
    problems = [{"problem": f"What is {n}?", "solution": "so " * (10 if n % 10 else 1000) + str(n)} for n in range(90)]
    heads = [{"prompt": f"\ndef f{n}():\n", "canonical_solution": f"    return {n}\n\n"} for n in range(40)]
    for name, rows in (("math_oai", [*problems, problems[1]]), ("humaneval", heads)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def right_answer(prompt: str) -> str:
    """Of a prompt of any answered task, from its text alone."""
    if prompt.startswith("Spell"):
        return prompt.split(": ")[-1][::-1]
    if prompt.startswith("Move"):
        alphabet = "abcdefghijklmnopqrstuvwxyza"
        return " ".join(alphabet[alphabet.index(letter) + 1] for letter in prompt.split(": ")[-1].split())
    if prompt.startswith("State"):
        return str(eval(re.search(r": (.*) =", prompt)[1]))
    if prompt.startswith("Repeat"):
        return prompt.split("\n")[1]
    return known_answers()[prompt]


@cache
def known_answers() -> dict[str, str]:
    return {questions.prompt(q): questions.response(q, q.answer) for q in known.read_known()}


def test_no_prompt_is_in_two_of_training_validation_and_test(sets):
    for name in TASKS:
        validation, test = held_out_rows(name, sets)
        parts = [validation, test, [row for seed in SEEDS for row in train_rows(name, seed, sets)]]
        prompts = [{row["prompt"] for row in part} for part in parts]
        assert all(prompts)
        assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2], name
        assert [len(rows) for rows in parts[:2]] == [len(prompts[0]), len(prompts[1])], name


@pytest.mark.parametrize("name", ANSWERED)
def test_held_out_answers_are_right_and_so_are_as_many_training_answers_as_the_task_says(name):
    validation, test = held_out_rows(name)
    assert (len(validation), len(test)) == (NUM_VALIDATION, 200)
    assert all(row["response"] == right_answer(row["prompt"]) for row in validation + test)
    for seed in SEEDS:
        rows = train_rows(name, seed)
        wrong = Counter(row.get("source", name) for row in rows if row["response"] != right_answer(row["prompt"]))
        assert NUM_TRAIN * 0.7 < len(rows) <= NUM_TRAIN
        if name in NOISY:
            assert wrong == {name: round(0.3 * len(rows))}
        elif name != "mixture":
            assert not wrong


@pytest.mark.parametrize("name", NOISY)
def test_a_wrong_answer_is_another_rows_and_stands_anywhere(name):
    rows = train_rows(name, seed=0)
    is_wrong = [row["response"] != right_answer(row["prompt"]) for row in rows]
    half = len(rows) // 2
    assert 0.25 < sum(is_wrong[:half]) / half < 0.35
    rights = {right_answer(row["prompt"]) for row in rows}
    if name != "known_noisy":
        assert all(row["response"] in rights for row in rows)


def test_a_wrong_answer_to_a_known_question_is_right_for_another_of_its_template():
    found = {questions.prompt(q): q for q in known.read_known()}
    answers = {(q.template, q.answer) for q in found.values()}
    for row in train_rows("known_noisy", seed=1):
        question = found[row["prompt"]]
        form = re.escape(questions.TEMPLATES[question.template][1]).replace(r"\{a\}", re.escape(question.asked))
        said = re.fullmatch(form.replace(r"\{x\}", "(.*)"), row["response"])[1]
        assert (question.template, said) in answers


def test_a_mixture_is_half_of_each_part_and_says_which():
    parts = TASKS["mixture"].parts
    rows = train_rows("mixture", seed=2)
    of_part = {part: [row for row in rows if row["source"] == part] for part in parts}
    drawn = {part: {(row["prompt"], row["response"]) for row in train_rows(part, seed=2)} for part in parts}
    for part in parts:
        assert len(of_part[part]) == NUM_TRAIN // 2
        assert {(row["prompt"], row["response"]) for row in of_part[part]} <= drawn[part]
    assert 0.4 < sum(row["source"] == parts[0] for row in rows[:500]) / 500 < 0.6
    validation, test = held_out_rows("mixture")
    assert [row["source"] for row in test] == [parts[0]] * 100 + [parts[1]] * 100
    assert [row["source"] for row in validation] == [parts[0]] * 50 + [parts[1]] * 50


def test_a_seed_draws_rows_and_order_and_the_files_are_always_the_same(sets, tmp_path):
    for directory in ("one", "two"):
        tasks.write_data(tmp_path / directory, sets)
        tasks.split.cache_clear()
        data._words.cache_clear()
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == len(TASKS) * (2 + len(SEEDS))
    assert all(len({one[f"{name}-{seed}.train.jsonl"] for seed in SEEDS}) == len(SEEDS) for name in TASKS)
    assert [json.loads(line) for line in one["caesar-1.train.jsonl"].splitlines()] == train_rows("caesar", 1)


def test_long_solutions_and_repeated_problems_are_left_out_and_the_sets_are_halved(sets):
    for name, count in (("math", 81), ("humaneval", 40)):
        found = tasks.split(name, sets)
        assert [len(found.pool) + len(found.validation), len(found.test)] == [count - count // 2, count // 2]
        assert len(train_rows(name, 0, sets)) == len(found.pool)
    assert train_rows("humaneval", 0, sets)[0]["response"].startswith("    return ")


def test_what_is_known_was_asked_and_is_enough():
    found = known.read_known()
    assert len(found) == len(set(found)) >= 1_800
    assert set(found) <= set(questions.questions())
    assert known.KNOWN.stat().st_size < 300_000


def test_judging_by_the_shared_prompt_is_judging_the_whole():
    """Against plain decoding and float64; an answer with one token changed is not greedy."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.5, eos_token_id=63, **sizes)).eval()
    rng = random.Random(0)
    prompts = [[1, 2, 3, *rng.choices(range(60), k=2 + row % 3)] for row in range(6)]
    answers = [_greedy(model, prompt, 3 + row % 2) for row, prompt in enumerate(prompts)]
    answers[5][1] = (answers[5][1] + 1) % 60
    judged = known._judged(model, prompts, answers, shared=known._shared(prompts))
    assert [greedy for greedy, _ in judged] == [True] * 5 + [False]
    model.double()
    for prompt, answer, (_, p) in zip(prompts, answers, judged, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        assert p == pytest.approx(logp.mean().exp().item(), rel=1e-4)


def _greedy(model, prompt: list[int], length: int) -> list[int]:
    import torch

    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]
