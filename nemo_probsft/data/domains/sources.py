"""Records of a part: from the hub, or from a local copy (parquet, JSON lines, a JSON list, `save_to_disk`), streamed.

Nothing in a data set is executed: no loading scripts, no pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_probsft.data.domains import Part, figfont

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves behind
BETWEEN = re.compile(r"[\s,]*")  # the objects of a JSON list
BLOCK = 1 << 20  # characters read at once

Records = Iterator[tuple[Any, str]]  # and where each is, for error messages


@dataclass(frozen=True)
class Source:
    name: str  # as given, or of the data set
    num_records: int
    records: Callable[[], Records]
    revision: str | None = None  # commit of a hub data set
    files: tuple[Path, ...] = ()  # of a local copy


def open_source(part: Part, given: str | None, revision: str | None) -> Source:
    """`given` is a hub data set, a file, or a directory that holds each part under its name.

    Raises ValueError in one line when there is none, or no record in it.
    """
    source = _find(part, given, revision)
    if not source.num_records:
        raise ValueError(f"{source.name}: has no records: the source of {part.name!r} is empty")
    return source


def _find(part: Part, given: str | None, revision: str | None) -> Source:
    if given is None:
        return _hub(part, part.hub, revision) if part.puzzles is None else _generated(part.puzzles)
    path = Path(given)
    if path.is_file():
        return _local(given, [path])
    if path.is_dir():
        return _directory(path, part)
    if HUB_NAME.fullmatch(given) and path.suffix not in READERS:
        return _hub(part, given, revision)
    raise ValueError(f"{given}: no such file or directory, and not the name of a data set")


def _generated(indices: range) -> Source:
    def records() -> Records:
        for index, puzzle in zip(indices, figfont.puzzles(indices), strict=True):
            yield puzzle, f"puzzle {index}"

    return Source("generated", len(indices), records)


def _hub(part: Part, name: str, revision: str | None) -> Source:
    """Without a revision the newest commit or, out of reach of the hub, the one in the cache: it is recorded."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = None if revision is None else _commit(name, revision)
        builder = datasets.load_dataset_builder(name, part.config, revision=commit)
        if commit is not None and builder.hash != commit:  # datasets takes what the cache has where it finds no other
            raise ValueError(f"only commit {builder.hash} could be had, and revision {revision} is {commit}")
        data = datasets.load_dataset(name, part.config, split=part.split, revision=builder.hash)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, HfHubHTTPError) as error:
        reason = f"split {part.split!r} could not be loaded ({_first_line(error)})"
        raise ValueError(f"{name}: {reason}: check the name, or give a local copy") from None
    return Source(name, len(data), lambda: _numbered(data, name), revision=builder.hash)


def _commit(name: str, revision: str) -> str | None:
    """Of a branch or tag, which `datasets` would otherwise replace by the cached commit when it does not exist."""
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, revision=revision).sha


def _directory(directory: Path, part: Part) -> Source:
    for candidate in (directory / part.name, directory):
        if any((candidate / name).is_file() for name in SAVED):
            return _saved(candidate, part.split)
    patterns = _patterns(part)
    for pattern in patterns:
        files = sorted(directory.glob(pattern))
        if files:
            _check_shards(files)
            return _local(str(directory), files)
    raise ValueError(f"{directory}: has no {part.name!r}: must hold one of {', '.join(patterns)}")


def _patterns(part: Part) -> list[str]:
    """Where a part may be; the last ones are the layouts of a hub repository's clone."""
    single = [f"{part.name}{ending}" for ending in READERS]
    return [*single, f"{part.name}-*.parquet", f"data/{part.name}-*.parquet", f"{part.name}/{part.split}-*.parquet"]


def _check_shards(files: list[Path]) -> None:
    shards = [match for file in files if (match := SHARD.search(file.name))]
    numbers = {int(shard[1]) for shard in shards}
    missing = [number for shard in shards[:1] for number in range(int(shard[2])) if number not in numbers]
    if missing:
        raise ValueError(f"{files[0].parent}: shard {missing[0]:05d} of {shards[0][2]} is missing: copy it too")


def _saved(directory: Path, split: str) -> Source:
    import datasets

    try:
        data = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory}: is not readable as a saved data set ({_first_line(error)})") from None
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{directory}: has no split {split!r}: its splits are {', '.join(data)}")
        data = data[split]
    files = sorted(file for file in directory.rglob("*.arrow"))
    return Source(str(directory), len(data), lambda: _numbered(data, str(directory)), files=tuple(files))


def _local(name: str, files: list[Path]) -> Source:
    unknown = [file for file in files if file.suffix not in READERS]
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown ending {unknown[0].suffix!r}: must be one of {', '.join(READERS)}")

    def records() -> Records:
        for file in files:
            yield from READERS[file.suffix](file)

    return Source(name, sum(map(_count, files)), records, files=tuple(files))


def _count(file: Path) -> int:
    if file.suffix != ".parquet":
        return sum(1 for _ in READERS[file.suffix](file))
    from pyarrow import parquet

    with _readable(file, "parquet"):
        return parquet.read_metadata(file).num_rows


def _parquet(file: Path) -> Records:
    from pyarrow import parquet

    number = 0
    with _readable(file, "parquet"), parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield record, f"{file} row {number}"


def _json_lines(file: Path) -> Records:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file} line {number}"
                with _readable(where, "JSON"):
                    record = json.loads(line)
                yield record, where


def _json_list(file: Path) -> Records:
    """The objects of one JSON list, without reading all of it first."""
    decoder, text, at, number = json.JSONDecoder(), "", 0, 0
    with _readable(file, "a JSON list (one object a line: name it .jsonl)"), file.open(encoding="utf-8-sig") as stream:
        if stream.read(1) != "[":
            raise ValueError("no [ at its beginning")
        while block := stream.read(BLOCK):
            text, at = text[at:] + block, 0
            for record, end in _objects(decoder, text):
                at, number = end, number + 1
                yield record, f"{file} object {number}"
        if text[at:].strip(" \t\r\n,") != "]":
            decoder.raw_decode(text, _next(text, at))  # says what is wrong
            raise ValueError("no ] at its end")


def _objects(decoder: json.JSONDecoder, text: str) -> Iterator[tuple[Any, int]]:
    """The whole objects of `text`, each with where it ends."""
    at = 0
    while text.startswith("{", start := _next(text, at)):
        try:
            record, at = decoder.raw_decode(text, start)
        except json.JSONDecodeError:  # not all of it has been read
            return
        yield record, at


def _next(text: str, at: int) -> int:
    """Where the next object of a list begins."""
    return next(BETWEEN.finditer(text, at)).end()


@contextmanager
def _readable(where: Path | str, form: str) -> Iterator[None]:
    """One line for what pyarrow, json and the file system raise."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not readable as {form}: {_first_line(error)}") from None


def _numbered(data: Any, name: str) -> Records:
    return ((record, f"{name} row {number}") for number, record in enumerate(data, 1))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


READERS: dict[str, Callable[[Path], Records]] = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json_list}
