"""What the report is made of: training runs, evaluation results and diagnoses, read and matched to each other."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluation.results import Store, read_result
from evaluation.statistics import Difference, paired_difference

BASELINE, BASE_MODEL = "original", "base model"


@dataclass(frozen=True)
class Run:
    """A training run directory: its objective's key, the model it started from, and what it logged."""

    directory: Path
    objective: str
    backbone: str  # name of that model
    base: str | None  # its directory, where it has one here
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """One results.json, with its path for the samples beside it."""

    path: Path
    content: dict[str, Any]

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        return Store(self.path.parent).samples()

    @cached_property
    def scores(self) -> np.ndarray:
        """[items, samples]"""
        return np.array([sample["scores"] for sample in self.samples])

    @property
    def sampled(self) -> bool:
        return self.content["decoding"] != "greedy"


@dataclass(frozen=True)
class Row:
    """One model on one task. `difference`: its sampled answers (greedy where both have no others) minus the baseline's.

    label: the objective; "base model"; or, of a model of no given run, its directory. backbone: what it started from.
    """

    task: str
    backbone: str
    label: str
    greedy: Result | None
    sampled: Result | None
    difference: Difference | None
    baseline: str  # label of the model that it is compared with
    run: Run | None

    @property
    def main(self) -> Result:
        """The result that counts for figures: sampled where there is one."""
        result = self.sampled or self.greedy
        assert result is not None
        return result

    @property
    def domain(self) -> str:
        return self.main.content.get("domain", self.task)

    def paired_with(self, baseline: "Row") -> tuple[Result, Result]:
        """The two results of one decoding that are compared: sampled where both have it."""
        if self.sampled and baseline.sampled:
            return self.sampled, baseline.sampled
        assert self.greedy is not None
        assert baseline.greedy is not None
        return self.greedy, baseline.greedy


@dataclass(frozen=True)
class Inputs:
    """Everything read; rows by task: models of no given run first, then the baseline."""

    runs: list[Run]
    rows: list[Row]
    diagnoses: dict[str, dict[str, Any]]

    @cached_property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(row.task for row in self.rows))

    @cached_property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.label for row in self.rows))

    def name(self, backbone: str, label: str) -> str:
        """The label; with its backbone where the report has several."""
        several = len({row.backbone for row in self.rows}) > 1
        return f"{backbone}: {label}" if several and label != backbone else label

    def baseline_of(self, row: Row) -> Row | None:
        """The row that `row` is compared with; None for itself."""
        key = (row.task, row.backbone, row.baseline)
        return None if row.label == row.baseline else next(r for r in self.rows if (r.task, r.backbone, r.label) == key)


def read_inputs(run_dirs: list[Path], result_paths: list[Path], diagnosis_paths: list[Path]) -> Inputs:
    """Read and match: a result belongs to the run whose directory holds its model, a diagnosis to the task whose
    name is in that of the diagnosed set or in its path.

    Raises: ValueError naming the file for anything missing or unreadable.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    results = [Result(path, read_result(path)) for path in result_paths]
    if not results:
        raise ValueError("a report needs results: give at least one results.json of an evaluation")
    rows = _rows(results, runs)
    tasks = list(dict.fromkeys(row.task for row in rows))
    return Inputs(runs, rows, _by_task({path: read_diagnosis(path) for path in diagnosis_paths}, tasks))


def read_run(run_dir: Path) -> Run:
    path = run_dir / "run.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: not found; give the directory of a finished training run")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.is_file() else []
    model = content.get("model") or {}
    backbone = Path(str(model.get("id") or model.get("path") or "")).name
    return Run(
        run_dir, _objective_key(content, path), backbone, model.get("path"), [json.loads(line) for line in lines]
    )


def _objective_key(content: dict[str, Any], path: Path) -> str:
    objective = content.get("objective")
    if isinstance(objective, dict):
        objective = objective.get("key", objective.get("name"))
    if not isinstance(objective, str):
        raise ValueError(
            f"{path}: no objective key in it (got {objective!r}); train with nemo-probsft to get a run.yaml"
        )
    return objective


def _rows(results: list[Result], runs: list[Run]) -> list[Row]:
    by_model: dict[tuple[str, str], dict[bool, Result]] = {}
    for result in results:
        by_model.setdefault((result.content["task"], result.content["model"]), {})[result.sampled] = result
    names = {model: _name(model, runs) for _, model in by_model}
    baselines = _baselines(list(by_model), names)
    rows = []
    for (task, model), pair in by_model.items():
        backbone, label = names[model]
        baseline = by_model[task, baselines[task, backbone]]
        rows.append(
            Row(
                task=task,
                backbone=backbone,
                label=label,
                greedy=pair.get(False),
                sampled=pair.get(True),
                difference=None if baseline is pair else _difference(pair, baseline),
                baseline=names[baselines[task, backbone]][1],
                run=_run_of(model, runs),
            )
        )
    tasks = list(dict.fromkeys(row.task for row in rows))
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            tasks.index(row.task),
            backbones.index(row.backbone),
            row.run is not None,
            row.label != BASELINE,
            row.label,
        ),
    )


def _baselines(evaluated: list[tuple[str, str]], names: dict[str, tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(task, backbone) -> the model that the others are compared with: BASELINE's, else the first one evaluated."""
    baselines: dict[tuple[str, str], str] = {}
    for task, model in evaluated:
        backbone, label = names[model]
        if label == BASELINE or (task, backbone) not in baselines:
            baselines[task, backbone] = model
    return baselines


