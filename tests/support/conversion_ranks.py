"""Jobs for the ranks of `tests.support.engine`: stock NeMo and Megatron-Core load, run, train and save.

A job is {"do": name of a function below, "world_size": n, "arguments": {...}, "output": directory}; what rank 0 returns
is in `output`/result.pt.
"""

import os
from pathlib import Path

from tests.support.engine import Engine, first_error

LORA = {"dim": 8, "alpha": 16}


def run_jobs(engine: Engine, jobs: list[dict]) -> None:
    """Called by the tests. Raises AssertionError with the traceback of the first rank that failed."""
    engine.run([job | {"task": "tests.support.conversion_ranks:run"} for job in jobs])
    assert not (error := first_error(jobs)), error


def run(job: dict, output: Path) -> None:
    import torch

    torch.set_num_threads(1)
    result = globals()[job["do"]](output.parent, **job["arguments"])
    if os.environ["RANK"] == "0":
        torch.save(result, output.with_name("result.pt"))


def load_forward_save(output: Path, checkpoints: dict[str, str], pipelined: list[str], tokens: list) -> dict:
    """On two ranks: TP=2 (logits, save), PP=2 with two virtual stages (save), then one rank alone (logits, 50 tokens).

    Saves to `output`/<layout>-<family>. Returns {family: {tp2: logits, tp1: logits, greedy: tokens, keys: set}}.
    """
    import torch

    torch.distributed.init_process_group("gloo")
    torch.set_grad_enabled(False)
    prompt = torch.tensor(tokens)
    results: dict[str, dict] = {family: {} for family in checkpoints}
    _model_parallel(tensor_model_parallel_size=2)
    for family, checkpoint in checkpoints.items():
        (model,) = _load(Path(checkpoint), tensor_model_parallel_size=2)
        results[family]["tp2"] = _forward(model, prompt)
        results[family]["keys"] = _save([model], output / f"tp2-{family}")
    _model_parallel(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    for family in pipelined:
        layout = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
        _save(_load(Path(checkpoints[family]), **layout, pipeline_dtype=torch.float32), output / f"pp2-{family}")
    _model_parallel()
    for family, checkpoint in checkpoints.items():
        (model,) = _load(Path(checkpoint))
        results[family]["tp1"] = _forward(model, prompt)
        results[family]["greedy"] = _greedy(model, prompt[:1, :8], 50)
    return results


def train(output: Path, recipe: str, prepared: dict, save_optimizer: bool, lora: bool, tokens: list) -> object:
    """`llm.finetune` for two steps, saved by NeMo to `output`/trained. With lora: returns the logits of the result."""
    import torch
    from nemo import lightning as nl
    from nemo.collections import llm

    from nemo_probsft import config
    from nemo_probsft.adapters.megatron import micro_batches
    from nemo_probsft.adapters.nemo import trainer as nemo
    from nemo_probsft.adapters.nemo.data import SFTData
    from nemo_probsft.run.prepare import Prepared

    settings, facts = config.load(recipe), Prepared(**prepared)
    trainer = nemo.make_trainer(settings, max_steps=2)
    trainer.strategy.ckpt_save_optimizer = save_optimizer
    checkpoint = nl.ModelCheckpoint(
        dirpath=str(output), filename="trained", monitor=None, save_top_k=-1, save_last=False, every_n_train_steps=2
    )
    checkpoint.save_optim_on_train_end = save_optimizer
    trainer.callbacks.append(checkpoint)
    llm.finetune(
        nemo.load_model(settings, facts),
        SFTData(micro_batches.training(settings, facts)),
        trainer,
        log=nl.NeMoLogger(explicit_log_dir=str(output / f"log-{os.environ['RANK']}"), update_logger_directory=False),
        resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=facts.base, load_artifacts=False)),
        optim=nemo.optimizer(settings, 2),
        peft=llm.peft.LoRA(**LORA) if lora else None,
    )
    if not lora:
        return None
    from megatron.core.utils import unwrap_model

    (chunk,) = trainer.strategy.megatron_parallel
    with torch.no_grad():
        return _forward(unwrap_model(chunk.module).eval(), torch.tensor(tokens))


def reload(output: Path, trained: dict[str, list[str]], tokens: list) -> dict:
    """What `train` saved, loaded strictly by Megatron on one rank: {name: logits}. trained: (weights, base) by name."""
    import torch

    torch.distributed.init_process_group("gloo")
    torch.set_grad_enabled(False)
    _model_parallel()
    return {
        name: _forward(*_load(Path(base), weights=Path(weights)), torch.tensor(tokens))
        for name, (weights, base) in trained.items()
    }


def _model_parallel(**sizes: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(**sizes)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def _load(checkpoint: Path, weights: Path | None = None, **layout: object) -> list:
    """The model chunks of this rank from NeMo's own reading of context/, filled by Megatron's strict loading."""
    import fiddle
    import torch
    from megatron.core import dist_checkpointing
    from nemo.lightning import io

    from nemo_probsft.adapters.megatron.settings import FUSIONS_THAT_NEED_CUDA

    description = io.load_context(checkpoint / "context", subpath="model.config", build=False)
    without_gpu = dict.fromkeys((*FUSIONS_THAT_NEED_CUDA, "cross_entropy_loss_fusion"), False)
    fp32 = {"bf16": False, "fp16": False, "params_dtype": torch.float32}
    for name, value in {**without_gpu, **fp32, **layout}.items():
        setattr(description, name, value)
    config = fiddle.build(description)
    chunks = layout.get("virtual_pipeline_model_parallel_size", 1)
    models = [config.configure_model(None, vp_stage=stage if chunks > 1 else None).eval() for stage in range(chunks)]
    loaded = dist_checkpointing.load(_sharded(models), str(weights or checkpoint / "weights"))
    for index, model in enumerate(models):
        state = {key.removeprefix("module."): value for key, value in loaded[f"model_{index}"].items()}
        model.load_state_dict(state, strict=True)
    return models


def _sharded(models: list) -> dict:
    return {f"model_{index}": model.sharded_state_dict(prefix="module.") for index, model in enumerate(models)}


def _save(models: list, directory: Path) -> set[str]:
    """As NeMo's MegatronCheckpointIO does; returns the keys of the tensors and objects on this rank."""
    import torch
    from megatron.core import dist_checkpointing

    state = _sharded(models)
    keys = {entry.key for chunk in state.values() for entry in chunk.values()}
    (directory / "weights").mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    dist_checkpointing.save(state, str(directory / "weights"), content_metadata={"singleton_local_shards": False})
    return keys


def _forward(model, tokens):
    """Logits [b, s, padded vocabulary], gathered over the tensor parallel ranks."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    length = tokens.shape[1]
    masked = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    logits = model(tokens, torch.arange(length).expand_as(tokens), masked)
    return gather_from_tensor_model_parallel_region(logits, group=parallel_state.get_tensor_model_parallel_group())


def _greedy(model, tokens, count: int):
    import torch

    for _ in range(count):
        tokens = torch.cat([tokens, _forward(model, tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens
