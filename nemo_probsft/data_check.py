"""`nemo-probsft data check RECIPE`: what training would be given, row by row. Nothing is started or written."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_probsft import config
from nemo_probsft.command_line import add_recipe
from nemo_probsft.config import Recipe
from nemo_probsft.progress import Progress
from nemo_probsft.run import decisions, prepare
from nemo_probsft.run.decisions import Decision

SHOWN = 10  # places of a kind; refusals are all shown
MOST_BINS, BAR = 16, 50
PERCENTILES = (50, 90, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tokenize the training data of a recipe and say what training would be given: lengths, what is cut, every row\n"
        "that would be refused, duplicates. Exit code 1 if a row would be refused. Nothing is started or written."
    )
    add_recipe(parser)
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="look for the items of the evaluation sets in DIR among the rows"
    )


@dataclass
class Found:
    """What was seen of the rows; places are file and line."""

    num_trained: list[int] = field(default_factory=list)  # of each source
    refusals: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # tokens of each row that trains, before it is cut
    targets: list[int] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    seen: dict[bytes, str] = field(default_factory=dict)  # digest of a row, and of a prompt -> the first place
    duplicates: list[str] = field(default_factory=list)
    other_answers: list[str] = field(default_factory=list)
    example: Any = None

    def refuse(self, error: ValueError) -> None:
        self.refusals.append(str(error))


def run(options: argparse.Namespace) -> int:
    recipe = config.load(options.recipe, options.overrides, own_objective=False)
    from nemo_probsft.data.overlap import Overlap

    overlap = Overlap(options.data_dir) if options.data_dir else None
    tokenizer = _tokenizer(recipe)
    found = check(recipe, tokenizer, overlap)
    for line in found.refusals:
        print(f"refused: {line}")
    decisions.show(_summary(recipe, tokenizer, found), title="Training data")
    if found.lengths:
        headings, lines = _histogram(found.lengths, recipe.data.max_length)
        decisions.table("Tokens of a row, prompt and answers", headings, lines)
    if overlap:
        headings, lines = _overlaps(overlap)
        decisions.table(f"Items of {options.data_dir} among the rows", headings, lines)
    return int(bool(found.refusals))


def check(recipe: Recipe, tokenizer: Any, overlap: Any = None) -> Found:
    """Every row of every source, past those that `train` would refuse."""
    from nemo_probsft.data import rows

    found = Found()
    for source in prepare.sources(recipe):
        every = rows.read_rows(
            source.path,
            source.split,
            prompt_key=recipe.data.prompt_key,
            response_key=recipe.data.response_key,
            max_rows=source.max_rows,
            refused=found.refuse,
        )
        with Progress(f"check {source.path}", rows.num_lines(source.path), "rows", after=2.0) as progress:
            for row in progress.each(every):
                _check_row(recipe, tokenizer, row, found)
                if overlap is not None:
                    texts = [str(turn.get("content") or "") for turn in row.messages]
                    asked = [turn["content"] for turn in row.messages if turn["role"] == "user"]
                    overlap.add(asked, "\n".join(texts), row.where)
        found.num_trained.append(len(found.lengths) - sum(found.num_trained))
    return found


def _check_row(recipe: Recipe, tokenizer: Any, row: Any, found: Found) -> None:
    from nemo_probsft.data import spans, tokens

    try:
        ids, is_target, said = spans.tokens_of(tokenizer, row, recipe.data.supervise)
    except ValueError as error:
        found.refuse(error)
        return
    if problem := tokens.prompt_problem(row, is_target, recipe.data.max_length):
        if recipe.data.long_prompts == "error":
            found.refusals.append(problem)
        else:
            found.skipped.append(f"{row.where} ({is_target.index(1)} tokens)")
        return
    tokens.count(found.notes, said, row.where)
    found.lengths.append(len(ids))
    found.targets.append(sum(is_target[: recipe.data.max_length]))
    if len(ids) > recipe.data.max_length:
        found.cut.append(f"{row.where} ({len(ids)} tokens)")
    found.example = found.example or row
    whole, prompt = (_digest([turns, row.tools]) for turns in (row.messages, row.messages[:-1]))
    if whole in found.seen:
        found.duplicates.append(f"{row.where} = {found.seen[whole]}")
    elif prompt in found.seen:
        found.other_answers.append(f"{row.where}, {found.seen[prompt]}")
    for digest in (whole, prompt):
        found.seen.setdefault(digest, row.where)


def _digest(content: Any) -> bytes:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def _tokenizer(recipe: Recipe) -> Any:
    """Of a directory of any kind, or of a hub name, whose weights are not downloaded."""
    path = Path(recipe.model.path)
    files = prepare.hugging_face_files(path) if path.is_dir() else prepare.downloaded(recipe, prepare.TEXTS)
    return prepare.load_tokenizer(recipe, files)


def _summary(recipe: Recipe, tokenizer: Any, found: Found) -> list[Decision]:
    from nemo_probsft.data import mixture, tokens

    data = recipe.data
    sources = list(zip(prepare.sources(recipe), found.num_trained, strict=True))
    drawn = [len(mixture.drawn(num_trained, source.weight)) for source, num_trained in sources]
    num_rows = len(found.lengths) + len(found.refusals) + len(found.skipped)
    steps = sum(drawn) // data.global_batch_size
    lines = [
        Decision("rows", f"{num_rows:,}", f"{len(found.lengths):,} of them can be trained on"),
        *(
            Decision(source.path, f"{number:,} examples", f"weight {source.weight:g} x {num_trained:,} rows")
            for number, (source, num_trained) in zip(drawn, sources, strict=True)
        ),
        Decision(
            "steps", f"{steps:,} an epoch", f"{sum(drawn):,} examples, data.global_batch_size {data.global_batch_size}"
        ),
        Decision("refused", f"{len(found.refusals):,}", "`train` stops at the first; all of them stand above"),
    ]
    if found.lengths:
        lines += [
            Decision("tokens", f"{sum(found.lengths):,}", _percentiles(found.lengths)),
            Decision("targets", f"{sum(found.targets):,}", _percentiles(found.targets)),
        ]
    kinds = {
        "cut": (found.cut, f"longer than data.max_length {data.max_length}, answers lose their end"),
        "skipped": (found.skipped, "a prompt that leaves no room for an answer; data.long_prompts is skip"),
        "duplicates": (found.duplicates, "equal to an earlier row"),
        "other answers": (found.other_answers, "the prompt of an earlier row with another answer"),
    }
    for name, (places, reason) in kinds.items():
        more = "" if len(places) <= SHOWN else ", ..."
        shown = f": {'; '.join(places[:SHOWN])}{more}" if places else ""
        lines.append(Decision(name, f"{len(places):,}", reason + shown))
    lines += [Decision("rows", value, reason) for value, reason in tokens.said(found.notes.values())]
    if found.example is not None:
        example = tokens.tokenize([found.example], tokenizer, max_length=data.max_length, supervise=data.supervise)
        lines.append(Decision("example", tokens.preview(example, tokenizer), "the loss covers what stands in [[ ]]"))
    return lines


def _percentiles(values: Sequence[int]) -> str:
    """By the nearest rank."""
    ordered = sorted(values)
    ranks = {q: ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in PERCENTILES}
    most = ", ".join(f"{value:,} in {q} %" for q, value in ranks.items())
    return f"of a row at least {ordered[0]:,}, at most {most}, {ordered[-1]:,} in all"


def _histogram(lengths: Sequence[int], max_length: int) -> tuple[Sequence[str], list[list[str]]]:
    """Rows by their length, in bins of a round width."""
    width = next(width for width in _round_widths() if max(lengths) / width < MOST_BINS)
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    lines = []
    for i, count in enumerate(counts):
        bar = "\u2588" * math.ceil(BAR * count / max(counts))
        cut = "cut" if (i + 1) * width - 1 > max_length else ""
        lines.append([f"{i * width:,} to {(i + 1) * width - 1:,}", f"{count:,}", bar, cut])
    return ("tokens", "rows", "", ""), lines


def _round_widths() -> Iterator[int]:
    return (digit * 10**power for power in range(10) for digit in (1, 2, 5))


def _overlaps(overlap: Any) -> tuple[Sequence[str], list[list[str]]]:
    lines = []
    for found in overlap.sets:
        partial = {item: place for item, place in found.partial.items() if item not in found.exact}
        first = [f"item {item} = {where}" for item, where in list(found.exact.items())[:SHOWN]]
        first += [f"item {i} ~ {where} ({share:.0%})" for i, (share, where) in list(partial.items())[:SHOWN]]
        lines.append(
            [found.name, *(f"{n:,}" for n in (found.num_items, len(found.exact), len(partial))), "; ".join(first)]
        )
    return ("set", "items", "exact", "half of the 8-grams", "the first of them"), lines
