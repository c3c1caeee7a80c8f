"""The real trainer: NeMo and Megatron under torchrun and gloo, against a float64 reference with no code of the package.

The command that a person types, and the same on ranks of the shared engine. The training set is one global batch, so
that the first step's figures do not depend on the order of the examples. On CUDA it needs two GPUs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nemo_probsft.data import order
from nemo_probsft.diagnosis.measures import interval
from tests.support.first_step import (
    ROWS,
    RTOL,
    check_confidence,
    check_first_step,
    likeliest_logp,
    recipe,
    reference_logp,
    write_workspace,
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("training"))


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "nemo_probsft", *map(str, arguments)]


def run(*arguments) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


LAYOUTS = {
    "tp2-sp": ("kept", {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": ("target", {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2}),
    "dp2": ("target", {"tensor_model_parallel_size": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_step_is_the_token_mean_of_f_at_every_layout(engine, workspace, layout):
    denominator, parallel = LAYOUTS[layout]
    objective = {"name": "nll", "keep": {"min_p": 0.004}, "denominator": denominator}
    model_dir = four_layers(workspace) if layout == "pp2" else workspace / "model"
    path = recipe(workspace, layout, objective=objective, parallel=parallel, model={"path": str(model_dir)})
    engine.command("train", path, world_size=2, output=workspace / f"{layout}-ranks")
    (row,) = metrics(workspace / layout)
    check_first_step(row, model_dir, "OnlyTopLogP-0.004", denominator)


@pytest.fixture(scope="module")
def whole_run(workspace):
    """An uninterrupted run of 4 steps under tensor parallelism, exported."""
    path = recipe(
        workspace,
        "whole",
        trainer={"devices": 2, "max_steps": 4, "precision": "fp32"},
        checkpoint={"every_steps": 2},
        export={"at_end": True},
    )
    run("train", path)
    return path


def four_layers(workspace: Path) -> Path:
    """The demo's base has 3 layers; two pipeline stages need an even number."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    target = workspace / "four-layers"
    config = Qwen2Config.from_pretrained(workspace / "model", num_hidden_layers=4, layer_types=["full_attention"] * 4)
    torch.manual_seed(5)
    Qwen2ForCausalLM(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(workspace / "model").save_pretrained(target)
    return target


def test_a_run_leaves_metrics_checkpoint_export_and_where_they_came_from(workspace, whole_run):
    run_dir = workspace / "whole"
    rows = metrics(run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    check_first_step(rows[0], workspace / "model", "GeneralFamily-0.5", "target")
    assert rows[-1]["p"] > 1.5 * rows[0]["p"]  # it learns
    described = yaml.safe_load((run_dir / "run.yaml").read_text())
    assert described["objective"] == {"key": "GeneralFamily-0.5", "formula": "(1 - p^0.5)/0.5", "denominator": "target"}
    assert described["objective_in_use"].items() >= described["objective"].items()
    assert described["recipe"]["parallel"]["tensor_model_parallel_size"] == 2
    assert list((run_dir / "tensorboard").iterdir())
    assert (run_dir / "checkpoints" / "step=4" / "weights" / "metadata.json").exists()

    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(run_dir / "export").state_dict()
    before = AutoModelForCausalLM.from_pretrained(workspace / "model").state_dict()
    assert trained.keys() == before.keys()
    assert all(not torch.equal(trained[name], before[name]) for name in before if name.endswith("weight"))


def test_a_finished_run_is_left_as_it_is(workspace, whole_run):
    before = (workspace / "whole" / "metrics.jsonl").stat().st_mtime_ns
    run("train", whole_run)
    assert (workspace / "whole" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_directory_of_another_recipe_is_refused_in_one_line(workspace, whole_run):
    done = subprocess.run(command("train", whole_run, "objective=p"), capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nemo-probsft: ")]
    assert "holds another run" in line
    assert "GeneralFamily-0.5" in line


def test_diagnose_measures_p_of_every_target(workspace):
    rows = (workspace / "train.jsonl").read_text(encoding="utf-8").splitlines()
    too_long = json.dumps({"prompt": "x" * 100, "response": "y"})
    (workspace / "gaps.jsonl").write_text("\n".join(["", too_long, *rows[:3], "", *rows[3:]]), encoding="utf-8")
    row_numbers = [3, 4, 5, 7, 8, 9, 10, 11]
    data = {"train": str(workspace / "gaps.jsonl"), "long_prompts": "skip", "global_batch_size": 6}
    path = recipe(workspace, "diagnosed", data=data | {"micro_batch_size": 2})
    printed = run("diagnose", path)
    found = json.loads((workspace / "diagnosed" / "diagnose" / "diagnose.json").read_text())
    by_row = [part.detach() for part in reference_logp(workspace / "model")[1]]
    p = torch.cat(by_row).exp()
    assert found["num_tokens"] == len(p)
    assert found["mean_p"] == pytest.approx(float(p.mean()), rel=RTOL)
    assert found["percentiles"]["50"] == pytest.approx(float(p.quantile(0.5)), rel=RTOL)
    assert found["fraction_above_0.55"] == float((p > 0.55).double().mean())
    assert sum(found["histogram"]["counts"]) == len(p)
    check_places(found, by_row, row_numbers)
    check_confidence(found, by_row, likeliest_logp(workspace / "model"))
    assert "forty-two" in (workspace / "diagnosed" / "diagnose" / "diagnose.html").read_text(encoding="utf-8")
    assert found["region"]["name"] == "weak"
    assert "region: weak (strong from mean p 0.675, weak up to 0.285" in printed
    assert found["shortlist"][0]["objective"] == "original"


def check_places(found: dict, by_row: list[torch.Tensor], row_numbers: list[int]) -> None:
    """Positions and rows of what diagnose found, against log p by row [answer] of the reference."""
    for entry in found["by_position"]:
        inside = torch.cat([part[entry["first"] - 1 : entry["last"]] for part in by_row])
        assert entry["num_tokens"] == len(inside)
        assert entry["mean_p"] == pytest.approx(float(inside.exp().mean()), rel=RTOL)
    assert len(found["least_likely_tokens"]) == 50
    for entry in found["least_likely_tokens"]:
        i = row_numbers.index(entry["row"])
        assert entry["logp"] == pytest.approx(float(by_row[i][entry["position"] - 1]), rel=RTOL)
        text, start = "".join(ROWS[i]), len(ROWS[i][0]) + entry["position"] - 1
        assert text[:start].endswith(entry["before"])
        assert text[start : start + 1] in ("", entry["token"])
    lowest = torch.cat(by_row).sort().values[:50]
    assert [entry["logp"] for entry in found["least_likely_tokens"]] == pytest.approx(lowest.tolist(), rel=RTOL)
    ranked = np.argsort([float(part.mean()) for part in by_row])
    assert [entry["row"] for entry in found["least_likely_examples"]] == [row_numbers[i] for i in ranked]


def test_diagnose_of_a_sample_on_two_data_parallel_ranks(engine, workspace):
    layout = {"parallel": {"tensor_model_parallel_size": 1}, "data": {"global_batch_size": 4, "micro_batch_size": 1}}
    path = recipe(workspace, "sampled", **layout, diagnose={"max_tokens": 40})
    printed = engine.command("diagnose", path, world_size=2, output=workspace / "sampled-ranks")
    found = json.loads((workspace / "sampled" / "diagnose" / "diagnose.json").read_text())
    said = sorted((workspace / "sampled" / "diagnose" / "logp").glob("*.progress.jsonl"))
    assert [json.loads(file.read_text().splitlines()[0])[0] for file in said] == [1, 1]  # at once, by either rank
    logp = [part.detach() for part in reference_logp(workspace / "model")[1]]
    drawn = order.sample(np.array([len(part) for part in logp]), 40, seed=0)
    p = torch.cat([logp[i] for i in drawn]).exp()
    assert 40 <= found["num_tokens"] == len(p) < sum(map(len, logp))
    assert f"target tokens of {len(drawn)} of {len(logp)} examples" in printed
    assert (found["num_examples"], found["of_examples"]) == (len(drawn), len(logp))
    assert found["mean_p"] == pytest.approx(float(p.mean()), rel=RTOL)
    example = np.repeat(drawn, [len(logp[i]) for i in drawn])
    assert found["interval_95"] == pytest.approx(interval(p.numpy(), example), rel=1e-3)


def test_diagnose_on_two_nodes_under_the_users_torchrun(workspace):
    """Two launchers of one rank each, as on two machines with a shared file system; twice, over what the first left."""
    name = "two-nodes"
    path = recipe(workspace, name, trainer={"devices": 1, "num_nodes": 2, "max_steps": 1, "precision": "fp32"})
    truth = torch.cat([part.detach() for part in reference_logp(workspace / "model")[1]]).exp()
    output = workspace / name / "diagnose"
    for _ in range(2):
        port = free_port()
        rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "nemo_probsft"]
        launchers = [
            subprocess.Popen(
                [*torchrun, "diagnose", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for _ in range(2)
        ]
        said = [launcher.communicate(timeout=300)[0] for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0, 0], said
        assert sum("region: weak" in text for text in said) == 1
        found = json.loads((output / "diagnose.json").read_text())
        assert found["num_tokens"] == len(truth)
        assert found["mean_p"] == pytest.approx(float(truth.mean()), rel=RTOL)
        assert not (output / "base").exists()
        (output / "diagnose.json").unlink()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
