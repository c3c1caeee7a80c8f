"""Turns of Megatron-Bridge: the recipe's own run, and steps in which all of ours is taken out of it."""

from __future__ import annotations

from typing import Any

from nemo_probsft.adapters.bridge import trainer as bridge  # isort: skip  makes Bridge importable
from megatron.bridge.training.callbacks import CallbackContext
from megatron.bridge.training.gpt_step import forward_step
from megatron.core import parallel_state

from benchmarks.hooks import Hooks
from benchmarks.turns import ALL_ROWS, OURS, DoneError, Turns
from nemo_probsft.config import Recipe
from nemo_probsft.run.prepare import Prepared


def train(recipe: Recipe, prepared: Prepared, turns: Turns) -> None:
    class Step(bridge.RecipeStep):
        """In Bridge's own steps, nothing of the recipe's but its learning rate."""

        ours = True

        def __call__(self, state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
            step = super().__call__ if self.ours else forward_step
            return step(state, data_iterator, model, return_schedule_plan)

        def on_train_start(self, context: CallbackContext) -> None:
            super().on_train_start(context)
            (chunk,) = context.model
            group = parallel_state.get_tensor_model_parallel_group()
            self.hooks = Hooks(chunk, context.optimizer, self.training, prepared.vocab_size, group)

        def on_train_step_start(self, context: CallbackContext) -> None:
            super().on_train_step_start(context)
            number = context.state.train_state.step
            name = turns.implementation(number)
            self.ours = name in (OURS, ALL_ROWS)
            self.hooks.install(skip_rows=name == OURS) if self.ours else self.hooks.remove()
            turns.begin(number)

        def on_train_step_end(self, context: CallbackContext) -> None:
            if self.ours:
                super().on_train_step_end(context)
            turns.end(self.training.number - 1)

    bridge.RecipeStep = Step  # what `fit` makes
    try:
        bridge.fit(recipe, prepared)
    except DoneError:
        return
    raise AssertionError("training ended before the turns did")
