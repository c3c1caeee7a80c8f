"""The training sets of the paper's seven domains: where each comes from, and how a published record becomes a row.

`DOMAINS` is the table; `schemas` maps records to rows, `sources` finds them, `figfont` generates the puzzles, `write`
writes the set. Like the paper's, no set is deduplicated or decontaminated here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nemo_probsft.data.domains import figfont, schemas

SEED = 42


@dataclass(frozen=True)
class Part:
    """One source of a set, and what becomes of its records."""

    name: str  # of its file or folder in a local copy
    row: Callable[[Mapping[str, Any]], dict[str, Any]]  # raises schemas.Dropped
    hub: str = ""  # data set on the hub
    config: str | None = None
    split: str = "train"
    puzzles: range | None = None  # generated, instead of a hub data set
    num_sampled: int | None = None  # records drawn at random where there are more, as datasets' shuffle and select do
    noise: float = 0.0  # part of the answers that another letter replaces
    file: str = "train.jsonl"


@dataclass(frozen=True)
class Domain:
    parts: tuple[Part, ...]
    steps: int | None = None  # of 256 rows in the paper's epoch
    max_tokens: int | None = None  # longer rows are dropped, by each of the tokenizers
    tokenizers: tuple[str, ...] = ()


OPENBOOKQA = partial(Part, row=schemas.openbookqa, hub="allenai/openbookqa", config="additional")
MURI_IT = partial(Part, row=schemas.muri_it, hub="akoksal/muri-it-language-split")

DOMAINS = {
    # The authors' 67.6k of NuminaMath-CoT's 859k rows; how they chose them is not published. From another copy, as many
    # rows as their 264 steps can have seen.
    "math": Domain(
        (Part("train", schemas.numina_math, "gaotang/numina-cot-subset-67k", num_sampled=264 * 256 + 255),), steps=264
    ),
    "medical": Domain((Part("train", schemas.m23k, "UCSC-VLAA/m23k-tokenized"),), steps=91),
    "figfont": Domain(
        (
            Part("train", schemas.figfont, puzzles=figfont.TRAIN),
            Part("test", schemas.figfont_test, split="test", puzzles=figfont.TEST, file="figfont.jsonl"),
        ),
        steps=156,
    ),
    "instruction": Domain(
        (
            Part("magpie", schemas.magpie, "Magpie-Align/Magpie-Pro-300K-Filtered", num_sampled=70_000),
            Part("evol_instruct", schemas.evol_instruct, "WizardLMTeam/WizardLM_evol_instruct_70k"),
        ),
        steps=545,
        max_tokens=2048,
        tokenizers=("Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
    ),
    "coding": Domain((Part("train", schemas.magicoder, "ise-uiuc/Magicoder-OSS-Instruct-75K"),), steps=293),
    "low_resource": Domain(
        tuple(MURI_IT(code, config=code) for code in ("mar", "tel", "nep", "swa", "wol", "yor", "zul")), steps=372
    ),
    "openbookqa": Domain(
        (
            OPENBOOKQA("train"),
            OPENBOOKQA("validation", split="validation"),
            OPENBOOKQA("test", split="test", row=schemas.unchanged, file="openbookqa.jsonl"),
        )
    ),
    "openbookqa_noisy": Domain((OPENBOOKQA("train", noise=0.3), OPENBOOKQA("validation", split="validation"))),
}


def find(name: str) -> Domain:
    """Raises ValueError for an unknown domain, with the nearest one."""
    if name not in DOMAINS:
        close = difflib.get_close_matches(name, DOMAINS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(DOMAINS)}"
        raise ValueError(f"unknown domain {name!r}: {remedy}")
    return DOMAINS[name]
