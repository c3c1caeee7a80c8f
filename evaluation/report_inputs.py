"""What the report is made of: training runs, evaluation results and diagnoses, read and matched to each other."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from evaluation.results import Store, item_scores, read_result
from evaluation.statistics import Difference, paired_difference

BASELINE = "original"


@dataclass(frozen=True)
class Run:
    """A training run directory: its objective's key and what it logged."""

    directory: Path
    objective: str
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """One results.json, with its path for the samples beside it."""

    path: Path
    content: dict[str, Any]

    @property
    def samples(self) -> list[dict[str, Any]]:
        return Store(self.path.parent).samples()

    @property
    def sampled(self) -> bool:
        return self.content["decoding"] != "greedy"


@dataclass(frozen=True)
class Row:
    """One model on one task. `difference`: its sampled answers (greedy where there are none) minus the baseline's."""

    task: str
    label: str
    greedy: Result | None
    sampled: Result | None
    difference: Difference | None
    run: Run | None

    @property
    def main(self) -> Result:
        """The result that counts for figures: sampled where there is one."""
        result = self.sampled or self.greedy
        assert result is not None
        return result


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

    def curves(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """task -> label -> metrics, for the runs that were evaluated and logged something."""
        curves: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for row in self.rows:
            if row.run is not None and row.run.metrics:
                curves.setdefault(row.task, {})[row.label] = row.run.metrics
        return curves


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
    return Run(run_dir, _objective_key(content, path), [json.loads(line) for line in lines])


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
    labels = _labels([model for _, model in by_model], runs)
    baselines = {task: pair for (task, model), pair in by_model.items() if labels[model] == BASELINE}
    rows = []
    for (task, model), pair in by_model.items():
        baseline = baselines.get(task)
        rows.append(
            Row(
                task=task,
                label=labels[model],
                greedy=pair.get(False),
                sampled=pair.get(True),
                difference=None if baseline in (None, pair) else _difference(pair, baseline),
                run=_run_of(model, runs),
            )
        )
    tasks = list(dict.fromkeys(row.task for row in rows))
    return sorted(rows, key=lambda row: (tasks.index(row.task), row.run is not None, row.label != BASELINE, row.label))


def _labels(models: list[str], runs: list[Run]) -> dict[str, str]:
    """The objective of a model's run; a model of no given run goes by its directory."""
    labels = {}
    for model in models:
        run = _run_of(model, runs)
        labels[model] = _directory_name(Path(model)) if run is None else run.objective
    return labels


def _directory_name(model: Path) -> str:
    return model.parent.name if model.name in ("export", "hf") else model.name


def _run_of(model: str, runs: list[Run]) -> Run | None:
    parents = Path(model).resolve().parents
    return next((run for run in runs if run.directory.resolve() in (*parents, Path(model).resolve())), None)


def _difference(pair: dict[bool, Result], baseline: dict[bool, Result]) -> Difference | None:
    for sampled in (True, False):
        if sampled in pair and sampled in baseline:
            a, b = pair[sampled], baseline[sampled]
            if a.content["prompt_hash"] != b.content["prompt_hash"]:
                raise ValueError(
                    f"{a.path} and {b.path} saw different prompts; evaluate both on the same test set and limit"
                )
            return paired_difference(item_scores(a.path), item_scores(b.path), seed=a.content["seed"])
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
