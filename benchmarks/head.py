"""LM head, loss and all gradients from hidden states, ours against its peers: python -m benchmarks.head --help

Every sequence starts with its masked prompt tokens. Forward and backward through autograd; making the input is outside
of the clock. The objective is -log p, and in the second row of the table a threshold that keeps a part of the tokens.
"""

from __future__ import annotations

import argparse
import importlib.util

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.measure import milliseconds, num_collectives, peak_bytes, relative_error, report
from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import Objective, parse_objective
from nemo_probsft.ops import HeadReport, lm_head_logprob
from tests.support import reference
from tests.support.ranks import run_ranks

SEQUENCE = 512


def main() -> None:
    args = _arguments()
    rows = run_ranks(_rank, args.tp, args, timeout_s=3600)[0]
    shape = f"T={args.tokens} H={args.hidden} V={args.vocab} tp={args.tp} masked={args.masked}"
    report(f"head + loss: {args.dtype} {shape} {args.device}", rows, args.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--tp", type=int, default=1, help="ranks, each with vocab/tp columns (CPU, gloo)")
    parser.add_argument("--masked", type=float, default=0.75, help="fraction of tokens with loss_mask 0")
    parser.add_argument("--kept", type=float, default=0.1, help="fraction of the unmasked tokens that OnlyTopP keeps")
    parser.add_argument("--chunk-tokens", type=int, help="also time ours with chunks of this many tokens")
    parser.add_argument("--objective", default="original")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the table there")
    return parser.parse_args()


def _rank(args: argparse.Namespace) -> list[dict]:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=args.tp)
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, generator=generator).to(dtype)
    weight = (torch.randn(args.vocab, args.hidden, generator=generator) * 3 / args.hidden**0.5).to(dtype)
    labels = torch.randint(args.vocab, (args.tokens,), generator=generator)
    mask = torch.arange(args.tokens) % SEQUENCE >= args.masked * SEQUENCE
    hidden, weight, labels, mask = (x.to(args.device) for x in (hidden, weight, labels, mask))
    shard = weight.chunk(args.tp)[dist.get_rank()]
    objective = parse_objective(args.objective)
    threshold = _threshold(hidden, weight, labels, mask, args.kept)
    implementations = {
        f"ours, {objective.key}": (objective, _ours()),
        f"ours, OnlyTopP keeps {args.kept:.0%}": (threshold, _ours()),
        **{name: (objective, logprob_of) for name, logprob_of in _peers(args).items()},
    }
    truth_rows = mask.nonzero().squeeze(1)[:64]

    def prepare() -> tuple:
        return hidden.detach().requires_grad_(), shard.detach().requires_grad_()

    def call_of(objective: Objective, logprob_of):
        def call(h, w):
            logp = logprob_of(h, w, labels, mask)
            loss_sum, _, _ = token_loss(objective, logp, mask)
            return logp.detach(), *torch.autograd.grad(loss_sum, (h, w))

        return call

    calls = {name: call_of(*pair) for name, pair in implementations.items()}
    times = milliseconds({name: (prepare, call) for name, call in calls.items()}, args.repeats, args.device)
    rows = []
    for name, call in calls.items():
        wall, cpu = times[name]
        logp, dhidden, _ = call(*prepare())
        objective = implementations[name][0]
        truth = _truth(objective, hidden[truth_rows], weight, labels[truth_rows])
        rows.append(
            {
                "implementation": name,
                "ms": wall,
                "ratio": None,
                "cpu_ms": cpu,
                "cpu_ratio": None,
                # hidden and weight are read in both directions, their gradients written
                "GB/s": 3 * (hidden.numel() + shard.numel()) * shard.element_size() / wall / 1e6,
                "extra_MiB": peak_bytes(prepare, call, args.device) / 2**20,
                "collectives": num_collectives(prepare, call),
                "error_logp": relative_error(logp[truth_rows], truth[0]),
                "error_dhidden": relative_error(dhidden[truth_rows], truth[1]),
            }
        )
    return rows


def _threshold(hidden, weight, labels, mask, kept: float) -> Objective:
    p = lm_head_logprob(hidden, weight, labels, mask)[mask].exp()
    return parse_objective({"name": "power", "alpha": 1, "keep": {"min_p": torch.quantile(p, 1 - kept).item()}})


def _truth(objective: Objective, hidden, weight, labels) -> tuple:
    logp = reference.target_logprob(hidden.double() @ weight.double().t(), labels)
    dlogp = torch.where(objective.keep(logp), -objective.weight(logp), 0.0)
    return reference.head_and_grad(hidden, weight, labels, dlogp)[:2]


def _ours(**options):
    def logprob(hidden, weight, labels, mask):
        group = dist.group.WORLD
        return lm_head_logprob(hidden, weight, labels, mask, tp_group=group, report=HeadReport(), **options)

    return logprob


def _peers(args: argparse.Namespace) -> dict:
    peers = {"megatron head + unfused loss": _megatron}
    if args.tp == 1:
        if hasattr(F, "linear_cross_entropy"):  # torch 2.13
            peers["torch linear_cross_entropy"] = _torch
        peers |= _cuda_peers() if args.device == "cuda" else {}
    if args.chunk_tokens:
        peers[f"ours, chunks of {args.chunk_tokens}"] = _ours(chunk_tokens=args.chunk_tokens)
    return peers


def _megatron(hidden, weight, labels, mask):
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce

    logits = linear_with_grad_accumulation_and_async_allreduce(
        input=hidden.unsqueeze(1),
        weight=weight,
        bias=None,
        gradient_accumulation_fusion=False,
        allreduce_dgrad=dist.get_world_size() > 1,
        sequence_parallel=False,
        tp_group=dist.group.WORLD,
    )
    return -vocab_parallel_cross_entropy(logits, labels.unsqueeze(1)).squeeze(1)


def _torch(hidden, weight, labels, mask):
    return -F.linear_cross_entropy(hidden, weight, torch.where(mask, labels, -100), reduction="none")


def _cuda_peers() -> dict:
    """Those of the known peers that are installed."""
    peers = {}
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        def cut_cross_entropy(hidden, weight, labels, mask):
            return -linear_cross_entropy(hidden, weight, torch.where(mask, labels, -100), reduction="none")

        peers["cut-cross-entropy"] = cut_cross_entropy
    return peers


if __name__ == "__main__":
    main()
