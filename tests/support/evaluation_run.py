"""One evaluation of a tiny random model on every task, by the real harness on the real vLLM, for all tests."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nemo_probsft.run.eval_env import evaluation_python
from tests.support.evaluation_sets import DEMO_PROMPTS, write_sets

ROOT = Path(__file__).parents[2]
SAMPLES = 16
SEED = 7
CONTEXT = 448
DEMO_TOKENS = 16  # budget of the demo tasks
# All of mathematics and figfont; of the others one or two of a kind, because a random model's answers rarely end.
TASKS = "demo,math,puzzles,nejm,mmlu_prox_te_zero_shot,mmlu_prox_sw_zero_shot,knowledge,humaneval,mbpp_plus,instruction"


class Run(NamedTuple):
    model: Qwen2ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    greedy: list[str]  # the model's answers to DEMO_PROMPTS; every second one is what the demo sets expect
    model_dir: Path
    data_dir: Path
    output: Path
    done: subprocess.CompletedProcess

    @property
    def results(self) -> Path:
        return self.output / "run-hf"

    def read(self, task: str, decoding: str = "greedy") -> tuple[dict, list[dict]]:
        return read_result(self.results, task, decoding)


@cache
def evaluated() -> Run:
    """Made once for all test modules: starting vLLM takes longer than all the rest."""
    root = Path(tempfile.mkdtemp(prefix="evaluation-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    model, tokenizer = make_model(root / "run" / "hf")
    greedy = [greedy_answer(model, tokenizer, prompt, DEMO_TOKENS) for prompt in DEMO_PROMPTS]
    write_sets(root / "data", [answer if i % 2 == 0 else answer + "!" for i, answer in enumerate(greedy)])
    done = run_evaluation(
        *(root / "run" / "hf", "--tasks", TASKS, "--data-dir", root / "data", "--output", root / "out"),
        *("--samples", SAMPLES, "--seed", SEED, "--run-code"),
    )
    assert done.returncode == 0, done.stderr
    return Run(model, tokenizer, greedy, root / "run" / "hf", root / "data", root / "out", done)


@cache
def pack() -> dict[str, list[dict]]:
    """First documents of every task of the pack, as the harness loads them from `evaluated().data_dir`."""
    code = (
        "import json, sys; from pathlib import Path; from evaluation.runner import TASKS_DIR, _task_manager\n"
        "names = sorted(p.stem for p in TASKS_DIR.glob('*.yaml') if p.name[0] != '_')\n"
        "manager = _task_manager(names, Path(sys.argv[1]))\n"
        "docs = {n: [dict(d) for d in manager.load(n)['tasks'][n].eval_docs] for n in names}\n"
        "print(json.dumps(docs))"
    )
    command = [evaluation_python(), "-c", code, str(evaluated().data_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_evaluation(*arguments) -> subprocess.CompletedProcess:
    command = [evaluation_python(), "-m", "evaluation", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def read_result(results: Path, task: str, decoding: str) -> tuple[dict, list[dict]]:
    directory = results / task / decoding
    lines = (directory / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return json.loads((directory / "results.json").read_text()), [json.loads(line) for line in lines]


def make_model(directory: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A 3-layer Qwen2 with random weights, large enough for peaked distributions, and a tokenizer of ASCII bytes.

    It drops other characters, so that every token of an answer is a character.
    """
    tokens = [
        "<pad>",
        "<|endoftext|>",
        *sorted(token for token in pre_tokenizers.ByteLevel.alphabet() if token.isascii()),
    ]
    tokens += ["\u0120", "\u010a"]  # how byte-level tokenizers write the space and the line feed
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<pad>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokens), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        initializer_range=0.25, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


@torch.no_grad()
def greedy_answer(model, tokenizer, prompt: str, max_new_tokens: int) -> str:
    ids = torch.tensor([tokenizer(prompt).input_ids])
    out = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(out).split("<|endoftext|>")[0].split("\n")[0]
