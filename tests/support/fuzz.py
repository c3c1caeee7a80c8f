"""Mutations of good recipes, data and models, each with a seed of its own: accepted, or refused in one line.

`python -m tests.support.fuzz 10000` is the campaign of docs/bad-input.md; tests/unit/test_fuzz.py runs its first cases.
A case is a pure function of (SEED, kind, number), so a failure is repeated by its number.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import yaml
from pyarrow import parquet
from transformers import AutoTokenizer

from nemo_probsft import config
from nemo_probsft.__main__ import main
from nemo_probsft.config import strictyaml
from nemo_probsft.data import rows, spans
from nemo_probsft.demo_data import write_random_base, write_tokenizer
from nemo_probsft.run import model_files, prepare
from tests.support.fuzz_seeds import GOOD, ROWS, SOUND, TALK, TOOL, TOOL_TEMPLATE
from tests.support.model_directories import huggingface, nemo
from tests.support.mutations import VALUES, misspelt, mutate_text, mutate_tree, mutated_bytes, parent_of, places

SEED = 20261125


class Failure(Exception):
    """A traceback, more than one line, something left behind, or a key without effect."""


def workspace(directory: Path) -> None:
    """What the good recipes name, and some things that are in the way, in an empty working directory."""
    write_tokenizer(directory / "model")
    write_random_base(directory / "model", seed=0)
    os.chdir(directory)
    import conversion

    conversion.import_hf(Path("model"), Path("nemo"))
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("held-out.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    Path("d.json").write_text('{"percentiles": {"10": 0.175, "90": 0.9}, "model": "base", "data": "t"}')
    Path("chatml.jinja").write_text("{% for m in messages %}{{ m.content }}<|endoftext|>\n{% endfor %}")
    Path("empty.jsonl").touch()
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    Path("loop").symlink_to("loop")


def one_line(error: Exception) -> str:
    text = str(error)
    if "\n" in text or "\r" in text or not text.strip():
        raise Failure(f"not one line: {text!r}")
    return text


# Recipes


def change_soundly(tree: dict, rng: random.Random) -> None:
    path, value = rng.choice(SOUND)
    section, _, key = path.rpartition(".")
    (tree.setdefault(section, {}) if section else tree)[key] = copy.deepcopy(value)


def recipe_case(rng: random.Random) -> tuple[bytes, list[str]]:
    tree = copy.deepcopy(rng.choice(GOOD))
    for _ in range(rng.randrange(4)):
        change_soundly(tree, rng)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 3])):
        mutate_tree(tree, rng)
        if not tree:
            break
    write = rng.choice([lambda t: yaml.safe_dump(t, sort_keys=False), json.dumps, strictyaml.dump])
    try:
        text = write(tree)
    except (TypeError, ValueError):  # nothing that a YAML file could say
        text = repr(tree)
    for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
        text = mutate_text(text, rng)
    overrides = []
    for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
        key = ".".join(rng.choice(list(places(rng.choice(GOOD)))))
        value = rng.choice(VALUES)
        shown = value if isinstance(value, str) else json.dumps(value)
        overrides.append(rng.choice([f"{key}={shown}", f"{misspelt(key, rng)}={shown}", f"{key}", f"{key}.x={shown}"]))
    overrides = [text for text in overrides if not text.startswith("-")]  # argparse's own refusal
    return text.encode("utf-8", "surrogatepass"), overrides


def check_recipe(rng: random.Random) -> str:
    content, overrides = recipe_case(rng)
    Path("r.yaml").write_bytes(content)
    try:
        recipe = config.load("r.yaml", overrides)
        dumped = config.dump(recipe)
    except ValueError as error:
        line = one_line(error)
        if not line.startswith(("r.yaml", "override ")):
            raise Failure(f"no place named: {line}") from error
        check_exit(overrides, line)
        return "refused by its keys and values"
    check_effect(content, recipe)
    Path("again.yaml").write_text(strictyaml.dump(dumped), encoding="utf-8")
    if config.dump(config.load("again.yaml")) != dumped:
        raise Failure("dump and load is no fixed point")
    return check_front_half(recipe)


def check_exit(overrides: list[str], expected: str) -> None:
    """The command line says the same in one line, with exit code 2."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(["train", "r.yaml", *overrides])
    found = [line for line in error.getvalue().split("\n") if line]
    if code != 2 or found != [f"nemo-probsft: {expected}"]:
        raise Failure(f"exit code {code}, {found}")


