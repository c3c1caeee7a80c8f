"""Megatron-Bridge: a recipe's training through `finetune`, and a forward pass that collects log p."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_probsft.adapters.bridge.step import Loss, ObjectiveStep, saved_after  # isort: skip  makes Bridge importable
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.config import CheckpointConfig
from megatron.bridge.training.finetune import finetune

from conversion.checkpoint import HF_FILES, last_checkpoint, remove_incomplete, step_of
from conversion.hf_files import copy_model_files
from nemo_probsft.adapters.bridge import config
from nemo_probsft.adapters.bridge.data import SFTData
from nemo_probsft.adapters.megatron import layout, micro_batches, prior
from nemo_probsft.adapters.megatron.collect import CollectedLogp
from nemo_probsft.adapters.megatron.metrics import MetricsWriter
from nemo_probsft.adapters.megatron.settings import learning_rate
from nemo_probsft.adapters.megatron.validation import Validation
from nemo_probsft.config import Recipe
from nemo_probsft.run.prepare import Prepared


def fit(recipe: Recipe, prepared: Prepared, callbacks: Sequence[Callback] = ()) -> None:
    """Train from `prepared.base`, or continue from the last complete checkpoint of the run directory."""
    _quiet()
    directory = Path(recipe.run_dir) / "checkpoints"
    last = last_checkpoint(directory)
    data = SFTData(micro_batches.training(recipe, prepared), 0 if last is None else step_of(last))
    if os.environ["RANK"] == "0":
        remove_incomplete(directory)  # Bridge would keep them, as the newest, and remove complete ones
    step = RecipeStep(recipe, prepared, data, last, directory)
    finetune(step.cfg, step, callbacks=[step, *callbacks])


def collect_logp(recipe: Recipe, prepared: Prepared, output: Path) -> None:
    """Forward the training set, or a sample of it, once.

    Writes to `output`/<data-parallel rank>.npz what `CollectedLogp.save` says.
    """
    _quiet()
    step = CollectStep(recipe, prepared, SFTData(micro_batches.forward_only(recipe, prepared)), output)
    finetune(step.cfg, step, callbacks=[step])


class RecipeStep(ObjectiveStep):
    """A recipe's learning rate, metrics.jsonl and model files around its objective."""

    def __init__(self, recipe: Recipe, prepared: Prepared, data: SFTData, last: Path | None, directory: Path) -> None:
        checkpoint = CheckpointConfig(
            save=str(directory),
            save_interval=recipe.checkpoint.every_steps,
            most_recent_k=recipe.checkpoint.keep_last,
            load=None if last is None else str(last),
            pretrained_checkpoint=prepared.base,
            hf_source_path=prepared.hf,
            save_rng=False,  # nothing is drawn while training
            dist_ckpt_optim_fully_reshardable=True,
        )
        cfg = config.container(recipe, prepared, data, checkpoint)
        super().__init__(
            cfg,
            recipe.resolved,
            head=recipe.head,
            vocab_size=prepared.vocab_size,
            log_every=recipe.log.every_steps,
            examples=data.examples,
            files=data.micro_batches.files,
        )
        self.recipe, self.prepared, self.hf = recipe, prepared, Path(prepared.hf)
        self.num_micro_batches = data.micro_batches.num_micro_batches
        self.writer: MetricsWriter | None = None
        self.validation: Validation | None = None
        self.lr = 0.0

    def training_loss(self, nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> Loss:
        """Nothing for Bridge's loggers, which would reduce every pair once more: metrics.jsonl has them all."""
        return *self.objective_loss(nll, labels, loss_mask), {}

    def on_train_start(self, context: CallbackContext) -> None:
        super().on_train_start(context)
        start = context.state.train_state.step
        self.writer = MetricsWriter(self.recipe, self.training, start, self.num_micro_batches)
        self.validation = Validation(self.recipe, self.prepared, self.training, self.writer)

    def on_train_end(self, context: CallbackContext) -> None:
        assert self.writer is not None
        self.writer.close()

    def on_train_step_start(self, context: CallbackContext) -> None:
        """The learning rate is the same on every engine; Bridge's own schedules start from 0."""
        number, ranks = context.state.train_state.step + 1, (context.model, layout.sharers())
        prior.measure(number, self.recipe, self.prepared, self.training, *ranks)
        assert self.validation is not None
        self.validation.before_step(number, *ranks)
        super().on_train_step_start(context)
        self.lr = learning_rate(self.recipe, self.training.number - 1, self.training.num_steps)
        assert context.optimizer is not None
        for group in context.optimizer.param_groups:
            group["lr"] = self.lr

    def on_reduced(self, context: CallbackContext) -> None:
        assert self.writer is not None
        assert context.grad_norm is not None
        self.writer.write(lr=self.lr, grad_norm=context.grad_norm)
        assert self.validation is not None
        self.validation.after_step(context.model, layout.sharers())
        directory = saved_after(self.cfg, self.training.number)
        if directory is not None and torch.distributed.get_rank() == 0:  # so that it can be exported by itself
            (directory / HF_FILES).mkdir(parents=True, exist_ok=True)
            copy_model_files(self.hf, directory / HF_FILES)


class CollectStep(ObjectiveStep):
    """Keeps log p of every target that an evaluation sees."""

    def __init__(self, recipe: Recipe, prepared: Prepared, data: SFTData, output: Path) -> None:
        checkpoint = CheckpointConfig(pretrained_checkpoint=prepared.base, hf_source_path=prepared.hf)
        cfg = config.container(recipe, prepared, data, checkpoint)
        cfg.validation.skip_train, cfg.validation.eval_iters = True, data.micro_batches.num_steps
        super().__init__(cfg, recipe.resolved, head=recipe.head, vocab_size=prepared.vocab_size)
        self.data, self.num_micro_batches = data, data.micro_batches.num_micro_batches
        self.collected = CollectedLogp(output, self.training.head_rows)

    def evaluation_loss(self, nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> Loss:
        examples = self.data.examples(*divmod(len(self.collected.logp), self.num_micro_batches))
        self.collected.see(nll, labels, loss_mask, examples, layout.columns(loss_mask.shape[1]))
        return nll.sum() * 0, (loss_mask > 0).sum().int(), {}

    def on_eval_end(self, context: CallbackContext) -> None:
        self.collected.save()
        torch.distributed.barrier()  # when it returns, all are written


def _quiet() -> None:
    """Bridge and Megatron log every setting of every rank; warnings and errors stay."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.WARNING)
