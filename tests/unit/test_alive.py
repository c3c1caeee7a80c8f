"""A log gets its line while the process is busy with something that says nothing."""

import time

from evaluation import alive
from evaluation.alive import AliveProgress
from nemo_probsft import progress


def test_a_busy_process_still_writes_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.02)
    monkeypatch.setattr(alive, "TICK_SECONDS", 0.01)
    lines, deadline = [], time.monotonic() + 60
    with AliveProgress("answering", 8, "answers") as shown:
        shown.update(2, "10 tokens, 5 a second")
        while len(lines) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            lines += capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("answering: 2 answers of 8, ") for line in lines[1:])
    assert all(line.endswith(" s left  10 tokens, 5 a second") for line in lines[1:])
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # nothing ticks after the end
