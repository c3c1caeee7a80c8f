"""Bytes and remaining time of a long conversion on stderr: redrawn in a terminal, now and then a line in a log."""

import sys
import time

_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 30.0  # between two updates


class Progress:
    """`with Progress("import", num_bytes, shown) as bar: bar.advance(n)`; short conversions show nothing."""

    def __init__(self, label: str, num_bytes: int, shown: bool):
        self._label, self._num_bytes, self._shown = label, num_bytes, shown
        self._done = 0
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._interval = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        self._next = self._start + 2 * self._interval
        self._drawn = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn and self._terminal:
            print(file=sys.stderr)

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + self._interval
        self._drawn = True
        remaining = (now - self._start) * (self._num_bytes - self._done) / self._done
        text = f"{self._label}: {self._done / 1e9:.2f} of {self._num_bytes / 1e9:.2f} GB, {remaining:.0f} s left"
        if self._terminal:
            print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
