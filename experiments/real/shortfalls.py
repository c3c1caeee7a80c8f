"""What the cells of docs/real lack of the full grid."""

from __future__ import annotations

from experiments.real.plan import SEEDS, missing
from experiments.real.scores import ADAPTIVE, FIXED, TASKS, Results
from experiments.real.text import codes, count, listed, rate, table
from experiments.wording import num_seeds

OBJECTIVES = (*FIXED, *ADAPTIVE)


def sections(results: Results) -> list[str]:
    tasks = [*results.tasks, *(task for task in TASKS if task not in results.tasks)]
    pairs = [(task, key) for task in tasks for key in OBJECTIVES]
    lacking = [pair for pair in pairs if not _complete(results, *pair)]
    of = results.setting
    parts = [
        f"A pair of task and objective is complete if seed 0 was run at {listed(map(rate, of.rates))}, and beyond them "
        f"where the best is an outer one; seeds {listed(SEEDS[1:])} at the chosen rate; and "
        f"{num_seeds(of.common_seeds)} at {rate(of.common_rate)}, the one for all. "
        f"{len(pairs) - len(lacking)} of {len(pairs)} pairs of {count(len(OBJECTIVES), 'objective')} are complete."
    ]
    missing = {
        "no diagnosis": [task for task in tasks if task not in results.diagnoses],
        "no cell of the base model": [task for task in tasks if results.base(task) is None],
    }
    parts += [f"These tasks have {what}: {codes(of)}." for what, of in missing.items() if of]
    if others := [key for key in results.objectives if key not in OBJECTIVES]:
        parts.append(f"Tried on some tasks only, to learn from: {codes(others)}.")
    return parts + [_table(results, lacking)] * bool(lacking)


def _complete(results: Results, task: str, objective: str) -> bool:
    cells = missing(results.cells, results.setting, [task], [objective])
    return not any(cell.objective == objective for cell in cells)


def _table(results: Results, lacking: list[tuple[str, str]]) -> str:
    tasks, objectives = (list(dict.fromkeys(pair[side] for pair in lacking)) for side in (0, 1))
    rows = [
        [f"`{key}`", *(_seeds(results, task, key) if (task, key) in lacking else "complete" for task in tasks)]
        for key in objectives
    ]
    text = "The others have this many seeds at each of their learning rates, the chosen one in bold:"
    return f"{text}\n\n{table(('objective', *(f'`{task}`' for task in tasks)), rows)}"


def _seeds(results: Results, task: str, objective: str) -> str:
    chosen = results.chosen(task, objective)
    counts = [
        f"**{len(of.seeds)}**" if of is chosen else str(len(of.seeds)) for of in results.rates(task, objective).values()
    ]
    return ", ".join(counts) or "no cell"
