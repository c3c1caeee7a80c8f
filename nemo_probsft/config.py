"""The recipe: dataclasses are its schema, its types, its ranges and its defaults.

`load` reads a YAML file and `key=value` overrides. It refuses, in one line that names file, key, value and remedy,
every unknown, missing, duplicate, mistyped or out-of-range key and every combination that cannot train. Paths in a
recipe are relative to the working directory. What needs other files than the recipe is checked by `preflight`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from nemo_probsft import strictyaml
from nemo_probsft.strictyaml import Bound, Node

if TYPE_CHECKING:
    from nemo_probsft.objectives import Objective

Size = Annotated[int, Bound("of at least 1", lambda n: n >= 1)]
NonNegative = Annotated[float, Bound("of at least 0", lambda x: x >= 0)]
Positive = Annotated[float, Bound("above 0", lambda x: x > 0)]
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
    max_length: Annotated[int, Bound("of at least 2", lambda n: n >= 2)] = 2048  # tokens, prompt and response
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
class ObjectiveConfig:
    name: str = field(metadata={"give": "the objective's name, for example power"})
    alpha: float | None = None
    gamma: float | None = None
    keep: KeepConfig | None = None
    denominator: Literal["target", "kept"] = "target"


@dataclass(frozen=True)
class ParallelConfig:
    tensor_model_parallel_size: Size = 1
    pipeline_model_parallel_size: Size = 1
    virtual_pipeline_model_parallel_size: Annotated[int, Bound("of at least 2", lambda n: n >= 2)] | None = None
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
    recipe = dataclasses.replace(strictyaml.build(Recipe, tree), tree=tree)
    _refuse_what_cannot_train(recipe)
    _refuse_layout(recipe)
    _refuse_objective(recipe)
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data: every key present, percentiles resolved, loadable again."""
    plain = {key: value for key, value in dataclasses.asdict(recipe).items() if key != "tree"}
    plain["optim"]["betas"] = list(recipe.optim.betas)
    objective, denominator = resolve_objective(recipe)
    plain["objective"] = objective.key
    if isinstance(recipe.objective, ObjectiveConfig) and denominator != "target":
        plain["objective"] = {**_objective_spec(recipe.objective, _probability_at), "denominator": denominator}
    return plain


def resolve_objective(recipe: Recipe) -> tuple[Objective, str]:
    """The objective with every threshold as a probability, and its denominator ("target" or "kept").

    Raises ValueError when a percentile's diagnosis is missing or lacks it.
    """
    return _parse_objective(recipe, _probability_at)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
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


def _refuse_what_cannot_train(recipe: Recipe) -> None:
    data, optim, trainer, export = recipe.data, recipe.optim, recipe.trainer, recipe.export
    for key, text in {"run_dir": recipe.run_dir, "model.path": recipe.model.path, "data.train": data.train}.items():
        if not text.strip() or not text.isprintable():
            raise recipe.error(key, f"{strictyaml.show(text)} is not a usable path; name one")
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


def _refuse_objective(recipe: Recipe) -> None:
    """A diagnosis need not exist yet, `nemo-probsft diagnose` may be about to write it: any rising stand-in will do."""
    _parse_objective(recipe, lambda keep, percentile, key: percentile / 100)


Percentiles = Callable[[KeepConfig, float, str], float]  # (keep, percentile, key for errors) -> probability


def _parse_objective(recipe: Recipe, percentiles: Percentiles) -> tuple[Objective, str]:
    from nemo_probsft.objectives import parse_objective  # imports torch, which `config` must not

    objective = recipe.objective
    try:
        if isinstance(objective, str):
            return parse_objective(objective), "target"
        return parse_objective(_objective_spec(objective, percentiles)), objective.denominator
    except ValueError as error:
        key, _, problem = str(error).partition(" ")
        if not key.startswith("objective"):
            key, problem = "objective", str(error)
        raise recipe.error(key.rstrip(":"), problem, "objective") from None


def _objective_spec(objective: ObjectiveConfig, percentiles: Percentiles) -> dict[str, Any]:
    """What `parse_objective` takes: name, parameter and thresholds as probabilities."""
    given = {key: getattr(objective, key) for key in ("name", "alpha", "gamma")}
    spec = {key: value for key, value in given.items() if value is not None}
    if objective.keep is not None:
        spec["keep"] = _keep_spec(objective.keep, percentiles)
    return spec


def _keep_spec(keep: KeepConfig, percentiles: Percentiles) -> dict[str, float]:
    spec = {}
    for bound in ("min", "max"):
        p, percentile = getattr(keep, f"{bound}_p"), getattr(keep, f"{bound}_percentile")
        key = f"objective.keep.{bound}_percentile"
        if p is not None and percentile is not None:
            raise ValueError(f"{key}: {percentile:g} and {bound}_p {p:g} are both given; remove one")
        if percentile is not None and keep.diagnosis is None:
            remedy = "run `nemo-probsft diagnose RECIPE` and name its JSON file in objective.keep.diagnosis"
            raise ValueError(f"{key}: {percentile:g} needs the model's probabilities; {remedy}")
        if p is not None or percentile is not None:
            spec[f"{bound}_p"] = p if percentile is None else percentiles(keep, percentile, key)
    if keep.diagnosis is not None and keep.min_percentile is None and keep.max_percentile is None:
        problem = "has no effect without min_percentile or max_percentile; remove it"
        raise ValueError(f"objective.keep.diagnosis: {strictyaml.show(keep.diagnosis)} {problem}")
    return spec


def _probability_at(keep: KeepConfig, percentile: float, key: str) -> float:
    """The probability below which `percentile` % of the target tokens lie, by the diagnosis."""
    path, remedy = Path(str(keep.diagnosis)), "make it with `nemo-probsft diagnose RECIPE`"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["percentiles"]
        known = {float(name): float(p) for name, p in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "is not a diagnosis"
        raise ValueError(f"objective.keep.diagnosis: {path} {reason}; {remedy}") from None
    if percentile not in known:
        choices = ", ".join(f"{q:g}" for q in sorted(known))
        raise ValueError(f"{key}: {percentile:g} is not in {path}; choose from {choices}, or {remedy}")
    return known[percentile]
