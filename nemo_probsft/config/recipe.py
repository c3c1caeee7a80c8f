"""The recipe: dataclasses are its schema, its types, its ranges and its defaults.

`load` reads a YAML file and `key=value` overrides. It refuses, in one line that names file, key, value and remedy,
every unknown, missing, duplicate, mistyped or out-of-range key and every combination that cannot train. Paths in a
recipe are relative to the working directory. What needs other files than the recipe is checked by `preflight`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from nemo_probsft.config import objective as of_recipe
from nemo_probsft.config import strictyaml
from nemo_probsft.config.exactness import MIXED, REFUSED_KEYS
from nemo_probsft.config.strictyaml import Bound, Node

if TYPE_CHECKING:
    from nemo_probsft.objectives import AnyObjective

MAX_BYTES = 1 << 20  # of a recipe
MAX_INT32 = 2**31 - 1  # Megatron counts tokens and steps in it
Size = Annotated[int, Bound("from 1 to 2**31 - 1", lambda n: 1 <= n <= MAX_INT32)]
AtLeast2 = Annotated[int, Bound("from 2 to 2**31 - 1", lambda n: 2 <= n <= MAX_INT32)]
NonNegative = Annotated[float, Bound("of at least 0", lambda x: x >= 0)]
Positive = Annotated[float, Bound("above 0", lambda x: x > 0)]
Share = Annotated[float, Bound("in [0, 1)", lambda x: 0 <= x < 1)]
Fraction = Annotated[float, Bound("in [0, 1]", lambda x: 0 <= x <= 1)]
Beta = Annotated[float, Bound("in [0, 1)", lambda x: 0 <= x < 1)]
Percentile = Annotated[float, Bound("in (0, 100)", lambda x: 0 < x < 100)]


@dataclass(frozen=True)
class ModelConfig:
    path: str = field(metadata={"give": "a Hugging Face directory or hub name, or a NeMo checkpoint"})
    revision: str | None = None  # of a hub name
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataConfig:
    train: str = field(metadata={"give": "a .jsonl or .parquet file, or the name of a Hugging Face data set"})
    split: str = "train"  # of a Hugging Face data set
    max_length: AtLeast2 = 2048  # tokens, prompt and response
    global_batch_size: Size = 256  # sequences per optimizer step
    micro_batch_size: Size = 1  # sequences per forward pass of one data-parallel rank
    long_prompts: Literal["error", "skip"] = "error"  # a prompt that leaves no room for the response
    chat_template: str | None = None  # Jinja text instead of the tokenizer's own
    prompt_key: str = "prompt"  # field of a row, dotted for a nested one
    response_key: str = "response"


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
    low: float | None = None  # of `adaptive`: the running mean of p where alpha leaves 0
    high: float | None = None  # and where it reaches 1
    decay: float | None = None  # of that mean, per step
    shrinkage: float | None = (
        None  # with it, each label has its own mean, in which that of all counts as so many tokens
    )
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
class Recipe:
    model: ModelConfig = field(metadata={"give": "model: {path: ...}"})
    data: DataConfig = field(metadata={"give": "data: {train: ...}"})
    objective: str | ObjectiveConfig = field(metadata={"give": "a key such as p, or {name: power, alpha: 10}"})
    run_dir: str = field(metadata={"give": "a directory"})  # `load` fills in runs/<name of the recipe file>
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
        """Micro-batches per data-parallel rank and optimizer step."""
        return self.data.global_batch_size // (self.data.micro_batch_size * self.data_parallel_size)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe file and `key=value` overrides -> a complete Recipe. Raises ValueError in one line."""
    tree = strictyaml.parse(_read(Path(path)), lambda line: f"{path}:{line}")
    for text in _once_each(overrides):
        tree = strictyaml.override(tree, text)
    tree = _with_defaults(tree, Path(path))
    _refuse_mixture(tree)
    recipe = dataclasses.replace(strictyaml.build(Recipe, tree, REFUSED_KEYS), tree=tree)
    _refuse_paths(recipe)
    _refuse_what_cannot_train(recipe)
    _refuse_layout(recipe)
    _refuse_head(recipe)
    _refuse_peft(recipe)
    # A diagnosis need not exist yet, `nemo-probsft diagnose` may be about to write it: any rising stand-in will do.
    of_recipe.parse(recipe, lambda keep, percentile, key: percentile / 100)
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data: every key present, percentiles resolved, loadable again."""
    plain = {key: value for key, value in dataclasses.asdict(recipe).items() if key != "tree"}
    plain["optim"]["betas"] = list(recipe.optim.betas)
    objective, denominator = resolve_objective(recipe)
    plain["objective"] = objective.key
    if isinstance(recipe.objective, ObjectiveConfig) and denominator != "target":
        spec = of_recipe.specification(recipe.objective, of_recipe.probability_at)
        plain["objective"] = {**spec, "denominator": denominator}
    return plain


def resolve_objective(recipe: Recipe) -> tuple[AnyObjective, str]:
    """The objective with every threshold as a probability, and its denominator ("target" or "kept").

    Raises ValueError when a percentile's diagnosis is missing or lacks it.
    """
    return of_recipe.parse(recipe, of_recipe.probability_at)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{path}: is longer than {MAX_BYTES} bytes; name a recipe, which is a page")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the recipe as UTF-8 text") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory; name a recipe file in it") from None
    except FileNotFoundError:
        siblings = sorted(entry.name for entry in path.parent.glob("*.y*ml"))
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.with_name(close[0])}?" if close else "name an existing recipe file"
        raise ValueError(f"{path}: no such recipe; {hint}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a readable recipe file") from None


def _once_each(overrides: Sequence[str]) -> Sequence[str]:
    sections = [name for name, kind in strictyaml.schema(Recipe).items() if dataclasses.is_dataclass(kind)]
    keys = [text.partition("=")[0] for text in overrides]
    for number, (key, text) in enumerate(zip(keys, overrides, strict=True)):
        where = strictyaml.override_place(text)
        if key in sections:
            raise ValueError(f"{where}: {key} is a section; override its keys one by one, for example {key}.KEY=VALUE")
        if key in keys[:number]:
            raise ValueError(f"{where}: {strictyaml.show(key)} is overridden twice; keep one")
    return overrides


def _with_defaults(tree: Node, path: Path) -> Node:
    """Fill in what depends on the recipe's name or on another key."""
    given = strictyaml.plain(tree)
    if not isinstance(given, dict):
        return tree
    if given.get("run_dir") is None:
        tree = strictyaml.put(tree, "run_dir", Node(str(Path("runs", path.stem)), tree.where))
    trainer = given.get("trainer", {})
    if isinstance(trainer, dict) and trainer.get("epochs") is None and trainer.get("max_steps") is None:
        tree = strictyaml.put(tree, "trainer.epochs", Node(1, tree.where))
    return tree


