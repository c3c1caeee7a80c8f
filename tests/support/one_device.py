"""What one device is enough for. The trainer takes a GPU where there is one: tests/engines and tests/gpu share this."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_probsft.run.log import read_metrics
from tests.support.crash_campaign import check_directory, finish, run_and_kill
from tests.support.engine import Engine
from tests.support.first_step import check_first_step, recipe, reference_logp, write_workspace
from tests.support.parity_cases import Case, case_rows
from tests.support.parity_metrics import errors, first_steps
from tests.support.parity_reference import Reference

TF32_RTOL = 5e-3  # Transformer Engine multiplies fp32 with 10 bits of mantissa; known mistakes are 10 times as far
BF16_RTOL = 2e-2
RTOL = TF32_RTOL if torch.cuda.is_available() else 1e-5
ATTENTION = ("auto", "unfused", "local")
NUM_STEPS = 16
SETTINGS = {
    "parallel": {"tensor_model_parallel_size": 1},
    "trainer": {"devices": 1, "max_steps": NUM_STEPS, "precision": "fp32"},
    "checkpoint": {"every_steps": 2},
}


def check_train_diagnose_resume_export(folder: Path) -> None:
    """By the command that a person types: few starts, since each imports NeMo anew."""
    write_workspace(folder)
    whole = recipe(folder, "whole", **SETTINGS, export={"at_end": True})
    finish(whole)
    _check_whole(folder)
    _check_diagnosis(whole, folder)
    killed = recipe(folder, "killed", **SETTINGS, export={"at_end": True})
    assert run_and_kill(killed, folder / "killed", "step", random.Random(0)), "the run ended before it was killed"
    check_directory(folder / "killed")
    finish(killed)
    assert (folder / "killed" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
    weights = "export/model.safetensors"
    assert (folder / "killed" / weights).read_bytes() == (folder / "whole" / weights).read_bytes()


def _check_whole(folder: Path) -> None:
    rows = read_metrics(folder / "whole")
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    check_first_step(rows[0], folder / "model", "GeneralFamily-0.5", "target", rtol=RTOL)
    assert rows[-1]["p"] > 1.5 * rows[0]["p"]  # it learns
    trained, before = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder / "whole/export", folder / "model")
    )
    assert trained.keys() == before.keys()
    assert all(not torch.equal(trained[name], before[name]) for name in before if name.endswith("weight"))


def _check_diagnosis(path: Path, folder: Path) -> None:
    finish(path, f"run_dir={folder / 'diagnosed'}", command="diagnose")
    found = json.loads((folder / "diagnosed" / "diagnose" / "diagnose.json").read_text())
    p = torch.cat([part.detach() for part in reference_logp(folder / "model")[1]]).exp()
    assert found["num_tokens"] == len(p)
    assert found["mean_p"] == pytest.approx(float(p.mean()), rel=RTOL)
    assert found["region"]["name"] == "weak"


def check_packed_rows(engine: Engine, folder: Path) -> None:
    """A GPU packs in bf16 only, which rounds each value by up to 0.4 %: means of them agree within 2 %."""
    cuda = torch.cuda.is_available()
    cases = [Case(packing=packing, micro_batch=1, precision="bf16" if cuda else "fp32") for packing in (False, True)]
    plain, packed = first_steps(engine, folder, cases)
    assert packed["num_tokens"] == plain["num_tokens"]
    tolerance = BF16_RTOL if cuda else 1e-5
    for metric in ("objective", "nll", "p", "grad_norm"):
        assert packed[metric] == pytest.approx(plain[metric], rel=tolerance), metric
    reference = Reference(folder / "hf" / cases[1].model)
    rows = case_rows(reference, cases[1])
    together = [[rows[i] for i in row] for share in cases[1].packed(rows) for (row,) in share]
    across = reference.attending_across(together, "original", "target")
    assert abs(across.item() / reference.loss(rows, "original", "target").item() - 1) > 2 * BF16_RTOL


def check_first_step_against_float64(engine: Engine, folder: Path) -> None:
    """Loss and gradient norm, with every attention that has fp32; the mean of micro-batch means is far outside of the
    tolerance."""
    cases = [Case(objective="OnlyTopLogP-0.2"), *(Case(objective="p", attention=name) for name in ATTENTION)]
    for name, found in errors(engine, folder, cases).items():
        mistaken = found.pop("mistaken")
        assert max(found.values()) < RTOL <= TF32_RTOL < mistaken / 10, (name, found, mistaken)
