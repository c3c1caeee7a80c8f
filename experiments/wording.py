"""How the measured pages write an interval, a difference, a verdict and the versions of their cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.statistics import RESAMPLES, Difference, Estimate


def entry(value: Estimate, seeds: Sequence[int]) -> str:
    """In %, with the number of seeds."""
    return f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}], {num_seeds(seeds)}"


def num_seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed" + "s" * (len(seeds) > 1)


def points(value: Difference) -> str:
    relation = "<=" if value.p_value <= 1 / RESAMPLES else "="  # no smaller one can come out
    interval = f"[{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
    return f"{100 * value.mean:+.1f} points {interval}, p {relation} {value.p_value:.2g}"


def verdict(found: Difference, *, within: float | None = None) -> str:
    """Whether a difference is positive or, with `within`, closer to 0 than that: its interval decides, not its mean."""
    if within is None:
        holds, fails = found.low > 0, found.high < 0
    else:
        holds = found.low > -within and found.high < within
        fails = found.low > within or found.high < -within
    return "holds" if holds else "does NOT hold" if fails else "is not decided"


def versions(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """List items: each set of packages once, and the commits."""
    found = [cell["versions"] for cell in cells]
    packages = sorted({", ".join(f"{name} {v}" for name, v in of.items() if name != "git") for of in found})
    commits = sorted({of["git"] for of in found if "git" in of})
    return [*(f"- {text}" for text in packages), *([f"- git {', '.join(commits)}"] if commits else [])]