def check_effect(content: bytes, recipe: config.Recipe) -> None:
    """Every key that stands in the file is in the recipe, and everything in the recipe's tree has arrived."""
    given = list(mapping_keys(yaml.compose(content.decode("utf-8-sig"))))
    if len(given) != len(set(given)):
        raise Failure("a key given twice was accepted")
    tree = strictyaml.plain(recipe.tree)
    for path in given:
        value = tree
        for key in path:
            value = value[key] if isinstance(value, dict) and key in value else {}
    for path in places(tree):
        value: Any = recipe
        for key in path:
            value = getattr(value, key)
        wanted = parent_of(tree, path)[path[-1]]
        if not isinstance(wanted, dict) and not arrived(value, wanted):
            raise Failure(f"{'.'.join(path)} is {value!r}, not {wanted!r}")


def arrived(value: Any, wanted: Any) -> bool:
    """Whether a value of the recipe is what its file says; of an entry of a list, the keys that it gives."""
    if isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(arrived, value, wanted))
    if isinstance(wanted, dict):
        return all(arrived(getattr(value, key), inner) for key, inner in wanted.items())
    return value == wanted


def mapping_keys(node: Any, path: tuple = ()) -> Iterator[tuple]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value)
            yield from mapping_keys(value, (*path, key.value))


def check_front_half(recipe: config.Recipe) -> str:
    """What `train` does before any rank starts. Nothing is left behind when it refuses."""
    before = listing()
    try:
        prepare.prepare(recipe)
    except (ValueError, OSError) as error:
        line = one_line(error)
        if listing() != before:
            raise Failure(f"left behind: {sorted(listing() ^ before)[:3]} after {line}") from error
        return "refused by its files"
    for path in sorted((Path(name) for name in listing() - before), reverse=True):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return "ready to train"


def listing() -> set[str]:
    return {str(path) for path in Path().rglob("*")} | {str(path) for path in Path("..").iterdir()}


# Data


def check_data(rng: random.Random) -> str:
    row = copy.deepcopy(rng.choice([*ROWS, {"messages": TALK}, {"messages": TALK[:2], "tools": [TOOL]}]))
    for _ in range(rng.choice([0, 1, 1, 2])):
        mutate_tree(row, rng)
        if not row:
            break
    text = json.dumps(row) + "\n"
    for _ in range(rng.choice([0, 0, 1, 2])):
        text = mutate_text(text, rng)
    content = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]), "surrogatepass")
    Path("mutated.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + content)
    try:
        found = list(rows.read_rows("mutated.jsonl"))
    except ValueError as error:
        if not one_line(error).startswith("mutated.jsonl line "):
            raise Failure(f"no line named: {error}") from error
        return "refused with its line"
    if not all(isinstance(turn.get("content") or "", str) for row in found for turn in row.messages):
        raise Failure("a turn without text")
    return "read"


def check_tokens(rng: random.Random) -> str:
    """A conversation with a mutated turn or tool: its whole text goes to the template, or its row is named."""
    row = {"messages": copy.deepcopy(TALK), "tools": [copy.deepcopy(TOOL)]}
    for _ in range(rng.choice([1, 1, 2])):
        lists = [row[key] for key in ("messages", "tools") if isinstance(row.get(key), list)]
        inner = [part for parts in lists for part in parts if part and isinstance(part, dict)]
        mutate_tree(rng.choice(inner) if inner and rng.random() < 0.8 else row, rng)
    row = {key: value for key, value in row.items() if key in ("messages", "tools")}
    try:
        parsed = rows.parse_row(row, "line 1")
        ids, is_target = spans.token_ids(_chat_tokenizer(), parsed, rng.choice(spans.SUPERVISE))
    except ValueError as error:
        if not one_line(error).startswith("line 1: "):
            raise Failure(f"no line named: {error}") from error
        return "refused with its line"
    if len(ids) != len(is_target) or not any(is_target):
        raise Failure("nothing is supervised")
    return "tokenized"


@functools.cache
def _chat_tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = TOOL_TEMPLATE
    return tokenizer


def check_source(rng: random.Random) -> str:
    """A parquet file or a saved data set with a damaged byte, or with a mutated description."""
    path = rng.choice([Path("rows.parquet"), *sorted(Path("saved").iterdir())])
    with mutated(path, rng):
        source = path if path.suffix == ".parquet" else path.parent
        try:
            list(rows.read_rows(source))
        except ValueError as error:
            if not one_line(error).startswith(str(source)):
                raise Failure(f"no place named: {error}") from error
            return "refused"
    return "read"


# Models


MODEL_FILES = ["hf/config.json", "hf/model.safetensors", "nemo-hf/context/io.json", "nemo-hf/hf/config.json"]
MODEL_FILES += ["nemo-hf/weights/.metadata", "nemo-hf/weights/metadata.json"]


def check_model(rng: random.Random) -> str:
    path = Path(rng.choice(MODEL_FILES))
    with mutated(path, rng):
        try:
            model_files.check_model(config.load("model.yaml", [f"model.path={path.parts[0]}"]))
        except ValueError as error:
            if not one_line(error).startswith(("model.yaml", "override ")):
                raise Failure(f"no place named: {error}") from error
            return "refused"
    return "accepted"


TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]


