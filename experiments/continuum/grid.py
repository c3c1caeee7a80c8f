"""`make continuum`: objectives x tasks x seeds on the demo's model, with the real engines; docs/continuum.md from it.

A finished cell is a line of docs/continuum/cells.jsonl, which is committed: another checkout continues from there.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.continuum import data, page
from experiments.continuum.cells import DOCS, add_cell, add_diagnosis, read_cells, read_diagnoses
from nemo_probsft import demo, files
from nemo_probsft.demo_data import write_rows
from nemo_probsft.run import decisions
from nemo_probsft.run.log import read_metrics
from nemo_probsft.sweep import Cell, Options, Sweep, plan_sweep, sweep

ROOT = Path("runs/continuum")
RECIPES = files.SOURCE_ROOT / "recipes" / "continuum"
DATA_SEED = 0
NUM_SAMPLES = 16
OBJECTIVES = (
    "original",
    "GeneralFamily-0.1",
    "GeneralFamily-0.5",
    "p",
    "GeneralFamily-10",
    "OnlyTopLogP-0.2",
    "adaptive",
    "adaptive-by-label",
)
SEEDS = (0, 1, 2)
FULL_OBJECTIVES = (*OBJECTIVES, "GeneralFamily--0.5", "GeneralFamily-2")
FULL_SEEDS = (0, 1, 2, 3, 4)
FULL_NOISE = (0.0, 0.15, 0.45)  # beside the default's 0.3
PERCENTILES = ("10", "30", "50", "70", "90")  # of p under the base model; thresholds as in the paper's Fig. 5


@dataclass(frozen=True)
class Task:
    """A training set and the test set that decides. `base`: the task of `data`."""

    name: str
    base: str
    noise: float

    @property
    def recipe(self) -> str:
        return str(RECIPES / f"{self.base}.yaml")

    @property
    def overrides(self) -> list[str]:
        return [f"run_dir={ROOT / self.name}", f"data.train={self.train}"]

    @property
    def train(self) -> Path:
        return ROOT / "data" / f"{self.name}_train.jsonl"

    @property
    def test(self) -> str:
        """The task of `nemo-probsft eval`."""
        test = data.TESTS[self.base]
        return f"continuum_{test}" if test == "intermediate" else f"demo_{test}"


DEFAULT_TASKS = tuple(Task(name, name, data.NOISE) for name in ("strong", "intermediate", "weak", "weak_noisy"))
FULL_TASKS = (
    *DEFAULT_TASKS,
    Task("weak_two_ciphers", "weak_two_ciphers", data.NOISE),
    *(
        Task(f"{base}_noise_{100 * noise:.0f}", base, noise)
        for base in ("strong", "weak_noisy")
        for noise in FULL_NOISE
        if (base, noise) != ("weak_noisy", 0.0)  # that is `weak`
    ),
)


def continuum(*, full: bool, seeds: Sequence[int] | None = None, names: Sequence[str] | None = None) -> bool:
    """Run the cells that have no line yet, seed by seed, and write the page. Returns False when a cell failed.

    full: more tasks, objectives and seeds; names: these tasks of the full grid only. Raises ValueError for others.
    """
    tasks = _named(names) if names else FULL_TASKS if full else DEFAULT_TASKS
    demo.make_base()
    complete = True
    _make_data(tasks)
    diagnoses = {task.name: _diagnosis(task) for task in tasks}
    for seed in seeds or (FULL_SEEDS if full else SEEDS):
        for task in tasks:
            objectives = _objectives(diagnoses[task.name], full)
            done = {(line["task"], line["objective"], line["seed"]) for line in read_cells()}
            missing = [key for key in objectives if (task.name, key, seed) not in done]
            if missing:
                complete &= _run(task, missing, seed)
                page.write(DOCS)
    print(page.write(DOCS))
    return complete


def _named(names: Sequence[str]) -> list[Task]:
    known = {task.name: task for task in FULL_TASKS}
    for name in names:
        if name not in known:
            raise ValueError(f"--task: {name} is not a task of the continuum; choose from {', '.join(known)}")
    return [known[name] for name in names]


def _make_data(tasks: Sequence[Task]) -> None:
    data.make_continuum(ROOT / "data", DATA_SEED)
    for task in tasks:
        if not task.train.exists():
            write_rows(task.train, data.rows(task.base, DATA_SEED, task.noise)[0])


def _diagnosis(task: Task) -> dict[str, Any]:
    """Mean p, region and percentiles of a task under the base model; measured once and kept beside the cells."""
    known = read_diagnoses()
    if task.name not in known:
        demo.command("diagnose", task.recipe, *task.overrides)
        found = json.loads((ROOT / task.name / "diagnose" / "diagnose.json").read_text(encoding="utf-8"))
        line = {"task": task.name, "noise": task.noise, "region": found["region"]["name"]}
        line |= {key: found[key] for key in ("mean_p", "interval_95", "num_examples", "percentiles")}
        add_diagnosis(line)
        known = read_diagnoses()
    return known[task.name]


def _objectives(diagnosis: dict[str, Any], full: bool) -> list[str]:
    if not full:
        return list(OBJECTIVES)
    thresholds = [f"OnlyTopLogP-{diagnosis['percentiles'][percentile]:.4g}" for percentile in PERCENTILES]
    return list(dict.fromkeys([*FULL_OBJECTIVES, *thresholds]))


def _run(task: Task, objectives: Sequence[str], seed: int) -> bool:
    jobs = 1 if _has_gpu() else max(1, os.cpu_count() or 1)
    options = Options(task.test, str(seed), str(ROOT / "data"), NUM_SAMPLES, jobs=jobs, drop_checkpoints=True)
    planned = plan_sweep(task.recipe, task.overrides, ",".join(objectives), options)
    print(f"\n{task.name}, seed {seed}: {', '.join(objectives)}", flush=True)
    complete = sweep(planned)
    for cell in planned.cells:
        line = _cell_line(task, planned, cell)
        if line is not None:
            add_cell(line)
    return complete


def _cell_line(task: Task, planned: Sweep, cell: Cell) -> dict[str, Any] | None:
    """What is kept of a cell: the score of every test item, so that seeds can be pooled and paired. None: not done."""
    results = {}
    for decoding in ("greedy", "sample"):
        directory = planned.output / "results" / f"{cell.name}-export" / task.test / decoding
        if not (directory / "results.json").exists():
            return None
        samples = map(json.loads, (directory / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1])
        results[decoding] = [sum(sample["scores"]) for sample in sorted(samples, key=lambda sample: sample["item"])]
        content = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    metrics = read_metrics(cell.run_dir)
    return {
        "task": task.name,
        "objective": cell.objective,
        "seed": cell.seed,
        "steps": metrics[-1]["step"],
        "first_p": metrics[0]["p"],
        "last_p": metrics[-1]["p"],
        "samples_per_item": NUM_SAMPLES,
        "greedy": "".join(f"{score:.0f}" for score in results["greedy"]),
        "sampled": [int(score) for score in results["sample"]],
        "date": datetime.date.today().isoformat(),
        "versions": files.versions(decisions.PACKAGES)
        | {key: content["versions"][key] for key in content["versions"] if "vllm" in key},
    }


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
