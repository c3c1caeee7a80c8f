"""Model families: what config.json says about the tensors, and which Megatron-Core key each of them becomes.

One dense decoder layout covers Qwen2 / Qwen2.5 (biases on q, k, v), Qwen3 (RMSNorm on the heads of q and k) and Llama
(DeepSeekMath is Llama); a family differs in the optional tensors and in the NeMo class that trains it.
Imports neither torch nor NeMo.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# NeMo builds the model with exactly `vocab_size` rows, so the value in context/ is padded for every usual TP size.
VOCAB_MULTIPLE = 128
# What Megatron-Core >= 0.16 computes with whatever config.json says: of a llama3 scaling, only `factor` is a setting of
# the model (`_apply_scaling` in megatron/core/models/common/embeddings/rotary_pos_embedding.py).
ROPE_CONSTANTS = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
# Keys that transformers' dense models ignore, and for which Bridge builds something (`CONFIG_MAPPING` in
# megatron/bridge/models/conversion/model_bridge.py): norms, experts, latent attention, prediction heads.
_PARTS_OF_BRIDGE = (
    *("use_qk_norm", "num_experts", "num_local_experts", "n_routed_experts", "q_lora_rank", "kv_lora_rank"),
    *("num_nextn_predict_layers", "mtp_num_hidden_layers"),
)


@dataclass(frozen=True)
class ModelSpec:
    """The facts of config.json that both formats need."""

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    tied: bool
    values: dict[str, object]  # further settings of the model in either engine, by Megatron-Core's names
    rope_scaling: dict[str, float] | None  # of config.json
    nemo_model: tuple[str, str]  # module, class
    nemo_config: tuple[str, str]

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"


@dataclass(frozen=True)
class Mapping:
    """One Megatron-Core tensor and the Hugging Face tensors it is made of; `{}` stands for the layer number.

    The rows of the Hugging Face tensors follow one another; by_group: query group by query group (the q heads of group
    0, its k, its v, then those of group 1). shapes: of the Hugging Face tensors.
    """

    megatron: str
    hf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    by_group: bool = False
    layered: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the Megatron tensor of one layer: the parts joined along dimension 0."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])

    def names(self, layer: int | None) -> list[str]:
        """The Hugging Face names in a layer (None: of a tensor that no layer has)."""
        return [name.format(layer) for name in self.hf]


def model_spec(config: dict) -> ModelSpec:
    """Read a Hugging Face config.json (already parsed).

    Raises: ValueError for an architecture or an option whose computation Megatron would not reproduce; it does not name
    the file, which the caller knows.
    """
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported, only {', '.join(sorted(_FAMILIES))} "
            "(dense Qwen2, Qwen2.5, Qwen3, Llama, DeepSeekMath)"
        )
    _check_options(config)
    num_heads = _size(config, "num_attention_heads")
    hidden_size = _size(config, "hidden_size")
    groups = _size(config, "num_key_value_heads", num_heads if model_type == "llama" else None)
    head_dim = _size(config, "head_dim", 128 if model_type == "qwen3" else hidden_size // num_heads)
    if num_heads % groups:
        raise ValueError(f"num_attention_heads {num_heads} is not a multiple of the {groups} key-value heads")
    rope_theta, scaling = _rope(config)
    _check_rope_scaling(model_type, rope_settings(config)[0], scaling)
    vocab_size = _size(config, "vocab_size")
    return ModelSpec(
        model_type=model_type,
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        ffn_hidden_size=_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_query_groups=groups,
        head_dim=head_dim,
        vocab_size=vocab_size,
        tied=bool(config.get("tie_word_embeddings", False)),
        values={
            "num_layers": _size(config, "num_hidden_layers"),
            "hidden_size": hidden_size,
            "ffn_hidden_size": _size(config, "intermediate_size"),
            "num_attention_heads": num_heads,
            "num_query_groups": groups,
            "kv_channels": head_dim,
            "seq_length": _size(config, "max_position_embeddings"),
            "init_method_std": config.get("initializer_range", 0.02),
            "layernorm_epsilon": config.get("rms_norm_eps", 1e-6),
            "rotary_base": rope_theta,
            "share_embeddings_and_output_weights": bool(config.get("tie_word_embeddings", False)),
        },
        rope_scaling=scaling,
        nemo_model=_FAMILIES[model_type],
        nemo_config=_nemo_config_class(model_type, scaling),
    )


def rope_that_bridge_replaces(config: dict) -> str | None:
    """The first setting of rope in config.json that Megatron-Core would replace by a constant, or None.

    A conversion there and back does not show it: only the logits differ.
    """
    _, scaling = _rope(config)
    place, _ = rope_settings(config)
    for key, constant in ROPE_CONSTANTS.items():
        if scaling and scaling.get(key, constant) != constant:
            return f"{place}.{key} {scaling[key]!r}, which Megatron-Core replaces by {constant}"
    return None


def parts_that_bridge_adds(config: dict) -> str | None:
    """The first key of config.json that changes the model in Bridge and not in transformers, or None."""
    found = next((key for key in _PARTS_OF_BRIDGE if config.get(key)), None)
    return None if found is None else f"{found} {config[found]!r}, for which Megatron-Bridge builds other layers"


def mappings(spec: ModelSpec) -> list[Mapping]:
    """All tensors of the model: embedding, those of a layer, final norm, output layer."""
    hidden, ffn, vocab = spec.hidden_size, spec.ffn_hidden_size, spec.vocab_size
    q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    attention, layer = "model.layers.{}.self_attn.", "model.layers.{}."
    qkv = tuple(f"{attention}{name}_proj" for name in "qkv")
    table = [
        Mapping("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ((vocab, hidden),), layered=False),
        Mapping(
            "decoder.layers.self_attention.linear_qkv.weight",
            tuple(f"{name}.weight" for name in qkv),
            ((q_rows, hidden), (kv_rows, hidden), (kv_rows, hidden)),
            by_group=True,
        ),
    ]
    if spec.qkv_bias:
        table.append(
            Mapping(
                "decoder.layers.self_attention.linear_qkv.bias",
                tuple(f"{name}.bias" for name in qkv),
                ((q_rows,), (kv_rows,), (kv_rows,)),
                by_group=True,
            )
        )
    table.append(
        Mapping("decoder.layers.self_attention.linear_proj.weight", (f"{attention}o_proj.weight",), ((hidden, q_rows),))
    )
    if spec.qk_norm:
        table += [
            Mapping(
                f"decoder.layers.self_attention.{n}_layernorm.weight",
                (f"{attention}{n}_norm.weight",),
                ((spec.head_dim,),),
            )
            for n in "qk"
        ]
    table += [
        Mapping(
            "decoder.layers.mlp.linear_fc1.weight",
            (f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"),
            ((ffn, hidden), (ffn, hidden)),
        ),
        Mapping("decoder.layers.mlp.linear_fc2.weight", (f"{layer}mlp.down_proj.weight",), ((hidden, ffn),)),
        # Transformer Engine fuses each layer norm into the linear layer that follows it; the names say so.
        Mapping(
            "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
            (f"{layer}input_layernorm.weight",),
            ((hidden,),),
        ),
        Mapping(
            "decoder.layers.mlp.linear_fc1.layer_norm_weight",
            (f"{layer}post_attention_layernorm.weight",),
            ((hidden,),),
        ),
        Mapping("decoder.final_layernorm.weight", ("model.norm.weight",), ((hidden,),), layered=False),
    ]
    if not spec.tied:
        table.append(Mapping("output_layer.weight", ("lm_head.weight",), ((vocab, hidden),), layered=False))
    return table


def mappings_by_layer(spec: ModelSpec) -> Iterator[tuple[Mapping, int | None]]:
    """Each Megatron tensor with each of its layers (None: not layered), in the order in which the files hold them."""
    table = mappings(spec)
    layered = [mapping for mapping in table if mapping.layered]
    before = table[: table.index(layered[0])]
    yield from ((mapping, None) for mapping in before)
    for layer in range(spec.num_layers):
        yield from ((mapping, layer) for mapping in layered)
    yield from ((mapping, None) for mapping in table[len(before) + len(layered) :])


def hf_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every Hugging Face tensor of the model, in the order of `mappings_by_layer`."""
    return {
        name: shape
        for mapping, layer in mappings_by_layer(spec)
        for name, shape in zip(mapping.names(layer), mapping.shapes, strict=True)
    }


