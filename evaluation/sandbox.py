"""Run a program that a model wrote, with its tests, where it can do no harm: `passes`.

A process in namespaces of its own: no network, no other process to signal or to look at, every file system read-only,
an empty directory in memory as the only place to write; and limits on time, memory, processes, file sizes, open files.
If the system does not allow that (unprivileged user namespaces are off), nothing runs.
"""

import ctypes
import os
import resource
import secrets
import signal
import struct
import subprocess
import sys
from functools import cache

SECONDS = 20.0  # of the whole program with its tests, wall time
MEMORY_BYTES = 4 << 30  # address space, as EvalPlus gives
FILE_BYTES = 16 << 20  # largest file, and size of the directory
OPEN_FILES = 64
PROCESSES = 32
NOBODY = 65534  # who the program is inside: a user without any capability

_CLONE = 0x10000000 | 0x40000000 | 0x20000 | 0x20000000 | 0x08000000  # NEWUSER | NEWNET | NEWNS | NEWPID | NEWIPC
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_OPEN_TREE, _CLONE_TREE, _MOVE_MOUNT, _EMPTY_PATH = 428, 0x1, 429, 0x4
_READ_ONLY = struct.pack("QQQQ", 1, 0, 0, 0)  # MOUNT_ATTR_RDONLY
_NO_SET_ID_OR_DEVICES = 0x2 | 0x4  # MS_NOSUID | MS_NODEV
_PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 38, 1
_PLACE = "/tmp"


def passes(program: str, tests: str) -> bool | None:
    """Whether `program` and then `tests` run to their end; None when they were stopped after SECONDS.

    Raises: RuntimeError where the system does not allow the confinement.
    """
    check_available()
    end = secrets.token_hex(16)  # printed by the last line: an early exit is no success
    done = _run(f"{program}\n\n{tests}\n\nprint({end!r})\n", SECONDS)
    return None if done is None else done.rstrip().endswith(end)


@cache
def check_available() -> None:
    """Raises: RuntimeError when a program cannot be confined here."""
    done = _run("print('confined')", SECONDS)
    if done is None or done.strip() != "confined":
        raise RuntimeError(
            "model-written code is not run here: the system allows no user namespaces; enable them"
            " (sysctl kernel.unprivileged_userns_clone=1, or a container with --security-opt seccomp=unconfined)"
        )


def _run(source: str, seconds: float) -> str | None:
    """The end of its standard output; None after `seconds`. The program is on standard input, so it needs no file."""
    process = subprocess.Popen(
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(source.encode("utf-8", "replace"), timeout=seconds)
    except subprocess.TimeoutExpired:
        # The outer process dies, and with it, by PDEATHSIG, the first one of the namespace and all that it started.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    return output[-4096:].decode("utf-8", "replace")


def _confine_and_run() -> None:
    """In the new process: enter the namespaces, give everything up, become the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(_CLONE))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    first = os.fork()  # the first process of the new PID namespace; when it ends, the kernel kills all others in it
    if first:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0x7F)
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    _check(libc.mount(None, b"/", None, _MS_REC_PRIVATE, None))
    _check(libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, _READ_ONLY, len(_READ_ONLY)))
    # An interpreter that lies in the directory which is about to be covered is laid over it again.
    pythons = {prefix for prefix in (sys.prefix, sys.base_prefix) if prefix.startswith(f"{_PLACE}/")}
    flags = _CLONE_TREE | _AT_RECURSIVE
    trees = {prefix: libc.syscall(_OPEN_TREE, _AT_FDCWD, prefix.encode(), flags) for prefix in pythons}
    for place, size in ((b"/proc", 4096), (_PLACE.encode(), FILE_BYTES)):
        _check(libc.mount(b"tmpfs", place, b"tmpfs", _NO_SET_ID_OR_DEVICES, f"size={size}".encode()))
    for prefix, tree in trees.items():
        os.makedirs(prefix)
        _check(libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, prefix.encode(), _EMPTY_PATH))
        os.close(tree)
    os.chdir(_PLACE)
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, int(SECONDS)),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.execv(sys.executable, [sys.executable, "-I", "-"])


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    _confine_and_run()
