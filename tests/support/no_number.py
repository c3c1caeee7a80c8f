"""A rank of a run whose loss becomes no number: what it raised, and whether any of its weights has changed."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch


def train(job: dict, output: Path) -> None:
    """The recipe's first step on the job's engine; `job["overlap"]`: gradients are reduced in the backward pass."""
    from nemo_probsft import config
    from nemo_probsft.run import prepare

    recipe = config.load(job["recipe"])
    prepared = prepare.prepare(recipe)[0] if output.stem == "rank-0" else prepare.wait_for(recipe)
    trainer = importlib.import_module(f"nemo_probsft.adapters.{job['engine']}.trainer")
    keep = {"nemo": _nemo_callback, "bridge": _bridge_callback}[job["engine"]]()
    if job["overlap"]:
        _overlap(trainer)
    try:
        trainer.fit(recipe, prepared, callbacks=[keep])
        said = "nothing"
    except (FloatingPointError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    changed = [name for name, (now, before) in keep.weights.items() if not torch.equal(now, before)]
    torch.save({"said": said, "changed": changed, "weights": len(keep.weights)}, output)


def _overlap(trainer) -> None:
    """As Bridge's own recipes have it. The objective's step is in the way that it is for a user's own."""
    container = trainer.config.container

    def overlapping(*arguments):
        cfg = container(*arguments)
        cfg.ddp.overlap_grad_reduce = True
        return cfg

    trainer.config.container = overlapping


class _Weights:
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def keep(self, chunks) -> None:
        named = [item for chunk in chunks for item in chunk.named_parameters()]
        self.weights = {name: (parameter.data, parameter.data.clone()) for name, parameter in named}


def _nemo_callback():
    import lightning.pytorch as pl

    class Keep(_Weights, pl.Callback):
        def on_train_batch_start(self, trainer, *arguments) -> None:
            self.keep(trainer.strategy.megatron_parallel)

    return Keep()


def _bridge_callback():
    from megatron.bridge.training.callbacks import Callback

    class Keep(_Weights, Callback):
        def on_train_step_start(self, context) -> None:
            self.keep(context.model)

    return Keep()
