"""Jobs for the ranks of the fixture `bridge`: stock Megatron-Bridge loads, trains, saves and exports.

A job is {"do": name of a function below, "world_size": n, "arguments": {...}, "output": directory}; what rank 0 returns
is in `output`/result.pt. Bridge was made to run here without CUDA by whoever starts the ranks.
"""

import os
import shutil
from pathlib import Path

from tests.support.engine import Engine, end_helpers, first_error

LORA = {"dim": 8, "alpha": 16}
STEPS = 2


def run_jobs(engine: Engine, jobs: list[dict]) -> None:
    """Called by the tests. Raises AssertionError with the traceback of the first rank that failed."""
    engine.run([job | {"task": "tests.support.conversion_bridge_ranks:run"} for job in jobs])
    assert not (error := first_error(jobs)), error


def run(job: dict, output: Path) -> None:
    import torch

    torch.set_num_threads(1)
    result = globals()[job["do"]](output.parent, **job["arguments"])
    if os.environ["RANK"] == "0":
        torch.save(result, output.with_name("result.pt"))
    end_helpers()


def load(output: Path, checkpoints: dict[str, str], models: dict[str, str], tokens: list) -> dict:
    """Imported checkpoints through `AutoBridge.load_megatron_model`, and the model that run_config.yaml describes.

    Returns {name: {logits, described: what AutoBridge makes of config.json and run_config.yaml does not say}}.
    """
    import torch
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import load_model_config

    torch.distributed.init_process_group("gloo")
    torch.set_grad_enabled(False)
    results = {}
    for name, checkpoint in checkpoints.items():
        _model_parallel()
        bridge = AutoBridge.from_hf_pretrained(models[name])
        described, _ = load_model_config(str(Path(checkpoint) / "iter_0000000"))
        differing = _differing(bridge.to_megatron_provider(load_weights=False), described)
        (model,) = bridge.load_megatron_model(_without_te(Path(checkpoint), output / name))
        results[name] = {"logits": _forward(model.float(), tokens), "differing": differing}
    return results