def _refuse_mixture(tree: Node) -> None:
    objective = tree.value.get("objective") if isinstance(tree.value, dict) else None
    if objective is not None and isinstance(objective.value, list):
        raise ValueError(f"{objective.where}: objective: {strictyaml.show(objective)}: {MIXED}")


def _refuse_paths(recipe: Recipe) -> None:
    paths = {"run_dir": recipe.run_dir, "model.path": recipe.model.path, "data.train": recipe.data.train}
    paths["diagnose.output"] = recipe.diagnose.output or "."
    if isinstance(recipe.objective, ObjectiveConfig) and recipe.objective.keep is not None:
        paths["objective.keep.diagnosis"] = recipe.objective.keep.diagnosis or "."
    for key, text in paths.items():
        # 255 bytes a name and 4096 a path are what Linux takes; a run's own files need some of the latter.
        fits = len(text.encode()) <= 2048 and all(len(part.encode()) <= 255 for part in Path(text).parts)
        if not text.isprintable() or not fits:
            raise recipe.error(key, f"{strictyaml.show(text)} is not a usable path; name one")
        if text.startswith("~"):
            raise recipe.error(key, f"{strictyaml.show(text)}: ~ is not expanded; write the directory itself")


def _refuse_what_cannot_train(recipe: Recipe) -> None:
    data, optim, trainer, export = recipe.data, recipe.optim, recipe.trainer, recipe.export
    if data.prompt_key == data.response_key:
        problem = f"{strictyaml.show(data.response_key)} is data.prompt_key, too; name the field that holds the answer"
        raise recipe.error("data.response_key", problem, "data.prompt_key")
    if data.global_batch_size * data.max_length > MAX_INT32:
        problem = (
            f"{data.global_batch_size} x data.max_length {data.max_length} tokens are more than Megatron counts in "
            "int32, 2**31 - 1; lower one of them"
        )
        raise recipe.error("data.global_batch_size", problem, "data.max_length")
    if trainer.epochs is not None and trainer.max_steps is not None:
        problem = f"{trainer.max_steps} contradicts trainer.epochs {trainer.epochs}; set one of them to null"
        raise recipe.error("trainer.max_steps", problem, "trainer.epochs")
    if optim.schedule == "constant" and optim.min_lr != 0:
        problem = f"{optim.min_lr:g} has no effect with optim.schedule constant; remove it"
        raise recipe.error("optim.min_lr", problem, "optim.schedule")
    if optim.min_lr > optim.lr:
        problem = f"{optim.min_lr:g} is above optim.lr {optim.lr:g}, from which it decays; lower it"
        raise recipe.error("optim.min_lr", problem, "optim.lr")
    if export.dtype is not None and not export.at_end:
        problem = f"{export.dtype} has no effect without export.at_end; set export.at_end: true"
        raise recipe.error("export.dtype", problem, "export.at_end")


