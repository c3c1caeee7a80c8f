"""Where the records of a part are: on the hub, or in a local copy (a file, shards, or a folder for each part).

The puzzles are generated instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_probsft.data import records
from nemo_probsft.data.domains import Part, figfont
from nemo_probsft.data.records import Record

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class Source:
    name: str  # as given, or of the data set
    num_records: int
    read: Callable[[], Iterator[Record]]
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
    if records.HUB_NAME.fullmatch(given) and path.suffix not in records.READERS:
        return _hub(part, given, revision)
    raise ValueError(f"{given}: no such file or directory, and not the name of a data set")


def _generated(indices: range) -> Source:
    def puzzles() -> Iterator[Record]:
        for number, (index, puzzle) in enumerate(zip(indices, figfont.puzzles(indices), strict=True), 1):
            yield Record(puzzle, f"puzzle {index}", number)

    return Source("generated", len(indices), puzzles)


def _hub(part: Part, name: str, revision: str | None) -> Source:
    data, commit = records.hub_data_set(name, part.config, part.split, revision)
    return Source(name, len(data), lambda: records.numbered(data, name), revision=commit)


def _directory(directory: Path, part: Part) -> Source:
    for candidate in (directory / part.name, directory):
        if records.is_saved(candidate):
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
    single = [f"{part.name}{ending}" for ending in records.READERS]
    return [*single, f"{part.name}-*.parquet", f"data/{part.name}-*.parquet", f"{part.name}/{part.split}-*.parquet"]


def _check_shards(files: list[Path]) -> None:
    shards = [match for file in files if (match := SHARD.search(file.name))]
    numbers = {int(shard[1]) for shard in shards}
    missing = [number for shard in shards[:1] for number in range(int(shard[2])) if number not in numbers]
    if missing:
        raise ValueError(f"{files[0].parent}: shard {missing[0]:05d} of {shards[0][2]} is missing: copy it too")


def _saved(directory: Path, split: str) -> Source:
    data = records.saved_data_set(directory, split)
    files = tuple(sorted(directory.rglob("*.arrow")))
    return Source(str(directory), len(data), lambda: records.numbered(data, str(directory)), files=files)


def _local(name: str, files: list[Path]) -> Source:
    def read() -> Iterator[Record]:
        for file in files:
            yield from records.read_file(file)

    return Source(name, sum(map(records.count_records, files)), read, files=tuple(files))
