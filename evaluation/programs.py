"""The program in an answer that was begun as a Python block: what runs before its tests."""

import re
import textwrap

_FENCE = re.compile(r"^[^\S\n]{0,3}(?:`{3,}|~{3,})[^\S\n]*([\w+#.-]*)[^`\n]*$|`{3,}[^\S\n]*$", re.MULTILINE)
_PYTHON = ("", "python", "py", "python3")
_FUTURE = re.compile(r"^from __future__ import (?:\([^)]*\)|[^\n#(;]*)", re.MULTILINE)
_DEFINED = re.compile(r"^(?:(?:async[^\S\n]+)?def|class)[^\S\n]+(\w+)|^(\w+)[^\S\n]*(?::[^=\n]*)?=(?!=)", re.MULTILINE)
_DEFINITION = re.compile(r"(?:import|from|def|async|class)\b|[@#\s)\]}]|\w+[^\S\n]*(?::[^=\n]*)?=(?!=)|$")
_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_ENDS_A_FUNCTION = re.compile(r"^(?:return|yield)\b", re.MULTILINE)


def program(answer: str, preamble: str, entry_point: str, tests: str) -> str:
    """What to run before `tests`: the block that defines the function, behind the definitions of the blocks before it.

    answer: what the model wrote, outside of its reasoning, after an opened fence; it may open it again, close it or
    not, and go on in prose and other blocks. preamble: the problem's code with the head of `entry_point`, which an
    answer may rely on, or continue with the function's body; "" where the answer must hold everything, and the
    function is one that the tests call.
    """
    names = {entry_point} if entry_point else set(_CALLED.findall(tests))
    blocks = [block for block in _python_blocks(answer) if block.strip()]
    whole = [number for number, block in enumerate(blocks) if _defines(block, names)]
    if whole:
        helpers = [block for block in blocks[: whole[0]] if _only_defines(block)]
        return _future_first("\n".join([_before(entry_point, preamble), *helpers, textwrap.dedent(blocks[whole[0]])]))
    bodies = [block for block in blocks if _is_indented(block)]
    return _future_first(preamble + next(iter(bodies or blocks), ""))


def _python_blocks(answer: str) -> list[str]:
    """What stands between fences, without blocks in other languages. The first block is open when the answer begins."""
    blocks, start, inside, language = [], 0, True, ""
    for fence in _FENCE.finditer(answer):
        text, tag = answer[start : fence.start()], fence[1] or ""
        if inside and language in _PYTHON:
            blocks.append(text)
        # A tag opens a block, also where one is open; so does a fence behind nothing, or prose, at the beginning.
        inside = not inside or bool(tag) or (start == 0 and not _looks_like_code(text))
        language, start = tag.lower(), fence.end()
    if inside and language in _PYTHON:
        blocks.append(answer[start:])
    return blocks


def _looks_like_code(text: str) -> bool:
    return any(line.strip() and _DEFINITION.match(line) for line in text.split("\n"))


def _only_defines(block: str) -> bool:
    """Imports, functions, classes, constants: nothing that is run, no prose."""
    return all(_DEFINITION.match(line) for line in block.split("\n"))


def _defines(block: str, names: set[str]) -> bool:
    """Whether one of `names` is defined at the top of `block`, the whole of which may be indented.

    A function of that name inside of a function's indented body is another one.
    """
    code = textwrap.dedent(block)
    defined = {name for found in _DEFINED.findall(code) for name in found}
    return bool(defined & names) and not (_is_indented(block) and _ENDS_A_FUNCTION.search(code))


def _is_indented(block: str) -> bool:
    return block.lstrip("\n")[:1] in (" ", "\t")


def _before(entry_point: str, preamble: str) -> str:
    """The problem's imports and helpers."""
    head = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", preamble, re.MULTILINE)
    return preamble[: head.start()] if head else ""


def _future_first(code: str) -> str:
    """`from __future__` must be the first statement, wherever a block had it."""
    return "\n".join([*_FUTURE.findall(code), _FUTURE.sub("", code)])