def check_tokenizer(rng: random.Random) -> str:
    with mutated(Path("model", rng.choice(TOKENIZER_FILES)), rng):
        Path("r.yaml").write_text(strictyaml.dump(GOOD[0]))
        return check_front_half(config.load("r.yaml"))


@contextlib.contextmanager
def mutated(path: Path, rng: random.Random) -> Iterator[None]:
    original = path.read_bytes()
    path.write_bytes(mutated_bytes(original, path, rng))
    try:
        yield
    finally:
        path.write_bytes(original)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "recipe": check_recipe,
    "line": check_data,
    "tokens": check_tokens,
    "source": check_source,
    "model": check_model,
    "tokenizer": check_tokenizer,
}


def run(kind: str, numbers: range) -> tuple[collections.Counter, list[str]]:
    """Outcomes by their number, and what failed; in a prepared working directory."""
    counts: collections.Counter = collections.Counter()
    failures = []
    for number in numbers:
        try:
            counts[KINDS[kind](random.Random(f"{SEED}-{kind}-{number}"))] += 1
        except BaseException as error:  # what the campaign looks for; a panic of the tokenizers is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(
                f"{kind} {number}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            )
    return counts, failures


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        inside = Path(directory, "work")
        inside.mkdir()
        workspace(inside)
        parquet.write_table(pyarrow.table({key: [row[key] for row in ROWS] for key in ROWS[0]}), "rows.parquet")
        datasets.Dataset.from_list(ROWS).save_to_disk("saved")
        huggingface("hf")
        nemo("nemo-hf")
        shutil.rmtree("nemo-hf-source")
        Path("model.yaml").write_text(
            "model: {path: hf}\ndata: {train: t.jsonl, global_batch_size: 24}\nobjective: p\n"
        )
        try:
            yield
        finally:
            os.chdir(home)


def campaign(num_recipes: int) -> int:
    failed = 0
    with prepared():
        for kind, share in {"recipe": 1, "line": 1, "tokens": 1, "source": 5, "model": 5, "tokenizer": 10}.items():
            counts, failures = run(kind, range(num_recipes // share))
            print(
                f"{kind}: {sum(counts.values()) + len(failures)} cases,",
                *(f"{n} {what}," for what, n in counts.items()),
            )
            print(f"{kind}: {len(failures)} failures", *failures[:40], sep="\n  ")
            failed += len(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(campaign(int(sys.argv[1])))
