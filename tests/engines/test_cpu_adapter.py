"""Every patch of the CPU adapter is still needed, and none is applied where CUDA is."""

from __future__ import annotations

import pytest
import torch
from packaging.specifiers import SpecifierSet

from nemo_probsft.adapters.megatron.cpu import refuse_on
from nemo_probsft.adapters.nemo import cpu
from tests.support.engine import first_error

if torch.cuda.is_available():
    pytest.skip("the CPU adapter refuses to run where CUDA is", allow_module_level=True)


@pytest.mark.parametrize("patch", cpu.PATCHES, ids=lambda patch: patch.name)
def test_upstream_still_fails_without_the_patch(patch):
    """When this fails, upstream works on a CPU by itself: delete the patch."""
    from nemo.utils.import_utils import UnavailableError

    with pytest.raises((RuntimeError, AssertionError, AttributeError, TypeError, UnavailableError)):
        patch.probe()


@pytest.mark.parametrize("patch", cpu.PATCHES, ids=lambda patch: patch.name)
def test_the_installed_package_is_in_the_patch_s_range(patch):
    import importlib.metadata

    version = importlib.metadata.version(patch.package)
    assert SpecifierSet(patch.versions).contains(version, prereleases=True)


def probe_all(job, output):
    from nemo_probsft.adapters.nemo import trainer  # noqa: F401  applies them

    for patch in cpu.PATCHES:
        patch.probe()


def test_all_patches_together_make_the_probes_pass(engine, tmp_path):
    """In a process of its own: the patches stay for good."""
    job = {"task": f"{__name__}:probe_all", "world_size": 1, "output": str(tmp_path / "probed")}
    engine.run([job])
    assert not (error := first_error([job])), error


def draw_in_a_fork(job, output):
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    from nemo_probsft.adapters.nemo import trainer  # noqa: F401  applies the patches

    tracker = CudaRNGStatesTracker()
    tracker.add("model-parallel-rng", 1)
    before = torch.get_rng_state()
    with tracker.fork():
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_in_a_fork_of_the_generator_is_not_warned_of(engine, tmp_path):
    """Megatron takes it for a mistake, since the CPU's generator is the one that it forks."""
    job = {"task": f"{__name__}:draw_in_a_fork", "world_size": 1, "output": str(tmp_path / "drawn")}
    engine.run([job])
    assert not (error := first_error([job])), error
    assert "RNG" not in (tmp_path / "drawn" / "rank-0.log").read_text()


def test_it_refuses_where_cuda_is():
    with pytest.raises(ValueError, match="on a machine with CUDA"):
        refuse_on(cuda=True)
    refuse_on(cuda=False)
