"""`make real-continuum`: the cells of tasks x objectives x learning rates x seeds that have no line yet.

A line of docs/real/cells.jsonl is a finished cell; the file is committed, so another checkout continues from there.
With seed 0 every objective is trained at every learning rate. The other seeds are trained at the rate that was best on
the validation rows with seed 0, and at the common one. Nothing looks at the test rows before the page does.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import functools
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import jsonl
from experiments.real import train
from experiments.real.moving import moving as start
from experiments.real.tasks import TASKS
from nemo_probsft import files
from nemo_probsft.data import tokens

DOCS, WORK = Path("docs/real"), Path("runs/real")
FIXED = ("original", "GeneralFamily-0.5", "p", "GeneralFamily-10", "OnlyTopLogP-0.2", "dft")
MOVING = ("adaptive", "adaptive-by-label")
LRS = (3e-5, 1e-4, 3e-4)
COMMON_LR = 1e-4  # one for all objectives, as in the paper
SEEDS = (0, 1, 2)
STEPS = {"answer": 120, "likelihood": 60}
BATCH = {"answer": 32, "likelihood": 8}
MAX_LENGTH = 1024
PACKAGES = ("torch", "transformers", "triton")


@dataclass(frozen=True)
class Cell:
    task: str
    objective: str
    lr: float
    seed: int


BASE = "base"  # instead of an objective: the model as it is


def run(
    docs: Path,
    *,
    tasks: Sequence[str],
    objectives: Sequence[str],
    seeds: Sequence[int] = SEEDS,
    workers: int,
    minutes: float | None = None,
) -> bool:
    """Run what is missing, as many cells at a time as there are workers, and start none after `minutes`.

    Returns whether nothing is missing any more.
    """
    lines = docs / "cells.jsonl"
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: dict[concurrent.futures.Future, Cell] = {}
        while True:
            todo = [c for c in missing(jsonl.read(lines), tasks, objectives, seeds) if c not in running.values()]
            for cell in todo[: workers - len(running)] if time.monotonic() < deadline else []:
                running[pool.submit(run_cell, cell)] = cell
            if not running:
                return not todo
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                line = future.result()
                jsonl.append(lines, line)
                print(f"{datetime.datetime.now():%H:%M:%S} {describe(line)}", flush=True)


def missing(
    lines: Sequence[dict[str, Any]], tasks: Sequence[str], objectives: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """The cells without a line, in the order in which they are run; those of other seeds once seed 0 has chosen."""
    done = {Cell(line["task"], line["objective"], line["lr"], line["seed"]) for line in lines}
    wanted = [Cell(task, BASE, 0.0, 0) for task in tasks]
    wanted += [Cell(task, key, lr, 0) for task in tasks for key in objectives for lr in LRS]
    for seed in (seed for seed in seeds if seed != 0):
        for task in tasks:
            for key in objectives:
                chosen = best_lr(lines, task, key)
                wanted += [Cell(task, key, lr, seed) for lr in sorted({chosen, COMMON_LR}) if chosen is not None]
    return [cell for cell in wanted if cell not in done]


def best_lr(lines: Sequence[dict[str, Any]], task: str, objective: str) -> float | None:
    """The rate of the best validation score with seed 0, the smaller of equal ones; None before all rates are run."""
    scores = {
        line["lr"]: validation_score(line)
        for line in lines
        if (line["task"], line["objective"], line["seed"]) == (task, objective, 0)
    }
    return None if set(LRS) - set(scores) else max(sorted(scores), key=scores.__getitem__)


def validation_score(line: dict[str, Any]) -> float:
    """Mean T=1 accuracy; where answers are judged by their likelihood, minus the mean -log p of their tokens."""
    scores = line["validation"]
    if "sampled" in scores:
        return float(np.mean(scores["sampled"]))
    return -sum(scores["nll"]) / sum(scores["tokens"])


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and score; in a worker, which keeps its model and the rows of the last task."""
    began = time.perf_counter()
    task, model = TASKS[cell.task], _model()
    model.reset()
    steps, batch_size = STEPS[task.judged], BATCH[task.judged]
    of_training: dict[str, Any] = {}
    if cell.objective == BASE:
        steps = batch_size = 0
    else:
        name = f"{cell.task}-{cell.seed}.train"
        moving = start(cell.objective, model.module.config.vocab_size, model.device)
        history = train.fine_tune(
            model,
            _rows(name),
            moving,
            lr=cell.lr,
            seed=cell.seed,
            steps=steps,
            batch_size=batch_size,
            sources=_sources(name),
        )
        last = history[-10:]
        of_training = {"first_p": _short(history[0]["p"]), "last_p": _short(float(np.mean([r["p"] for r in last])))}
    score = train.score_answers if task.judged == "answer" else train.score_likelihood
    scores = {name: score(model, _rows(f"{cell.task}.{name}")) for name in ("validation", "test")}
    made = {
        "device": _device_name(model),
        "date": datetime.date.today().isoformat(),
        "versions": files.versions(PACKAGES),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return asdict(cell) | {"steps": steps, "batch": batch_size} | of_training | made | scores


def describe(line: dict[str, Any]) -> str:
    parts = [line["task"], line["objective"], f"lr {line['lr']:g}", f"seed {line['seed']}"]
    return " ".join([*parts, f"validation {validation_score(line):.4f}", f"{line['seconds']} s"])


@functools.cache
def _model() -> train.Model:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return train.Model(WORK / "model", device)


@functools.cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WORK / "model")


@functools.lru_cache(maxsize=8)
def _rows(name: str) -> Sequence[tokens.Example]:
    """Of a file in runs/real/data."""
    return tokens.of_source(WORK / "data" / f"{name}.jsonl", _tokenizer(), max_length=MAX_LENGTH)


@functools.lru_cache(maxsize=8)
def _sources(name: str) -> list[int]:
    """Which data set each row of a file comes from: 0 where it does not say."""
    sources = [row.get("source", "") for row in jsonl.read(WORK / "data" / f"{name}.jsonl")]
    names = sorted(set(sources))
    return [names.index(source) for source in sources]


def _device_name(model: train.Model) -> str:
    return torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"


def _short(x: float) -> float:
    return float(f"{x:.6g}")
