"""What every task of the pack shares: reading its set, keeping all repeated answers, scoring them, averaging."""

import json
from pathlib import Path

from datasets import Dataset


def load_rows(*, data_dir: str, file: str, fields: list[str], **_metadata) -> dict[str, Dataset]:
    """The rows of `data_dir`/`file` (JSONL) as the test split; only `fields` are kept, all of which must be there."""
    return {"test": Dataset.from_list(read_rows(Path(data_dir) / file, fields))}


def read_rows(path: Path, fields: list[str]) -> list[dict]:
    """Raises: ValueError naming the file, and for a bad row its line."""
    if not path.is_file():
        raise ValueError(
            f"{path}: test set not found; put it there or point --data-dir at the directory that has {path.name}"
        )
    with path.open(encoding="utf-8") as lines:
        rows = [_row(line, fields, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path}: the test set has no rows; expected one JSON object with {fields} a line")
    return rows


def _row(line: str, fields: list[str], path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); fix or drop the line"
        ) from None
    missing = [field for field in fields if not isinstance(row, dict) or field not in row]
    if missing:
        raise ValueError(f"{path}:{number}: no {missing[0]!r} in the row; every row needs {fields}")
    return {field: row[field] for field in fields}


def keep_all(responses, docs):
    """Pass all `repeats` answers of an item on; without a filter list the harness keeps only the first (its #1232)."""
    return responses


def exact_match(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """One 0/1 score per answer: the answer, without surrounding white space, is the response."""
    (answers,) = results
    return {"score": [float(answer.strip() == doc["response"].strip()) for answer in answers]}


def mean_over_items(scores: list[list[float]]) -> float:
    """Mean over items of the mean over an item's answers (mean@n)."""
    return sum(sum(item) / len(item) for item in scores) / len(scores)
