"""Rows to a tokenized data set. Tokenizing is done once, in the parent process; the ranks map the saved arrays.

Which ids a row has, and which of them the loss covers, says `spans`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_probsft.data import fidelity, records, rows, spans, templates, turns
from nemo_probsft.data.rows import Row
from nemo_probsft.data.spans import prompt_ids as prompt_ids
from nemo_probsft.data.spans import token_ids as token_ids
from nemo_probsft.progress import Progress

LONG_PROMPTS = ("error", "skip")
CODE = (fidelity, records, rows, spans, templates, turns)  # what decides the ids of a row, and is said of it
TOKENS = ("input_ids", "loss_mask", "offsets")  # what is trained on


class Example(NamedTuple):
    """One tokenized row of L tokens. loss_mask[t] is 1 where token t + 1 is a target, so its last entry is 0."""

    input_ids: np.ndarray  # [L] int32
    loss_mask: np.ndarray  # [L] uint8


class Note(NamedTuple):
    """What is not as rows have it: how many they are, and where the first of them is."""

    text: str
    num_rows: int
    first: str


class FileCounts(NamedTuple):
    """What a data set of several files has of one: examples of the file, and how many of the data set come from it."""

    name: str
    num_in_file: int
    num_examples: int
    num_target_tokens: int


@dataclass(frozen=True)
class DataSummary:
    """Counts of a tokenized data set; `num_tokens` and `longest` count prompts, answers and end tokens."""

    num_examples: int
    num_tokens: int
    num_target_tokens: int
    num_truncated: int
    num_skipped: int
    longest: int
    notes: tuple[Note, ...] = ()
    files: tuple[FileCounts, ...] = ()  # in the order of the examples; () where there is one

    @classmethod
    def load(cls, path: Path) -> DataSummary:
        content = json.loads(path.read_text(encoding="utf-8"))
        notes = tuple(Note(*note) for note in content.pop("notes", ()))
        files = tuple(FileCounts(*file) for file in content.pop("files", ()))
        return cls(**content, notes=notes, files=files)


@dataclass(frozen=True)
class TokenizedDataset:
    """All examples in flat arrays; example i is `[offsets[i]:offsets[i + 1]]`. Indexing gives views, not copies."""

    input_ids: np.ndarray  # [num_tokens] int32
    loss_mask: np.ndarray  # [num_tokens] uint8
    offsets: np.ndarray  # [num_examples + 1] int64
    rows: np.ndarray  # [num_examples] int64: the line of a .jsonl file, the row of another source; see rows.Row
    summary: DataSummary

    def __len__(self) -> int:
        return self.summary.num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        span = slice(self.offsets[index], self.offsets[index + 1])
        return Example(self.input_ids[span], self.loss_mask[span])

    def positions(self) -> np.ndarray:
        """[num_examples] int64: positions that each example takes in a row; its last token is a label only."""
        return np.diff(self.offsets) - 1

    def place(self, index: int) -> int | str:
        """The row that an example is, with its file where there are several."""
        row = int(self.rows[index])
        if not self.summary.files:
            return row
        ends = np.cumsum([file.num_examples for file in self.summary.files])
        return f"{self.summary.files[np.searchsorted(ends, index, side='right')].name} {row}"

    def files(self) -> np.ndarray:
        """[num_examples] int64: which of its files each example comes from, from 0."""
        counts = [file.num_examples for file in self.summary.files] or [len(self)]
        return np.repeat(np.arange(len(counts)), counts)

    def num_targets(self) -> np.ndarray:
        """[num_examples] int64: tokens of each example that the loss covers."""
        return np.add.reduceat(self.loss_mask, self.offsets[:-1], dtype=np.int64)

    def save(self, directory: Path) -> None:
        """Write to a new directory, whole or not at all; an equal data set that is there already stays."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            for name in (*TOKENS, "rows"):
                np.save(partial / f"{name}.npy", getattr(self, name), allow_pickle=False)
            (partial / "summary.json").write_text(json.dumps(asdict(self.summary)), encoding="utf-8")
            if not directory.exists():
                os.replace(partial, directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, directory: Path) -> TokenizedDataset:
        """Map a saved data set into memory; processes on one machine share the pages."""
        arrays = map_arrays(directory, (*TOKENS, "rows"))
        return cls(**arrays, summary=DataSummary.load(directory / "summary.json"))


