"""How docs/real-continuum.md writes numbers, lists and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from evaluation.statistics import Estimate
from experiments.real.scores import Runs
from experiments.wording import num_seeds


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(lr: float) -> str:
    """5e-5"""
    return np.format_float_scientific(lr, trim="-", exp_digits=1)


def number(value: Estimate, measure: str) -> str:
    """In %, but -log p in nats, which has lower ends for better models."""
    scale, digits = (1, 3) if measure == "nll" else (100, 1)
    mean, low, high = (f"{scale * of:.{digits}f}" for of in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def entry(runs: Runs, measure: str, *, bold: bool, with_rate: bool) -> str:
    text = number(runs.estimate(measure), measure)
    if bold:
        mean, _, interval = text.partition(" ")
        text = f"**{mean}** {interval}"
    return f"{text}<br>{f'{rate(runs.lr)}, ' * with_rate}{num_seeds(runs.seeds)}"


def listed(items: Iterable[object]) -> str:
    """a, b and c"""
    texts = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def codes(names: Iterable[str]) -> str:
    return listed(f"`{name}`" for name in names)
