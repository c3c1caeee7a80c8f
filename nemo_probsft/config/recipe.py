"""The recipe: dataclasses are its schema, its types, its ranges and its defaults. `load` fills them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from nemo_probsft.config import strictyaml
from nemo_probsft.config.strictyaml import Bound, Node

if TYPE_CHECKING:
    from nemo_probsft.objectives import AnyObjective

MAX_INT32 = 2**31 - 1  # Megatron counts tokens and steps in it
Size = Annotated[int, Bound("from 1 to 2**31 - 1", lambda n: 1 <= n <= MAX_INT32)]
AtLeast2 = Annotated[int, Bound("from 2 to 2**31 - 1", lambda n: 2 <= n <= MAX_INT32)]
NonNegative = Annotated[float, Bound("of at least 0", lambda x: x >= 0)]
Positive = Annotated[float, Bound("above 0", lambda x: x > 0)]
Share = Annotated[float, Bound("in [0, 1)", lambda x: 0 <= x < 1)]
Fraction = Annotated[float, Bound("in [0, 1]", lambda x: 0 <= x <= 1)]
Beta = Annotated[float, Bound("in [0, 1)", lambda x: 0 <= x < 1)]
Weight = Annotated[float, Bound("above 0 and up to 1000", lambda x: 0 < x <= 1000)]
Percentile = Annotated[float, Bound("in (0, 100)", lambda x: 0 < x < 100)]


@dataclass(frozen=True)
class ModelConfig:
    path: str = field(metadata={"give": "a Hugging Face directory or hub name, or a checkpoint of an engine"})
    revision: str | None = None  # of a hub name
    trust_remote_code: bool = False


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources of training data."""

    path: str = field(metadata={"give": "a .jsonl or .parquet file, or the name of a Hugging Face data set"})
    split: str | None = None  # null: data.split
    weight: Weight = 1.0  # how often its examples occur: 0.5 is half of them
    max_rows: Size | None = None  # from its beginning


@dataclass(frozen=True)
class DataConfig:
    train: str | tuple[str | SourceConfig, ...] = field(
        metadata={"give": "a .jsonl or .parquet file, or the name of a Hugging Face data set"}
    )
    split: str = "train"  # of a Hugging Face data set
    max_length: AtLeast2 = 2048  # tokens, prompt and response
    global_batch_size: Size = 256  # examples per optimizer step
    micro_batch_size: Size = 1  # rows per forward pass of one data-parallel rank
    packing: bool = False  # rows of several examples, up to max_length; without it a row is an example
    long_prompts: Literal["error", "skip"] = "error"  # a prompt that leaves no room for the response
    chat_template: str | None = None  # Jinja text instead of the tokenizer's own; `load` reads it from a file
    supervise: Literal["answers", "last", "flagged"] = "answers"  # which turns the loss covers
    prompt_key: str = "prompt"  # field of a row, dotted for a nested one
    response_key: str = "response"
    validation: str | None = None  # a .jsonl or .parquet file of held-out rows

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What `train` names, as a list."""
        given = (self.train,) if isinstance(self.train, str) else self.train
        return tuple(SourceConfig(entry) if isinstance(entry, str) else entry for entry in given)

    @property
    def name(self) -> str:
        return ", ".join(source.path for source in self.sources)


@dataclass(frozen=True)
class ValidateConfig:
    every_steps: Size = 100
    max_examples: Size | None = None  # from the file's beginning; null: all of them


@dataclass(frozen=True)
class KeepConfig:
    """The interval of target probabilities that are trained on, bounds inclusive."""

    min_p: Fraction | None = None
    max_p: Fraction | None = None
    min_percentile: Percentile | None = None
    max_percentile: Percentile | None = None
    diagnosis: str | None = None  # JSON of `nemo-probsft diagnose`: turns percentiles into probabilities


@dataclass(frozen=True)
class ScheduleConfig:  # values at even distances over the training steps, linear in between
    alpha: tuple[float, ...] | None = None
    gamma: tuple[float, ...] | None = None
    min_p: tuple[Fraction, ...] | None = None
    max_p: tuple[Fraction, ...] | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    name: str = field(metadata={"give": "the objective's name, for example power"})
    alpha: float | None = None
    gamma: float | None = None
    low: float | None = None  # of `adaptive` and `prior`: the mean of p where alpha leaves 0
    high: float | None = None  # and where it reaches 1
    decay: float | None = None  # of `adaptive`'s running mean, per step
    by: Literal["label", "confidence"] | None = None  # with it, each group of tokens has its own mean
    shrinkage: float | None = None  # as how many tokens of a group the mean of all counts in it
    keep: KeepConfig | None = None
    schedule: ScheduleConfig | None = None
    denominator: Literal["target", "kept"] = "target"


@dataclass(frozen=True)
class ParallelConfig:
    tensor_model_parallel_size: Size = 1
    pipeline_model_parallel_size: Size = 1
    virtual_pipeline_model_parallel_size: AtLeast2 | None = None
    context_parallel_size: Size = 1
    sequence_parallel: bool = False


@dataclass(frozen=True)
class OptimConfig:
    lr: Positive = 5e-5
    min_lr: NonNegative = 0.0
    weight_decay: NonNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Positive = 1e-8
    warmup_ratio: Fraction = 0.1  # of all optimizer steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_grad: NonNegative = 1.0  # 0 turns it off


@dataclass(frozen=True)
class TrainerConfig:
    devices: Size = 1  # per node
    num_nodes: Size = 1
    epochs: Size | None = None  # 1 when neither is given: after `load` exactly one of the two is set
    max_steps: Size | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    recompute: Literal["none", "selective", "full"] = "none"
    attention_backend: Literal["auto", "flash", "fused", "unfused", "local"] = "auto"  # Megatron's AttnBackend
    seed: Annotated[int, Bound("from 0 to 2**32 - 1", lambda n: 0 <= n < 2**32)] = 0


@dataclass(frozen=True)
class HeadConfig:
    skip_rows: bool = True  # rows without a loss or without a gradient never enter the LM head's products
    chunk_tokens: Size | None = None  # logits of so many tokens at a time, made again in the backward pass
    skip_below: Share = 0.0  # rows of smallest weight left out of the backward pass, up to this share of all weight


@dataclass(frozen=True)
class PeftConfig:
    name: Literal["lora"] = field(metadata={"give": "name: lora"})
    dim: Size = 16
    alpha: Size = 32  # the adapters' product is multiplied by alpha / dim


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: Size = 100
    keep_last: Size = 2
    keep_best: Literal["nll", "objective", "p"] | None = None  # of those whose step is validated, too


@dataclass(frozen=True)
class WandbConfig:
    project: str = field(metadata={"give": "a W&B project"})
    name: str | None = None


@dataclass(frozen=True)
class LogConfig:
    every_steps: Size = 1
    wandb: WandbConfig | None = None


@dataclass(frozen=True)
class ExportConfig:
    at_end: bool = False
    dtype: Literal["bf16", "fp32"] | None = None  # null keeps that of the weights


@dataclass(frozen=True)
class DiagnoseConfig:
    max_tokens: Size | None = None  # null: every target token
    output: str | None = None  # null: inside the run directory


@dataclass(frozen=True)
class ResolvedObjective:
    """What the recipe's objective means, parsed once: every percentile is a probability."""

    objective: AnyObjective
    denominator: str  # "target" or "kept"
    spec: str | dict[str, Any]  # what `parse_objective` took


