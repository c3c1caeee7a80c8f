"""`prior` on both engines: the base model's means of two files, and every step, at every layout against float64.

The weights stay where they are: every step sees the same probabilities, and so the same objective.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import torch

from conversion.checkpoint import step_of
from nemo_probsft.run.log import is_validation, read_metrics, read_validations
from tests.engines.test_confidence import tokens, workspace  # noqa: F401  the fixture: a model that is sure of some tokens
from tests.support.first_step import ROWS, grad_norm, recipe

NUM_STEPS, SPLIT = 4, 5  # rows of the first file
LOW, HIGH = 0.0002, 0.003
RTOL = 1e-5
LAYOUTS = {
    "tp2-sp": {"parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
    "vpp2": {
        "parallel": {
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
        }
    },
    "dp2-packed": {"parallel": {"tensor_model_parallel_size": 1}, "data": {"packing": True, "micro_batch_size": 1}},
    "dp2-lora": {"parallel": {"tensor_model_parallel_size": 1}, "peft": {"name": "lora", "dim": 4, "alpha": 8}},
}


def train(ranks, root, name: str, engine: str, layout: str) -> str:
    """metrics.jsonl"""
    for file, rows in (("one", ROWS[:SPLIT]), ("two", ROWS[SPLIT:])):
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in rows]
        (root / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    changes = dict(LAYOUTS[layout])
    data = {
        "train": [{"path": str(root / f"{file}.jsonl")} for file in ("one", "two")],
        "validation": str(root / "two.jsonl"),
    }
    path = recipe(
        root,
        name,
        engine=engine,
        model={"path": str(root / "four-layers")},
        objective=f"prior-{LOW}-{HIGH}",
        optim={"lr": 1e-30, "weight_decay": 0.0},
        trainer={"devices": 2, "max_steps": NUM_STEPS, "precision": "fp32"},
        checkpoint={"every_steps": 2, "keep_last": 3, "keep_best": "objective"},
        validate={"every_steps": 2},
        **{**changes, "data": data | changes.get("data", {})},
    )
    ranks.command("train", path, world_size=2, output=root / f"{name}-ranks-{len(list(root.iterdir()))}")
    return (root / name / "metrics.jsonl").read_text(encoding="utf-8")


def power(logp, alpha):
    return torch.where(alpha > 0, -torch.expm1(alpha * logp) / alpha.clamp(min=1e-9), -logp)


def is_that_of_float64_at_every_layout(ranks, root, engine: str, layouts) -> None:
    model, logp, _, _ = tokens(root / "four-layers")
    lengths = [len(response) + 1 for _, response in ROWS]
    file_of = torch.tensor([int(row >= SPLIT) for row, length in enumerate(lengths) for _ in range(length)])
    p = logp.detach().exp()
    means = torch.stack([p[file_of == file].mean() for file in (0, 1)])
    alphas = ((means - LOW) / (HIGH - LOW)).clamp(0, 1)
    assert (alphas[0] - alphas[1]).abs() > 0.1
    assert ((alphas > 0) & (alphas < 1)).all()
    overall = ((p.mean() - LOW) / (HIGH - LOW)).clamp(0, 1)
    f, of_all = power(logp, alphas[file_of]).mean(), power(logp, overall).mean()
    held_out = float(power(logp[file_of == 1], overall).mean().detach())
    for layout in layouts:
        train(ranks, root, f"{engine}-{layout}", engine, layout)
        run_dir = root / f"{engine}-{layout}"
        found = json.loads((run_dir / "prior.json").read_text())
        assert [entry["file"] for entry in found] == [str(root / "one.jsonl"), str(root / "two.jsonl")]
        assert [entry["num_tokens"] for entry in found] == [int((file_of == file).sum()) for file in (0, 1)]
        np.testing.assert_allclose([entry["mean_p"] for entry in found], means, rtol=RTOL, err_msg=layout)
        np.testing.assert_allclose([entry["alpha"] for entry in found], alphas, rtol=10 * RTOL, err_msg=layout)
        rows = read_metrics(run_dir)
        assert len(rows) == NUM_STEPS
        np.testing.assert_allclose([row["objective"] for row in rows], float(f.detach()), rtol=RTOL, err_msg=layout)
        if layout != "dp2-lora":  # whose gradient is that of the adapters
            np.testing.assert_allclose(
                [row["grad_norm"] for row in rows], grad_norm(model, f), rtol=RTOL, err_msg=layout
            )
        values = [row["validation_objective"] for row in read_validations(run_dir)]
        np.testing.assert_allclose(values, [held_out] * (1 + NUM_STEPS // 2), rtol=RTOL, err_msg=layout)
        assert (run_dir / "best").exists()
    for wrong in (of_all, power(logp, alphas.flip(0)[file_of]).mean(), -logp.mean(), (1 - logp.exp()).mean()):
        assert abs(float((wrong / f).detach()) - 1) > 100 * RTOL
        assert abs(grad_norm(model, wrong) / grad_norm(model, f) - 1) > 100 * RTOL


def test_nemo(engine, workspace):  # noqa: F811
    is_that_of_float64_at_every_layout(engine, workspace, "nemo", LAYOUTS)


def test_bridge(bridge, workspace):  # noqa: F811
    is_that_of_float64_at_every_layout(bridge, workspace, "bridge", ["tp2-sp"])


def goes_on_bit_for_bit(ranks, root, engine: str) -> None:
    """The base model is not there any more when a run goes on, and is not asked again."""
    name, layout = f"{engine}-resumed", "vpp2"
    whole = train(ranks, root, name, engine, layout)
    (root / name / "prior.json").unlink()
    for checkpoint in (root / name / "checkpoints").glob("*/"):
        if step_of(checkpoint) != 2:
            shutil.rmtree(checkpoint)
    assert train(ranks, root, name, engine, layout) == whole
    assert not (root / name / "prior.json").exists()
    assert sum(not is_validation(json.loads(line)) for line in whole.splitlines()) == NUM_STEPS


def test_nemo_goes_on_bit_for_bit(engine, workspace):  # noqa: F811
    goes_on_bit_for_bit(engine, workspace, "nemo")


def test_bridge_goes_on_bit_for_bit(bridge, workspace):  # noqa: F811
    goes_on_bit_for_bit(bridge, workspace, "bridge")
