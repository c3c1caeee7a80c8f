"""Model-written programs: what they are judged by, and that they can do no harm."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation import sandbox
from evaluation.sandbox import passes

ROOT = Path(__file__).parents[2]


def attempt(code: str, tests: str = "") -> bool | None:
    """Whether `code` ran to its end, inside."""
    return passes(code, tests)


def test_a_program_passes_when_its_tests_do():
    assert passes("def f(x):\n    return x + 1", "assert f(1) == 2") is True
    assert passes("def f(x):\n    return x", "assert f(1) == 2") is False
    assert passes("def f(x):", "assert f(1) == 2") is False
    assert passes("é = '\ud800'", "assert len(é) == 1") is True


def test_an_early_exit_is_no_success():
    assert passes("import sys\nsys.exit(0)", "assert False") is False
    assert passes("import os\nos._exit(0)", "assert False") is False
    assert passes("print('x' * 100_000)", "assert True") is True


def test_there_is_no_network():
    """Not even to this machine, where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert attempt(code) is False
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
    assert attempt("import socket\nassert [name for _, name in socket.if_nameindex()] in (['lo'], [])") is True


@pytest.fixture(params=["under /tmp", "elsewhere"])
def folder(request, tmp_path):
    """Under /tmp, which is another one inside, and where it is not."""
    if request.param == "under /tmp":
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:
            yield Path(name)


def test_files_are_out_of_reach(folder):
    victim = folder / "victim"
    victim.write_text("kept")
    for action in (f"open({str(victim)!r}, 'w')", f"os.remove({str(victim)!r})", f"os.mkdir({str(folder / 'new')!r})"):
        assert attempt(f"import os\n{action}") is False
    assert victim.read_text() == "kept"
    assert [path.name for path in folder.iterdir()] == ["victim"]


def test_its_own_files_are_gone():
    name = f"sandbox-{os.getpid()}"
    assert attempt(f"open({name!r}, 'w').write('x')\nassert open({name!r}).read() == 'x'") is True
    assert not Path("/tmp", name).exists()
    assert not Path(name).exists()


def test_it_has_no_rights_and_sees_no_other_process():
    assert attempt("import os\nassert os.getuid() == 65534\nassert os.listdir('/proc') == []") is True
    assert attempt(f"import os\nos.kill({os.getpid()}, 0)") is False
    undo = "import ctypes\nassert ctypes.CDLL(None).mount(b'tmpfs', b'/mnt', b'tmpfs', 0, None) == 0"
    assert attempt(undo) is False
    assert attempt("import os\nassert 'HOME' not in os.environ and len(os.environ) < 6") is True


def test_memory_and_files_are_limited():
    assert attempt("x = bytearray(5 << 30)") is False
    assert attempt("open('x', 'wb').write(bytes(17 << 20))") is False
    many = "files = [open(str(i), 'w') for i in range({})]"
    assert attempt(many.format(30)) is True
    assert attempt(many.format(100)) is False


def test_output_is_bounded_while_it_is_read(monkeypatch):
    """Of what a program prints the end is kept; without end, it is stopped, and this process never held it."""
    assert passes("for _ in range(50):\n    print('x' * 1_000_000)", "") is True
    flood = "while True:\n    print('x' * 1_000_000)"
    before = _resident_bytes()
    assert passes(flood, "") is False
    monkeypatch.setattr(sandbox, "OUTPUT_BYTES", 1 << 60)
    monkeypatch.setattr(sandbox, "SECONDS", 2.0)
    assert passes(flood, "") is None
    assert _resident_bytes() - before < 64 << 20  # in 2 s it prints gigabytes


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True:\n    os.fork()",
        "import os\nwhile True:\n    if os.fork() == 0:\n        os._exit(0)",  # zombies count, too
        "import os\nos.system('b() { b | b & }; b; sleep 600')",
        "import subprocess\nfor _ in range(40):\n    subprocess.Popen(['sleep', '600'], start_new_session=True)",
    ],
    ids=["doubling", "zombies", "shell", "other programs"],
)
def test_processes_without_end_are_stopped_for_root_too(bomb):
    """Linux exempts root from RLIMIT_NPROC: they are counted. False, and not None: nobody waited for the time limit."""
    before = _processes()
    assert passes(bomb + "\nwhile True:\n    pass", "") is False
    assert _settles(lambda: not _of_sandboxes() - before)


def test_some_processes_are_no_bomb():
    run = "import subprocess, sys\ndone = subprocess.run([sys.executable, '-c', 'print(6)'], capture_output=True)"
    assert passes(run, "assert done.stdout == b'6\\n'") is True
    many = (
        "import os\nfor _ in range(200):\n    if os.fork() == 0:\n        os._exit(0)\n    os.wait()"  # one at a time
    )
    assert passes(many, "") is True


def test_memory_of_all_processes_together_is_limited(monkeypatch):
    monkeypatch.setattr(sandbox, "MEMORY_BYTES", 400 << 20)
    each = (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n"
        "        x = b'x' * ({} << 20)\n        time.sleep(600)\n"
    )
    assert passes(each.format(200) + "time.sleep(600)", "") is False
    assert passes(each.format(20), "") is True


def test_what_a_program_leaves_behind_ends_with_it():
    before = _processes()
    leave = "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)"
    assert passes(leave, "") is True
    assert _settles(lambda: not _of_sandboxes() - before)


def test_programs_end_with_the_evaluation():
    """Also by SIGKILL, which runs no handler: the kernel ends the program with the process that waits for it."""
    before = _processes()
    script = "from evaluation.sandbox import passes; passes('import time; time.sleep(600)', '')"
    evaluation = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        assert _settles(lambda: len(_of_sandboxes() - before) >= 3)  # the outer process, the first one, the program
    finally:
        evaluation.kill()
        evaluation.wait()
    assert _settles(lambda: not _of_sandboxes() - before)


def test_services_are_out_of_reach():
    """Their sockets are files, which no network namespace hides."""
    assert passes("import os\nassert os.listdir('/run') == []", "") is True


def test_time_is_limited_also_for_what_it_leaves_behind(monkeypatch):
    """A child in a session of its own survives its parent's group, but not its namespace."""
    monkeypatch.setattr(sandbox, "SECONDS", 1.5)
    assert passes("while True:\n    pass", "") is None
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\ntime.sleep(600)"
    before = _processes()
    assert passes(code, "") is None
    assert _settles(lambda: not _of_sandboxes() - before)


def _processes() -> set[str]:
    return {name for name in os.listdir("/proc") if name.isdigit()}


def _of_sandboxes() -> set[str]:
    """Processes that confine a program or are confined, also those that nobody has waited for."""
    found = set()
    for number in _processes():
        try:
            arguments = Path("/proc", number, "cmdline").read_bytes().split(b"\0")
            nested = len(
                re.search(r"^NSpid:(.*)", Path("/proc", number, "status").read_text(), re.MULTILINE)[1].split()
            )
        except OSError:
            continue
        if nested > DEPTH or str(sandbox.__file__).encode() in arguments:
            found.add(number)
    return found


DEPTH = len(re.search(r"^NSpid:(.*)", Path("/proc/self/status").read_text(), re.MULTILINE)[1].split())


def _settles(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true; a loaded machine takes its time."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_without_namespaces_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_run", lambda source, seconds: "")
    sandbox.check_available.cache_clear()
    with pytest.raises(RuntimeError, match="not run here: the system allows no user namespaces"):
        passes("print(1)", "")
    sandbox.check_available.cache_clear()
