"""Write LoRA factors as an adapter directory that `peft`, transformers and vLLM load."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from conversion.lora import Adapters
from nemo_probsft.files import write_json


def write_adapter(
    directory: Path, adapters: Adapters, base_model: str | None, cast: Callable[[Tensor, str], Tensor]
) -> None:
    """adapter_model.safetensors and adapter_config.json; base_model: hub name or path of the model it belongs to."""
    tensors, modules = {}, []
    for name in adapters:
        modules.append(name.removesuffix(".weight"))
        for factor, tensor in zip("AB", adapters.factors(name), strict=True):
            # contiguous copies: A is shared by the parts of a fused weight, and safetensors stores no shared memory
            tensors[f"base_model.model.{modules[-1]}.lora_{factor}.weight"] = cast(tensor, name).clone()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapters.dim,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(directory / "adapter_config.json", config)
