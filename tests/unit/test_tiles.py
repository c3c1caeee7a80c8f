"""What the CPU's two implementations promise: rounding once, and scratch of one tile at most."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_probsft.ops import native, target_logprob, tiles
from tests.support import reference
from tests.unit.test_target_logprob import make, run


@pytest.fixture(autouse=True, params=["native", "tiles"])
def implementation(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(native, "library", lambda: None)


def test_bf16_gradient_is_rounded_once(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 301 * 4)
    logits, labels, dlogp = make((64,), 301, torch.bfloat16)
    logits[torch.arange(64), labels.clamp_min(0)] = 12  # p near 1, where p - 1 would cancel in bf16
    truth = reference.logprob_and_grad(logits, labels, dlogp)[1]
    dlogits = run(logits, labels, dlogp)[1]
    assert (dlogits == truth.bfloat16()).double().mean() > 0.999
    softmax = torch.softmax(logits.float(), -1).bfloat16()
    naive = (torch.nn.functional.one_hot(labels.clamp_min(0), 301) - softmax) * dlogp.bfloat16().unsqueeze(1)
    assert (naive[labels >= 0] == truth[labels >= 0].bfloat16()).double().mean() < 0.9, "rounding early would do"


class LargestAllocation(TorchDispatchMode):
    """Largest tensor that any op makes in new memory, in bytes."""

    def __init__(self, known):
        super().__init__()
        self.known, self.bytes = {known.untyped_storage().data_ptr()}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scratch_does_not_grow_with_the_number_of_tokens(dtype):
    logits, labels, dlogp = make((2000,), 1000, dtype)
    leaf = logits.requires_grad_()
    with LargestAllocation(logits) as largest:
        logp = target_logprob(leaf, labels, inplace=True)
        torch.autograd.grad(logp, leaf, dlogp)
    assert largest.bytes <= tiles.TILE_BYTES < logits.numel() * 2
    with LargestAllocation(logits) as largest:
        torch.log_softmax(logits.detach(), -1)
    assert largest.bytes >= logits.numel() * 2, "the meter misses a full copy"
