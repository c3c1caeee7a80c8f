"""The continuum's tasks, and its page: every figure from the cells, every verdict from an interval."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.continuum import data, page
from experiments.continuum.cells import DOCS
from experiments.continuum.grid import DEFAULT_TASKS, FULL_TASKS, OBJECTIVES, SEEDS, continuum
from nemo_probsft.demo_data import seeded, strong_rows, weak_rows

ROOT = Path(__file__).parents[2]


def test_noise_is_in_training_only_and_as_much_as_asked_for():
    clean, test = data.rows("weak", seed=0)
    right = {row["prompt"]: row["response"] for row in clean}
    for noise in (0.15, 0.3, 0.45):
        noisy, same_test = data.rows("weak_noisy", seed=0, noise=noise)
        assert same_test == test
        assert len(noisy) == len(clean) == len({row["prompt"] for row in noisy})
        assert sum(row["response"] != right[row["prompt"]] for row in noisy) == round(noise * len(clean))
    assert not {row["prompt"] for row in clean} & {row["prompt"] for row in test}
    sums, _ = data.rows("strong", seed=0, noise=0.0)
    assert all(eval(row["prompt"].removesuffix("=")) == int(row["response"]) for row in sums)


def test_intermediate_is_both_tasks_and_the_demo_keeps_its_rows():
    train, test = data.rows("intermediate", seed=0)
    strong, weak = strong_rows(seeded(0, "strong")), weak_rows(seeded(0, "weak"))
    key = json.dumps
    assert {key(row) for row in strong[0]} <= {key(row) for row in train}
    cipher = [row for row in train if row["prompt"].startswith("code:")]
    assert len(cipher) == data.NUM_CIPHER_IN_INTERMEDIATE
    tokens = [sum(len(row["response"]) + 1 for row in rows) for rows in (strong[0], cipher)]
    assert max(tokens) / sum(tokens) < 0.55  # about as many target tokens, end tokens included, of each
    assert [row["prompt"][0] == "c" for row in test].count(True) == len(test) // 2
    assert data.rows("strong", seed=0) == strong
    assert data.rows("weak", seed=0) == weak


def test_the_grids_are_those_of_the_issue():
    beyond = {"adaptive-by-label"}
    assert len(DEFAULT_TASKS) * len(set(OBJECTIVES) - beyond) * len(SEEDS) == 84
    noise = {(task.base, task.noise) for task in FULL_TASKS}
    assert {("strong", level) for level in (0.0, 0.15, 0.3, 0.45)} <= noise
    assert {("weak", 0.3), ("weak_noisy", 0.15), ("weak_noisy", 0.3), ("weak_noisy", 0.45)} <= noise


def test_another_cipher_answers_the_share_of_rows_that_it_names():
    clean, test = data.rows("weak", seed=0)
    mixed, same_test = data.rows("weak_two_ciphers", seed=0)
    right = {row["prompt"]: row["response"] for row in clean}
    wrong = [row for row in mixed if row["response"] != right[row["prompt"]]]
    assert same_test == test
    assert len(wrong) == round(data.NOISE * len(clean))
    other = {pair for row in wrong for pair in zip(right[row["prompt"]], row["response"], strict=True)}
    assert len(other) == len(dict(other)) == 26
    assert all(letter != changed for letter, changed in other)


def test_an_unknown_task_is_refused_before_anything_is_made():
    with pytest.raises(ValueError, match=r"--task: strnog is not a task of the continuum; choose from strong, "):
        continuum(full=False, names=["strnog"])


def cells(docs, accuracies, seeds=(0, 1)):
    """Made-up cells: the page's arithmetic is tested, not the experiment."""
    docs.mkdir()
    rng = np.random.default_rng(0)
    lines = [
        {"task": task, "objective": objective, "seed": seed, "steps": 500, "samples_per_item": 16,
         "greedy": "".join(rng.choice(["0", "1"], 50, p=[1 - right, right])),
         "sampled": rng.binomial(16, right, 50).tolist(), "date": "2026-11-26",
         "versions": {"torch": "2.13.0", "git": "abc"}}
        for (task, objective), right in accuracies.items() for seed in seeds
    ]  # fmt: skip
    (docs / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = dict.fromkeys(task for task, _ in accuracies)
    described = [{"task": task, "mean_p": 0.5, "interval_95": [0.4, 0.6], "region": "intermediate"} for task in tasks]
    (docs / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in described))
    return lines


@pytest.mark.parametrize(("of_p", "verdict"), [(0.9, "holds"), (0.1, "does NOT hold"), (0.5, "is not decided")])
def test_a_verdict_follows_the_interval(tmp_path, of_p, verdict):
    lines = cells(tmp_path / "continuum", {("strong", "original"): 0.5, ("strong", "p"): of_p})
    written = page.write(tmp_path / "continuum").read_text()
    claim = next(line for line in written.splitlines() if "p - original" in line and "knows the task" in line)
    assert verdict in claim
    mean = np.mean([np.mean(line["sampled"]) / 16 for line in lines if line["objective"] == "p"])
    assert f"| p | {100 * mean:.1f} [" in written
    assert "2 seeds" in written


@pytest.mark.parametrize(("of_p", "verdict"), [(0.5, "holds"), (0.9, "does NOT hold"), (0.1, "does NOT hold")])
def test_close_means_that_the_interval_is(tmp_path, of_p, verdict):
    accuracies = {("intermediate", "original"): 0.5, ("intermediate", "p"): of_p}
    cells(tmp_path / "continuum", accuracies, seeds=range(8))
    written = page.write(tmp_path / "continuum").read_text()
    assert verdict in next(line for line in written.splitlines() if "within 5 points" in line)


def test_differences_use_the_seeds_that_both_have(tmp_path):
    cells(tmp_path / "continuum", {("weak", "original"): 0.9, ("weak", "p"): 0.2}, seeds=(0,))
    path = tmp_path / "continuum" / "cells.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(path.read_text() + json.dumps(first | {"seed": 7, "sampled": [0] * 50}) + "\n")
    written = page.write(tmp_path / "continuum").read_text()
    claim = next(line for line in written.splitlines() if "original - p)" in line)
    assert float(claim.split("original - p): +")[1].split(" points")[0]) > 50  # seed 7 alone would halve it


def test_alpha_is_known_for_the_family_only():
    alphas = [page._alpha(key) for key in ("original", "GeneralFamily--0.5", "p", "OnlyTopLogP-0.2", "adaptive")]
    assert alphas == [0.0, -0.5, 1.0, None, None]


def test_the_committed_page_is_what_the_committed_cells_give(tmp_path):
    copy = tmp_path / "continuum"
    shutil.copytree(ROOT / DOCS, copy)
    assert page.write(copy).read_text() == (ROOT / DOCS).with_suffix(".md").read_text()
