"""`nemo-probsft diagnose RECIPE`: where the base model stands on the training targets, before anything is trained."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_probsft import config, files
from nemo_probsft.command_line import add_recipe
from nemo_probsft.config import Recipe
from nemo_probsft.data import order
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.diagnosis.measures import CONFIDENT, by_file, measure
from nemo_probsft.diagnosis.targets import Targets, collected
from nemo_probsft.progress import Progress
from nemo_probsft.run import decisions, engines, prepare, ranks
from nemo_probsft.run.decisions import Decision

ENOUGH_TOKENS = 20_000  # targets: of MATH solutions, the interval of mean p is then about 0.03 wide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure the probability that the base model gives to every training target, before you train anything.\n"
        "Says which region of the paper's continuum your data is in and which objectives to sweep there;\n"
        "writes diagnose.json and diagnose.html."
    )
    add_recipe(parser)


def run(options: argparse.Namespace) -> None:
    diagnose(options.recipe, options.overrides)


def diagnose(path: str, overrides: Sequence[str] = ()) -> Path:
    """Measure p of every target with the recipe's model, data and layout.

    Writes diagnose.json and diagnose.html; returns the JSON's path. Raises ValueError for the user.
    """
    # A diagnosis does not depend on the objective, and must be there before one with a percentile can be resolved.
    recipe = config.load(path, overrides, own_objective=False)
    output = Path(recipe.diagnose.output or Path(recipe.run_dir) / "diagnose")
    # Each target's example and position are those of an unpacked row.
    data = dataclasses.replace(recipe.data, packing=False, validation=None)
    work = dataclasses.replace(recipe, run_dir=str(output), data=data, validate=None)
    if ranks.inside_ranks():
        _diagnose_rank(recipe, work)
    else:
        ranks.refuse_many_nodes(recipe)
        prepared = _prepare(work)
        with Progress(f"diagnose {path}", _num_batches(recipe, prepared), "batches") as progress:
            arguments, follow = ["diagnose", path, *overrides], Follower(progress, output / "logp")
            ranks.run_ranks(arguments, recipe.trainer.devices, output / "logs", follow)
        _finish(recipe, prepared, output)
    return output / "diagnose.json"


def _diagnose_rank(recipe: Recipe, work: Recipe) -> None:
    """Under a torchrun or srun of the user's, on one node or several, rank 0 also does what the launcher would."""
    ranks.end_with_torchrun()
    leads = os.environ["RANK"] == "0" and not ranks.started_here()
    if leads:
        _prepare(work)
    prepared = prepare.wait_for(work)
    engines.trainer_of(prepared.engine).collect_logp(work, prepared, Path(work.run_dir) / "logp")
    if leads:
        _finish(recipe, prepared, Path(work.run_dir))


class Follower:
    """Called while ranks run: shows how many micro-batches each has done, and the mean p so far."""

    def __init__(self, progress: Progress, shards: Path) -> None:
        self.progress, self.shards = progress, shards

    def __call__(self) -> None:
        lines = [path.read_text(encoding="utf-8").split("\n")[:-1] for path in self.shards.glob("*.progress.jsonl")]
        last = [json.loads(line[-1]) for line in lines if line]
        num_targets = sum(found[1] for found in last)
        if not num_targets:
            self.progress.advance(0)  # the display's clock goes on
            return
        mean = sum(found[2] for found in last) / num_targets
        self.progress.update(min(found[0] for found in last), f"mean p {mean:.4f} of {num_targets} targets")