def extra_state_keys(spec: ModelSpec) -> list[tuple[str, bool]]:
    """(key, layered) of the `_extra_state` objects that Transformer Engine modules ask for when they load.

    Different TE and Megatron versions ask for different subsets (norms since TE 2.0, attention until mcore 0.14);
    loading ignores entries nobody asks for and fails on missing ones, so all of them are written.
    """
    attention = ["linear_qkv", "linear_proj", "core_attention"] + ["q_layernorm", "k_layernorm"] * spec.qk_norm
    layered = [f"self_attention.{name}" for name in attention] + ["mlp.linear_fc1", "mlp.linear_fc2"]
    keys = [(f"decoder.layers.{name}._extra_state", True) for name in layered]
    return [*keys, ("decoder.final_layernorm._extra_state", False)]


_LLM = "nemo.collections.llm.gpt.model"
_FAMILIES = {
    "qwen2": (f"{_LLM}.qwen2", "Qwen2Model"),
    "qwen3": (f"{_LLM}.qwen3", "Qwen3Model"),
    "llama": (f"{_LLM}.llama", "LlamaModel"),
}


def _nemo_config_class(model_type: str, scaling: dict | None) -> tuple[str, str]:
    names = {"qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "llama": "Llama31Config" if scaling else "LlamaConfig"}
    return f"{_LLM}.{model_type}", names[model_type]


def _check_rope_scaling(model_type: str, place: str, scaling: dict | None) -> None:
    if not scaling:
        return
    if model_type != "llama":
        raise ValueError(f"{place} {scaling} of {model_type} has no counterpart in NeMo or Megatron-Bridge")
    names = ("factor", *ROPE_CONSTANTS)
    if scaling.get("rope_type", scaling.get("type")) != "llama3" or set(names) - scaling.keys():
        raise ValueError(f"{place} {scaling} is not supported; only the llama3 type with {', '.join(names)}")


def rope_settings(config: dict) -> tuple[str, dict]:
    """(key, mapping) of what config.json says about rope, as transformers 5 reads it: `rope_scaling`, which 4 wrote,
    hides `rope_parameters` where it is not empty (`convert_rope_params_to_dict` in modeling_rope_utils.py).

    Raises: ValueError for anything but one mapping for all layers.
    """
    for key in ("rope_scaling", "rope_parameters"):
        found = config.get(key) or {}
        if not isinstance(found, dict):
            raise ValueError(f"{key} must be a mapping, not {found!r}")
        if any(isinstance(value, dict) for value in found.values()):
            raise ValueError(f"{key} {found} differs by layer; only one set for all layers is supported")
        if found:
            return key, found
    return "rope_scaling", {}


def _rope(config: dict) -> tuple[float, dict | None]:
    """(rope_theta, scaling or None). Where transformers 4 and 5 would read two values, neither is taken."""
    place, found = rope_settings(config)
    theta = _agreed("rope_theta", {"rope_theta": config, f"{place}.rope_theta": found}, 10000.0)
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise ValueError(f"rope_theta must be a positive number, not {theta!r}")
    kind = found.get("rope_type", found.get("type"))
    if found.get("type", kind) != kind:
        raise ValueError(f"{place} has rope_type {kind!r} and type {found['type']!r}; remove one of them")
    if kind in (None, "default"):
        return theta, None
    scaling = {key: value for key, value in found.items() if key != "rope_theta"}
    key = "original_max_position_embeddings"  # transformers 5 takes it from beside the mapping, too
    if config.get(key) is not None:
        scaling[key] = _agreed(key, {key: config, f"{place}.{key}": found}, None)
    return theta, scaling


def _agreed(key: str, places: dict[str, dict], default: object) -> Any:
    """The value of `key` in the mappings, by their names. Raises: ValueError if they give two."""
    given = {name: place[key] for name, place in places.items() if place.get(key) is not None}
    first = next(iter(given.values()), default)
    if any(value != first for value in given.values()):
        values = " and ".join(f"{name} {value!r}" for name, value in given.items())
        raise ValueError(f"{values} disagree: transformers 4 reads one, transformers 5 the other; remove one of them")
    return first


def _check_options(config: dict) -> None:
    required = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(config.get("attention_bias")), False),
        "mlp_bias": (bool(config.get("mlp_bias")), False),
        "use_sliding_window": (bool(config.get("use_sliding_window")), False),
        "partial_rotary_factor": (_partial_rotary_factor(config), 1.0),
        "quantization_config": (config.get("quantization_config"), None),
        "transformers_weights": (config.get("transformers_weights"), None),  # a file in place of model.safetensors
    }
    for key, (value, supported) in required.items():
        if value != supported:
            raise ValueError(f"{key} is {value!r}; only {supported!r} is supported")


def _partial_rotary_factor(config: dict) -> object:
    _, rope = rope_settings(config)
    given = [
        place["partial_rotary_factor"] for place in (rope, config) if place.get("partial_rotary_factor") is not None
    ]
    return next((value for value in given if value != 1.0), 1.0)


def _size(config: dict, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} must be a positive integer, not {value!r}")
    return value
