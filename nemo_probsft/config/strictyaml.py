"""Strict YAML: dataclasses are the schema, every value keeps its place, nothing is converted or executed.

`parse` turns text into a tree of `Node`, `override` puts a `key=value` into it, `build` makes the dataclass, `dump` is
the way back to text. Only PyYAML's event parser is used: its constructors and OmegaConf convert in silence ("4" -> 4,
1e-5 -> "1e-5", the last of two equal keys wins) or lose the line numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union

import yaml

# YAML 1.2 core schema; in YAML 1.1 `1e-5` is a string, `yes` a bool, `1:30` the number 90 and 2026-01-01 a date.
NULLS = {"", "~", "null", "Null", "NULL"}
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
MAX_DEPTH = 16
SHOWN = 60  # characters of a value quoted in an error
TYPE_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


class Bound(NamedTuple):
    """A range of allowed numbers, the second argument of `Annotated`."""

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Node:
    """A YAML value: None, bool, int, float, str, dict[str, Node] or list[Node], and where it stands."""

    value: Any
    where: str


def show(value: Any) -> str:
    """A value as one short line, spelled as in YAML."""
    return _short(json.dumps(plain(value) if isinstance(value, Node) else value))


def _short(text: str) -> str:
    text = text if text.isprintable() else json.dumps(text)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def plain(node: Node) -> Any:
    """The values of a tree without their places."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def parse(text: str, place: Callable[[int], str]) -> Node:
    """Text -> tree; `place` names the location of a line (from 1). Raises ValueError, in one line."""
    try:
        content = _content(yaml.parse(text, Loader=yaml.SafeLoader), place)
        first = next(content, None)
        tree = Node(None, place(1)) if first is None else _node(first, content, place, depth=0)
        next(content, None)  # to the end of the file: what follows the first document is an error, too
        return tree
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise ValueError(f"{place(mark.line + 1 if mark else 1)}: not valid YAML: {problem}; correct it") from None
    except OverflowError:  # "\UFFFFFFFF"
        raise ValueError(f"{place(1)}: not valid YAML: an escaped character does not exist; correct it") from None


def _content(events: Iterator[Any], place: Callable[[int], str]) -> Iterator[Any]:
    """The events of the only document, as they are parsed: what is nested too deeply is never read to its end."""
    num_documents = 0
    for event in events:
        num_documents += isinstance(event, yaml.DocumentStartEvent)
        if num_documents > 1:
            where = place(event.start_mark.line + 1)
            raise ValueError(f"{where}: a second YAML document starts here; keep one document in a file")
        if isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)):
            yield event


def _node(event: Any, events: Iterator[Any], place: Callable[[int], str], depth: int) -> Node:
    where = place(event.start_mark.line + 1)
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise ValueError(f"{where}: YAML anchors and aliases are not supported; write the value where it is used")
    if event.tag is not None and event.tag != "!":
        raise ValueError(f"{where}: YAML tag {show(event.tag)} is not supported (recipes are data); remove it")
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} levels deep; no key is that deep")
    if isinstance(event, yaml.ScalarEvent):
        return Node(_scalar(event, where), where)
    if isinstance(event, yaml.SequenceStartEvent):
        return Node([_node(e, events, place, depth + 1) for e in _until(yaml.SequenceEndEvent, events)], where)
    mapping: dict[str, Node] = {}
    for key_event in _until(yaml.MappingEndEvent, events):
        key_where = place(key_event.start_mark.line + 1)
        if not isinstance(key_event, yaml.ScalarEvent):
            raise ValueError(f"{key_where}: a mapping, list or alias is used as a key; use a plain word")
        key = key_event.value
        _node(key_event, events, place, depth + 1)
        if key in mapping:
            raise ValueError(f"{key_where}: {show(key)} is given twice (first: {mapping[key].where}); remove one")
        mapping[key] = Node(_node(next(events), events, place, depth + 1).value, key_where)
    return Node(mapping, where)


def _until(end: type, events: Iterator[Any]) -> Iterator[Any]:
    while not isinstance(event := next(events), end):
        yield event


def _scalar(event: yaml.ScalarEvent, where: str) -> bool | int | float | str | None:
    check_text(event.value, where)
    return _plain_scalar(event.value) if event.implicit[0] else event.value


