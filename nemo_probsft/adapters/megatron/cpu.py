"""The real Megatron-Core on a machine without CUDA, over gloo.

It assumes a GPU in places that have nothing to do with the arithmetic: `device="cuda"`, CUDA streams, type checks.
`PATCHES` lists what is changed for every engine, each with its reason; an engine's own are in its `cpu` module.
`tests/engines/test_cpu_adapter.py` runs each probe on the unpatched packages and fails when one is no longer needed.
`install` refuses to run where CUDA is present.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Patch:
    """One deviation from upstream: `apply` makes it, `probe` raises on the unpatched package."""

    name: str
    package: str
    versions: str
    upstream: str
    reason: str
    apply: Callable[[], None]
    probe: Callable[[], object]


class _Inert:
    """Stands for a CUDA stream or event: there is one queue on a CPU and it is always in order."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def wait_stream(self, *args: object) -> None: ...
    def wait_event(self, *args: object) -> None: ...
    def record_event(self, *args: object) -> _Inert:
        return self

    def record(self, *args: object) -> None: ...
    def synchronize(self) -> None: ...
    def wait(self, *args: object) -> None: ...
    def query(self) -> bool:
        return True


def _nothing() -> Callable[..., None]:
    # A new function each time: torch._dynamo refuses one object under two names of its rule table.
    return lambda *args, **kwargs: None


def _no_stream(*args: object, **kwargs: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _is_cuda(device: object) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


class _CudaMeansCpu(TorchFunctionMode):
    """`device="cuda"` is read as the CPU, `pin_memory` is dropped, `Tensor.type()` names the type its CUDA twin has."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs:
            kwargs.pop("pin_memory", None)
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = CPU
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        return func(*args, **kwargs)


def _patch_torch_cuda() -> None:
    import megatron.core.tensor_parallel.random  # noqa: F401  torch._dynamo, which it imports, tabulates torch.cuda as it was

    stand_ins = {
        "current_device": lambda: CPU,
        "device_count": lambda: 1,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "current_stream": lambda device=None: _Inert(),
        "default_stream": lambda device=None: _Inert(),
        "Stream": _Inert,
        "Event": _Inert,
        "stream": _no_stream,
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect"):
        setattr(torch.cuda, name, _nothing())
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, _nothing())
    torch.cuda.random.get_rng_state = torch.cuda.get_rng_state
    torch.nn.Module.cuda = lambda module, device=None: module  # type: ignore[method-assign,assignment,misc]


def _patch_devices() -> None:
    _CudaMeansCpu().__enter__()


def _patch_rng_tracker() -> None:
    from megatron.core.tensor_parallel import random

    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    # It warns of every draw inside a fork: "CPU RNG state changed within GPU RNG context". Here that is the point.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)


def _patch_norm() -> None:
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    def sequence_parallel_norm(cls, config, hidden_size, eps=1e-5, **kwargs):  # type: ignore[no-untyped-def]
        norm = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}[config.normalization](
            hidden_size, eps=eps
        )
        for parameter in norm.parameters():
            # Megatron all-reduces the gradients of parameters with this mark over the tensor-parallel group.
            parameter.sequence_parallel = config.sequence_parallel
        return norm

    WrappedTorchNorm.__new__ = sequence_parallel_norm  # type: ignore[method-assign,assignment]


def _probe_norm() -> object:
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, normalization="RMSNorm")
    config.sequence_parallel = True
    return WrappedTorchNorm(config, 8)


def _probe_rng_tracker() -> object:
    from megatron.core.tensor_parallel import random

    random._set_cuda_rng_state(torch.get_rng_state())
    return random._get_cuda_rng_state()


PATCHES = (
    Patch(
        name="torch_cuda",
        package="torch",
        versions=">=2.4",
        upstream="torch.cuda: streams, events, rng, current_device, synchronize",
        reason="Megatron's schedules, buffers and seeding call them without asking whether there is a GPU",
        apply=_patch_torch_cuda,
        probe=lambda: torch.cuda.current_device(),
    ),
    Patch(
        name="devices",
        package="megatron-core",
        versions=">=0.15,<0.20",
        upstream='device="cuda", pin_memory=True and Tensor.type() checks in schedules, optimizer and NeMo\'s logging',
        reason="the device is written into the calls, and the optimizer takes gradients of type torch.cuda.* only",
        apply=_patch_devices,
        probe=lambda: torch.zeros([], dtype=torch.int, device="cuda"),
    ),
    Patch(
        name="rng_tracker",
        package="megatron-core",
        versions=">=0.15,<0.20",
        upstream="megatron.core.tensor_parallel.random._set_cuda_rng_state",
        reason="forks the generator of a CUDA device around dropout and initialisation",
        apply=_patch_rng_tracker,
        probe=_probe_rng_tracker,
    ),
    Patch(
        name="norm",
        package="megatron-core",
        versions=">=0.15,<0.20",
        upstream="megatron.core.transformer.torch_norm.WrappedTorchNorm",
        reason="refuses sequence parallelism; the same torch norm, its parameters marked for the all-reduce, is exact",
        apply=_patch_norm,
        probe=_probe_norm,
    ),
)


class _Nothing(type):
    """A class whose every attribute is such a class: others may inherit from it and annotate with it."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


@contextlib.contextmanager
def stand_in(package: str, module: str) -> Iterator[None]:
    """While what imports `package`.`module` for the names in it is imported, where the package is not installed."""
    outer, inner = ModuleType(package), ModuleType(f"{package}.{module}")
    vars(outer).update({"__version__": "0", "__path__": [], module: inner})
    vars(inner)["__getattr__"] = lambda name: getattr(_Nothing(module, (), {}), name)
    sys.modules.update({package: outer, inner.__name__: inner})
    try:
        yield
    finally:
        del sys.modules[package], sys.modules[inner.__name__]


def install(patches: Sequence[Patch] = PATCHES) -> None:
    """Apply `patches` in order. Raises ValueError where CUDA is present: there the stock packages run."""
    refuse_on(cuda=torch.cuda.is_available())
    for patch in patches:
        patch.apply()


def refuse_on(*, cuda: bool) -> None:
    if cuda:
        raise ValueError(
            "the CPU adapter was asked for on a machine with CUDA; remove the call, the stock packages run"
        )
