"""NeMo 2.x: recipe -> NeMo's model, strategy, optimizer and trainer. The objective enters without a patch.

Sources: nemo/lightning/megatron_parallel.py (MaskedTokenLossReduction), nemo/collections/llm/gpt/model/base.py
(training_loss_reduction), nemo/collections/llm/api.py (train, validate), nemo-toolkit 2.6-2.7.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not torch.cuda.is_available():  # before NeMo and Megatron tabulate torch.cuda
    from nemo_probsft.adapters.megatron import cpu

    cpu.install()

import fiddle
import lightning.pytorch as pl
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning import io

from conversion.checkpoint import last_checkpoint
from nemo_probsft.adapters.megatron.hook import summarise
from nemo_probsft.adapters.nemo.data import forward_data, round_up, training_data
from nemo_probsft.adapters.nemo.loss import (
    CollectLogp,
    InstallObjective,
    MoveObjective,
    ObjectiveReduction,
    holds_the_loss,
)
from nemo_probsft.config import Recipe
from nemo_probsft.objectives import AnyObjective
from nemo_probsft.run import audit
from nemo_probsft.run.log import RunLog
from nemo_probsft.run.prepare import Prepared


class WriteMetrics(pl.Callback):
    """Writes the step's metrics from the rank that has them: the first of the last pipeline stage."""

    def __init__(self, run_dir: Path, recipe: Recipe, reduction: ObjectiveReduction) -> None:
        self.run_dir, self.recipe, self.reduction = run_dir, recipe, reduction
        self.runlog: RunLog | None = None
        self.recorded = False
        self.lr = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if holds_the_loss():
            wandb = self.recipe.log.wandb
            settings = None if wandb is None else {"project": wandb.project, "name": wandb.name}
            self.runlog = RunLog(self.run_dir, trainer.global_step, settings)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # Checkpoints are named by this number; NeMo's own "step" is one behind.
        pl_module.log("trained_steps", float(step))
        if self.runlog is not None:
            seen, expected = self.reduction.micro_batch, self.recipe.num_micro_batches
            assert seen == expected, f"{seen} of {expected} micro-batches went through the objective"
            if not self.recorded or step == trainer.max_steps:
                assert self.reduction.measured is not None
                audit.record(self.run_dir, self.reduction.measured)
                self.recorded = True
        if self.runlog is None or (step % self.recipe.log.every_steps and step != trainer.max_steps):
            return
        row = {"step": step, **summarise(self.reduction.statistics), **self.reduction.moving}
        row |= {"grad_norm": float(trainer.callback_metrics["grad_norm"]), "lr": self.lr}
        self.runlog.write(row)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.runlog is not None:
            self.runlog.close()


class KeepBaseOfAdapters(pl.Callback):
    """NeMo looks for its note of the base beside `weights/`, not in it, so a resumed run notes the adapters themselves
    as their base (WrappedAdapterIO.load_checkpoint): such a checkpoint could neither be resumed nor exported."""

    def __init__(self, lora: llm.peft.LoRA, base: str) -> None:
        self.lora, self.base = lora, Path(base)

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.lora.wrapped_io.model_ckpt_path = self.base


