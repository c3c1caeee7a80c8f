"""What all commands share: a parser, one form for errors, overrides before and after the options.

Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

PROGRAM = "nemo-probsft"
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a ValueError like any other error, not a usage text and an exit."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def run_command(
    name: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str],
) -> int | None:
    """Parse the arguments of one command and run it; returns its exit code. Raises ValueError for the user."""
    parser = Parser(prog=f"{PROGRAM} {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parse(parser, arguments))


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """argparse takes positional arguments in one piece; this adds the overrides that follow an option.

    `arguments` are kept as given, for a command that hands them on to another process.
    """
    options, rest = parser.parse_known_args(arguments)
    stray = [text for text in rest if "=" not in text or text.startswith("-") or not hasattr(options, "overrides")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    options.arguments = list(arguments)
    return options


def answer(run: Callable[[], int | None]) -> int:
    """Run, and turn what goes wrong into one line on stderr and an exit code: 2 for an error, 130 when interrupted.

    Inside a rank the exception passes, so that torchrun records its traceback.
    """
    try:
        return run() or 0
    except KeyboardInterrupt as error:
        if "RANK" in os.environ:
            raise
        return _say("; ".join(["interrupted", *map(str, error.args)]), 130)
    except (ValueError, RuntimeError, OSError) as error:  # OSError: a full disk, a file without permission
        if "RANK" in os.environ:
            raise
        return _say(str(error), 2)


def _say(text: str, code: int) -> int:
    line = re.sub(r"[\r\n]+", " ", text)
    print(f"{PROGRAM}: {line}", file=sys.stderr)
    return code


def error_of(stderr: str) -> str | None:
    """What a command of ours said on stderr when it failed: its last line, by `answer`; None if it said nothing."""
    lines = stderr.strip().splitlines()
    return lines[-1].removeprefix(f"{PROGRAM}: ") if lines else None


@contextlib.contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does, so that what is half written is removed; the error says `consequence`."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(consequence) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and its overrides, as `recipe` and `overrides`."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file; recipes/ has one for each model of the paper")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # or argparse calls it required
        metavar="key=value",
        help="change a key of the recipe, for example objective=p or optim.lr=1e-5",
    )


def count(text: str) -> int:
    """A whole number of at least 1, as argparse's `type`."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def options_of(kind: type[T], parsed: argparse.Namespace) -> T:
    """The fields of a dataclass, taken from what was parsed."""
    return kind(**{field.name: getattr(parsed, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def entries(flag: str, text: str) -> list[str]:
    """What stands between the commas of an option. Raises ValueError for an empty entry."""
    values = text.split(",")
    if "" in values:
        raise ValueError(f"{flag}: {text} has an empty entry; separate entries by one comma")
    return values
