"""The examples that need torch only, run as a reader runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [(), ("p",), ("OnlyTopLogP-0.005",)])
def test_the_loss_in_ten_lines_learns(arguments):
    line = [sys.executable, "examples/loss_in_ten_lines.py", *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    run = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    first, last = (float(p) for p in re.findall(r"p ([\d.]+)$", run.stdout, re.MULTILINE))
    assert last > 2 * first
