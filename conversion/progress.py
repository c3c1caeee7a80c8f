"""Bytes and remaining time of a long conversion, on stderr."""

import sys
import time

_INTERVAL = 0.5  # seconds between updates


class Progress:
    """`with Progress("import", num_bytes, shown) as bar: bar.advance(n)`; silent for the first second."""

    def __init__(self, label: str, num_bytes: int, shown: bool):
        self._label, self._num_bytes, self._shown = label, num_bytes, shown
        self._done = 0
        self._start = time.monotonic()
        self._next = self._start + 1.0
        self._drawn = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            print(file=sys.stderr)

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + _INTERVAL
        self._drawn = True
        remaining = (now - self._start) * (self._num_bytes - self._done) / self._done
        text = f"{self._label}: {self._done / 1e9:.2f} of {self._num_bytes / 1e9:.2f} GB, {remaining:.0f} s left"
        print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)