def check_text(text: str, where: str) -> None:
    """Raises ValueError for an interpolation or half a character."""
    if "${" in text:
        raise ValueError(f"{where}: {show(text)}: interpolation is not supported; write the value itself")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where}: {show(text)}: half a surrogate pair is no character; remove it")


def _plain_scalar(text: str) -> bool | int | float | str | None:
    """What a text without quotes means."""
    if text in NULLS:
        return None
    if text in BOOLS:
        return BOOLS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if FLOAT.fullmatch(text) else text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `parse` would take for something else, and writes no anchors, which it refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(_plain_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(plain: Mapping[str, Any]) -> str:
    """Plain data -> YAML text that `parse` turns back into it."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False)


def override_place(text: str) -> str:
    return f"override {_short(text)}"


def override(tree: Node, text: str) -> Node:
    """A new tree in which `text` ("optim.lr=1e-5", the value in YAML) replaces or adds one value."""
    where = override_place(text)
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"{where}: expected key=value, for example optim.lr=1e-5")
    if key.count(".") > MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} levels deep; no key is that deep")
    return put(tree, key, parse(value, lambda line: where))


def put(tree: Node, key: str, leaf: Node) -> Node:
    """A new tree with `leaf` at a dotted key."""
    return _replace(tree, key.split("."), leaf, done="")


def _replace(tree: Node, path: list[str], leaf: Node, done: str) -> Node:
    if not path:
        return leaf
    if tree.value is None:
        tree = Node({}, leaf.where)
    head, *rest = path
    if not isinstance(tree.value, dict):
        problem = f"{done} is {show(tree)}, not a mapping, so it has no {head}"
        raise ValueError(f"{leaf.where}: {problem}; override it as a whole: {done}={{{head}: ...}}")
    child = tree.value.get(head, Node(None, leaf.where))
    return Node({**tree.value, head: _replace(child, rest, leaf, f"{done}.{head}".lstrip("."))}, tree.where)


def locate(tree: Node, key: str) -> str:
    """Where a key was written; for a key that has its default, where its section was."""
    where = tree.where
    for name in key.split("."):
        if not isinstance(tree.value, dict) or name not in tree.value:
            return where
        tree = tree.value[name]
        where = tree.where
    return where


@cache
def schema(cls: type) -> dict[str, Any]:
    """Key -> type, for the fields of a dataclass that a file may set (all but those with metadata key: False)."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls) if item.metadata.get("key", True)}


def build(cls: type, tree: Node, refused: Mapping[str, str]) -> Any:
    """Tree -> instance of the dataclass `cls`. Raises ValueError for an unknown, missing or mistyped key.

    refused: unknown key, at any level -> what to say of it.
    """
    return _Builder(_all_keys(cls), refused).section(cls, tree, "")


def _all_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in schema(cls).items():
        keys.append(prefix + name)
        for section, at in sections_of(hint):
            keys += _all_keys(section, f"{prefix}{name}{at}.")
    return keys


def sections_of(hint: Any, at: str = "") -> Iterator[tuple[type, str]]:
    """The dataclasses that a value of this type may be a mapping of, "[]" with those that stand in a list."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint, at
    if typing.get_origin(hint) is tuple:
        at += "[]"
    for inner in typing.get_args(hint):
        yield from sections_of(inner, at)


def _sections(hints: Iterable[Any]) -> list[type]:
    return [hint for hint in hints if dataclasses.is_dataclass(hint) and isinstance(hint, type)]


@dataclass(frozen=True)
class _Builder:
    all_keys: list[str]  # dotted, for suggestions
    refused: Mapping[str, str]

    def section(self, cls: type, tree: Node, key: str) -> Any:
        known, prefix = schema(cls), f"{key}." if key else ""
        if not isinstance(tree.value, dict):
            example = ", ".join(f"{name}: ..." for name in list(known)[:2])
            subject = f"{key}: {show(tree)} is" if key else "the recipe is"
            raise ValueError(f"{tree.where}: {subject} not a mapping; write {{{example}}}")
        for name, child in tree.value.items():
            if name not in known:
                raise ValueError(f"{child.where}: {_short(prefix + name)}: {self.unknown(name, prefix, list(known))}")
        values = {name: self.convert(known[name], child, prefix + name) for name, child in tree.value.items()}
        for item in dataclasses.fields(cls):
            required = item.default is dataclasses.MISSING and item.name in known
            if required and item.name not in values:
                raise ValueError(f"{tree.where}: {prefix}{item.name}: missing; give {item.metadata['give']}")
        return cls(**values)

    def unknown(self, name: str, prefix: str, known: list[str]) -> str:
        if name in self.refused:
            return self.refused[name]
        elsewhere = [key for key in self.all_keys if key.rpartition(".")[2] == name]
        elsewhere.sort(key=lambda key: "[]" in key)
        beside = [prefix + close for close in difflib.get_close_matches(name.lower(), known, n=1)]
        if suggestions := elsewhere + beside:
            return f"unknown key; did you mean {suggestions[0]}?"
        return f"unknown key; choose from {', '.join(known)}"

    def convert(self, hint: Any, node: Node, key: str) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            return _bounded(args[1], self.convert(args[0], node, key), node, key)
        if origin in (Union, types.UnionType):
            return self.union(args, node, key)
        if origin is tuple:
            if args[-1] is Ellipsis:
                args = args[:1] * (len(node.value) if isinstance(node.value, list) else 2)
            if not isinstance(node.value, list) or len(node.value) != len(args):
                raise _mistyped(node, key, f"a list of {len(args)} numbers")
            children = enumerate(zip(args, node.value, strict=True))
            return tuple(self.convert(arg, child, f"{key}[{i}]") for i, (arg, child) in children)
        if origin is Literal:
            return _choice(args, node, key)
        return self.section(hint, node, key) if _sections([hint]) else _exact(hint, node, key)

    def union(self, args: tuple[Any, ...], node: Node, key: str) -> Any:
        """null where None is allowed, a mapping for a dataclass, a list for a tuple, else the remaining type."""
        if node.value is None and type(None) in args:
            return None
        sections, lists = _sections(args), [arg for arg in args if typing.get_origin(arg) is tuple]
        others = [arg for arg in args if arg is not type(None) and arg not in (*sections, *lists)]
        if sections and (isinstance(node.value, dict) or not (others or lists)):
            return self.section(sections[0], node, key)
        if lists and (isinstance(node.value, list) or not others):
            return self.convert(lists[0], node, key)
        if (sections or lists) and not isinstance(node.value, (bool, int, float, str)):
            also = " or a mapping" * bool(sections) + " or a list" * bool(lists)
            raise _mistyped(node, key, f"{TYPE_NAMES[others[0]]}{also}")
        return self.convert(others[0], node, key)


def _choice(choices: tuple[str, ...], node: Node, key: str) -> str:
    if node.value in choices:
        return node.value
    close = difflib.get_close_matches(str(node.value).lower(), choices, n=1)
    raise _mistyped(node, key, f"one of {', '.join(choices)}" + (f"; did you mean {close[0]}?" if close else ""))


def _exact(expected: type, node: Node, key: str) -> Any:
    value = node.value
    if expected is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if expected is str and isinstance(value, str) and not value.strip():
        raise ValueError(f"{node.where}: {key}: {show(node)} is empty; write something, or remove the key")
    if expected is not float and type(value) is expected:
        return value
    if expected is str and type(value) in (int, float, bool):
        raise ValueError(f'{node.where}: {key}: {show(node)} is not text; put it in quotes: "{show(node)}"')
    raise _mistyped(node, key, TYPE_NAMES[expected] + (", without quotes" if _is_quoted_number(value) else ""))


def _is_quoted_number(value: Any) -> bool:
    return isinstance(value, str) and bool(value in BOOLS or INTEGER.fullmatch(value) or FLOAT.fullmatch(value))


def _bounded(bound: Bound, value: Any, node: Node, key: str) -> Any:
    if not bound.holds(value):
        raise ValueError(f"{node.where}: {key}: {show(node)} is out of range; use a number {bound.text}")
    return value


def _mistyped(node: Node, key: str, expected: str) -> ValueError:
    return ValueError(f"{node.where}: {key}: {show(node)} is not allowed; expected {expected}")
