"""What happens when in NeMo's loop: the hooks go in, the step begins and ends, metrics and running means are kept.

Source of the events: lightning.pytorch.Callback 2.4, nemo/lightning/megatron_parallel.py, nemo-toolkit 2.6-2.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import gpt_data_step

from nemo_probsft.adapters.megatron import prior
from nemo_probsft.adapters.megatron.hook import check_config, install_target_logprob, reduce_before_gradients
from nemo_probsft.adapters.megatron.layout import holds_the_loss, sharers
from nemo_probsft.adapters.megatron.metrics import MetricsWriter
from nemo_probsft.adapters.megatron.norm import ExactNorm, install_exact_norm
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.adapters.megatron.validation import Validation
from nemo_probsft.adapters.nemo.loss import CollectReduction, ObjectiveReduction
from nemo_probsft.config import HeadConfig, Recipe
from nemo_probsft.ops import HeadReport
from nemo_probsft.run.prepare import Prepared


class InstallObjective(pl.Callback):
    """Hooks `ops` and the reduction into every pipeline chunk once all exist and their weights are restored.

    NeMo makes virtual pipeline stages itself, each with a reduction of its own: -log p, unless it is replaced here.
    """

    def __init__(
        self, reduction: ObjectiveReduction | CollectReduction, head: HeadReport, settings: HeadConfig, vocab_size: int
    ) -> None:
        self.reduction, self.head, self.settings, self.vocab_size = reduction, head, settings, vocab_size

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer.strategy, "_training_loss_reduction")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer.strategy, "_validation_loss_reduction")

    def _install(self, strategy: Any, attribute: str) -> None:
        chunks = strategy.megatron_parallel
        for chunk in chunks:
            check_config(chunk.config)
            setattr(chunk, attribute, self.reduction)
            chunk.data_step = self._data_step  # not in the description, which checkpoints keep and others load
        tp_group = parallel_state.get_tensor_model_parallel_group()
        said = install_target_logprob(
            chunks, self.vocab_size, tp_group, self.settings, self.head, self.reduction.head_rows
        )
        if said is not None and holds_the_loss():
            print(f"row skipping in the LM head is {said}", flush=True)

    def _data_step(self, batches: Iterator[Any]) -> dict[str, Any]:
        return gpt_data_step(self.reduction.head_rows.watch(batches))


class WriteMetrics(pl.Callback):
    """Writes the step's metrics on the rank that has them, and those of the held-out rows when they are due.

    It has the norm of the gradient summed in float64, which is what clips, too.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, step: TrainingStep, num_micro_batches: int) -> None:
        self.recipe, self.prepared, self.step, self.num_micro_batches = recipe, prepared, step, num_micro_batches
        self.writer: MetricsWriter | None = None
        self.norm: ExactNorm | None = None
        self.validation: Validation | None = None
        self.lr = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step.to(torch.cuda.current_device())
        self.writer = MetricsWriter(self.recipe, self.step, trainer.global_step, self.num_micro_batches)
        self.validation = Validation(self.recipe, self.prepared, self.step, self.writer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        wrapper: Any = trainer.optimizers[0]  # NeMo's, around Megatron's; see `MoveObjective._install`
        if self.norm is None:
            self.norm = install_exact_norm(wrapper.mcore_optimizer)
        self.lr = wrapper.param_groups[0]["lr"]
        number, ranks = trainer.global_step + 1, (_chunks(trainer), sharers())
        prior.measure(number, self.recipe, self.prepared, self.step, *ranks)
        assert self.validation is not None
        self.validation.before_step(number, *ranks)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Checkpoints are named by this number; NeMo's own "step" is one behind.
        # As NeMo logs its own numbers: one that is no tensor is copied to the device, which waits for it.
        trained = torch.tensor(float(trainer.global_step), pin_memory=True).to("cuda", non_blocking=True)
        pl_module.log("trained_steps", trained)
        assert self.writer is not None
        assert self.norm is not None
        self.writer.write(lr=self.lr, grad_norm=self.norm.last)  # Lightning's own lies on the device
        assert self.validation is not None
        self.validation.after_step(_chunks(trainer), sharers())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.writer is not None
        self.writer.close()


def _chunks(trainer: pl.Trainer) -> list[torch.nn.Module]:
    """This rank's pipeline chunks."""
    strategy: Any = trainer.strategy
    return list(strategy.megatron_parallel)


class MoveObjective(pl.Callback):
    """Tells the step where training stands, and puts its running means of p into checkpoints."""

    def __init__(self, step: TrainingStep) -> None:
        self.step, self.installed = step, False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.installed:
            self._install(trainer)
        self.step.begin(trainer.global_step + 1)

    def _install(self, trainer: pl.Trainer) -> None:
        """With LoRA, NeMo makes the optimizer when the epoch starts, after `on_train_start`, and sets the model's
        `finalize_model_grads_func` once more (nemo/lightning/pytorch/callbacks/peft.py, apply_transform)."""
        reduce_before_gradients(_chunks(trainer), self.step, sharers())
        self.installed = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step.end()

    def state_dict(self) -> dict[str, Any]:
        return self.step.state(
            parallel_state.get_pipeline_model_parallel_group(),
            parallel_state.get_pipeline_model_parallel_last_rank(),
            torch.cuda.current_device(),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step.load_state(state_dict)


class KeepBaseOfAdapters(pl.Callback):
    """NeMo looks for its note of the base beside `weights/`, not in it, so a resumed run notes the adapters themselves
    as their base (WrappedAdapterIO.load_checkpoint): such a checkpoint could neither be resumed nor exported."""

    def __init__(self, lora: llm.peft.LoRA, base: str) -> None:
        self.lora, self.base = lora, Path(base)

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.lora.wrapped_io.model_ckpt_path = self.base
