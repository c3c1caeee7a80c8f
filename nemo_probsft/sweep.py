"""`nemo-probsft sweep RECIPE --objectives a,b --seeds 0,1 --tasks t`: train, export, evaluate and compare every cell.

A cell is one objective with one seed, a run of the recipe in `<run_dir>/<objective>-seed<seed>`; its export says that
it is complete. Where the engine needs an import of the base weights, it is one, into `<run_dir>/base`, to which every
cell has a link.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from nemo_probsft import config
from nemo_probsft.command_line import add_recipe, count, entries, error_of, options_of
from nemo_probsft.config import Recipe
from nemo_probsft.demo import command
from nemo_probsft.files import write_atomically
from nemo_probsft.progress import Progress
from nemo_probsft.run import eval_env, preflight
from nemo_probsft.run.log import last_row
from nemo_probsft.run.parents import ending_with_this

SECONDS = "sweep.json"  # what each cell took, for the estimate of those that are left


@dataclass(frozen=True)
class Options:
    """What `sweep` and `one-click` let you choose besides recipe and objectives."""

    tasks: str
    seeds: str = "0"
    data_dir: str | None = None
    samples: int | None = None
    limit: int | None = None
    jobs: int = 1
    drop_checkpoints: bool = False

    @property
    def evaluation(self) -> tuple[str, ...]:
        """As arguments of `nemo-probsft eval`."""
        given = {"--tasks": self.tasks, "--data-dir": self.data_dir, "--samples": self.samples, "--limit": self.limit}
        return tuple(str(part) for flag, value in given.items() if value is not None for part in (flag, value))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `Options`."""
    parser.add_argument("--tasks", required=True, metavar="A,B", help="evaluate on these tasks or tags, as in `eval`")
    parser.add_argument(
        "--seeds", default=Options.seeds, metavar="0,1,2", help="train each objective once with each seed (default: 0)"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="read the test sets from here (default: download them from the hub)"
    )
    parser.add_argument(
        "--samples", type=count, metavar="N", help="draw N answers per item when sampling (default: the task's number)"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="use only the first N items of each task")
    parser.add_argument(
        "--jobs",
        type=count,
        default=Options.jobs,
        metavar="N",
        help="train N cells at a time, on a machine without a GPU (default: 1)",
    )
    parser.add_argument(
        "--drop-checkpoints", action="store_true", help="delete the checkpoints of a cell after its export"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train the recipe once for each objective and seed, export and evaluate every model, write a report.\n"
        "The base model is imported once. A cell that fails does not stop the others (exit code 1);\n"
        "the same command trains what is missing."
    )
    add_recipe(parser)
    parser.add_argument(
        "--objectives", required=True, metavar="A,B", help="train these, for example original,p,GeneralFamily-10"
    )
    add_options(parser)
    parser.add_argument(
        "--plan", action="store_true", help="print cells, steps, time and disk space; train and write nothing"
    )


def run(options: argparse.Namespace) -> int:
    planned = plan_sweep(options.recipe, options.overrides, options.objectives, options_of(Options, options))
    if not options.plan:
        local_model(planned.recipe)  # its plan needs what a hub name is downloaded as
    show_plan(planned)
    return 0 if options.plan or sweep(planned) else 1


@dataclass(frozen=True)
class Cell:
    """One objective with one seed."""

    objective: str
    seed: int
    run_dir: Path

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def export(self) -> Path:
        return self.run_dir / "export"

    @property
    def done(self) -> bool:
        return self.export.is_dir()


@dataclass(frozen=True)
class Sweep:
    """What was asked for, checked. evaluation: arguments of `nemo-probsft eval` besides models and output."""

    path: str
    overrides: tuple[str, ...]
    recipe: Recipe
    cells: tuple[Cell, ...]
    evaluation: tuple[str, ...]
    jobs: int = 1
    drop_checkpoints: bool = False

    @property
    def output(self) -> Path:
        return Path(self.recipe.run_dir)

    def command(self, cell: Cell) -> list[str]:
        """The `train` command of a cell, as a person would type it."""
        own = [f"objective={cell.objective}", f"trainer.seed={cell.seed}", f"run_dir={cell.run_dir}"]
        kept = [text for text in self.overrides if not text.startswith("run_dir=")]
        if not any(text.startswith("checkpoint.keep_last=") for text in kept):
            own.append("checkpoint.keep_last=1")
        return ["train", self.path, *kept, *own, "export.at_end=true"]


