"""What `nemo-probsft diagnose` says of the tasks under the base model: a line of docs/real/tasks.jsonl for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from experiments import jsonl
from nemo_probsft import demo, files
from nemo_probsft.run import decisions

WORK = Path("runs/real")
RECIPE = files.SOURCE_ROOT / "recipes" / "real" / "smollm2-135m.yaml"
MAX_TOKENS = 2000  # of targets, in whole examples
MICRO_BATCH = 8
KEPT = ("mean_p", "interval_95", "mean_nll", "num_examples", "num_tokens")


def diagnose(docs: Path, tasks: Sequence[str]) -> None:
    """Of seed 0's rows, for the tasks that have no line yet. Raises ValueError where the command fails."""
    known = {line["task"] for line in jsonl.read(docs / "tasks.jsonl")}
    for task in tasks:
        if task in known:
            continue
        run_dir, data = WORK / "diagnose" / task, WORK / "data" / f"{task}-0.train.jsonl"
        settings = {
            "run_dir": run_dir,
            "data.train": data,
            "data.micro_batch_size": MICRO_BATCH,
            "diagnose.max_tokens": MAX_TOKENS,
        }
        demo.command("diagnose", str(RECIPE), *(f"{key}={value}" for key, value in settings.items()))
        found = json.loads((run_dir / "diagnose" / "diagnose.json").read_text(encoding="utf-8"))
        line = {"task": task} | {key: found[key] for key in KEPT}
        line |= {"region": found["region"]["name"], "shortlist": [entry["objective"] for entry in found["shortlist"]]}
        jsonl.append(docs / "tasks.jsonl", line | {"versions": files.versions(decisions.PACKAGES)})
