"""Held-out rows while training: float64 at every layout, nothing of training moves, a resume repeats and skips none.

`test_crash.py` and `test_bridge_crash.py` kill runs that validate and keep their best checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from conversion.checkpoint import step_of
from nemo_probsft.run.log import is_validation, read_validations
from tests.engines.test_training import four_layers
from tests.support.first_step import ROWS, RTOL, recipe, reference_logp, write_workspace

NUM_HELD_OUT = 5  # rows: over two data-parallel ranks, one of them has less
OBJECTIVE = "adaptive-by-label-0.002-0.01-0.5-10"
LAYOUTS = {
    "tp2-sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2},
    "vpp2": {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
    },
    "dp2": {"tensor_model_parallel_size": 1},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("validation"))
    four_layers(root)
    rows = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in ROWS[:NUM_HELD_OUT]]
    (root / "held-out.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def train(ranks, workspace: Path, engine: str, name: str, parallel: dict, steps: int, validates: bool = True) -> Path:
    own = {"data": {"validation": str(workspace / "held-out.jsonl")}, "validate": {"every_steps": 2}}
    path = recipe(
        workspace,
        name,
        engine=engine,
        model={"path": str(workspace / "four-layers")},
        objective=OBJECTIVE,
        parallel=parallel,
        trainer={"devices": 2, "max_steps": steps, "precision": "fp32"},
        checkpoint={"every_steps": 2, "keep_last": 3} | ({"keep_best": "nll"} if validates and steps > 2 else {}),
        **(own if validates else {}),
    )
    output = workspace / f"{name}-ranks-{len(list(workspace.iterdir()))}"
    ranks.command("train", path, world_size=2, output=output)
    return workspace / name


def lines(run_dir: Path, validation: bool) -> list[str]:
    every = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in every if is_validation(json.loads(line)) == validation]


def check_base(row: dict, model: Path) -> None:
    """The base model's figures, whose objective is -log p: nothing has been seen that would move it."""
    by_row = [part.detach() for part in reference_logp(model)[1]][:NUM_HELD_OUT]
    logp = torch.cat(by_row)
    assert (row["step"], row["validation_num_tokens"]) == (0, len(logp))
    assert row["validation_nll"] == pytest.approx(-float(logp.mean()), rel=RTOL)
    assert row["validation_objective"] == pytest.approx(-float(logp.mean()), rel=RTOL)
    assert row["validation_p"] == pytest.approx(float(logp.exp().mean()), rel=RTOL)
    assert row["validation_kept_fraction"] == 1
    mean_of_means = -float(torch.stack([part.mean() for part in by_row]).mean())
    assert row["validation_nll"] != pytest.approx(mean_of_means, rel=100 * RTOL)
    with_padding = -float(torch.cat([*by_row, by_row[0]]).mean())
    assert row["validation_nll"] != pytest.approx(with_padding, rel=10 * RTOL)


def is_as_promised(ranks, workspace: Path, engine: str) -> None:
    run_dir = train(ranks, workspace, engine, f"{engine}-validated", LAYOUTS["tp2-sp"], 7)
    plain = train(ranks, workspace, engine, f"{engine}-plain", LAYOUTS["tp2-sp"], 7, validates=False)
    rows = read_validations(run_dir)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 7]
    check_base(rows[0], workspace / "four-layers")
    assert rows[1]["validation_objective"] < rows[1]["validation_nll"], "the objective of the step has moved"
    assert lines(run_dir, validation=False) == lines(plain, validation=False)
    best = min((row for row in rows if row["step"]), key=lambda row: row["validation_nll"])
    assert step_of((run_dir / "best").resolve()) == best["step"]
    whole = (run_dir / "metrics.jsonl").read_bytes()
    for checkpoint in (run_dir / "checkpoints").iterdir():  # as if it had been killed after its first checkpoints
        if checkpoint.name in ("step=6", "step=7", "iter_0000006", "iter_0000007"):
            shutil.rmtree(checkpoint)
    train(ranks, workspace, engine, f"{engine}-validated", LAYOUTS["tp2-sp"], 7)
    assert (run_dir / "metrics.jsonl").read_bytes() == whole
    exported, said = workspace / f"{engine}-export", workspace / f"{engine}-export-said"
    ranks.command("convert", "export", run_dir / "best", exported, world_size=1, output=said)
    assert (exported / "model.safetensors").is_file()


def test_it_is_as_promised(engine, workspace):
    is_as_promised(engine, workspace, "nemo")


def test_it_is_as_promised_with_bridge(bridge, workspace):
    is_as_promised(bridge, workspace, "bridge")


def figures_agree_at(ranks, workspace: Path, engine: str, layout: str) -> None:
    check_base(
        read_validations(train(ranks, workspace, engine, f"{engine}-{layout}", LAYOUTS[layout], 1))[0],
        workspace / "four-layers",
    )


@pytest.mark.parametrize("layout", ["pp2", "vpp2", "dp2"])
def test_the_figures_are_those_of_float64_at_every_layout(engine, workspace, layout):
    figures_agree_at(engine, workspace, "nemo", layout)


@pytest.mark.parametrize("layout", ["vpp2", "dp2"])
def test_the_figures_are_those_of_float64_at_every_layout_with_bridge(bridge, workspace, layout):
    figures_agree_at(bridge, workspace, "bridge", layout)


def test_the_first_validation_is_the_diagnosis_of_the_file(engine, workspace):
    """Of the same model at another layout than the run's."""
    (row, _) = read_validations(train(engine, workspace, "nemo", "diagnosed", LAYOUTS["dp2"], 1))
    directory = workspace / "of-the-file"
    changes = (f"data.train={workspace / 'held-out.jsonl'}", "data.global_batch_size=4", f"run_dir={directory}")
    ranks_said = workspace / "diagnose-ranks"
    engine.command("diagnose", workspace / "diagnosed.yaml", *changes, world_size=2, output=ranks_said)
    found = json.loads((directory / "diagnose" / "diagnose.json").read_text())
    assert row["validation_nll"] == pytest.approx(found["mean_nll"], rel=1e-6)
    assert row["validation_p"] == pytest.approx(found["mean_p"], rel=1e-6)
    assert row["validation_num_tokens"] == found["num_tokens"]
