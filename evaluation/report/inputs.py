"""What the report is made of: training runs, evaluation results and diagnoses, read and matched to each other."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from evaluation.report.pooling import Result, difference, pooled
from evaluation.results import read_result
from evaluation.statistics import Difference
from nemo_probsft.run import best, log

BASELINE, BASE_MODEL = "original", "base model"
DIAGNOSIS_KEYS = {"data", "histogram", "interval_95", "mean_p", "region"}  # of those in a diagnose.json, what is used


@dataclass(frozen=True)
class Run:
    """A training run directory: its objective's key, the model it started from, and what it logged."""

    directory: Path
    objective: str
    backbone: str  # name of that model
    base: str  # its directory
    metrics: list[dict[str, Any]]
    validations: list[dict[str, Any]]  # on held-out rows, under the names of the metrics
    best: int | None  # the step of its best checkpoint, where one was kept
    seed: int
    data: str  # the training set
    settings: str  # the recipe without objective, seed and directory: what runs that are pooled must share


@dataclass(frozen=True)
class Row:
    """One model on one task. `difference`: its sampled answers (greedy where both have no others) minus the baseline's.

    label: the objective; "base model"; or, of a model of no given run, its directory. backbone: what it started from.
    Runs that differ in their seed only are one row, with the answers of all.
    """

    task: str
    backbone: str
    label: str
    greedy: Result | None
    sampled: Result | None
    difference: Difference | None
    baseline: str  # label of the model that it is compared with
    runs: tuple[Run, ...]  # one per seed

    @property
    def main(self) -> Result:
        """The result that counts for figures: sampled where there is one."""
        result = self.sampled or self.greedy
        assert result is not None
        return result

    @property
    def domain(self) -> str:
        return self.main.content["domain"]

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
    """Read, and match results and diagnoses to runs and tasks.

    A result belongs to the run whose directory holds its model. A diagnosis belongs to the task that the name of its
    data set or its own path mentions, else to the tasks of the models that were trained on that set.

    Raises: ValueError naming the file for anything missing or unreadable.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    results = [Result(path, read_result(path)) for path in result_paths]
    if not results:
        raise ValueError("there are no results to report; give the output directory of nemo-probsft eval")
    rows = _rows(results, runs)
    return Inputs(runs, rows, _by_task({path: read_diagnosis(path) for path in diagnosis_paths}, rows))


def read_run(run_dir: Path) -> Run:
    path = run_dir / "run.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: not found; give a run directory of nemo-probsft train")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    validations = [
        {name.removeprefix(log.METRIC): value for name, value in row.items()} for row in log.read_validations(run_dir)
    ]
    try:
        return Run(
            directory=run_dir,
            objective=content["objective"]["key"],
            backbone=Path(content["model"]["id"]).name,
            base=content["model"]["path"],
            metrics=log.read_metrics(run_dir),
            validations=validations,
            best=best.step(run_dir),
            seed=content["seed"],
            data=content["recipe"]["data"]["train"],
            settings=_shared_settings(content["recipe"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the run.yaml of a training run ({error}); give a run directory of nemo-probsft train"
        ) from None


def _shared_settings(recipe: dict[str, Any]) -> str:
    trainer = {key: value for key, value in recipe["trainer"].items() if key != "seed"}
    own = ("objective", "run_dir", "checkpoint", "log", "export", "diagnose", "validate")
    return json.dumps({key: value for key, value in (recipe | {"trainer": trainer}).items() if key not in own})


def _rows(results: list[Result], runs: list[Run]) -> list[Row]:
    by_name: dict[tuple[str, str, str], dict[str, dict[bool, Result]]] = {}
    for result in results:
        task, model = result.content["task"], result.content["model"]
        models = by_name.setdefault((task, *_name(model, runs)), {})
        models.setdefault(model, {})[result.sampled] = result
    by_name = _split_what_differs(by_name, runs)
    pairs = {name: _pooled(list(models.values())) for name, models in by_name.items()}
    made_by = {
        name: tuple(run for model in models if (run := _run_of(model, runs))) for name, models in by_name.items()
    }
    baselines = _baselines(list(pairs))
    rows = []
    for (task, backbone, label), pair in pairs.items():
        baseline = pairs[task, backbone, baselines[task, backbone]]
        rows.append(
            Row(
                task=task,
                backbone=backbone,
                label=label,
                greedy=pair.get(False),
                sampled=pair.get(True),
                difference=None if baseline is pair else _difference(pair, baseline),
                baseline=baselines[task, backbone],
                runs=made_by[task, backbone, label],
            )
        )
    tasks = list(dict.fromkeys(row.task for row in rows))
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            tasks.index(row.task),
            backbones.index(row.backbone),
            bool(row.runs),
            row.label != BASELINE,
            row.label,
        ),
    )


def _split_what_differs(by_name: dict[tuple[str, str, str], Any], runs: list[Run]) -> dict[tuple[str, str, str], Any]:
    """Models of one objective that differ in more than the seed are no repeats: their directories tell them apart."""
    split = {}
    for (task, backbone, label), models in by_name.items():
        made = [run for model in models if (run := _run_of(model, runs))]
        if len({run.settings for run in made}) <= 1 and len({run.seed for run in made}) == len(made):
            split[task, backbone, label] = models
            continue
        for model, results in models.items():
            split[task, backbone, f"{label} ({_directory_name(Path(model))})"] = {model: results}
    return split


def _pooled(models: list[dict[bool, Result]]) -> dict[bool, Result]:
    """Greedy and sampled results of models that differ in their seed; a decoding that any of them lacks is left out."""
    decodings = [sampled for sampled in (False, True) if all(sampled in results for results in models)]
    return {sampled: pooled([results[sampled] for results in models]) for sampled in decodings}


def _baselines(evaluated: list[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """(task, backbone) -> the label that the others are compared with: BASELINE, else the first one evaluated."""
    baselines: dict[tuple[str, str], str] = {}
    for task, backbone, label in evaluated:
        if label == BASELINE or (task, backbone) not in baselines:
            baselines[task, backbone] = label
    return baselines


def _name(model: str, runs: list[Run]) -> tuple[str, str]:
    """(backbone, label) of a model: by the run that made it, by one that started from it, else by its directory.

    A model of no run is compared with the others where these have one backbone, or where there are no runs.
    """
    run = _run_of(model, runs)
    if run is not None:
        return run.backbone, run.objective
    started = next((run for run in runs if Path(run.base).resolve() == Path(model).resolve()), None)
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
            return difference(pair[sampled], baseline[sampled])
    return None


def _by_task(diagnoses: dict[Path, dict[str, Any]], rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Match by the last word of a task (demo_strong: strong) in the diagnosed set's name, else in the file's path,
    else to all tasks of the models that were trained on that set."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    by_task = {}
    for path, diagnosis in diagnoses.items():
        data = diagnosis["data"]
        places = (Path(data).stem, "/".join(path.resolve().parts[-3:]))
        matches = next((found for place in places if len(found := _named_in(place, tasks)) == 1), [])
        matches = matches or [row.task for row in rows if any(run.data == data for run in row.runs)]
        if not matches:
            raise ValueError(
                f"{path}: cannot tell which of {', '.join(tasks)} it diagnoses; name its directory after the task"
            )
        by_task |= dict.fromkeys(matches, diagnosis)
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
    if not isinstance(diagnosis, dict) or not diagnosis.keys() >= DIAGNOSIS_KEYS:
        needed = ", ".join(sorted(DIAGNOSIS_KEYS))
        raise ValueError(f"{path}: not a diagnosis (it needs {needed}); give a diagnose.json of nemo-probsft diagnose")
    return diagnosis
