"""What a user would have got: from the shortlist of `diagnose`, and from an objective that need not be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.statistics import Difference, Estimate, mean_of_tasks_over_seeds, paired_mean_of_tasks_over_seeds
from experiments.real.scores import Results, difference

TOLERANCE = 0.02  # how far below the best fixed objective an adaptive one may end
SAME_GRADIENT = {"dft": "p"}  # both weigh the gradient of -log p by p: they differ by rounding


@dataclass(frozen=True)
class Shortlisted:
    """The best fixed objective on the test items, and how far above the shortlist's first it is."""

    task: str
    region: str
    best: str
    place: str
    lost: Difference | None


@dataclass(frozen=True)
class Unchosen:
    """An adaptive objective against the fixed one that validation would have chosen."""

    task: str
    objective: str
    best: str
    found: Difference

    @property
    def verdict(self) -> str:
        if self.found.low >= -TOLERANCE:
            return "reached"
        if self.found.high < -TOLERANCE:
            return "missed"
        return "reached by the mean only" if self.found.mean >= -TOLERANCE else "missed by the mean only"


def shortlisted(results: Results) -> list[Shortlisted]:
    found = []
    for task in results.tasks:
        best = results.best_fixed(task, by_test=True)
        if best is None or task not in results.diagnoses:
            continue
        diagnosis = results.diagnoses[task]
        first = results.chosen(task, diagnosis["shortlist"][0])
        lost = None if first is best else difference(best, first, results.main(task))
        place = _place(best.objective, diagnosis["shortlist"])
        found.append(Shortlisted(task, diagnosis["region"], best.objective, place, lost))
    return found


def _place(best: str, shortlist: Sequence[str]) -> str:
    key = SAME_GRADIENT.get(best, best)
    if key not in shortlist:
        return "not in the list"
    place = shortlist.index(key)
    return ("first", "second")[place] if place < 2 else f"number {place + 1} of {len(shortlist)}"


def unchosen(results: Results, objective: str) -> list[Unchosen]:
    found = []
    for task in results.tasks:
        best = results.best_fixed(task)
        of = difference(results.chosen(task, objective), best, results.main(task))
        if best is not None and of is not None:
            found.append(Unchosen(task, objective, best.objective, of))
    return found


def on_average(results: Results, one: str, other: str) -> tuple[Difference, int] | None:
    """Mean of one - other over the tasks with judged answers, each with the same weight; and their number."""
    pairs = [pair for task in results.judged if (pair := results.pair(task, one, other)) is not None]
    return (paired_mean_of_tasks_over_seeds(*zip(*pairs, strict=True)), len(pairs)) if pairs else None


def averages(results: Results) -> dict[str, Estimate]:
    """Mean accuracy at T=1 over the judged tasks, of the objectives that were run on all of them; the best first."""
    runs = {key: [results.chosen(task, key) for task in results.judged] for key in results.objectives}
    means = {
        key: mean_of_tasks_over_seeds([of.values("sampled") for of in by_task if of is not None])
        for key, by_task in runs.items()
        if by_task and None not in by_task
    }
    return dict(sorted(means.items(), key=lambda item: -item[1].mean))
