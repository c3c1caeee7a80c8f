"""Tasks for the ranks of `tests.support.engine`: the real trainer's first step at many layouts, with every gradient.

A rank writes `<job's output>/rank-<r>.pt`; `tests.support.parity_gradients` puts the ranks together.
"""

import zlib
from pathlib import Path

import numpy as np

from tests.support.engine import end_helpers

ADAPTER = ".adapter."
CONTEXT_FILES = [0, 0, 1, 1]  # which training file each example of the context parallel batch comes from


def first_step(job: dict, output: Path) -> None:
    """The first step of the trainer of the job's engine on its recipe and tokenised rows."""
    import importlib

    import torch

    from nemo_probsft import config
    from nemo_probsft.run.prepare import Prepared

    torch.set_num_threads(1)
    recipe = config.load(job["recipe"])
    trainer = importlib.import_module(f"nemo_probsft.adapters.{job['engine']}.trainer")
    probe = {"nemo": _probe, "bridge": _bridge_probe}[job["engine"]](output)
    try:
        trainer.fit(recipe, Prepared(**job["prepared"]), callbacks=[probe])
    except _FirstStepDoneError:
        return
    raise AssertionError("training ended without a step")


def whole_step(job: dict, output: Path) -> None:
    """The same, to its end: the optimizer has made its step, and metrics.jsonl has what it measured."""
    from nemo_probsft import config
    from nemo_probsft.adapters.nemo import trainer as nemo
    from nemo_probsft.run.prepare import Prepared

    recipe = config.load(job["recipe"])
    (Path(recipe.run_dir) / "run.yaml").write_text("seed: 0\n")
    nemo.fit(recipe, Prepared(**job["prepared"]))
    end_helpers()


