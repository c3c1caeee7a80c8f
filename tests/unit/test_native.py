"""What only the C rows promise: the same numbers over any number of threads, and tiles where no compiler makes them.

Their exactness is tested with that of tiles and kernels, in test_target_logprob and test_lm_head.
"""

import pytest
import torch

from nemo_probsft.ops import native, tiles
from nemo_probsft.ops.cpu import implementation
from tests.support import reference
from tests.unit.test_target_logprob import assert_exact, make, run


@pytest.fixture
def fresh_library():
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype):
    logits, labels, dlogp = make((301,), 1500, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(logits, labels, dlogp)
        torch.set_num_threads(5)
        together = run(logits, labels, dlogp)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))
    assert_exact(alone, reference.logprob_and_grad(logits, labels, dlogp))


def test_a_rising_row_is_shifted_as_it_rises():
    """Each block of columns exceeds the one before by more than rows.c's SLACK; one shift for all would overflow."""
    logits = torch.arange(6000.0).div(40).repeat(3, 1) + torch.randn(3, 6000)
    labels, dlogp = torch.tensor([5999, 0, 3000]), torch.tensor([1.0, -2.0, 0.5])
    assert_exact(run(logits, labels, dlogp), reference.logprob_and_grad(logits, labels, dlogp))
    falling = logits.flip(1)
    assert_exact(run(falling, labels, dlogp), reference.logprob_and_grad(falling, labels, dlogp))


@pytest.mark.parametrize(("compiler", "warned"), [("no-such-compiler", False), ("false", True)])
def test_tiles_take_over_where_no_compiler_makes_the_library(fresh_library, monkeypatch, caplog, compiler, warned):
    monkeypatch.setenv("CC", compiler)
    assert implementation(torch.empty(1, 1)) is tiles
    assert ("rows.c does not compile" in caplog.text) == warned


def test_what_c_does_not_take_goes_to_tiles():
    assert implementation(torch.empty(4, 4)) is native
    assert implementation(torch.empty(4, 4, dtype=torch.float16)) is tiles
    assert implementation(torch.empty(4, 4).t()) is tiles
