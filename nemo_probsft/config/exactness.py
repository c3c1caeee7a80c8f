"""No substitution: where f(p) is computed exactly, where it is refused, and why.

The tables are used by `config` (keys of a recipe), `model_files` (what a model's files bring) and `adapters.megatron`
(the model that was built); `python -m nemo_probsft.config.exactness` prints them as docs/exactness.md. Imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# A key that other trainers know, anywhere in a recipe -> why it is refused, and what to do.
MIXED = "a mixture has no single f(p), so no key says what was trained; name one objective in `objective`"
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
        ("packed_sequence", "packed_sequence_specs", "packing"),
        "every row is a sequence of its own; packing needs Transformer Engine and is not offered yet; remove it",
    ),
    "fp8": "fp8 rounds logits and gradients by scales that depend on the layout; use trainer.precision bf16 or fp32",
}


class Setting(NamedTuple):
    """A field of the configuration of a NeMo model: the values under which f(p) is exact, and what else would do."""

    name: str
    allowed: tuple[Any, ...]
    why: str


_UNEVEN = "the recipe divides the layers evenly over the pipeline stages"
_GRAPH = "a captured graph was never compared with the reference"
# What a checkpoint must not bring. The first allowed value is the one of a configuration that does not say.
MODEL_SETTINGS = (
    Setting("parallel_output", (True,), "gathered logits count every vocabulary shard once per tensor parallel rank"),
    Setting("mtp_num_layers", (None, 0), "every multi-token-prediction head adds a loss of its own to the objective"),
    Setting("num_moe_experts", (None,), "routers add load-balancing terms to the objective"),
    Setting("hidden_dropout", (0.0,), "it is drawn anew under every layout, so no gradient could be checked"),
    Setting("attention_dropout", (0.0,), "it is drawn anew under every layout, so no gradient could be checked"),
    Setting("fp8", (None,), "it rounds logits and gradients by scales that depend on the layout"),
    Setting("fp4", (None,), "it rounds logits and gradients by scales that depend on the layout"),
    Setting("fp16_lm_cross_entropy", (False,), "half precision cannot tell p from 1"),
    Setting("defer_embedding_wgrad_compute", (False,), "it moves the output layer's gradient out of the backward pass"),
    Setting("forward_step_fn", ("nemo.collections.llm.gpt.model.base.gpt_forward_step",), "it may leave out the loss"),
    Setting("data_step_fn", ("nemo.collections.llm.gpt.model.base.gpt_data_step",), "it may change labels and mask"),
    Setting("enable_cuda_graph", (False,), _GRAPH),
    Setting("external_cuda_graph", (False,), _GRAPH),
    Setting("pipeline_model_parallel_layout", (None,), _UNEVEN),
    Setting("num_layers_in_first_pipeline_stage", (None,), _UNEVEN),
    Setting("num_layers_in_last_pipeline_stage", (None,), _UNEVEN),
    Setting("account_for_embedding_in_pipeline_split", (False,), _UNEVEN),
    Setting("account_for_loss_in_pipeline_split", (False,), _UNEVEN),
)
# What the trainer sets at every start, whatever the checkpoint says.
SET_BY_THE_TRAINER = (
    Setting("calculate_per_token_loss", (True,), "False optimises the mean of micro-batch means, not the token mean"),
    Setting("cross_entropy_loss_fusion", (False,), "its place is taken by ops.target_logprob"),
)

BRIDGE_SETTINGS = (Setting("model.calculate_per_token_loss", (True,), "False optimises the mean of micro-batch means"),)


def refused_setting(settings: Mapping[str, Any], rules: tuple[Setting, ...] = MODEL_SETTINGS) -> str | None:
    """The first setting under which another objective than f(p) would be trained, with the reason; None without one."""
    for name, allowed, why in rules:
        value = settings.get(name, allowed[0])
        if callable(value):
            value = f"{value.__module__}.{value.__qualname__}"
        if value not in allowed:
            return f"{name} {value} ({why})"
    return None


@dataclass(frozen=True)
class Exact:
    combination: str
    why: str
    shown_by: str  # file::test, or what is missing to show it


PARITY = "tests/engines/test_parity.py::test_the_first_step_is_that_of_one_process_in_float64"
EXACT = (
    Exact(
        "every objective, any threshold",
        "one op gives log p; f(p) is fp32 torch on [tokens]; its gradient is exactly -s_f(p)",
        "tests/unit/test_objectives.py::test_autograd_is_exactly_minus_weight",
    ),
    Exact(
        "denominator `target` or `kept`",
        "Megatron's 3-tuple: sums over micro-batches and data parallel ranks, divided once",
        "tests/engines/test_training.py::test_the_first_step_is_the_token_mean_of_f_at_every_layout",
    ),
    Exact(
        "uneven target counts, micro-batches without a target",
        "no micro-batch is divided by its own count",
        "tests/unit/test_loss.py::test_sums_over_micro_batches_give_the_token_mean_and_a_mean_of_means_does_not",
    ),
    Exact(
        "tensor parallelism, with or without sequence parallelism",
        "one collective combines (max, sum, target logit) of the shards in the same order on every rank",
        PARITY,
    ),
    Exact(
        "a vocabulary that the tensor parallel size does not divide",
        "zero rows at its end, which take no probability and get no gradient",
        PARITY,
    ),
    Exact(
        "pipeline parallelism, with or without virtual stages, and data parallelism",
        "only the last stage computes log p; the gradient is scaled once by the global count",
        PARITY,
    ),
    Exact(
        "interrupted and continued runs",
        "a step's examples depend on seed and step alone",
        "tests/engines/test_crash.py::test_a_killed_run_goes_on_as_if_it_had_not_been_killed",
    ),
    Exact(
        "head.skip_rows: rows without a loss skip the LM head, rows without a gradient its backward pass",
        "what they would add to a gradient is exactly zero; head.skip_below leaves more out, by request, and logs it",
        "tests/engines/test_head_adapter.py::test_gradients_are_those_of_the_whole_head",
    ),
    Exact(
        "trainer.recompute `selective` and `full`",
        "the same numbers are computed again in the backward pass; log p itself is kept",
        PARITY,
    ),
    Exact(
        "peft `lora`: NeMo's adapters, everything else frozen",
        "the loss is that of the merged model; the adapters' gradients go through the same division",
        "tests/engines/test_parity.py::test_adapters_have_the_gradient_of_the_merged_model",
    ),
    Exact(
        "context parallelism",
        "the loss is a sum over tokens, shown on sliced batches; the model needs Transformer Engine, or it is refused",
        "tests/engines/test_parity.py::test_context_parallel_ranks_divide_by_the_tokens_of_all",
    ),
)


@dataclass(frozen=True)
class RefusedCombination:
    combination: str
    why: str
    overrides: tuple[str, ...]  # of a good recipe: asking for it


REFUSED_COMBINATIONS = (
    RefusedCombination("`objective` as a list", MIXED.partition(";")[0], ("objective=[p, original]",)),
    RefusedCombination(
        "an objective or parameter that is not in the table",
        "nothing stands in for it",
        ("objective=cross_entropy",),
    ),
    RefusedCombination(
        "a percentile without its diagnosis",
        "a guessed threshold is another objective",
        ("objective={name: nll, keep: {min_percentile: 10}}",),
    ),
    RefusedCombination(
        "sequence parallelism without tensor parallelism",
        "there is no other rank to divide a sequence with",
        ("parallel.sequence_parallel=true",),
    ),
    RefusedCombination(
        "a global batch that is not whole micro-batches",
        "rows would be dropped, or counted twice",
        ("data.global_batch_size=6", "data.micro_batch_size=4"),
    ),
    RefusedCombination(
        "`peft` with `trainer.recompute: full`",
        "Megatron recomputes a layer only if its input needs a gradient, and a frozen embedding has none",
        ("peft={name: lora}", "trainer.recompute=full"),
    ),
    RefusedCombination(
        "2^31 or more tokens in a global batch",
        "Megatron counts them in int32",
        ("data.global_batch_size=4194304", "data.max_length=1024"),
    ),
)


INTRODUCTION = """\
# What is exact, what is refused, and why