def context_parallel(job: dict, output: Path) -> None:
    """One micro-batch, sliced by Megatron over context-parallel ranks, through a model without attention: a table.

    The slicing, the loss, its reduction, DDP and the division of the gradient are those of the trainer.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.utils import get_batch_on_this_cp_rank

    from nemo_probsft.adapters.megatron.micro_batches import loss_rows_of_rank
    from nemo_probsft.adapters.megatron.step import TrainingStep
    from nemo_probsft.adapters.nemo import trainer as nemo
    from nemo_probsft.config import ResolvedObjective
    from nemo_probsft.objectives import parse_objective
    from nemo_probsft.ops import target_logprob

    torch.distributed.init_process_group("gloo")
    size = torch.distributed.get_world_size()
    parallel_state.initialize_model_parallel(context_parallel_size=size)
    case = torch.load(job["batch"], weights_only=True)
    rows = loss_rows_of_rank(case["batch"]["loss_mask"])
    batch = get_batch_on_this_cp_rank(case["batch"])

    class Table(MegatronModule):
        share_embeddings_and_output_weights = False

        def __init__(self, config):
            super().__init__(config)
            self.logits = torch.nn.Parameter(case["table"])

        def forward(self, tokens):
            return self.logits[tokens]

    settings = {"num_layers": 1, "hidden_size": 1, "num_attention_heads": 1}
    config = TransformerConfig(**settings, context_parallel_size=size, calculate_per_token_loss=True)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), Table(config))
    model.zero_grad_buffer()
    logits = model(batch["tokens"])
    nll, top_logp = -target_logprob(logits, batch["labels"]), torch.log_softmax(logits.detach(), -1).amax(-1)
    step = TrainingStep(
        ResolvedObjective(parse_objective(job["objective"]), job["denominator"], job["objective"]),
        num_steps=2,
        num_labels=case["table"].shape[-1],
        examples=lambda step, micro_batch: np.arange(len(CONTEXT_FILES))[:, None],
        files=np.array(CONTEXT_FILES),
    )
    reduction, group = nemo.ObjectiveReduction(step), parallel_state.get_context_parallel_group()
    if step.file_means is not None:
        files = torch.tensor(CONTEXT_FILES)[:, None].expand_as(nll)
        step.file_means.see(files, -nll, batch["loss_mask"])
        step.know(group)
    for number in (1, 2):  # an objective that moves has moved by the second one
        step.begin(number)
        step.head_rows.top_logp = top_logp
        loss_sum, num_tokens, report = reduction.forward(batch, nll)
        if number == 1:
            step.reduce(group)
            step.end()
    loss_sum.backward()
    step.reduce(group)
    finalize_model_grads([model], num_tokens.clone())
    result = {"objective": reduction.reduce([report]), "local": int(num_tokens), "total": step.statistics[1]}
    result |= {"rows": rows, "loss_mask": batch["loss_mask"]}
    torch.save(result | {"gradient": model.module.logits.main_grad.clone()}, output)
    torch.distributed.barrier()


class _FirstStepDoneError(Exception):
    pass


def _probe(output: Path):
    import lightning.pytorch as pl
    from megatron.core import parallel_state

    from nemo_probsft.adapters.megatron.hook import unwrap

    class Probe(pl.Callback):
        """Keeps the targets of each micro-batch, and after the first step the gradients before they are clipped."""

        def __init__(self):
            self.targets = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for chunk in trainer.strategy.megatron_parallel:
                _fill_adapters(unwrap(chunk), parallel_state.get_tensor_model_parallel_rank())

        def on_megatron_microbatch_start(self, step, batch, forward_callback):
            if batch["loss_mask"] is not None:  # only the last pipeline stage gets it
                self.targets.append(int(batch["loss_mask"].sum()))
            self.reduction = forward_callback

        def on_megatron_step_end(self, step, microbatch_outputs, reduced):
            training = self.reduction.step if microbatch_outputs else None
            _save(output, _kept([unwrap(chunk) for chunk in step.pipeline]), self.targets, training)
            raise _FirstStepDoneError

    return Probe()


def _bridge_probe(output: Path):
    from megatron.bridge.training.callbacks import Callback
    from megatron.core import parallel_state
    from megatron.core.utils import get_model_config

    from nemo_probsft.adapters.bridge.step import OBJECTIVE
    from nemo_probsft.adapters.megatron.hook import unwrap

    class Probe(Callback):
        """The same. Bridge has no event between the division of the gradients and the optimizer's step, which clips
        them: Megatron calls `finalize_model_grads_func` there."""

        def on_train_start(self, context):
            self.training = context.user_state[OBJECTIVE]
            self.chunks = [unwrap(chunk) for chunk in context.model]
            for chunk in self.chunks:
                _fill_adapters(chunk, parallel_state.get_tensor_model_parallel_rank())
            self.finalize = get_model_config(context.model[0]).finalize_model_grads_func
            for chunk in context.model:
                get_model_config(chunk).finalize_model_grads_func = self.finalize_and_keep

        def finalize_and_keep(self, *arguments, **keywords):
            self.finalize(*arguments, **keywords)
            self.kept = _kept(self.chunks)
            self.counts = [int(micro_batch.sums[3]) for micro_batch in self.training.micro_batches]

        def on_train_step_end(self, context):
            last = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
            _save(output, self.kept, self.counts, self.training if last else None)
            raise _FirstStepDoneError

    return Probe()


def _kept(chunks: list) -> dict:
    """Gradients of all that is trained in the pipeline stages' `chunks`, and the values of adapters."""
    trained = [found for chunk in chunks for found in _trained(chunk)]
    return {
        "parameters": [(name, layer, dim, parameter.main_grad.clone()) for name, layer, dim, parameter in trained],
        "adapters": [
            (name, layer, dim, parameter.detach().clone()) for name, layer, dim, parameter in trained if ADAPTER in name
        ],
    }


def _save(output: Path, kept: dict, targets: list[int], training) -> None:
    """What `tests.support.parity_gradients` reads: what was `_kept`, and the statistics of `training`."""
    import torch
    from megatron.core import parallel_state

    from nemo_probsft.adapters.megatron.layout import holds_the_loss
    from nemo_probsft.adapters.megatron.statistics import summarise

    result = {
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
        "dp": parallel_state.get_data_parallel_rank(with_context_parallel=True),
        "writes": holds_the_loss(),
        "targets": targets,
        "metrics": None if training is None else summarise(training.statistics),
    }
    torch.save(result | kept, output)
    torch.distributed.barrier()


def _trained(model):
    """(Megatron name, layer or None, dimension split by tensor parallelism or None, parameter) of what is trained."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = None
            if name.startswith("decoder.layers."):
                _, _, local, rest = name.split(".", 3)
                layer = model.decoder.layers[int(local)].layer_number - 1
                name = f"decoder.layers.{rest}"
            yield name, layer, parameter.partition_dim if parameter.tensor_model_parallel else None, parameter


def _fill_adapters(model, tp_rank: int) -> None:
    """LoRA starts with `out` at 0, where `in` has no gradient: give both random values, equal on every copy."""
    import torch

    for name, layer, dim, parameter in _trained(model):
        if ADAPTER in name:
            seed = f"{name} {layer} {0 if dim is None else tp_rank}"
            generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
