"""The real trainer: NeMo and Megatron under torchrun and gloo, against a float64 reference with no code of the package.

Each test starts the command a person would type. The training set is one global batch with very uneven answers, so that
the first step's figures do not depend on the order of the examples. On CUDA it needs two GPUs.
"""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nemo_probsft.data import order
from nemo_probsft.demo_data import write_random_base, write_tokenizer
from nemo_probsft.diagnosis.measures import interval

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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A random base model and one global batch of data."""
    root = tmp_path_factory.mktemp("training")
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


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "nemo_probsft", *map(str, arguments)]


def run(*arguments) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def reference_logp(model_dir: Path) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """log p of every target by row, float64, from transformers; the rows are tokenised here by hand."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float64, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    vocabulary = tokenizer.get_vocab()
    logp = []
    for prompt, response in ROWS:
        characters = (prompt + response).replace(" ", "\u0120")  # how byte-level vocabularies spell the space
        ids = torch.tensor([[*(vocabulary[c] for c in characters), tokenizer.eos_token_id]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        targets = ids[0, len(prompt) :, None]
        logp.append(torch.log_softmax(logits, -1).gather(1, targets).squeeze(1))
    return model, logp


def grad_norm(model: torch.nn.Module, loss: torch.Tensor) -> float:
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return math.sqrt(sum(float((g**2).sum()) for g in gradients))


FORMULAS = {
    "GeneralFamily-0.5": (lambda logp: (1 - torch.exp(0.5 * logp)) / 0.5, lambda p: p >= 0),
    "OnlyTopLogP-0.004": (lambda logp: -logp, lambda p: p >= 0.004),
}


def check_first_step(row: dict, model_dir: Path, key: str, denominator: str) -> None:
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
        assert row[name] == pytest.approx(float(value), rel=RTOL), name

    row_means = torch.stack([(f(part) * keep(part.exp())).sum() / len(part) for part in by_row]).mean()
    assert abs(float(row_means) - row["objective"]) > 100 * RTOL * abs(row["objective"])
    assert abs(grad_norm(model, row_means) - row["grad_norm"]) > 100 * RTOL * row["grad_norm"]
    assert abs(grad_norm(model, -logp.mean()) - row["grad_norm"]) > 100 * RTOL * row["grad_norm"]


LAYOUTS = {
    "tp2-sp": ("kept", {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": ("target", {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2}),
    "dp2": ("target", {"tensor_model_parallel_size": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_step_is_the_token_mean_of_f_at_every_layout(workspace, layout):
    denominator, parallel = LAYOUTS[layout]
    objective = {"name": "nll", "keep": {"min_p": 0.004}, "denominator": denominator}
    model_dir = four_layers(workspace) if layout == "pp2" else workspace / "model"
    run("train", recipe(workspace, layout, objective=objective, parallel=parallel, model={"path": str(model_dir)}))
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


def test_diagnose_of_a_sample_on_two_data_parallel_ranks(workspace):
    layout = {"parallel": {"tensor_model_parallel_size": 1}, "data": {"global_batch_size": 4, "micro_batch_size": 1}}
    printed = run("diagnose", recipe(workspace, "sampled", **layout, diagnose={"max_tokens": 40}))
    found = json.loads((workspace / "sampled" / "diagnose" / "diagnose.json").read_text())
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
