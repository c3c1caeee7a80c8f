"""`nemo-probsft demo`: the paper's continuum on one machine, with the commands that a person would type.

Two tasks at its ends, two objectives: where the base model knows the task, p should win; where it does not, -log p.
Every stage is complete or absent, so a second call continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nemo_probsft.files import SOURCE_ROOT
from nemo_probsft.progress import Progress
from nemo_probsft.run.parents import ending_with_this

ROOT = Path("runs/demo")
RECIPES = SOURCE_ROOT / "recipes" / "demo"
TASKS = ("strong", "weak")
OBJECTIVES = ("original", "p")
SEED = 0
NUM_SAMPLES = 16  # answers per item at T=1


@dataclass(frozen=True)
class Stage:
    """One of our commands. seconds: what it takes beside another one on 2 cores, to weigh the time that is left."""

    title: str
    seconds: float
    arguments: tuple[str, ...]
    done: Callable[[], bool]
    num_ranks: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the paper's continuum on this machine, without a GPU: pretrain a tiny model, fine-tune it with two\n"
        "objectives on a task that it knows and on one that it does not, evaluate and compare.\n"
        "Writes runs/demo/report/report.html; the same command resumes an interrupted demo."
    )


def run(options: argparse.Namespace) -> None:
    demo()


def demo() -> None:
    """Run what is missing, show the table, write runs/demo/report/report.html. Raises ValueError when a stage fails."""
    if not RECIPES.is_dir():
        raise ValueError(f"{RECIPES} does not exist; run the demo from a checkout of the repository")
    _make_data()
    rounds = [[stage for stage in stages if not stage.done()] for stages in _rounds()]
    total = round(sum(stage.seconds for stages in rounds for stage in stages))
    with Progress("demo", total, "s of work") as progress:
        for stages in rounds:
            with ThreadPoolExecutor(_jobs()) as pool:
                for finished in pool.map(_run, stages):
                    progress.advance(round(finished.seconds), note=finished.title)
    _report()


def _jobs() -> int:
    """Fine-tunings, diagnoses and evaluations use one core each; a GPU takes one at a time."""
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _run(stage: Stage) -> Stage:
    """Run a stage with its output in a log. Raises ValueError, which names the log, if it ends without its result."""
    log = ROOT / "logs" / f"{stage.title}.log"
    log.parent.mkdir(exist_ok=True)
    print(f"{stage.title}: nemo-probsft {' '.join(stage.arguments)}", flush=True)
    environment = ending_with_this() | (
        {"OMP_NUM_THREADS": "1"} if stage.num_ranks == 1 else {}
    )  # it has one of the cores
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(_command(stage.arguments), stdout=output, stderr=subprocess.STDOUT, env=environment)
    if done.returncode or not stage.done():
        raise ValueError(
            f"'{stage.title}' ended with exit code {done.returncode}, see {log}; run the demo again to continue"
        )
    return stage


def _rounds() -> list[list[Stage]]:
    """Stages of a round do not need each other."""
    diagnoses = [
        Stage(
            f"diagnose {task}",
            45,
            ("diagnose", str(RECIPES / f"{task}-original.yaml")),
            (ROOT / f"{task}-original" / "diagnose" / "diagnose.json").exists,
        )
        for task in TASKS
    ]
    trainings = [
        _train(f"{task}-{objective}", 90, f"fine-tune on {task} with {objective}")
        for task in TASKS
        for objective in OBJECTIVES
    ]
    evaluations = [
        _evaluate(f"evaluate on {task}", f"demo_{task}", [f"{task}-{objective}" for objective in OBJECTIVES], 100)
        for task in TASKS
    ]
    of_base = _evaluate("evaluate the base model", "demo_strong,demo_weak", ["base"], 70)
    return [
        [_train("base", 180, "pretrain the base model", num_ranks=2)],
        [*trainings, of_base, *diagnoses],  # the longest first
        evaluations,
    ]


def make_base() -> None:
    """The demo's data and its trained base model, if they are not there yet."""
    _make_data()
    (base,) = _rounds()[0]
    if not base.done():
        _run(base)


def _make_data() -> None:
    from nemo_probsft.demo_data import make_demo

    if not (ROOT / "data" / "weak_train.jsonl").exists():
        make_demo(ROOT / "data", SEED)


def _train(name: str, seconds: float, title: str, num_ranks: int = 1) -> Stage:
    arguments = ("train", str(RECIPES / f"{name}.yaml"))
    return Stage(title, seconds, arguments, (ROOT / name / "export").is_dir, num_ranks)


def _evaluate(title: str, tasks: str, names: list[str], seconds: float) -> Stage:
    models = [str(ROOT / name / "export") for name in names]
    data, output = str(ROOT / "data"), ROOT / "results"
    options = ("--tasks", tasks, "--data-dir", data, "--output", str(output), "--samples", str(NUM_SAMPLES))
    wanted = [
        output / f"{name}-export" / task / decoding / "results.json"
        for name in names
        for task in tasks.split(",")
        for decoding in ("greedy", "sample")
    ]
    return Stage(title, seconds, ("eval", *models, *options), lambda: all(path.exists() for path in wanted))


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "nemo_probsft", *arguments]


def command(*arguments: str) -> None:
    """Run one of our commands as its own process: engines leave state behind that the next must not see.

    Raises ValueError when it fails.
    """
    code = subprocess.run(_command(arguments), env=ending_with_this()).returncode
    if code:
        raise ValueError(
            f"`nemo-probsft {' '.join(arguments)}` ended with exit code {code}; "
            "what was begun goes on when it is started again"
        )


def _report() -> None:
    runs = [str(ROOT / f"{task}-{objective}") for task in TASKS for objective in OBJECTIVES]
    command("report", *runs, "--results", str(ROOT / "results"), "--output", str(ROOT / "report" / "report.html"))