def plan_sweep(path: str, overrides: Sequence[str], objectives: str, options: Options) -> Sweep:
    """Check what can be checked before anything is written. Raises ValueError in one line."""
    from nemo_probsft.objectives import parse_objective

    recipe = config.load(path, overrides, own_objective=False)
    keys = [parse_objective(key).key for key in entries("--objectives", objectives)]
    numbers = [_seed(text) for text in entries("--seeds", options.seeds)]
    output = Path(recipe.run_dir)
    cells = [Cell(key, seed, output / f"{key}-seed{seed}") for seed, key in itertools.product(numbers, keys)]
    names = [cell.name for cell in cells]
    if repeated := next((name for name in names if names.count(name) > 1), None):  # an objective may have two names
        raise ValueError(f"{repeated} is asked for twice; name each objective and each seed once")
    _refuse_jobs(options.jobs)
    cost = options.jobs, options.drop_checkpoints
    planned = Sweep(path, tuple(overrides), recipe, tuple(cells), options.evaluation, *cost)
    for cell in cells:
        preflight.resumable(cell.run_dir, config.load(path, planned.command(cell)[2:]))
    return planned


def sweep(planned: Sweep) -> bool:
    """Run what is missing and write `<run_dir>/report/report.html`. Returns False when a cell failed.

    A cell that fails is reported at the end and does not stop the others. Raises ValueError for the user.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as with Ctrl-C, no child goes on alone
    try:
        return _sweep(planned)
    finally:
        signal.signal(signal.SIGTERM, before)


def _sweep(planned: Sweep) -> bool:
    todo = [cell for cell in planned.cells if not cell.done]
    if todo:
        preflight.check(config.load(planned.path, planned.command(todo[0])[2:]))
        base = import_base(planned.recipe)
        for cell in todo:
            link_base(base, cell.run_dir)
    failures = _train(planned, todo)
    trained = [cell for cell in planned.cells if cell.done]
    if trained:
        failures |= _evaluate(planned, trained)
        _report(planned, trained)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", flush=True)
    return not failures


def show_plan(planned: Sweep) -> None:
    """Cells, steps, time and disk, printed; nothing is written."""
    from nemo_probsft.plan import show
    from nemo_probsft.run import decisions
    from nemo_probsft.run.decisions import Decision

    todo = [cell for cell in planned.cells if not cell.done]
    rows = [Decision(cell.name, "done" if cell.done else _state(cell), str(cell.run_dir)) for cell in planned.cells]
    decisions.show(rows, title=f"{len(planned.cells)} cells, {len(todo)} to train")
    steps, checkpoint, weights = show.cost(planned.recipe)
    kept = weights if planned.drop_checkpoints else weights + checkpoint
    disk = weights + len(todo) * kept + 2 * planned.jobs * checkpoint
    what = "base once; a cell's export" + (
        ", its checkpoint is dropped" if planned.drop_checkpoints else " and last checkpoint"
    )
    decisions.show(
        [
            Decision("steps", f"{len(todo)} x {steps}", "of the recipe"),
            Decision("time", _time_left(planned, len(todo)), f"{planned.jobs} at a time, training and export"),
            Decision("disk", f"at most {show.readable(disk)}", f"{what}; {planned.jobs} while they train"),
            Decision("evaluation", " ".join(planned.evaluation), "all cells in one command, after training"),
        ],
        title="In all",
    )


def import_base(recipe: Recipe) -> Path:
    """What all cells start from, imported if their engine cannot start from the model itself."""
    from nemo_probsft.run import prepare

    model, output = local_model(recipe), Path(recipe.run_dir)
    output.mkdir(parents=True, exist_ok=True)
    return prepare.import_base(model, output, preflight.engine(recipe).name)


def local_model(recipe: Recipe) -> Path:
    """The model's directory; a hub name is downloaded first."""
    from nemo_probsft.run import prepare

    return prepare.local_model(recipe, preflight.engine(recipe).name)


