"""What only the loss can say: which objective it computed, and where log p is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nemo_probsft.adapters.megatron.statistics import loss_function
from nemo_probsft.objectives import AnyObjective, Moment, objective_at
from nemo_probsft.run.audit import PROBES


def measure(objective: AnyObjective, moment: Moment, denominator: str, device: torch.device) -> dict[str, Any]:
    """The objective's names, and what `loss_function` makes of one token of each probability of `in_use.PROBES`.

    moment: the training step at which that was, of which an objective that does not move knows nothing.
    probes: rows of p, f(p), s_f(p) as autograd has it, and whether the denominator counts the token.
    """
    rows = []
    with torch.enable_grad():
        for p in PROBES:
            nll = -torch.tensor([[p]], device=device).log().requires_grad_()
            loss_sum, num_tokens, _ = loss_function(
                objective_at(objective, moment), denominator, nll, torch.ones_like(nll)
            )
            (weight,) = torch.autograd.grad(loss_sum, nll)
            rows.append([p, float(loss_sum.detach()), float(weight), int(num_tokens)])
    names = {"key": objective.key, "formula": objective.formula, "denominator": denominator}
    return {**names, "moment": moment._asdict(), "probes": rows}


def finite(loss_sum: torch.Tensor, nll: torch.Tensor, loss_mask: torch.Tensor) -> bool:
    """Whether the sum of f(p) and log p of every target are finite. nll, loss_mask [b, s].

    A threshold may drop a token of p = 0, so the sum alone would not show that its log p is infinite.
    Cost: one transfer of a boolean to the host.
    """
    return bool(torch.isfinite(loss_sum.detach()) & torch.isfinite(nll.detach()[loss_mask != 0]).all())


def describe(loss_sum: torch.Tensor, nll: torch.Tensor, loss_mask: torch.Tensor, examples: np.ndarray) -> str:
    """The statistics of the tokens of a micro-batch that is not `finite`.

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
