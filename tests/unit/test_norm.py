"""The sum of squares of a gradient, against float64 on the whole."""

from __future__ import annotations

import pytest
import torch

from nemo_probsft.adapters.megatron.norm import PART, sum_of_squares

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LARGE = 28_000_000  # values of an embedding: 49,152 x 576
EXACT = 1e-11


def gradient(size: int, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (0.1 + torch.rand(size, generator=torch.Generator().manual_seed(size))).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_that_of_float64_where_fp32_is_not(device):
    tensors = [gradient(size, device) for size in (LARGE, 1, PART, PART + 1, 7)]
    truth = sum(tensor.double().square().sum().item() for tensor in tensors)
    found = sum_of_squares(tensors, device)
    assert (found.dtype, found.shape, found.device.type) == (torch.float64, (), device)
    assert abs(found.item() / truth - 1) < EXACT
    in_fp32 = sum(torch.norm(tensor).double().item() ** 2 for tensor in tensors)
    assert device == "cuda" or abs(in_fp32 / truth - 1) > 1e-6  # CUDA adds in a tree


@pytest.mark.parametrize("device", DEVICES)
def test_views_other_types_and_nothing_at_all(device):
    matrix = gradient(6 * PART, device).view(6, PART)
    for tensors in ([matrix.t()], [matrix[:, ::2], gradient(0, device)], [matrix.bfloat16()], [matrix, matrix.half()]):
        truth = sum(tensor.double().square().sum().item() for tensor in tensors)
        assert abs(sum_of_squares(tensors, device).item() / truth - 1) < EXACT
    assert sum_of_squares([], device).item() == 0
    assert sum_of_squares([torch.full((3,), float("inf"), device=device)], device).item() == float("inf")
    assert sum_of_squares([torch.full((3,), float("nan"), device=device)], device).isnan()
    tiny = torch.full((3,), 1e-30, device=device)  # whose square is 0 in fp32
    assert sum_of_squares([tiny], device).item() == pytest.approx(3e-60)


def test_no_copy_of_a_tensor_is_made():
    """The largest allocation is the float64 copy of a part."""
    large = gradient(9 * PART, "cpu")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        sum_of_squares([large], "cpu")
    allocated = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert 0 < max(allocated) <= 8 * PART


def test_the_kernel_for_many_tensors_takes_the_type_to_add_in():
    """A private name of torch, which runs on CUDA; here its answer on a CPU."""
    tensor = gradient(PART, "cpu")
    (norm,) = torch._foreach_norm([tensor], 2, dtype=torch.float64)
    assert norm.dtype == torch.float64
    assert norm.item() == pytest.approx(tensor.double().norm().item(), rel=1e-13)
