"""The Triton kernels on CPU: the tests of the ops once more, in Triton's interpreter.

In its own process, because Triton reads TRITON_INTERPRET when it is first imported, and torch imports Triton.
"""

import os
import subprocess
import sys
from pathlib import Path

FILES = (
    "unit/test_target_logprob.py",
    "unit/test_top_logprob.py",
    "unit/test_lm_head.py",
    "engines/interpreted_launches.py",
)


def test_kernels_pass_the_tests_of_the_ops():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    result = subprocess.run(
        [*command, *(f"tests/{file}" for file in FILES)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