def _name(model: str, runs: list[Run]) -> tuple[str, str]:
    """(backbone, label) of a model: by the run that made it, by one that started from it, else by its directory.

    A model of no run is compared with the others where these have one backbone, or where there are no runs.
    """
    run = _run_of(model, runs)
    if run is not None:
        return run.backbone, run.objective
    started = next((run for run in runs if run.base and Path(run.base).resolve() == Path(model).resolve()), None)
    if started is not None:
        return started.backbone, BASE_MODEL
    backbones = {run.backbone for run in runs}
    name = _directory_name(Path(model))
    return (backbones.pop() if len(backbones) == 1 else "" if not runs else name), name


def _directory_name(model: Path) -> str:
    return model.parent.name if model.name in ("export", "hf") else model.name


def _run_of(model: str, runs: list[Run]) -> Run | None:
    parents = Path(model).resolve().parents
    return next((run for run in runs if run.directory.resolve() in (*parents, Path(model).resolve())), None)


def _difference(pair: dict[bool, Result], baseline: dict[bool, Result]) -> Difference | None:
    for sampled in (True, False):
        if sampled in pair and sampled in baseline:
            a, b = pair[sampled], baseline[sampled]
            if not a.content.get("judged", True):
                return None
            if a.content["prompt_hash"] != b.content["prompt_hash"]:
                raise ValueError(
                    f"{a.path} and {b.path} saw different prompts; evaluate both on the same test set and limit"
                )
            return paired_difference(a.scores, b.scores, seed=a.content["seed"])
    return None


def _by_task(diagnoses: dict[Path, dict[str, Any]], tasks: list[str]) -> dict[str, dict[str, Any]]:
    """Match by the last word of a task (demo_strong: strong) in the diagnosed set's name, else in the file's path."""
    by_task = {}
    for path, diagnosis in diagnoses.items():
        places = (Path(diagnosis.get("data", "")).stem, "/".join(path.resolve().parts[-3:]))
        matches = next((found for place in places if len(found := _named_in(place, tasks)) == 1), [])
        if not matches:
            raise ValueError(
                f"{path}: cannot tell which of {', '.join(tasks)} it diagnoses; name its directory after the task"
            )
        by_task[matches[0]] = diagnosis
    return by_task


def _named_in(text: str, tasks: list[str]) -> list[str]:
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    return [task for task in tasks if task.split("_")[-1].lower() in words]


def read_diagnosis(path: Path) -> dict[str, Any]:
    """The JSON of `nemo-probsft diagnose`. Raises: ValueError when it is not one."""
    try:
        diagnosis = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot read this diagnosis ({error}); run nemo-probsft diagnose again") from None
    if not isinstance(diagnosis, dict) or not {"mean_p", "histogram"} <= diagnosis.keys():
        raise ValueError(f"{path}: not a diagnosis (no mean_p and histogram); give the JSON of nemo-probsft diagnose")
    return diagnosis
