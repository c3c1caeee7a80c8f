"""The tables of scores in docs/real-continuum.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.real.scores import MEASURES, TASKS, Results, Runs, difference
from experiments.real.text import entry, listed, number, rate, table


def tasks(results: Results) -> str:
    header = ("task", "what", "mean p of the training answers", "region", *MEASURES.values())
    rows = []
    for task in results.tasks:
        base, found = results.base(task), results.diagnoses.get(task)
        place = ["-", "-"]
        if found is not None:
            low, high = found["interval_95"]
            place = [f"{found['mean_p']:.3f} [{low:.3f}, {high:.3f}]", found["region"]]
        scores = [
            number(base.estimate(measure), measure) if base and measure in results.measures(task) else "-"
            for measure in MEASURES
        ]
        rows.append((f"`{task}`", TASKS.get(task, "-"), *place, *scores))
    return table(header, rows)


def scores(results: Results, tasks: Sequence[str], measure: str, lr: float | None = None) -> str | None:
    """Objectives x tasks, the base model first, at the chosen learning rates or all at `lr`; None without any cell.

    Bold: no other objective's interval is better from end to end.
    """
    found = {(task, key): _runs(results, task, key, lr) for task in tasks for key in results.objectives}
    runs = {name: of for name, of in found.items() if of is not None}
    if not runs:
        return None
    columns = [task for task in tasks if any(task == of for of, _ in runs)]
    sign = -1 if measure == "nll" else 1
    ends = {
        name: sorted(sign * end for end in (of.estimate(measure).low, of.estimate(measure).high))
        for name, of in runs.items()
    }
    highest = {task: max(low for (of, _), (low, _) in ends.items() if of == task) for task in columns}
    bases = [results.base(task) for task in columns]
    rows = [["base model", *("-" if of is None else number(of.estimate(measure), measure) for of in bases)]]
    for key in results.objectives:
        row = [f"`{key}`"]
        for task in columns:
            if (task, key) in runs:
                bold = ends[task, key][1] >= highest[task]
                row.append(entry(runs[task, key], measure, bold=bold, with_rate=lr is None))
            else:
                row.append("-")
        rows.append(row)
    return table(("objective", *(f"`{task}`" for task in columns)), rows)


def effect_of_choice(results: Results, lr: float) -> str:
    """How much better the chosen learning rates are than `lr` for all, by the seeds that were run at both."""
    gains, moved, changed = [], {}, []
    for task in results.tasks:
        measure = results.main(task)
        means: dict[str, tuple[float, float]] = {}
        for key in results.objectives:
            fixed, chosen = results.rates(task, key).get(lr), results.chosen(task, key)
            gain = difference(chosen, fixed, measure)
            if fixed is not None and chosen is not None and gain is not None:
                means[key] = chosen.estimate(measure).mean, fixed.estimate(measure).mean
                gains.append(100 * gain.mean)
                if chosen is not fixed:
                    moved[task, key] = gains[-1]
        best = [max(means, key=lambda key: means[key][way], default="") for way in (0, 1)]
        if best[0] != best[1]:
            changed.append(f"`{task}` (`{best[1]}` at {rate(lr)}, `{best[0]}` at the chosen ones)")
    text = (
        f"The tables of this section are at {rate(lr)}. Validation chose another learning "
        f"rate for {len(moved)} of {len(gains)} pairs of task and objective. Over all pairs, choosing is worth "
        f"{np.mean(gains):+.1f} points of the test score"
    )
    if moved:
        task, key = max(moved, key=lambda name: abs(moved[name]))
        text += f"; its largest effect is {moved[task, key]:+.1f} points, for `{key}` on `{task}`"
    best = f"differs on {listed(changed)}" if changed else "is the same either way on every task"
    return f"{text}. The objective with the best mean test score {best}."


def _runs(results: Results, task: str, objective: str, lr: float | None) -> Runs | None:
    return results.chosen(task, objective) if lr is None else results.rates(task, objective).get(lr)
