"""Runs an importable function on several ranks, each a process, and returns its result per rank.

Processes come from a fork server that has torch loaded; `spawn` would import it in each.
"""

import multiprocessing
import pickle
import tempfile
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
# torch._dynamo: the first backward and the first dispatch mode of a process import it, which takes seconds
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "pytest", "hypothesis"])


def run_ranks(function, world_size, *args, timeout_s=120, **kwargs):
    """[function(*args, **kwargs) of rank 0, 1, ...] with the default group up. Results must pickle.

    The group is gloo's, and NCCL's for CUDA tensors.
    Raises RuntimeError with the rank's traceback when one fails (the others are stopped), TimeoutError when one hangs.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = pickle.dumps((function, args, kwargs))
        rank_of, processes = {}, []
        for rank in range(world_size):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(target=_rank, args=(rank, world_size, str(Path(folder) / "store"), call, sender))
            process.start()
            sender.close()
            processes.append(process)
            rank_of[receiver] = rank
        try:
            return _collect(rank_of, timeout_s)
        except BaseException:
            for process in processes:
                process.terminate()
            raise
        finally:
            for process in processes:
                process.join()


def _collect(rank_of, timeout_s):
    results, deadline = [None] * len(rank_of), time.monotonic() + timeout_s
    while rank_of:
        ready = wait(list(rank_of), timeout=max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(rank_of.values())} did not finish within {timeout_s} s")
        for receiver in ready:
            rank = rank_of.pop(receiver)
            try:
                failure, results[rank] = pickle.loads(receiver.recv_bytes())
            except EOFError:
                failure = "the process died without a traceback"
            if failure:
                raise RuntimeError(f"rank {rank} failed:\n{failure}")
    return results


def _rank(rank, world_size, store, call, sender):
    torch.set_num_threads(1)
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world_size)
        function, args, kwargs = pickle.loads(call)
        answer = None, function(*args, **kwargs)
    except BaseException:  # the parent must learn of every way to fail
        answer = traceback.format_exc(), None
    sender.send_bytes(pickle.dumps(answer))
    if answer[0] is None:
        dist.destroy_process_group()
