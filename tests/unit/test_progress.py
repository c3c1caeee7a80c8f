"""The one progress display: lines in a log, nothing before `after`, and stdout stays what it was."""

import os
import pty
import subprocess
import sys

import pytest

from nemo_probsft import progress
from nemo_probsft.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets: clock[0]."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute(clock, capsys):
    with Progress("train", 100, "steps") as display:
        for second in range(0, 100, 10):
            clock[0] = float(second)
            display.update(second, "nll 1.0")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train: 30 steps of 100, 70 s left  nll 1.0",
        "train: 60 steps of 100, 40 s left  nll 1.0",
        "train: 90 steps of 100, 10 s left  nll 1.0",
    ]


def test_what_an_earlier_run_did_says_nothing_on_the_time_left(clock, capsys):
    with Progress("train", 100, "steps", done=60) as display:
        clock[0] = 30.0
        display.update(70)
    assert capsys.readouterr().err == "train: 70 steps of 100, 90 s left\n"


def test_nothing_is_shown_before_after(clock, capsys):
    with Progress("read", 10, after=50) as display:
        clock[0] = 40.0
        display.update(5)
        assert capsys.readouterr().err == ""
        clock[0] = 50.0
        display.update(6)
    assert capsys.readouterr().err.startswith("read: 6 of 10")


def test_what_is_printed_meanwhile_stays_on_stdout_when_only_stderr_is_a_terminal():
    terminal, stderr = pty.openpty()
    code = "from nemo_probsft.progress import Progress\nwith Progress('x', 2) as p:\n    print('result'); p.advance(1)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    os.close(stderr)
    os.close(terminal)
    assert done.stdout == "result\n"
