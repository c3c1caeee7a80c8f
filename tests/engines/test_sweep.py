"""`sweep` and `one-click`: what they refuse, what they plan, and both for real, a failing cell among them.

The grid is run by `make continuum`; here NeMo trains for 2 steps and vLLM answers 4 items."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from evaluation.report.inputs import read_inputs
from nemo_probsft.demo_data import make_demo
from nemo_probsft.diagnosis.region import SHORTLISTS
from nemo_probsft.sweep import Options, plan_sweep

EVALUATION = ("--tasks", "demo_strong", "--limit", "4", "--samples", "2")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    make_demo(directory / "data", seed=0)
    recipe = {
        "run_dir": str(directory / "run"),
        "model": {"path": str(directory / "data" / "random_base")},
        "data": {
            "train": str(directory / "data" / "strong_train.jsonl"),
            "max_length": 32,
            "global_batch_size": 16,
            "micro_batch_size": 16,
        },
        "objective": "original",
        "trainer": {"devices": 1, "max_steps": 2, "precision": "fp32"},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory


def command(*arguments, **options):
    line = [sys.executable, "-m", "nemo_probsft", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=900, **options)


@pytest.mark.parametrize(
    ("objectives", "seeds", "said"),
    [
        ("original,GenralFamily-10", "0", "GeneralFamily"),
        ("original,logp", "0", "original-seed0 is asked for twice"),
        ("original,,p", "0", "empty entry"),
        ("original", "0,one", "one is no seed"),
        ("original", "0,-1", "-1 is no seed"),
        ("original", "0,00", "original-seed0 is asked for twice"),
        ("original", "0,1,0", "original-seed0 is asked for twice"),
    ],
)
def test_bad_lists_are_refused_before_anything_is_written(work, objectives, seeds, said):
    with pytest.raises(ValueError, match=said) as raised:
        plan_sweep(str(work / "recipe.yaml"), (), objectives, Options("demo_strong", seeds))
    assert "\n" not in str(raised.value)
    assert not (work / "run").exists()


def test_plan_says_cells_steps_time_and_disk_and_writes_nothing(work):
    run = command(
        *("sweep", work / "recipe.yaml", "--objectives", "original,p", "--seeds", "0,1", "--tasks", "demo_strong"),
        *("--plan", f"run_dir={work / 'planned'}"),
    )
    assert run.returncode == 0, run.stderr
    for text in ("4 cells, 4 to train", "original-seed0", "p-seed1", "4 x 2", "not known before the first cell", "MiB"):
        assert text in run.stdout, text
    assert not (work / "planned").exists()


def test_a_sweep_shares_one_import_survives_a_failing_cell_and_pools_seeds(work):
    """p^-400 of an unlikely token is infinite: that cell fails at its first step, the others are compared."""
    options = (*EVALUATION, "--data-dir", work / "data", "--jobs", "2", "--drop-checkpoints")
    first = command("sweep", work / "recipe.yaml", "--objectives", "original,GeneralFamily--400", *options)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "failed: GeneralFamily--400-seed0: a rank failed: " in first.stdout
    cell = work / "run" / "original-seed0"
    assert (cell / "base").resolve() == (work / "run" / "base").resolve()
    assert not (cell / "checkpoints").exists()
    assert yaml.safe_load((cell / "run.yaml").read_text())["model"]["path"].endswith("random_base")
    assert (work / "run" / "report" / "report.html").exists()
    trained_at = (cell / "export" / "model.safetensors").stat().st_mtime_ns

    both = ("sweep", work / "recipe.yaml", "--objectives", "original,p", "--seeds", "0,1", *options)
    second = command(*both)
    assert second.returncode == 0, second.stdout + second.stderr
    assert trained_at == (cell / "export" / "model.safetensors").stat().st_mtime_ns
    runs = [work / "run" / f"{key}-seed{seed}" for key in ("original", "p") for seed in (0, 1)]
    results = sorted((work / "run" / "results").glob("*/*/*/results.json"))
    inputs = read_inputs(runs, results, [])
    assert [(row.label, len(row.runs)) for row in inputs.rows] == [("base model", 0), ("original", 2), ("p", 2)]
    assert inputs.rows[1].main.content["samples_per_item"] == 4
    assert set(json.loads((work / "run" / "sweep.json").read_text())["seconds"]) == {run.name for run in runs}

    third = command(*both, "optim.lr=1e-3")
    assert third.returncode == 2
    assert "holds another run (optim.lr" in third.stderr
    assert len(third.stderr.strip().splitlines()) == 1


def test_one_click_refuses_what_a_sweep_refuses_before_it_diagnoses(work):
    output = work / "one-click"
    run = command(
        "one-click", work / "recipe.yaml", "--seeds", "x", "--tasks", "demo_strong", f"run_dir={output}", cwd=Path.cwd()
    )
    assert run.returncode == 2
    assert "x is no seed" in run.stderr
    assert not output.exists()


def test_one_click_sweeps_the_shortlist_of_the_region_and_asked_again_does_nothing(work):
    """A random model knows nothing: the weak region's objectives, the base imported once for diagnosis and cells."""
    output = work / "all_in_one"
    line = ("one-click", work / "recipe.yaml", *EVALUATION, "--data-dir", work / "data", "--jobs", "2")
    first = command(*line, f"run_dir={output}")
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads((output / "diagnose" / "diagnose.json").read_text())
    assert found["region"]["name"] == "weak"
    keys = [entry["objective"] for entry in found["shortlist"]]
    assert keys == list(SHORTLISTS["weak"])
    for directory in ("diagnose", *(f"{key}-seed0" for key in keys)):
        assert (output / directory / "base").resolve() == (output / "base").resolve()
    page = (output / "report" / "report.html").read_text()
    for text in ("weak", *keys):
        assert text in page, text
    exports = {key: (output / f"{key}-seed0" / "export" / "model.safetensors").stat().st_mtime_ns for key in keys}

    second = command(*line, f"run_dir={output}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"mean p {found['mean_p']:.3f}, weak: " in second.stdout
    assert "4 cells, 0 to train" in second.stdout
    for key, written in exports.items():
        assert (output / f"{key}-seed0" / "export" / "model.safetensors").stat().st_mtime_ns == written


def test_a_sweep_that_is_stopped_stops_its_cells(work):
    output = work / "stopped"
    arguments = (
        "sweep",
        work / "recipe.yaml",
        "--objectives",
        "original",
        "--tasks",
        "demo_strong",
        f"run_dir={output}",
    )
    line = [sys.executable, "-m", "nemo_probsft", *map(str, arguments), "trainer.max_steps=100000"]
    with (work / "stopped.log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
    metrics = output / "original-seed0" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    until(lambda: not running(str(output)))


def until(true, seconds=300):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def running(text):
    """Processes whose command line names `text`."""
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True).stdout.split()
    return [pid for pid in found if int(pid) != os.getpid()]
