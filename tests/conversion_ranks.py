"""What the ranks of the conversion tests do: stock NeMo and Megatron-Core load, run and save converted checkpoints."""

from pathlib import Path

import torch

from nemo_probsft.adapters import cpu

PIPELINED = ("qwen2-tied-301", "qwen3-untied")  # a save takes seconds, and two cover both kinds of last stage


def load_forward_save(checkpoints: dict[str, Path], tokens: torch.Tensor, saved: Path) -> dict:
    """On two ranks: TP=2 (logits, save), PP=2 with two virtual stages (save), then one rank alone (logits, 50 tokens).

    Saves to `saved`/<layout>-<family>. Returns {family: {"tp2": logits, "tp1": logits, "greedy": tokens, "keys": set}}.
    """
    cpu.install()
    torch.set_grad_enabled(False)
    results: dict[str, dict] = {family: {} for family in checkpoints}
    _model_parallel(tensor_model_parallel_size=2)
    for family, checkpoint in checkpoints.items():
        (model,) = _load(checkpoint, tensor_model_parallel_size=2)
        results[family]["tp2"] = _forward(model, tokens)
        results[family]["keys"] = _save([model], saved / f"tp2-{family}")
    _model_parallel(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    for family in PIPELINED:
        layout = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
        _save(_load(checkpoints[family], **layout, pipeline_dtype=torch.float32), saved / f"pp2-{family}")
    _model_parallel()
    for family, checkpoint in checkpoints.items():
        (model,) = _load(checkpoint)
        results[family]["tp1"] = _forward(model, tokens)
        results[family]["greedy"] = _greedy(model, tokens[:1, :8], 50)
    return results


def _model_parallel(**sizes: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(**sizes)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def _load(checkpoint: Path, **layout: object) -> list:
    """The model chunks of this rank from NeMo's own reading of context/, filled by Megatron's strict loading."""
    import fiddle
    from megatron.core import dist_checkpointing
    from nemo.lightning import io

    description = io.load_context(checkpoint / "context", subpath="model.config", build=False)
    without_gpu = dict.fromkeys((*cpu.FUSIONS_THAT_NEED_CUDA, "cross_entropy_loss_fusion"), False)
    fp32 = {"bf16": False, "fp16": False, "params_dtype": torch.float32}
    for name, value in {**without_gpu, **fp32, **layout}.items():
        setattr(description, name, value)
    config = fiddle.build(description)
    chunks = layout.get("virtual_pipeline_model_parallel_size", 1)
    models = [config.configure_model(None, vp_stage=stage if chunks > 1 else None).eval() for stage in range(chunks)]
    loaded = dist_checkpointing.load(_sharded(models), str(checkpoint / "weights"))
    for index, model in enumerate(models):
        state = {key.removeprefix("module."): value for key, value in loaded[f"model_{index}"].items()}
        model.load_state_dict(state, strict=True)
    return models


def _sharded(models: list) -> dict:
    return {f"model_{index}": model.sharded_state_dict(prefix="module.") for index, model in enumerate(models)}


def _save(models: list, directory: Path) -> set[str]:
    """As NeMo's MegatronCheckpointIO does; returns the keys of the tensors and objects on this rank."""
    from megatron.core import dist_checkpointing

    state = _sharded(models)
    keys = {entry.key for chunk in state.values() for entry in chunk.values()}
    (directory / "weights").mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    dist_checkpointing.save(state, str(directory / "weights"), content_metadata={"singleton_local_shards": False})
    return keys


def _forward(model, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b, s, padded vocabulary], gathered over the tensor parallel ranks."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    length = tokens.shape[1]
    masked = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    logits = model(tokens, torch.arange(length).expand_as(tokens), masked)
    return gather_from_tensor_model_parallel_region(logits, group=parallel_state.get_tensor_model_parallel_group())


def _greedy(model, tokens: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        tokens = torch.cat([tokens, _forward(model, tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens
