"""No substitution: where f(p) is computed exactly, where it is refused, and why.

The tables are used by `config` (keys of a recipe), `model_files` (what a model's files bring), `adapters.megatron`
(the model that was built) and `adapters.bridge` (a Bridge configuration of the user's);
`python -m nemo_probsft.config.exactness` prints them as docs/exactness.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nemo_probsft.config.combinations import EXACT, MIXED, REFUSED_COMBINATIONS

# A key that other trainers know, anywhere in a recipe -> why it is refused, and what to do.
_TOKEN_MEAN = "the loss is always one mean over the target tokens of the global batch; remove it"
_ONE_LOSS = "log p is always computed by ops.target_logprob, in fp32; remove it"
_MTP = "every multi-token-prediction head adds a loss of its own to the objective; remove it"
_MOE = "routers add load-balancing terms to the objective; use a dense model and remove it"
_DROPOUT = "it is drawn anew under every layout, so no gradient could be checked; remove it"
REFUSED_KEYS = {
    "_target_": "recipes are data, they cannot name code to run; remove it",
    "_partial_": "recipes are data, they cannot name code to run; remove it",
    "label_smoothing": "a smoothed target has no probability p of one token, which f(p) needs; remove it",
    **dict.fromkeys(("calculate_per_token_loss", "average_in_collective", "loss_reduction", "reduction"), _TOKEN_MEAN),
    **dict.fromkeys(("cross_entropy_loss_fusion", "cross_entropy_fusion_impl", "fp16_lm_cross_entropy"), _ONE_LOSS),
    "parallel_output": "the logits always stay divided over the tensor parallel ranks; remove it",
    **dict.fromkeys(("mtp_num_layers", "mtp_loss_scaling_factor", "num_nextn_predict_layers"), _MTP),
    **dict.fromkeys(("num_moe_experts", "moe_aux_loss_coeff", "moe_z_loss_coeff", "expert_model_parallel_size"), _MOE),
    **dict.fromkeys(("objectives", "losses", "loss_weights", "z_loss", "kl_coef", "entropy_coef"), MIXED),
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "dropout"), _DROPOUT),
    **dict.fromkeys(
        ("packed_sequence", "packed_sequence_specs"),
        "rows packed beforehand change which examples a step sees; set data.packing: true, which does not",
    ),
    "fp8": "fp8 rounds logits and gradients by scales that depend on the layout; use trainer.precision bf16 or fp32",
}

NEMO, BRIDGE = "nemo", "bridge"


class Setting(NamedTuple):
    """A field of a configuration: the values under which f(p) is exact, and what else would do.

    The first allowed value is the one of a configuration that does not say.
    """

    name: str
    allowed: tuple[Any, ...]
    why: str
    engines: tuple[str, ...] = (NEMO, BRIDGE)  # that have the field


_UNEVEN = "the layers must be divided evenly over the pipeline stages"
_GRAPH = "a captured graph was never compared with the reference"
_ROUNDS = "it rounds logits and gradients by scales that depend on the layout"
_DEFERRED = "it moves weight gradients out of the backward pass"
_NEMO_STEP = "nemo.collections.llm.gpt.model.base"
_SHARDED = "the ranks that share a weight see other tokens, and the global count is one of another group"
# Fields of a model's configuration that no checkpoint may bring and no built model may have.
MODEL_SETTINGS = (
    Setting("parallel_output", (True,), "gathered logits count every vocabulary shard once per tensor parallel rank"),
    Setting("mtp_num_layers", (None, 0), "every multi-token-prediction head adds a loss of its own to the objective"),
    Setting("num_moe_experts", (None,), "routers add load-balancing terms to the objective"),
    Setting("hidden_dropout", (0.0,), "it is drawn anew under every layout, so no gradient could be checked"),
    Setting("attention_dropout", (0.0,), "it is drawn anew under every layout, so no gradient could be checked"),
    Setting("fp8", (None,), _ROUNDS),
    Setting("fp4", (None,), _ROUNDS),
    Setting("fp8_output_proj", (False,), _ROUNDS, (BRIDGE,)),
    Setting("quant_recipe", (None,), _ROUNDS),
    Setting("use_kitchen", (False,), _ROUNDS),
    Setting("restore_modelopt_state", (False,), "it quantises, prunes or distils the model", (BRIDGE,)),
    Setting("fp16_lm_cross_entropy", (False,), "half precision cannot tell p from 1"),
    Setting("use_mup", (False,), "it scales logits, embeddings and learning rates by the width", (BRIDGE,)),
    Setting("final_logit_softcapping", (None,), "a capped logit was never compared with the reference", (BRIDGE,)),
    Setting("seq_len_interpolation_factor", (None,), "it moves positions: another model than config.json describes"),
    Setting("experimental_attention_variant", (None,), "its indexer adds a loss of its own", (BRIDGE,)),
    Setting("is_hybrid_model", (False,), "a HybridModel was never compared with the reference"),
    Setting("defer_embedding_wgrad_compute", (False,), _DEFERRED),
    Setting("delay_wgrad_compute", (False,), _DEFERRED),
    Setting("overlap_moe_expert_parallel_comm", (False,), "its schedule runs the model in pieces, past our hook"),
    Setting("forward_step_fn", (f"{_NEMO_STEP}.gpt_forward_step",), "it may leave out the loss", (NEMO,)),
    Setting("data_step_fn", (f"{_NEMO_STEP}.gpt_data_step",), "it may change labels and mask", (NEMO,)),
    Setting("enable_cuda_graph", (False,), _GRAPH),
    Setting("external_cuda_graph", (False,), _GRAPH),
    Setting("cuda_graph_impl", ("none",), _GRAPH),
    Setting("hybrid_context_parallel", (False,), "it deals sequences out to ranks of its own choice", (BRIDGE,)),
    Setting("gtp_weight_remat_size", (1,), _SHARDED, (BRIDGE,)),
    Setting("tensor_parallel_num_weight_shards", (None,), _SHARDED, (BRIDGE,)),
    Setting("pipeline_model_parallel_layout", (None,), _UNEVEN),
    Setting("num_layers_in_first_pipeline_stage", (None,), _UNEVEN),
    Setting("num_layers_in_last_pipeline_stage", (None,), _UNEVEN),
    Setting("account_for_embedding_in_pipeline_split", (False,), _UNEVEN),
    Setting("account_for_loss_in_pipeline_split", (False,), _UNEVEN),
)
# What the trainer sets at every start, whatever the checkpoint says.
SET_BY_THE_TRAINER = (
    Setting("calculate_per_token_loss", (True,), "False optimises the mean of micro-batch means, not the token mean"),
    Setting("cross_entropy_loss_fusion", (False,), "ops.target_logprob takes its place, and that of TE's kernel"),
)

_FSDP = "its wrappers and its gradient sums were never compared with the reference"
_BATCH = "the sequences of a step, and with them N, would not be those of one global batch"
_PACK = "rows that Bridge packs need Transformer Engine and were never compared with the reference"
_COUNTS = "the steps left out would still be counted by an objective that moves"
_TWICE = "a step computed twice is counted twice in the metrics and by an objective that moves"
_OTHER_SECTIONS = (
    Setting("objective", (None,), "Bridge does not know the key and trains -log p; give it to ObjectiveStep"),
    Setting("model.fp16", (False,), _COUNTS),
    Setting("model.kd_config", (None,), "the loss of distillation would be dropped beside f(p)"),
    Setting("mixed_precision.fp16", (False,), _COUNTS),
    Setting("mixed_precision.fp8", (None,), _ROUNDS),
    Setting("mixed_precision.fp4", (None,), _ROUNDS),
    Setting("comm_overlap.defer_embedding_wgrad_compute", (None, False), _DEFERRED),
    Setting("comm_overlap.delay_wgrad_compute", (None, False), _DEFERRED),
    Setting("comm_overlap.overlap_moe_expert_parallel_comm", (None, False), "its schedule runs past our hook"),
    Setting("ddp.average_in_collective", (False,), "it divides by ranks what must be divided by tokens"),
    Setting("ddp.delay_wgrad_compute", (False,), _DEFERRED),
    Setting("ddp.fp8_param_gather", (False,), _ROUNDS),
    Setting("ddp.fp4_param_gather", (False,), _ROUNDS),
    Setting("ddp.use_megatron_fsdp", (False,), _FSDP),
    Setting("ddp.use_custom_fsdp", (False,), _FSDP),
    Setting("dist.use_megatron_fsdp", (False,), _FSDP),
    Setting("dist.use_torch_fsdp2", (False,), _FSDP),
    Setting("dist.use_decentralized_pg", (False,), "Megatron's parallel state, which is asked, knows no group then"),
    Setting("optimizer.fp16", (False,), _COUNTS),
    Setting("optimizer.grad_norm_skip_threshold", (float("inf"),), _COUNTS),
    Setting("optimizer.optimizer_cuda_graph", (False,), _GRAPH),
    Setting("train.rampup_batch_size", (None,), _BATCH),
    Setting("train.step_batch_size_schedule", (None,), _BATCH),
    Setting("train.decrease_batch_size_if_needed", (False,), _BATCH),
    Setting("train.iterations_to_skip", ([],), _COUNTS),
    Setting("train.skip_sync_grad_norm_across_mp", (False,), "grad_norm would be that of one rank"),
    Setting("dataset.enable_offline_packing", (False,), _PACK),
    Setting("dataset.enable_in_batch_packing", (False,), _PACK),
    Setting("rerun_state_machine.rerun_mode", ("disabled",), _TWICE),
    Setting("rerun_state_machine.error_injection_rate", (0,), "it changes losses at random"),
    Setting("inprocess_restart.enabled", (False,), _TWICE),
    Setting("rng.data_parallel_random_init", (False,), "ranks would start from other adapters, and never agree"),
    Setting("peft.dropout", (0.0,), "it is drawn anew under every layout, so no gradient could be checked"),
    Setting("checkpoint.non_persistent_ckpt_type", (None,), "it holds no state of an objective that moves"),
)
# What a ConfigContainer of a Bridge user must say before f(p) can take the place of -log p.
BRIDGE_SETTINGS = (
    *(
        rule._replace(name=f"model.{rule.name}", engines=(BRIDGE,))
        for rule in (*SET_BY_THE_TRAINER, *MODEL_SETTINGS)
        if BRIDGE in rule.engines
    ),
    *(rule._replace(engines=(BRIDGE,)) for rule in _OTHER_SECTIONS),
)


def bridge_values(config: Any) -> dict[str, Any]:
    """The fields that BRIDGE_SETTINGS names, of a ConfigContainer; those that it does not have are left out.

    A `mixed_precision` that is still a name has no fields; what it stands for is in the built model's configuration.
    """
    found = {}
    for rule in BRIDGE_SETTINGS:
        *sections, name = rule.name.split(".")
        place = config
        for section in sections:
            place = getattr(place, section, None)
        for holder in (place, getattr(place, "transformer", None)):  # of a GPTModelConfig, the second
            if hasattr(holder, name):
                found[rule.name] = getattr(holder, name)
                break
    return found


def refused_setting(settings: Mapping[str, Any], rules: tuple[Setting, ...] = MODEL_SETTINGS) -> str | None:
    """The first setting under which another objective than f(p) would be trained, with the reason; None without one."""
    for rule in rules:
        value = settings.get(rule.name, rule.allowed[0])
        if callable(value):
            value = f"{value.__module__}.{value.__qualname__}"
        if value not in rule.allowed:
            return f"{rule.name} {value} ({rule.why})"
    return None


INTRODUCTION = """\
# What is exact, what is refused, and why

Written by `python -m nemo_probsft.config.exactness`. `tests/engines/test_exactness.py` compares it with the tables
in the code and asks for everything that is refused. A refusal is one line with file, line, key, reason and remedy, and
exit code 2, before any rank starts. Nothing falls back to cross entropy or to another objective.
"""
IN_MODEL = """
A checkpoint brings the configuration that it was trained with: NeMo's in `context/`, Bridge's in `run_config.yaml`.
These settings are refused in it; so is every name of code outside of the engine's own model, tokenizer and optimizer
classes, pickled state, and adapters without their base. The remedy is always
`nemo-probsft convert export CHECKPOINT DIR` and `model.path: DIR`: it keeps the weights and leaves the settings behind.
The trainer looks at the model it has built once more.
"""
HUGGING_FACE = """
A Hugging Face model is refused where Megatron would compute another function than its `config.json` says: an
architecture other than Llama, Qwen2 or Qwen3, an activation other than SiLU, biases or sliding windows that are not
built, unknown rope scaling, quantised weights, attention dropout, multi-token-prediction layers, and tensors that the
architecture does not have, such as a bias of the output layer. Both spellings of rope are read: `rope_theta` with
`rope_scaling`, and `rope_parameters` of transformers 5. Refused, too, is a directory that transformers 4 and 5 would
read as two models, and one whose weights transformers would replace (`adapter_config.json`, `transformers_weights`).

