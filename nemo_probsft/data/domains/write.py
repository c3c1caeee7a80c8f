"""`data prepare`: a domain's training set as JSON lines, with a manifest of where every row came from or went."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from nemo_probsft.data.domains import SEED, Domain, Part, find
from nemo_probsft.data.domains.schemas import Dropped, Item, MissingField
from nemo_probsft.data.domains.sources import Source, open_source
from nemo_probsft.data.records import Record
from nemo_probsft.files import first_line, sha256_of, versions, write_atomically
from nemo_probsft.progress import Progress

MANIFEST = "manifest.json"
LETTERS = "ABCD"
PACKAGES = ("datasets", "numpy", "pyarrow", "pyfiglet", "reasoning_gym", "tokenizers", "transformers")


def write_domain(
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
    from nemo_probsft.staging import staged_directory

    domain = find(name)
    _check_options(
        name, domain, output, source=source, revision=revision, seed=seed, limit=limit, tokenizers=tokenizers
    )
    sources = [open_source(part, source, revision) for part in domain.parts]
    tokenizers = tokenizers or domain.tokenizers
    is_long = None if domain.max_tokens is None else _length_check(tokenizers, domain.max_tokens)
    num_bytes = sum(file.stat().st_size for each in sources for file in each.files)
    with staged_directory(output, num_bytes) as directory, ExitStack() as stack:
        files: dict[str, SetFile] = {}
        parts = []
        for part, origin in zip(domain.parts, sources, strict=True):
            if part.file not in files:
                files[part.file] = stack.enter_context(closing(SetFile(directory / part.file)))
            parts.append(_write_part(part, origin, files[part.file], seed, limit, is_long))
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
            "versions": versions(PACKAGES),
        }
        write_atomically(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    counts = ", ".join(f"{file.num_rows:,} rows in {file_name}" for file_name, file in files.items())
    print(f"{output}: {counts}", file=sys.stderr, flush=True)
    return output / MANIFEST


class SetFile:
    """A file of JSON lines that counts and hashes what is written."""

    def __init__(self, path: Path):
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.num_rows = self.num_bytes = 0
        self.digests: set[bytes] = set()  # of different rows

    def write(self, item: Item) -> None:
        line = json.dumps(item, ensure_ascii=False).encode() + b"\n"
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
    part: Part, source: Source, file: SetFile, seed: int, limit: int | None, is_long: Callable[[Item], bool] | None
) -> dict[str, Any]:
    """Write the rows of one part; returns what the manifest says of it."""
    drops: Counter[str] = Counter()
    wrong_letters = _wrong_letters(part, source.num_records, seed)
    num_chosen = num_wrong = 0
    num_before = file.num_rows
    with Progress(part.name, source.num_records, "records") as progress:
        for index, record in _chosen(part, source, seed, limit):
            num_chosen += 1
            try:
                item = _item(part, record)
                if index in wrong_letters:
                    item["response"] = _others(item["response"])[wrong_letters[index]]
                    num_wrong += 1
                if is_long is not None and is_long(item):
                    raise Dropped("too many tokens")
                file.write(item)
            except Dropped as reason:
                drops[str(reason)] += 1
            progress.update(index + 1)
    if file.num_rows == num_before:
        raise ValueError(f"{source.name}: no row is left of part {part.name!r}, dropped: {dict(drops)}")
    return {
        "part": part.name,
        "source": source.name,
        "config": part.config,
        "split": part.split,
        "revision": source.revision,
        "files": {path.name: sha256_of(path) for path in source.files},
        "records": source.num_records,
        "chosen": num_chosen,
        "dropped": dict(sorted(drops.items())),
        "rows": file.num_rows - num_before,
        "wrong_answers": num_wrong,
    }


def _item(part: Part, record: Record) -> Item:
    try:
        return part.row(record.fields)
    except MissingField as missing:
        fields = "none: it is no object"
        if isinstance(record.fields, Mapping):
            fields = ", ".join(map(repr, record.fields)) or "none"
        raise ValueError(f"{record.where}: has no field '{missing}'; its fields are {fields}") from None


def _others(letter: str) -> list[str]:
    return [other for other in LETTERS if other != letter]


def _chosen(part: Part, source: Source, seed: int, limit: int | None) -> Iterator[tuple[int, Record]]:
    """The records of a part, each with its index, in the order of their source. Of more than `num_sampled` it takes
    those that `datasets.Dataset.shuffle(seed).select(range(num_sampled))` takes."""
    keep = None
    if part.num_sampled is not None and source.num_records > part.num_sampled:
        import numpy as np

        keep = np.zeros(source.num_records, dtype=bool)
        keep[np.random.default_rng(seed).permutation(source.num_records)[: part.num_sampled]] = True
    num_left = source.num_records if limit is None else limit
    for index, record in enumerate(source.read()):
        if keep is None or keep[index]:
            yield index, record
            num_left -= 1
            if not num_left:
                return


def _wrong_letters(part: Part, num_records: int, seed: int) -> dict[int, int]:
    """Record -> which of the three wrong letters. The records are those of the paper's code for the same seed; the
    letters are not, which it draws from a set of strings: their order differs from one run to the next."""
    rng = random.Random(seed)
    indices = rng.sample(range(num_records), int(num_records * part.noise))
    return {index: rng.randrange(len(LETTERS) - 1) for index in sorted(indices)}


def _length_check(names: Sequence[str], max_tokens: int) -> Callable[[Item], bool]:
    """Whether `train` would cut a row at `max_tokens` under any of the tokenizers."""
    from transformers import AutoTokenizer

    from nemo_probsft.data.rows import parse_row
    from nemo_probsft.data.tokens import token_ids

    tokenizers = []
    for name in names:
        try:
            tokenizers.append(AutoTokenizer.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise ValueError(f"tokenizer {name}: could not be loaded ({first_line(error)}); give a directory") from None

    def is_long(item: Item) -> bool:
        parsed = parse_row(item, "row")
        return any(len(token_ids(tokenizer, parsed)[0]) > max_tokens for tokenizer in tokenizers)

    return is_long
