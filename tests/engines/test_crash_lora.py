"""LoRA's checkpoints hold adapters only and name their base: a run that was resumed twice still knows it."""

from __future__ import annotations

import random

from tests.support.crash_campaign import check_directory, finish, run_and_kill, write_recipe

ADAPTERS = {
    "peft": {"name": "lora", "dim": 4, "alpha": 8},
    "parallel": {"tensor_model_parallel_size": 1},
    "trainer": {"devices": 1, "max_steps": 16, "precision": "fp32"},
    "checkpoint": {"every_steps": 1},
    "export": {"at_end": True},
}


def test_adapters_killed_twice_go_on_bit_for_bit_and_are_exported(tmp_path):
    finish(write_recipe(tmp_path, "whole", 16, **ADAPTERS))
    recipe, chance, steps = write_recipe(tmp_path, "killed", 16, **ADAPTERS), random.Random(0), [0]
    for _ in range(2):
        assert run_and_kill(recipe, tmp_path / "killed", "step", chance), "the run ended before it was killed"
        steps.append(check_directory(tmp_path / "killed"))
    assert 0 < steps[1] < steps[2] < 16, "each start continues from a checkpoint"
    finish(recipe)
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    (exported,) = (killed / "export").glob("*.safetensors")
    assert exported.read_bytes() == (whole / "export" / exported.name).read_bytes()
