"""Tasks for a rank of the fixture `bridge`: what a configuration of one's own is refused for, and what is dropped."""

import json
from pathlib import Path

CHANGES = {
    "calculate_per_token_loss": ["model.calculate_per_token_loss=false"],
    "average_in_collective": ["ddp.average_in_collective=true"],
    "cross_entropy_loss_fusion": ["model.cross_entropy_loss_fusion=true"],
    "use_mup": ["model.use_mup=true"],
    "mtp_num_layers": ["model.mtp_num_layers=1"],
    "hidden_dropout": ["model.hidden_dropout=0.1"],
    "fp16": ["mixed_precision=fp16_mixed"],
}


def ask_all(job: dict, output: Path) -> None:
    """{name: the error's text, or ""} for CHANGES, and for YAML files with an objective and with an unknown key."""
    from nemo_probsft.adapters.bridge import with_objective

    said = {
        name: _said(lambda lines=lines: with_objective(_cfg(), overrides=["objective=p", *lines]))
        for name, lines in CHANGES.items()
    }
    said["none"] = _said(lambda: with_objective(_cfg()))
    for name, text in {
        "named": "objective: {name: power, alpha: 10}\n",
        "dropped": "objective: p\nmodel: {hidden: 3}\n",
    }.items():
        file = output.with_name(f"{name}.yaml")
        file.write_text(text + "train: {train_iters: 7}\n" if name == "named" else text)
        said[name] = _said(lambda file=file: _check(with_objective(_cfg(), file)))
    output.with_suffix(".json").write_text(json.dumps(said))


def _check(step) -> None:
    assert step.training.objective.key == "GeneralFamily-10"
    assert step.cfg.train.train_iters == step.training.num_steps == 7


def _said(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def _cfg():
    """Bridge's own container for a tiny Llama, as it is exact."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.training import config as bridge
    from transformers import LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    described = LlamaConfig(**shape, vocab_size=64, architectures=["LlamaForCausalLM"])
    model = AutoBridge.from_hf_config(described).to_megatron_provider(load_weights=False)
    model.calculate_per_token_loss, model.cross_entropy_loss_fusion = True, False
    return bridge.ConfigContainer(
        model=model,
        train=bridge.TrainingConfig(train_iters=3, global_batch_size=2, micro_batch_size=1),
        optimizer=bridge.OptimizerConfig(optimizer="adam", lr=1e-3),
        scheduler=bridge.SchedulerConfig(),
        dataset=bridge.GPTSFTDatasetConfig(seq_length=16, dataset_root="data"),
        logger=bridge.LoggerConfig(),
        tokenizer=bridge.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=63),
        checkpoint=bridge.CheckpointConfig(),
    )
