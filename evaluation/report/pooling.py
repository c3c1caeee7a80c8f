"""Models that differ only in their training seed: their answers are pooled, item by item."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.results import Store, summarize
from evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Difference,
    estimate_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
)


@dataclass(frozen=True)
class Result:
    """One results.json, and the path to find the samples beside it. parts: one per seed if it pools several."""

    path: Path
    content: dict[str, Any]
    parts: tuple["Result", ...] = ()

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        return _merged(self.parts) if self.parts else Store(self.path.parent).samples()

    @cached_property
    def scores(self) -> np.ndarray:
        """[items, samples]"""
        return np.array([sample["scores"] for sample in self.samples])

    @property
    def sampled(self) -> bool:
        return self.content["decoding"] != "greedy"

    @property
    def judged(self) -> bool:
        return self.content["judged"]

    @property
    def by_seed(self) -> list[np.ndarray]:
        return [part.scores for part in self.parts or (self,)]


def pooled(results: Sequence[Result]) -> Result:
    """One result of several seeds; the interval is over seeds and items.

    Raises: ValueError when they did not see the same prompts.
    """
    first = results[0]
    if len(results) == 1:
        return first
    same_prompts(results)
    content = summarize(first.content, _merged(results), first.content["versions"])
    content |= {
        "model": ", ".join(result.content["model"] for result in results),
        "training_seeds": len(results),
        "answers_per_model": first.content["samples_per_item"],
        "interval": f"{CONFIDENCE:.0%} percentile bootstrap over training seeds and items, {RESAMPLES} resamples",
    }
    if first.judged:
        interval = asdict(estimate_over_seeds([result.scores for result in results], seed=first.content["seed"]))
        content |= interval
    return Result(first.path, content, tuple(results))


def difference(a: Result, b: Result) -> Difference | None:
    """a - b: seed by seed if both have equally many seeds, else of their means; None if nothing was judged.

    Raises: ValueError when they saw different prompts.
    """
    if not a.judged:
        return None
    same_prompts([a, b])
    if len(a.by_seed) == len(b.by_seed) > 1:
        return paired_difference_over_seeds(a.by_seed, b.by_seed, seed=a.content["seed"])
    return paired_difference(a.scores, b.scores, seed=a.content["seed"])


def same_prompts(results: Sequence[Result]) -> None:
    for other in results[1:]:
        if other.content["prompt_hash"] != results[0].content["prompt_hash"]:
            raise ValueError(
                f"{results[0].path} and {other.path} saw different prompts; "
                "evaluate both on the same test set and limit"
            )


def _merged(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each item with the answers of all `results`, one after the other."""
    lists = ("answers", "scores", "finish", "num_tokens")
    merged = []
    for samples in zip(*(result.samples for result in results), strict=True):
        joined = {key: [value for sample in samples for value in sample[key]] for key in lists}
        extra = {
            name: np.concatenate([np.atleast_1d(sample["extra"][name]) for sample in samples]).tolist()
            for name in samples[0]["extra"]
        }
        merged.append(samples[0] | joined | {"extra": extra})
    return merged
