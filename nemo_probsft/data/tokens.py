"""Rows to tokens: which ids the model sees, and which of them the loss covers.

With a chat template the loss covers every assistant turn with its end token; without one a row is prompt + response +
end token, and no BOS that the tokenizer would not add by itself. Training and evaluation take the ids of a prompt from
the same code (`prompt_ids`). Tokenizing is done once, in the parent process; the ranks map the saved arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_probsft.data import records
from nemo_probsft.data import rows as rows_module
from nemo_probsft.data.bounded import bounded
from nemo_probsft.data.rows import Row, read_rows, source_digest
from nemo_probsft.files import first_line

LONG_PROMPTS = ("error", "skip")
# A template is a program that comes with a model or a recipe.
TEMPLATE_SECONDS = 10.0
TEMPLATE_BYTES = 1 << 31
MAX_CHARACTERS = 1 << 26  # of a rendered row
TOKENS = ("input_ids", "loss_mask", "offsets")  # what is trained on


class Example(NamedTuple):
    """One tokenized row of L tokens. loss_mask[t] is 1 where token t + 1 is a target, so its last entry is 0."""

    input_ids: np.ndarray  # [L] int32
    loss_mask: np.ndarray  # [L] uint8


@dataclass(frozen=True)
class DataSummary:
    """Counts of a tokenized data set; `num_tokens` and `longest` count prompts, answers and end tokens."""

    num_examples: int
    num_tokens: int
    num_target_tokens: int
    num_truncated: int
    num_skipped: int
    longest: int


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
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        return cls(**arrays, summary=DataSummary(**summary))


def map_arrays(directory: Path, names: Iterable[str] = TOKENS) -> dict[str, np.ndarray]:
    """Arrays of a saved data set, mapped into memory."""
    return {name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}


def tokenized(
    source: str | Path,
    tokenizer: Any,
    cache_dir: Path,
    *,
    max_length: int,
    split: str = "train",
    prompt_key: str = "prompt",
    response_key: str = "response",
    long_prompts: str = "error",
) -> Path:
    """Tokenize `source` into a directory under `cache_dir`, unless it is there; `TokenizedDataset.load` reads it.

    The directory's name is a hash of the source's content, the tokenizer's files, the settings and this code.
    """
    settings = [split, prompt_key, response_key, max_length, long_prompts]
    sha = hashlib.sha256(json.dumps([source_digest(source, split), tokenizer_digest(tokenizer), settings]).encode())
    for code in (__file__, rows_module.__file__, records.__file__):
        sha.update(Path(code).read_bytes())
    directory = cache_dir / sha.hexdigest()
    if not directory.exists():
        rows = read_rows(source, split, prompt_key=prompt_key, response_key=response_key)
        tokenize(rows, tokenizer, max_length=max_length, long_prompts=long_prompts).save(directory)
    return directory


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


def tokenize(rows: Iterable[Row], tokenizer: Any, *, max_length: int, long_prompts: str = "error") -> TokenizedDataset:
    """Tokenize rows, cut on the right to `max_length` tokens.

    A row whose first prompt leaves no room for an answer is an error or skipped, as `long_prompts` says.
    """
    if long_prompts not in LONG_PROMPTS:
        raise ValueError(f"long_prompts is {long_prompts!r}: must be one of {', '.join(LONG_PROMPTS)}")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: must be at least 2, for a prompt and an answer")
    input_ids, loss_mask, lengths, numbers = array("i"), array("B"), array("q"), array("q")
    num_truncated = num_skipped = 0
    for row in rows:
        ids, is_target = token_ids(tokenizer, row)
        num_prompt = is_target.index(1)
        if num_prompt >= max_length:
            if long_prompts == "error":
                raise ValueError(
                    f"{row.where}: its prompt of {num_prompt} tokens fills max_length {max_length}: "
                    "raise max_length, or set long_prompts to skip"
                )
            num_skipped += 1
            continue
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
    )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    rows_of = np.frombuffer(numbers, dtype=np.int64)
    return TokenizedDataset(np.frombuffer(input_ids, dtype=np.int32), mask, offsets, rows_of, summary)


def token_ids(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    """Ids of a row and, aligned with them, 1 for each token of an answer or its end token."""
    ids: list[int] = []
    is_target: list[int] = []
    for new_ids, is_answer in _spans(tokenizer, row.messages, row.where):
        if is_answer and len(new_ids) < 2:
            raise ValueError(f"{row.where}: an answer has no token but its end token: drop the row")
        if not ids and not new_ids:
            raise ValueError(f"{row.where}: its prompt has no tokens: the first answer token needs one before it")
        ids += new_ids
        is_target += [int(is_answer)] * len(new_ids)
    return ids, is_target


def prompt_ids(tokenizer: Any, row: Row | Mapping[str, Any]) -> list[int]:
    """Ids that come before the last answer, which need not be there: what the model is given at evaluation.

    Equal to the start of the row's ids in training. `row` may be `{"prompt": ...}` or `{"messages": [...]}`.
    """
    if isinstance(row, Row):
        messages = row.messages
    else:
        messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    where = row.where if isinstance(row, Row) else "prompt"
    return [token for ids, _ in _spans(tokenizer, messages, where) for token in ids]


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


def _spans(tokenizer: Any, messages: list[dict[str, str]], where: str) -> Iterator[tuple[list[int], bool]]:
    """Token ids in order, prompts and answers (True) in turn; an answer comes with its end token."""
    if tokenizer.chat_template is None:
        yield from _plain_spans(tokenizer, messages, where)
        return
    text, ids = "", list[int]()
    for new_text, is_answer in _rendered_spans(tokenizer, messages, where):
        # Tokenized as one text where that keeps the ids of the prompt, which is what the model is given at evaluation.
        # Where a token would span the border, the two sides are tokenized apart.
        all_ids = _encode(tokenizer, text + new_text)
        new_ids = all_ids[len(ids) :] if all_ids[: len(ids)] == ids else _encode(tokenizer, new_text)
        yield new_ids, is_answer
        text, ids = text + new_text, ids + new_ids


def _plain_spans(tokenizer: Any, messages: list[dict[str, str]], where: str) -> Iterator[tuple[list[int], bool]]:
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(
            f"{where}: has turns {', '.join(roles)}, but the tokenizer has no chat template: "
            "give prompt and response, or a tokenizer with one"
        )
    prompt = messages[0]["content"]
    ids = tokenizer(prompt)["input_ids"]
    if ids[-1:] == [tokenizer.eos_token_id] and _encode(tokenizer, prompt) != ids:
        raise ValueError(
            f"{where}: the tokenizer ends prompts with {tokenizer.eos_token!r}: turn its add_eos_token off"
        )
    yield ids, False
    if len(messages) == 2:
        yield [*_encode(tokenizer, messages[1]["content"]), tokenizer.eos_token_id], True


def _rendered_spans(tokenizer: Any, messages: list[dict[str, str]], where: str) -> Iterator[tuple[str, bool]]:
    """What the template writes for the turns up to each answer, and for the answer itself.

    Rendering a longer conversation must only add text, or an answer would be trained after another text than it follows
    in use; templates that rewrite earlier turns (Qwen3 drops their reasoning) are refused.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    done = ""
    for i in answers if messages[-1]["role"] == "assistant" else [*answers, len(messages)]:
        prompt = _render(tokenizer, messages[:i], where, add_generation_prompt=True)
        _check_prefix(done, prompt, f"messages[{i - 1}]", where)
        yield prompt[len(done) :], False
        if i < len(messages):
            rendered = _render(tokenizer, messages[: i + 1], where, add_generation_prompt=False)
            _check_prefix(prompt, rendered, f"messages[{i}]", where)
            answer = _up_to_end_token(tokenizer, rendered[len(prompt) :], where)
            yield answer, True
            done = prompt + answer


