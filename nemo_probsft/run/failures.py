"""Why ranks ended: torchrun's error files and exit codes, the rank's stderr where there is neither."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

from nemo_probsft.files import write_json

FAILED = "failed.json"  # local rank -> exit code, of the ranks that torchrun did not stop itself
LOG_BYTES = 1_000_000  # more than the exceptions of all ranks need
OUT_OF_SPACE = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # of another rank's death
ERROR = re.compile(r"^\w[\w.]*(?:Error|Exception|Interrupt)\b.*$", flags=re.MULTILINE)


def write_exit_codes(attempt: Path, failures: dict[int, Any]) -> None:
    """Keep what only torchrun knows. failures: rank -> torch's ProcessFailure."""
    write_json(attempt / FAILED, {str(failure.local_rank): failure.exitcode for failure in failures.values()})


def first_error(attempt: Path) -> str:
    """One line on the rank that failed by itself, and first. attempt: torchrun's log directory.

    The other ranks lost their connection to it or were stopped. A full disk is named before what followed from it, and
    a kill before the exceptions of the ranks that missed the killed one.
    """
    raised = _raised(attempt)
    full = [line for text in raised for line in ERROR.findall(text) if _out_of_space(line)]
    errors = [ERROR.findall(text)[-1] if ERROR.search(text) else text.splitlines()[-1] for text in raised]
    by_itself = [error for error in errors if not any(echo in error for echo in ECHOES)]
    codes = _exit_codes(attempt)
    killed = [_ended(attempt, rank, code) for rank, code in codes.items() if code == -signal.SIGKILL]
    silent = {rank: code for rank, code in codes.items() if not _error_file(attempt, rank)}
    ended = [_ended(attempt, rank, code) for rank, code in silent.items() if code != -signal.SIGTERM]
    stopped = [_ended(attempt, rank, code) for rank, code in silent.items() if code == -signal.SIGTERM]
    return (full or killed or by_itself or ended or errors or stopped or [_why_nothing_was_logged(attempt)])[0]


def _raised(attempt: Path) -> list[str]:
    """Tracebacks from the error files, the first one first; torch's own time stamps are in whole seconds."""
    files = sorted(attempt.glob("**/error.json"), key=lambda path: path.stat().st_mtime_ns)
    texts = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # cut off by a full disk
            continue
        texts.append(content["message"]["extraInfo"]["py_callstack"].strip())
    return texts


def _out_of_space(line: str) -> bool:
    return any(f"[Errno {number}]" in line for number in OUT_OF_SPACE)


def _exit_codes(attempt: Path) -> dict[int, int]:
    path = attempt / FAILED
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {int(rank): code for rank, code in found.items()}


def _error_file(attempt: Path, rank: int) -> bool:
    return any(attempt.glob(f"**/{rank}/error.json"))


def _ended(attempt: Path, rank: int, code: int) -> str:
    said = [_last_line(path) for path in attempt.glob(f"**/{rank}/stderr.log")]
    return f"rank {rank} {_how(code)}; its last line: {said[0] if said and said[0] else '(nothing)'}"


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by signal 9 (SIGKILL), as the kernel does when memory runs out: see `dmesg`"
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _why_nothing_was_logged(attempt: Path) -> str:
    """A full disk, on which the logs lie too, takes no error file. Otherwise torchrun itself failed."""
    free = shutil.disk_usage(attempt).free
    if free < LOG_BYTES:
        return f"No space left on device ({free} bytes free), not even for the exception"
    said = [line for log in sorted(attempt.glob("**/stderr.log")) if (line := _last_line(log))]
    return (said or [_last_line(attempt / "torchrun.log") or "torchrun ended without a word"])[0]
