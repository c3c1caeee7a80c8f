"""The sections of docs/real-continuum.md that judge: the claims, `diagnose`'s shortlist, the adaptive objectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.statistics import Difference
from experiments.real.candidates import CANDIDATES
from experiments.real.claims import CLAIMS, LEVEL, Claim, Judged, judge
from experiments.real.goals import TOLERANCE, Unchosen, averages, on_average, shortlisted, unchosen
from experiments.real.plan import BASE
from experiments.real.scores import FIXED, Results
from experiments.real.text import codes, count, listed, number, table
from experiments.wording import num_seeds, points
from nemo_probsft.objectives import parse_objective

CLAIMS_INTRODUCTION = f"""\
These claims, the tasks that they speak of and the margins were written down before any cell was run, in
`experiments/real/claims.py`. They carry the paper's results over to these tasks; only the fifth is from our own
[continuum.md](continuum.md).
A claim *holds* on a task if the whole 95 % interval is on its side. It *does NOT hold* if the whole interval is on the
other side. Where the claim has a margin, the sides are inside and outside of it. Several claims are judged at once, so
Holm's method corrects the p-values. Unless the corrected p is below {LEVEL}, the claim *is not decided*, whatever the
interval says."""

RANK = """\
A difference is in points of accuracy at T=1, or of mean p where solutions are scored by their likelihood; that of
-log p is in nats. The last claim ranks both kinds together. Its interval resamples the items and seeds of these tasks,
and its p permutes the tasks: other tasks could give another order."""

SHORTLIST = """\
`nemo-probsft diagnose` looks at the base model and the training rows only, and names a few objectives to try, the best
bet first. The table has the fixed objective that turned out best on the test items, its place in that list, and what
a user loses who tries the first of the list only. If that interval has 0 in it, the two may be equally good. `dft`
counts as `p`, since it has the same gradient."""

GOALS = f"""\
`prior` looks at the base model before the first step, the adaptive objectives at the model as it learns. Both are
worth having if it costs nothing to leave the choice to them. The table compares them with the fixed objective that
validation chose on each task. The goal is to be at most {100 * TOLERANCE:.0f} points below. It is
*reached* if the whole interval is above -{100 * TOLERANCE:.0f} points and *missed* if all of it is below; otherwise the
table says which of the two the mean alone would make it. These p-values are not corrected. Where solutions are scored
by their likelihood, points are of mean p, while validation chooses by -log p, which `original` minimises.

`prior` has an alpha for each training file. `mixture` has two files, so `prior` is told which half a row is from, as
is no other objective of the package; the other tasks have one. Where the base model's mean p is below 0.3, alpha is 0
and the steps are those of `original`; from 0.7 on, it is 1 and they are those of `p`. It was made when the cells of the
others had been run; its two constants are those that `adaptive` had before the first cell."""

AVERAGE = """\
The second goal is to be above every single fixed objective on average over the tasks whose answers are judged right or
wrong, each with the same weight. It is *reached* where every interval is above 0. Seeds and items are resampled within
a task."""

LABELS = """\
`adaptive-by-label` keeps a mean for each label, that is, for each token of the vocabulary that is a target. A label
that is seen a few times only has next to no mean of its own and takes that of all tokens. The table counts the labels
of a task's training rows, once each; the shares are of the labels that occur at all. Its last columns have alpha in the
last ten steps: the mean, and the standard deviation between the tokens of a step. Where that is small, all tokens are
trained alike, as with `adaptive`."""
IN_THE_PACKAGE = "; in the package, `adaptive-by-confidence`, whose mean of all weighs steps instead of their tokens"
BY_GROUP = ("adaptive-by-label", "adaptive-by-confidence")


def claims(results: Results) -> list[str]:
    stated = [f"{n}. {claim.text} ({_formula(claim)})" for n, claim in enumerate(CLAIMS, 1)]
    parts = ["## Claims, stated before the runs", CLAIMS_INTRODUCTION, "\n".join(stated)]
    judged = judge(results)
    if not judged:
        return parts
    rows = [(str(of.number), _task(of.task), _difference(of), f"{of.corrected_p:.2g}", of.verdict) for of in judged]
    parts += [
        f"{count(len(judged), 'comparison')}; {_tally([of.verdict for of in judged])}.",
        table(("claim", "task", "difference", "corrected p", "verdict"), rows),
        RANK,
    ]
    if unmeasured := sorted(set(range(1, len(CLAIMS) + 1)) - {of.number for of in judged}):
        parts.append(f"Not measured, for want of cells: {listed(unmeasured)}.")
    return parts


def shortlists(results: Results) -> list[str]:
    found = shortlisted(results)
    if not found:
        return []
    places = Counter(of.place for of in found)
    rows = [
        (_task(of.task), of.region, f"`{of.best}`", of.place, "-" if of.lost is None else points(of.lost))
        for of in found
    ]
    return [
        "## Where `diagnose`'s shortlist had the winner",
        SHORTLIST,
        table(("task", "region", "best fixed objective", "place in the list", "best - first of the list"), rows),
        f"Of {count(len(found), 'task')}, the best fixed objective is the first of the list on {places['first']}, "
        f"among the first two on {places['first'] + places['second']}, and not in the list on "
        f"{places['not in the list']}.",
    ]


def goals(results: Results) -> list[str]:
    by_objective = {key: found for key in results.adaptive if (found := unchosen(results, key))}
    if not by_objective:
        return []
    rows = [_unchosen(of) for found in by_objective.values() for of in found]
    tallies = [
        f"- `{key}`: {count(len(found), 'task')}; {_tally([of.verdict for of in found])}."
        for key, found in by_objective.items()
    ]
    return [
        "## An objective that need not be chosen",
        GOALS,
        table(("objective", "task", "best fixed by validation", "difference", "goal"), rows),
        "\n".join(tallies),
        *_averages(results),
        "\n".join(["What they are:", "", *(f"- `{key}`: {_what(key)}." for key in results.adaptive)]),
    ]


def _what(key: str) -> str:
    """In words; the package's candidate says which key it has there."""
    if key not in CANDIDATES:
        return parse_objective(key).formula
    said = CANDIDATES[key].formula
    return said + IN_THE_PACKAGE if key == "by-confidence" else f"{said}; an experiment, not in the package"


