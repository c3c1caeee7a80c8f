"""target_logprob against float64: values, gradients, traps, and agreement over TP ranks.

Runs on tiles and on C; test_kernels runs this file again on the Triton kernels, and `-m gpu` runs them compiled.
"""

import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_probsft.ops import cpu, native, target_logprob, tiles
from nemo_probsft.ops.logprob import implementation
from nemo_probsft.ops.targets import Targets
from tests.support import reference
from tests.support.ranks import run_ranks

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
ON_KERNELS = [*["kernels"] * INTERPRETED, CUDA]


@pytest.fixture(name="device", params=ON_KERNELS if INTERPRETED else ["native", "tiles", CUDA])
def on_each_implementation(request, monkeypatch):
    """The device to run on, with each implementation that it has. Small tiles: every case has a ragged last one."""
    if request.param == "cuda":
        return "cuda"
    if request.param == "tiles":
        monkeypatch.setattr(native, "library", lambda: None)
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 301 * 4)
    steps = implementation(torch.empty(1, 1))
    rows_of = cpu.implementation(torch.empty(1, 1)) if steps is cpu else steps
    assert rows_of.__name__ == f"nemo_probsft.ops.{request.param}"
    return "cpu"


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(shape, vocab, dtype=torch.float32, seed=0, device="cpu"):
    """(logits, labels with two ignored, dlogp with its first a zero), all of them random."""
    logits = (4 * randn(*shape, vocab, seed=seed)).to(dtype).to(device)
    labels = torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed + 1))
    labels.view(-1)[[2, 5]] = reference.IGNORE
    dlogp = randn(*shape, seed=seed + 2)
    dlogp.view(-1)[0] = 0
    return logits, labels.to(device), dlogp.to(device)


def run(logits, labels, dlogp, **kwargs):
    """(logp, dlogits) of a leaf that shares the logits' memory and strides."""
    leaf = logits.detach().requires_grad_()
    logp = target_logprob(leaf, labels, **kwargs)
    return logp.detach(), torch.autograd.grad(logp, leaf, dlogp)[0]


def assert_exact(ours, truth):
    """fp32 within a few roundings of the sum; half precision within one unit of its last place."""
    for name, x, y in zip(("logp", "dlogits"), ours, truth, strict=True):
        relative = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[x.dtype]
        smallest = 6e-8 if x.dtype == torch.float16 else 1e-7
        error = (x.double().cpu() - y.cpu()).abs()
        allowed = relative * y.cpu().abs() + (2e-6 if name == "logp" else smallest)
        assert (error <= allowed).all(), f"{name} is off by {error.max().item():.1e}"


