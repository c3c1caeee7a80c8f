"""One cell: fine-tune the real model with an objective, in plain torch, and score it on held-out rows.

The model is that of transformers, log p our op's, objectives and optimizer the recipes'. On CUDA the weights are bf16
with fp32 masters, as Megatron keeps them, on a CPU fp32. tests/engines/test_real_loop.py compares the steps with those
of the NeMo trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import forward
from experiments.forward import Packed
from experiments.optimizer import OPTIM, adamw, set_lr
from experiments.real.candidates import Now
from experiments.real.moving import Moving
from nemo_probsft.data.order import sample_of_each, step_indices
from nemo_probsft.data.tokens import Example
from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import ENOUGH_TOKENS
from nemo_probsft.ops import target_logprob

AT_A_TIME = 32  # rows of a batch without a gradient


@dataclass(frozen=True)
class Rows:
    """Tokenized rows, the data set that each comes from, and `Model.states` where the lower layers are frozen."""

    examples: Sequence[Example]
    sources: Sequence[int]
    states: Sequence[np.ndarray] | None = None


class Model:
    """A causal language model on one device, which can go back to the weights that it was loaded with.

    trained_layers: the last ones, and the norm behind them; None trains everything.
    """

    def __init__(self, directory: Path, device: str, trained_layers: int | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self.device = torch.device(device)
        self.module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(self.device)
        layers = self.module.model.layers
        self.first = 0 if trained_layers is None else len(layers) - trained_layers
        if trained_layers is not None:
            self.module.requires_grad_(False)
            for part in (*layers[self.first :], self.module.model.norm):
                part.requires_grad_(True)
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.base = [p.detach().clone() for p in self.parameters]
        if self.device.type == "cuda":
            self.module.to(torch.bfloat16)

    @torch.no_grad()
    def reset(self) -> None:
        torch._foreach_copy_([p.detach() for p in self.parameters], self.base)

    def states(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Of each row [its positions, H] fp32: the frozen layers' output."""
        states: list[np.ndarray] = []
        for begin in range(0, len(examples), AT_A_TIME):
            part = examples[begin : begin + AT_A_TIME]
            batch = forward.pack(part)
            grid = forward.states_before(self.module, batch, self.first)[batch.grid]
            states += [row[: len(ids) - 1].numpy() for row, (ids, _) in zip(grid, part, strict=True)]
        return states

    def hidden(self, rows: Rows, chosen: Sequence[int]) -> tuple[Packed, Tensor]:
        """(batch, [N, H] what the head reads where a target is)."""
        batch = forward.pack([rows.examples[i] for i in chosen])
        states = None
        if rows.states is not None:
            width = batch.grid.shape[1]
            grid = np.stack([np.pad(rows.states[i], ((0, width - len(rows.states[i])), (0, 0))) for i in chosen])
            states = torch.from_numpy(grid).flatten(0, 1)[batch.home].to(self.device)
        batch = batch.to(self.device)
        return batch, forward.hidden(self.module, batch, states, self.first).index_select(0, batch.row_of_target)

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.module.lm_head.weight)


def fine_tune(
    model: Model, train: Rows, moving: Moving, *, lr: float, seed: int, steps: int, batch_size: int
) -> list[dict[str, float]]:
    """Train in place. Of each step: nll, p and grad_norm, as in the trainer's metrics.jsonl; and where every token has
    an alpha of its own, alpha and alpha_spread, their mean and standard deviation.

    The sum of f is divided by all targets of the batch.
    """
    parameters = model.parameters
    masters = [] if model.device.type == "cpu" else [p.detach().float().requires_grad_() for p in parameters]
    optimizer = adamw(masters or parameters)
    history: list[dict[str, Tensor]] = []
    if moving.wants_base:
        moving.know(_of_base(model, train, seed))
    for step in range(steps):
        chosen = step_indices(len(train.examples), batch_size, seed, step).tolist()
        batch, hidden = model.hidden(train, chosen)
        logits = model.logits(hidden)
        logp = target_logprob(logits, batch.labels)
        now = _now(batch, hidden, logits, logp, [train.sources[i] for i in chosen])
        objective = moving.now(now, step / max(1, steps - 1))
        loss_sum, num_tokens, report = token_loss(objective, logp, torch.ones_like(batch.labels))
        (loss_sum / num_tokens).backward()
        history.append({name: report[name][0] / report[name][1] for name in ("nll", "p")})
        history[-1]["grad_norm"] = _clip(parameters, masters)
        if isinstance(objective.parameter, Tensor):
            history[-1] |= {"alpha": objective.parameter.mean(), "alpha_spread": objective.parameter.std()}
        set_lr(optimizer, lr, step, steps)
        optimizer.step()
        if masters:
            _round(masters, parameters)
        for p in parameters:
            p.grad = None
        moving.see(now)
    names = list(history[0])
    table = torch.stack([torch.stack([row[name] for name in names]) for row in history]).tolist()
    return [dict(zip(names, row, strict=True)) for row in table]