def map_arrays(directory: Path, names: Iterable[str] = TOKENS) -> dict[str, np.ndarray]:
    """Arrays of a saved data set, mapped into memory."""
    return {name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}


def tokenized(source: str | Path, tokenizer: Any, cache_dir: Path, **settings: Any) -> Path:
    """Tokenize `source` into a directory under `cache_dir`, unless it is there; `TokenizedDataset.load` reads it.

    settings: those of `of_source`. The directory's name is that of `cache_name`.
    """
    directory = cache_dir / cache_name(source, tokenizer, **settings)
    if not directory.exists():
        of_source(source, tokenizer, **settings).save(directory)
    return directory


def cache_name(source: str | Path, tokenizer: Any, *, split: str = "train", **settings: Any) -> str:
    """A hash of the source's content, the tokenizer's files, the settings and the code that decides."""
    content = [rows.source_digest(source, split), tokenizer_digest(tokenizer), split, settings]
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for file in (__file__, *(str(module.__file__) for module in CODE)):
        sha.update(Path(file).read_bytes())
    return sha.hexdigest()


def of_source(
    source: str | Path,
    tokenizer: Any,
    *,
    max_length: int,
    split: str = "train",
    prompt_key: str = "prompt",
    response_key: str = "response",
    long_prompts: str = "error",
    supervise: str = "answers",
    max_rows: int | None = None,
) -> TokenizedDataset:
    """The rows of a file or data set, see `rows.read_rows`, tokenized in memory, see `tokenize`."""
    found = rows.read_rows(source, split, prompt_key=prompt_key, response_key=response_key, max_rows=max_rows)
    total = rows.num_lines(source)
    with Progress(f"tokenize {source}", total and min(total, max_rows or total), "rows", after=2.0) as progress:
        return tokenize(
            progress.each(found), tokenizer, max_length=max_length, long_prompts=long_prompts, supervise=supervise
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 over the names and bytes of the files that the tokenizer saves, its chat template among them."""
    from transformers import __version__

    sha = hashlib.sha256(__version__.encode())
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        for path in sorted(Path(directory).rglob("*")):
            if path.is_file():
                sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer has no end token, or ids beyond the model's vocabulary of `vocab_size`."""
    name = tokenizer.name_or_path or "the tokenizer"
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name}: has no end token (eos_token): the model would never learn to stop; set one")
    num_ids = max(tokenizer.get_vocab().values()) + 1
    if num_ids > vocab_size:
        raise ValueError(
            f"{name}: has {num_ids} token ids but the model's vocabulary has {vocab_size}: "
            "take the model's own tokenizer, or resize the model's embeddings"
        )


def check_ids(dataset: TokenizedDataset, vocab_size: int) -> None:
    """Raise ValueError if an id, and so a label, lies outside of [0, vocab_size). Cost: one pass over the ids.

    It is checked here because on CUDA the loss cannot look without a synchronisation: there such a label gives NaN.
    """
    outside = (dataset.input_ids < 0) | (dataset.input_ids >= vocab_size)
    if outside.any():
        position = int(outside.argmax())
        example = int(np.searchsorted(dataset.offsets, position, side="right")) - 1
        raise ValueError(
            f"example {example} holds the token id {dataset.input_ids[position]}, outside of the model's vocabulary of "
            f"{vocab_size}: remove the directory data of the run, and check the tokenizer"
        )


