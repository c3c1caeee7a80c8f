"""LM head, loss and all gradients from hidden states, ours against its peers: python -m benchmarks.head --help

Every sequence starts with its masked prompt tokens. Forward and backward through autograd; making the input is outside
of the clock. The objective is -log p, and in the second row of the table a threshold that keeps a part of the tokens.
The floor is the three products of the rows with a loss, alone, on operands that look like a run's: a GPU multiplies
zeros and NaN faster. So read a peer's time with its errors; see `peers` on the NaN of quack.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks import peers
from benchmarks.measure import milliseconds, num_collectives, num_launches, peak_bytes, relative_error, report
from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import Objective, parse_objective
from nemo_probsft.ops import HeadReport, lm_head_logprob
from tests.support import reference
from tests.support.ranks import run_ranks

SEQUENCE = 512
FLOOR = "floor: the products alone"


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
    if peers.imported("megatron.core"):
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(tensor_model_parallel_size=args.tp)
    dtype = getattr(torch, args.dtype)
    drawn = {"generator": torch.Generator(args.device).manual_seed(0), "device": args.device}
    hidden = torch.randn(args.tokens, args.hidden, **drawn).to(dtype)
    weight = torch.randn(args.vocab, args.hidden, **drawn).mul_(3 / args.hidden**0.5).to(dtype)
    labels = torch.randint(args.vocab, (args.tokens,), **drawn)
    mask = torch.arange(args.tokens, device=args.device) % SEQUENCE >= args.masked * SEQUENCE
    known = mask.nonzero().squeeze(1)  # where there is a loss, as a data loader knows it
    shard = weight.chunk(args.tp)[dist.get_rank()]
    objective = parse_objective(args.objective)
    threshold = _threshold(hidden, weight, labels, mask, args.kept)
    implementations = {
        f"ours, {objective.key}": (objective, _ours(known, find_zeros=objective.has_threshold)),
        f"ours, OnlyTopP keeps {args.kept:.0%}": (threshold, _ours(known)),
        **{name: (objective, logprob_of) for name, logprob_of in _peers(args, known).items()},
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
    timed = {name: (prepare, call) for name, call in calls.items()}
    times = milliseconds(timed | {FLOOR: _products(hidden[known], shard)}, args.repeats, args.device)
    rows = []
    for name, call in calls.items():
        logp, dhidden, _ = call(*prepare())
        objective = implementations[name][0]
        truth = _truth(objective, hidden[truth_rows], weight, labels[truth_rows])
        rows.append(
            _row(name, times[name], hidden, shard)
            | {
                "extra_MiB": peak_bytes(prepare, call, args.device) / 2**20,
                "collectives": num_collectives(prepare, call),
                "launches": num_launches(prepare, call, args.device),
                "error_logp": relative_error(logp[truth_rows], truth[0]),
                "error_dhidden": relative_error(dhidden[truth_rows], truth[1]),
            }
        )
    unknown = dict.fromkeys(("extra_MiB", "collectives", "launches", "error_logp", "error_dhidden"))
    return [*rows, _row(FLOOR, times[FLOOR], hidden, shard) | unknown]


def _row(name: str, times: tuple[float, float], hidden: torch.Tensor, shard: torch.Tensor) -> dict:
    wall, cpu = times
    # hidden and weight are read in both directions, their gradients written
    num_bytes = 3 * (hidden.numel() + shard.numel()) * shard.element_size()
    measured = {"ms": wall, "ratio": None, "cpu_ms": cpu, "cpu_ratio": None, "GB/s": num_bytes / wall / 1e6}
    return {"implementation": name} | measured


def _products(kept: torch.Tensor, weight: torch.Tensor) -> tuple:
    """(prepare, call) of what every implementation multiplies: the logits, and a gradient with both of its operands."""
    dlogits = (kept @ weight.t()).float().softmax(-1).to(kept.dtype)

    def call(kept, weight):
        return kept @ weight.t(), dlogits @ weight, dlogits.t() @ kept

    return lambda: (kept, weight), call


def _threshold(hidden, weight, labels, mask, kept: float) -> Objective:
    p = lm_head_logprob(hidden, weight, labels, mask)[mask].exp()
    return parse_objective({"name": "power", "alpha": 1, "keep": {"min_p": torch.quantile(p, 1 - kept).item()}})


def _truth(objective: Objective, hidden, weight, labels) -> tuple:
    logp = reference.target_logprob(hidden.double() @ weight.double().t(), labels)
    dlogp = torch.where(objective.keep(logp), -objective.weight(logp), 0.0)
    return reference.head_and_grad(hidden, weight, labels, dlogp)[:2]


def _ours(rows, **options):
    options |= {"rows": rows, "tp_group": dist.group.WORLD if dist.get_world_size() > 1 else None}

    def logprob(hidden, weight, labels, mask):
        return lm_head_logprob(hidden, weight, labels, mask, report=HeadReport(), **options)

    return logprob


def _peers(args: argparse.Namespace, known: torch.Tensor) -> dict:
    found = {"megatron head + unfused loss": _megatron} if peers.imported("megatron.core") else {}
    if args.tp == 1:
        if hasattr(F, "linear_cross_entropy"):  # torch 2.13
            found["torch linear_cross_entropy"] = _all_in_one(F.linear_cross_entropy)
        if args.device == "cuda" and (module := peers.imported("cut_cross_entropy")):
            found["cut-cross-entropy"] = _all_in_one(module.linear_cross_entropy)
        found |= {f"product + {name}": _product_and(loss) for name, loss in peers.losses(args.device).items()}
    if args.chunk_tokens:
        found[f"ours, chunks of {args.chunk_tokens}"] = _ours(known, chunk_tokens=args.chunk_tokens)
    return found


def _product_and(loss: peers.Loss):
    """A plain product, whose logits the loss may overwrite. Rows without a loss are multiplied, too."""

    def logprob(hidden, weight, labels, mask):
        return -loss(hidden @ weight.t(), labels)

    return logprob


def _all_in_one(loss):
    def logprob(hidden, weight, labels, mask):
        return -loss(hidden, weight, torch.where(mask, labels, -100), reduction="none")

    return logprob


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


if __name__ == "__main__":
    main()
