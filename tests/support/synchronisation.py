"""Counts, on a CPU, what would make the host wait for a GPU in a real training step, and says whose code asks for it.

A copy to the host is nothing on a CPU: `Tensor.cpu` is counted as a function, and what is computed from its result is
the host's arithmetic. Every other tensor is taken for one on the device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
OF_A_CPU = ("ops/tiles.py", "ops/native.py")  # kernels.py stands in their place on a GPU
OF_THE_HOST = ("nemo_probsft/data/",)  # batches before they are sent to the device
NUM_STEPS = 3


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
        if file.startswith(ROOT) and "site-packages" not in file and file != __file__:
            place = file.removeprefix(ROOT).lstrip("/")
            on_the_host = place.endswith(OF_A_CPU) or place.startswith(OF_THE_HOST) or "check" in function
            return None if on_the_host else f"{place}:{function}"
        if function == "wait_for_the_loss":
            return "the known wrong"
        frame = frame.f_back
    return "engine ?"


def train(job: dict, output: Path) -> None:
    """A recipe's steps with the engine's own loss or ours; writes [seen of step 1, of step 2, ...] as JSON.

    job: engine, recipe, and as its loss "ours", "default", or "known wrong", ours with the guard that asks at once.
    """
    from nemo_probsft import config
    from nemo_probsft.adapters.megatron.step import TrainingStep
    from nemo_probsft.run import prepare
    from tests.support.engine import end_helpers

    recipe = config.load(job["recipe"])
    prepared, _ = prepare.prepare(recipe)
    if job["loss"] == "known wrong":
        loss = TrainingStep.loss

        def wait_for_the_loss(step, nll, labels, loss_mask):
            assert torch.isfinite(nll).all()
            return loss(step, nll, labels, loss_mask)

        TrainingStep.loss = wait_for_the_loss
    steps: list[list[list[str]]] = []
    run = {"nemo": _nemo, "bridge": _bridge}[job["engine"]]
    run(recipe, prepared, _Steps(steps), default=job["loss"] == "default")
    output.with_suffix(".json").write_text(json.dumps(steps))
    end_helpers()


class _Steps:
    def __init__(self, steps: list) -> None:
        self.steps = steps

    def begin(self) -> None:
        self.counted = Waits()
        self.modes = [Transfers(self.counted), self.counted]
        for mode in self.modes:
            mode.__enter__()

    def end(self) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(None, None, None)
        self.steps.append(self.counted.seen)


def _nemo(recipe, prepared, counter: _Steps, default: bool) -> None:
    import lightning.pytorch as pl

    from nemo_probsft.adapters.megatron import micro_batches
    from nemo_probsft.adapters.nemo import trainer as nemo

    class Count(pl.Callback):
        def on_train_batch_start(self, *arguments) -> None:
            counter.begin()

        def on_train_batch_end(self, *arguments) -> None:
            counter.end()

    if not default:
        nemo.fit(recipe, prepared, callbacks=[Count()])
        return
    trainer = nemo.make_trainer(recipe, max_steps=prepared.num_steps)
    trainer.callbacks.append(Count())
    nemo.llm.train(
        nemo.load_model(recipe, prepared),
        nemo.SFTData(micro_batches.training(recipe, prepared)),
        trainer,
        log=nemo.nl.NeMoLogger(explicit_log_dir=f"{recipe.run_dir}/nemo", update_logger_directory=False),
        resume=nemo.weights_of(prepared.base),
        optim=nemo.optimizer(recipe, prepared.num_steps),
    )


def _bridge(recipe, prepared, counter: _Steps, default: bool) -> None:
    from nemo_probsft.adapters.bridge import trainer as ours  # isort: skip  makes Bridge importable
    from megatron.bridge.training.callbacks import Callback
    from megatron.bridge.training.config import CheckpointConfig
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.gpt_step import forward_step

    from nemo_probsft.adapters.bridge import config
    from nemo_probsft.adapters.bridge.data import SFTData
    from nemo_probsft.adapters.megatron import micro_batches

    class Count(Callback):
        def on_train_step_start(self, context) -> None:
            counter.begin()

        def on_train_step_end(self, context) -> None:
            counter.end()

    if not default:
        ours.fit(recipe, prepared, callbacks=[Count()])
        return
    data = SFTData(micro_batches.training(recipe, prepared))
    checkpoint = CheckpointConfig(pretrained_checkpoint=prepared.base, hf_source_path=prepared.hf)
    finetune(config.container(recipe, prepared, data, checkpoint), forward_step, callbacks=[Count()])
