"""A rank that trains a recipe and counts what would make the host wait for a GPU: see `tests.support.waits`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.support.waits import Transfers, Waits

NUM_STEPS = 3


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

        def asks_at_once(step, nll, labels, loss_mask):
            assert torch.isfinite(nll).all()
            return loss(step, nll, labels, loss_mask)

        TrainingStep.loss = asks_at_once
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