@dataclass(frozen=True)
class Recipe:
    model: ModelConfig = field(metadata={"give": "model: {path: ...}"})
    data: DataConfig = field(metadata={"give": "data: {train: ...}"})
    objective: str | ObjectiveConfig = field(metadata={"give": "a key such as p, or {name: power, alpha: 10}"})
    run_dir: str = field(metadata={"give": "a directory"})  # `load` fills in runs/<name of the recipe file>
    engine: Literal["auto", "nemo", "bridge"] = "auto"
    validate: ValidateConfig | None = None  # after `load` there is one if and only if there is data.validation
    parallel: ParallelConfig = ParallelConfig()
    optim: OptimConfig = OptimConfig()
    trainer: TrainerConfig = TrainerConfig()
    head: HeadConfig = HeadConfig()
    peft: PeftConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    export: ExportConfig = ExportConfig()
    diagnose: DiagnoseConfig = DiagnoseConfig()
    tree: Node | None = field(default=None, compare=False, repr=False, metadata={"key": False})  # for `error`
    _resolved: ResolvedObjective | None = field(default=None, compare=False, repr=False, metadata={"key": False})

    @property
    def resolved(self) -> ResolvedObjective:
        """The objective with every threshold as a probability, and its denominator; `load` has put it here."""
        assert self._resolved is not None, "only config.load makes a recipe that can train"
        return self._resolved

    def error(self, key: str, problem: str, *also: str) -> ValueError:
        """A one-line error about a key. It names the override to blame, if one set this key or one of `also`."""
        if self.tree is None:
            return ValueError(f"recipe: {key}: {problem}")
        places = [strictyaml.locate(self.tree, name) for name in (key, *also)]
        overridden = [place for place in places if place.startswith("override")]
        return ValueError(f"{(overridden or places)[0]}: {key}: {problem}")

    @property
    def model_parallel_sizes(self) -> tuple[int, int, int]:
        """Tensor, pipeline and context parallel size."""
        parallel = self.parallel
        tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        return tp, pp, parallel.context_parallel_size

    @property
    def data_parallel_size(self) -> int:
        return self.trainer.devices * self.trainer.num_nodes // math.prod(self.model_parallel_sizes)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per data-parallel rank and optimizer step, if nothing is packed."""
        return self.data.global_batch_size // (self.data.micro_batch_size * self.data_parallel_size)

    @property
    def row_multiple(self) -> int:
        """Rows of a step come in multiples of it: the same whole micro-batches on every rank.

        Megatron wants them in multiples of the pipeline parallel size, if stages are virtual.
        """
        parallel = self.parallel
        is_virtual = parallel.virtual_pipeline_model_parallel_size is not None
        times = parallel.pipeline_model_parallel_size if is_virtual else 1
        return self.data.micro_batch_size * self.data_parallel_size * times
