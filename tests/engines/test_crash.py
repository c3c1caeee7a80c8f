"""Interrupted runs: killed, out of disk, out of numbers. Nothing is lost, nothing is written twice, the error says why.

`tests/support/crash_campaign.py` kills one run 20 times; here it is three.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys

import psutil
import pytest
import torch
import yaml

from conversion.checkpoint import last_checkpoint
from nemo_probsft.run import ranks
from nemo_probsft.run.log import read_metrics
from tests.support import full_disk
from tests.support.crash_campaign import best_step, check_directory, finish, run_and_kill, write_recipe

NUM_STEPS = 23  # checkpoints at 3, 6, ... and 23: a kill can come some steps late, and the next one needs up to 4 more


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory):
    """`whole`: an uninterrupted run. `killed`: one that was killed three times, with a checkpoint; and copies of it."""
    folder = tmp_path_factory.mktemp("crash")
    whole = write_recipe(folder, "whole", NUM_STEPS, validates=True)
    engine.command("train", whole, world_size=2, output=folder / "whole-ranks")
    recipe, chance = write_recipe(folder, "killed", NUM_STEPS, validates=True), random.Random(0)
    for moment in ("start", "checkpoint", "step"):
        assert run_and_kill(recipe, folder / "killed", moment, chance), f"the run ended before it was killed: {moment}"
        check_directory(folder / "killed")
    for copy in ("full", "moved", "relaid"):  # before a test goes on with it
        copied(folder, copy)
    return folder


def test_a_full_disk_ends_the_run_with_its_reason_and_spares_the_last_checkpoint(folder):
    recipe, before = folder / "full.yaml", check_directory(folder / "full")
    assert 0 < before < NUM_STEPS
    done = subprocess.run(
        [sys.executable, "-m", "nemo_probsft", "train", str(recipe)],
        capture_output=True,
        text=True,
        # As on a full disk, a write beyond the limit fails: "File too large" in place of "No space left on device".
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nemo-probsft: ")]
    assert "File too large" in line
    assert f"continues from {last_checkpoint(folder / 'full' / 'checkpoints')}" in line
    assert check_directory(folder / "full") == before
    finish(recipe)
    assert same_metrics(folder, "full")


def test_on_a_disk_that_is_really_full_too_and_it_goes_on_when_there_is_room(folder):
    said = full_disk.run("train", folder)
    assert said.endswith("as expected\n"), said


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(folder):
    finish(folder / "killed.yaml")
    assert check_directory(folder / "killed") == NUM_STEPS
    assert same_metrics(folder, "killed")
    assert best_step(folder / "killed") == best_step(folder / "whole")
    kept = [path.name for path in (folder / "killed" / "checkpoints").glob("step=*")]
    assert len(kept) <= 3, kept  # keep_last 2, and the last one


def test_it_goes_on_at_another_layout(engine, folder):
    layout = ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2")
    resumed_at = check_directory(folder / "relaid")
    assert 0 < resumed_at < NUM_STEPS
    changes = (*layout, "data.micro_batch_size=4")
    engine.command("train", folder / "relaid.yaml", *changes, world_size=2, output=folder / "relaid-ranks")
    rows, expected = (read_metrics(folder / name) for name in ("relaid", "whole"))
    assert rows[:resumed_at] == expected[:resumed_at]
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, want in zip(rows[resumed_at:], expected[resumed_at:], strict=True):
        assert row["num_tokens"] == want["num_tokens"]
        for name in ("objective", "nll", "p", "grad_norm", "alpha", "running_p"):
            assert row[name] == pytest.approx(want[name], rel=1e-4), (row["step"], name)
    # rank 0, whose state the checkpoint keeps, is of the first stage and never saw a probability
    state = torch.load(last_checkpoint(folder / "relaid" / "checkpoints") / "weights" / "common.pt", weights_only=False)
    mean = state["callbacks"]["MoveObjective"]
    before = 1 - 0.5 ** (NUM_STEPS - 1)  # the weight of the steps before the last one
    assert mean["weight"] == pytest.approx(1 - 0.5**NUM_STEPS)
    assert mean["total"] == pytest.approx(0.5 * before * rows[-1]["running_p"] + 0.5 * rows[-1]["p"], rel=1e-9)
    decayed = [0.5 ** (NUM_STEPS - row["step"]) for row in rows]
    for kept, name in zip(mean["by_label"], ("p", "num_tokens"), strict=True):
        seen = [
            weight * row["num_tokens"] * (row["p"] if name == "p" else 1)
            for weight, row in zip(decayed, rows, strict=True)
        ]
        assert kept.sum() == pytest.approx(sum(seen), rel=1e-6), name
        assert (kept > 0).sum() > 10


def test_the_running_mean_follows_p_and_alpha_moves(folder):
    rows = read_metrics(folder / "whole")
    running_p = 0.0
    for done, row in enumerate(rows):
        assert row["running_p"] == pytest.approx(running_p, rel=1e-9)
        weights = [0.5 ** (done - i) for i in range(done + 1)]
        running_p = sum(w * past["p"] for w, past in zip(weights, rows, strict=False)) / sum(weights)
    assert rows[0]["alpha"] == 0 < rows[1]["alpha"] < rows[-1]["alpha"], (
        "it moves, so that a resume without the mean would show"
    )


def test_a_loss_that_is_no_number_ends_the_run_with_the_tokens_and_spares_the_last_checkpoint(folder):
    diverging = write_recipe(
        folder, "diverging", 4, optim={"lr": 1e30, "warmup_ratio": 0.0, "clip_grad": 0.0}, checkpoint={"every_steps": 1}
    )
    line = finish(diverging, code=2).splitlines()[-1]
    assert "FloatingPointError: step 2, rank " in line
    assert "micro-batch 1: the loss is " in line
    assert "target tokens" in line
    assert "not finite" in line
    assert "examples of the training set: " in line
    assert check_directory(folder / "diverging") == 1
    assert [row["step"] for row in read_metrics(folder / "diverging")] == [1]


def test_one_process_at_a_time_writes_a_run_directory(tmp_path):
    with ranks.hold(tmp_path), pytest.raises(ValueError, match="is in use by another run"):
        ranks.hold(tmp_path)
    ranks.hold(tmp_path).close()


CHILD = """
import sys, time
from nemo_probsft.run.parents import end_with_parent
if "late" in sys.argv:
    print("up", flush=True)
    time.sleep(1)
end_with_parent(int(sys.argv[1]))
print("up", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
command = [sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]]
child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("asks", ["early", "late"])
def test_a_process_ends_with_the_one_that_started_it(asks):
    """late: the parent has been killed before the child asked Linux to be told."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, asks], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs([child], timeout=20)[0]


def copied(folder, name):
    """A copy of the killed run, with a recipe of its own."""
    shutil.copytree(folder / "killed", folder / name)
    content = yaml.safe_load((folder / "killed.yaml").read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | {"run_dir": str(folder / name)}))


def same_metrics(folder, name):
    return (folder / name / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
