"""Every patch for Bridge without CUDA is still needed: in a process without it, its probe fails."""

from __future__ import annotations

import subprocess

import pytest
import torch

from nemo_probsft.adapters.bridge import cpu
from tests.support.engine import BRIDGE_PYTHON, Engine, environment, first_error

if torch.cuda.is_available():
    pytest.skip("the CPU adapter refuses to run where CUDA is", allow_module_level=True)

WHAT_IS_RAISED = {
    "torch_cuda": "Found no NVIDIA driver",
    "devices": "Found no NVIDIA driver",
    "rng_tracker": "Found no NVIDIA driver",
    "norm": "sequence parallel not supported",
    "transformer_engine": "No module named 'transformer_engine'",
    "cuda_assertion": "Megatron requires CUDA",
    "compile_helpers": "SystemExit",
    "bridge_lora_layers": "isinstance() arg 2",
}
NAMES = [patch.name for patch in cpu.PATCHES]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{the patch that was left out, "" for none: what was raised, as a line}."""
    jobs = [
        {
            "task": f"{__name__}:probe_without",
            "world_size": 1,
            "output": str(tmp_path_factory.mktemp("p") / name),
            "name": name,
        }
        for name in ["none", *NAMES]
    ]
    with Engine(BRIDGE_PYTHON, ("torch._dynamo",)) as unpatched:
        unpatched.run(jobs)
    assert not (error := first_error(jobs)), error
    return {job["name"]: torch.load(f"{job['output']}/rank-0.pt", weights_only=True) for job in jobs}


def probe_without(job, output):
    """Bridge's own patches build on those before them; Megatron's are asked on Megatron as it is."""
    left_out = [patch for patch in cpu.PATCHES if patch.name == job["name"]]
    before = cpu.PATCHES if not left_out else cpu.PATCHES[: cpu.PATCHES.index(left_out[0])]
    if not left_out or left_out[0].package == "megatron-bridge":
        for patch in before:
            patch.apply()
    raised = ""
    try:
        for patch in left_out or cpu.PATCHES:
            patch.probe()
    except (Exception, SystemExit) as error:
        raised = f"{type(error).__name__}: {error}"
    torch.save(raised, output)


@pytest.mark.bridge
@pytest.mark.parametrize("name", NAMES)
def test_upstream_still_fails_without_the_patch(said, name):
    """When this fails, upstream works on a CPU by itself: delete the patch."""
    assert WHAT_IS_RAISED[name] in said[name]


@pytest.mark.bridge
def test_all_patches_together_make_the_probes_pass(said):
    assert not said["none"]


@pytest.mark.bridge
@pytest.mark.parametrize("patch", cpu.PATCHES, ids=lambda patch: patch.name)
def test_the_installed_package_is_in_the_patch_s_range(patch):
    check = (
        "import sys, importlib.metadata, packaging.specifiers as s; "
        "sys.exit(not s.SpecifierSet(sys.argv[2]).contains(importlib.metadata.version(sys.argv[1]), prereleases=True))"
    )
    line = [BRIDGE_PYTHON, "-c", check, patch.package, patch.versions]
    assert subprocess.run(line, env=environment(BRIDGE_PYTHON)).returncode == 0
