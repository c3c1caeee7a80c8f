"""`tiles` in C (rows.c) for contiguous fp32 and bf16 rows on a CPU, made at first use by the machine's C compiler.

Plain torch reads the logits once for the maximum and again for the exponentials unless a tile stays in L2, and always
pays a write for each op; here a block stays in L1. Where there is no compiler, `tiles` computes the same.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("rows.c")
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # as in rows.c
ROWS_PER_THREAD = 16
"""Fewer rows are not worth a thread."""


def takes(logits: Tensor) -> bool:
    return logits.dtype in DTYPES and logits.stride(-1) == 1 and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled rows.c, in a fifth of a second; None where no compiler makes one."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file is not needed any more
        target = Path(folder) / "rows.so"
        try:
            subprocess.run(
                [*compiler, *FLAGS, str(SOURCE), "-o", str(target), "-lm"], check=True, capture_output=True, text=True
            )
            return ctypes.CDLL(str(target))
        except FileNotFoundError:
            return None
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            logging.getLogger(__name__).warning("the loss runs on tiles, rows.c does not compile: %s", reason.strip())
            return None


def row_stats(
    logits: Tensor,  # [T, n] fp32/bf16, rows contiguous; n >= 0
    column: Tensor,  # [T] int64 target column on this shard, -1 where it lies elsewhere or the row is ignored
    skip: Tensor,  # [T] bool, rows that need no statistics
    stats: Tensor,  # [3 or 4, T] fp32, written: top, rest, target (0 where the target lies elsewhere), largest
) -> None:
    """As `tiles.row_stats`. `top` is within 20 of the largest of the other logits."""
    num_columns, size, dtype = logits.shape[1], logits.element_size(), DTYPES[logits.dtype]
    column = column.contiguous()

    def rows(start: int, end: int) -> None:
        _call(
            "row_stats",
            *(_at(logits, start), logits.stride(0) * size, end - start, num_columns, dtype),
            *(_at(x, start) for x in (column, skip, *stats)),
            *[None] * (4 - len(stats)),
        )

    assert skip.is_contiguous()
    assert stats.stride(1) == 1
    _over_threads(rows, len(logits))


def row_grad(
    logits: Tensor,  # [T, n]
    column: Tensor,  # [T] int64
    top: Tensor,  # [T] fp32
    scale: Tensor,  # [T] fp32, softmax_j = scale * exp(x_j - top)
    dlogp: Tensor,  # [T] fp32; rows with 0 become exact zeros and are not read
    target_grad: Tensor,  # [T] fp32, gradient of the target's logit
    grad: Tensor,  # [T, n] in the logits' dtype, rows contiguous, written; may be logits itself
) -> None:
    """As `tiles.row_grad`."""
    num_columns, size, dtype = logits.shape[1], logits.element_size(), DTYPES[logits.dtype]
    vectors = [x.contiguous() for x in (column, top, scale, dlogp, target_grad)]

    def rows(start: int, end: int) -> None:
        _call(
            "row_grad",
            *(_at(logits, start), logits.stride(0) * size, end - start, num_columns, dtype),
            *(_at(x, start) for x in vectors),
            *(_at(grad, start), grad.stride(0) * size),
        )

    assert grad.stride(1) == 1
    _over_threads(rows, len(logits))
    torch.autograd.graph.increment_version(grad)


def _at(x: Tensor, row: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr() + row * x.stride(0) * x.element_size())


def _call(name: str, *args: ctypes.c_void_p | int | None) -> None:
    function = getattr(library(), name)
    function(*(ctypes.c_int64(x) if isinstance(x, int) else x for x in args))


def _over_threads(rows: Callable[[int, int], None], num_rows: int) -> None:
    """rows(start, end) for all rows, in as many threads as torch uses: ctypes releases the GIL."""
    num_threads = max(1, min(torch.get_num_threads(), num_rows // ROWS_PER_THREAD))
    bounds = [num_rows * i // num_threads for i in range(num_threads + 1)]
    if num_threads == 1:
        return rows(0, num_rows)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(rows, bounds[:-1], bounds[1:]))
