"""Model-written programs: what they are judged by, and that they can do no harm."""

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from evaluation import sandbox
from evaluation.sandbox import passes


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


def test_time_is_limited_also_for_what_it_leaves_behind(monkeypatch):
    """A child in a session of its own survives its parent's group, but not its namespace."""
    monkeypatch.setattr(sandbox, "SECONDS", 1.5)
    assert passes("while True:\n    pass", "") is None
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\ntime.sleep(600)"
    before = set(_pythons())
    assert passes(code, "") is None
    deadline = time.monotonic() + 5
    while set(_pythons()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(_pythons()) - before


def _pythons() -> list[str]:
    """Processes that run a program from standard input."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[1:3] == [b"-I", b"-"]:
            found.append(path.parent.name)
    return found


def test_without_namespaces_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_run", lambda source, seconds: "")
    sandbox.check_available.cache_clear()
    with pytest.raises(RuntimeError, match="not run here: the system allows no user namespaces"):
        passes("print(1)", "")
    sandbox.check_available.cache_clear()
