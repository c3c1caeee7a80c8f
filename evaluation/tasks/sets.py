"""Test sets: local JSON lines or parquet in --data-dir, else by their name in `datasets`."""

import json
from pathlib import Path

FORMATS = (".jsonl", ".parquet")


def read_set(*, data_dir: str | None, file: str, dataset: str, fields: list[str], hint: str = "") -> list[dict]:
    """The rows of `data_dir`/`file`.jsonl or .parquet, with `fields` only; without a data_dir those of `dataset`.

    dataset: "owner/name@split" or "owner/name:configuration@split". hint: another way to a missing set, for messages.
    Raises: ValueError of one line, naming the file and for a bad row its line, or the path where a missing set belongs.
    """
    if data_dir is None:
        return _checked(_hub_rows(dataset), fields, dataset)
    found = [path for path in (Path(data_dir) / f"{file}{ending}" for ending in FORMATS) if path.is_file()]
    if not found:
        wanted = f"{Path(data_dir) / file}.jsonl (or .parquet): test set not found"
        layout = f"one object a line with the fields {', '.join(fields)}"
        raise ValueError(f"{wanted}; put {dataset} (`datasets`) there, {layout}{hint and ', or '}{hint}")
    path = found[0]
    return _checked(_json_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path), fields, str(path))


def _checked(rows: list[tuple[str, object]], fields: list[str], source: str) -> list[dict]:
    if not rows:
        raise ValueError(f"{source}: the test set has no rows; expected one object with {', '.join(fields)} a line")
    for where, row in rows:
        lacking = [field for field in fields if not isinstance(row, dict) or field not in row]
        if lacking:
            raise ValueError(f"{where}: no {lacking[0]!r} in the row; every row needs {', '.join(fields)}")
    return [{field: row[field] for field in fields} for _, row in rows]  # type: ignore[index]


def _json_rows(path: Path) -> list[tuple[str, object]]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append((f"{path}:{number}", json.loads(line)))
                except json.JSONDecodeError as error:
                    at = f"{error.msg} at column {error.colno}"
                    raise ValueError(f"{path}:{number}: not JSON ({at}); fix or drop the line") from None
    return rows


def _parquet_rows(path: Path) -> list[tuple[str, object]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not readable as parquet ({reason}); write it again") from None
    return [(f"{path}:{number}", row) for number, row in enumerate(rows, 1)]


def _hub_rows(dataset: str) -> list[tuple[str, object]]:
    from datasets import load_dataset

    name, _, split = dataset.partition("@")
    path, _, configuration = name.partition(":")
    try:
        rows = load_dataset(path, configuration or None, split=split)
    except (OSError, ValueError) as error:  # no such set, no network
        reason = str(error).splitlines()[0]
        raise ValueError(f"{dataset}: not loaded by `datasets` ({reason}); give a local copy with --data-dir") from None
    return [(f"{dataset}:{number}", row) for number, row in enumerate(rows, 1)]
