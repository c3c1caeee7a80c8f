"""What happens where a Python is missing: one line, and tests that are left out and counted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_CI = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
A_TEST_OF_BRIDGE = """
import pytest

def test_with_the_fixture(bridge): ...
@pytest.mark.bridge
def test_with_the_marker(): ...
def test_of_neither(): ...
"""


@pytest.fixture
def set_up(tmp_path):
    """venv.sh alone in a repository, with a PATH that has no Python of another version than the system's."""
    (tmp_path / "requirements").mkdir()
    for name in ("venv.sh", "bridge.lock", "train.lock"):
        shutil.copy(ROOT / "requirements" / name, tmp_path / "requirements")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "tr", "cmp", "rm"):
        (tools / name).symlink_to(shutil.which(name))

    def run(*arguments, **variables):
        command = [tmp_path / "requirements" / "venv.sh", *arguments]
        environment = {"PATH": str(tools), "HOME": str(tmp_path), **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("name", "version", "engine"), [("bridge", "3.12", "Megatron-Bridge"), ("train", "3.11", "NeMo 2")]
)
def test_a_missing_python_is_one_line_with_its_version_its_use_and_the_remedy(set_up, name, version, engine):
    ended = set_up(name)
    assert (ended.returncode, ended.stdout) == (1, "")
    variable = f"PYTHON{version.replace('.', '')}"
    assert ended.stderr == (
        f"venv.sh: .venv/{name} ({engine}) needs Python {version} with venv, "
        f"and python{version} does not run or is another; "
        f"install it (pyenv install {version}) or name it: make {variable}=/path/to/python{version} ...\n"
    )


def test_one_pin_of_one_lock_is_taken_with_another_platform_s_tag():
    """An older one of the same package, in another lock, has no wheel with that tag: pip would find none."""
    script = (ROOT / "requirements" / "venv.sh").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"^NEWER_GLIBC='(.*?)'", script, re.MULTILINE)
    pins = [line for lock in (ROOT / "requirements").glob("*.lock") for line in lock.read_text().splitlines()]
    assert [pin for pin in pins if re.search(pattern, pin)] == ["nvidia-resiliency-ext==0.6.0"]


def test_a_python_that_is_named_is_not_replaced_by_another(set_up):
    (other,) = {"3.11", "3.12"} - {"{}.{}".format(*sys.version_info)}
    name = {"3.11": "train", "3.12": "bridge"}[other]
    ended = set_up(name, **{f"PYTHON{other.replace('.', '')}": sys.executable})
    assert ended.returncode == 1
    assert f"and {sys.executable} does not run or is another" in ended.stderr


def test_an_optional_environment_may_lack_its_python_but_not_in_ci(set_up):
    ended = set_up("bridge", "--optional")
    assert (ended.returncode, ended.stderr) == (0, "")
    for variable in ("CI", "GITHUB_ACTIONS"):
        ended = set_up("bridge", "--optional", **{variable: "true"})
        assert ended.returncode == 1
        assert "needs Python 3.12" in ended.stderr


@pytest.fixture
def suite(tmp_path):
    """The tests' conftest.py in a repository that has no .venv/bridge."""
    for file in (
        "pyproject.toml",
        "tests/__init__.py",
        "tests/conftest.py",
        "tests/support/__init__.py",
        "tests/support/engine.py",
        "tests/support/real.py",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "tests" / "test_bridge.py").write_text(A_TEST_OF_BRIDGE)

    def run(*options, **variables):
        command = [sys.executable, "-m", "pytest", "-q", f"--basetemp={tmp_path / 'base'}", *options]
        return subprocess.run(command, cwd=tmp_path, env={**NOT_CI, **variables}, capture_output=True, text=True)

    return run


def test_tests_of_bridge_are_left_out_and_counted_in_the_last_lines(suite):
    ended = suite("--numprocesses=2")
    assert ended.returncode == 0, ended.stdout
    *_, counted, summary = ended.stdout.splitlines()
    assert counted == "2 tests need Megatron-Bridge (Python 3.12, make setup-bridge) and were left out"
    assert summary.startswith("1 passed")


def test_in_ci_they_fail(suite):
    ended = suite("-p", "no:xdist", CI="true")
    assert ended.returncode == 1
    assert "1 passed, 2 errors" in ended.stdout
    assert "needs Megatron-Bridge, which CI must have: Python 3.12, make setup-bridge" in ended.stdout
