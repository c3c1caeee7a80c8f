"""f(p) as Bridge's forward step, and as the callback that begins and ends a training step around it.

Sources: megatron/bridge/training/gpt_step.py (_forward_step_common), callbacks.py, train.py (train_step),
megatron-bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from megatron.bridge.training.state import GlobalState
from megatron.bridge.training.utils.checkpoint_utils import get_checkpoint_name
from megatron.bridge.training.utils.packed_seq_utils import get_packed_seq_params
from megatron.bridge.training.utils.pg_utils import get_pg_collection
from megatron.core import parallel_state
from megatron.core.utils import get_model_config

from nemo_probsft.adapters.bridge.checks import check, vocabulary
from nemo_probsft.adapters.megatron.hook import check_config, install_target_logprob, unwrap
from nemo_probsft.adapters.megatron.layout import holds_the_loss
from nemo_probsft.adapters.megatron.statistics import REPORT, loss_function
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import HeadConfig, ResolvedObjective
from nemo_probsft.data.batches import IGNORED
from nemo_probsft.objectives import Objective, parse_objective

STATE = "objective.pt"  # in a checkpoint: the running means of p
OBJECTIVE = "nemo_probsft"  # in the callbacks' `user_state`: the TrainingStep, for others to read its metrics
Loss = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


class ObjectiveStep(Callback):
    """`finetune(cfg, step, callbacks=[step])` trains the objective; both places need the same object.

    objective: a key, a recipe's mapping, or what `config.load` made of it. denominator: "target" or "kept".
    vocab_size: without padding, if `cfg.model.vocab_size` is padded. Reports objective, nll, p and kept_fraction to
    Bridge's loggers; evaluation reports nll and p. Raises ValueError where `cfg` would train another objective.
    """

    def __init__(
        self,
        cfg: ConfigContainer,
        objective: str | dict[str, Any] | ResolvedObjective,
        *,
        denominator: str = "target",
        head: HeadConfig = HeadConfig(),  # noqa: B008  frozen
        vocab_size: int | None = None,
        examples: Callable[[int, int], np.ndarray] | None = None,
        write: Callable[[TrainingStep, CallbackContext], None] | None = None,
    ) -> None:
        check(cfg)
        if not isinstance(objective, ResolvedObjective):
            objective = ResolvedObjective(parse_objective(objective), denominator, objective)
        self.cfg, self.head, self.write = cfg, head, write
        self.vocab_size = vocab_size or vocabulary(cfg)
        self.training = TrainingStep(
            objective,
            num_steps=cfg.train.train_iters,
            num_labels=self.vocab_size,
            examples=examples or _positions(cfg.train.micro_batch_size),
        )
        self.installed = False

    def __call__(
        self, state: GlobalState, data_iterator: Iterable, model: torch.nn.Module, return_schedule_plan: bool = False
    ) -> tuple[torch.Tensor, partial]:
        """A micro-batch through a model chunk: its output, -log p [b, s] fp32 on the last stage, and the loss of it."""
        assert not return_schedule_plan, "Bridge asks for a plan of mixture-of-experts models only"
        self._refuse_without_hook()
        groups, stage = get_pg_collection(model), getattr(unwrap(model), "vp_stage", None)
        batch = get_batch(data_iterator, state.cfg, pg_collection=groups, vp_stage=stage)
        tokens, labels, loss_mask, attention_mask, position_ids, packed = batch
        if labels is not None:
            labels = labels.masked_fill(loss_mask == 0, IGNORED)  # Bridge's data sets keep labels without a loss
        arguments = {} if packed is None else {"packed_seq_params": get_packed_seq_params(packed)}
        output = model(
            input_ids=tokens, position_ids=position_ids, attention_mask=attention_mask, labels=labels, **arguments
        )
        return output, partial(self._loss if model.training else _evaluation_loss, labels=labels, loss_mask=loss_mask)

    def _loss(self, nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> Loss:
        loss_sum, num_tokens = self.training.loss(nll, labels, loss_mask)
        return loss_sum, num_tokens, _pairs(self.training.micro_batches[-1])

    def on_train_start(self, context: CallbackContext) -> None:
        self._install(context)
        context.user_state[OBJECTIVE] = self.training
        self.training.to(torch.cuda.current_device())
        if context.state.train_state.step > 0:
            self._load_state(context)

    def on_eval_start(self, context: CallbackContext) -> None:
        self._install(context)

    def on_train_step_start(self, context: CallbackContext) -> None:
        self.training.begin(context.state.train_state.step + 1)

    def on_train_step_end(self, context: CallbackContext) -> None:
        if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            self.training.reduce(parallel_state.get_data_parallel_group(with_context_parallel=True))
        if self.write is not None:
            self.write(self.training, context)
        self.training.end()
        if directory := saved_after(self.cfg, self.training.number):
            self._save_state(directory)

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        directory = Path(get_checkpoint_name(self.cfg.checkpoint.save, context.state.train_state.step))
        if not saved_after(self.cfg, self.training.number):  # a signal or a time limit ended the run
            self._save_state(directory)

    def _save_state(self, directory: Path) -> None:
        state = self.training.state(
            parallel_state.get_pipeline_model_parallel_group(),
            parallel_state.get_pipeline_model_parallel_last_rank(),
            torch.cuda.current_device(),
        )
        if torch.distributed.get_rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save(state, directory / STATE)

    def _load_state(self, context: CallbackContext) -> None:
        """Go on from the running means beside the weights that Bridge has loaded."""
        load = Path(self.cfg.checkpoint.load)
        inside = Path(get_checkpoint_name(str(load), context.state.train_state.step)) / STATE
        source = inside if inside.exists() else load / STATE
        if not source.exists():
            raise ValueError(f"{load}: no {STATE}, so it was not saved by this objective's run; start from its weights")
        self.training.load_state(torch.load(source, weights_only=True))

    def _install(self, context: CallbackContext) -> None:
        if self.installed:
            return
        for chunk in context.model:
            check_config(get_model_config(chunk))
        tp_group = parallel_state.get_tensor_model_parallel_group()
        said = install_target_logprob(context.model, self.vocab_size, tp_group, self.head, self.training.head)
        if said is not None and holds_the_loss():
            print(f"row skipping in the LM head is {said}", flush=True)
        self.installed = True

    def _refuse_without_hook(self) -> None:
        if not self.installed:
            raise ValueError("the objective is not among the callbacks: call finetune(cfg, step, callbacks=[step])")


def saved_after(cfg: ConfigContainer, number: int) -> Path | None:
    """The checkpoint that Bridge writes after step `number`; None if it writes none.

    What is put there at the end of the step is there before the checkpoint is complete, whenever the run is killed.
    """
    save, interval = cfg.checkpoint.save, cfg.checkpoint.save_interval
    if save is None or not (number == cfg.train.train_iters or (interval and number % interval == 0)):
        return None
    return Path(get_checkpoint_name(save, number))


def _evaluation_loss(nll: torch.Tensor, *, labels: torch.Tensor, loss_mask: torch.Tensor) -> Loss:
    plain = parse_objective("original")
    assert isinstance(plain, Objective)
    loss_sum, num_tokens, statistics = loss_function(plain, "target", nll, loss_mask)
    pairs = _pairs(statistics)
    return loss_sum, num_tokens, {"nll": pairs["nll"], "p": pairs["p"]}


def _pairs(statistics: torch.Tensor) -> dict[str, torch.Tensor]:
    """[sum, count] of what Bridge sums over the global batch, divides and logs."""
    return {name: statistics[2 * i : 2 * i + 2].clone() for i, name in enumerate(REPORT)}


def _positions(size: int) -> Callable[[int, int], np.ndarray]:
    """Names for the rows of a micro-batch whose data set is Bridge's."""
    return lambda step, micro_batch: np.array([f"row {i} of the micro-batch" for i in range(size)])
