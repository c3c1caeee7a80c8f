"""Progress of a long conversion: bytes and time left, on one line of a terminal or now and then a line of a log."""

import contextlib
import os
import pty
import sys
import time

import pytest

from conversion.convert import byte_progress


@pytest.fixture
def at(monkeypatch):
    """Set the clock to so many seconds after a start."""

    def set_clock(started: float, seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: started + seconds)

    return set_clock


def test_progress_shows_bytes_and_time(capsys, at):
    with byte_progress("import", 4_000_000_000, True) as bar:
        bar.advance(0)
        at(bar.started, 100)
        bar.advance(1_000_000_000)
        bar.advance(1_000_000_000)  # too soon for another line
    assert capsys.readouterr().err == "import: 1.00 GB of 4.00 GB, 300 s left\n"


@pytest.mark.parametrize(("shown", "seconds"), [(True, 0.5), (False, 0.5), (False, 1e6)])
def test_short_conversions_and_calls_from_python_are_silent(capsys, at, shown, seconds):
    with byte_progress("import", 4_000_000_000, shown) as bar:
        at(bar.started, seconds)
        bar.advance(1_000_000_000)
    assert capsys.readouterr().err == ""


@contextlib.contextmanager
def terminal(monkeypatch):
    """stderr is a pseudo-terminal; yields a function that returns what was shown on it since its last call."""
    outer, inner = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")

    def shown() -> str:
        print("end", file=stream, flush=True)
        text = ""
        while not text.endswith("end\r\n"):  # the kernel hands over what was written in parts
            text += os.read(outer, 1000).decode()
        return text.removesuffix("end\r\n")

    with open(inner, "w") as stream, open(outer, "rb", buffering=0):
        monkeypatch.setattr(sys, "stderr", stream)
        yield shown


def test_progress_in_a_terminal_stays_on_one_line(monkeypatch, at):
    with terminal(monkeypatch) as shown:
        with byte_progress("export", 2_000_000_000, True) as bar:
            bar.advance(0)
            assert shown() == ""
            for seconds in (2, 4):
                at(bar.started, seconds)
                bar.advance(500_000_000)
                bar.bar.refresh()
        text = shown()
    assert text.count("\n") == 1, text
    assert "\n" not in text[: text.rindex("1.0/2.0 GB")]
    assert text.index("export") < text.index("0.5/2.0 GB") < text.index("1.0/2.0 GB")


@pytest.mark.parametrize(("asked", "seconds"), [(True, 0.5), (False, 1e6)])
def test_nothing_is_drawn_in_a_terminal_either(monkeypatch, at, asked, seconds):
    with terminal(monkeypatch) as shown:
        with byte_progress("export", 2_000_000_000, asked) as bar:
            assert bar.terminal
            at(bar.started, seconds)
            bar.advance(500_000_000)
        assert shown() == ""
