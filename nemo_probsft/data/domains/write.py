"""`data prepare`: a domain's training set as JSON lines, with a manifest of where every row came from or went."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from nemo_probsft.data.domains import SEED, Domain, Part, find
from nemo_probsft.data.domains.schemas import Dropped, MissingField, Row
from nemo_probsft.data.domains.sources import Source, open_source

MANIFEST = "manifest.json"
LETTERS = "ABCD"
PACKAGES = ("nemo-probsft", "datasets", "numpy", "pyarrow", "pyfiglet", "reasoning_gym", "tokenizers", "transformers")
SECONDS_BETWEEN_NEWS = 5

Chosen = Iterator[tuple[int, Any, str]]  # index in the source, record, where it is


def prepare(
    name: str,
    output: Path,
    *,
    source: str | None = None,
    revision: str | None = None,
    seed: int = SEED,
    limit: int | None = None,
    tokenizers: Sequence[str] = (),
) -> Path:
    """Write the set into the new directory `output`, whole or not at all; the same arguments write the same bytes.

    source: a local copy or another hub data set. limit: at most so many records of each part, to try it out.
    tokenizers: instead of those that measure the paper's limit on the length of a row. Returns the manifest's path.
    """
    from conversion.staging import staged_directory

    domain = find(name)
    _check_options(
        name, domain, output, source=source, revision=revision, seed=seed, limit=limit, tokenizers=tokenizers
    )
    sources = [open_source(part, source, revision) for part in domain.parts]
    tokenizers = tokenizers or domain.tokenizers
    is_long = None if domain.max_tokens is None else _length_check(tokenizers, domain.max_tokens)
    num_bytes = sum(file.stat().st_size for each in sources for file in each.files)
    with staged_directory(output, num_bytes) as directory, ExitStack() as stack:
        files: dict[str, RowFile] = {}
        parts = []
        for part, origin in zip(domain.parts, sources, strict=True):
            if part.file not in files:
                files[part.file] = stack.enter_context(closing(RowFile(directory / part.file)))
            chosen = _progress(part, origin, _chosen(part, origin, seed, limit))
            parts.append(_write_part(part, origin, chosen, files[part.file], seed, is_long))
        manifest = {
            "domain": name,
            "seed": seed,
            "limit": limit,
            "max_tokens": domain.max_tokens,
            "tokenizers": list(tokenizers),
            "sources": parts,
            "files": {file_name: file.summary() for file_name, file in files.items()},
            "steps_of_256_rows": files["train.jsonl"].num_rows // 256,
            "steps_in_the_paper": domain.steps,
            "versions": _versions(),
        }
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _say(f"{output}: {', '.join(f'{file.num_rows:,} rows in {file_name}' for file_name, file in files.items())}")
    return output / MANIFEST


class RowFile:
    """A file of JSON lines that counts and hashes what is written."""

    def __init__(self, path: Path):
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.num_rows = self.num_bytes = 0
        self.digests: set[bytes] = set()  # of different rows

    def write(self, row: Row) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self.file.write(line)
        self.sha256.update(line)
        self.digests.add(hashlib.blake2b(line, digest_size=16).digest())
        self.num_rows += 1
        self.num_bytes += len(line)

    def close(self) -> None:
        self.file.close()

    def summary(self) -> dict[str, Any]:
        return {
            "rows": self.num_rows,
            "duplicate_rows": self.num_rows - len(self.digests),
            "bytes": self.num_bytes,
            "sha256": self.sha256.hexdigest(),
        }


def _check_options(
    name: str,
    domain: Domain,
    output: Path,
    *,
    source: str | None,
    revision: str | None,
    seed: int,
    limit: int | None,
    tokenizers: Sequence[str],
) -> None:
    """Refuse what would be ignored, and before anything is downloaded."""
    if os.path.lexists(output):
        raise ValueError(f"{output}: exists already and is never overwritten; remove it or choose another directory")
    if len(domain.parts) > 1 and source is not None and Path(source).is_file():
        parts = ", ".join(part.name for part in domain.parts)
        raise ValueError(f"{source}: is one file, but {name} has the parts {parts}: give a directory with all of them")
    is_hub = domain.parts[0].puzzles is None if source is None else not Path(source).exists()
    if revision is not None and not is_hub:
        raise ValueError(f"revision {revision}: {source or name} comes from no hub: leave the revision out")
    if seed != SEED and not any(part.num_sampled or part.noise for part in domain.parts):
        raise ValueError(f"seed {seed}: nothing of {name} is drawn at random: leave the seed out")
    if tokenizers and domain.max_tokens is None:
        raise ValueError(f"{name}: has no limit on the length of a row: leave the tokenizer out")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: must be at least 1")


def _write_part(
    part: Part, source: Source, chosen: Chosen, file: RowFile, seed: int, is_long: Callable[[Row], bool] | None
) -> dict[str, Any]:
    """Write the rows of one part; returns what the manifest says of it."""
    drops: Counter[str] = Counter()
    wrong_letters = _wrong_letters(part, source.num_records, seed)
    num_chosen = num_wrong = 0
    num_before = file.num_rows
    for index, record, where in chosen:
        num_chosen += 1
        try:
            row = part.row(record)
        except Dropped as reason:
            drops[str(reason)] += 1
            continue
        except MissingField as missing:
            fields = ", ".join(map(repr, record)) if isinstance(record, Mapping) else "none: it is no object"
            raise ValueError(f"{where}: has no field '{missing}'; its fields are {fields}") from None
        if index in wrong_letters:
            row["response"] = [letter for letter in LETTERS if letter != row["response"]][wrong_letters[index]]
            num_wrong += 1
        if is_long is not None and is_long(row):
            drops["too many tokens"] += 1
            continue
        file.write(row)
    if file.num_rows == num_before:
        raise ValueError(f"{source.name}: no row is left of part {part.name!r}, dropped: {dict(drops)}")
    return {
        "part": part.name,
        "source": source.name,
        "config": part.config,
        "split": part.split,
        "revision": source.revision,
        "files": {path.name: _sha256(path) for path in source.files},
        "records": source.num_records,
        "chosen": num_chosen,
        "dropped": dict(sorted(drops.items())),
        "rows": file.num_rows - num_before,
        "wrong_answers": num_wrong,
    }


def _chosen(part: Part, source: Source, seed: int, limit: int | None) -> Chosen:
    """The records of a part in the order of their source; of more than `num_sampled`, those that
    `datasets.Dataset.shuffle(seed).select(range(num_sampled))` has."""
    keep = None
    if part.num_sampled is not None and source.num_records > part.num_sampled:
        import numpy as np

        keep = np.zeros(source.num_records, dtype=bool)
        keep[np.random.default_rng(seed).permutation(source.num_records)[: part.num_sampled]] = True
    num_left = source.num_records if limit is None else limit
    for index, (record, where) in enumerate(source.records()):
        if keep is None or keep[index]:
            yield index, record, where
            num_left -= 1
            if not num_left:
                return


def _wrong_letters(part: Part, num_records: int, seed: int) -> dict[int, int]:
    """Record -> which of the three wrong letters. The records are those of the paper's code for the same seed; the
    letters are not, which it draws from a set of strings: their order differs from one run to the next."""
    rng = random.Random(seed)
    indices = rng.sample(range(num_records), int(num_records * part.noise))
    return {index: rng.randrange(len(LETTERS) - 1) for index in sorted(indices)}


def _length_check(names: Sequence[str], max_tokens: int) -> Callable[[Row], bool]:
    """Whether `train` would cut a row at `max_tokens` under any of the tokenizers."""
    from transformers import AutoTokenizer

    from nemo_probsft.data.rows import parse_row
    from nemo_probsft.data.tokens import token_ids

    tokenizers = []
    for name in names:
        try:
            tokenizers.append(AutoTokenizer.from_pretrained(name))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"tokenizer {name}: could not be loaded ({reason}); give a directory") from None

    def is_long(row: Row) -> bool:
        parsed = parse_row(row, "row")
        return any(len(token_ids(tokenizer, parsed)[0]) > max_tokens for tokenizer in tokenizers)

    return is_long


def _progress(part: Part, source: Source, chosen: Chosen) -> Chosen:
    """Pass the records on, and say every few seconds how far they are."""
    start = last = 0.0
    for item in chosen:
        start = start or time.monotonic()  # not before the first record: it waits for imports
        last = last or start
        yield item
        now, num_done = time.monotonic(), item[0] + 1
        if now - last > SECONDS_BETWEEN_NEWS:
            last = now
            left = (now - start) * (source.num_records - num_done) / num_done
            _say(f"  {part.name}: {num_done:,} of {source.num_records:,} records, {left:.0f} s left")


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
