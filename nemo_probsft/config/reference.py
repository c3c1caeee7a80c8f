"""Every key of a recipe, its type, default and meaning: `python -m nemo_probsft.config.reference > docs/recipes.md`.

Types and defaults are read from the schema. A test fails when a key has no meaning here, or the page is not this text.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union

from nemo_probsft.config import Recipe
from nemo_probsft.config.strictyaml import schema, sections_of

MEANINGS = {
    "run_dir": "Directory for everything that a run leaves behind. Never overwritten.",
    "engine": (
        "What trains: NeMo 2 or Megatron-Bridge. `auto` takes the one that is installed; where both are, `nemo`. See "
        "[engines](engines.md)."
    ),
    "model.path": "Hugging Face directory or hub name, or a checkpoint of NeMo 2 or Megatron-Bridge.",
    "model.revision": "Branch, tag or commit of the hub name.",
    "model.trust_remote_code": "Run code that the model's repository brings.",
    "data.train": (
        "`.jsonl` or `.parquet` file, saved data set, or the name of a Hugging Face data set; or a list of them, see "
        "[data](data.md)."
    ),
    "data.train[].path": "Of a list: the file or data set. An entry that is only text is its path.",
    "data.train[].split": "Of a list: the split. null takes `data.split`.",
    "data.train[].weight": "Of a list: how often its examples occur. 0.5 takes half of them, 2 each twice.",
    "data.train[].max_rows": "Of a list: take only so many rows, from the beginning.",
    "data.split": "Split of the data set.",
    "data.validation": "`.jsonl` or `.parquet` file of held-out rows, see [validation](validation.md).",
    "data.max_length": "Most tokens of an example, prompt and response together.",
    "data.global_batch_size": "Examples per optimizer step.",
    "data.micro_batch_size": "Rows per forward pass of one data-parallel rank. Without packing, a row is an example.",
    "data.packing": (
        "Put several examples into each row of `max_length`. Loss and gradient stay the same: see "
        "[packing](packing.md). `nemo-probsft diagnose` never packs."
    ),
    "data.long_prompts": "What to do with a prompt that leaves no room for its response.",
    "data.chat_template": "Jinja text to use instead of the tokenizer's template, or the file that it stands in.",
    "data.supervise": (
        "What the loss covers: every answer of a conversation, only the `last`, or those `flagged` by `weight: 1` in "
        "their turn. An answer with `weight: 0` is never covered. See [data](data.md)."
    ),
    "data.prompt_key": "Field of a row that holds the prompt. Use dots for a nested one.",
    "data.response_key": "Field of a row that holds the response.",
    "objective": "A key such as `p` or `GeneralFamily-10`, or a mapping of the keys below.",
    "objective.name": (
        "`nll`, `power`, `convexity`, `unlikelihood`, `dft`, `focal`, `trsft`, `chord`, `adaptive` or `prior`: see "
        "[objectives](objectives.md)."
    ),
    "objective.alpha": "For `power`, `convexity` and `trsft`.",
    "objective.gamma": "For `focal`.",
    "objective.low": "For `adaptive` and `prior`: the mean of p up to which alpha is 0. null means 0.3.",
    "objective.high": "For `adaptive` and `prior`: the mean of p from which alpha is 1. null means 0.7.",
    "objective.decay": "For `adaptive`: decay of the running mean per step. null means 0.9.",
    "objective.by": (
        "For `adaptive`: give each `label` its own running mean of p, or each of 10 equal bins of the model's "
        "`confidence`. null means one mean for all or, with `shrinkage`, `label`."
    ),
    "objective.shrinkage": (
        "For `adaptive` with `by`: shrink each mean toward the global one as if by this many extra tokens. null means "
        "10."
    ),
    "objective.keep.min_p": "Train only on tokens whose p is at least this.",
    "objective.keep.max_p": "Train only on tokens whose p is at most this.",
    "objective.keep.min_percentile": "As `min_p`, as a percentile of the base model's p.",
    "objective.keep.max_percentile": "As `max_p`, as a percentile of the base model's p.",
    "objective.keep.diagnosis": "JSON of `nemo-probsft diagnose`, which turns percentiles into probabilities.",
    "objective.schedule.alpha": "Move `alpha` over the training steps, for example `[0, 1]`: values at even distances.",
    "objective.schedule.gamma": "Move `gamma` in the same way.",
    "objective.schedule.min_p": "Move `keep.min_p` in the same way.",
    "objective.schedule.max_p": "Move `keep.max_p` in the same way.",
    "objective.denominator": (
        "Divide the loss by all target tokens of the global batch (`target`), or by those that pass the threshold "
        "(`kept`)."
    ),
    "validate.every_steps": "Steps between validations. One more stands before the first step, one after the last.",
    "validate.max_examples": "Validate on so many examples, from the file's beginning. null takes all of them.",
    "parallel.tensor_model_parallel_size": "Must divide attention heads, key-value heads and feed-forward size.",
    "parallel.pipeline_model_parallel_size": "Must divide the number of layers.",
    "parallel.virtual_pipeline_model_parallel_size": "Model chunks per pipeline rank.",
    "parallel.context_parallel_size": "More than 1 needs Transformer Engine.",
    "parallel.sequence_parallel": "Split norms and their activations too. Needs tensor parallelism.",
    "optim.lr": "Peak learning rate of AdamW.",
    "optim.min_lr": "Learning rate at the end.",
    "optim.weight_decay": "Weight decay of AdamW.",
    "optim.betas": "Decay of AdamW's two moments.",
    "optim.eps": "AdamW's epsilon.",
    "optim.warmup_ratio": "Share of all steps in which the learning rate rises.",
    "optim.schedule": "Learning rate after the warm-up.",
    "optim.clip_grad": "Largest gradient norm. 0 turns clipping off.",
    "trainer.devices": "GPUs (or CPU processes) per node.",
    "trainer.num_nodes": "Nodes.",
    "trainer.epochs": "Passes over the data.",
    "trainer.max_steps": "Optimizer steps, instead of epochs.",
    "trainer.precision": "`bf16` keeps fp32 master weights and moments.",
    "trainer.recompute": "Compute activations again in the backward pass, to save memory.",
    "trainer.attention_backend": (
        "Attention on a GPU. `auto`: the fastest that Transformer Engine can use. `flash` (flash-attn), `fused` "
        "(cuDNN), `unfused` (no special kernels), `local` (Megatron's own). A CPU always has Megatron's own."
    ),
    "trainer.seed": "Seed of the data order and of new parameters.",
    "head.skip_rows": (
        "Skip the LM head for tokens without a loss, and its backward pass for tokens whose gradient is zero. Exact."
    ),
    "head.chunk_tokens": "Make the logits of this many tokens at a time, for a quarter more work in the head.",
    "head.skip_below": (
        "Leave the tokens of smallest weight out of the backward pass, up to this share of all weight. Not exact; "
        "logged as `skipped_weight`."
    ),
    "peft.name": "LoRA on the linear layers of attention and MLP. Without `peft` everything is trained.",
    "peft.dim": "Rank of the adapters. A multiple of the tensor parallel size.",
    "peft.alpha": "The adapters' output is multiplied by alpha / dim.",
    "checkpoint.every_steps": "Steps between checkpoints.",
    "checkpoint.keep_last": "How many checkpoints to keep.",
    "checkpoint.keep_best": (
        "Keep the checkpoint with the best validation, too, as `best` in the run directory: lowest `nll` or "
        "`objective`, or highest `p`. See [validation](validation.md)."
    ),
    "log.every_steps": "Steps between lines of `metrics.jsonl`.",
    "log.wandb.project": "Weights & Biases project, if you give `log.wandb`.",
    "log.wandb.name": "Name of the run there.",
    "export.at_end": "Write a Hugging Face directory when training is done.",
    "export.dtype": "Type of the exported weights. null keeps it.",
    "diagnose.max_tokens": "Sample of `nemo-probsft diagnose`. null takes every target token.",
    "diagnose.output": "Where its page goes. null puts it into the run directory.",
}
FILLED_IN = {"run_dir": "`runs/<recipe name>`", "trainer.epochs": "1, without `max_steps`"}  # by `load`
SAID_BY = {int: "integer", float: "number", str: "text", bool: "true or false"}
HEAD = """# Recipe keys

