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

from nemo_probsft import config, launch, plan, prepare, region, runlog
from nemo_probsft.config import Recipe

PERCENTILES = (5, *range(10, 100, 10))
CONFIDENT = 0.55  # the paper's threshold of a token that the base model knows
NUM_BINS = 50


def diagnose(path: str, overrides: Sequence[str] = ()) -> Path:
    """Measure p of every target with the recipe's model, data and layout.

    Writes diagnose.json and diagnose.png; returns the JSON's path. Raises ValueError for the user.
    """
    recipe = config.load(path, overrides)
    if launch.inside_ranks() and not launch.started_here():
        raise ValueError(f"diagnose starts its own ranks: run `nemo-probsft diagnose {path}` without torchrun or srun")
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
    logp, example = collected([np.load(file) for file in sorted(shards.glob("*.npz"))])
    assert recipe.diagnose.max_tokens or logp.size == prepared.num_target_tokens
    result = statistics(logp, example) | {
        "of_examples": prepared.num_examples,  # where diagnose.max_tokens drew some of them
        "seed": recipe.trainer.seed,
        "model": recipe.model.path,
        "data": recipe.data.train,
        "versions": plan.versions(),
    }
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


def collected(shards: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(logp, example) of all data-parallel ranks in the order of the file. Raises ValueError for NaN or infinity."""
    logp, example = (np.concatenate([shard[name] for shard in shards]) for name in ("logp", "example"))
    if bad := int((~np.isfinite(logp)).sum()):
        raise ValueError(f"model.path: log p of {bad} of {logp.size} targets is not finite; use another checkpoint")
    order = np.argsort(example, kind="stable")
    return logp[order], example[order]


def statistics(logp: np.ndarray, example: np.ndarray) -> dict[str, Any]:
    """Facts about log p of the targets (fp32 [T], nats), each of an example (int64 [T]); p in float64."""
    p = np.exp(logp.astype(np.float64))
    counts, edges = np.histogram(p, bins=NUM_BINS, range=(0.0, 1.0))
    place = region.region(float(p.mean()))
    candidates = region.shortlist(place["name"])
    return {
        "num_tokens": int(p.size),
        "num_examples": len(np.unique(example)),
        "mean_p": float(p.mean()),
        "interval_95": interval(p, example),
        "mean_nll": float(-logp.astype(np.float64).mean()),
        f"fraction_above_{CONFIDENT}": float((p > CONFIDENT).mean()),
        f"fraction_above_{CONFIDENT}_interval_95": interval(p > CONFIDENT, example),
        "percentiles": {str(q): float(np.percentile(p, q)) for q in PERCENTILES},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "region": place,
        "shortlist": candidates,
        "gradient_weight": region.gradient_weights(logp, [entry["objective"] for entry in candidates], place["mean_p"]),
    }


def interval(values: np.ndarray, example: np.ndarray) -> list[float] | None:
    """95 % of the token mean [T], where the tokens of an example [T] are not independent; None of a single example.

    The mean is the ratio of the examples' sums to their counts; its variance is that of the residuals of the sums.
    """
    _, index = np.unique(example, return_inverse=True)
    counts = np.bincount(index)
    if len(counts) < 2:
        return None
    mean = float(values.mean())
    residuals = np.bincount(index, weights=values) - mean * counts
    variance = len(counts) / (len(counts) - 1) * float((residuals**2).sum()) / values.size**2
    half = 1.96 * variance**0.5
    return [max(0.0, mean - half), min(1.0, mean + half)]


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
    sizes = f"{result['num_tokens']} target tokens of {result['num_examples']} of {result['of_examples']} examples"
    name, fraction = f"fraction_above_{CONFIDENT}", "fraction of tokens with p >"
    print(f"mean p {result['mean_p']:.4f} {_text(result['interval_95'])} over {sizes}")
    print(f"{fraction} {CONFIDENT}: {result[name]:.4f} {_text(result[f'{name}_interval_95'])}")
    print("percentile: p   " + "  ".join(f"{q}: {p:.6g}" for q, p in result["percentiles"].items()))
    place = result["region"]
    print(f"region: {place['name']} ({place['rule']})")
    print("to sweep, the best bet first; of each, the share of its gradient weight on p < 0.1 and on p >= 0.9:")
    for entry in result["shortlist"]:
        shares = result["gradient_weight"][entry["objective"]]["shares"]
        print(f"  {entry['objective']:<18} {shares[0]:4.0%} {shares[-1]:4.0%}  {entry['reason']}")
    print(f"written: {target} and {target.with_suffix('.png')}")


def _text(interval_95: list[float] | None) -> str:
    return "(one example: no interval)" if interval_95 is None else "[{:.4f}, {:.4f}]".format(*interval_95)
