"""The Python that runs vLLM: NeMo and vLLM cannot share an environment (transformers 4 against 5)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_probsft.command_line import interruptible
from nemo_probsft.files import SOURCE_ROOT
from nemo_probsft.run.parents import ending_with_this

VARIABLE = "NEMO_PROBSFT_EVAL_PYTHON"
END_SECONDS = 30.0  # for an evaluation to write what it has finished


def evaluation_python() -> str:
    """This Python where it has vLLM, else that of the environment `eval` beside this one. Raises ValueError without."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    beside = Path(sys.prefix).parent / "eval" / "bin" / "python"
    if not beside.exists():
        raise ValueError(
            f"no vLLM here and no {beside}; run `make setup-eval`, or name a Python that has vLLM in {VARIABLE}"
        )
    return str(beside)


def results_dir(model_dir: Path, output: Path) -> Path:
    """Where `eval --output OUTPUT` writes the results of a model: runs/strong-p/export has OUTPUT/strong-p-export."""
    return output / "-".join(model_dir.resolve().parts[-2:]).lstrip("/-")


def evaluate(arguments: Sequence[str]) -> int:
    """`python -m evaluation ARGUMENTS` in that Python; its exit code.

    Ctrl-C and SIGTERM end it before they end this process; a `kill -9` of this process ends it, too.
    """
    path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
    environment = ending_with_this() | {"PYTHONPATH": path}
    process = subprocess.Popen([evaluation_python(), "-m", "evaluation", *arguments], env=environment)
    try:
        with interruptible("the evaluation ended, too"):
            return process.wait()
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=END_SECONDS)
        finally:
            process.kill()
            process.wait()
