"""Counts, on a CPU, what would make the host wait for a GPU in a real training step, and says whose code asks for it.

A copy to the host is nothing on a CPU: `Tensor.cpu` is counted as a function, and what is computed from its result is
the host's arithmetic. Every other tensor is taken for one on the device.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = str(Path(__file__).resolve().parents[2])
WAIT = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
}
TRANSFERS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy)
# What a GPU does not run, by file, or by file:function with what that calls, and why:
OF_A_CPU = ("nemo_probsft/ops/cpu.py", "nemo_probsft/ops/tiles.py", "nemo_probsft/ops/native.py")  # kernels.py does
CHECKS = {  # look only at tensors on a CPU; `tests/unit/test_waits.py` shows both
    "nemo_probsft/ops/targets.py:check",  # labels: on CUDA the kernels make the row of a wrong one NaN
    "nemo_probsft/ops/lm_head.py:_check_rows",  # rows that the caller promises: on CUDA the promise is trusted
}
OF_THE_HOST = ("nemo_probsft/data/",)  # batches before they are sent to the device


class Waits(TorchDispatchMode):
    """`seen`: [operation, whose code] in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[str]] = []
        self.host: dict[int, torch.Tensor] = {}  # by the address of their storage, which they keep alive

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if tensors and all(tensor.untyped_storage().data_ptr() in self.host for tensor in tensors):
            self.on_host(result)
        elif waits(func.overloadpacket.__name__, args) and (whose := who()) is not None:
            self.seen.append([func.overloadpacket.__name__, whose])
        return result

    def on_host(self, result) -> None:
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.host[x.untyped_storage().data_ptr()] = x


class Transfers(TorchFunctionMode):
    def __init__(self, counted: Waits) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in TRANSFERS and args[0].untyped_storage().data_ptr() not in self.counted.host:
            self.counted.seen.append([func.__name__, str(who())])
            self.counted.on_host(result)
        return result


def waits(name: str, args: tuple) -> bool:
    if name.startswith("index_put") and args[2].numel() == 1:  # torch fills by the mask
        return False
    if name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "repeat_interleave":
        return len(args) == 1
    return name in WAIT


def who() -> str | None:
    """file:function of the innermost frame that is nobody's tool; None for what a GPU would not run."""
    frame = sys._getframe(2)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if function in ("__torch_function__", "__torch_dispatch__"):  # a mode, such as that of adapters/megatron/cpu.py
            frame = frame.f_back
            continue
        if "site-packages" in file and "/torch/" not in file:
            return f"engine {file.split('site-packages/')[-1]}:{function}"
        if (place := _place(frame)) is not None:
            caller = None if frame.f_back is None else _place(frame.f_back)
            left_out = place.startswith((*OF_A_CPU, *OF_THE_HOST)) or {place, caller} & CHECKS
            return None if left_out else place
        frame = frame.f_back
    return "engine ?"


def _place(frame: FrameType) -> str | None:
    """file:function, where the file is the project's."""
    file = frame.f_code.co_filename
    if not file.startswith(ROOT) or "site-packages" in file or file == __file__:
        return None
    return f"{file.removeprefix(ROOT).lstrip('/')}:{frame.f_code.co_name}"
