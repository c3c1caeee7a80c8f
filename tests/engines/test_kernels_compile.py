"""The Triton kernels compile for an H100 without one: every dtype and variant, as the ops call them.

Whether they are right there is tested with `-m gpu`; that they compile, and load 16 bytes at a time, here.
"""

import re

import pytest
import torch

from nemo_probsft.ops.targets import Shard, Targets

COLUMNS = 8192


class Hopper:
    """What Triton asks of a driver when it compiles and launches nothing."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """The module, whose launches only compile; `kernels.made` lists (name, PTX)."""
    if torch.cuda.is_available():
        pytest.skip("the tests with the marker gpu compile the kernels and run them")
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from nemo_probsft.ops import kernels

    launch, made = JITFunction.run, []

    def compile_only(self, *args, **kwargs):
        compiled = launch(self, *args, **kwargs | {"warmup": True})
        made.append((self.fn.__name__, compiled.asm["ptx"]))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Hopper())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(kernels, "made", made, raising=False)
    yield kernels
    for kernel in vars(kernels).values():
        if isinstance(kernel, JITFunction):
            kernel.device_caches.clear()


def call(kernels, dtype, tp, indexed, columns=COLUMNS, num_rows=6, with_top=False):
    """All launches of a forward and a backward; with `indexed` for num_rows of the head's 24."""
    logits, labels = torch.empty(num_rows, columns, dtype=dtype), torch.zeros(num_rows, dtype=torch.int64)
    rows = None
    if indexed:
        rows, labels = torch.arange(num_rows), torch.zeros(4, 6, dtype=torch.int64).t()
    targets = Targets(labels, Shard(None, tp, 0, columns, tp * columns), -100, rows)
    stats, logp = torch.empty(3, num_rows), torch.empty(labels.shape)
    top = torch.empty(labels.shape) if with_top else None
    kernels.statistics(logits, targets, stats, logp, top)
    if tp > 1:
        kernels.combine(stats.new_empty(tp, 3, num_rows), targets, stats, logp, top)
    kernels.gradient(logits, targets, stats, logp, torch.empty_like(logits) if indexed else logits, rows)


def loads_16_bytes(ptx):
    return re.search(r"ld\.global\S*\.v4\.b32", ptx) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_top", [False, True])
def test_every_variant_compiles_and_loads_16_bytes_at_a_time(kernels, dtype, with_top):
    call(kernels, dtype, tp=1, indexed=False, with_top=with_top)
    call(kernels, dtype, tp=2, indexed=True, with_top=with_top)
    names = [name for name, _ in kernels.made]
    assert names == [
        "_statistics_kernel",
        "_gradient_kernel",
        "_statistics_kernel",
        "_combine_kernel",
        "_gradient_kernel",
    ]
    assert all(loads_16_bytes(ptx) for name, ptx in kernels.made if name != "_combine_kernel")


def test_another_number_of_rows_compiles_nothing_new(kernels):
    """A micro-batch has as many rows as it has target tokens; to compile takes a second."""
    for num_rows in (6, 16, 1):
        call(kernels, torch.bfloat16, tp=2, indexed=True, num_rows=num_rows)
    by_name = {name: {ptx for other, ptx in kernels.made if other == name} for name, _ in kernels.made}
    assert {name: len(variants) for name, variants in by_name.items()} == dict.fromkeys(by_name, 1)


def test_rows_that_are_not_aligned_compile_and_load_less_at_a_time(kernels):
    call(kernels, torch.bfloat16, tp=1, indexed=False, columns=COLUMNS - 1)
    assert not any(loads_16_bytes(ptx) for _, ptx in kernels.made)
