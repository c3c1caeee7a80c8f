"""Per-token loss and logit gradient from given logits, ours against its peers: python -m benchmarks.loss --help

Forward and backward through autograd with a random upstream gradient per token. Making the input is outside of the
clock. Some implementations overwrite their input, so each call gets a fresh copy. The floor is what nobody can be
faster than: the logits read twice and written once, at the bandwidth of a copy between calls.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks import peers
from benchmarks.measure import milliseconds, num_collectives, num_launches, peak_bytes, relative_error, report
from nemo_probsft.ops import target_logprob
from tests.support import reference
from tests.support.ranks import run_ranks

CHECKED_ROWS = 128
COPY = "copy"


def main() -> None:
    args = _arguments()
    rows = run_ranks(_rank, args.tp, args, timeout_s=3600)[0]
    report(f"loss: {args.dtype} T={args.tokens} V={args.vocab} tp={args.tp} {args.device}", rows, args.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--tp", type=int, default=1, help="ranks, each with vocab/tp columns (CPU, gloo)")
    parser.add_argument("--masked", type=float, default=0.0, help="fraction of tokens whose upstream gradient is 0")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="comma-separated names of implementations, besides ours")
    parser.add_argument("--json", help="also write the table there")
    return parser.parse_args()


def _rank(args: argparse.Namespace) -> list[dict]:
    if peers.imported("megatron.core"):
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(tensor_model_parallel_size=args.tp)
    width, dtype = args.vocab // args.tp, getattr(torch, args.dtype)
    start = dist.get_rank() * width
    generator = torch.Generator(args.device).manual_seed(0)
    drawn = {"generator": generator, "device": args.device}  # by one core of a host it would take half a minute
    labels = torch.randint(args.vocab, (args.tokens,), **drawn)
    dloss = torch.randn(args.tokens, **drawn)
    dloss *= torch.rand(args.tokens, **drawn) >= args.masked
    generator.manual_seed(1 + dist.get_rank())
    logits = torch.randn(args.tokens, width, **drawn).mul_(3).to(dtype)
    checked = [torch.empty(CHECKED_ROWS, width, dtype=dtype) for _ in range(args.tp)]
    dist.all_gather(checked, logits[:CHECKED_ROWS].cpu())
    upstream = -dloss[:CHECKED_ROWS].cpu()
    truth = reference.logprob_and_grad(torch.cat(checked, 1), labels[:CHECKED_ROWS].cpu(), upstream)
    truth = -truth[0], truth[1][:, start : start + width]

    def prepare() -> tuple:
        return logits.clone().requires_grad_(), labels, dloss

    calls = {name: call for name, call in _implementations(args).items() if _wanted(name, args.only)}
    buffer = torch.empty_like(logits)
    timed = {name: (prepare, call) for name, call in calls.items()}
    times = milliseconds(timed | {COPY: (lambda: (logits,), buffer.copy_)}, args.repeats, args.device)
    floor = [1.5 * ms for ms in times.pop(COPY)]
    rows = []
    for name, call in calls.items():
        loss, grad = call(*prepare())
        errors = relative_error(loss[:CHECKED_ROWS], truth[0]), relative_error(grad[:CHECKED_ROWS], truth[1])
        del loss, grad
        rows.append(
            _row(name, times[name], floor, logits)
            | {
                "extra_MiB": peak_bytes(prepare, call, args.device) / 2**20,
                "collectives": num_collectives(prepare, call),
                "launches": num_launches(prepare, call, args.device),
                "error_loss": errors[0],
                "error_grad": errors[1],
            }
        )
    unknown = dict.fromkeys(("extra_MiB", "collectives", "launches", "error_loss", "error_grad"))
    return [*rows, _row("floor: 2 reads, 1 write", floor, floor, logits) | unknown]


def _row(name: str, times: list[float], floor: list[float], logits: torch.Tensor) -> dict:
    wall, cpu = times
    return {
        "implementation": name,
        "ms": wall,
        "ratio": None,
        "cpu_ms": cpu,
        "cpu_ratio": None,
        "of_the_floor": floor[0] / wall,
        "GB/s": 3 * logits.numel() * logits.element_size() / wall / 1e6,
    }


def _wanted(name: str, only: str) -> bool:
    return not only or name.startswith("ours") or any(part in name for part in only.split(","))


def _implementations(args: argparse.Namespace) -> dict:
    group = dist.group.WORLD if args.tp > 1 else None
    calls = {
        "ours, in place": _with_grad(lambda x, y: -target_logprob(x, y, tp_group=group, inplace=True)),
        "ours": _with_grad(lambda x, y: -target_logprob(x, y, tp_group=group)),
        "torch loss_parallel": _loss_parallel(args),
    }
    if peers.imported("megatron.core"):
        from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        fused = fused_vocab_parallel_cross_entropy
        calls["megatron unfused"] = _with_grad(vocab_parallel_cross_entropy)
        calls["megatron fused"] = _with_grad(lambda x, y: fused(x, y, dist.group.WORLD))
    if args.tp == 1:
        calls |= {name: _with_grad(loss) for name, loss in peers.losses(args.device).items()}
    return calls


def _with_grad(loss_of):
    def call(logits, labels, dloss):
        loss = loss_of(logits, labels)
        return loss.detach(), torch.autograd.grad(loss, logits, dloss)[0]

    return call


def _loss_parallel(args: argparse.Namespace):
    from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = init_device_mesh(args.device, (args.tp,))

    def call(logits, labels, dloss):
        with loss_parallel():
            sharded = DTensor.from_local(logits.float(), mesh, [Shard(1)], run_check=False)
            replicated = (DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in (labels, dloss))
            labels, dloss = replicated
            loss = F.cross_entropy(sharded, labels, reduction="none")
            (grad,) = torch.autograd.grad(loss, logits, dloss)
        return loss.to_local().detach(), grad

    return call


if __name__ == "__main__":
    main()
