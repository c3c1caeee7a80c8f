"""What the cells of docs/real lack of the full grid, as list items of the page."""

from __future__ import annotations

from experiments.real.scores import ADAPTIVE, FIXED, NUM_RATES, SEEDS, TASKS, Results
from experiments.real.text import codes, count, listed

OBJECTIVES = (*FIXED, *ADAPTIVE)


def sections(results: Results) -> list[str]:
    full = (
        f"The full grid has {len(TASKS)} tasks, {len(OBJECTIVES)} objectives, {NUM_RATES} learning rates or more for "
        f"each pair of them, and seeds {listed(SEEDS)}."
    )
    items = [
        text for task in {**dict.fromkeys(TASKS), **dict.fromkeys(results.tasks)} for text in _of_task(results, task)
    ]
    return (
        [f"{full} Of this, the following is missing:", "\n".join(items)] if items else [f"{full} No cell is missing."]
    )


def _of_task(results: Results, task: str) -> list[str]:
    objectives = dict.fromkeys([*OBJECTIVES, *results.objectives])
    runs = {key: results.rates(task, key) for key in objectives}
    if not any(runs.values()):
        return [f"- `{task}`: every cell" + (" but that of the base model" if results.base(task) else "") + "."]
    missing = []
    if results.base(task) is None:
        missing.append("the base model")
    if task not in results.diagnoses:
        missing.append("the diagnosis")
    if none := [key for key, by_rate in runs.items() if not by_rate and key in OBJECTIVES]:
        missing.append(f"every cell of {codes(none)}")
    for num_rates in range(1, NUM_RATES):
        if few := [key for key, by_rate in runs.items() if len(by_rate) == num_rates]:
            missing.append(f"{count(NUM_RATES - num_rates, 'learning rate')} of {codes(few)}")
    unchosen = set()
    for key in runs:
        chosen = results.chosen(task, key)
        if chosen is not None and (seeds := [seed for seed in SEEDS if seed not in chosen.seeds]):
            missing.append(f"{count(len(seeds), 'seed')} of `{key}` at the chosen learning rate")
        if any(set(SEEDS) - set(of.seeds) for of in runs[key].values() if of is not chosen):
            unchosen.add(key)
    if unchosen:
        missing.append(
            f"seeds at learning rates that were not chosen, of {codes(key for key in runs if key in unchosen)}"
        )
    return [f"- `{task}`: {'; '.join(missing)}."] if missing else []