def labels(results: Results) -> list[str]:
    by_task = {cell["task"]: cell["labels"] for cell in results.cells if "labels" in cell}
    rows = [
        (f"`{task}`", *_labels(by_task[task]), *(_alpha(results, task, key) for key in BY_GROUP))
        for task in results.tasks
        if task in by_task
    ]
    counts = ("targets", "different labels", "seen once", "seen 10 times or more")
    header = ("task", *counts, *(f"alpha, `{key}`" for key in BY_GROUP))
    return ["### Labels that are seen a few times only", LABELS, table(header, rows)] if rows else []


def _labels(of: Mapping[str, int]) -> list[str]:
    shares = [f"{100 * of[name] / of['distinct']:.0f} %" for name in ("seen_once", "seen_10")]
    return [f"{of['targets']:,}", f"{of['distinct']:,}", *shares]


def _alpha(results: Results, task: str, objective: str) -> str:
    """Of the cells at the chosen learning rate that have measured it."""
    runs = results.chosen(task, objective)
    cells = [] if runs is None else [cell for cell in runs.cells.values() if "last_alpha" in cell]
    if not cells:
        return "-"
    mean, spread = (np.mean([cell[name] for cell in cells]) for name in ("last_alpha", "last_alpha_spread"))
    return f"{mean:.2f} ± {spread:.2f}, {num_seeds([cell['seed'] for cell in cells])}"


def _formula(claim: Claim) -> str:
    better = "base model" if claim.better == BASE else f"`{claim.better}`"
    beyond = " at T=1, minus the same difference greedily," if claim.measure == "gap" else ""
    return f"{better} - `{claim.worse}`{beyond}" + (f" on {codes(claim.tasks)}" if claim.tasks else "")


def _task(name: str) -> str:
    return name if " " in name else f"`{name}`"


def _difference(judged: Judged) -> str:
    found, measure = judged.found, judged.claim.measure
    if measure not in ("nll", "rank"):
        return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{text} nats" if measure == "nll" else f"correlation {text}, {count(found.num_items, 'task')}"


def _tally(verdicts: Sequence[str]) -> str:
    """The most frequent first."""
    return ", ".join(f"{verdict}: {number}" for verdict, number in Counter(verdicts).most_common())


def _unchosen(of: Unchosen) -> tuple[str, ...]:
    return f"`{of.objective}`", f"`{of.task}`", f"`{of.best}`", points(of.found), of.verdict


def _averages(results: Results) -> list[str]:
    rows, said = [], []
    for key in results.adaptive:
        found = {fixed: of for fixed in results.fixed if (of := on_average(results, key, fixed)) is not None}
        if not found:
            continue
        rows.append([f"`{key}`", *(_average(found.get(fixed)) for fixed in results.fixed)])
        below = [fixed for fixed, (of, _) in found.items() if of.low <= 0]
        unseen = [fixed for fixed in FIXED if fixed not in found]
        text = f"missed against {codes(below)}" if below else "reached"
        said.append(f"- `{key}`: {text}{f'; not compared with {codes(unseen)}' if unseen else ''}.")
    if not rows:
        return []
    return [AVERAGE, table(("minus", *(f"`{key}`" for key in results.fixed)), rows), "\n".join(said), *_means(results)]


def _average(found: tuple[Difference, int] | None) -> str:
    if found is None:
        return "-"
    of, num_tasks = found
    return f"{100 * of.mean:+.1f} [{100 * of.low:+.1f}, {100 * of.high:+.1f}]<br>{count(num_tasks, 'task')}"


def _means(results: Results) -> list[str]:
    """The objectives that were run on all judged tasks."""
    means = averages(results)
    if not means:
        return []
    rows = [(f"`{key}`", number(mean, "sampled")) for key, mean in means.items()]
    text = f"Mean accuracy at T=1 over {codes(results.judged)}, of the objectives that were run on all of them:"
    return [text, table(("objective", "accuracy at T=1, %"), rows)]
