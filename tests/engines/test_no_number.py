"""A loss that is no number, on both engines: its rank says where, and no rank on any pipeline stage makes a step."""

from __future__ import annotations

import pytest
import torch

from nemo_probsft.run.log import read_metrics
from tests.support.first_step import recipe, write_workspace

OVERFLOWS = "GeneralFamily--30"  # p^-30 of a random model
LAYOUTS = {
    "nemo-pp3": ("nemo", 3, {"pipeline_model_parallel_size": 3}, False),
    "bridge-pp3": ("bridge", 3, {"pipeline_model_parallel_size": 3}, False),
    "bridge-dp2-overlap": ("bridge", 2, {}, True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_weight_is_touched(name, request, tmp_path):
    of_engine, size, layout, overlap = LAYOUTS[name]
    ranks = request.getfixturevalue({"nemo": "engine", "bridge": "bridge"}[of_engine])
    write_workspace(tmp_path)
    path = recipe(
        tmp_path,
        "run",
        engine=of_engine,
        objective=OVERFLOWS,
        parallel={"tensor_model_parallel_size": 1, **layout},
        optim={"clip_grad": 0.0},  # Megatron's norm of the gradient would stop the other ranks, too
        trainer={"devices": size, "max_steps": 3},
    )
    job = {"task": "tests.support.no_number:train", "world_size": size, "output": str(tmp_path / "ranks")}
    ranks.run([job | {"engine": of_engine, "recipe": str(path), "overlap": overlap}])
    found = [torch.load(tmp_path / "ranks" / f"rank-{rank}.pt", weights_only=True) for rank in range(size)]
    assert all(rank["weights"] > 5 for rank in found)
    assert [rank["changed"] for rank in found] == [[]] * size
    raised = [rank["said"] for rank in found if rank["said"].startswith("FloatingPointError: ")]
    assert raised
    for said in raised:
        assert ", micro-batch 1: the loss is inf: of " in said or ", micro-batch 1: the loss is -inf: of " in said
        assert "step 1, rank " in said
    assert "nothing" not in [rank["said"] for rank in found]
    assert read_metrics(tmp_path / "run") == []
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
