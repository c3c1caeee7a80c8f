"""One cell: fine-tune the demo's model with an objective on a task, in plain torch, and score it on clean test rows.

The optimizer is the one of the recipes. A seed draws the data (operands, words, cipher, wrong answers), the test items
and the order.
"""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import forward
from experiments.forward import head, log_probs, pack
from experiments.optimizer import OPTIM, adamw, set_lr
from experiments.variants.objectives import PROMPT_CLASSES, Now, Variant, running, variant
from experiments.variants.tasks import Task, pretrain_rows, source, tokenize
from nemo_probsft import demo_data
from nemo_probsft.data.order import step_indices
from nemo_probsft.data.tokens import Example

LR = 3e-4
BASE_STEPS, BASE_LR, BASE_BATCH = 600, 3e-3, 64  # recipes/demo/base.yaml


def run(base: Any, tokenizer: Any, task: Task, objective: Variant, seed: int, steps: int) -> dict[str, Any]:
    """Fine-tune a copy of `base` and score it on the clean test rows.

    `greedy` is the share of test rows that greedy decoding answers exactly, `sampled` the expected share at temperature
    1, which is the mean probability of the right answer with its end token: exact, nothing is drawn.
    """
    began = time.perf_counter()
    rows, test_rows = task.rows(seed)
    train, test = tokenize(tokenizer, rows), tokenize(tokenizer, test_rows)
    sources = torch.tensor([source(row) for row in rows])
    model = copy.deepcopy(base)
    history = fine_tune(model, train, objective, task.batch_size, seed, steps, LR, sources)
    greedy, sampled = scores(model, test)
    return {
        "greedy": sum(greedy) / len(greedy),
        "sampled": sum(sampled) / len(sampled),
        "first_p": history[0],
        "last_p": sum(history[-10:]) / len(history[-10:]),
        "items": {"greedy": "".join(map(str, greedy)), "sampled": [round(p, 3) for p in sampled]},
        "seconds": round(time.perf_counter() - began, 1),
    }


def fine_tune(
    model: Any,
    train: Sequence[Example],
    objective: Variant,
    batch_size: int,
    seed: int,
    steps: int,
    lr: float,
    sources: Tensor | None = None,
) -> list[float]:
    """Train in place; the mean p of each step's targets. The sum of f is divided by all targets of the batch.

    sources: [examples] int64, the part of a mixture that each is from; all are from one where it is None.
    """
    sources = torch.zeros(len(train), dtype=torch.int64) if sources is None else sources
    base = copy.deepcopy(model) if getattr(objective, "needs_base", False) else None
    optimizer = adamw(list(model.parameters()))
    so_far = running(objective, model.config.vocab_size)
    if getattr(objective, "needs_prompts", False):
        prompt_class = prompt_classes(model, train)
    else:
        prompt_class = torch.zeros(len(train), dtype=torch.int64)
    history = []
    for step in range(steps):
        chosen = torch.tensor(step_indices(len(train), batch_size, seed, step))
        batch = pack([train[i] for i in chosen])
        hidden = forward.hidden(model, batch)
        every = head(model, hidden, batch)
        with torch.no_grad():
            base_logp = None if base is None else log_probs(base, batch).gather(1, batch.labels[:, None])[:, 0]
        logp = every.gather(1, batch.labels[:, None])[:, 0]
        now = Now(
            logp=logp,
            log_probs=every.detach(),
            labels=batch.labels,
            example=batch.example,
            prompt_class=prompt_class[chosen][batch.example],
            source=sources[chosen][batch.example],
            hidden=hidden.detach()[batch.row_of_target],
            base_logp=base_logp,
            running=so_far,
            fraction=step / max(1, steps - 1),
        )
        objective.value(now).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad)
        set_lr(optimizer, lr, step, steps)
        optimizer.step()
        optimizer.zero_grad()
        so_far.add(now)
        history.append(float(now.p.mean()))
    return history


@torch.no_grad()
def prompt_classes(base: Any, train: Sequence[Example], chunk: int = 500) -> Tensor:
    """[examples] int64: which of PROMPT_CLASSES equally frequent classes, by the mean log p of the prompt's tokens."""
    prompts = [Example(ids, 1 - mask) for ids, mask in train]
    for ids, mask in prompts:
        mask[len(ids) - 1] = 0  # no token after the last one
    means = []
    for i in range(0, len(prompts), chunk):
        batch = pack(prompts[i : i + chunk])
        logp = log_probs(base, batch).gather(1, batch.labels[:, None])[:, 0]
        totals = torch.zeros(int(batch.example.max()) + 1).index_add(0, batch.example, logp)
        means.append(totals / torch.bincount(batch.example))
    mean = torch.cat(means)
    bounds = torch.quantile(mean, torch.arange(1, PROMPT_CLASSES) / PROMPT_CLASSES)
    return torch.bucketize(mean, bounds)


@torch.no_grad()
def scores(model: Any, test: Sequence[Example]) -> tuple[list[int], list[float]]:
    """Of each row: 1 if greedy decoding gives the answer and its end, else 0; and the answer's probability.

    Greedy decoding gives the answer exactly when every token of it is the likeliest after the ones before.
    """
    batch = pack(test)
    every = log_probs(model, batch)
    logp = every.gather(1, batch.labels[:, None])[:, 0]
    wrong = torch.zeros(len(test)).index_add(0, batch.example, (every.argmax(-1) != batch.labels).float())
    total = torch.zeros(len(test)).index_add(0, batch.example, logp)
    return (wrong == 0).int().tolist(), total.exp().tolist()


def load_base(directory: Path) -> tuple[Any, Any]:
    """(tokenizer, model) of recipes/demo/base.yaml, trained here in plain torch where it is not there yet."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    random_base, trained = directory / "random_base", directory / "base"
    if not trained.is_dir():
        demo_data.write_tokenizer(random_base)
        demo_data.write_random_base(random_base, 0)
        model = Qwen2ForCausalLM.from_pretrained(random_base)
        tokenizer = AutoTokenizer.from_pretrained(random_base)
        rows = tokenize(tokenizer, pretrain_rows())
        fine_tune(model, rows, variant("original"), BASE_BATCH, 0, BASE_STEPS, BASE_LR)
        partial = directory / "base.partial"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(trained)
    return AutoTokenizer.from_pretrained(trained), Qwen2ForCausalLM.from_pretrained(trained)


def provenance() -> dict[str, str]:
    """What every line says of where it was made."""
    import transformers

    return {
        "date": datetime.date.today().isoformat(),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