def _num_batches(recipe: Recipe, prepared: prepare.Prepared) -> int:
    """Micro-batches that each data-parallel rank will see."""
    num_examples = len(_drawn(recipe, TokenizedDataset.load(Path(prepared.examples))))
    return -(-num_examples // recipe.data.global_batch_size) * recipe.num_micro_batches


def _drawn(recipe: Recipe, dataset: TokenizedDataset) -> np.ndarray:
    """The examples that `diagnose.max_tokens` leaves."""
    return order.sample(dataset.num_targets(), recipe.diagnose.max_tokens, recipe.trainer.seed)


def _prepare(work: Recipe) -> prepare.Prepared:
    prepared, found = prepare.prepare(work)
    if work.diagnose.max_tokens is None and prepared.num_target_tokens > 2 * ENOUGH_TOKENS:
        reason = (
            f"all are measured; diagnose.max_tokens={ENOUGH_TOKENS} draws examples with so many, in "
            f"{ENOUGH_TOKENS / prepared.num_target_tokens:.0%} of the time, and the interval shows how sure the mean is"
        )
        found.append(Decision("diagnose.max_tokens", f"{prepared.num_target_tokens} targets", reason))
    decisions.show(found)
    shards = Path(work.run_dir) / "logp"
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir()
    return prepared


def _finish(recipe: Recipe, prepared: prepare.Prepared, output: Path) -> None:
    targets = collected([np.load(file) for file in sorted((output / "logp").glob("*.npz"))])
    _write(recipe, describe(recipe, prepared, targets), output)
    (output / prepare.PREPARED).unlink()  # first: it promises the weights, a copy that nobody needs any more
    shutil.rmtree(output / "base", ignore_errors=True)


def describe(recipe: Recipe, prepared: prepare.Prepared, targets: Targets) -> dict[str, Any]:
    """What diagnose.json holds. Every target that `diagnose.max_tokens` leaves was measured, and once."""
    from nemo_probsft.diagnosis import text

    dataset = TokenizedDataset.load(Path(prepared.examples))
    drawn = _drawn(recipe, dataset)
    positions = [1 + np.flatnonzero(dataset[example].loss_mask) for example in drawn]
    assert np.array_equal(targets.position, np.concatenate(positions))
    assert np.array_equal(targets.example, np.repeat(drawn, [len(found) for found in positions]))
    labels = [dataset[example].input_ids[found] for example, found in zip(drawn, positions, strict=True)]
    assert np.array_equal(targets.label, np.concatenate(labels))
    tokenizer = prepare.load_tokenizer(recipe, Path(prepared.hf))
    names = [file.name for file in dataset.summary.files]
    return measure(targets) | {
        "by_file": by_file(targets, dataset.files(), names),  # where there are several
        "least_likely_examples": text.least_likely_examples(targets, dataset, tokenizer),
        "least_likely_tokens": text.least_likely_tokens(targets, dataset, tokenizer),
        "of_examples": prepared.num_examples,  # where diagnose.max_tokens drew some of them
        "seed": recipe.trainer.seed,
        "model": recipe.model.path,
        "data": recipe.data.name,
        "versions": files.versions(decisions.PACKAGES),
    }


def _write(recipe: Recipe, result: dict[str, Any], output: Path) -> None:
    from nemo_probsft.diagnosis import page

    target = output / "diagnose.json"
    files.write_atomically(target, json.dumps(result, indent=2) + "\n")
    files.write_atomically(target.with_suffix(".html"), page.render(result))
    print_summary(result, target)


def print_summary(result: dict[str, Any], target: Path) -> None:
    from nemo_probsft.diagnosis.page import interval_text, probability_text

    sizes = f"{result['num_tokens']} target tokens of {result['num_examples']} of {result['of_examples']} examples"
    name, fraction = f"fraction_above_{CONFIDENT}", "fraction of tokens with p >"
    print(f"mean p {result['mean_p']:.4f} {interval_text(result['interval_95'])} over {sizes}")
    print(f"{fraction} {CONFIDENT}: {result[name]:.4f} {interval_text(result[f'{name}_interval_95'])}")
    for title, key in (("p", "percentiles"), ("1 - p", "percentiles_1_minus_p")):
        print(f"percentiles, {title:<6}" + "  ".join(f"{q}: {probability_text(p)}" for q, p in result[key].items()))
    surest = result["by_confidence"][-1]
    print(
        f"where the model is {surest['low']:.0%} sure of a token or more ({surest['num_tokens']} tokens), "
        f"it expects the target in {surest['confidence']:.1%}; there it is in {surest['likeliest']:.1%}"
    )
    for file in result["by_file"]:
        size = f"{file['num_tokens']} target tokens of {file['file']}"
        print(f"mean p {file['mean_p']:.4f} {interval_text(file['interval_95'])} over {size}: {file['region']}")
    place = result["region"]
    print(f"region: {place['name']} ({place['rule']})")
    print("to sweep, the best bet first; of each, the share of its gradient weight on p < 0.1 and on p >= 0.9:")
    for entry in result["shortlist"]:
        shares = result["gradient_weight"][entry["objective"]]["shares"]
        print(f"  {entry['objective']:<18} {shares[0]:4.0%} {shares[-1]:4.0%}  {entry['reason']}")
    print(f"written: {target} and {target.with_suffix('.html')}")
