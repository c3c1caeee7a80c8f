"""Run a program that a model wrote, with its tests, where it can do no harm: `passes`.

A process in namespaces of its own: no network, no other process to signal or to look at, every file system read-only,
no service's socket under /run, an empty directory in memory as the only place to write; and limits on time, output,
memory, processes, file sizes, open files. Memory and processes are counted for all that the program starts, twenty
times a second, because Linux limits memory for each process alone, and the number of processes not at all for root.
What it leaves behind ends with it, and everything ends with the evaluation.
If the system does not allow that (unprivileged user namespaces are off), nothing runs.
"""

import ctypes
import os
import resource
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from functools import cache
from typing import IO

SECONDS = 20.0  # of the whole program with its tests, wall time
MEMORY_BYTES = 4 << 30  # address space of a process, as EvalPlus gives, and memory of all together
OUTPUT_BYTES = 64 << 20  # what it may print
TAIL_BYTES = 4096  # of that, what is kept
FILE_BYTES = 16 << 20  # largest file, and size of the directory
OPEN_FILES = 64
PROCESSES = 32  # and threads, where the user is not root
NICE = 10  # so that a program which starts processes without end does not delay its own end
LOOK_SECONDS = 0.05  # between two counts of its processes and their memory
END_SECONDS = 5.0  # to end when asked to
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
    """The end of its standard output, "" where it broke a limit; None after `seconds`.

    The program is on standard input, so it needs no file.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        bufsize=0,
    )
    try:
        return _watch(process, source.encode("utf-8", "replace"), time.monotonic() + seconds)
    finally:
        _end(process)


def _watch(process: subprocess.Popen, source: bytes, deadline: float) -> str | None:
    """Feed the program and read what it prints, of which only the end is kept; look now and then what it takes."""
    assert process.stdin is not None
    assert process.stdout is not None
    tail, size, look_at = b"", 0, time.monotonic() + LOOK_SECONDS
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while (now := time.monotonic()) < deadline:
            if now >= look_at:
                if _takes_too_much(process.pid):
                    return ""
                look_at = time.monotonic() + LOOK_SECONDS
            for key, _ in selector.select(max(0.0, min(deadline, look_at) - now)):
                if key.fileobj is process.stdin:
                    source = _feed(process.stdin, source)
                    if not source:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                block = os.read(key.fd, 1 << 16)
                size += len(block)
                if not block or size > OUTPUT_BYTES:
                    return "" if block else tail.decode("utf-8", "replace")
                tail = (tail + block)[-TAIL_BYTES:]
    return None


def _feed(pipe: IO[bytes], source: bytes) -> bytes:
    """Write what the pipe takes; returns the rest, nothing where nobody reads any more."""
    try:
        return source[os.write(pipe.fileno(), source[: 1 << 16]) :]
    except BrokenPipeError:
        return b""


def _takes_too_much(outer: int) -> bool:
    """Whether the processes of the namespace that `outer` made are too many, or have too much memory together.

    Limits of the kernel's are for each process, and that on processes does not bind root.
    """
    num_processes = num_bytes = 0
    try:
        namespace = os.readlink(f"/proc/{outer}/ns/pid_for_children")
        if namespace == os.readlink("/proc/self/ns/pid"):
            return False  # it has not made one yet
    except OSError:
        return False
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{number}/ns/pid") == namespace:
                num_processes += 1
                with open(f"/proc/{number}/statm", encoding="ascii") as file:
                    num_bytes += int(file.read().split()[1]) * resource.getpagesize()
        except OSError:
            continue  # it has ended, or is not ours to look at
        if num_processes > PROCESSES + 1 or num_bytes > MEMORY_BYTES:
            return True
    return False


def _end(process: subprocess.Popen) -> None:
    """End the outer process, which ends the namespace and waits for it; by force, the kernel ends the namespace."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)  # does nothing where it has been waited for
        try:
            process.wait(timeout=END_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _confine_and_run(parent: int) -> None:
    """In the new process: enter the namespaces, give everything up, become the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    _end_with(libc, parent)
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(_CLONE))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    _become_first(libc)
    _hide_files(libc)
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


def _end_with(libc: ctypes.CDLL, parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; end now where `parent` has ended before."""
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(1)


def _become_first(libc: ctypes.CDLL) -> None:
    """Make the first process of the new namespace, and go on as its child. When it ends, the kernel kills all in it.

    The outer process stays, to wait for it, and to end it when asked (SIGTERM) or killed (PDEATHSIG). It answers once,
    so that the first one, which cannot ask for its parent's number, knows that it was there when the request was made.
    The first one waits, too: among thousands of busy processes, one that sleeps is the first to hear that it must end.
    """
    ours, outers = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    first = os.fork()
    if first:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
        ours.close()
        outers.sendall(outers.recv(1))
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0x7F)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    outers.close()
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    ours.sendall(b"?")
    if not ours.recv(1):
        os._exit(1)
    ours.close()
    program = os.fork()
    if program:
        while True:  # what the program leaves behind is its child now
            ended, status = os.wait()
            if ended == program:
                os._exit(os.waitstatus_to_exitcode(status) & 0x7F)
    os.nice(NICE)


def _hide_files(libc: ctypes.CDLL) -> None:
    """Make every file system read-only, and cover what must not be seen: processes, sockets of services, /tmp."""
    _check(libc.mount(None, b"/", None, _MS_REC_PRIVATE, None))
    _check(libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, _READ_ONLY, len(_READ_ONLY)))
    # An interpreter that lies in the directory which is about to be covered is laid over it again.
    pythons = {prefix for prefix in (sys.prefix, sys.base_prefix) if prefix.startswith(f"{_PLACE}/")}
    flags = _CLONE_TREE | _AT_RECURSIVE
    trees = {prefix: libc.syscall(_OPEN_TREE, _AT_FDCWD, prefix.encode(), flags) for prefix in pythons}
    for place, size in (("/proc", 4096), ("/run", 4096), (_PLACE, FILE_BYTES)):
        if os.path.isdir(place):
            options = f"size={size}".encode()
            _check(libc.mount(b"tmpfs", place.encode(), b"tmpfs", _NO_SET_ID_OR_DEVICES, options))
    for prefix, tree in trees.items():
        os.makedirs(prefix)
        _check(libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, prefix.encode(), _EMPTY_PATH))
        os.close(tree)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    _confine_and_run(int(sys.argv[1]))