def train(output: Path, base: str, hf: str, parallel: dict, lora: bool, tokens: list) -> object:
    """`finetune` with Bridge's own step from the checkpoint or Hugging Face directory `base`, saved with its optimizer.

    Returns the logits of the trained model, gathered over the tensor parallel ranks; None where it is in stages.
    """
    import torch
    from megatron.bridge import AutoBridge
    from megatron.bridge.models.gpt_provider import local_layer_spec
    from megatron.bridge.peft.lora import LoRA
    from megatron.bridge.training import config as bridge
    from megatron.bridge.training.callbacks import Callback
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.gpt_step import forward_step

    from nemo_probsft.adapters.megatron.settings import FUSIONS_THAT_NEED_CUDA

    torch.distributed.init_process_group("gloo")
    provider = AutoBridge.from_hf_pretrained(hf).to_megatron_provider(load_weights=False)
    off = dict.fromkeys((*FUSIONS_THAT_NEED_CUDA, "cross_entropy_loss_fusion", "deallocate_pipeline_outputs"), False)
    fp32 = {"bf16": False, "params_dtype": torch.float32, "pipeline_dtype": torch.float32}
    parallel = {"seq_length": len(tokens[0]) - 1, **parallel}
    padded = {"make_vocab_size_divisible_by": 1, "vocab_size": -(-provider.vocab_size // 2) * 2}
    for name, value in {"transformer_layer_spec": local_layer_spec, **off, **fp32, **padded, **parallel}.items():
        assert hasattr(provider, name), name
        setattr(provider, name, value)
    logits = []

    class Forward(Callback):
        def on_train_end(self, context):
            from megatron.core import parallel_state
            from megatron.core.utils import unwrap_model

            if parallel_state.get_pipeline_model_parallel_world_size() == 1:
                with torch.no_grad():
                    logits.append(_forward(unwrap_model(context.model)[0].eval(), tokens))

    cfg = bridge.ConfigContainer(
        model=provider,
        train=bridge.TrainingConfig(train_iters=STEPS, global_batch_size=4, micro_batch_size=2),
        validation=bridge.ValidationConfig(eval_iters=0),
        optimizer=bridge.OptimizerConfig(optimizer="adam", lr=1e-2, min_lr=1e-2, use_distributed_optimizer=False),
        scheduler=bridge.SchedulerConfig(lr_decay_style="constant", start_weight_decay=0.0, end_weight_decay=0.0),
        ddp=bridge.DistributedDataParallelConfig(use_distributed_optimizer=False),
        dataset=_data(tokens),
        logger=bridge.LoggerConfig(log_interval=1, tensorboard_dir=None),
        tokenizer=bridge.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=provider.vocab_size - 1),
        checkpoint=bridge.CheckpointConfig(
            save=str(output / "checkpoints"), save_interval=STEPS, pretrained_checkpoint=base, fully_parallel_save=False
        ),
        dist=bridge.DistributedInitConfig(distributed_backend="gloo"),
        peft=LoRA(**LORA, dropout=0.0) if lora else None,
    )
    finetune(cfg, forward_step, callbacks=[Forward()])
    return logits[0] if logits else None


def export(output: Path, trained: dict[str, str], models: dict[str, str]) -> None:
    """`AutoBridge.export_ckpt` of what `train` saved, to `output`/<name>."""
    from megatron.bridge import AutoBridge

    for name, checkpoint in trained.items():
        AutoBridge.from_hf_pretrained(models[name]).export_ckpt(checkpoint, output / name, show_progress=False)


def _differing(made, described) -> dict[str, tuple[str, str]]:
    """Fields of two providers that are not equal, but for where the model came from."""
    import dataclasses

    # Set from others when the provider is made, a comparison of functions, the origin, and Qwen's setting for autocast,
    # which is off.
    ignored = {"hf_model_id", "hf_model_revision", "autocast_dtype", "init_method", "output_layer_init_method"}
    ignored |= {"embedding_init_method"}
    names = {field.name for field in dataclasses.fields(made)} - ignored
    pairs = {name: (getattr(made, name), getattr(described, name)) for name in names}
    # Bridge leaves the width of a head open where config.json does, and computes it as we do.
    open_width = made.kv_channels is None and described.kv_channels == made.hidden_size // made.num_attention_heads
    pairs |= {"kv_channels": (None, None)} if open_width else {}
    return {name: (repr(a), repr(b)) for name, (a, b) in pairs.items() if a != b}


def _without_te(checkpoint: Path, copy: Path) -> Path:
    """A copy whose run_config.yaml asks for Megatron-Core's own layers in fp32, which need neither TE nor CUDA."""
    import yaml

    from nemo_probsft.adapters.megatron.settings import FUSIONS_THAT_NEED_CUDA

    shutil.copytree(checkpoint, copy)
    file = copy / "iter_0000000" / "run_config.yaml"
    content = yaml.safe_load(file.read_text())
    content["model"] |= dict.fromkeys(FUSIONS_THAT_NEED_CUDA, False) | {
        "transformer_layer_spec": {"_target_": "megatron.bridge.models.gpt_provider.local_layer_spec", "_call_": False}
    }
    file.write_text(yaml.safe_dump(content))
    return copy


def _data(tokens: list):
    import torch
    from megatron.bridge.data.base import DatasetProvider

    class Repeated(DatasetProvider):
        """The same micro-batch again and again."""

        def __init__(self):
            super().__init__(dataloader_type="external", num_workers=0)

        def build_datasets(self, context):
            return self.batches(), None, None

        def batches(self):
            block = torch.tensor(tokens)
            shape = block[:, 1:].shape
            while True:
                yield {
                    "tokens": block[:, :-1],
                    "labels": block[:, 1:],
                    "loss_mask": torch.ones(shape),
                    "position_ids": torch.arange(shape[1]).expand(shape),
                    "attention_mask": None,
                }

    return Repeated()


def _model_parallel(**sizes: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(**sizes)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def _forward(model, tokens):
    """Logits [b, s, padded vocabulary], gathered over the tensor parallel ranks."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    prompt = torch.tensor(tokens)
    logits = model(prompt, torch.arange(prompt.shape[1]).expand_as(prompt), None)
    return gather_from_tensor_model_parallel_region(logits, group=parallel_state.get_tensor_model_parallel_group())
