"""`make real-continuum`: the cells of tasks x objectives x learning rates x seeds that have no line yet.

A line of docs/real/cells.jsonl is a finished cell; the file is committed, so another checkout continues from there.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import fcntl
import functools
import hashlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import jsonl
from experiments.real import train
from experiments.real.moving import moving
from experiments.real.plan import BASE, ON_CPU, ON_GPU, SEEDS, Cell, Setting, missing, validation_score
from experiments.real.tasks import TASKS
from nemo_probsft import files
from nemo_probsft.data import tokens

DOCS, WORK = Path("docs/real"), Path("runs/real")
MAX_LENGTH = 1024
PACKAGES = ("torch", "transformers", "triton")


def setting() -> Setting:
    """On a CPU the last layers are trained only, on states of the others that are computed once."""
    return ON_GPU if torch.cuda.is_available() else ON_CPU


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
            wanted = missing(jsonl.read(lines), setting(), tasks, objectives, seeds)
            todo = [cell for cell in wanted if cell not in running.values()]
            for cell in todo[: workers - len(running)] if time.monotonic() < deadline else []:
                running[pool.submit(run_cell, cell)] = cell
            if not running:
                return not todo
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                del running[future]
                line = future.result()
                jsonl.append(lines, line)
                print(f"{datetime.datetime.now():%H:%M:%S} {describe(line)}", flush=True)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and score; in a worker, which keeps its model and the rows that it used last."""
    began = time.perf_counter()
    of, judged, model = setting(), TASKS[cell.task].judged, _model()
    model.reset()
    what: dict[str, Any] = asdict(cell) | {"trained_layers": of.trained_layers, "steps": 0, "batch": 0}
    if cell.objective != BASE:
        train_rows = _rows(f"{cell.task}-{cell.seed}.train", of.num_train)
        steps, batch_size = of.steps[judged], of.batch_size[judged]
        state = moving(cell.objective, model.module.config.vocab_size, model.device)
        history = train.fine_tune(
            model, train_rows, state, lr=cell.lr, seed=cell.seed, steps=steps, batch_size=batch_size
        )
        last = {f"last_{name}": _short(float(np.mean([row[name] for row in history[-10:]]))) for name in history[0]}
        what |= {"steps": steps, "batch": batch_size, "first_p": _short(history[0]["p"]), **last}
        what["labels"] = _labels(train_rows.examples)
    score = train.score_answers if judged == "answer" else train.score_likelihood
    held_out = {"validation": of.num_validation, "test": of.num_test}
    scores = {name: score(model, _rows(f"{cell.task}.{name}", count)) for name, count in held_out.items()}
    made = {
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU",
        "date": datetime.date.today().isoformat(),
        "versions": files.versions(PACKAGES),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return what | made | scores


def _labels(examples: Sequence[tokens.Example]) -> dict[str, int]:
    """How many different labels the targets have, and how many of those occur once, and ten times or more."""
    targets = np.concatenate([ids[1:][mask[:-1].astype(bool)] for ids, mask in examples])
    _, counts = np.unique(targets, return_counts=True)
    return {
        "targets": len(targets),
        "distinct": len(counts),
        "seen_once": int((counts == 1).sum()),
        "seen_10": int((counts >= 10).sum()),
    }


def describe(line: dict[str, Any]) -> str:
    parts = [line["task"], line["objective"], f"lr {line['lr']:g}", f"seed {line['seed']}"]
    return " ".join([*parts, f"validation {validation_score(line):.4f}", f"{line['seconds']} s"])


@functools.cache
def _model() -> train.Model:
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        torch.set_num_threads(1)  # of a worker; small products gain little from more
    torch.use_deterministic_algorithms(True, warn_only=True)
    return train.Model(WORK / "model", "cuda" if torch.cuda.is_available() else "cpu", setting().trained_layers)


@functools.cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WORK / "model")


@functools.lru_cache(maxsize=8)
def _rows(name: str, count: int) -> train.Rows:
    """The first rows of a file in runs/real/data; a mixture's held-out rows from both of its halves."""
    path = WORK / "data" / f"{name}.jsonl"
    sources = [row.get("source", "") for row in jsonl.read(path)]
    names = sorted(set(sources))
    dataset = tokens.of_source(path, _tokenizer(), max_length=MAX_LENGTH)
    chosen = _evenly(sources, count)
    examples = [dataset[i] for i in chosen]
    return train.Rows(examples, [names.index(sources[i]) for i in chosen], _states(path, examples))


def _evenly(sources: Sequence[str], count: int) -> list[int]:
    """The first rows of each source, as many of one as of another."""
    names = sorted(set(sources))
    of_each = {name: [i for i, source in enumerate(sources) if source == name] for name in names}
    return sorted(i for rows in of_each.values() for i in rows[: count // len(names)])


def _states(path: Path, examples: Sequence[tokens.Example]) -> list[np.ndarray] | None:
    """The frozen layers' output, computed once and kept beside the data, for all workers."""
    model = _model()
    if not model.first:
        return None
    content = hashlib.sha256(path.read_bytes() + str((model.first, len(examples))).encode()).hexdigest()[:16]
    kept = WORK / "states" / f"{content}.npy"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            partial = kept.with_suffix(".partial.npy")
            np.save(partial, np.concatenate(model.states(examples)))
            partial.rename(kept)
    ends = np.cumsum([len(ids) - 1 for ids, _ in examples])
    return np.split(np.load(kept, mmap_mode="r"), ends[:-1])


def _short(x: float) -> float:
    return float(f"{x:.6g}")
