"""Interrupted runs on Megatron-Bridge: killed at any moment, they go on bit for bit, at another layout to rounding.

`python -m tests.support.crash_campaign FOLDER --engine bridge` kills one run 20 times; here it is three.
"""

from __future__ import annotations

import random
import shutil

import pytest
import torch
import yaml

from conversion.checkpoint import last_checkpoint
from nemo_probsft.run.log import read_metrics
from tests.support.crash_campaign import best_step, check_directory, finish, run_and_kill, write_recipe

NUM_STEPS = 17  # checkpoints at 3, 6, ... and 17


@pytest.fixture(scope="module")
def folder(bridge, tmp_path_factory):
    """`whole`: an uninterrupted run. `killed`: one that was killed three times, with a checkpoint; and a copy of it."""
    folder = tmp_path_factory.mktemp("bridge-crash")
    whole = write_recipe(folder, "whole", NUM_STEPS, "bridge", validates=True)
    bridge.command("train", whole, world_size=2, output=folder / "whole-ranks")
    recipe, chance = write_recipe(folder, "killed", NUM_STEPS, "bridge", validates=True), random.Random(0)
    for moment in ("start", "checkpoint", "step"):
        assert run_and_kill(recipe, folder / "killed", moment, chance), f"the run ended before it was killed: {moment}"
        check_directory(folder / "killed")
    shutil.copytree(folder / "killed", folder / "relaid")
    content = yaml.safe_load(recipe.read_text()) | {"run_dir": str(folder / "relaid")}
    (folder / "relaid.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(folder):
    finish(folder / "killed.yaml")
    assert check_directory(folder / "killed") == NUM_STEPS
    assert (folder / "killed" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
    assert best_step(folder / "killed") == best_step(folder / "whole")
    kept = [path.name for path in (folder / "killed" / "checkpoints").glob("iter_*")]
    assert len(kept) == 2, kept  # keep_last


def test_it_goes_on_at_another_layout(bridge, folder):
    resumed_at = check_directory(folder / "relaid")
    assert 0 < resumed_at < NUM_STEPS
    changes = ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2")
    changes = (*changes, "data.micro_batch_size=4")
    bridge.command("train", folder / "relaid.yaml", *changes, world_size=2, output=folder / "relaid-ranks")
    rows, expected = (read_metrics(folder / name) for name in ("relaid", "whole"))
    assert rows[:resumed_at] == expected[:resumed_at]
    for row, want in zip(rows[resumed_at:], expected[resumed_at:], strict=True):
        assert row["step"] == want["step"]
        assert row["num_tokens"] == want["num_tokens"]
        for name in ("objective", "nll", "p", "grad_norm", "alpha", "running_p"):
            assert row[name] == pytest.approx(want[name], rel=1e-4), (row["step"], name)
    # rank 0, which writes the state, is of the first stage and never saw a probability
    state = torch.load(last_checkpoint(folder / "relaid" / "checkpoints") / "objective.pt", weights_only=True)
    assert state["weight"] == pytest.approx(1 - 0.5**NUM_STEPS)
    seen = sum(row["num_tokens"] * 0.5 ** (NUM_STEPS - row["step"]) for row in rows)
    assert state["by_label"][1].sum() == pytest.approx(seen, rel=1e-6)


def test_adapters_killed_go_on_bit_for_bit_and_are_exported(bridge, tmp_path):
    adapters = {
        "peft": {"name": "lora", "dim": 4, "alpha": 8},
        "parallel": {"tensor_model_parallel_size": 1},
        "trainer": {"devices": 1, "max_steps": 12, "precision": "fp32"},
        "checkpoint": {"every_steps": 2},
        "export": {"at_end": True},
    }
    whole, killed = (write_recipe(tmp_path, name, 12, "bridge", **adapters) for name in ("whole", "killed"))
    bridge.command("train", whole, world_size=1, output=tmp_path / "whole-ranks")
    assert run_and_kill(killed, tmp_path / "killed", "checkpoint", random.Random(1)), "the run ended before"
    assert check_directory(tmp_path / "killed") < 12
    finish(killed)
    runs = [tmp_path / name for name in ("whole", "killed")]
    first, second = ((run / "metrics.jsonl").read_bytes() for run in runs)
    assert first == second
    first, second = ([path.read_bytes() for path in (run / "export").glob("*.safetensors")] for run in runs)
    assert first == second != []


def test_a_run_of_the_other_engine_is_refused(folder):
    done = finish(folder / "whole.yaml", "engine=nemo", code=2)
    assert "bridge" in done.splitlines()[-1]
