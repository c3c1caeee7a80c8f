"""Megatron-Bridge from the command line: the same recipe, the same figures as NeMo and as transformers in float64."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from conversion import export_hf, verify
from conversion.checkpoint import last_checkpoint
from nemo_probsft import config
from nemo_probsft.adapters.megatron.settings import learning_rate, warmup_steps
from nemo_probsft.data import order
from nemo_probsft.run.log import read_metrics
from tests.support.bridge_refusals import CHANGES
from tests.support.engine import BRIDGE_PYTHON, ROOT, environment, first_error
from tests.support.first_step import (
    RTOL,
    check_confidence,
    check_first_step,
    likeliest_logp,
    recipe,
    reference_logp,
    write_workspace,
)

CLOSE = (
    2e-6  # the two engines sum in other orders, in fp32; ten steps of Adam are between the first and the last figure
)
TEN_STEPS = {
    "data": {"global_batch_size": 4, "micro_batch_size": 1},
    "objective": "adaptive-0.002-0.01-0.5",
    "parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "optim": {"lr": 1e-3, "warmup_ratio": 0.2},
    "trainer": {"devices": 2, "max_steps": 10, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("bridge-training"))


def test_the_first_step_is_the_token_mean_of_f(bridge, workspace):
    objective = {"name": "nll", "keep": {"min_p": 0.004}, "denominator": "kept"}
    path = recipe(workspace, "first", objective=objective, parallel={"sequence_parallel": True})
    said = bridge.command("train", path, "engine=bridge", world_size=2, output=workspace / "first-ranks")
    assert "Megatron-Bridge 0.6" in said
    (row,) = read_metrics(workspace / "first")
    check_first_step(row, workspace / "model", "OnlyTopLogP-0.004", "kept")


def test_both_engines_train_the_same(engine, bridge, workspace, record_property):
    for name, ranks in (("nemo", engine), ("bridge", bridge)):
        path = recipe(workspace, name, **TEN_STEPS)
        ranks.command("train", path, f"engine={name}", world_size=2, output=workspace / f"{name}-ranks")
    ours, theirs = (read_metrics(workspace / name) for name in ("bridge", "nemo"))
    apart = {}
    for row, want in zip(ours, theirs, strict=True):
        assert row.keys() == want.keys()
        assert (row["step"], row["num_tokens"], row["lr"]) == (want["step"], want["num_tokens"], want["lr"])
        for metric in row:
            assert row[metric] == pytest.approx(want[metric], rel=CLOSE), (row["step"], metric)
            apart[metric] = max(apart.get(metric, 0.0), abs(row[metric] - want[metric]) / (abs(want[metric]) or 1))
    record_property("largest_relative_difference", json.dumps(apart))
    assert ours[0]["alpha"] == 0 < ours[-1]["alpha"], "it moves, so that a mean of another step would show"


def test_diagnose_of_a_sample_on_two_data_parallel_ranks(bridge, workspace):
    layout = {"parallel": {"tensor_model_parallel_size": 1}, "data": {"global_batch_size": 4, "micro_batch_size": 1}}
    path = recipe(workspace, "sampled", **layout, diagnose={"max_tokens": 40})
    bridge.command("diagnose", path, "engine=bridge", world_size=2, output=workspace / "sampled-ranks")
    found = json.loads((workspace / "sampled" / "diagnose" / "diagnose.json").read_text())
    said = sorted((workspace / "sampled" / "diagnose" / "logp").glob("*.progress.jsonl"))
    assert [json.loads(file.read_text().splitlines()[0])[0] for file in said] == [1, 1]  # at once, by either rank
    logp = [part.detach() for part in reference_logp(workspace / "model")[1]]
    drawn = order.sample(np.array([len(part) for part in logp]), 40, seed=0)
    p = torch.cat([logp[i] for i in drawn]).exp()
    assert found["num_tokens"] == len(p) < sum(map(len, logp))
    assert found["mean_p"] == pytest.approx(float(p.mean()), rel=RTOL)
    top = likeliest_logp(workspace / "model")
    check_confidence(found, [logp[i] for i in drawn], [top[i] for i in drawn])
    lowest = sorted((float(value), i, place) for i in drawn for place, value in enumerate(logp[i], 1))
    for entry, (value, example, place) in zip(found["least_likely_tokens"], lowest, strict=False):
        assert entry["logp"] == pytest.approx(value, rel=RTOL)
        assert (entry["row"], entry["position"]) == (example + 1, place)


def test_adapters_are_trained_and_exported(bridge, workspace):
    changes = {"peft": {"name": "lora", "dim": 4, "alpha": 8}, "trainer": {"max_steps": 3}}
    path = recipe(workspace, "lora", **changes, export={"at_end": True})
    bridge.command("train", path, "engine=bridge", world_size=2, output=workspace / "lora-ranks")
    first, *_, last = read_metrics(workspace / "lora")
    base = torch.cat([part.detach() for part in reference_logp(workspace / "model")[1]])
    assert first["nll"] == pytest.approx(float(-base.mean()), rel=RTOL)
    assert last["nll"] < first["nll"]
    checkpoint = last_checkpoint(workspace / "lora" / "checkpoints")
    export_hf(checkpoint, workspace / "lora-exported")
    assert verify(checkpoint, workspace / "lora-exported").equal
    trained = torch.cat([part.detach() for part in reference_logp(workspace / "lora-exported")[1]])
    assert float(-trained.mean()) < last["nll"] < first["nll"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_is_that_of_nemo_bit_for_bit(engine, workspace, schedule):
    optim = {"lr": 3e-4, "min_lr": 0.0 if schedule == "constant" else 1e-5, "warmup_ratio": 0.15, "schedule": schedule}
    path = recipe(workspace, schedule, optim=optim)
    output = workspace / f"{schedule}-ranks"
    job = {"task": f"{__name__}:nemo_rates", "world_size": 1, "output": str(output), "recipe": str(path)}
    engine.run([job])
    assert not (error := first_error([job])), error
    theirs = torch.load(output / "rank-0.pt", weights_only=True)
    assert [learning_rate(config.load(path), step, 40) for step in range(40)] == theirs


def nemo_rates(job: dict, output: Path) -> None:
    """The learning rates of 40 steps, by the scheduler that NeMo is given."""
    from nemo_probsft.adapters.nemo import trainer as nemo

    loaded = config.load(job["recipe"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=loaded.optim.lr)
    scheduler = nemo.optimizer(loaded, 40).lr_scheduler.scheduler(None, optimizer)["lr_scheduler"]["scheduler"]
    assert warmup_steps(loaded, 40) == 6
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    torch.save(rates, output)


@pytest.mark.bridge
def test_f_of_p_in_a_bridge_recipe_of_ones_own(tmp_path):
    """examples/bridge_recipe.py on Bridge's own Llama recipe, data set, schedule and loggers."""
    model, environ = llama_in_a_hub_cache(tmp_path)
    rows = [{"input": f"{a}+{b}=", "output": f"{a + b}, I say"} for a in range(8) for b in range(4)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        f"checkpoint.pretrained_checkpoint={model}",
        f"checkpoint.save={tmp_path / 'checkpoints'}",
        f"checkpoint.load={tmp_path / 'checkpoints'}",
        f"dataset.dataset_root={tmp_path / 'data'}",
        "dataset.do_validation=false",
        "dataset.do_test=false",
        "dataset.seq_length=64",
        "model.seq_length=64",
        "train.global_batch_size=8",
        "train.micro_batch_size=2",
        "validation.eval_iters=0",
        "scheduler.lr_warmup_iters=1",
        "optimizer.lr=1e-3",
        "mixed_precision=null",
        "optimizer.bf16=false",
        "logger.tensorboard_dir=null",
    ]
    for iterations in (2, 4):  # the second goes on from the first
        command = [*torchrun(2), "examples/bridge_recipe.py", "objective=adaptive-0.002-0.01-0.5", *overrides]
        command += ["model.tensor_model_parallel_size=2", "scheduler.lr_decay_iters=4"]
        command += [f"train.train_iters={iterations}"]
        with (tmp_path / "said").open("w") as said:  # no pipe: Megatron's checkpoint writer keeps its end open
            done = subprocess.run(command, cwd=ROOT, env=environ, stdout=said, stderr=subprocess.STDOUT, timeout=300)
        assert done.returncode == 0, (tmp_path / "said").read_text()[-3000:]
    said = (tmp_path / "said").read_text()
    assert "kept_fraction: 1.000000E+00" in said
    assert "iteration        4/       4" in said
    state = torch.load(last_checkpoint(tmp_path / "checkpoints") / "objective.pt", weights_only=True)
    assert state["weight"] == 1 - 0.5**4