LAYOUTS = {
    "rows": ((9,), lambda x: x),
    "one token": ((), lambda x: x),
    "batch": ((3, 5), lambda x: x),
    "transposed": ((5, 3), lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    "sliced": ((3, 5), lambda x: torch.cat([x[:, :1], x], 1)[:, 1:]),
    "vocabulary first": ((9,), lambda x: x.t().contiguous().t()),
    "column slice": ((9,), lambda x: torch.cat([x, x], -1)[:, : x.shape[-1]]),
    "sliced twice": ((2, 3, 2), lambda x: torch.cat([torch.cat([x, x], 1)] * 2, 2)[:, :3, :2]),
    "no tokens": ((0, 4), lambda x: x),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matches_float64_in_any_layout_and_dtype(device, layout, dtype, inplace):
    shape, arrange = LAYOUTS[layout]
    numel = torch.Size(shape).numel()
    logits = arrange((4 * randn(*shape, 301)).to(dtype).to(device))
    labels = torch.arange(numel).mul(37).remainder(301).reshape(shape).to(device)
    dlogp = randn(*shape, seed=1).to(device)
    truth = reference.logprob_and_grad(logits, labels, dlogp)
    logp, dlogits = run(logits.clone() if not inplace else logits, labels, dlogp, inplace=inplace)
    assert (logp.dtype, dlogits.dtype) == (torch.float32, dtype)
    assert logp.shape == labels.shape
    assert_exact((logp, dlogits), truth)
    assert (logp <= 0).all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("arrange", [LAYOUTS["transposed"][1], LAYOUTS["sliced"][1], LAYOUTS["batch"][1]])
def test_labels_in_a_layout_of_their_own(device, arrange, inplace):
    """[s, b] logits, and labels that the batch holds as [b, s]."""
    logits, labels, dlogp = make((5, 3), 301, device=device)
    truth = reference.logprob_and_grad(logits, labels, dlogp)
    labels = labels.t().contiguous().t()
    assert_exact(run(arrange(logits), labels, dlogp, inplace=inplace), truth)
    wrong_order = reference.target_logprob(logits, labels.as_strided((5, 3), (3, 1)))
    assert (wrong_order - truth[0]).abs().max() > 0.1, "reading labels as they lie would do"


UPSTREAM = {
    "zero first": lambda shape: torch.cat([torch.zeros(1), randn(shape.numel() - 1)]).reshape(shape),
    "transposed": lambda shape: randn(*reversed(shape)).t(),
    "stride 0": lambda shape: randn(shape[0], 1).expand(shape),
    "a scalar": lambda shape: torch.tensor(-0.7).expand(shape),
    "every second": lambda shape: randn(shape[0], 2 * shape[1])[:, ::2],
    "very small": lambda shape: 1e-30 * randn(*shape),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_any_upstream_gradient(device, upstream, inplace):
    logits, labels, _ = make((5, 3), 301, device=device)
    dlogp = UPSTREAM[upstream](labels.shape).to(device)
    truth = reference.logprob_and_grad(logits, labels, dlogp)[1]
    dlogits = run(logits, labels, dlogp, inplace=inplace)[1].double()
    torch.testing.assert_close(dlogits, truth, rtol=3e-6, atol=1e-7 * truth.abs().max().item())
    assert (dlogits[dlogp == 0] == 0).all()
    if upstream not in ("a scalar", "stride 0"):
        first_for_all = reference.logprob_and_grad(logits, labels, dlogp.reshape(-1)[:1].expand(labels.shape))[1]
        assert (first_for_all - truth).abs().max() > 0.1 * truth.abs().max(), "grad_output[0] for every row would do"


def test_ignored_labels_are_zero_in_value_and_gradient(device):
    logits, labels, dlogp = make((4, 5), 301, device=device)
    logits.view(-1, 301)[5] = torch.nan
    logp, dlogits = run(logits, labels, dlogp)
    ignored = labels == reference.IGNORE
    assert ignored.sum() == 2
    assert (logp[ignored] == 0).all()
    assert (dlogits[ignored] == 0).all()
    clean = logits.nan_to_num()
    assert_exact((logp, dlogits), reference.logprob_and_grad(clean, labels, dlogp))
    logp, dlogits = run(logits, torch.full_like(labels, 7), dlogp.fill_(1), ignore_index=7)
    assert (logp == 0).all()
    assert (dlogits == 0).all()


@pytest.mark.parametrize("label", [-1, -99, 301, 10**12])
def test_out_of_range_label_is_refused(label):
    logits, labels, _ = make((6,), 301)
    labels[3] = label
    with pytest.raises(ValueError, match=rf"label {label} is outside \[0, 301\)"):
        target_logprob(logits, labels)
    with pytest.raises(ValueError, match=r"label 300 is outside \[0, 300\)"):
        target_logprob(logits, torch.full((6,), 300), vocab_size=300)


@pytest.mark.parametrize("device", ON_KERNELS, indirect=True)
def test_out_of_range_label_makes_its_row_nan_where_it_is_not_checked(device, monkeypatch):
    """On CUDA, where a check would wait for the device."""
    monkeypatch.setattr(Targets, "check", lambda self: None)
    logits, labels, dlogp = make((6,), 301, device=device)
    labels[3], labels[4], dlogp[4] = 301, -5, 0
    logp, dlogits = run(logits, labels, dlogp)
    assert logp.isnan().tolist() == [False, False, False, True, True, False]
    assert dlogits.isnan().all(-1).tolist() == [False, False, False, True, False, False]
    assert (dlogits[4] == 0).all()


@pytest.mark.parametrize("inplace", [False, True])
def test_padded_columns_take_no_probability_and_no_gradient(device, inplace):
    logits, labels, dlogp = make((5, 3), 301, device=device)
    labels = labels.clamp_max(259)
    truth = reference.logprob_and_grad(logits, labels, dlogp, vocab_size=260)
    unaware = reference.target_logprob(logits, labels)
    logp, dlogits = run(logits, labels, dlogp, vocab_size=260, inplace=inplace)
    assert_exact((logp, dlogits), truth)
    assert (dlogits[..., 260:] == 0).all()
    assert (unaware - truth[0]).abs().max() > 1e-2, "counting the padding would do"


def test_infinite_and_nan_logits(device):
    logits, labels, dlogp = make((8,), 301, device=device)
    dlogp.fill_(0.5)
    labels.copy_(torch.arange(8))
    logits[0, 0] = -torch.inf  # the target itself
    logits[1, 2:] = -torch.inf  # all but the first two
    logits[2, 5] = torch.nan
    logits[3, 5] = torch.inf
    logits[4] = -torch.inf
    logits[5, :5] = logits[5, 6:] = -torch.inf  # only the target is possible
    logits[6] = torch.nan
    dlogp[6] = 0
    logp, dlogits = run(logits, labels, dlogp)
    assert logp[0] == -torch.inf
    assert logp[[2, 3, 4, 6]].isnan().all()
    assert logp[5] == 0
    good = torch.tensor([1, 5, 7])
    truth = reference.logprob_and_grad(logits[good], labels[good], dlogp[good])
    assert_exact((logp[good], dlogits[good]), truth)
    expected = 0.5 * -torch.softmax(logits[0].double(), -1)
    expected[0] = 0.5
    torch.testing.assert_close(dlogits[0].double(), expected, rtol=2e-6, atol=1e-8)
    assert (dlogits[6] == 0).all()


@pytest.mark.parametrize(("factor", "offset"), [(100, 0), (1, 1e4), (1, -1e4), (1, 60), (1, -60), (10, -300)])
def test_large_logits(device, factor, offset):
    logits, labels, dlogp = make((12,), 301, device=device)
    logits = (logits * factor + offset).round(decimals=2)
    assert_exact(run(logits.clone(), labels, dlogp, inplace=True), reference.logprob_and_grad(logits, labels, dlogp))
    if abs(offset) >= 1e4:
        lse = torch.logsumexp(logits, -1)
        naive = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) - lse
        truth = reference.target_logprob(logits, labels)
        assert (naive.double() - truth)[labels >= 0].abs().max() > 1e-4, "lse - x_y would do"


@pytest.mark.parametrize("gap", [2e-5, 1e-9, 1e-20])
@pytest.mark.parametrize("level", [0.0, -20.0, 50.0, 300.0])
def test_one_minus_p_is_resolved_when_p_tends_to_one(device, gap, level):
    logits = randn(6, 301).double()
    rest = torch.logsumexp(logits[:, 1:], -1)
    logits[:, 0] = rest - torch.tensor(gap).double().log()
    logits = (logits + level).float().to(device)
    labels, dlogp = torch.zeros(6, dtype=torch.int64, device=device), torch.full((6,), -1.0, device=device)
    truth = -torch.log1p(torch.exp(logits.double()[:, 1:] - logits.double()[:, :1]).sum(-1))
    logp, dlogits = run(logits, labels, dlogp)
    torch.testing.assert_close(logp.double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(dlogits[:, 0].double(), torch.expm1(truth), rtol=1e-5, atol=0)
    if level == 0:
        naive = torch.log_softmax(logits, -1)[:, 0].double()
        assert ((naive - truth) / truth).abs().max() > 1e-3, "log_softmax would do"


def test_inplace_is_a_choice(device):
    logits, labels, dlogp = make((9,), 301, device=device)
    before = logits.clone()
    leaf = logits.detach().requires_grad_()
    logp = target_logprob(leaf, labels)
    first = torch.autograd.grad(logp, leaf, dlogp, retain_graph=True)[0]
    second = torch.autograd.grad(logp, leaf, 2 * dlogp)[0]
    assert torch.equal(logits, before)
    torch.testing.assert_close(second, 2 * first)
    logp = target_logprob(leaf, labels, inplace=True)
    dlogits = torch.autograd.grad(logp, leaf, dlogp, retain_graph=True)[0]
    assert dlogits.data_ptr() == logits.data_ptr()
    assert_exact((logp.detach(), dlogits), reference.logprob_and_grad(before, labels, dlogp))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(logp, leaf, dlogp)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.floats(-200, 200, width=16), min_size=3, max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    upstream=st.floats(-3, 3, width=32),
)
def test_any_small_row(device, rows, dtype, upstream):
    logits = torch.tensor(rows).to(dtype)
    labels, dlogp = torch.arange(len(rows)) % 3, torch.full((len(rows),), upstream)
    ours = run(logits, labels, dlogp)
    assert (ours[0] <= 0).all()
    assert_exact(ours, reference.logprob_and_grad(logits, labels, dlogp))


def test_several_blocks_and_a_ragged_last_one(device):
    logits, labels, dlogp = make((7,), 9001, device=device)
    labels[0], labels[1], labels[3] = 9000, 4096, 4095
    dlogp[0] = 1
    assert_exact(run(logits, labels, dlogp), reference.logprob_and_grad(logits, labels, dlogp))


def test_labels_at_an_unaligned_address(device):
    logits, labels, dlogp = make((10,), 301, device=device)
    ours = run(logits[1:], labels[1:], dlogp[1:])
    assert_exact(ours, reference.logprob_and_grad(logits[1:], labels[1:], dlogp[1:]))
    tokens = torch.randint(301, (3, 6), device=device)  # labels as a shifted view of the tokens: unaligned, with gaps
    logits, _, dlogp = make((3, 5), 301, device=device)
    ours = run(logits, tokens[:, 1:], dlogp)
    assert_exact(ours, reference.logprob_and_grad(logits, tokens[:, 1:], dlogp))


def test_bad_arguments_are_refused():
    logits, labels, _ = make((6,), 301)
    cases = {
        "vocab_size is 302": lambda: target_logprob(logits, labels, vocab_size=302),
        "logits are torch.float64": lambda: target_logprob(logits.double(), labels),
        "labels are torch.int32": lambda: target_logprob(logits, labels.int()),
        "differ before the last dimension": lambda: target_logprob(logits, labels[1:]),
        "expanded": lambda: target_logprob(logits[:1].expand(6, 301), labels, inplace=True),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


class Collectives(TorchDispatchMode):
    """Names of the collectives that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.names.append(func.__name__)
        return func(*args, **kwargs or {})


def _shard(tp, vocab_size, inplace):
    """One rank's (logp, dlogits, collectives forward, collectives backward)."""
    logits, labels, dlogp = make((4, 3), 304)
    labels = labels.clamp_max(vocab_size - 1)
    width = 304 // tp
    shard = logits[..., dist.get_rank() * width :][..., :width].transpose(0, 1).contiguous().transpose(0, 1)
    leaf = shard.requires_grad_()

    with Collectives() as forward:
        logp = target_logprob(leaf, labels, tp_group=dist.group.WORLD, vocab_size=vocab_size, inplace=inplace)
    with Collectives() as backward:
        (dlogits,) = torch.autograd.grad(logp, leaf, dlogp)
    return logp.detach(), dlogits, forward.names, backward.names


@pytest.mark.parametrize(
    ("tp", "vocab_size", "inplace"), [(1, 304, True), (2, 290, False), (4, 304, True), (4, 200, False)]
)
def test_tensor_parallel_shards(tp, vocab_size, inplace):
    results = run_ranks(_shard, tp, tp, vocab_size, inplace)
    logits, labels, dlogp = make((4, 3), 304)
    labels = labels.clamp_max(vocab_size - 1)
    logps, dlogits, forwards, backwards = zip(*results, strict=True)
    truth = reference.logprob_and_grad(logits, labels, dlogp, vocab_size)
    assert all(torch.equal(logp, logps[0]) for logp in logps), "ranks disagree"
    assert_exact((logps[0], torch.cat(dlogits, -1)), truth)
    assert (torch.cat(dlogits, -1)[..., vocab_size:] == 0).all()
    assert all(len(forward) == (1 if tp > 1 else 0) for forward in forwards), forwards
    assert all(backward == [] for backward in backwards), backwards


def _mean_of_shards(tp):
    """A wrong op: each rank normalises over its own columns."""
    logits, labels, _ = make((4, 3), 304)
    width = 304 // tp
    local = logits[..., dist.get_rank() * width :][..., :width]
    logp = torch.log_softmax(local, -1).gather(-1, (labels % width).unsqueeze(-1)).squeeze(-1)
    return (logp - reference.target_logprob(logits, labels)).abs().max().item()


def test_local_normalisation_fails_and_a_failing_rank_is_reported():
    assert min(run_ranks(_mean_of_shards, 2, 2)) > 0.1
    with pytest.raises(RuntimeError, match="rank 0 failed"):
        run_ranks(_mean_of_shards, 1, 0)
