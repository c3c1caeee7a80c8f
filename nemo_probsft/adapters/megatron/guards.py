"""What only the loss can say: which objective it computed, and where log p is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import AnyObjective, Moment, Objective
from nemo_probsft.run.audit import PROBES


def probe(objective: Objective, denominator: str, device: torch.device) -> torch.Tensor:
    """What `token_loss` makes of one token of each probability of `audit.PROBES`, fp32 [probes, 3], not read yet.

    Columns: f(p), s_f(p) as autograd has it, and how many tokens the denominator counts.
    """
    rows = []
    with torch.enable_grad():
        for p in PROBES:
            nll = -torch.full((), p, device=device).log().requires_grad_()
            loss_sum, num_tokens, _ = token_loss(objective, -nll, torch.ones_like(nll), denominator, names=())
            (weight,) = torch.autograd.grad(loss_sum, nll)
            rows.append(torch.stack([loss_sum.detach(), weight, num_tokens.float()]))
    return torch.stack(rows)


def measured(objective: AnyObjective, moment: Moment, denominator: str, probes: torch.Tensor) -> dict[str, Any]:
    """The objective's names, and what `probe` found.

    moment: the training step at which that was, of which an objective that does not move knows nothing.
    probes: rows of p, f(p), s_f(p), and whether the denominator counts the token.
    """
    rows = [[p, value, weight, int(count)] for p, (value, weight, count) in zip(PROBES, probes.tolist(), strict=True)]
    names = {"key": objective.key, "formula": objective.formula, "denominator": denominator}
    return {**names, "moment": moment._asdict(), "probes": rows}


def first_not_finite(sums: torch.Tensor) -> int | None:
    """The first micro-batch that has a target without a finite f(p) or log p. sums: [n, 2] of f(p) and of -log p.

    A sum is finite if and only if all of its terms are. That of f(p) would not show a token of p = 0 that a threshold
    drops, and that of log p not where a finite one has an f(p) that overflows.
    """
    bad = ~torch.isfinite(sums).all(1)
    return int(bad.nonzero()[0]) if bad.any() else None


def describe(loss_sum: torch.Tensor, nll: torch.Tensor, loss_mask: torch.Tensor, examples: np.ndarray) -> str:
    """The statistics of the tokens of a micro-batch that is not finite.

    examples: [b, 1] or [b, s], what in the data each position belongs to.
    """
    target = loss_mask != 0
    logp = -nll.detach()
    bad = target & ~torch.isfinite(logp)
    others = logp[target & ~bad]
    lowest = f"{float(others.min()):.4g}" if len(others) else "none"
    rows, columns = torch.nonzero(bad, as_tuple=True)
    named = examples[rows.cpu().numpy(), columns.cpu().numpy().clip(max=examples.shape[1] - 1)].tolist()
    return (
        f"the loss is {float(loss_sum):g}: of {int(target.sum())} target tokens {int(bad.sum())} have a log p that is "
        f"not finite ({int(torch.isnan(logp[bad]).sum())} of them NaN), the lowest other log p is {lowest}; "
        f"examples of the training set: {', '.join(map(str, dict.fromkeys(named))) or 'none alone'}"
    )