def _refuse_head(recipe: Recipe) -> None:
    head = recipe.head
    if head.skip_rows:
        return
    for key, value in {"chunk_tokens": head.chunk_tokens, "skip_below": head.skip_below}.items():
        if value:
            problem = f"{value} has no effect, head.skip_rows is false; remove one of them"
            raise recipe.error(f"head.{key}", problem, "head.skip_rows")


def _refuse_peft(recipe: Recipe) -> None:
    tp = recipe.parallel.tensor_model_parallel_size
    if recipe.peft is None:
        return
    if recipe.peft.dim % tp:
        problem = f"{recipe.peft.dim} is not a multiple of tensor_model_parallel_size {tp}, which divides it"
        problem += f"; use {-(-recipe.peft.dim // tp) * tp}"
        raise recipe.error("peft.dim", problem, "parallel.tensor_model_parallel_size")
    if recipe.trainer.recompute == "full":
        problem = (
            "full trains nothing with peft, as Megatron makes layers again only where their input has a gradient and "
            "a frozen embedding gives none; use selective or none"
        )
        raise recipe.error("trainer.recompute", problem, "peft")


def _refuse_layout(recipe: Recipe) -> None:
    parallel, data, trainer = recipe.parallel, recipe.data, recipe.trainer
    tp, pp, cp = recipe.model_parallel_sizes
    sizes = [f"parallel.{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context")]
    if trainer.devices * trainer.num_nodes % (tp * pp * cp):
        problem = (
            f"{trainer.devices} x num_nodes {trainer.num_nodes} is not a multiple of the {tp * pp * cp} devices of one "
            f"model copy (tensor {tp} x pipeline {pp} x context {cp}); change one of them"
        )
        raise recipe.error("trainer.devices", problem, "trainer.num_nodes", *sizes)
    step = data.micro_batch_size * recipe.data_parallel_size
    if data.global_batch_size % step:
        problem = (
            f"{data.global_batch_size} is not a multiple of {step} (micro_batch_size {data.micro_batch_size} x "
            f"data-parallel size {recipe.data_parallel_size}); use {max(1, data.global_batch_size // step) * step}"
        )
        raise recipe.error("data.global_batch_size", problem, "data.micro_batch_size", "trainer.devices", *sizes)
    if parallel.sequence_parallel and tp == 1:
        problem = "true needs tensor_model_parallel_size of at least 2 (Megatron refuses it at 1); set it to false"
        raise recipe.error("parallel.sequence_parallel", problem, sizes[0])
    if (vp := parallel.virtual_pipeline_model_parallel_size) is None:
        return
    key = "parallel.virtual_pipeline_model_parallel_size"
    if pp == 1:
        problem = f"{vp} needs pipeline_model_parallel_size of at least 2; raise that or set this to null"
        raise recipe.error(key, problem, sizes[1])
    if recipe.num_micro_batches % pp:
        problem = (
            f"{vp} needs the micro-batches of a step ({recipe.num_micro_batches}) in multiples of "
            f"pipeline_model_parallel_size {pp}; change data.micro_batch_size or set this to null"
        )
        raise recipe.error(key, problem, "data.micro_batch_size", sizes[1])
