"""The turns of a conversation: what each may hold, their order, and which of them the data itself marks.

A turn reaches the chat template as it is, tool calls and reasoning with it. What is taken out are fields without a
value, which Arrow adds to every turn of a column, and the marks that other trainers read: `weight` (OpenAI, axolotl),
`train` and `training` (axolotl), `loss_mask` (verl), `loss` (ms-swift), `trainable`. 0 keeps a turn from being learnt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemo_probsft.data import records

ROLES = ("system", "developer", "user", "assistant", "tool")
MARKS = ("weight", "train", "training", "loss_mask", "loss", "trainable")
# They mask or weigh parts of a turn, or say in their own way what is masked.
OTHER_MARKS = ("mask", "masked", "train_detail", "loss_scale", "loss_weight")
Turn = dict[str, Any]
Marks = tuple[bool | None, ...]


def parse_turns(turns: Any, where: str) -> tuple[list[Turn], Marks]:
    """Checked turns, and the mark of each of them: None where it has none. () where no turn has one."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: messages is {describe(turns)}: must be a list of turns with role and content")
    found = [_turn(turn, f"messages[{i}]", where) for i, turn in enumerate(turns)]
    _check_order([turn["role"] for turn in found], where)
    marks = tuple(_mark(turn, f"messages[{i}]", where) for i, turn in enumerate(turns))
    return found, marks if any(mark is not None for mark in marks) else ()


def conversation(prompt: str, response: str) -> list[Turn]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def parse_tools(tools: Any, where: str) -> list[Turn] | None:
    """The tools of a row: a list of JSON schemas, or that list as JSON text, as data sets of the hub have it."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise ValueError(f"{where}: tools is a text that is not JSON: write a list of JSON schemas") from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"{where}: tools is {describe(tools)}: must be a list of JSON schemas")
    for i, tool in enumerate(tools):
        _check_function(tool, f"tools[{i}]", where)
    _check_characters(tools, "tools", where)
    return [dict(tool) for tool in tools]


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """That of a tool or of a call, which may be the object itself."""
    return tool.get("function", tool)


def for_template(turn: Mapping[str, Any]) -> Turn:
    """What the chat template is given of a turn."""
    return {
        key: value
        for key, value in turn.items()
        if key not in MARKS and (value is not None or key in ("role", "content"))
    }


def text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {describe(value)}: must be a string")
    half = records.half_surrogate(value)
    if half is not None:
        raise ValueError(f"{where}: {name} holds half a surrogate pair at character {half}: remove it")
    return value


def answer(value: Any, name: str, where: str) -> str:
    if not text(value, name, where).strip():
        raise ValueError(f"{where}: {name} is empty: there is no answer to learn; drop the row")
    return value


def fields(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "none"


def describe(value: Any) -> str:
    if isinstance(value, (list, Mapping, str)) and not value:
        return f"an empty {json_type(value)}"
    return "null" if value is None else f"a JSON {json_type(value)}"


def json_type(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names.get(type(value), type(value).__name__)


def _turn(turn: Any, name: str, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: {name} is {describe(turn)}: must be an object with role and content")
    calls = turn.get("tool_calls")
    called = calls or turn.get("function_call")
    for key in ("role", "content"):
        if key not in turn and not (key == "content" and called):
            raise ValueError(f"{where}: {name} has no {key}: its fields are {fields(turn)}")
    role, content = turn["role"], turn.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}: {name}.role is {role!r}: must be one of {', '.join(ROLES)}")
    if calls is not None:
        _check_calls(calls, role, name, where)
    if (call := turn.get("function_call")) is not None:  # the older form of one call
        _check_calls([call], role, name, where)
    if not called or content:
        (answer if role == "assistant" else text)(content, f"{name}.content", where)
    elif content is not None:
        text(content, f"{name}.content", where)
    for key, value in turn.items():
        _check_characters(value, f"{name}.{key}", where)
    return for_template(turn)


def _check_calls(calls: Any, role: str, name: str, where: str) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"{where}: {name}.tool_calls is {describe(calls)}: must be a list of calls")
    if calls and role != "assistant":
        raise ValueError(f"{where}: {name}.tool_calls is of a turn of {role!r}: only the assistant calls tools")
    for i, call in enumerate(calls):
        _check_function(call, f"{name}.tool_calls[{i}]", where)


def _check_function(tool: Mapping[str, Any], name: str, where: str) -> None:
    function = function_of(tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: {name} names no function: its fields are {fields(tool)}")


def _check_characters(value: Any, name: str, where: str) -> None:
    """No half surrogate pair at any depth."""
    if isinstance(value, str):
        text(value, name, where)
    for inner in value.items() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        _check_characters(inner, name, where)


def _check_order(roles: list[str], where: str) -> None:
    """An optional system turn; then user and assistant in turn, where tools may answer between two assistant turns."""
    start = int(roles[0] in ("system", "developer"))
    before = "assistant"
    for i, role in enumerate(roles[start:], start):
        expected = {"user": "assistant", "tool": "assistant", "assistant": "user"}[before]
        if role != expected and not (role == "tool" and before != "user" and i > start):
            raise ValueError(
                f"{where}: messages[{i}].role is {role!r} where {expected!r} must come: "
                "roles are an optional system, then user and assistant in turn"
            )
        before = role
    if roles[-1] != "assistant":
        raise ValueError(f"{where}: the last turn is {roles[-1]!r}: a row must end with the assistant's answer")


def _mark(turn: Mapping[str, Any], name: str, where: str) -> bool | None:
    if other := next((key for key in OTHER_MARKS if turn.get(key) is not None), None):
        raise ValueError(f"{where}: {name}.{other} would mask parts of what is learnt: write weight, 0 or 1, instead")
    given = {key: turn[key] for key in MARKS if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ValueError(f"{where}: {name}.{key} is {json.dumps(value)}: must be 0 or 1, false or true")
    if len({bool(value) for value in given.values()}) > 1:
        raise ValueError(f"{where}: {name} has {fields(given)}, which contradict each other: keep one")
    mark = bool(next(iter(given.values()))) if given else None
    if mark and turn["role"] != "assistant":
        key, role = next(iter(given)), turn["role"]
        raise ValueError(f"{where}: {name}.{key} marks a turn of {role!r}: only the assistant's turns are learnt")
    return mark