def torchrun(num_ranks: int) -> list[str]:
    return [str(BRIDGE_PYTHON), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]


def llama_in_a_hub_cache(root: Path) -> tuple[Path, dict[str, str]]:
    """A tiny Llama where the hub's cache would have the one that Bridge's recipe names, and the environment for it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from nemo_probsft.demo_data import VOCAB_SIZE, write_tokenizer

    cache = root / "hub" / "models--meta-llama--Llama-3.2-1B"
    model = cache / "snapshots" / ("0" * 40)
    model.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    write_tokenizer(model)
    torch.manual_seed(3)
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).float().save_pretrained(model)
    return model, environment(BRIDGE_PYTHON) | {"HF_HUB_CACHE": str(root / "hub"), "HF_HUB_OFFLINE": "1"}


def test_what_would_train_another_objective_is_refused(bridge, tmp_path):
    job = {"task": "tests.support.bridge_refusals:ask_all", "world_size": 1, "output": str(tmp_path / "ranks")}
    bridge.run([job])
    assert not (error := first_error([job])), error
    said = json.loads((tmp_path / "ranks" / "rank-0.json").read_text())
    for name in CHANGES:
        assert said[name].startswith("the Bridge configuration has ")
        assert name in said[name]
    assert "no objective is named" in said["none"]
    assert "hidden" in said["dropped"]
    assert not said["named"]
