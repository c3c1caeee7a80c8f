"""Random changes of nested data, of text and of bytes, all drawn from the generator that is given."""

from __future__ import annotations

import copy
import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 4, 8, -1, 7, 10**6, 2**31 - 1, 2**31, 2**63, 10**17, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1.5, 1e-5, 5e-324, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", " ", "p", "0", "1", "1e-5", "1e999", "true", "yes", "null", "~", "~/runs", ".", "..", "../x", "/", "a/b"),
    *("a" * 300, "a/" * 3000, "\x00", "\n", "\x1b[2J", "[/b]", "${x}", "{{ x }}", "%s%n", "é", "\U0001f600", "\ud800"),
    *("no/such", "train.jsonl", "model", "nemo", "d.json", "empty.jsonl", "link", "loop", "file/x", "bf16", "cosine"),
    *("kept", "GeneralFamily--1", "OnlyTopP-0.5", "focal-2@0.1..0.9", "p+original", "OnlyTopP-nan", "1_000", "0x10"),
    *([], [1], [0.9, 0.95, 0.99], ["p"], {}, {"_target_": "os.system"}, {"a": 1}, {"path": "model"}, [[[[[]]]]]),
]
KEYS = [
    "_target_",
    "label_smoothing",
    "lr",
    "path",
    "seed",
    "tree",
    "x",
    "",
    "name",
    "calculate_per_token_loss",
    "é",
    "a.b",
]
LETTERS = string.printable + "\x00\x1b\ufeff\u2028é\U0001f600"


def places(tree: dict, path: tuple = ()) -> Iterator[tuple]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def parent_of(tree: dict, path: tuple) -> dict:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def mutate_tree(tree: dict, rng: random.Random) -> None:
    path = rng.choice(list(places(tree)))
    parent, key = parent_of(tree, path), path[-1]
    other = rng.choice(list(places(tree)))
    kind = rng.randrange(8)
    if kind < 3:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        parent[misspelt(key, rng)] = parent.pop(key)
    elif kind == 5:
        parent[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 6:
        parent[key] = copy.deepcopy(parent_of(tree, other)[other[-1]])
    elif isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = type(parent[key])(parent[key] * rng.choice([0, 0.5, 2, 3, 10, -1]))
    else:
        parent[key] = rng.choice([[parent[key]], {"x": parent[key]}, json.dumps(parent[key])])


def misspelt(key: str, rng: random.Random) -> str:
    at = rng.randrange(len(key) + 1)
    return rng.choice([key.upper(), key + "s", key[:at] + key[at + 1 :], key[:at] + rng.choice(LETTERS) + key[at:]])


def mutate_text(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at, line = rng.randrange(len(text) + 1), rng.randrange(max(1, len(lines)))
    kind = rng.randrange(7)
    if kind == 0:
        return text[:at] + rng.choice(LETTERS) + text[at:]
    if kind == 1:
        return text[:at] + text[at + rng.randrange(1, 10) :]
    if kind == 2:
        return text[:at]
    if kind == 3:
        return "".join([*lines[:line], *lines[line : line + 1] * 2, *lines[line + 1 :]])
    if kind == 4:
        return "".join(
            [*lines[:line], rng.choice([" ", "\t", "- ", "? ", "&a ", "*a ", "!!x ", "<<: "]), *lines[line:]]
        )
    if kind == 5:
        return (
            text[:at]
            + rng.choice(["[" * 50, "{" * 3000, "'", '"', ": ", "---\n", "...\n", "%YAML 1.9\n", "\\U"])
            + text[at:]
        )
    return text.replace("\n", rng.choice(["\r\n", "\r", "\n\n", "\u2028"]))


def mutated_bytes(original: bytes, path: Path, rng: random.Random) -> bytes:
    if path.suffix != ".json" or rng.random() < 0.3:
        at = rng.randrange(min(len(original), rng.choice([100, 2000, 10**9])))
        return original[:at] + bytes([rng.randrange(256)]) * rng.randrange(3) + original[at + rng.randrange(4) :]
    tree = json.loads(original)
    branch = tree
    while rng.random() < 0.7 and (inner := [value for value in walk(branch) if value]):
        branch = rng.choice(inner)
    mutate_tree(branch or tree, rng)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def walk(tree: Any) -> Iterator[dict]:
    for value in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(value, dict):
            yield value
        elif isinstance(value, list):
            yield from walk(value)
