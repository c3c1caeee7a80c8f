"""Combinations of a recipe that are exact, with the test that shows it, and those that are refused.

Tables of docs/exactness.md; `tests/engines/test_exactness.py` asks for everything that is refused. Imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

MIXED = "a mixture has no single f(p), so no key says what was trained; name one objective in `objective`"


@dataclass(frozen=True)
class Exact:
    combination: str
    why: str
    nemo: str  # file::test that shows it, or what is missing to show it
    bridge: str  # the same


def _exact(combination: str, why: str, shown_by: str) -> Exact:
    """What is shown without an engine."""
    return Exact(combination, why, shown_by, shown_by)


PARITY = "tests/engines/test_parity.py::test_the_first_step_is_that_of_one_process_in_float64"
BRIDGE_PARITY = PARITY.replace("test_parity", "test_bridge_parity")
_PACKED = "packed_rows_have_the_first_step_of_their_examples"
EXACT = (
    _exact(
        "every objective, any threshold",
        "one op gives log p; f(p) is fp32 torch on [tokens]; its gradient is exactly -s_f(p)",
        "tests/unit/test_objectives.py::test_autograd_is_exactly_minus_weight",
    ),
    Exact(
        "denominator `target` or `kept`",
        "Megatron's 3-tuple: sums over micro-batches and data parallel ranks, divided once",
        "tests/engines/test_training.py::test_the_first_step_is_the_token_mean_of_f_at_every_layout",
        BRIDGE_PARITY,
    ),
    _exact(
        "uneven target counts, micro-batches without a target",
        "no micro-batch is divided by its own count",
        "tests/unit/test_loss.py::test_sums_over_micro_batches_give_the_token_mean_and_a_mean_of_means_does_not",
    ),
    Exact(
        "tensor parallelism, with or without sequence parallelism",
        "one collective combines (max, sum, target logit) of the shards in the same order on every rank",
        PARITY,
        BRIDGE_PARITY,
    ),
    Exact(
        "a vocabulary that the tensor parallel size does not divide",
        "zero rows at its end, which take no probability and get no gradient",
        PARITY,
        BRIDGE_PARITY,
    ),
    Exact(
        "pipeline parallelism, with or without virtual stages, and data parallelism",
        "only the last stage computes log p; the gradient is scaled once by the global count",
        PARITY,
        BRIDGE_PARITY,
    ),
    Exact(
        "interrupted and continued runs",
        "a step's examples depend on seed and step alone",
        "tests/engines/test_crash.py::test_a_killed_run_goes_on_as_if_it_had_not_been_killed",
        "tests/engines/test_bridge_crash.py::test_a_killed_run_goes_on_as_if_it_had_not_been_killed",
    ),
    Exact(
        "head.skip_rows: rows without a loss skip the LM head, rows without a gradient its backward pass",
        "what they would add to a gradient is exactly zero; head.skip_below leaves more out, by request, and logs it",
        "tests/engines/test_head_adapter.py::test_gradients_are_those_of_the_whole_head",
        BRIDGE_PARITY,
    ),
    Exact(
        "trainer.recompute `full`",
        "the same numbers are computed again in the backward pass; log p itself is kept",
        PARITY,
        BRIDGE_PARITY,
    ),
    Exact("trainer.recompute `selective`", "the same", PARITY, BRIDGE_PARITY),
    Exact(
        "peft `lora`: the engine's own adapters, everything else frozen",
        "the loss is that of the merged model; the adapters' gradients go through the same division",
        "tests/engines/test_parity.py::test_adapters_have_the_gradient_of_the_merged_model",
        "tests/engines/test_bridge_parity.py::test_adapters_have_the_gradient_of_the_merged_model",
    ),
    Exact(
        "`data.packing`",
        "a step has the same examples, and attention stays inside each; shown with a mask on a CPU, while Transformer "
        "Engine's attention of variable length, which a GPU takes, was not run",
        PARITY.replace("the_first_step_is_that_of_one_process_in_float64", _PACKED),
        BRIDGE_PARITY.replace("the_first_step_is_that_of_one_process_in_float64", _PACKED),
    ),
    Exact(
        "context parallelism",
        "the loss is a sum over tokens, shown on sliced batches; the model needs Transformer Engine, or it is refused",
        "tests/engines/test_parity.py::test_context_parallel_ranks_divide_by_the_tokens_of_all",
        "not shown: no run with Transformer Engine yet",
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
        "`data.packing` with context parallelism",
        "Megatron-Core 0.15 slices a row over the ranks as if it were one example",
        ("data.packing=true", "parallel.context_parallel_size=2", "trainer.devices=2"),
    ),
    RefusedCombination(
        "`trainer.attention_backend` `flash` or `fused` with fp32",
        "neither has kernels for it",
        ("trainer.attention_backend=flash", "trainer.precision=fp32"),
    ),
    RefusedCombination(
        "`trainer.attention_backend: unfused` or `local` with context parallelism",
        "neither can divide a sequence over ranks",
        ("trainer.attention_backend=unfused", "trainer.devices=2", "parallel.context_parallel_size=2"),
    ),
    RefusedCombination(
        "2^31 or more tokens in a global batch",
        "Megatron counts them in int32",
        ("data.global_batch_size=4194304", "data.max_length=1024"),
    ),
)
