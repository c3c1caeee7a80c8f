"""Numbers and names as text, for the report's pages and tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from evaluation.report.comparison import ModelRow, PaperRow
from evaluation.report.inputs import Row
from evaluation.report.pooling import Result
from evaluation.statistics import RESAMPLES, Difference

COUNTS = {
    "cut_at_token_limit": "answers cut at the token limit",
    "prompt_too_long": "prompts too long for the context",
    "timed_out_judgements": "judgements timed out",
}
EXTRAS = {"majority": "maj@{n}", "jaro_winkler": "Jaro-Winkler", "letter_found": "letter found"}
PROVENANCE = ("task", "model", "reproduces", "decoding", "n", "seed", "generation", "versions", "hashes", "notes")


def title(task: str) -> str:
    return task.removeprefix("demo_").removesuffix("_zero_shot").removesuffix("_letter")


def column(task: str, rows: Sequence[Row | None]) -> dict[str, str]:
    """Head of a table's column: the task, with its number of items and answers if all models have the same."""
    counts = {(row.main.content["num_items"], row.main.content["samples_per_item"]) for row in rows if row is not None}
    n = "{} x {}".format(*counts.pop()) if len(counts) == 1 else "n differs"
    return {"title": title(task), "n": n}


def model(row: ModelRow, tasks: Sequence[str]) -> dict[str, Any]:
    """Two rows of a table: figures with intervals and notes, and paired differences."""
    cells = [_cell(row.rows.get(task)) for task in tasks]
    differences = [_signed(row.rows[task].difference if task in row.rows else None) for task in tasks]
    return {
        "name": row.name,
        "cells": cells,
        "mean": None if row.mean is None else _figure(row.mean.mean, row.mean.low, row.mean.high),
        "differences": differences,
        "mean_difference": _signed(row.mean_difference),
        "compared": any(cell["text"] for cell in differences),
    }


def paper(row: PaperRow, tasks: Sequence[str], has_mean: bool) -> dict[str, Any]:
    figures = [f"{row.figures[task]:.2f}" if task in row.figures else "-" for task in tasks]
    return {"name": row.name, "figures": figures + ([f"{row.mean:.2f}"] if has_mean else [])}


def _cell(row: Row | None) -> dict[str, Any]:
    if row is None:
        return {"figure": "-", "interval": "", "notes": []}
    content = row.main.content
    if not row.main.judged:
        return {"figure": _judgement(content), "interval": "", "notes": [f"{content['mean_tokens']:.0f} tokens"]}
    notes = [f"{EXTRAS.get(name, name).format(n=_answers_per_model(content))} {100 * extra['mean']:.1f}"
             for name, extra in content["extra"].items()]  # fmt: skip
    if row.greedy is not None and row.sampled is not None:
        notes.append(f"greedy {accuracy(row.greedy)}")
    notes += [f"{content[key]} {text}" for key, text in COUNTS.items() if content[key]]
    return _figure(content["mean"], content["low"], content["high"]) | {"notes": notes}


def _answers_per_model(content: dict[str, Any]) -> int:
    return content.get("answers_per_model", content["samples_per_item"])


def _judgement(content: dict[str, Any]) -> str:
    if "judgement" not in content:
        return "not judged"
    figures = content["judgement"]
    return f"LC {figures['length_controlled_winrate']:.1f}, win {figures['win_rate']:.1f} against {figures['against']}"


def _figure(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"figure": f"{100 * mean:.1f}", "interval": f"[{100 * low:.1f}, {100 * high:.1f}]", "notes": []}


def accuracy(result: Result | None) -> str:
    if result is None:
        return "-"
    cell = _figure(*(result.content[key] for key in ("mean", "low", "high")))
    return f"{cell['figure']} {cell['interval']}"


def accuracy_with_n(result: Result | None) -> str:
    if result is None or not result.judged:
        return "-"
    return f"{accuracy(result)}  n={result.content['num_items']}x{result.content['samples_per_item']}"


def _signed(value: Difference | None) -> dict[str, Any]:
    if value is None:
        return {"text": "", "sign": "", "parts": []}
    sign = "better" if value.low > 0 else "worse" if value.high < 0 else ""
    return {"text": difference(value), "sign": sign, "parts": _difference_parts(value)}


def difference(value: Difference) -> str:
    figure, interval, p_value = _difference_parts(value)
    return f"{figure} {interval}  {p_value}"


def _difference_parts(value: Difference) -> list[str]:
    return [
        f"{100 * value.mean:+.1f}",
        f"[{100 * value.low:+.1f}, {100 * value.high:+.1f}]",
        _p_value(value.p_value),
    ]


def _p_value(value: float) -> str:
    return f"p={value:.2g}" if value > 1 / (RESAMPLES + 1) + 1e-12 else f"p<={value:.1g}"


def share(scores: Sequence[float]) -> str:
    return f"{100 * float(np.mean(scores)):.0f} % of {len(scores)}" if scores else "not judged"


def answer_notes(sample: dict[str, Any]) -> str:
    finish = sample["finish"][0]
    return {"length": "cut at the token limit", "prompt_too_long": "prompt too long for the context"}.get(finish, "")


def provenance(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """What a result was made with and from."""
    return {
        "task": f"{content['task']} {content['task_version']}",
        "model": name,
        "reproduces": content["reproduces"] or "-",
        "decoding": content["decoding"],
        "n": f"{content['num_items']} x {_answers_per_model(content)}{_seeds(content)}",
        "seed": content["seed"],
        "generation": ", ".join(f"{key} {value}" for key, value in content["generation"].items() if key != "until"),
        "versions": ", ".join(f"{package} {version}" for package, version in content["versions"].items()),
        "hashes": ", ".join(f"{key} {content[f'{key}_hash'][:8]}" for key in ("model", "data", "prompt")),
        "notes": ", ".join(f"{content[key]} {text}" for key, text in COUNTS.items() if content[key]) or "-",
    }


def _seeds(content: dict[str, Any]) -> str:
    return f" x {content['training_seeds']} training seeds" if "training_seeds" in content else ""


def region(task: str, diagnosis: dict[str, Any]) -> str:
    """Where the base model stands on the continuum, with the rule and its numbers."""
    mean = f"{title(task)}: mean p {diagnosis['mean_p']:.3f}"
    if diagnosis["interval_95"] is not None:  # a single example has none
        mean += " [{:.3f}, {:.3f}]".format(*diagnosis["interval_95"])
    return f"{mean}, {diagnosis['region']['name']}. Rule: {diagnosis['region']['rule']}."


def breakable(name: str) -> Markup:
    """A name that may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def markdown_cell(text: Any) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\r", " ").replace("\n", " ")
