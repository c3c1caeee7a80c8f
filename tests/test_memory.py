"""The arithmetic of `train --plan` against what the real trainer's ranks hold, and against transformers."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import conversion
from conversion.families import model_spec
from nemo_probsft import config, memory
from tests.parity_cases import Case, case_rows, make_models, write_job
from tests.parity_ranks import environment
from tests.parity_reference import Reference

CASES = {
    "tp 2, sequence parallel, bf16": Case(tp=2, sp=True, precision="bf16", model="qwen2-tied"),
    "tp 2, pp 2, tied, bf16": Case(tp=2, pp=2, precision="bf16", model="qwen2-tied", objective="p"),
    "LoRA, tp 2, sequence parallel, bf16": Case(tp=2, sp=True, lora=True, precision="bf16"),
    "one rank, norms of q and k": Case(model="qwen3-tied"),
    "tp 2, sequence parallel": Case(tp=2, sp=True, model="llama-untied"),
    "virtual stages": Case(pp=2, vp=2),
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """{case: (spec, setup, what each rank held)} after one step of the real trainer."""
    root = tmp_path_factory.mktemp("memory")
    make_models(root)
    for model in {case.model for case in CASES.values()}:
        conversion.import_hf(root / "hf" / model, root / "nemo" / model)
    jobs = {}
    for name, case in CASES.items():
        rows = case_rows(Reference(root / "hf" / case.model), case)
        jobs[name] = write_job(root, case, rows) | {"task": "memory"}
    (root / "jobs.json").write_text(json.dumps(list(jobs.values())))
    command = [sys.executable, "-m", "tests.parity_ranks", str(root / "jobs.json")]
    subprocess.run(command, check=True, timeout=600, env=environment(), capture_output=True)
    return {name: _measured(root, case, jobs[name]) for name, case in CASES.items()}


def _measured(root, case, job):
    output = root / "runs" / case.name / "ranks"
    errors = [path.read_text() for path in output.glob("*.error")]
    assert not errors, errors[0]
    found = [torch.load(output / f"rank-{rank}.pt", weights_only=False) for rank in range(case.world_size)]
    spec = model_spec(json.loads((root / "hf" / case.model / "config.json").read_text()))
    _, length, num_targets = next(rank["batch"] for rank in found if rank["batch"])
    setup = memory.setup(config.load(job["recipe"]), length=length, num_targets=num_targets, drops_rows=False)
    return spec, replace(setup, distributed_optimizer=False), found


@pytest.mark.parametrize("name", CASES)
def test_weights_gradients_and_optimizer_state_are_those_of_the_trainer(launch, name):
    spec, setup, found = launch[name]
    ranks = memory.ranks(spec, setup)
    for held in found:
        rank = ranks[held["stage"]]
        state = held["optimizer"]
        assert held["weights"] == rank.weights
        assert held["gradients"] == rank.gradients
        assert state.get("master", 0) + state["exp_avg"] + state["exp_avg_sq"] == rank.optimizer