def link_base(base: Path, run_dir: Path) -> None:
    """Give a run the imported weights where `prepare` looks for its own; a base that is no import needs no link."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if base == run_dir.parent / "base" and not os.path.lexists(run_dir / "base"):
        (run_dir / "base").symlink_to(Path("..") / base.name)


def _train(planned: Sweep, todo: Sequence[Cell]) -> dict[str, str]:
    """Train cells, `jobs` at a time, each as its own command with a log. Returns the failed ones with the reason."""
    failures: dict[str, str] = {}
    running: dict[str, subprocess.Popen] = {}
    with ThreadPoolExecutor(planned.jobs) as pool, Progress("train", len(todo), "cells") as progress:
        futures = {pool.submit(_train_cell, planned, cell, running): cell for cell in todo}
        try:
            for future in _as_completed(futures, lambda: progress.advance(0, _where(todo, running))):
                cell, (seconds, failure) = futures[future], future.result()
                progress.advance(1)
                if failure is not None:
                    failures[cell.name] = failure
                    print(f"  {cell.name} failed after {seconds:.0f} s: {failure}", flush=True)
                    continue
                _finish(planned, cell, seconds)
                print(f"  {cell.name} took {seconds:.0f} s", flush=True)
        except BaseException:
            _stop(futures, running)
            raise
    return failures


def _as_completed(futures: Collection[Future], tick: Callable[[], None]) -> Iterator[Future]:
    """Futures as they end; calls `tick` twice a second."""
    pending = set(futures)
    while pending:
        ended, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        yield from ended
        tick()


def _where(todo: Sequence[Cell], running: Mapping[str, subprocess.Popen]) -> str:
    """The steps of the cells that are being trained."""
    return ", ".join(_step(cell) for cell in todo if cell.name in running and running[cell.name].poll() is None)


def _step(cell: Cell) -> str:
    row, prepared = last_row(cell.run_dir), cell.run_dir / preflight.PREPARED
    if row is None or not prepared.exists():
        return f"{cell.name} starts"
    return f"{cell.name} step {row['step']} of {json.loads(prepared.read_text(encoding='utf-8'))['num_steps']}"


def _train_cell(planned: Sweep, cell: Cell, running: dict[str, subprocess.Popen]) -> tuple[float, str | None]:
    """Seconds, and the reason where it failed: the last line of stderr is the command's error."""
    print(f"{cell.name}: log in {_log(cell)}", flush=True)
    environment = ending_with_this()
    num_processes = planned.jobs * planned.recipe.trainer.devices
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    command = [sys.executable, "-m", "nemo_probsft", *planned.command(cell)]
    started, said = time.monotonic(), cell.run_dir / "sweep.stderr.log"
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    with _log(cell).open("w", encoding="utf-8") as output, said.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment)
    running[cell.name] = process
    code = process.wait()
    seconds = time.monotonic() - started
    if code == 0 and cell.done:
        return seconds, None
    reason = error_of(said.read_text(encoding="utf-8", errors="replace"))
    return seconds, reason or f"exit code {code}, without an error"


def _stop(futures: Collection[Future], running: Mapping[str, subprocess.Popen]) -> None:
    """Start no further cell and end those that run, also one that is being started at this moment."""
    for future in futures:
        future.cancel()
    while not all(future.done() for future in futures):
        for process in list(running.values()):
            process.terminate()
        wait(futures, timeout=0.2)


def _log(cell: Cell) -> Path:
    return cell.run_dir / "sweep.log"


def _finish(planned: Sweep, cell: Cell, seconds: float) -> None:
    times = _times(planned) | {cell.name: round(seconds, 1)}
    write_atomically(planned.output / SECONDS, json.dumps({"seconds": times}, indent=2) + "\n")
    if planned.drop_checkpoints:
        shutil.rmtree(cell.run_dir / "checkpoints")


def _times(planned: Sweep) -> dict[str, float]:
    path = planned.output / SECONDS
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else {}


def _time_left(planned: Sweep, count: int) -> str:
    """From the cells of this sweep that have been trained; nothing is guessed before the first one."""
    times = list(_times(planned).values())
    if not times:
        return "not known before the first cell is trained"
    minutes = count * sum(times) / len(times) / planned.jobs / 60
    return f"about {minutes:.0f} min, by the {len(times)} cells trained here"


def _state(cell: Cell) -> str:
    from conversion.checkpoint import last_checkpoint

    last = last_checkpoint(cell.run_dir / "checkpoints")
    return "to train" if last is None else f"continues from {last.name}"


def _evaluate(planned: Sweep, trained: Sequence[Cell]) -> dict[str, str]:
    """All cells and the base model in one command. Returns what failed."""
    models = _models(planned, trained)
    if len(models) == len(trained):
        print(f"the base model is not evaluated: {planned.recipe.model.path} is no Hugging Face model", flush=True)
    code = eval_env.evaluate([*map(str, models), *planned.evaluation, "--output", str(_results(planned))])
    return {"evaluation": f"exit code {code}, its own error stands above"} if code else {}


def _models(planned: Sweep, trained: Sequence[Cell]) -> list[Path]:
    from conversion.checkpoint import kind_of

    source = local_model(planned.recipe)
    return [source] * (kind_of(source) == "huggingface") + [cell.export for cell in trained]


def _results(planned: Sweep) -> Path:
    return planned.output / "results"


def _report(planned: Sweep, trained: Sequence[Cell]) -> None:
    """By the command `report`, on the results of these models: earlier sweeps may have left others beside them."""
    directories = [eval_env.results_dir(model, _results(planned)) for model in _models(planned, trained)]
    results = [str(directory) for directory in directories if any(directory.glob("*/*/results.json"))]
    if not results:
        return
    runs = [str(cell.run_dir) for cell in trained]
    diagnosis = Path(planned.recipe.diagnose.output or planned.output / "diagnose") / "diagnose.json"
    diagnoses = ["--diagnoses", str(diagnosis)] if diagnosis.exists() else []
    page = planned.output / "report" / "report.html"
    command("report", *runs, "--results", *results, *diagnoses, "--output", str(page))


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--seeds: {text} is no seed; give whole numbers from 0, such as 0,1,2")
    return int(text)


def _refuse_jobs(jobs: int) -> None:
    import torch

    if jobs > 1 and torch.cuda.is_available():
        raise ValueError(f"--jobs: {jobs} runs at a time would share the GPUs; use `launch --objectives` on a cluster")
