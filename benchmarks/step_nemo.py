"""Turns of NeMo's trainer: the recipe's own run, and steps in which all of ours is taken out of it."""

from __future__ import annotations

from nemo_probsft.adapters.nemo import trainer as nemo  # isort: skip  makes NeMo importable
import lightning.pytorch as pl
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction

from benchmarks.hooks import Hooks
from benchmarks.turns import ALL_ROWS, OURS, DoneError, Turns
from nemo_probsft.config import Recipe
from nemo_probsft.run.prepare import Prepared


def train(recipe: Recipe, prepared: Prepared, turns: Turns) -> None:
    try:
        nemo.fit(recipe, prepared, callbacks=[_Turns(turns, prepared.vocab_size)])
    except DoneError:
        return
    raise AssertionError("training ended before the turns did")


class _Turns(pl.Callback):
    """Comes after the product's own callbacks, which hear nothing of NeMo's steps."""

    def __init__(self, turns: Turns, vocab_size: int) -> None:
        self.turns, self.vocab_size = turns, vocab_size

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.chunk,) = trainer.strategy.megatron_parallel
        self.reduction, self.callbacks = self.chunk._training_loss_reduction, trainer.callbacks
        group = parallel_state.get_tensor_model_parallel_group()
        optimizer = trainer.optimizers[0].mcore_optimizer
        self.hooks = Hooks(self.chunk, optimizer, self.reduction.step, self.vocab_size, group)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx) -> None:
        name = self.turns.implementation(trainer.global_step)
        ours = name in (OURS, ALL_ROWS)
        self.hooks.install(skip_rows=name == OURS) if ours else self.hooks.remove()
        self.chunk._training_loss_reduction = self.reduction if ours else MaskedTokenLossReduction()
        self.turns.begin(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self.turns.end(trainer.global_step - 1)
        # Those of the next step, whose start goes to all of the list that there is then.
        ours = self.turns.implementation(trainer.global_step) in (OURS, ALL_ROWS)
        trainer.callbacks = self.callbacks if ours else [self]
