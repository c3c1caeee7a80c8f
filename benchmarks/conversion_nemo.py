"""NeMo's own connectors for Qwen2, as one process each, for `benchmarks.conversion --nemo`.

With Transformer Engine they run as they are. Without, NeMo's layers have other parameter names than the connectors
map, so layers with Transformer Engine's names stand in (parameters only: a conversion never runs forward).
"""

import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    from nemo_probsft.adapters.nemo import cpu

    cpu.install()

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer import transformer_block
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from nemo.collections import llm
from nemo.collections.llm.gpt.model import base
from transformers import AutoConfig


class NormLinear(ColumnParallelLinear):
    """`ColumnParallelLinear` with the norm weight that Transformer Engine keeps in the linear layer."""

    def __init__(self, input_size: int, *args, **kwargs):
        super().__init__(input_size, *args, **kwargs)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=self.weight.dtype))


class ModelNorm:
    """Megatron's norm in plain torch has fp32 parameters, Transformer Engine's those of the model."""

    def __new__(cls, config, *args, **kwargs) -> torch.nn.Module:
        return WrappedTorchNorm(config, *args, **kwargs).to(config.params_dtype)


def fused_norm_spec(config: object) -> object:
    spec = gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm")
    layer = spec.submodules
    layer.self_attention.submodules.linear_qkv = NormLinear
    layer.mlp.submodules.linear_fc1 = NormLinear
    layer.input_layernorm = layer.pre_mlp_layernorm = IdentityOp
    layer.sharded_state_dict_keys_map = {}
    return spec


def main(action: str, source: Path, target: Path) -> None:
    if not base.HAVE_TE:
        base.local_layer_spec = fused_norm_spec
        transformer_block.LayerNormImpl = ModelNorm
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    if action == "import":
        assert AutoConfig.from_pretrained(source).model_type == "qwen2"
        # The shape that is given here does not matter, the importer reads the model's; none divides by zero.
        llm.import_ckpt(llm.Qwen2Model(llm.Qwen2Config500M()), f"hf://{source.resolve()}", output_path=target.resolve())
    else:
        llm.export_ckpt(source.resolve(), "hf", output_path=target.resolve())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
