"""Runs that differ in their seed only are pooled; the interval is over seeds and items."""

import numpy as np
import pytest
import yaml

from evaluation.report import format
from evaluation.report.inputs import read_inputs
from evaluation.statistics import estimate, estimate_over_seeds, paired_difference, paired_difference_over_seeds
from tests.unit.test_report import write_diagnosis, write_result, write_run


def test_seeds_that_disagree_widen_the_interval_and_equal_seeds_do_not():
    rng = np.random.default_rng(0)
    good, bad = (rng.random((100, 4)) < 0.9).astype(float), (rng.random((100, 4)) < 0.3).astype(float)
    apart, pooled = estimate_over_seeds([good, bad]), estimate(np.concatenate([good, bad], axis=1))
    assert apart.mean == pytest.approx(pooled.mean)
    assert (apart.num_items, apart.samples_per_item) == (100, 8)
    assert apart.high - apart.low > 3 * (pooled.high - pooled.low)  # a bootstrap over items alone claims too much
    same = estimate_over_seeds([good, good])
    assert same.high - same.low == pytest.approx(estimate(good).high - estimate(good).low, abs=0.02)


def test_one_seed_is_the_estimate_over_items_but_for_the_draw():
    scores = (np.random.default_rng(1).random((80, 3)) < 0.5).astype(float)
    one, items = estimate_over_seeds([scores]), estimate(scores)
    assert (one.mean, one.low, one.high) == pytest.approx((items.mean, items.low, items.high), abs=0.01)
    assert estimate_over_seeds([np.ones((20, 1))] * 3).low == estimate(np.ones((20, 1))).low < 1


def test_differences_are_paired_by_seed():
    """A spread between seeds that both objectives share does not hide a difference within each."""
    rng = np.random.default_rng(2)
    base = [(rng.random((200, 8)) < level).astype(float) for level in (0.2, 0.5, 0.8)]
    better = [np.clip(scores + (rng.random(scores.shape) < 0.15), 0, 1) for scores in base]
    paired = paired_difference_over_seeds(better, base)
    assert paired.low > 0
    assert paired.p_value < 0.01
    shuffled = paired_difference_over_seeds([better[1], better[2], better[0]], base)
    assert shuffled.low < 0 < paired.low  # unpaired seeds: nothing can be said
    joined = paired_difference(np.concatenate(better, axis=1), np.concatenate(base, axis=1))
    assert paired.mean == pytest.approx(joined.mean)


def finished_run(directory, objective, seed, right, **recipe):
    write_run(directory, objective)
    content = yaml.safe_load((directory / "run.yaml").read_text())
    content |= {"seed": seed, "recipe": {"trainer": {"seed": seed}, "run_dir": str(directory)}}
    content["recipe"] |= {"data": {"train": "data/math.jsonl"}, **recipe}
    (directory / "run.yaml").write_text(yaml.safe_dump(content))
    store = directory.parent / "eval" / directory.name
    return write_result(store, directory / "export", "math_500", "sample", right, seed=seed)


def test_seeds_are_one_row_and_other_settings_are_not(tmp_path):
    results = [
        finished_run(tmp_path / f"{key}-{seed}", key, seed, right)
        for key, right in (("original", 0.3), ("p", 0.7))
        for seed in (0, 1, 2)
    ]
    runs = [tmp_path / f"{key}-{seed}" for key in ("original", "p") for seed in (0, 1, 2)]
    rows = read_inputs(runs, results, []).rows
    assert [(row.label, len(row.runs), row.main.scores.shape) for row in rows] == [
        ("original", 3, (60, 24)),
        ("p", 3, (60, 24)),
    ]
    assert rows[1].main.content["training_seeds"] == 3
    assert rows[1].difference.low > 0

    results.append(finished_run(tmp_path / "p-large-lr", "p", 3, 0.1, optim={"lr": 1.0}))
    rows = read_inputs([*runs, tmp_path / "p-large-lr"], results, []).rows
    assert [row.label for row in rows] == ["original", "p (p-0)", "p (p-1)", "p (p-2)", "p (p-large-lr)"]


def test_the_region_is_said_with_its_numbers():
    found = {"mean_p": 0.8, "interval_95": [0.75, 0.85], "region": {"name": "strong", "rule": "from 0.675"}}
    assert format.region("demo_strong", found) == "strong: mean p 0.800 [0.750, 0.850], strong. Rule: from 0.675."
    assert (
        format.region("demo_strong", found | {"interval_95": None}) == "strong: mean p 0.800, strong. Rule: from 0.675."
    )


def test_a_diagnosis_belongs_to_the_tasks_of_the_models_trained_on_its_data(tmp_path):
    """No task is named after the set, as in a sweep on mathematics."""
    result = finished_run(tmp_path / "p-0", "p", 0, 0.5, data={"train": "data/train.jsonl"})
    diagnosis = tmp_path / "diagnose.json"
    write_diagnosis(diagnosis, data="data/train.jsonl")
    assert list(read_inputs([tmp_path / "p-0"], [result], [diagnosis]).diagnoses) == ["math_500"]
    write_diagnosis(diagnosis, data="data/other.jsonl")
    with pytest.raises(ValueError, match="cannot tell which of math_500"):
        read_inputs([tmp_path / "p-0"], [result], [diagnosis])
