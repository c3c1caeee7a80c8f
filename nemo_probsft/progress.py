"""One progress display: a bar in a terminal, a line now and then in a log. It writes to stderr, never to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EACH = 64  # of many small things: the display is asked once for so many
LOG_SECONDS = 30.0  # between two lines of a log


class Progress:
    """`with Progress("import", num_bytes, unit="B") as progress: progress.advance(n)`.

    total: of `unit`, "B" for bytes; None when it is not known. done: what an earlier run did; the time left is
    reckoned from the rest. after: seconds before anything is shown, so that what is done at once stays silent.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "", *, done: int = 0, after: float = 0.0
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note = done, ""
        self.done_before = done
        self.started = time.monotonic()
        self.next_line = self.started + max(after, LOG_SECONDS)
        self.after = after
        self.terminal = sys.stderr.isatty()
        self.bar = _bar(unit, total) if self.terminal else None
        self.task = self.bar.add_task(title, total=total, completed=done, note="") if self.bar else None

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None and self.bar.live.is_started:
            self.bar.stop()

    def advance(self, amount: int, note: str | None = None) -> None:
        """So much more is done."""
        self.update(self.done + amount, note)

    def each(self, things: Iterable[T]) -> Iterator[T]:
        """The same things; each is one more that is done when the next one is asked for."""
        number = 0
        for number, thing in enumerate(things, 1):
            yield thing
            if number % EACH == 0:
                self.advance(EACH)
        self.advance(number % EACH)

    def update(self, done: int, note: str | None = None) -> None:
        """So much is done in all; `note` stays until another one comes."""
        self.done, self.note = done, self.note if note is None else note
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if self.bar is not None:
            if now - self.started >= self.after and not self.bar.live.is_started:
                self.bar.start()
            self.bar.update(self.task, completed=self.done, note=self.note)
        elif now >= self.next_line:
            self.next_line = now + LOG_SECONDS
            print(self._line(now - self.started), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        size = f"{self.done} {self.unit}".strip() if self.unit != "B" else f"{self.done / 1e9:.2f} GB"
        if self.total is not None:
            size += f" of {self.total / 1e9:.2f} GB" if self.unit == "B" else f" of {self.total}"
        if self.total is None and not self.done:
            return f"{self.title}: {seconds:.0f} s  {self.note}".rstrip()
        left = ""
        if self.total is not None and self.done > self.done_before:
            left = f", {seconds * (self.total - self.done) / (self.done - self.done_before):.0f} s left"
        return f"{self.title}: {size}{left}  {self.note}".rstrip()


def _bar(unit: str, total: int | None):  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counts = [] if total is None else [DownloadColumn() if unit == "B" else MofNCompleteColumn()]
    left = [] if total is None else [TextColumn("left"), TimeRemainingColumn()]
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counts,
        TimeElapsedColumn(),
        *left,
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # else what is printed meanwhile would go to stderr, past a pipe
    )
