"""`nemo-probsft diagnose RECIPE`: where the base model stands on the training targets, before anything is trained.

Source: arXiv 2510.00526, Eq. 5 (token-level mean of p over all targets), Table 6 (fraction above 0.55), Fig. 5
(percentiles).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_probsft import config, launch, plan, prepare, runlog
from nemo_probsft.config import Recipe

PERCENTILES = (5, *range(10, 100, 10))
CONFIDENT = 0.55  # the paper's threshold of a token that the base model knows
NUM_BINS = 50


def diagnose(path: str, overrides: Sequence[str] = ()) -> Path:
    """Measure p of every target with the recipe's model, data and layout.

    Writes diagnose.json and diagnose.png; returns the JSON's path. Raises ValueError for the user.
    """
    recipe = config.load(path, overrides)
    output = Path(recipe.diagnose.output or Path(recipe.run_dir) / "diagnose")
    # A diagnosis does not depend on the objective, and must be there before one with a percentile can be resolved.
    work = dataclasses.replace(recipe, run_dir=str(output), objective="original")
    if launch.inside_ranks():
        _diagnose_rank(work)
        return output / "diagnose.json"
    launch.refuse_many_nodes(recipe)
    prepared, decisions = prepare.prepare(work)
    plan.show(decisions)
    shards = output / "logp"
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir()
    with runlog.Progress(f"diagnose {path}") as waiting:
        launch.run_ranks(["diagnose", path, *overrides], recipe.trainer.devices, output / "logs", waiting)
    logp = np.concatenate([np.load(file) for file in sorted(shards.glob("logp-*.npy"))])
    assert logp.size == prepared.num_target_tokens
    result = statistics(logp) | {"model": recipe.model.path, "data": recipe.data.train, "versions": plan.versions()}
    target = output / "diagnose.json"
    runlog.write_atomically(target, json.dumps(result, indent=2) + "\n")
    plot(result, output / "diagnose.png")
    print_summary(result, target)
    shutil.rmtree(output / "base", ignore_errors=True)  # a copy of the weights that nobody needs any more
    return target


def _diagnose_rank(recipe: Recipe) -> None:
    launch.end_with_torchrun()
    from nemo_probsft.adapters import nemo

    nemo.collect_logp(recipe, prepare.wait_for(recipe), Path(recipe.run_dir) / "logp")


def statistics(logp: np.ndarray) -> dict[str, Any]:
    """Facts about log p of the targets (fp32 [T], nats); p and the percentiles in float64.

    `interval_95` of the mean takes tokens as independent, which they are not: it is a lower bound of its width.
    """
    p = np.exp(logp.astype(np.float64))
    counts, edges = np.histogram(p, bins=NUM_BINS, range=(0.0, 1.0))
    half = 1.96 * p.std(ddof=1) / np.sqrt(p.size) if p.size > 1 else 0.0
    return {
        "num_tokens": int(p.size),
        "mean_p": float(p.mean()),
        "interval_95": [float(p.mean() - half), float(p.mean() + half)],
        "mean_nll": float(-logp.astype(np.float64).mean()),
        f"fraction_above_{CONFIDENT}": float((p > CONFIDENT).mean()),
        "percentiles": {str(q): float(np.percentile(p, q)) for q in PERCENTILES},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def plot(result: dict[str, Any], target: Path) -> None:
    """Histogram of p on a log scale with the mean and the percentiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    edges, counts = np.array(result["histogram"]["edges"]), np.array(result["histogram"]["counts"])
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.bar(edges[:-1], counts / counts.sum(), width=np.diff(edges), align="edge", color="#4c72b0")
    axes.axvline(result["mean_p"], color="#c44e52", label=f"mean p = {result['mean_p']:.3f}")
    for q in (10, 50):
        axes.axvline(
            result["percentiles"][str(q)],
            color="#555555",
            linestyle=":",
            label=f"{q}th percentile = {result['percentiles'][str(q)]:.3g}",
        )
    axes.set(
        xlabel="base model's probability p of the target token",
        ylabel="fraction of target tokens",
        xlim=(0, 1),
        yscale="log",
    )
    axes.set_title(
        f"{result['num_tokens']:,} target tokens; {result[f'fraction_above_{CONFIDENT}']:.1%} above {CONFIDENT}"
    )
    axes.legend()
    figure.savefig(target, dpi=150)
    plt.close(figure)


def print_summary(result: dict[str, Any], target: Path) -> None:
    low, high = result["interval_95"]
    print(f"mean p {result['mean_p']:.4f} [{low:.4f}, {high:.4f}] over {result['num_tokens']} target tokens")
    print(f"fraction of tokens with p > {CONFIDENT}: {result[f'fraction_above_{CONFIDENT}']:.4f}")
    print("percentile: p   " + "  ".join(f"{q}: {p:.6g}" for q, p in result["percentiles"].items()))
    print(f"written: {target} and {target.with_suffix('.png')}")
