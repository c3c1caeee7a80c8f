"""f(p) as Bridge's forward step, and as the callback that begins and ends a training step around it.

Sources: megatron/bridge/training/gpt_step.py (_forward_step_common), callbacks.py, train.py (train_step),
megatron-bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not torch.cuda.is_available():  # before Bridge, which cannot be imported there
    from nemo_probsft.adapters.bridge import cpu

    cpu.install()

from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.config import ConfigContainer
from megatron.bridge.training.gpt_step import get_batch
from megatron.bridge.training.mixed_precision import get_mixed_precision_config
from megatron.bridge.training.state import GlobalState
from megatron.bridge.training.utils.checkpoint_utils import get_checkpoint_name
from megatron.bridge.training.utils.packed_seq_utils import get_packed_seq_params
from megatron.bridge.training.utils.pg_utils import get_pg_collection
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.utils import get_model_config

from nemo_probsft.adapters.megatron.hook import check_config, install_target_logprob, reduce_before_gradients, unwrap
from nemo_probsft.adapters.megatron.layout import holds_the_loss, sharers
from nemo_probsft.adapters.megatron.norm import install_exact_norm
from nemo_probsft.adapters.megatron.statistics import plain_loss
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import HeadConfig, ResolvedObjective
from nemo_probsft.config.exactness import BRIDGE_SETTINGS, bridge_values, refused_setting
from nemo_probsft.data.batches import IGNORED
from nemo_probsft.objectives import parse_objective

STATE = "objective.pt"  # in a checkpoint: the running means of p
OBJECTIVE = "nemo_probsft"  # in the callbacks' `user_state`: the TrainingStep, for others to read its metrics
Loss = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


class ObjectiveStep(Callback):
    """`finetune(cfg, step, callbacks=[step])` trains the objective; it wants the same object in both places.

    objective: a key, a mapping as in a recipe, or what `config.load` made of it. denominator: "target" or "kept".
    vocab_size: without padding, where `cfg.model.vocab_size` has some. log_every, examples, files: of `TrainingStep`.
    Reports objective, nll, p and kept_fraction of the steps that log to Bridge's loggers; evaluation reports nll and p.
    Raises ValueError where `cfg` would train something else.
    """

    def __init__(
        self,
        cfg: ConfigContainer,
        objective: str | dict[str, Any] | ResolvedObjective,
        *,
        denominator: str = "target",
        head: HeadConfig = HeadConfig(),  # noqa: B008  frozen
        vocab_size: int | None = None,
        log_every: int = 1,
        examples: Callable[[int, int], np.ndarray] | None = None,  # of TrainingStep
        files: np.ndarray | None = None,
    ) -> None:
        if isinstance(cfg.mixed_precision, str):  # a name says nothing to the check
            cfg.mixed_precision = get_mixed_precision_config(cfg.mixed_precision)
        if reason := refused_setting(bridge_values(cfg), BRIDGE_SETTINGS):
            raise ValueError(f"the Bridge configuration has {reason}; docs/exactness.md lists what is exact")
        self.cfg, self.head, self.installed = cfg, head, False
        size = vocab_size or cfg.model.vocab_size
        if size is None:
            raise ValueError("cfg.model.vocab_size is not set; set it to the size of the vocabulary without padding")
        if not isinstance(objective, ResolvedObjective):
            objective = ResolvedObjective(parse_objective(objective), denominator, objective)
        self.training = TrainingStep(
            objective,
            num_steps=cfg.train.train_iters,
            num_labels=size,
            log_every=log_every,
            examples=examples,
            files=files,
        )
        self.vocab_size = size

    def __call__(
        self, state: GlobalState, data_iterator: Iterator, model: torch.nn.Module, return_schedule_plan: bool = False
    ) -> tuple[torch.Tensor, partial]:
        """A micro-batch through a model chunk: its output, -log p [b, s] fp32 on the last stage, and the loss of it."""
        assert not return_schedule_plan, "Bridge asks for a plan of mixture-of-experts models only"
        if not self.installed:
            raise ValueError("the objective is not among the callbacks: call finetune(cfg, step, callbacks=[step])")
        stage = getattr(unwrap(model), "vp_stage", None)
        batches = self.training.head_rows.watch(data_iterator)
        batch = get_batch(batches, state.cfg, pg_collection=get_pg_collection(model), vp_stage=stage)
        tokens, labels, loss_mask, attention_mask, position_ids, packed = batch
        if labels is not None:
            labels = labels.masked_fill(loss_mask == 0, IGNORED)  # Bridge's data sets keep labels without a loss
        inputs = {"input_ids": tokens, "position_ids": position_ids, "attention_mask": attention_mask}
        if packed is not None:
            inputs["packed_seq_params"] = get_packed_seq_params(packed)
        output = model(**inputs, labels=labels)
        loss = self.training_loss if model.training else self.evaluation_loss
        return output, partial(loss, labels=labels, loss_mask=loss_mask)

    def training_loss(self, nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> Loss:
        """nll fp32, labels int64, loss_mask, all [b, s] -> Megatron's 3-tuple."""
        return *self.objective_loss(nll, labels, loss_mask), self.training.pairs

    def objective_loss(
        self, nll: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and count, without a report. Where the last backward pass reduces gradients, it is checked before."""
        found = self.training.loss(nll, labels, loss_mask)
        if self.cfg.ddp.overlap_grad_reduce and len(self.training.micro_batches) == get_num_microbatches():
            self.training.check()
        return found

    def evaluation_loss(self, nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> Loss:
        return plain_loss(nll, loss_mask)

    def on_train_start(self, context: CallbackContext) -> None:
        self.on_eval_start(context)
        install_exact_norm(context.optimizer)
        context.user_state[OBJECTIVE] = self.training
        self.training.to(torch.cuda.current_device())
        reduce_before_gradients(context.model, self.training, sharers())
        if number := context.state.train_state.step:
            load = Path(self.cfg.checkpoint.load)  # an iteration's directory, or that of all
            self._load_state(load if (load / STATE).exists() else Path(get_checkpoint_name(str(load), number)))

    def on_eval_start(self, context: CallbackContext) -> None:
        """Hooks `ops` into every pipeline chunk, once."""
        if self.installed:
            return
        for chunk in context.model:
            check_config(get_model_config(chunk))
        tp_group = parallel_state.get_tensor_model_parallel_group()
        step = self.training
        said = install_target_logprob(context.model, self.vocab_size, tp_group, self.head, step.head, step.head_rows)
        if said is not None and holds_the_loss():
            print(f"row skipping in the LM head is {said}", flush=True)
        self.installed = True

    def on_train_step_start(self, context: CallbackContext) -> None:
        self.training.begin(context.state.train_state.step + 1)

    def on_train_step_end(self, context: CallbackContext) -> None:
        self.on_reduced(context)
        self.training.end()
        if directory := saved_after(self.cfg, self.training.number):
            self._save_state(directory)

    def on_reduced(self, context: CallbackContext) -> None:
        """When `self.training.metrics()` are those of the step, on the last pipeline stage. For subclasses."""

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        if not saved_after(self.cfg, self.training.number):  # a signal or a time limit ended the run
            self._save_state(Path(get_checkpoint_name(self.cfg.checkpoint.save, self.training.number)))

    def _save_state(self, directory: Path) -> None:
        state = self.training.state(
            parallel_state.get_pipeline_model_parallel_group(),
            parallel_state.get_pipeline_model_parallel_last_rank(),
            torch.cuda.current_device(),
        )
        if torch.distributed.get_rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save(state, directory / STATE)

    def _load_state(self, checkpoint: Path) -> None:
        if not (checkpoint / STATE).exists():
            raise ValueError(f"{checkpoint}: no {STATE}, so another loss was trained; load it as pretrained_checkpoint")
        self.training.load_state(torch.load(checkpoint / STATE, weights_only=True))


def saved_after(cfg: ConfigContainer, number: int) -> Path | None:
    """The checkpoint that Bridge writes after step `number`; None if it writes none.

    What is put there at the end of the step is there before the checkpoint is complete, whenever the run is killed.
    """
    save, interval = cfg.checkpoint.save, cfg.checkpoint.save_interval
    if save is None or not (number == cfg.train.train_iters or (interval and number % interval == 0)):
        return None
    return Path(get_checkpoint_name(save, number))