@torch.no_grad()
def score_answers(model: Model, rows: Rows) -> dict[str, Any]:
    """`sampled`: the probability of each right answer with its end token, what sampling at T=1 gives on average.

    `greedy`: 1 where every token of answer and end is the likeliest after the ones before, so that greedy decoding
    gives the answer and stops.
    """
    greedy, sampled = [], []
    for batch, logp, is_top in _scored(model, rows):
        wrong = torch.zeros(len(batch.grid), device=logp.device).index_add(0, batch.example, (~is_top).float())
        total = torch.zeros_like(wrong, dtype=torch.float64).index_add(0, batch.example, logp)
        greedy += (wrong == 0).int().tolist()
        sampled += total.exp().tolist()
    return {"greedy": "".join(map(str, greedy)), "sampled": [float(f"{p:.4g}") for p in sampled]}


@torch.no_grad()
def score_likelihood(model: Model, rows: Rows) -> dict[str, Any]:
    """Of each row the sums of -log p (nats) and of p over its targets, and how many they are."""
    nll, p, tokens = [], [], []
    for batch, logp, _ in _scored(model, rows):
        sums = torch.zeros(2, len(batch.grid), dtype=torch.float64, device=logp.device)
        sums.index_add_(1, batch.example, torch.stack([-logp, logp.exp()]))
        nll += sums[0].tolist()
        p += sums[1].tolist()
        tokens += torch.bincount(batch.example, minlength=len(batch.grid)).tolist()
    return {"nll": [round(x, 4) for x in nll], "p": [round(x, 4) for x in p], "tokens": tokens}


@torch.no_grad()
def _of_base(model: Model, train: Rows, seed: int) -> Now:
    """The targets that the trainer would look at before its first step, in the order of the rows."""
    num_targets = np.array([mask[:-1].sum() for _, mask in train.examples])
    drawn = sample_of_each(num_targets, np.array(train.sources), ENOUGH_TOKENS, seed).tolist()
    parts = []
    for begin in range(0, len(drawn), AT_A_TIME):
        chosen = drawn[begin : begin + AT_A_TIME]
        batch, hidden = model.hidden(train, chosen)
        logits = model.logits(hidden)
        logp = target_logprob(logits, batch.labels)
        parts.append(_now(batch, hidden, logits, logp, [train.sources[i] for i in chosen]))
    return Now(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Now)))


@torch.no_grad()
def _now(batch: Packed, hidden: Tensor, logits: Tensor, logp: Tensor, sources: Sequence[int]) -> Now:
    label = logits.gather(1, batch.labels[:, None])[:, 0].float()
    return Now(
        logp=logp.detach(),
        top=logits.amax(-1).float() - label + logp.detach(),
        labels=batch.labels,
        source=torch.tensor(sources, device=batch.labels.device)[batch.example],
        hidden=hidden.detach(),
    )


@torch.no_grad()
def _clip(parameters: list[Tensor], masters: list[Tensor]) -> Tensor:
    """The gradients' norm before it is clipped; the masters take fp32 copies of the gradients."""
    for master in masters:
        if master.grad is None:
            master.grad = torch.empty_like(master)
    if masters:
        torch._foreach_copy_([master.grad for master in masters], [p.grad for p in parameters])
    return torch.nn.utils.clip_grad_norm_(masters or parameters, OPTIM.clip_grad)


@torch.no_grad()
def _round(masters: list[Tensor], parameters: list[Tensor]) -> None:
    torch._foreach_copy_([p.detach() for p in parameters], [m.detach() for m in masters])


def _scored(model: Model, rows: Rows) -> Iterator[tuple[Packed, Tensor, Tensor]]:
    """Batches in order, with log p of their targets, fp64 [N], and whether each is the likeliest.

    The logits are fp32 on any device, so that no rounding makes ties.
    """
    weight = model.module.lm_head.weight.float()
    for begin in range(0, len(rows.examples), AT_A_TIME):
        batch, hidden = model.hidden(rows, range(begin, min(begin + AT_A_TIME, len(rows.examples))))
        logits = torch.nn.functional.linear(hidden.float(), weight)
        label = logits.gather(1, batch.labels[:, None])[:, 0]
        yield batch, (label - logits.logsumexp(-1)).double(), logits.argmax(-1) == batch.labels