Written by `python -m nemo_probsft.config.exactness`. `tests/engines/test_exactness.py` compares it with the tables
in the code and asks for everything that is refused. A refusal is one line with file, line, key, reason and remedy, and
exit code 2, before any rank starts. Nothing falls back to cross entropy or to another objective.
"""
NEMO = """
A NeMo checkpoint brings the configuration it was trained with (`context/`). These settings are refused in it; so is
every name of code outside of NeMo's own model, tokenizer and optimizer classes, pickled state, and adapters without
their base. The remedy is always `nemo-probsft convert export CHECKPOINT DIR` and `model.path: DIR`: it keeps the
weights and leaves the settings behind. The trainer looks at the model it has built once more.
"""
HUGGING_FACE = """
A Hugging Face model is refused where NeMo would compute another function than its `config.json` says: an architecture
other than Llama, Qwen2 or Qwen3, an activation other than SiLU, biases or sliding windows that NeMo does not build,
unknown rope scaling, quantised weights, attention dropout, multi-token-prediction layers, and tensors that the
architecture does not have, such as a bias of the output layer.
"""


def markdown() -> str:
    """docs/exactness.md."""
    exact = [(row.combination, row.why, _cited(row.shown_by)) for row in EXACT]
    in_recipe = [(row.combination, row.why) for row in REFUSED_COMBINATIONS]
    in_model = [(f"`{name}`", _values(allowed), why) for name, allowed, why in MODEL_SETTINGS]
    always = [(f"`{name}`", _values(allowed), why) for name, allowed, why in SET_BY_THE_TRAINER]
    parts = [
        INTRODUCTION,
        "\n## Exact\n\n" + _table("combination", "why", "shown by", rows=exact),
        "\n## Refused in a recipe\n\n" + _table("asked for", "why", rows=in_recipe + _by_reason()),
        "\n## Refused in a model\n" + NEMO + "\n",
        _table("setting", "exact with", "otherwise", rows=in_model) + HUGGING_FACE,
        "\n## Set by the trainer\n\n" + _table("setting", "always", "why", rows=always),
    ]
    return "".join(parts)


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
