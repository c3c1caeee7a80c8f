"""One cell: fine-tune the real model with an objective, in plain torch, and score it on held-out rows.

The model is that of transformers, log p our op's, objectives and optimizer the recipes'. On CUDA the weights are bf16
with fp32 masters, as Megatron keeps them, on a CPU fp32. tests/real compares the first steps with the NeMo trainer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.optimizer import OPTIM, adamw, set_lr
from experiments.real.moving import Moving, Now
from nemo_probsft.data.order import step_indices
from nemo_probsft.data.tokens import Example
from nemo_probsft.loss import token_loss
from nemo_probsft.ops import target_logprob

SCORED_TOKENS = 4096  # of a batch without a gradient: 800 MB of fp32 logits


@dataclass(frozen=True)
class Batch:
    """b rows of s positions, filled up on the right, and the N targets in their order."""

    ids: Tensor  # [b, s] int64
    predicting: Tensor  # [N] int64: positions of ids.flatten() whose next token is a target
    labels: Tensor  # [N] int64
    example: Tensor  # [N] int64: the row, from 0 to b - 1
    position: Tensor  # [N] int64: in the answer, from 0


class Model:
    """A causal language model on one device, which can go back to the weights that it was loaded with."""

    def __init__(self, directory: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM

        self.device = torch.device(device)
        self.module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(self.device)
        self.module.requires_grad_(True)
        self.base = [p.detach().clone() for p in self.module.parameters()]
        if self.device.type == "cuda":
            self.module.to(torch.bfloat16)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.module.parameters())

    @torch.no_grad()
    def reset(self) -> None:
        torch._foreach_copy_([p.detach() for p in self.parameters], self.base)

    def hidden(self, batch: Batch) -> Tensor:
        """[N, H]: the last layer's output where a target is predicted; what fills a row up lies behind all of them."""
        hidden = self.module.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, batch.predicting)

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.module.lm_head.weight)


def fine_tune(
    model: Model,
    train: Sequence[Example],
    moving: Moving,
    *,
    lr: float,
    seed: int,
    steps: int,
    batch_size: int,
    sources: Sequence[int] | None = None,
) -> list[dict[str, float]]:
    """Train in place. Of each step: nll, p and grad_norm, as in the trainer's metrics.jsonl.

    The sum of f is divided by all targets of the batch. sources: which data set each example of `train` is from.
    """
    parameters = model.parameters
    masters = [p.detach().float().requires_grad_() for p in parameters] if parameters[0].dtype != torch.float32 else []
    optimizer = adamw(masters or parameters)
    known = _before_training(model, train) if moving.needs_base else None
    history = []
    for step in range(steps):
        chosen = step_indices(len(train), batch_size, seed, step)
        batch = pack([train[i] for i in chosen], model.device)
        hidden = model.hidden(batch)
        logits = model.logits(hidden)
        logp = target_logprob(logits, batch.labels)
        source = torch.tensor([0 if sources is None else sources[i] for i in chosen], device=model.device)
        base = None if known is None else torch.cat([known[i] for i in chosen], dim=1)
        now = _now(batch, hidden, logits, logp, source, base, step / max(1, steps - 1))
        loss_sum, num_tokens, report = token_loss(moving.objective(now), logp, torch.ones_like(batch.labels))
        (loss_sum / num_tokens).backward()
        history.append([*(report[name][0] / report[name][1] for name in ("nll", "p")), _clip(parameters, masters)])
        set_lr(optimizer, lr, step, steps)
        optimizer.step()
        if masters:
            _round(masters, parameters)
        for p in parameters:
            p.grad = None
        moving.see(now)
    table = torch.stack([torch.stack(row) for row in history]).tolist()
    return [dict(zip(("nll", "p", "grad_norm"), row, strict=True)) for row in table]


@torch.no_grad()
def score_answers(model: Model, rows: Sequence[Example]) -> dict[str, Any]:
    """`sampled`: the probability of each right answer with its end token, what sampling at T=1 gives on average.

    `greedy`: 1 where every token of answer and end is the likeliest after the ones before, so that greedy decoding
    gives the answer and stops.
    """
    greedy, sampled = [], []
    for batch, num_rows in _batches(rows, model.device):
        logp, labels_lead = _scores(model, batch)
        wrong = torch.zeros(num_rows, device=logp.device).index_add(0, batch.example, (~labels_lead).float())
        total = torch.zeros(num_rows, dtype=torch.float64, device=logp.device).index_add(
            0, batch.example, logp.double()
        )
        greedy += (wrong == 0).int().tolist()
        sampled += total.exp().tolist()
    return {"greedy": "".join(map(str, greedy)), "sampled": [float(f"{p:.4g}") for p in sampled]}


