"""One global batch with very uneven answers, its recipe, and its first step in float64 with no code of the package."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nemo_probsft.demo_data import write_random_base, write_tokenizer

RTOL = 1e-5
ROWS = [
    ("12+34=", "46"),
    ("copy:abcdefghij=", "abcdefghij"),
    ("9=", "9"),
    ("spell it out, please: 21+21=", "forty-two, which is the answer to everything"),
    ("77+12=", "89"),
    ("copy:zz=", "zz"),
    ("x", "y"),
    ("what is left?", "nothing at all"),
]


def write_workspace(root: Path) -> Path:
    """A random base model and one global batch of data."""
    write_tokenizer(root / "model")
    write_random_base(root / "model", seed=3)
    rows = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in ROWS]
    (root / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def recipe(root: Path, name: str, **changes) -> Path:
    content = {
        "run_dir": str(root / name),
        "model": {"path": str(root / "model")},
        "data": {
            "train": str(root / "train.jsonl"),
            "max_length": 96,
            "global_batch_size": len(ROWS),
            "micro_batch_size": 2,
        },
        "objective": "GeneralFamily-0.5",
        "parallel": {"tensor_model_parallel_size": 2},
        "optim": {"lr": 1e-3, "warmup_ratio": 0.0},
        "trainer": {"devices": 2, "max_steps": 1, "precision": "fp32"},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def reference_logp(model_dir: Path) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """log p of every target by row, float64, from transformers."""
    model, rows = _reference(model_dir)
    return model, [logp.gather(1, targets).squeeze(1) for logp, targets in rows]


def likeliest_logp(model_dir: Path) -> list[torch.Tensor]:
    """log p of the likeliest token at every target, the same way."""
    return [logp.detach().amax(1) for logp, _ in _reference(model_dir)[1]]


def _reference(model_dir: Path) -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Of each row, which is tokenised here by hand: log p of the vocabulary [T, V], and the targets [T, 1]."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float64, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    vocabulary = tokenizer.get_vocab()
    rows = []
    for prompt, response in ROWS:
        characters = (prompt + response).replace(" ", "\u0120")  # how byte-level vocabularies spell the space
        ids = torch.tensor([[*(vocabulary[c] for c in characters), tokenizer.eos_token_id]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        targets = ids[0, len(prompt) :, None]
        rows.append((torch.log_softmax(logits, -1), targets))
    return model, rows


def check_confidence(found: dict, logp: list[torch.Tensor], top_logp: list[torch.Tensor]) -> None:
    """The tenths of the likeliest token's p in diagnose.json, against both of a reference by row."""
    p, top = (torch.cat(rows).exp().numpy() for rows in (logp, top_logp))
    assert (p < top).any()
    tenths = np.minimum((10 * top).astype(int), 9)
    assert [round(10 * entry["low"]) for entry in found["by_confidence"]] == np.unique(tenths).tolist()
    for entry in found["by_confidence"]:
        inside = tenths == round(10 * entry["low"])
        assert entry["num_tokens"] == inside.sum()
        assert entry["confidence"] == pytest.approx(top[inside].mean(), rel=RTOL)
        assert entry["likeliest"] == pytest.approx((p == top)[inside].mean())
        assert entry["mean_p"] == pytest.approx(p[inside].mean(), rel=RTOL)


def grad_norm(model: torch.nn.Module, loss: torch.Tensor) -> float:
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return math.sqrt(sum(float((g**2).sum()) for g in gradients))


FORMULAS = {
    "GeneralFamily-0.5": (lambda logp: (1 - torch.exp(0.5 * logp)) / 0.5, lambda p: p >= 0),
    "OnlyTopLogP-0.004": (lambda logp: -logp, lambda p: p >= 0.004),
}


def check_first_step(row: dict, model_dir: Path, key: str, denominator: str, rtol: float = RTOL) -> None:
    """The logged figures equal the reference's, and the known mistakes would have been seen."""
    model, by_row = reference_logp(model_dir)
    logp = torch.cat(by_row)
    f, keep = FORMULAS[key]
    kept = keep(logp.exp())
    count = len(logp) if denominator == "target" else int(kept.sum())
    loss = f(logp)[kept].sum() / count
    assert row["num_tokens"] == len(logp)
    for name, value in {
        "objective": loss,
        "nll": -logp.mean(),
        "p": logp.exp().mean(),
        "kept_fraction": kept.double().mean(),
        "grad_norm": grad_norm(model, loss),
    }.items():
        assert row[name] == pytest.approx(float(value), rel=rtol), name

    row_means = torch.stack([(f(part) * keep(part.exp())).sum() / len(part) for part in by_row]).mean()
    assert abs(float(row_means) - row["objective"]) > 100 * RTOL * abs(row["objective"])
    assert abs(grad_norm(model, row_means) - row["grad_norm"]) > max(100 * RTOL, 10 * rtol) * row["grad_norm"]
    assert abs(grad_norm(model, -logp.mean()) - row["grad_norm"]) > max(100 * RTOL, 10 * rtol) * row["grad_norm"]