def padding_id(tokenizer: Any) -> int:
    """The id that fills a batch up: any valid one will do, since no loss covers it."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def tokenize(
    found: Iterable[Row], tokenizer: Any, *, max_length: int, long_prompts: str = "error", supervise: str = "answers"
) -> TokenizedDataset:
    """Tokenize rows, cut on the right to `max_length` tokens; supervise: see `spans.SUPERVISE`.

    A row whose first prompt leaves no room for an answer is an error or skipped, as `long_prompts` says.
    """
    if long_prompts not in LONG_PROMPTS:
        raise ValueError(f"long_prompts is {long_prompts!r}: must be one of {', '.join(LONG_PROMPTS)}")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: must be at least 2, for a prompt and an answer")
    input_ids, loss_mask, lengths, numbers = array("i"), array("B"), array("q"), array("q")
    notes: dict[str, Note] = {}
    num_truncated = num_skipped = 0
    for row in found:
        ids, is_target, said = spans.tokens_of(tokenizer, row, supervise)
        if room_error := prompt_problem(row, is_target, max_length):
            if long_prompts == "error":
                raise ValueError(room_error)
            num_skipped += 1
            continue
        count(notes, said, row.where)
        num_truncated += len(ids) > max_length
        ids, is_target = ids[:max_length], is_target[:max_length]
        input_ids.extend(ids)
        loss_mask.extend([*is_target[1:], 0])
        lengths.append(len(ids))
        numbers.append(row.number)
    if not lengths:
        raise ValueError(f"every one of the {num_skipped} prompts fills max_length {max_length}: raise max_length")
    mask = np.frombuffer(loss_mask, dtype=np.uint8)
    summary = DataSummary(
        num_examples=len(lengths),
        num_tokens=len(input_ids),
        num_target_tokens=int(mask.sum(dtype=np.int64)),
        num_truncated=num_truncated,
        num_skipped=num_skipped,
        longest=max(lengths),
        notes=tuple(notes.values()),
    )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    rows_of = np.frombuffer(numbers, dtype=np.int64)
    return TokenizedDataset(np.frombuffer(input_ids, dtype=np.int32), mask, offsets, rows_of, summary)


def prompt_problem(row: Row, is_target: Sequence[int], max_length: int) -> str | None:
    """Why a row has no target among its first `max_length` tokens; None where it has one."""
    num_prompt = is_target.index(1)
    if num_prompt < max_length:
        return None
    return (
        f"{row.where}: its prompt of {num_prompt} tokens fills max_length {max_length}: "
        "raise max_length, or set long_prompts to skip"
    )


def said(notes: Iterable[Note]) -> list[tuple[str, str]]:
    """(how many rows, what of them): a line for each kind of note, and one for all fields of a kind."""
    kinds: dict[str, list[Note]] = {}
    for note in notes:
        kinds.setdefault(note.text.partition(": ")[0] if note.text.endswith("'") else note.text, []).append(note)
    lines = []
    for kind, group in kinds.items():
        if len(group) == 1:
            lines.append((f"{group[0].num_rows} (first: {group[0].first})", group[0].text))
        else:  # fields, each with its name at the end
            names = ", ".join(f"{note.text.rpartition(': ')[2]} ({note.num_rows})" for note in group)
            lines.append(
                (f"up to {max(note.num_rows for note in group)} (first: {group[0].first})", f"{kind}: {names}")
            )
    return lines


def count(notes: dict[str, Note], said: Iterable[str], where: str) -> None:
    """Add what is said of one row."""
    for text in dict.fromkeys(said):
        before = notes.get(text, Note(text, 0, where))
        notes[text] = before._replace(num_rows=before.num_rows + 1)


def preview(dataset: TokenizedDataset, tokenizer: Any, index: int = 0, max_chars: int = 400) -> str:
    """Text of one example with its targets in [[double brackets]]; long spans show their beginning and end."""
    ids, mask = dataset[index]
    is_target = np.concatenate([[0], mask[:-1]])
    spans = np.split(ids, np.flatnonzero(np.diff(is_target)) + 1)
    text = ""
    for i, span in enumerate(spans):
        part = tokenizer.decode(span.tolist())
        if len(part) > max_chars:
            part = f"{part[: max_chars // 2]} ... {part[-max_chars // 2 :]}"
        text += f"[[{part}]]" if i % 2 else part
    return f"example {index}: {len(ids)} tokens, {int(mask.sum())} targets in [[ ]]\n{text}"
