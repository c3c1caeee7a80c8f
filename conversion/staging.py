"""Write a directory so that it appears complete or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_directory(target: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a hidden sibling of `target` that takes its place when the block ends without an error.

    An error removes the sibling; a killed process leaves it behind, and the next run removes it. `num_bytes`
    is what will be written. Raises: ValueError when the target exists, is being written, or does not fit.
    """
    if os.path.lexists(target):
        raise ValueError(f"{target}: exists already and is never overwritten; remove it or choose another target")
    _make_parent(target)
    free = shutil.disk_usage(target.parent).free
    if num_bytes > free:
        raise ValueError(f"{target.parent}: {free:,} bytes free, {num_bytes:,} needed")
    partial = target.parent / f".{target.name}.partial"
    with _exclusive(target.parent / f".{target.name}.lock", target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            if os.path.lexists(target):
                raise ValueError(f"{target}: appeared while it was being written here; nothing was changed")
            partial.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(f"{target.parent}: no space left; {num_bytes:,} bytes are needed") from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def existing_directory(path: Path) -> Path:
    """`path` with all links followed. Raises: ValueError when it is no directory or a loop of links."""
    try:
        resolved = Path(path).resolve(strict=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such directory") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: how Python < 3.13 reports a loop
        raise ValueError(f"{path}: cannot be resolved; a loop of symbolic links?") from error
    if not resolved.is_dir():
        raise ValueError(f"{path}: not a directory")
    return resolved


@contextmanager
def unchanged(files: list[Path]) -> Iterator[None]:
    """Raises: ValueError at the end of the block when one of the files was changed meanwhile."""
    before = {file: _state(file) for file in files}
    yield
    for file, state in before.items():
        if _state(file) != state:
            raise ValueError(f"{file}: changed while it was being read; run the conversion again")


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{target.parent}: cannot be created: {error.strerror}") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{target.parent}: no permission to write")


@contextmanager
def _exclusive(lock: Path, target: Path) -> Iterator[None]:
    """Hold `lock`; the kernel drops it with the process, so a stale file does not block."""
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{target}: another conversion is writing it right now") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
