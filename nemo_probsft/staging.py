"""Write a directory so that it appears complete or not at all, and notice when a source changes meanwhile."""

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_START = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def staged_directory(target: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a hidden sibling of `target` that takes its place when the block ends without an error.

    An error removes the sibling; a killed process leaves it behind, and the next run removes it. `num_bytes`
    is what will be written. Raises: ValueError if the target exists, is being written, or does not fit.
    """
    if os.path.lexists(target):
        raise ValueError(f"{target}: exists already and is never overwritten; remove it or choose another target")
    partial = target.parent / f".{target.name}.partial"
    with _parent(target), _exclusive(target.parent / f".{target.name}.lock", target):
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        if num_bytes > free:
            needed = f"{free:,} bytes free, but {num_bytes:,} are needed"
            raise ValueError(f"{target.parent}: {needed}; free some space or choose another target")
        partial.mkdir()
        try:
            yield partial
            if os.path.lexists(target):
                raise ValueError(f"{target}: another process made it meanwhile; choose another target")
            _flush(partial)
            partial.rename(target)
            _flush_one(target.parent)
        except OSError as error:
            if error.errno in _NO_SPACE:
                problem = f"no space left; {num_bytes:,} bytes are needed"
                raise ValueError(f"{target.parent}: {problem}; free some space or choose another target") from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def start_flushing(stream: BinaryIO, first: int, end: int) -> None:
    """Tell Linux to write bytes [first, end) of `stream` to the disk from now on, and do not wait for it.

    The disk works while the conversion does, and the flush at its end, which decides, finds less to do.
    """
    if _sync_file_range is not None:
        stream.flush()
        # The result does not matter: a file system that cannot do this is flushed at the end.
        _sync_file_range(stream.fileno(), ctypes.c_int64(first), ctypes.c_int64(end - first), _START)


def _flush(directory: Path) -> None:
    """After a power cut the name must not be there without the content: everything reaches the disk before the name."""
    for path in (*directory.rglob("*"), directory):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def existing_directory(path: Path) -> Path:
    """`path` with all links followed. Raises: ValueError if it is a loop of links, or no directory."""
    try:
        resolved = Path(path).resolve(strict=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such directory") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: how Python < 3.13 reports a loop
        raise ValueError(f"{path}: cannot be resolved; is it a loop of symbolic links?") from error
    if not resolved.is_dir():
        raise ValueError(f"{path}: not a directory")
    return resolved


class Snapshot:
    """The state of the files in some directories before they are read, to compare it afterwards."""

    def __init__(self, *directories: Path):
        files = (file for directory in directories for file in directory.iterdir() if file.is_file())
        self._before = {file: _state(file) for file in files}

    def check(self) -> None:
        """Raises: ValueError if one of the files has changed since."""
        for file, state in self._before.items():
            if _state(file) != state:
                raise ValueError(f"{file}: changed while it was being read; run the conversion again")


@contextmanager
def system_errors_in_one_line() -> Iterator[None]:
    """Raises: ValueError for what the operating system refuses, with the file and the reason."""
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise ValueError(f"{name}{error.strerror or error}") from error


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextmanager
def _parent(target: Path) -> Iterator[None]:
    """Make the directories above `target`; those that are new and still empty at the end are removed."""
    new = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in new:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def _exclusive(lock: Path, target: Path) -> Iterator[None]:
    """Hold `lock`; the kernel drops it with the process, so a stale file does not block."""
    try:
        stream = lock.open("w")
    except PermissionError as error:
        raise ValueError(f"{lock.parent}: no permission to write; choose another target") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file between our open and our lock; then the lock is nobody's.
            held = os.fstat(stream.fileno()).st_ino == os.stat(lock).st_ino
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise ValueError(f"{target}: another process is writing it right now; wait for it or choose another target")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
