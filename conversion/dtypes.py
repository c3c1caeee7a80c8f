"""The dtypes that weights may have, and casts that refuse what does not fit."""

import torch
from torch import Tensor

Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # name -> dtype and shape
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its name or itself; None stays None, which means: keep the dtype of the tensors."""
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(label: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES.values():
        raise ValueError(f"{label} has dtype {dtype_name(dtype)}; only {', '.join(DTYPES)} are supported")


def cast(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """`tensor` in `dtype` (None: as it is). Raises: ValueError if a number does not fit."""
    if dtype is None or tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if not _is_finite(result):
        raise ValueError(f"{name}: its numbers do not fit into {dtype_name(dtype)}; choose another dtype")
    return result


def finite(tensor: Tensor, label: str) -> Tensor:
    """`tensor`, after a look at every number of it. Raises: ValueError if one is NaN or infinite."""
    if not _is_finite(tensor):
        raise ValueError(f"{label} holds NaN or infinite numbers; the weights are damaged, or their training diverged")
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """Much faster than isfinite().all(), and without temporaries."""
    if tensor.sum().isfinite():
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() & high.isfinite())  # the sum alone may have overflowed; NaN wins in min and max