def fit(
    recipe: Recipe,
    prepared: Prepared,
    objective: AnyObjective,
    denominator: str,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train from the checkpoint `prepared.base`, or go on from the last complete one of the run directory.

    callbacks: more of them, of Lightning's and NeMo's events (nemo.lightning.megatron_parallel.CallbackMethods).
    """
    quiet()
    run_dir, base, num_steps = Path(recipe.run_dir), prepared.base, prepared.num_steps
    model = load_model(recipe, prepared)
    data = training_data(recipe, prepared)
    reduction = ObjectiveReduction(objective, denominator, data, num_steps, prepared.vocab_size)
    trainer = make_trainer(recipe, max_steps=num_steps)
    trainer.callbacks += [
        InstallObjective(prepared.vocab_size, reduction, recipe.head),
        WriteMetrics(run_dir, recipe, reduction),
        MoveObjective(reduction),  # after what writes the step down, before what saves it
    ]
    peft = recipe.peft
    lora = None if peft is None else llm.peft.LoRA(dim=peft.dim, alpha=peft.alpha)
    trainer.callbacks += [] if lora is None else [KeepBaseOfAdapters(lora, base)]
    trainer.callbacks += callbacks
    directory = run_dir / "checkpoints"
    # Checkpoints come last: a step's metrics are on disk before its checkpoint, which is named by a number they log.
    trainer.callbacks.append(_checkpoint(directory, recipe.checkpoint.every_steps, recipe.checkpoint.keep_last))
    if num_steps % recipe.checkpoint.every_steps:
        trainer.callbacks.append(_checkpoint(directory, num_steps, keep=1))
    last = last_checkpoint(directory)
    llm.train(
        model,
        data,
        trainer,
        log=nl.NeMoLogger(explicit_log_dir=str(_nemo_log_dir(run_dir)), update_logger_directory=False),
        resume=nl.AutoResume(resume_from_path=str(last)) if last else _weights_of(base),
        optim=_optimizer(recipe, num_steps),
        model_transform=lora,
    )


def _nemo_log_dir(run_dir: Path) -> Path:
    """A new one for each rank and start: NeMo moves what it finds in rank 0's aside, be it a log that another rank
    writes, and once for each of two checkpoint callbacks, the second time without finding it."""
    return run_dir / "nemo" / f"{time.strftime('%Y%m%d-%H%M%S')}-rank-{os.environ['RANK']}-{os.getpid()}"


def collect_logp(recipe: Recipe, prepared: Prepared, output: Path) -> None:
    """Forward the training set, or a sample of it, once.

    Writes to `output`/<data-parallel rank>.npz of each target: logp fp32 [T]; example int64 [T], its index in the data;
    position int64 [T], the target's index among the example's tokens; label int64 [T], its id.
    """
    quiet()
    model, data = load_model(recipe, prepared), forward_data(recipe, prepared)
    reduction = CollectLogp(data, recipe.num_micro_batches)
    trainer = make_trainer(recipe, max_steps=1, forward_only=True)
    trainer.callbacks.append(InstallObjective(prepared.vocab_size, reduction, recipe.head))
    _weights_of(prepared.base).setup(trainer, model)
    trainer.validate(model, data, verbose=False)
    first_of_tensor_parallel = parallel_state.get_tensor_model_parallel_rank() == 0
    if parallel_state.is_pipeline_last_stage(ignore_virtual=True) and first_of_tensor_parallel:
        rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        np.savez(
            output / f"{rank}.npz",
            logp=torch.cat(reduction.logp).numpy(),
            example=np.concatenate(reduction.example),
            position=np.concatenate(reduction.position),
            label=torch.cat(reduction.label).numpy(),
        )
    torch.distributed.barrier()  # when it returns, all are written


def _weights_of(checkpoint: str) -> nl.AutoResume:
    return nl.AutoResume(restore_config=nl.RestoreConfig(path=checkpoint, load_artifacts=False))


def load_model(recipe: Recipe, prepared: Prepared) -> llm.GPTModel:
    """The NeMo model that the base checkpoint's context describes, with the recipe's settings and no weights yet.

    The settings go into the description, not onto the model: NeMo builds virtual pipeline stages from it once more.
    """
    description = io.load_context(Path(prepared.base) / "context", subpath="model", build=False)
    for name, value in model_settings(recipe, description.config.vocab_size).items():
        setattr(description.config, name, value)
    return fiddle.build(description)


def model_settings(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    tp, pp, _ = recipe.model_parallel_sizes
    settings: dict[str, Any] = {
        "seq_length": recipe.data.max_length,
        "calculate_per_token_loss": True,
        "cross_entropy_loss_fusion": False,  # its place is taken by ops.target_logprob
        # A vocabulary that tp does not divide gets zero rows at its end; target_logprob gives them no probability.
        "vocab_size": round_up(vocab_size, tp),
    }
    if pp > 1:
        # Micro-batches have the length of their longest example. Megatron then refuses the default expert dispatcher,
        # which a dense model's configuration has, too.
        settings |= {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
    if recipe.parallel.virtual_pipeline_model_parallel_size is not None:
        # Megatron-LM's arguments.py demands this at pp 2, Megatron-Core and NeMo do not: in one batch of sends between
        # two stages, which are each other's previous and next, an activation is taken for a gradient.
        settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    if recipe.trainer.recompute != "none":
        settings["recompute_granularity"] = recipe.trainer.recompute
    if recipe.trainer.recompute == "full":
        settings |= {"recompute_method": "uniform", "recompute_num_layers": 1}
    if not torch.cuda.is_available():
        settings |= dict.fromkeys(cpu.FUSIONS_THAT_NEED_CUDA, False)
        # Megatron frees an output once its sending has begun. A CUDA stream keeps the memory until it has been sent;
        # gloo would send what comes to lie there next.
        settings["deallocate_pipeline_outputs"] = False
    return settings


def make_trainer(recipe: Recipe, max_steps: int, *, forward_only: bool = False) -> nl.Trainer:
    """NeMo's trainer on the recipe's layout; gloo on a CPU, NCCL and the distributed optimizer on CUDA."""
    cuda = torch.cuda.is_available()
    parallel = recipe.parallel
    dtype = torch.bfloat16 if recipe.trainer.precision == "bf16" else torch.float32
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        pipeline_dtype=dtype if parallel.pipeline_model_parallel_size > 1 else None,
        ddp=DistributedDataParallelConfig(
            check_for_nan_in_grad=True,
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=cuda,
            average_in_collective=False,
        ),
        ckpt_async_save=False,
        ckpt_optim_fully_reshardable=True,
        gradient_as_bucket_view=True,
    )
    return nl.Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=recipe.trainer.devices,
        num_nodes=recipe.trainer.num_nodes,
        strategy=strategy,
        plugins=nl.MegatronMixedPrecision(precision="bf16-mixed" if recipe.trainer.precision == "bf16" else "32"),
        max_steps=max_steps,
        limit_val_batches=1.0 if forward_only else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,  # `fit` adds its own
        enable_model_summary=False,
        logger=False,
    )


def _optimizer(recipe: Recipe, num_steps: int) -> nl.MegatronOptimizerModule:
    optim = recipe.optim
    warmup_steps = round(optim.warmup_ratio * num_steps)
    schedules = {
        "cosine": lambda: nl.lr_scheduler.CosineAnnealingScheduler(
            max_steps=num_steps, warmup_steps=warmup_steps, constant_steps=0, min_lr=optim.min_lr
        ),
        "linear": lambda: nl.lr_scheduler.WarmupAnnealingScheduler(
            max_steps=num_steps, warmup_steps=warmup_steps, min_lr=optim.min_lr
        ),
        "constant": lambda: nl.lr_scheduler.WarmupPolicyScheduler(
            max_steps=num_steps, warmup_steps=warmup_steps, min_lr=optim.min_lr
        ),
    }
    return nl.MegatronOptimizerModule(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            min_lr=optim.min_lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.betas[0],
            adam_beta2=optim.betas[1],
            adam_eps=optim.eps,
            clip_grad=optim.clip_grad,
            bf16=recipe.trainer.precision == "bf16",
            use_distributed_optimizer=torch.cuda.is_available(),
        ),
        lr_scheduler=schedules[optim.schedule](),
    )


def _checkpoint(directory: Path, every: int, keep: int) -> nl.ModelCheckpoint:
    return nl.ModelCheckpoint(
        dirpath=str(directory),
        filename="step={trained_steps:.0f}",
        auto_insert_metric_name=False,
        monitor="trained_steps",  # the latest is the best; NeMo's default, val_loss, saves nothing without a validation
        mode="max",
        save_top_k=keep,
        save_last=False,
        every_n_train_steps=every,
        save_optim_on_train_end=True,
    )


def quiet() -> None:
    """NeMo and Lightning log every setting of every rank; warnings and errors stay."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "nemo_logger", "nemo.lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
