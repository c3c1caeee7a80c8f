"""Processes that end with the one that started them, however it ends: `kill -9` leaves nothing behind.

Light: every command imports it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDS_WITH = "NEMO_PROBSFT_ENDS_WITH"  # set where one of our commands starts another


def end_with_parent(parent: int | None) -> None:
    """Ask Linux to kill this process when its parent is gone; end at once if the `parent` meant has gone before."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # also where an exception would be ignored: just after a fork


def ending_with_this() -> dict[str, str]:
    """The environment of a command of ours that is to end with this process."""
    return os.environ | {ENDS_WITH: str(os.getpid())}


def end_with_command() -> None:
    """What a command calls first: end with the one that gave it the environment `ending_with_this`, if one did."""
    parent = os.environ.pop(ENDS_WITH, None)
    if parent is not None:
        end_with_parent(int(parent))


def end_children_with_this() -> None:
    """Have what this process forks, and the managers that it starts, end with it.

    Megatron writes a checkpoint with both (`FileSystemWriterAsync`), and neither looks whether its rank is still there.
    Linux means the thread that started a process, so only children of the main thread, which ends last, are asked to.
    """
    from multiprocessing import managers

    by_main, parent = False, 0

    def before() -> None:
        nonlocal by_main, parent
        by_main, parent = _in_main_thread(), os.getpid()

    def in_child() -> None:
        if by_main:
            end_with_parent(parent)

    os.register_at_fork(before=before, after_in_child=in_child)
    start = managers.BaseManager.start

    def start_and_end_with_this(self: Any, initializer: Any = None, initargs: Sequence[Any] = ()) -> None:
        if initializer is None and _in_main_thread():
            initializer, initargs = end_with_parent, (os.getpid(),)
        start(self, initializer, initargs)

    managers.BaseManager.start = start_and_end_with_this  # type: ignore[method-assign, assignment]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
