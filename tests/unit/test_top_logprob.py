"""log p of the likeliest token, which `target_logprob` and `lm_head_logprob` give on the way, against float64.

Runs on tiles and on C; test_kernels runs this file again on the Triton kernels, and `-m gpu` runs them compiled.
"""

import pytest
import torch
import torch.distributed as dist

from nemo_probsft.ops import lm_head_logprob, target_logprob
from tests.support import reference
from tests.support.ranks import run_ranks
from tests.unit.test_lm_head import make as make_head
from tests.unit.test_target_logprob import LAYOUTS, Collectives, make, on_each_implementation, randn

device = on_each_implementation


def top_of(logits, labels, **options):
    """(top_logp, logp, dlogits of a random upstream gradient)."""
    leaf, top = logits.detach().requires_grad_(), torch.empty(labels.shape, device=logits.device)
    logp = target_logprob(leaf, labels, top_logp=top, **options)
    (dlogits,) = torch.autograd.grad(logp, leaf, randn(*labels.shape, seed=3).to(logits.device))
    return top, logp.detach(), dlogits


def assert_close(top, truth):
    torch.testing.assert_close(top.double().cpu(), truth.cpu(), rtol=2e-6, atol=2e-6)
    assert (top <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matches_float64_in_any_layout_and_dtype(device, layout, dtype):
    shape, arrange = LAYOUTS[layout]
    logits = arrange((4 * randn(*shape, 301)).to(dtype).to(device))
    labels = torch.arange(torch.Size(shape).numel()).mul(37).remainder(301).reshape(shape).to(device)
    assert_close(top_of(logits, labels)[0], reference.top_logprob(logits, labels))


def test_whoever_asks_gets_the_same_log_p_and_gradient(device):
    logits, labels, _ = make((4, 5), 301, device=device)
    _, logp, dlogits = top_of(logits, labels)
    leaf = logits.requires_grad_()
    expected = target_logprob(leaf, labels)
    assert torch.equal(logp, expected)
    assert torch.equal(dlogits, torch.autograd.grad(expected, leaf, randn(4, 5, seed=3).to(device))[0])


def test_the_target_may_be_the_likeliest_or_share_the_first_place(device):
    logits, labels, _ = make((4, 5), 301, device=device)
    best = logits.argmax(-1)
    labels[0], labels[1] = best[0], 7
    logits[1, :, 7] = logits[1].amax(-1)  # of two that are equal, one is the target
    logits[2, :, 8] = logits[2].amax(-1)  # neither is
    top, logp, _ = top_of(logits, labels)
    assert_close(top, reference.top_logprob(logits, labels))
    assert torch.equal(top[:2], logp[:2])
    assert (top >= logp).all()
    others = torch.log_softmax(logits.double(), -1).scatter(-1, labels.clamp(min=0).unsqueeze(-1), -torch.inf).amax(-1)
    assert (others - top.double())[0].abs().max() > 0.1, "the likeliest of the other tokens would do"


@pytest.mark.parametrize(("factor", "offset"), [(100, 0), (1, 1e4), (1, -1e4), (1, 60), (1, -25), (10, -300), (3, 15)])
def test_large_logits(device, factor, offset):
    logits, labels, _ = make((12,), 301, device=device)
    logits = (logits * factor + offset).round(decimals=2)
    assert_close(top_of(logits, labels)[0], reference.top_logprob(logits, labels))


def test_padding_and_ignored_places_do_not_count(device):
    logits, labels, _ = make((5, 3), 301, device=device)
    logits[..., 260:] += 30
    logits.view(-1, 301)[2] = torch.nan  # an ignored one
    labels = labels.clamp_max(259)
    top = top_of(logits, labels, vocab_size=260)[0]
    assert (top[labels == reference.IGNORE] == 0).all()
    clean = logits.nan_to_num()
    assert_close(top, reference.top_logprob(clean, labels, 260))
    unaware = reference.top_logprob(clean, labels) - reference.top_logprob(clean, labels, 260)
    assert unaware.abs().max() > 0.1, "counting the padding would do"


def test_what_is_no_number_is_not_a_probability(device):
    logits, labels, _ = make((6,), 301, device=device)
    labels.copy_(torch.arange(6))
    logits[0, 5] = torch.nan
    logits[1] = torch.nan
    logits[2, 3:] = -torch.inf
    top = top_of(logits, labels)[0]
    assert top[:2].isnan().all()
    assert_close(top[2:], reference.top_logprob(logits, labels)[2:])


def test_several_blocks(device):
    logits, labels, _ = make((7,), 9001, device=device)
    labels[0] = 4096
    logits[0, 4097], logits[1, 0], logits[3, 9000] = 40, 50, 60
    assert_close(top_of(logits, labels)[0], reference.top_logprob(logits, labels))


def _shard(tp, vocab_size):
    """One rank's (top_logp, its shard's own, number of collectives)."""
    logits, labels, _ = make((4, 3), 304)
    labels = labels.clamp_max(vocab_size - 1)
    width = 304 // tp
    shard = logits[..., dist.get_rank() * width :][..., :width]
    with Collectives() as forward:
        top = top_of(shard, labels, tp_group=dist.group.WORLD, vocab_size=vocab_size)[0]
    return top, reference.top_logprob(shard, labels.clamp(max=width - 1)), len(forward.names)


@pytest.mark.parametrize(("tp", "vocab_size"), [(1, 304), (2, 290), (4, 304), (4, 70)])
def test_shards_of_the_vocabulary_agree_with_one_collective(tp, vocab_size):
    tops, own, collectives = zip(*run_ranks(_shard, tp, tp, vocab_size), strict=True)
    logits, labels, _ = make((4, 3), 304)
    labels = labels.clamp_max(vocab_size - 1)
    truth = reference.top_logprob(logits, labels, vocab_size)
    assert all(torch.equal(top, tops[0]) for top in tops), "ranks disagree"
    assert_close(tops[0], truth)
    assert set(collectives) == {1 if tp > 1 else 0}
    if tp > 1:
        assert (torch.stack(own).amax(0) - truth).abs().max() > 0.1, "a shard's own top would do"


def _head(tp, chunk_tokens, sequence_parallel=False):
    hidden, weight, labels, mask, _ = make_head()
    rank, top = (dist.get_rank(), torch.empty(labels.shape[::-1]).t()) if tp > 1 else (0, torch.empty(labels.shape))
    hidden = hidden.chunk(tp)[rank] if sequence_parallel else hidden
    options = {"tp_group": dist.group.WORLD if tp > 1 else None, "sequence_parallel": sequence_parallel}
    lm_head_logprob(hidden, weight.chunk(tp)[rank], labels, mask, chunk_tokens=chunk_tokens, top_logp=top, **options)
    return top


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 100])
def test_the_head_gives_it_for_the_rows_that_it_takes(chunk_tokens):
    hidden, weight, labels, mask, _ = make_head()
    truth = reference.top_logprob(hidden.double() @ weight.double().t(), torch.where(mask, labels, -100))
    tops = [_head(1, chunk_tokens), *run_ranks(_head, 2, 2, chunk_tokens, chunk_tokens != 1)]
    assert torch.equal(tops[1], tops[2])
    for top in tops:
        assert (top[~mask] == 0).all()
        torch.testing.assert_close(top.double(), truth, rtol=1e-5, atol=1e-5)


def test_another_shape_or_dtype_is_refused():
    logits, labels, _ = make((4, 3), 301)
    for wrong in (torch.empty(3, 4), torch.empty(4, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="pass float32 in the labels' shape \\[4, 3\\]"):
            target_logprob(logits, labels, top_logp=wrong)
        with pytest.raises(ValueError, match="pass float32 in the labels' shape \\[4, 3\\]"):
            lm_head_logprob(torch.randn(4, 3, 5), torch.randn(301, 5), labels, labels >= 0, top_logp=wrong)
