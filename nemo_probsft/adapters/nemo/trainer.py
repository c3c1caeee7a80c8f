"""NeMo 2: recipe -> NeMo's model, strategy, optimizer and trainer. The objective enters without a patch.

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

import torch

if not torch.cuda.is_available():  # before NeMo and Megatron tabulate torch.cuda
    from nemo_probsft.adapters.nemo import cpu

    cpu.install()

import fiddle
import lightning.pytorch as pl
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning import io

from conversion.checkpoint import last_checkpoint
from nemo_probsft.adapters.megatron import micro_batches
from nemo_probsft.adapters.megatron.settings import (
    ddp_settings,
    model_settings,
    optimizer_settings,
    parallel_settings,
    warmup_steps,
)
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.adapters.nemo.callbacks import InstallObjective, KeepBaseOfAdapters, MoveObjective, WriteMetrics
from nemo_probsft.adapters.nemo.data import SFTData
from nemo_probsft.adapters.nemo.loss import CollectReduction, ObjectiveReduction
from nemo_probsft.config import Recipe
from nemo_probsft.ops import HeadReport
from nemo_probsft.run.prepare import Prepared


def fit(recipe: Recipe, prepared: Prepared, callbacks: Sequence[pl.Callback] = ()) -> None:
    """Train from the checkpoint `prepared.base`, or continue from the last complete one of the run directory.

    callbacks: more of them, of Lightning's and NeMo's events (nemo.lightning.megatron_parallel.CallbackMethods).
    """
    quiet()
    run_dir, base, num_steps = Path(recipe.run_dir), prepared.base, prepared.num_steps
    model = load_model(recipe, prepared)
    data = SFTData(micro_batches.training(recipe, prepared))
    step = TrainingStep(
        recipe.resolved,
        num_steps=num_steps,
        num_labels=prepared.vocab_size,
        log_every=recipe.log.every_steps,
        examples=data.examples,
        files=data.micro_batches.files,
    )
    trainer = make_trainer(recipe, max_steps=num_steps)
    trainer.callbacks += [
        InstallObjective(ObjectiveReduction(step), step.head, recipe.head, prepared.vocab_size),
        WriteMetrics(recipe, prepared, step, data.micro_batches.num_micro_batches),
        MoveObjective(step),  # after what writes the step down, before what saves it
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
        resume=nl.AutoResume(resume_from_path=str(last)) if last else weights_of(base),
        optim=optimizer(recipe, num_steps),
        model_transform=lora,
    )


def _nemo_log_dir(run_dir: Path) -> Path:
    """A new one for each rank and start: NeMo moves what it finds in rank 0's aside, be it a log that another rank
    writes, and once for each of two checkpoint callbacks, the second time without finding it."""
    return run_dir / "nemo" / f"{time.strftime('%Y%m%d-%H%M%S')}-rank-{os.environ['RANK']}-{os.getpid()}"


def collect_logp(recipe: Recipe, prepared: Prepared, output: Path) -> None:
    """Forward the training set, or a sample of it, once.

    Writes to `output`/<data-parallel rank>.npz of each target: logp fp32 [T]; top_logp fp32 [T], of the likeliest token
    there; example int64 [T], its index in the data; position int64 [T], the target's index among the example's tokens;
    label int64 [T], its id.
    """
    quiet()
    model, data = load_model(recipe, prepared), SFTData(micro_batches.forward_only(recipe, prepared))
    reduction = CollectReduction(data, output)
    trainer = make_trainer(recipe, max_steps=1, forward_only=True)
    trainer.callbacks.append(InstallObjective(reduction, HeadReport(), recipe.head, prepared.vocab_size))
    weights_of(prepared.base).setup(trainer, model)
    trainer.validate(model, data, verbose=False)
    reduction.collected.save()
    torch.distributed.barrier()  # when it returns, all are written


def weights_of(checkpoint: str) -> nl.AutoResume:
    return nl.AutoResume(restore_config=nl.RestoreConfig(path=checkpoint, load_artifacts=False))


def load_model(recipe: Recipe, prepared: Prepared) -> llm.GPTModel:
    """The NeMo model that the base checkpoint's context describes, with the recipe's settings and no weights yet.

    The settings go into the description, not onto the model: NeMo builds virtual pipeline stages from it once more.
    """
    description = io.load_context(Path(prepared.base) / "context", subpath="model", build=False)
    for name, value in model_settings(recipe, description.config.vocab_size).items():
        setattr(description.config, name, value)
    if Path(prepared.hf).parent == Path(recipe.run_dir):  # checkpoints copy the tokenizer's directory
        description.tokenizer.pretrained_model_name = str(Path(prepared.hf).absolute())
    if recipe.model.trust_remote_code:
        description.tokenizer.trust_remote_code = True
    return fiddle.build(description)


def make_trainer(recipe: Recipe, max_steps: int, *, forward_only: bool = False) -> nl.Trainer:
    """NeMo's trainer on the recipe's layout; gloo on a CPU, NCCL and the distributed optimizer on CUDA."""
    cuda = torch.cuda.is_available()
    strategy = nl.MegatronStrategy(
        **parallel_settings(recipe),
        ddp=DistributedDataParallelConfig(**ddp_settings()),
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


def optimizer(recipe: Recipe, num_steps: int) -> nl.MegatronOptimizerModule:
    """Adam with the recipe's schedule over `num_steps`."""
    steps = {"max_steps": num_steps, "warmup_steps": warmup_steps(recipe, num_steps), "min_lr": recipe.optim.min_lr}
    schedules = {
        "cosine": lambda: nl.lr_scheduler.CosineAnnealingScheduler(**steps, constant_steps=0),
        "linear": lambda: nl.lr_scheduler.WarmupAnnealingScheduler(**steps),
        "constant": lambda: nl.lr_scheduler.WarmupPolicyScheduler(**steps),
    }
    config = OptimizerConfig(**optimizer_settings(recipe))
    return nl.MegatronOptimizerModule(config, lr_scheduler=schedules[recipe.optim.schedule]())


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
