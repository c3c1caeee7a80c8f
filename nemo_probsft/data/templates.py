"""Chat templates: what can be known of one before a row goes through it, and its rendering, bounded in time and memory.

A template is a program that comes with a model or a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from nemo_probsft.data.bounded import bounded
from nemo_probsft.data.turns import Turn
from nemo_probsft.files import first_line

SECONDS = 10.0
BYTES = 1 << 31
MAX_CHARACTERS = 1 << 26  # of a rendered row
OTHER_DAY = datetime(2001, 2, 3, 4, 5, 6)  # no two parts of it are those of today


class Uses(NamedTuple):
    """Names in a template that decide what it can write."""

    messages: bool
    clock: bool
    random: bool


class _Generation(Extension):
    """`{% generation %}`, which transformers knows and Jinja does not."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def uses(template: str) -> Uses:
    """Raises ValueError for what is no Jinja."""
    try:
        tree = Environment(extensions=[loopcontrols, _Generation]).parse(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"{first_line(error)} in line {error.lineno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    names = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    return Uses("messages" in names, "strftime_now" in names, "random" in filters or "lipsum" in names)


def problem(template: str) -> str | None:
    """Why no row can be trained with a template, in words that follow "the chat template"; None where one can."""
    try:
        found = uses(template)
    except ValueError as error:  # also of a number of thousands of digits
        return f"is not Jinja ({first_line(error)}): mend it"
    if not found.messages:
        what = "a path" if is_path(template) else "the same text for every row"
        return f"does not depend on the messages, it is {what}: give Jinja text that writes them"
    if found.random:
        return "draws at random, so training and evaluation would see other prompts: use one that does not"
    return None


def is_path(template: str) -> bool:
    """Whether it can be the name of a file, and cannot be a template: it has no braces and one line."""
    return "{" not in template and len(template.splitlines()) == 1


def render(
    tokenizer: Any, messages: Sequence[Turn], tools: Any, where: str, *, add_generation_prompt: bool, **names: Any
) -> str:
    """What the tokenizer's template writes; names: what its names stand for instead of what they are."""
    try:
        with bounded(SECONDS, BYTES):
            text = tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **names
            )
    except Exception as error:  # a template is the user's program, which raises what it likes
        reason = f"{type(error).__name__} ({first_line(error)})"
        raise ValueError(f"{where}: the chat template raised {reason}: mend row or template") from error
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: the chat template wrote {len(text)} characters: mend row or template")
    return text


def on_another_day(form: str) -> str:
    """transformers' `strftime_now`, on a day on which nothing is as it is today."""
    day = OTHER_DAY
    while day.strftime(form) == datetime.now().strftime(form) and day.year < OTHER_DAY.year + 2:
        day += timedelta(days=1, hours=1, minutes=1, seconds=1)
    return day.strftime(form)
