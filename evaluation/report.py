"""One page from any number of runs: the table, the continuum, curves, weights, diagnoses, answers, provenance."""

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation import figures
from evaluation.report_inputs import BASELINE, Inputs, Result, Row, read_inputs
from evaluation.statistics import CONFIDENCE, RESAMPLES

NUM_EXAMPLES = 8  # items whose answers are shown per task


def write_report(runs: list[Path], results: list[Path], diagnoses: list[Path], output: Path) -> Path:
    """Write `output` (self-contained HTML) and the figures as PNG beside it; returns `output`.

    runs: training run directories. results: results.json files. diagnoses: JSON files of `nemo-probsft diagnose`, with
    the task's name in their path.
    Raises: ValueError naming the file for anything missing or unreadable; nothing is written then.
    """
    inputs = read_inputs(runs, results, diagnoses)
    images = {name: _png(figure) for name, figure in draw_figures(inputs).items()}
    page = _template().render(
        table=[_cells(row) for row in inputs.rows],
        baseline=BASELINE,
        confidence=f"{CONFIDENCE:.0%}",
        resamples=RESAMPLES,
        images={name: b64encode(image).decode() for name, image in images.items()},
        captions=CAPTIONS,
        examples={title(task): _examples(inputs, task) for task in inputs.tasks},
        provenance=[_provenance(row, result) for row in inputs.rows for result in (row.greedy, row.sampled) if result],
        runs=inputs.runs,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (output.parent / f"{name}.png").write_bytes(image)
    output.write_text(page, encoding="utf-8")
    return output


def report_table(runs: list[Path], results: list[Path]):
    """The same table for a terminal, as a rich.table.Table."""
    from rich.table import Table

    rows = [_cells(row) for row in read_inputs(runs, results, []).rows]
    table = Table(title=f"Accuracy in %, {CONFIDENCE:.0%} intervals", title_justify="left")
    for heading in ("task", "objective", "greedy", "T=1 mean@n"):
        table.add_column(heading, no_wrap=True)
    table.add_column(f"difference to {BASELINE}", no_wrap=True)
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous and previous["task"] != row["task"]:
            table.add_section()
        table.add_row(row["task"], row["objective"], row["greedy"], row["sampled"], row["difference"])
    return table


CAPTIONS = {
    "continuum": "Accuracy with T=1 sampling against the mean probability that the base model gives to the training "
    "targets. Bars are intervals over items; the grey brackets show where the paper's own domains lie.",
    "training": "The trained objective, the plain negative log-likelihood and the mean probability of the targets. "
    "Objectives have different scales; nll and p are comparable.",
    "weights": "The weight that multiplies each token's NLL gradient, as a function of its current probability.",
    "diagnosis": "How probable the base model finds the training targets before fine-tuning.",
}


def draw_figures(inputs: Inputs) -> dict[str, Any]:
    """Name -> figure, for what there are inputs of."""
    trained = list(dict.fromkeys(row.label for row in inputs.rows if row.run is not None))
    palette = figures.colors(trained, [label for label in inputs.labels if label not in trained])
    drawn = {}
    points = [_point(row, inputs.diagnoses[row.task]) for row in inputs.rows if row.task in inputs.diagnoses]
    if points:
        drawn["continuum"] = figures.continuum(points, palette)
        drawn["diagnosis"] = figures.diagnosis({title(task): report for task, report in inputs.diagnoses.items()})
    if curves := inputs.curves():
        drawn["training"] = figures.training_curves({title(task): c for task, c in curves.items()}, palette)
        drawn["weights"] = figures.weight_curves(*_weights(inputs), palette)
    order = [name for name in CAPTIONS if name in drawn]
    return {name: drawn[name] for name in order}


def title(task: str) -> str:
    return task.removeprefix("demo_")


def _point(row: Row, diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    result = row.main.content
    return {
        "task": title(row.task),
        "objective": row.label,
        "mean_p": diagnosis["mean_p"],
        **{key: result[key] for key in ("mean", "low", "high")},
    }


def _weights(inputs: Inputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    import torch

    from nemo_probsft.objectives import parse_objective

    p = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    curves = {}
    for key in dict.fromkeys(row.run.objective for row in inputs.rows if row.run is not None):
        objective = parse_objective(key)
        curves[key] = (objective.weight(p.log()) * objective.keep(p.log())).numpy()
    return p.numpy(), curves


def _cells(row: Row) -> dict[str, str]:
    difference = row.difference
    return {
        "task": title(row.task),
        "objective": row.label,
        "greedy": _accuracy(row.greedy),
        "sampled": _accuracy(row.sampled),
        "difference": "-" if difference is None else _difference_text(difference),
        "sign": ""
        if difference is None
        else "better"
        if difference.low > 0
        else "worse"
        if difference.high < 0
        else "",
    }


def _accuracy(result: Result | None) -> str:
    if result is None:
        return "-"
    c = result.content
    interval = f"[{100 * c['low']:.1f}, {100 * c['high']:.1f}]"
    return f"{100 * c['mean']:.1f} {interval}  n={c['num_items']}x{c['samples_per_item']}"


def _difference_text(difference) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.1f} [{low:+.1f}, {high:+.1f}]  {_p_value(difference.p_value)}"


def _p_value(value: float) -> str:
    return f"p={value:.2g}" if value > 1 / (RESAMPLES + 1) + 1e-12 else f"p<={value:.1g}"


def _examples(inputs: Inputs, task: str) -> list[dict[str, Any]]:
    """The first items with the first answer of every model and its share of right answers."""
    rows = [row for row in inputs.rows if row.task == task]
    samples = {row.label: row.main.samples[:NUM_EXAMPLES] for row in rows}
    return [
        {
            "prompt": items[0]["prompt"],
            "target": items[0]["target"],
            "answers": [
                {
                    "label": label,
                    "text": item["answers"][0],
                    "score": float(np.mean(item["scores"])),
                    "n": len(item["scores"]),
                }
                for label, item in zip(samples, items, strict=True)
            ],
        }
        for items in zip(*samples.values(), strict=False)
    ]


def _provenance(row: Row, result: Result) -> dict[str, Any]:
    c = result.content
    notes = {"cut_at_token_limit": "cut at the token limit", "prompt_too_long": "prompts too long"}
    notes["timed_out_judgements"] = "judgements timed out"
    return {
        "task": f"{c['task']} {c['task_version']}",
        "objective": row.label,
        "decoding": c["decoding"],
        "n": f"{c['num_items']} x {c['samples_per_item']}",
        "seed": c["seed"],
        "generation": ", ".join(f"{key} {value}" for key, value in c["generation"].items() if key != "until"),
        "versions": ", ".join(f"{name} {version}" for name, version in c["versions"].items()),
        "hashes": f"model {c['model_hash'][:8]}, data {c['data_hash'][:8]}, prompts {c['prompt_hash'][:8]}",
        "notes": ", ".join(f"{c[key]} {text}" for key, text in notes.items() if c[key]) or "-",
    }


def _png(figure) -> bytes:
    from matplotlib import pyplot

    buffer = BytesIO()
    # No version string in the file: the same inputs give the same bytes with every matplotlib.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _template():
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.jinja")