Bridge takes over only `factor` of Llama's rope scaling; the rest are constants of Megatron-Core 0.16 and later, those
of Llama 3.1 to 3.3. A model with others is refused with `engine: bridge`.
"""
MIXTURE_OF_EXPERTS = """
Mixture-of-experts models are refused with both engines. Their routers add load-balancing terms to the loss, so the
gradient would not be that of f(p) alone, and their weights lie in expert-parallel checkpoints, which `convert` does not
read.
"""
IN_BRIDGE = """
A Megatron-Bridge configuration of your own (a `ConfigContainer` from one of Bridge's recipes) is looked at when the run
starts. Its `model` must have every setting of the table above and of the one below; these are of the whole.
"""


def markdown() -> str:
    """docs/exactness.md."""
    exact = [(row.combination, row.why, _cited(row.nemo), _cited(row.bridge)) for row in EXACT]
    in_recipe = [(row.combination, row.why) for row in REFUSED_COMBINATIONS]
    in_bridge = [(f"`{rule.name}`", _values(rule.allowed), rule.why) for rule in _OTHER_SECTIONS]
    always = [(f"`{rule.name}`", _values(rule.allowed), rule.why) for rule in SET_BY_THE_TRAINER]
    parts = [
        INTRODUCTION,
        "\n## Exact\n\n" + _table("combination", "why", "shown with NeMo 2", "shown with Bridge", rows=exact),
        "\n## Refused in a recipe\n\n" + _table("asked for", "why", rows=in_recipe + _by_reason()),
        "\n## Refused in a model\n" + IN_MODEL + "\n",
        _table("setting", "exact with", "otherwise", "NeMo 2", "Bridge", rows=[_in_model(r) for r in MODEL_SETTINGS]),
        HUGGING_FACE + MIXTURE_OF_EXPERTS,
        "\n## Refused in a Bridge configuration\n" + IN_BRIDGE + "\n",
        _table("setting", "exact with", "otherwise", rows=in_bridge),
        "\n## Set by the trainer\n\n" + _table("setting", "always", "why", rows=always),
    ]
    return "".join(parts)


def _in_model(rule: Setting) -> tuple[str, ...]:
    has = ["refused" if engine in rule.engines else "has none" for engine in (NEMO, BRIDGE)]
    return f"`{rule.name}`", _values(rule.allowed), rule.why, *has


def _table(*heading: str, rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cited(shown_by: str) -> str:
    return f"`{shown_by}`" if "::" in shown_by else shown_by


def _by_reason() -> list[tuple[str, str]]:
    reasons: dict[str, list[str]] = {}
    for key, text in REFUSED_KEYS.items():
        reasons.setdefault(text.rpartition(";")[0], []).append(f"`{key}`")
    return [(", ".join(keys), why) for why, keys in reasons.items()]


def _values(allowed: tuple[Any, ...]) -> str:
    return " or ".join("none" if value is None else f"`{value}`" for value in allowed)


if __name__ == "__main__":
    print(markdown(), end="")
