"""`nemo-probsft demo`: the paper's continuum on one machine, with the commands that a person would type.

Two tasks at its ends, two objectives: where the base model knows the task, p should win; where it does not, -log p.
Every stage is complete or absent, so a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_probsft.files import SOURCE_ROOT

ROOT = Path("runs/demo")
RECIPES = SOURCE_ROOT / "recipes" / "demo"
TASKS = ("strong", "weak")
OBJECTIVES = ("original", "p")
SEED = 0
NUM_SAMPLES = 16  # answers per item at T=1


@dataclass(frozen=True)
class Stage:
    """One command; `seconds` is what it took on 2 cores, and only weighs the estimate of the time that is left."""

    title: str
    seconds: float
    run: Callable[[], None]
    done: Callable[[], bool]


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
    stages = _stages()
    todo = [stage for stage in stages if not stage.done()]
    speed = 1.0  # this machine's seconds per second of the estimate
    spent = expected = 0.0
    for stage in todo:
        number, left = stages.index(stage) + 1, sum(other.seconds for other in todo[todo.index(stage) :]) * speed
        print(f"\n[{number}/{len(stages)}] {stage.title} (about {left / 60:.0f} min left in all)", flush=True)
        started = time.monotonic()
        stage.run()
        if not stage.done():
            raise ValueError(
                f"the stage '{stage.title}' ended without its result; run `make demo` again, it goes on from here"
            )
        spent, expected = spent + time.monotonic() - started, expected + stage.seconds
        speed = spent / expected
    _report()


def _stages() -> list[Stage]:
    data = ROOT / "data"
    stages = [
        Stage("make the data and a random model", 15, _make_data, (data / "weak_train.jsonl").exists),
        _train("base", 300, "pretrain the base model: additions and copies"),
    ]
    for task in TASKS:
        recipe = str(RECIPES / f"{task}-original.yaml")
        stages.append(
            Stage(
                f"diagnose {task}: where does the base model stand?",
                60,
                functools.partial(command, "diagnose", recipe),
                (ROOT / f"{task}-original" / "diagnose" / "diagnose.json").exists,
            )
        )
    stages += [
        _train(f"{task}-{objective}", 110, f"fine-tune on {task} with {objective}")
        for task in TASKS
        for objective in OBJECTIVES
    ]
    stages.append(_evaluate("demo_strong,demo_weak", ["base"], 60))
    stages += [_evaluate(f"demo_{task}", [f"{task}-{objective}" for objective in OBJECTIVES], 100) for task in TASKS]
    return stages


def make_base() -> None:
    """The demo's data and its trained base model, if they are not there yet."""
    for stage in _stages()[:2]:
        if not stage.done():
            print(stage.title, flush=True)
            stage.run()


def _make_data() -> None:
    from nemo_probsft.demo_data import make_demo

    make_demo(ROOT / "data", SEED)


def _train(name: str, seconds: float, title: str) -> Stage:
    recipe = str(RECIPES / f"{name}.yaml")
    return Stage(title, seconds, functools.partial(command, "train", recipe), (ROOT / name / "export").is_dir)


def _evaluate(tasks: str, names: list[str], seconds: float) -> Stage:
    models = [str(ROOT / name / "export") for name in names]
    output = ROOT / "results"
    options = [
        "--tasks",
        tasks,
        "--data-dir",
        str(ROOT / "data"),
        "--output",
        str(output),
        "--samples",
        str(NUM_SAMPLES),
    ]
    wanted = [
        output / f"{name}-export" / task / decoding / "results.json"
        for name in names
        for task in tasks.split(",")
        for decoding in ("greedy", "sample")
    ]
    return Stage(
        f"evaluate {' and '.join(names)} with vLLM, greedy and T=1 x {NUM_SAMPLES}",
        seconds,
        functools.partial(command, "eval", *models, *options),
        lambda: all(path.exists() for path in wanted),
    )


def command(*arguments: str) -> None:
    """Run one of our commands as its own process: engines leave state behind that the next must not see.

    Raises ValueError when it fails.
    """
    code = subprocess.run([sys.executable, "-m", "nemo_probsft", *arguments]).returncode
    if code:
        raise ValueError(
            f"`nemo-probsft {' '.join(arguments)}` ended with exit code {code}; "
            "what was begun goes on when it is started again"
        )


def _report() -> None:
    runs = [str(ROOT / f"{task}-{objective}") for task in TASKS for objective in OBJECTIVES]
    command("report", *runs, "--results", str(ROOT / "results"), "--output", str(ROOT / "report" / "report.html"))