def _render(tokenizer: Any, messages: list[dict[str, str]], where: str, *, add_generation_prompt: bool) -> str:
    try:
        with bounded(TEMPLATE_SECONDS, TEMPLATE_BYTES):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is the user's program, which raises what it likes
        reason = f"{type(error).__name__} ({first_line(error)})"
        raise ValueError(f"{where}: the chat template raised {reason}: mend row or template") from error
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: the chat template wrote {len(text)} characters: mend row or template")
    return text


def _check_prefix(shorter: str, longer: str, turn: str, where: str) -> None:
    if longer.startswith(shorter):
        return
    same = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    raise ValueError(
        f"{where}: the chat template rewrites earlier text when it adds {turn}: {shorter[same : same + 20]!r} becomes "
        f"{longer[same : same + 20]!r}; split the row into single turns, or use a template that only adds text"
    )


def _up_to_end_token(tokenizer: Any, answer: str, where: str) -> str:
    """The answer without the white space that templates put after its end token."""
    answer = answer.rstrip()
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not answer.endswith(tuple(special | {tokenizer.eos_token})):
        raise ValueError(
            f"{where}: the chat template ends an answer with {answer[-20:]!r}, no special token of the tokenizer: "
            "the model would never learn to stop; use a template that ends answers with one"
        )
    return answer


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
