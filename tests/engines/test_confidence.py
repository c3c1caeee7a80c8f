"""adaptive-by-confidence on both engines: every step at every layout against float64, and continued bit for bit.

The weights stay where they are, so that every step sees the same probabilities. What changes is what the means know.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from conversion.checkpoint import step_of
from nemo_probsft.run.log import read_metrics
from tests.engines.test_training import four_layers
from tests.support.first_step import ROWS, grad_norm, recipe, write_workspace

NUM_STEPS, DECAY, PRIOR = 4, 0.5, 2.0
LOW, HIGH = 0.0002, 0.003
SHARPER = 6  # times the logits of random weights
RTOL = 1e-5
LAYOUTS = {
    "tp2-sp-chunks": {
        "parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "head": {"chunk_tokens": 7, "skip_below": 1e-12},
    },
    "vpp2-recompute": {
        "parallel": {
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
        },
        "trainer": {"recompute": "full"},
    },
    "dp2-lora": {"parallel": {"tensor_model_parallel_size": 1}, "peft": {"name": "lora", "dim": 4, "alpha": 8}},
    "dp2-packed": {"parallel": {"tensor_model_parallel_size": 1}, "data": {"packing": True, "micro_batch_size": 1}},
    "tp2-all-rows": {"parallel": {"tensor_model_parallel_size": 2}, "head": {"skip_rows": False}},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A model that is sure of some of its tokens, and not of others."""
    from transformers import AutoModelForCausalLM

    root = write_workspace(tmp_path_factory.mktemp("confidence"))
    model = AutoModelForCausalLM.from_pretrained(four_layers(root))
    with torch.no_grad():
        model.model.norm.weight.mul_(SHARPER)
    model.save_pretrained(root / "four-layers")
    return root


def train(ranks, workspace, name: str, engine: str, layout: str) -> str:
    """metrics.jsonl"""
    changes = dict(LAYOUTS[layout])
    trainer = {"devices": 2, "max_steps": NUM_STEPS, "precision": "fp32"} | changes.pop("trainer", {})
    path = recipe(
        workspace,
        name,
        engine=engine,
        model={"path": str(workspace / "four-layers")},
        objective=f"adaptive-by-confidence-{LOW}-{HIGH}-{DECAY}-{PRIOR:g}",
        optim={"lr": 1e-30, "weight_decay": 0.0},
        trainer=trainer,
        checkpoint={"every_steps": 2, "keep_last": 3},
        **changes,
    )
    ranks.command("train", path, world_size=2, output=workspace / f"{name}-ranks-{len(list(workspace.iterdir()))}")
    return (workspace / name / "metrics.jsonl").read_text(encoding="utf-8")


def tokens(model_dir):
    """(model, log p and log p of the likeliest token of every target, label): float64, tokenised by hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    vocabulary, found = tokenizer.get_vocab(), []
    for prompt, response in ROWS:
        characters = (prompt + response).replace(" ", "\u0120")
        ids = torch.tensor([[*(vocabulary[c] for c in characters), tokenizer.eos_token_id]])
        every = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1], -1)
        labels = ids[0, len(prompt) :]
        found.append((every.gather(1, labels[:, None])[:, 0], every.detach().amax(-1), labels))
    return model, *(torch.cat(parts) for parts in zip(*found, strict=True))


def expected(logp, groups) -> list[tuple[torch.Tensor, float]]:
    """(mean objective, mean alpha) of each step, for the groups of the tokens."""
    p, steps = logp.detach().exp(), []
    total, count = torch.zeros(2, 1000, dtype=torch.float64)
    for number in range(NUM_STEPS):
        m = (total + PRIOR * (p.mean() if number else 0.0)) / (count + PRIOR)
        alphas = ((m - LOW) / (HIGH - LOW)).clamp(0, 1)
        a = alphas[groups]
        f = torch.where(a > 0, -torch.expm1(a * logp) / a.clamp(min=1e-9), -logp)
        steps.append((f.mean(), float((alphas * count).sum() / count.sum().clamp(min=1e-9))))
        total = (DECAY * total).index_add(0, groups, p)
        count = (DECAY * count).index_add(0, groups, torch.ones_like(p))
    return steps


def is_that_of_float64_at_every_layout(ranks, workspace, engine: str, layouts) -> None:
    model, logp, top, labels = tokens(workspace / "four-layers")
    tenths = 10 * top.exp()
    assert (tenths - tenths.round()).abs().min() > 1e-4, "fp32 could find another bin"
    groups = tenths.long().clamp(max=9)
    assert len(groups.unique()) > 5
    truth = [(float(f), alpha, grad_norm(model, f)) for f, alpha in expected(logp, groups)]
    by_label = [(float(f), alpha, grad_norm(model, f)) for f, alpha in expected(logp, labels)]
    by_p = [(float(f), alpha, grad_norm(model, f)) for f, alpha in expected(logp, (10 * logp.detach().exp()).long())]
    for layout in layouts:
        train(ranks, workspace, f"{engine}-{layout}", engine, layout)
        rows = read_metrics(workspace / f"{engine}-{layout}")
        found = [(row["objective"], row["alpha"], row["grad_norm"]) for row in rows]
        if layout == "dp2-lora":  # whose gradient is that of the adapters
            np.testing.assert_allclose([row[:2] for row in found], [row[:2] for row in truth], rtol=RTOL)
            continue
        np.testing.assert_allclose(found, truth, rtol=RTOL, err_msg=layout)
        for wrong in (by_label, by_p, truth[:1] * NUM_STEPS):
            off = np.abs(np.array(found) / np.maximum(wrong, 1e-9) - 1)[1:]
            assert (off.max(0) > 100 * RTOL).all(), "other groups, or none, would do"


def test_nemo(engine, workspace):
    is_that_of_float64_at_every_layout(engine, workspace, "nemo", LAYOUTS)


def test_bridge(bridge, workspace):
    is_that_of_float64_at_every_layout(bridge, workspace, "bridge", ["tp2-sp-chunks"])


def goes_on_bit_for_bit(ranks, workspace, engine: str) -> None:
    name, layout = f"{engine}-resumed", "vpp2-recompute"
    whole = train(ranks, workspace, name, engine, layout)
    for checkpoint in (workspace / name / "checkpoints").glob("*/"):
        if step_of(checkpoint) != 2:
            shutil.rmtree(checkpoint)
    assert train(ranks, workspace, name, engine, layout) == whole
    assert whole.count('"alpha"') == NUM_STEPS


def test_nemo_goes_on_bit_for_bit(engine, workspace):
    goes_on_bit_for_bit(engine, workspace, "nemo")


def test_bridge_goes_on_bit_for_bit(bridge, workspace):
    goes_on_bit_for_bit(bridge, workspace, "bridge")
