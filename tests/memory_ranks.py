"""What a rank of the real trainer holds: run by `tests.parity_ranks`, compared with the arithmetic by `test_memory`."""

import collections
from pathlib import Path

import psutil


def measure(job: dict, output: Path) -> None:
    """One whole step. Writes bytes of weights, gradient buffers, optimizer state, and of what autograd saved."""
    import torch

    from nemo_probsft import config
    from nemo_probsft.adapters import nemo
    from nemo_probsft.prepare import Prepared

    torch.set_num_threads(1)
    recipe = config.load(job["recipe"])
    (Path(recipe.run_dir) / "run.yaml").write_text("seed: 0\n")
    probe = _probe()
    nemo.fit(recipe, Prepared(**job["prepared"]), *config.resolve_objective(recipe), callbacks=[probe])
    torch.save(probe.found, output)
    for child in psutil.Process().children(recursive=True):  # Megatron's checkpoint writer would stay for ever
        child.kill()


def _probe():
    import lightning.pytorch as pl
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_layer import TransformerLayer

    from nemo_probsft.adapters.megatron import unwrap

    class Probe(pl.Callback):
        """Saved tensors are those of the first micro-batch's forward pass, each storage once, by who saved it first."""

        def __init__(self):
            self.found = {"saved": collections.defaultdict(list), "batch": None}
            self.where, self.seen, self.micro_batches = "around", set(), 0

        def on_megatron_step_start(self, step):
            self.found["stage"] = parallel_state.get_pipeline_model_parallel_rank()
            models = [unwrap(chunk) for chunk in step.pipeline]
            parameters = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
            self.seen |= parameters
            for model in models:
                self.found["weights"] = self.found.get("weights", 0) + sum(map(_bytes, model.parameters()))
                for module in model.modules():
                    if isinstance(module, TransformerLayer):
                        module.register_forward_pre_hook(self.enter(f"layer {module.layer_number}"))
                        module.register_forward_hook(self.enter("around"))
            self.found["gradients"] = sum(
                buffer.grad_data.nbytes for chunk in step.pipeline for buffer in chunk.module.buffers
            )
            self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
            self.hooks.__enter__()

        def enter(self, where):
            def hook(*arguments):
                self.where = where

            return hook

        def on_megatron_microbatch_start(self, step, batch, forward_callback):
            self.micro_batches += 1
            if self.micro_batches == 1:
                labels = batch["labels"]
                if labels is not None:
                    self.found["batch"] = (*labels.shape, int((labels != -100).sum()))

        def pack(self, tensor):
            storage = tensor.untyped_storage()
            if self.micro_batches == 1 and storage.data_ptr() not in self.seen and tensor.numel():
                self.seen.add(storage.data_ptr())
                self.found["saved"][self.where].append((tuple(tensor.shape), str(tensor.dtype), storage.nbytes()))
            return tensor

        def on_megatron_step_end(self, step, microbatch_outputs, reduced):
            self.hooks.__exit__()

        def on_train_batch_end(self, trainer, *arguments):
            optimizers = [o for wrapped in trainer.optimizers for o in wrapped.mcore_optimizer.chained_optimizers]
            state = collections.defaultdict(int)
            for optimizer in optimizers:
                for name, tensor in _state(optimizer):
                    state[name] += tensor.nbytes
            self.found["optimizer"] = dict(state)

    return Probe()


def _bytes(tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _state(optimizer):
    """(name, tensor) of the master weights and of Adam's moments; `step` is one number a tensor."""
    for group in getattr(optimizer, "fp32_from_float16_groups", []):
        for parameter in group:
            yield "master", parameter
    for state in optimizer.optimizer.state.values():
        yield from state.items()
