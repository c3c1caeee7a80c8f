"""What the paper says about the continuum, written down before any cell was run, and what the cells say to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.statistics import Difference, holm, paired_difference_over_seeds, rank_correlation_over_tasks
from experiments.real.scores import BASE, LIKELIHOOD, STRONG_NOISY, WEAK_CLEAN, Results
from experiments.wording import verdict

LEVEL = 0.05
CLOSE_P, CLOSE_NLL = 0.02, 0.1  # the paper's Table 2 has p within 1.7 points of -log p; 0.1 nats are 10 % of perplexity
THRESHOLD = "OnlyTopLogP-0.2"


@dataclass(frozen=True)
class Claim:
    """`better` is above `worse` on each of `tasks`; or with `within`, the two are closer to each other than that.

    measure: main is the accuracy at T=1, or mean p where solutions are judged by their likelihood; gap is what the
    accuracy at T=1 shows of the difference beyond what the greedy one shows; rank is the correlation over all tasks
    of the difference with the base model's mean p.
    """

    text: str
    tasks: tuple[str, ...]
    better: str
    worse: str
    measure: Literal["main", "nll", "gap", "rank"] = "main"
    within: float | None = None


CLAIMS = (
    Claim(
        "Where the base model knows the task and 30 % of the training answers are wrong, `p` ends above `original`.",
        STRONG_NOISY,
        "p",
        "original",
    ),
    Claim("There, `GeneralFamily-10` ends above `original` too.", STRONG_NOISY, "GeneralFamily-10", "original"),
    Claim(f"There, `{THRESHOLD}` ends above `original` too.", STRONG_NOISY, THRESHOLD, "original"),
    Claim(
        "There, the wrong answers take `original` below the base model.",
        STRONG_NOISY,
        BASE,
        "original",
    ),
    Claim(
        "There, `p` is further above `original` at T=1 than it is greedily: sampling shows what `original` has learned "
        "of the wrong answers.",
        STRONG_NOISY,
        "p",
        "original",
        "gap",
    ),
    Claim("Where the task is new and its answers are right, `original` ends above `p`.", WEAK_CLEAN, "original", "p"),
    Claim(f"There, `original` ends above `{THRESHOLD}` too.", WEAK_CLEAN, "original", THRESHOLD),
    Claim(
        f"In between, `p` and `original` are within {100 * CLOSE_P:.0f} points of mean p of each other.",
        LIKELIHOOD,
        "p",
        "original",
        within=CLOSE_P,
    ),
    Claim(
        f"In between, they are within {CLOSE_NLL} nats per token of each other in mean -log p.",
        LIKELIHOOD,
        "p",
        "original",
        "nll",
        within=CLOSE_NLL,
    ),
    Claim(
        "The more the base model knows, the more `p` gains over `original`: over all tasks, the gain rises with the "
        "base model's mean p (Spearman's correlation is positive).",
        (),
        "p",
        "original",
        "rank",
    ),
)


@dataclass(frozen=True)
class Judged:
    number: int
    claim: Claim
    task: str
    found: Difference
    corrected_p: float

    @property
    def verdict(self) -> str:
        """By the interval, if the p-value too survives the correction."""
        by_interval = verdict(self.found, within=self.claim.within)
        return by_interval if self.corrected_p < LEVEL else "is not decided"


def judge(results: Results) -> list[Judged]:
    """Every claim on every task where both of its sides were run."""
    found = []
    for number, claim in enumerate(CLAIMS, 1):
        if claim.measure == "rank":
            measured = [("all tasks", _rank(results, claim))]
        else:
            measured = [(task, _measure(results, claim, task)) for task in claim.tasks]
        found += [(number, claim, task, *of) for task, of in measured if of is not None]
    corrected = holm([p for *_, p in found])
    return [Judged(*of, p) for (*of, _), p in zip(found, corrected, strict=True)]


def _measure(results: Results, claim: Claim, task: str) -> tuple[Difference, float] | None:
    """With its p-value; that of closeness is the larger one of the distances to the two borders."""
    if claim.measure == "gap":
        gains = [_gains(results, claim, task, measure) for measure in ("sampled", "greedy")]
        pair = None if gains[0] is None or gains[1] is None else (gains[0], gains[1])
    else:
        measure = None if claim.measure == "main" else claim.measure
        pair = results.pair(task, claim.better, claim.worse, measure)
    if pair is None:
        return None
    found = paired_difference_over_seeds(*pair)
    if claim.within is None:
        return found, found.p_value
    one, other = pair
    borders = [
        paired_difference_over_seeds([values + border for values in one], other)
        for border in (-claim.within, claim.within)
    ]
    return found, max(border.p_value for border in borders)


def _gains(results: Results, claim: Claim, task: str, measure: str) -> list[np.ndarray] | None:
    """better - worse, [items, 1] per seed."""
    pair = results.pair(task, claim.better, claim.worse, measure)
    return None if pair is None else [one - other for one, other in zip(*pair, strict=True)]


def _rank(results: Results, claim: Claim) -> tuple[Difference, float] | None:
    measured = {
        task: pair
        for task in results.tasks
        if task in results.diagnoses and (pair := results.pair(task, claim.better, claim.worse)) is not None
    }
    if len(measured) < 3:
        return None
    places = [results.diagnoses[task]["mean_p"] for task in measured]
    found = rank_correlation_over_tasks(places, *zip(*measured.values(), strict=True))
    return found, found.p_value
