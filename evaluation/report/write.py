"""One page from any number of runs: per domain a table beside the paper's figures, a plot, what was won and lost, the
answers; the continuum, curves, weights, diagnoses; where the numbers come from. HTML, and the tables as Markdown too.
"""

from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

from evaluation.report import format
from evaluation.report.comparison import DomainTable, Duel, domain_tables, duels
from evaluation.report.figures import CAPTIONS, draw_figures
from evaluation.report.inputs import BASELINE, Inputs, read_inputs
from evaluation.statistics import CONFIDENCE, RESAMPLES
from nemo_probsft.pages.templates import load_template

HTML, MARKDOWN = (Path(__file__).with_name(f"report.{kind}.jinja") for kind in ("html", "md"))
FILTERS = {"markdown_cell": format.markdown_cell, "breakable": format.breakable}
NUM_EXAMPLES = 6  # items whose answers are shown per task, and items won and lost per duel
MAX_CHARS = 4000  # of a prompt or an answer on the page; samples.jsonl has all


HEADINGS = {
    "continuum": "The continuum",
    "training": "Training",
    "weights": "The objectives",
    "diagnosis": "The base model on the training sets",
}


def write_report(runs: list[Path], results: list[Path], diagnoses: list[Path], output: Path) -> Path:
    """Write `output` (self-contained HTML), the same as Markdown and the figures as PNG beside it; returns `output`.

    runs: training run directories. results: results.json files. diagnoses: JSON files of `nemo-probsft diagnose`, with
    the task's name in their path.
    Raises: ValueError naming the file for anything missing or unreadable; nothing is written then.
    """
    inputs = read_inputs(runs, results, diagnoses)
    tables, fought = domain_tables(inputs), duels(inputs, NUM_EXAMPLES)
    images = {name: _png(figure) for name, figure in draw_figures(inputs, tables).items()}
    content = {
        "domains": [_domain(table, inputs, fought) for table in tables],
        "baseline": BASELINE,
        "confidence": f"{CONFIDENCE:.0%}",
        "resamples": RESAMPLES,
        "captions": CAPTIONS,
        "headings": {name: heading for name, heading in HEADINGS.items() if name in images},
        "images": list(images),
        "regions": [format.region(task, diagnosis) for task, diagnosis in inputs.diagnoses.items()],
        "provenance": [
            format.provenance(inputs.name(row.backbone, row.label), result.content)
            for row in inputs.rows
            for result in (row.greedy, row.sampled)
            if result
        ],
        "provenance_columns": format.PROVENANCE,
        "runs": inputs.runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (output.parent / f"{name}.png").write_bytes(image)
    encoded = {name: b64encode(image).decode() for name, image in images.items()}
    output.write_text(load_template(HTML, FILTERS).render(content, encoded=encoded), encoding="utf-8")
    markdown = load_template(MARKDOWN, FILTERS).render(content)
    output.with_suffix(".md").write_text(markdown, encoding="utf-8")
    return output


def report_table(runs: list[Path], results: list[Path]):
    """Every result in a terminal, as a rich.table.Table."""
    from rich.table import Table

    inputs = read_inputs(runs, results, [])
    table = Table(title=f"Accuracy in %, {CONFIDENCE:.0%} intervals", title_justify="left")
    for heading in ("task", "objective", "greedy", "T=1 mean@n"):
        table.add_column(heading, no_wrap=True)
    table.add_column(f"difference to {BASELINE}", no_wrap=True)
    for previous, row in zip([None, *inputs.rows], inputs.rows, strict=False):
        if previous and previous.task != row.task:
            table.add_section()
        table.add_row(
            format.title(row.task),
            inputs.name(row.backbone, row.label),
            format.accuracy_with_n(row.greedy),
            format.accuracy_with_n(row.sampled),
            "-" if row.difference is None else format.difference(row.difference),
        )
    return table


def _domain(table: DomainTable, inputs: Inputs, fought: list[Duel]) -> dict[str, Any]:
    return {
        "key": table.domain,
        "title": table.title,
        "columns": [format.column(task, [model.rows.get(task) for model in table.models]) for task in table.tasks],
        "has_mean": table.has_mean,
        "models": [format.model(model, table.tasks) for model in table.models],
        "paper": [format.paper(row, table.tasks, table.has_mean) for row in table.paper],
        "same_backbones": table.same_backbones,
        "paper_where": table.paper_where,
        "image": f"domain-{table.domain}",
        "duels": [
            (format.title(task), [_duel(duel) for duel in fought if duel.task == task])
            for task in table.tasks
            if any(duel.task == task for duel in fought)
        ],
        "score_lines": _score_lines([duel for duel in fought if duel.task in table.tasks], table.tasks),
        "examples": [
            {"task": format.title(task), "items": items} for task in table.tasks if (items := _examples(inputs, task))
        ],
    }


def _score_lines(fought: list[Duel], tasks: list[str]) -> list[dict[str, Any]]:
    """Per model and its baseline: "won : lost (tied)" for each task."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for duel in fought:
        score = f"{duel.num_won} : {duel.num_lost} ({duel.num_tied})"
        lines.setdefault((duel.name, duel.baseline), {})[duel.task] = score
    return [
        {"name": name, "baseline": baseline, "scores": [scores.get(task, "-") for task in tasks]}
        for (name, baseline), scores in lines.items()
    ]


def _duel(duel: Duel) -> dict[str, Any]:
    def shown(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [item | {key: _cut(item[key]) for key in ("prompt", "target", "text", "their_text")} for item in items]

    return {
        "name": duel.name,
        "baseline": duel.baseline,
        "groups": [("won", shown(duel.won)), ("lost", shown(duel.lost))],
    }


def _examples(inputs: Inputs, task: str) -> list[dict[str, Any]]:
    """The first items with the first answer of every model and its share of right answers."""
    rows = [row for row in inputs.rows if row.task == task]
    return [
        {
            "prompt": _cut(samples[0]["prompt"]),
            "target": _cut(samples[0]["target"]),
            "answers": [
                {
                    "label": inputs.name(row.backbone, row.label),
                    "text": _cut(sample["answers"][0]),
                    "score": format.share(sample["scores"]),
                    "notes": format.answer_notes(sample),
                }
                for row, sample in zip(rows, samples, strict=True)
            ],
        }
        for samples in zip(*(row.main.samples[:NUM_EXAMPLES] for row in rows), strict=False)
    ]


def _cut(text: str) -> str:
    text = str(text)
    left_out = len(text) - MAX_CHARS
    return text if left_out <= 0 else f"{text[:MAX_CHARS]} ... ({left_out} characters more in samples.jsonl)"


def _png(figure) -> bytes:
    from matplotlib import pyplot

    buffer = BytesIO()
    # No version string in the file: the same inputs give the same bytes with every matplotlib.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()