@torch.no_grad()
def score_likelihood(model: Model, rows: Sequence[Example]) -> dict[str, Any]:
    """Of each row the sums of -log p (nats) and of p over its targets, and how many they are."""
    nll, p, tokens = [], [], []
    for batch, num_rows in _batches(rows, model.device):
        logp = _scores(model, batch)[0].double()
        sums = torch.zeros(2, num_rows, dtype=torch.float64, device=logp.device)
        sums.index_add_(1, batch.example, torch.stack([-logp, logp.exp()]))
        nll += sums[0].tolist()
        p += sums[1].tolist()
        tokens += torch.bincount(batch.example, minlength=num_rows).tolist()
    return {"nll": [round(x, 4) for x in nll], "p": [round(x, 4) for x in p], "tokens": tokens}


def pack(examples: Sequence[Example], device: torch.device | str) -> Batch:
    """The token after the last one of a row is no position's, so rows are one shorter than their examples."""
    width = max(len(ids) for ids, _ in examples) - 1
    ids = np.zeros((len(examples), width), dtype=np.int64)
    targets = []
    for i, (tokens, mask) in enumerate(examples):
        ids[i, : len(tokens) - 1] = tokens[:-1]
        at = np.flatnonzero(mask)
        targets.append(np.stack([at + i * width, tokens[at + 1], np.full_like(at, i), np.arange(len(at))]))
    predicting, labels, example, position = torch.from_numpy(np.concatenate(targets, axis=1)).to(device)
    return Batch(torch.from_numpy(ids).to(device), predicting, labels, example, position)


@torch.no_grad()
def _now(batch: Batch, hidden: Tensor, logits: Tensor, logp: Tensor, source: Tensor, base, fraction: float) -> Now:
    every = torch.log_softmax(logits.float(), dim=-1)
    base_logp, base_top = (None, None) if base is None else base
    return Now(
        logp=logp,
        top=every.amax(-1),
        entropy=-(every.exp() * every).sum(-1),
        labels=batch.labels,
        example=batch.example,
        position=batch.position,
        source=source[batch.example],
        hidden=hidden.detach(),
        base_logp=base_logp,
        base_top=base_top,
        fraction=fraction,
    )


def _clip(parameters: list[Tensor], masters: list[Tensor]) -> Tensor:
    """The gradients' norm before it is clipped; the masters take fp32 copies of the gradients."""
    for master, p in zip(masters, parameters, strict=bool(masters)):
        master.grad = p.grad.float()
    return torch.nn.utils.clip_grad_norm_(masters or parameters, OPTIM.clip_grad)


@torch.no_grad()
def _round(masters: list[Tensor], parameters: list[Tensor]) -> None:
    torch._foreach_copy_([p.detach() for p in parameters], [m.detach() for m in masters])


@torch.no_grad()
def _before_training(model: Model, train: Sequence[Example]) -> list[Tensor]:
    """Of each example [2, its targets] fp32: log p of the target, and of the likeliest token."""
    known: list[Tensor] = []
    for batch, num_rows in _batches(train, model.device):
        logits = model.logits(model.hidden(batch)).float()
        every = torch.log_softmax(logits, dim=-1)
        both = torch.stack([every.gather(1, batch.labels[:, None])[:, 0], every.amax(-1)])
        known += both.split(torch.bincount(batch.example, minlength=num_rows).tolist(), dim=1)
    return known


def _scores(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """(log p of the targets, whether each is the likeliest), [N]; logits in fp32, so that bf16 makes no ties."""
    weight = model.module.lm_head.weight.float()
    logits = torch.nn.functional.linear(model.hidden(batch).float(), weight)
    label = logits.gather(1, batch.labels[:, None])[:, 0]
    return label - logits.logsumexp(-1), logits.argmax(-1) == batch.labels


def _batches(rows: Sequence[Example], device: torch.device) -> Iterator[tuple[Batch, int]]:
    """In order, as many rows at a time as have at most SCORED_TOKENS positions."""
    begin = 0
    while begin < len(rows):
        end, longest = begin, 0
        while end < len(rows):
            longest = max(longest, len(rows[end][0]))
            if end > begin and longest * (end + 1 - begin) > SCORED_TOKENS:
                break
            end += 1
        yield pack([rows[i] for i in range(begin, end)], device), end - begin
        begin = end
