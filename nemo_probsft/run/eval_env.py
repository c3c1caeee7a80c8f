"""The Python that runs vLLM: NeMo and vLLM cannot share an environment (transformers 4 against 5)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_probsft.files import SOURCE_ROOT

VARIABLE = "NEMO_PROBSFT_EVAL_PYTHON"


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
    """`python -m evaluation ARGUMENTS` in that Python; its exit code."""
    root = str(SOURCE_ROOT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    return subprocess.run([evaluation_python(), "-m", "evaluation", *arguments], env=environment).returncode
