"""Killed, out of space, without permission: the target is complete or absent, and nothing else is written anywhere."""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from conversion import export_hf, import_hf
from nemo_probsft.__main__ import main
from tests.support import full_disk
from tests.support.conversion_models import make_hf

FORKS = multiprocessing.get_context("forkserver")  # a fork of this process would hang where torch has started threads
PRELOADED = ("tests.engines.test_conversion_interrupted", "conversion.convert", "torch._dynamo", "torch.distributed")
DIRECTIONS = {"import": import_hf, "export": export_hf, "to Bridge": partial(import_hf, engine="bridge")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What each direction starts from."""
    # There is one fork server a process, and `tests.support.ranks`, imported later, has said what it wants in it.
    FORKS.set_forkserver_preload([*PRELOADED, "hypothesis"])
    folder = tmp_path_factory.mktemp("sources")
    make_hf(folder / "hf", "qwen2-tied-301")
    import_hf(folder / "hf", folder / "nemo")
    return {"import": folder / "hf", "export": folder / "nemo", "to Bridge": folder / "nemo"}


def tree(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def convert_until(direction: str, source: Path, target: Path, event: int) -> None:
    """Kill this process just before its `event`-th call to the system that names a file beside or in the target."""
    count = 0

    def hook(name: str, arguments: tuple) -> None:
        nonlocal count
        if any(str(target.parent) in str(argument) for argument in arguments):
            count += 1
            if count > event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    DIRECTIONS[direction](source, target)
    os._exit(0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_killed_at_every_step_the_target_is_complete_or_absent(sources, tmp_path, direction):
    convert, source = DIRECTIONS[direction], sources[direction]
    convert(source, tmp_path / "expected")
    expected = tree(tmp_path / "expected")
    seen, event = set(), 0
    while True:
        process = FORKS.Process(target=convert_until, args=(direction, source, tmp_path / "out", event))
        process.start()
        process.join(60)
        seen.add(state := (process.exitcode, (tmp_path / "out").exists()))
        assert process.exitcode in (0, -signal.SIGKILL)
        if (tmp_path / "out").exists():
            assert tree(tmp_path / "out") == expected
        if process.exitcode == 0:
            break
        if event % 10 == 0 and not state[1]:
            convert(source, tmp_path / "out")
            assert tree(tmp_path / "out") == expected
            assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        event += 1
    assert event > 20
    assert seen == {(-signal.SIGKILL, False), (-signal.SIGKILL, True), (0, True)}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_everything_is_on_the_disk_before_the_target_has_its_name(sources, tmp_path, monkeypatch, direction):
    """Otherwise a power cut could leave a target with empty files."""
    flushed, renamed_after = {}, None

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed[path] = tree(path) if path.is_dir() else path.read_bytes()

    def rename(path: Path, target: Path) -> Path:
        nonlocal renamed_after
        if target == tmp_path / "out":
            renamed_after = {found.relative_to(path): content for found, content in flushed.items()}
        os.rename(path, target)
        return target

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    DIRECTIONS[direction](sources[direction], tmp_path / "out")
    written = {Path("."), *(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))}
    assert set(renamed_after) == written
    assert all(renamed_after[Path(name)] == content for name, content in tree(tmp_path / "out").items())
    assert tmp_path in flushed, "the name itself"


def import_that_stops_half_way(source: Path, target: Path, half_way) -> None:
    from conversion import convert

    convert.copy_model_files = lambda *_: (half_way.set(), time.sleep(60))
    sys.exit(main(["convert", "import", str(source), str(target)]))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_conversion_cleans_up_and_is_alone(sources, tmp_path, how):
    half_way = FORKS.Event()
    process = FORKS.Process(target=import_that_stops_half_way, args=(sources["import"], tmp_path / "nemo", half_way))
    process.start()
    assert half_way.wait(60)
    with pytest.raises(ValueError, match="another process is writing it right now"):
        import_hf(sources["import"], tmp_path / "nemo")
    os.kill(process.pid, how)
    process.join(60)
    assert process.exitcode == 130
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def file_size_limit(num_bytes: int):
    """Writing beyond it fails as on a full disk, with EFBIG for ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("limit", [0, 1000, 300_000])
def test_no_space_half_way(sources, tmp_path, direction, limit):
    with file_size_limit(limit), pytest.raises(ValueError, match=r"no space left; [\d,]+ bytes are needed") as error:
        DIRECTIONS[direction](sources[direction], tmp_path / "new" / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_really_full(sources, tmp_path):
    for name, source in (("hf", sources["import"]), ("nemo", sources["export"])):
        shutil.copytree(source, tmp_path / name)
    said = full_disk.run("convert", tmp_path)
    assert said.endswith("as expected\n"), said


def test_too_little_space_is_known_before_anything_is_written(sources, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"1,000 bytes free, but [\d,]+ are needed"):
        import_hf(sources["import"], tmp_path / "nemo")
    assert list(tmp_path.iterdir()) == []


class Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextlib.contextmanager
def file_permissions_apply():
    """Also to root: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (Capabilities * 2)()
    assert libc.capget(header, held) == 0
    effective = held[0].effective
    held[0].effective = effective & ~0b110
    assert libc.capset(header, held) == 0
    try:
        yield
    finally:
        held[0].effective = effective
        assert libc.capset(header, held) == 0


FORBIDDEN = {
    "weights": ("hf/model.safetensors", 0o000, r"model.safetensors: Permission denied"),
    "tokenizer": ("hf/tokenizer.json", 0o000, r"tokenizer.json: Permission denied"),
    "source": ("hf", 0o000, r"hf: Permission denied"),
    "parent of the target": ("target", 0o555, r"target: no permission to write"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_permission(sources, tmp_path, what):
    name, mode, message = FORBIDDEN[what]
    shutil.copytree(sources["import"], tmp_path / "hf")
    (tmp_path / "target").mkdir()
    (tmp_path / name).chmod(mode)
    try:
        with file_permissions_apply(), pytest.raises(ValueError, match=message):
            import_hf(tmp_path / "hf", tmp_path / "target" / "nemo")
    finally:
        (tmp_path / name).chmod(0o755)
    assert list((tmp_path / "target").iterdir()) == []


def test_no_file_outside_the_target_is_written(sources, tmp_path):
    shutil.copytree(sources["import"], tmp_path / "hf")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "hf").rglob("*"))}
    elsewhere = {name: tmp_path / name for name in ("HOME", "TMPDIR", "HF_HOME", "cwd")}
    for directory in elsewhere.values():
        directory.mkdir()
    commands = (["import", "../hf", "../nemo"], ["export", "../nemo", "../back"], ["verify", "../hf", "../back"])
    code = f"from nemo_probsft.__main__ import main\nassert [main(['convert', *c]) for c in {commands}] == [0, 0, 0]"
    environment = os.environ | {name: str(path) for name, path in elsewhere.items()}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=elsewhere["cwd"], env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "hf").rglob("*"))} == before
    assert [list(directory.iterdir()) for directory in elsewhere.values()] == [[], [], [], []]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*elsewhere, "back", "hf", "nemo"])
