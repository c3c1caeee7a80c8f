"""Where a base model stands on the paper's continuum, what each objective would learn there, and which ones to sweep.

Source: arXiv 2510.00526, Table 5 (mean p of 12 model and domain pairs), Tables 1 to 3 and Fig. 1, 6 (what won there),
Lemma 3.1 (W_f).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_probsft.diagnosis.targets import Targets

# The paper has no numeric rule. These are the middles of the two gaps of its Table 5: 0.59 to 0.76, and 0.07 to 0.50.
STRONG, WEAK = 0.675, 0.285
RULE = (
    f"strong from mean p {STRONG}, weak up to {WEAK}, between them intermediate: the middles of the two gaps in the "
    "paper's Table 5 (0.59 to 0.76 and 0.07 to 0.50), so one decimal is all that they are good for"
)
NUM_BINS = 10  # of p, for the shares of the gradient weight

SHORTLISTS = {
    "strong": {
        "p": "above -log p by 4.1, 8.0, 15.8 and 13.8 points on the four models of Table 1",
        "OnlyTopLogP-0.2": "above -log p by 3.8, 7.6, 15.0 and 15.5 points on the same four models",
        "GeneralFamily-10": "above -log p by 14.5 points on Qwen2.5-Math-1.5B (Fig. 1)",
        "adaptive-by-label": "becomes p for each label whose targets are probable; not in the paper",
        "original": "what the others are measured against",
    },
    "intermediate": {
        "original": "above p on three of the four models of Table 2, by 1.7 points at most",
        "p": "within 1.7 points of -log p on the four models of Table 2, above it on one",
        "GeneralFamily-0.5": "between -log p and p: it weighs a token's gradient by the square root of p",
        "adaptive-by-label": "is p for the labels that are known, -log p for those that are new; not in the paper",
    },
    "weak": {
        "original": "35.2 against 0.0 % exact match for p on Qwen2.5-7B, the one model of Table 3 that learns the task",
        "GeneralFamily-0.1": "the best of the family at mean p 0.07 (Fig. 6)",
        "GeneralFamily-0.5": "shows how fast the result falls as alpha grows",
        "adaptive-by-label": "is -log p until a label's targets have become probable; not in the paper",
    },
}


def region_of(mean_p: float) -> dict[str, Any]:
    """The name of the region (strong, intermediate, weak), the rule, and the distance to the nearest border."""
    name = "strong" if mean_p >= STRONG else "weak" if mean_p <= WEAK else "intermediate"
    return {"name": name, "mean_p": mean_p, "distance": min(abs(mean_p - STRONG), abs(mean_p - WEAK)), "rule": RULE}


def shortlist(name: str) -> list[dict[str, str]]:
    """Objectives to sweep in a region, the best bet first, each with its reason in numbers of the paper."""
    return [{"objective": key, "reason": reason} for key, reason in SHORTLISTS[name].items()]


def gradient_weights(targets: Targets, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each objective would learn from: how its sum of W_f(p) = s_f(p) (1 - p) divides over the tokens.

    An objective that moves is taken as at the start of a run whose running means have seen all of these tokens.
    shares: [NUM_BINS] over equal bins of p, sum 1, zero when no token has a gradient; decile_shares: the same over
    tenths of the tokens, the least likely first. effective_tokens: (sum W)^2 / sum W^2 over T, 1 when all count alike.
    """
    import torch

    values, labels, top_logp = (
        torch.from_numpy(array) for array in (targets.logp.astype(np.float64), targets.label, targets.top_logp)
    )
    bins = values.exp().mul(NUM_BINS).long().clamp(max=NUM_BINS - 1)
    deciles = torch.empty_like(bins)
    deciles[values.argsort(stable=True)] = torch.arange(len(values)) * 10 // len(values)
    result = {}
    for key in keys:
        objective = _objective_after(key, values, labels, top_logp)
        weight = objective.weight(values) * objective.keep(values) * -torch.expm1(values)
        total = float(weight.sum())
        effective = total**2 / float((weight**2).sum()) / len(values) if total else 0.0
        result[key] = {
            "shares": _sums(weight / (total or 1.0), bins, NUM_BINS),
            "decile_shares": _sums(weight / (total or 1.0), deciles, 10),
            "effective_tokens": effective,
        }
    return result


def _objective_after(key: str, logp: Any, labels: Any, top_logp: Any) -> Any:
    """The objective at fraction 0 of a run whose running means have seen these tokens."""
    import torch

    from nemo_probsft.objectives import Moment, group_means, objective_at, parse_objective

    objective, mean_p = parse_objective(key), float(logp.exp().mean())
    means = group_means(objective, int(labels.max()) + 1)
    if means is None:
        return objective_at(objective, Moment(0.0, mean_p))
    groups = means.groups(labels, top_logp)
    means.see(groups, logp, torch.ones_like(labels))
    means.end_step()
    return means.objective_of(groups, mean_p)


def _sums(values: Any, bins: Any, num_bins: int) -> list[float]:
    return values.new_zeros(num_bins).index_add_(0, bins, values).tolist()
