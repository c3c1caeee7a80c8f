"""What a rank of the real trainer holds: run by `tests.support.engine`, compared by `test_plan_memory`."""

import collections
from pathlib import Path

from tests.support.engine import end_helpers


def measure(job: dict, output: Path) -> None:
    """One whole step, with a checkpoint where the job asks for one. Writes what `Probe` found."""
    import torch

    from nemo_probsft import config
    from nemo_probsft.adapters.nemo import trainer as nemo
    from nemo_probsft.run.prepare import Prepared

    torch.set_num_threads(1)
    recipe = config.load(job["recipe"])
    (Path(recipe.run_dir) / "run.yaml").write_text("seed: 0\n")
    try:
        probe = _probe(output, ends=not job["checkpoint"])
        nemo.fit(recipe, Prepared(**job["prepared"]), callbacks=[probe])
    except _MeasuredError:
        return
    end_helpers()


class _MeasuredError(Exception):
    pass


def _probe(output: Path, ends: bool):
    import lightning.pytorch as pl
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_layer import TransformerLayer

    from nemo_probsft.adapters.megatron.hook import unwrap

    class Probe(pl.Callback):
        """Bytes of weights, gradient buffers and optimizer state; most micro-batches (of a chunk) at once; and
        {module: [(shape, bytes)]} that autograd saved in the forward pass of the first one, each storage once."""

        def __init__(self):
            self.found = {"saved": collections.defaultdict(list), "batch": None, "alive": 0}
            self.where, self.seen, self.forward, self.alive = "around", set(), False, 0

        def on_megatron_step_start(self, step):
            models = [unwrap(chunk) for chunk in step.pipeline]
            parameters = [parameter for model in models for parameter in model.parameters()]
            self.seen |= {parameter.untyped_storage().data_ptr() for parameter in parameters}
            for model in models:
                layers = [module for module in model.modules() if isinstance(module, TransformerLayer)]
                for layer in layers:
                    layer.register_forward_pre_hook(self.enter(f"layer {layer.layer_number}"))
                    layer.register_forward_hook(self.enter("around"))
                layers[0].register_forward_hook(self.count)
            self.found |= {
                "stage": parallel_state.get_pipeline_model_parallel_rank(),
                "weights": sum(parameter.untyped_storage().nbytes() for parameter in parameters),
                "gradients": sum(buffer.grad_data.nbytes for chunk in step.pipeline for buffer in chunk.module.buffers),
            }
            self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
            self.hooks.__enter__()

        def enter(self, where):
            def hook(*arguments):
                self.where = where

            return hook

        def count(self, layer, arguments, output):
            if not torch.is_grad_enabled() or not output[0].requires_grad:
                return
            self.alive += 1
            self.found["alive"] = max(self.alive, self.found["alive"])

            def backward_has_come(gradient):
                self.alive -= 1

            output[0].register_hook(backward_has_come)

        def on_megatron_microbatch_start(self, step, batch, forward_callback):
            self.forward = not self.found["saved"]
            if self.forward and batch["labels"] is not None:
                labels = batch["labels"]
                self.found["batch"] = (*labels.shape, int((labels != -100).sum()))

        def on_megatron_microbatch_end(self, step, batch, forward_callback, output):
            self.forward = False

        def pack(self, tensor):
            storage = tensor.untyped_storage()
            if self.forward and storage.data_ptr() not in self.seen:
                self.seen.add(storage.data_ptr())
                self.found["saved"][self.where].append((tuple(tensor.shape), storage.nbytes()))
            return tensor

        def on_megatron_step_end(self, step, microbatch_outputs, reduced):
            self.hooks.__exit__()

        def on_train_batch_end(self, trainer, *arguments):
            state = collections.defaultdict(int)
            for wrapped in trainer.optimizers:
                for optimizer in wrapped.mcore_optimizer.chained_optimizers:
                    for name, tensor in _state(optimizer):
                        state[name] += tensor.nbytes
            torch.save(self.found | {"optimizer": dict(state)}, output)
            if ends:
                torch.distributed.barrier()
                raise _MeasuredError

    return Probe()


def _state(optimizer):
    """(name, tensor) of the master weights and of Adam's moments; `step` is one number a tensor."""
    for group in getattr(optimizer, "fp32_from_float16_groups", []):
        for parameter in group:
            yield "master", parameter
    for state in optimizer.optimizer.state.values():
        yield from state.items()
