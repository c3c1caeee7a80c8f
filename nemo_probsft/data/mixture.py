"""A training set of several files: each as often as its weight says, the same rows at every seed and on every machine.

The examples of a file stay together and in its order; `order` shuffles them when they are trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_probsft.data import order, rows, tokens
from nemo_probsft.data.tokens import DataSummary, FileCounts, TokenizedDataset
from nemo_probsft.files import sha256_of

SEED = 0  # of what is drawn for a weight that is no whole number: not the run's, whose seeds are to train on one set


class Source(NamedTuple):
    """A file or data set of `rows.read_rows`. weight: 0.5 takes half of its examples, 2 takes each of them twice."""

    path: str
    split: str = "train"
    weight: float = 1.0
    max_rows: int | None = None  # from its beginning


def tokenized(sources: Sequence[Source], tokenizer: Any, cache_dir: Path, **settings: Any) -> Path:
    """As `tokens.tokenized`, of several sources; settings: those of `tokens.of_source` but split and max_rows."""
    parts = [(source, _settings(source, settings)) for source in sources]
    if _is_one(sources):
        return tokens.tokenized(sources[0].path, tokenizer, cache_dir, **parts[0][1])
    names = [[tokens.cache_name(source.path, tokenizer, **own), source.weight] for source, own in parts]
    directory = cache_dir / hashlib.sha256(json.dumps(names).encode()).hexdigest()
    if not directory.exists():
        in_memory(sources, tokenizer, **settings).save(directory)
    return directory


def in_memory(sources: Sequence[Source], tokenizer: Any, **settings: Any) -> TokenizedDataset:
    """The examples of all sources, one after the other."""
    sets = [tokens.of_source(source.path, tokenizer, **_settings(source, settings)) for source in sources]
    if _is_one(sources):
        return sets[0]
    chosen = [drawn(len(found), source.weight) for found, source in zip(sets, sources, strict=True)]
    return _joined(sets, chosen, [source.path for source in sources])


def drawn(num_examples: int, weight: float) -> np.ndarray:
    """[n] int64, ascending: each example as often as the whole part of `weight`, and a share of them once more."""
    often, rest = divmod(weight, 1)
    once_more = order.epoch_order(num_examples, SEED, 0)[: round(rest * num_examples)]
    return np.sort(np.concatenate([np.repeat(np.arange(num_examples), int(often)), once_more]))


def identity(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """For run.yaml: the sha256 of each source, and of the manifest that `data prepare` wrote beside it."""
    found = []
    for source in sources:
        manifest = Path(source.path).parent / "manifest.json"
        entry = {"path": source.path, "sha256": rows.source_digest(source.path, source.split)}
        if Path(source.path).is_file() and manifest.is_file():
            entry["manifest_sha256"] = sha256_of(manifest)
        found.append(entry)
    return found


def _is_one(sources: Sequence[Source]) -> bool:
    return len(sources) == 1 and sources[0].weight == 1


def _settings(source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"split": source.split, "max_rows": source.max_rows}


def _joined(sets: Sequence[TokenizedDataset], chosen: Sequence[np.ndarray], names: Sequence[str]) -> TokenizedDataset:
    if not any(map(len, chosen)):
        raise ValueError(f"no example of {', '.join(names)} is left: raise a weight")
    examples = [found[i] for found, indices in zip(sets, chosen, strict=True) for i in indices]
    lengths = [len(example.input_ids) for example in examples]
    pairs = list(zip(sets, chosen, strict=True))
    counts = [found.num_targets()[indices].sum() for found, indices in pairs]
    files = [
        FileCounts(name, len(found), len(indices), int(count))
        for name, (found, indices), count in zip(names, pairs, counts, strict=True)
    ]
    summary = DataSummary(
        num_examples=len(examples),
        num_tokens=sum(lengths),
        num_target_tokens=int(sum(counts)),
        num_truncated=sum(found.summary.num_truncated for found in sets),
        num_skipped=sum(found.summary.num_skipped for found in sets),
        longest=max(lengths),
        notes=tuple(note for found in sets for note in found.summary.notes),
        files=tuple(files),
    )
    return TokenizedDataset(
        input_ids=np.concatenate([example.input_ids for example in examples]),
        loss_mask=np.concatenate([example.loss_mask for example in examples]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        rows=np.concatenate([found.rows[indices] for found, indices in pairs]),
        summary=summary,
    )
