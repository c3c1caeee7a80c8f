"""AlpacaEval 2: answers in the format of the package alpaca_eval, and its judgement of them, head to head."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from evaluation.alive import AliveProgress
from evaluation.results import read_result
from nemo_probsft.files import write_json

OUTPUTS = "model_outputs.json"
FIGURES = ("length_controlled_winrate", "win_rate", "standard_error", "n_total", "avg_length")


def write_outputs(directory: Path, samples: list[dict[str, Any]], docs: list[dict[str, Any]]) -> None:
    """What alpaca_eval takes as --model_outputs or --reference_outputs: the first answer to every instruction."""
    generator = directory.parents[1].name
    outputs = [
        {
            "instruction": docs[sample["item"]]["prompt"],
            "output": sample["answers"][0].strip(),
            "generator": generator,
            "dataset": docs[sample["item"]]["dataset"],
            "datasplit": "eval",
        }
        for sample in samples
    ]
    write_json(directory / OUTPUTS, outputs)


def check_judge() -> None:
    """Raises: ValueError where alpaca_eval is not installed."""
    if importlib.util.find_spec("alpaca_eval") is None:
        raise ValueError("--judge needs the package alpaca_eval: pip install alpaca_eval, and set its judge's API key")


def judge(results: list[Path], annotators: str) -> None:
    """Let `annotators` (a configuration of alpaca_eval) compare each model's answers with the first model's, or, of one
    model alone, with alpaca_eval's own reference; its figures go into results.json as `judgement`.

    Raises: ValueError when alpaca_eval fails.
    """
    directories = [path.parent for path in results if (path.parent / OUTPUTS).is_file()]
    reference = directories[0] / OUTPUTS if len(directories) > 1 else None
    for directory in directories[1:] if reference else directories:
        with AliveProgress(f"  {annotators} judges {directory}"):
            found = _judged(directory, reference, annotators)
        against = reference.parent.parents[1].name if reference else "alpaca_eval's reference"
        judgement = {"annotators": annotators, "against": against, **found}
        write_json(directory / "results.json", read_result(directory / "results.json") | {"judgement": judgement})


def _judged(directory: Path, reference: Path | None, annotators: str) -> dict[str, float]:
    output = directory / "alpaca_eval"
    command = [sys.executable, "-m", "alpaca_eval.main", "evaluate", "--model_outputs", str(directory / OUTPUTS)]
    command += ["--annotators_config", annotators, "--output_path", str(output)]
    command += ["--precomputed_leaderboard", "None", "--is_cache_leaderboard", "False"]
    command += ["--reference_outputs", str(reference)] if reference else []
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    leaderboard = (output if "/" in annotators else output / annotators) / "leaderboard.csv"
    if done.returncode != 0 or not leaderboard.is_file():
        reason = (done.stderr.strip().splitlines() or ["no leaderboard.csv"])[-1]
        raise ValueError(f"alpaca_eval could not judge {directory / OUTPUTS}: {reason}")
    return figures(leaderboard, directory.parents[1].name)


def figures(leaderboard: Path, name: str) -> dict[str, float]:
    """The row of `name` in a leaderboard.csv, whose first column has no heading."""
    with leaderboard.open(encoding="utf-8", newline="") as file:
        row = {row[""]: row for row in csv.DictReader(file)}[name]
    return {key: float(row[key]) for key in FIGURES if row.get(key)}
