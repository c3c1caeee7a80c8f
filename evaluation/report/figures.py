"""Which figures a report has, and what they are drawn from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report import format, plots
from evaluation.report.comparison import TITLES, DomainTable
from evaluation.report.inputs import Inputs, Row

CAPTIONS = {
    "continuum": "Accuracy with T=1 sampling against the mean probability that the base model gives to the training "
    "targets. Bars are intervals over items; the grey brackets show where the paper's own domains lie.",
    "training": "The trained objective, the plain negative log-likelihood and the mean probability of the targets; "
    "the mean over seeds where there are several. Dashed: held-out rows. "
    "Objectives have different scales; nll and p are comparable.",
    "weights": "The weight that multiplies each token's NLL gradient, as a function of its current probability.",
    "diagnosis": "How probable the base model finds the training targets before fine-tuning.",
}


def draw_figures(inputs: Inputs, tables: list[DomainTable]) -> dict[str, Any]:
    """Name -> figure, for each that has inputs; a domain's is called domain-<its name>."""
    trained = list(dict.fromkeys(row.label for row in inputs.rows if row.runs))
    palette = plots.colors(trained, [label for label in inputs.labels if label not in trained])
    drawn = {}
    points = [_point(row, inputs.diagnoses[row.task]) for row in inputs.rows if row.task in inputs.diagnoses]
    if points:
        drawn["continuum"] = plots.continuum(points, palette)
        drawn["diagnosis"] = plots.diagnosis({format.title(task): report for task, report in inputs.diagnoses.items()})
    if curves := training_curves(inputs):
        drawn["training"] = plots.training_curves(curves, palette, training_curves(inputs, "validations"))
        p, weights = _weights(inputs)
        if weights:
            by_objective = {run.objective: palette[row.label] for row in inputs.rows for run in row.runs}
            drawn["weights"] = plots.weight_curves(p, weights, by_objective)
    ordered = {name: drawn[name] for name in CAPTIONS if name in drawn}
    for table in tables:
        if any(_interval(model.rows.get(task)) for model in table.models for task in table.tasks):
            ordered[f"domain-{table.domain}"] = _domain_chart(table, palette)
    return ordered


def training_curves(inputs: Inputs, of: str = "metrics") -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Name -> label -> rows, for the runs that logged something; tasks with the same runs share one.

    of: "metrics" or "validations", which are of the same names and labels, and empty where a run has none.
    """
    groups: dict[tuple[Path, ...], list[Row]] = {}
    for task in inputs.tasks:
        for backbone in dict.fromkeys(row.backbone for row in inputs.rows):
            rows = [row for row in inputs.rows if (row.task, row.backbone) == (task, backbone)]
            rows = [row for row in rows if any(run.metrics for run in row.runs)]
            if rows:
                groups.setdefault(tuple(run.directory for row in rows for run in row.runs), []).extend(rows)
    return {
        _group_name(rows, inputs): {row.label: _mean_over_seeds(row, of) for row in rows} for rows in groups.values()
    }


def _mean_over_seeds(row: Row, of: str) -> list[dict[str, Any]]:
    """The logged rows; for several seeds, their means at the steps that all of them logged."""
    logged = [{line["step"]: line for line in getattr(run, of)} for run in row.runs if run.metrics]
    steps = sorted(set.intersection(*(set(lines) for lines in logged)))
    keys = ("objective", "nll", "p")
    return [{"step": step} | {key: float(np.mean([lines[step][key] for lines in logged])) for key in keys}
            for step in steps]  # fmt: skip


def _group_name(rows: list[Row], inputs: Inputs) -> str:
    """The task's title; for several tasks, those of their domains."""
    tasks = dict.fromkeys(format.title(row.task) for row in rows)
    domains = dict.fromkeys(TITLES.get(row.domain, row.domain) for row in rows)
    return inputs.name(rows[0].backbone, ", ".join(tasks if len(tasks) == 1 else domains))


def _domain_chart(table: DomainTable, palette: Mapping[str, str]):
    columns = [format.title(task) for task in table.tasks] + ["mean"] * table.has_mean
    rows = []
    for model in table.models:
        intervals = [_interval(model.rows.get(task)) for task in table.tasks]
        if table.has_mean:
            intervals.append((model.mean.mean, model.mean.low, model.mean.high) if model.mean else None)
        rows.append((model.name, model.label, intervals))
    return plots.domain_chart(columns, rows, palette)


def _interval(row: Row | None) -> tuple[float, float, float] | None:
    if row is None or not row.main.judged:
        return None
    return tuple(row.main.content[key] for key in ("mean", "low", "high"))


def _point(row: Row, diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    result = row.main.content
    return {
        "task": format.title(row.task),
        "objective": row.label,
        "mean_p": diagnosis["mean_p"],
        **{key: result[key] for key in ("mean", "low", "high")},
    }


def _weights(inputs: Inputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    import torch

    from nemo_probsft.objectives import Objective, parse_objective

    p = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    curves = {}
    for key in dict.fromkeys(run.objective for row in inputs.rows for run in row.runs):
        objective = parse_objective(key)
        if not isinstance(objective, Objective):
            continue  # an objective that moves has no single curve
        curves[key] = (objective.weight(p.log()) * objective.keep(p.log())).numpy()
    return p.numpy(), curves
