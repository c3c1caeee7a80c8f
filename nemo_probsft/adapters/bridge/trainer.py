"""Megatron-Bridge: recipe -> `finetune` with the objective's step; and a forward pass that collects log p."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from nemo_probsft.adapters.bridge.step import ObjectiveStep, saved_after  # isort: skip  makes Bridge importable without CUDA

from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.config import CheckpointConfig, ConfigContainer
from megatron.bridge.training.finetune import finetune
from megatron.bridge.training.state import GlobalState
from megatron.core import parallel_state

from conversion.checkpoint import HF_FILES, kind_of, last_checkpoint, step_of
from conversion.hf_files import copy_model_files
from nemo_probsft.adapters.bridge import config, cpu
from nemo_probsft.adapters.bridge.data import SFTData
from nemo_probsft.adapters.megatron import layout, micro_batches
from nemo_probsft.adapters.megatron.collect import CollectedLogp
from nemo_probsft.adapters.megatron.metrics import MetricsWriter
from nemo_probsft.adapters.megatron.settings import learning_rate
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import Recipe
from nemo_probsft.run.prepare import Prepared


def fit(recipe: Recipe, prepared: Prepared, callbacks: Sequence[Callback] = ()) -> None:
    """Train from `prepared.base`, or continue from the last complete checkpoint of the run directory."""
    _start()
    directory = Path(recipe.run_dir) / "checkpoints"
    last = last_checkpoint(directory)
    start_step = 0 if last is None else step_of(last)
    data = SFTData(micro_batches.training(recipe, prepared), start_step)
    checkpoint = CheckpointConfig(
        save=str(directory),
        save_interval=recipe.checkpoint.every_steps,
        most_recent_k=recipe.checkpoint.keep_last,
        load=None if last is None else str(last),
        pretrained_checkpoint=prepared.base,
        hf_source_path=prepared.hf,
        save_rng=False,  # nothing is drawn while training
        fully_parallel_save=False,
        dist_ckpt_optim_fully_reshardable=True,
    )
    cfg = config.container(recipe, prepared, data, checkpoint)
    write = WriteMetrics(recipe, start_step)
    step = ObjectiveStep(
        cfg, recipe.resolved, head=recipe.head, vocab_size=prepared.vocab_size, examples=data.examples, write=write
    )
    if torch.distributed.get_rank() == 0:
        _remove_incomplete(directory)
    own = [KeepModelFiles(cfg, Path(prepared.hf)), step, Schedule(recipe, prepared.num_steps)]
    finetune(cfg, step, callbacks=[*own, *callbacks])
    write.close()


def collect_logp(recipe: Recipe, prepared: Prepared, output: Path) -> None:
    """Forward the training set, or a sample of it, once.

    Writes to `output`/<data-parallel rank>.npz what `CollectedLogp.save` says.
    """
    _start()
    data = SFTData(micro_batches.forward_only(recipe, prepared))
    checkpoint = CheckpointConfig(save=None, pretrained_checkpoint=prepared.base, hf_source_path=prepared.hf)
    cfg = config.container(recipe, prepared, data, checkpoint)
    cfg.validation.skip_train, cfg.validation.eval_iters = True, data.micro_batches.num_steps
    step = CollectStep(cfg, recipe, prepared, data)
    finetune(cfg, step, callbacks=[step])
    if layout.first_of_last_stage():
        step.collected.save(output / f"{parallel_state.get_data_parallel_rank(with_context_parallel=True)}.npz")
    torch.distributed.barrier()  # when it returns, all are written


class CollectStep(ObjectiveStep):
    """Keeps log p of every target that an evaluation sees."""

    def __init__(self, cfg: ConfigContainer, recipe: Recipe, prepared: Prepared, data: SFTData) -> None:
        super().__init__(cfg, recipe.resolved, head=recipe.head, vocab_size=prepared.vocab_size)
        self.data, self.num_micro_batches = data, recipe.num_micro_batches
        self.collected = CollectedLogp()

    def __call__(
        self, state: GlobalState, data_iterator: Iterable, model: torch.nn.Module, return_schedule_plan: bool = False
    ) -> tuple[torch.Tensor, partial]:
        output, loss = super().__call__(state, data_iterator, model, return_schedule_plan)
        return output, partial(self._see, **loss.keywords)

    def _see(self, nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> tuple:
        examples = self.data.examples(*divmod(len(self.collected.logp), self.num_micro_batches))
        self.collected.see(nll, labels, loss_mask, examples, layout.columns(loss_mask.shape[1]))
        return nll.sum() * 0, (loss_mask > 0).sum().int(), {}


class Schedule(Callback):
    """The recipe's learning rate, the same on every engine. Bridge's own schedules start from 0."""

    def __init__(self, recipe: Recipe, num_steps: int) -> None:
        self.recipe, self.num_steps = recipe, num_steps

    def on_train_step_start(self, context: CallbackContext) -> None:
        assert context.optimizer is not None
        lr = learning_rate(self.recipe, context.state.train_state.step, self.num_steps)
        for group in context.optimizer.param_groups:
            group["lr"] = lr


class WriteMetrics:
    """Writes the step's metrics on the rank that has them."""

    def __init__(self, recipe: Recipe, start_step: int) -> None:
        self.recipe, self.start_step = recipe, start_step
        self.writer: MetricsWriter | None = None

    def __call__(self, step: TrainingStep, context: CallbackContext) -> None:
        if not layout.holds_the_loss():
            return
        if self.writer is None:
            self.writer = MetricsWriter(self.recipe, step, self.start_step)
        lr = learning_rate(self.recipe, step.number - 1, step.num_steps)
        self.writer.write(lr=lr, grad_norm=lambda: float(context.grad_norm))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class KeepModelFiles(Callback):
    """Puts config.json and the tokenizer into each checkpoint, so that it can be exported by itself."""

    def __init__(self, cfg: ConfigContainer, hf: Path) -> None:
        self.cfg, self.hf = cfg, hf

    def on_train_step_end(self, context: CallbackContext) -> None:
        directory = saved_after(self.cfg, context.state.train_state.step + 1)
        if directory is not None and torch.distributed.get_rank() == 0:
            (directory / HF_FILES).mkdir(parents=True, exist_ok=True)
            copy_model_files(self.hf, directory / HF_FILES)


def _remove_incomplete(directory: Path) -> None:
    """What a killed save left would count among the newest, which Bridge keeps, and push complete ones out."""
    for path in directory.glob("iter_*"):
        if kind_of(path) is None:
            shutil.rmtree(path)


def _start() -> None:
    """Bridge and Megatron log every setting of every rank; warnings and errors stay."""
    warnings.filterwarnings("ignore")
    for name in ("megatron", "megatron.bridge", "megatron.core"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        cpu.start_process_group()
