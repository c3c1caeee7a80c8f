"""Tasks for the ranks of `tests.support.engine`: a step of the trainer, looked at from inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.support.engine import end_helpers


def around_the_step(job: dict, output: Path) -> None:
    """Train the job's recipe. Writes to the rank's file: before and after, the gradient's norm in float64 before it is
    clipped and after; stock, what Megatron's own function makes of the one before; attention, what the model was built
    with and what Transformer Engine would be told."""
    import importlib

    from nemo_probsft import config
    from nemo_probsft.run.prepare import prepare, wait_for

    recipe = config.load(job["recipe"])
    if output.stem == "rank-0":
        prepare(recipe)
    found: dict[str, Any] = {}
    trainer = importlib.import_module(f"nemo_probsft.adapters.{recipe.engine}.trainer")
    probe = {"nemo": _nemo_probe, "bridge": _bridge_probe}[recipe.engine](found)
    trainer.fit(recipe, wait_for(recipe), callbacks=[probe])
    output.write_text(json.dumps(found))
    end_helpers()


def _look_at(chunks, found: dict[str, Any]) -> None:
    from megatron.core.utils import get_model_config

    from nemo_probsft.run.attention import VARIABLES

    (found["attention"],) = {get_model_config(chunk).attention_backend.name for chunk in chunks}
    found["variables"] = "".join(os.environ[name] for name in VARIABLES)


def _measure(chunks, found: dict[str, Any], when: str) -> None:
    """In float64, of each parameter once: the shards of all tensor parallel ranks, the copies of the first."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.optimizer.clip_grads import get_grad_norm_fp32

    first = parallel_state.get_tensor_model_parallel_rank() == 0
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    grads = [each.main_grad for each in parameters if first or each.tensor_model_parallel]
    total = torch.stack([grad.double().square().sum() for grad in grads]).sum()
    torch.distributed.all_reduce(total)
    found[when] = total.item() ** 0.5
    if when == "before":
        _look_at(chunks, found)
        found["stock"] = float(get_grad_norm_fp32(grads, grad_stats_parallel_group=torch.distributed.group.WORLD))


def _nemo_probe(found: dict[str, Any]):
    import lightning.pytorch as pl

    class Probe(pl.Callback):
        def on_megatron_step_end(self, step, microbatch_outputs, reduced):
            self.chunks = step.pipeline
            _measure(self.chunks, found, "before")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            _measure(self.chunks, found, "after")

    return Probe()


def _bridge_probe(found: dict[str, Any]):
    from megatron.bridge.training.callbacks import Callback
    from megatron.core.utils import get_model_config

    class Probe(Callback):
        """Bridge has no event before the optimizer's step; Megatron calls `finalize_model_grads_func` there."""

        def on_train_start(self, context):
            self.chunks = context.model
            self.finalize = get_model_config(self.chunks[0]).finalize_model_grads_func
            for chunk in self.chunks:
                get_model_config(chunk).finalize_model_grads_func = self.finalize_and_measure

        def finalize_and_measure(self, *arguments, **keywords):
            self.finalize(*arguments, **keywords)
            _measure(self.chunks, found, "before")

        def on_train_step_end(self, context):
            _measure(self.chunks, found, "after")

    return Probe()


def benchmark(job: dict, output: Path) -> None:
    """benchmarks.step with the job's arguments. Writes [[table of a kind], the recipe's metrics.jsonl, its steps]."""
    import sys
    import tempfile

    from benchmarks import step
    from nemo_probsft.run.log import read_metrics

    sys.argv[1:] = job["arguments"]
    with tempfile.TemporaryDirectory() as folder:
        _, turns, tokens = step._run(step._arguments(), Path(folder))
        logged = [row["step"] for row in read_metrics(Path(folder) / "run")]
    tables = [turns.rows(kind, tokens) for kind in turns.kinds]
    output.write_text(json.dumps([tables, logged, turns.num_steps]))
    end_helpers()
