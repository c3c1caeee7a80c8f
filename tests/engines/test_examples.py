"""The examples that need an engine, run as a reader runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*line, timeout_s):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHON": sys.executable}
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout_s)


@pytest.mark.parametrize("key", ["original", "p"])
def test_the_hook_in_a_megatron_loop_of_ones_own_learns(key):
    done = run(sys.executable, "examples/own_megatron_loop.py", key, timeout_s=600)
    assert done.returncode == 0, done.stderr
    first, last = (float(p) for p in re.findall(r"p ([\d.]+)$", done.stdout, re.MULTILINE))
    assert last > 1.5 * first


def test_diagnose_then_sweep(tmp_path):
    done = run("examples/diagnose_then_sweep.sh", str(tmp_path), timeout_s=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 cells, 2 to train" in done.stdout
    for page in ("diagnose/diagnose.html", "report/report.html"):
        assert (tmp_path / "run" / page).exists(), page
