"""Results side by side: a table per domain with the paper's figures, item by item what was won and what was lost."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluation.report.inputs import Inputs, Row
from evaluation.statistics import Difference, Estimate, mean_of_tasks, paired_mean_of_tasks

PAPER = Path(__file__).with_name("paper.yaml")
TITLES = {
    "math": "Mathematics",
    "medical": "Medicine",
    "figfont": "FigFont puzzles",
    "coding": "Coding",
    "low_resource": "Low-resource languages",
    "openbookqa": "Knowledge memorisation",
    "instruction": "Instruction following",
    "demo": "Demo",
}


@dataclass(frozen=True)
class ModelRow:
    """One model in one domain. mean: unweighted over the domain's tasks, if the model was judged on all of them."""

    name: str
    label: str
    rows: dict[str, Row]  # by task
    mean: Estimate | None
    mean_difference: Difference | None


@dataclass(frozen=True)
class PaperRow:
    name: str
    figures: dict[str, float]  # by task, %
    mean: float


@dataclass(frozen=True)
class DomainTable:
    domain: str
    tasks: list[str]
    models: list[ModelRow]
    paper: list[PaperRow]  # for the same backbones if the paper has them, else for all of its own
    same_backbones: bool
    paper_where: str

    @property
    def title(self) -> str:
        return TITLES.get(self.domain, self.domain)

    @property
    def has_mean(self) -> bool:
        return len(self.tasks) > 1


def domain_tables(inputs: Inputs) -> list[DomainTable]:
    """In the order of TITLES; other domains last."""
    paper = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    found = list(dict.fromkeys(row.domain for row in inputs.rows))
    order = [*(domain for domain in TITLES if domain in found), *(domain for domain in found if domain not in TITLES)]
    return [_table(domain, inputs, paper.get(domain)) for domain in order]


def _table(domain: str, inputs: Inputs, paper: dict[str, Any] | None) -> DomainTable:
    rows = [row for row in inputs.rows if row.domain == domain]
    tasks = list(dict.fromkeys(row.task for row in rows))
    if paper:
        tasks.sort(key=lambda task: paper["tasks"].index(task) if task in paper["tasks"] else len(tasks))
    by_model: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault((row.backbone, row.label), {})[row.task] = row
    models = []
    for (backbone, label), own in by_model.items():
        baseline = by_model[backbone, next(iter(own.values())).baseline]
        models.append(
            _model_row(inputs.name(backbone, label), label, own, None if baseline is own else baseline, tasks)
        )
    if paper is None:
        return DomainTable(domain, tasks, models, [], False, "")
    known = {backbone for backbone, _ in by_model} & paper["models"].keys()
    figures = list(_paper_rows(paper, tasks, known or paper["models"].keys()))
    return DomainTable(domain, tasks, models, figures, bool(known), paper["where"])


def _model_row(
    name: str, label: str, rows: dict[str, Row], baseline: dict[str, Row] | None, tasks: list[str]
) -> ModelRow:
    mean = difference = None
    if len(tasks) > 1 and _judged(rows, tasks):
        mean = mean_of_tasks([rows[task].main.scores for task in tasks])
        if baseline is not None and _judged(baseline, tasks):
            difference = paired_mean_of_tasks(
                [rows[task].main.scores for task in tasks], [baseline[task].main.scores for task in tasks]
            )
    return ModelRow(name, label, rows, mean, difference)


def _judged(rows: dict[str, Row], tasks: list[str]) -> bool:
    return all(task in rows and rows[task].main.judged for task in tasks)


def _paper_rows(paper: dict[str, Any], tasks: list[str], backbones: Collection[str]) -> Iterator[PaperRow]:
    for name in (name for name in paper["models"] if name in backbones):
        for objective, figures in paper["models"][name].items():
            by_task = dict(zip(paper["tasks"], figures, strict=True))
            shown = {task: by_task[task] for task in tasks if task in by_task}
            if shown:
                yield PaperRow(f"{name}: {objective}", shown, sum(shown.values()) / len(shown))


@dataclass(frozen=True)
class Duel:
    """One model against the baseline of its backbone on one task, item by item (mean score of an item's answers)."""

    task: str
    name: str
    baseline: str
    won: list[
        dict[str, Any]
    ]  # largest gains first: {"item", "prompt", "target", "ours", "theirs", "text", "their_text"}
    lost: list[dict[str, Any]]
    num_won: int
    num_lost: int
    num_tied: int


def duels(inputs: Inputs, shown: int) -> list[Duel]:
    """For every judged row with a baseline; `shown` items of each kind."""
    found = []
    for row in inputs.rows:
        baseline = inputs.baseline_of(row)
        if baseline is not None and row.difference is not None:
            found.append(_duel(row, baseline, inputs, shown))
    return found


def _duel(row: Row, baseline: Row, inputs: Inputs, shown: int) -> Duel:
    ours, theirs = row.paired_with(baseline)
    items = [
        {
            "item": a["item"],
            "prompt": a["prompt"],
            "target": a["target"],
            "ours": float(np.mean(a["scores"])),
            "theirs": float(np.mean(b["scores"])),
            "text": _typical(a),
            "their_text": _typical(b),
        }
        for a, b in zip(ours.samples, theirs.samples, strict=True)
    ]
    won = sorted((i for i in items if i["ours"] > i["theirs"]), key=lambda i: i["theirs"] - i["ours"])
    lost = sorted((i for i in items if i["ours"] < i["theirs"]), key=lambda i: i["ours"] - i["theirs"])
    return Duel(
        task=row.task,
        name=inputs.name(row.backbone, row.label),
        baseline=inputs.name(baseline.backbone, baseline.label),
        won=won[:shown],
        lost=lost[:shown],
        num_won=len(won),
        num_lost=len(lost),
        num_tied=len(items) - len(won) - len(lost),
    )


def _typical(sample: dict[str, Any]) -> str:
    """The first answer whose score is nearest to the item's mean."""
    mean = np.mean(sample["scores"])
    return sample["answers"][int(np.argmin([abs(score - mean) for score in sample["scores"]]))]