Written by `python -m nemo_probsft.config.reference` from the schema; a test compares them.

Unknown, duplicate, mistyped and out-of-range keys are errors that name the file, the line and the remedy. Paths are
relative to the working directory. Override any key on the command line:
`nemo-probsft train my.yaml optim.lr=1e-5 run_dir=runs/other`. Integers are below 2**31.

| key | type | default | meaning |
|---|---|---|---|
"""
TAIL = """
## Continue a run

Start the same recipe again and the run continues from its last checkpoint. In between you may change the layout
(`parallel`, `trainer.devices`, `trainer.num_nodes`, `data.micro_batch_size`, `data.packing`, `trainer.recompute`,
`trainer.attention_backend`, `head.skip_rows`, `head.chunk_tokens`) and the reporting (`checkpoint`, `log`, `export`,
`diagnose`, `data.validation`, `validate`). Anything else makes it another run, which is refused: give it another
`run_dir`. A run goes on with the engine that it was started with.
"""


class Key(NamedTuple):
    name: str  # dotted
    kind: str
    default: str


def keys(cls: type = Recipe, prefix: str = "") -> Iterator[Key]:
    """Every key that a file may set, in the schema's order; a section's own name only if text may stand for it."""
    defaults = {item.name: item.default for item in dataclasses.fields(cls)}
    for name, hint in schema(cls).items():
        parts = _alternatives(hint)
        sections = [part for part in parts if dataclasses.is_dataclass(part)]
        if len(sections) < len([part for part in parts if part is not type(None)]):
            yield Key(prefix + name, _kind(hint), FILLED_IN.get(prefix + name) or _default(defaults[name]))
        for section, at in sections_of(hint):
            yield from keys(section, f"{prefix}{name}{at}.")


def page() -> str:
    """docs/recipes.md."""
    rows = [f"| `{key.name}` | {key.kind} | {key.default} | {MEANINGS[key.name]} |\n" for key in keys()]
    return HEAD + "".join(rows) + TAIL


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in arguments if part is not type(None))
    if origin is Annotated:
        return f"{_kind(arguments[0])} {arguments[1].text.removesuffix(' to 2**31 - 1')}"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"list{length}: {_kind(arguments[0])}"
    return "mapping" if dataclasses.is_dataclass(hint) else SAID_BY[hint]


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(page(), end="")
