"""`nemo-probsft train RECIPE --plan`: what would be done and what a rank would hold. Nothing is trained or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_probsft import config
from nemo_probsft.config import Recipe
from nemo_probsft.data import mixture, order
from nemo_probsft.data.ends import trained_ends
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.plan import memory
from nemo_probsft.plan.memory import Rank, Setup
from nemo_probsft.run import decisions, engines, packed, preflight, prepare
from nemo_probsft.run.decisions import Decision
from nemo_probsft.run.model_files import model_shape

if TYPE_CHECKING:
    from conversion.families import ModelSpec

GPU_BYTES = 80 * 2**30  # of an A100 or H100
CALIBRATED = Decision(
    "measured on", "NeMo 2.7", "on Megatron-Core 0.15; Megatron-Bridge sets up the same and was not measured"
)
SHORTER = {
    "weights": "raise tensor or pipeline parallelism",
    "gradients": "raise tensor or pipeline parallelism, or train LoRA",
    "optimizer": "use more GPUs (data parallelism divides it), raise tensor or pipeline parallelism, or train LoRA",
    "activations": "lower data.micro_batch_size, set trainer.recompute: full, or raise tensor parallelism with "
    "sequence_parallel",
    "logits": "set head.chunk_tokens, or raise tensor parallelism",
    "working": "lower data.micro_batch_size, or raise tensor parallelism",
}


def preview(path: str, overrides: Sequence[str] = ()) -> None:
    """Print the decisions of a recipe and its memory. Raises ValueError without the config.json of the model."""
    recipe = config.load(path, overrides)
    spec = model_shape(recipe)
    found, problems = _decide(recipe)
    dataset = _tokenize(recipe, problems)
    reason = problems[0] if problems else "data or tokenizer are not here to count"
    found = [*_engine(recipe, problems), *found, *_steps(recipe, dataset, reason), *_ends(recipe, dataset)]
    setup = _setup(recipe, dataset)
    ranks = memory.ranks(spec, setup)
    decisions.show(found)
    _show_stages(recipe, ranks)
    largest = max(ranks, key=lambda rank: rank.total)
    decisions.show(_parts(spec, setup, largest), title=f"Memory of the largest rank, stage {largest.stage}")
    decisions.show([_fits(largest), _disk(recipe, spec, setup), _without_cuda(spec, setup), CALIBRATED], title="In all")
    for problem in problems:
        print(f"train would stop here: {problem}")


def cost(recipe: Recipe) -> tuple[str, int, int]:
    """(steps, bytes of a checkpoint with the optimizer's state, bytes of the weights alone) of one run."""
    spec = model_shape(recipe)
    dataset = _tokenize(recipe, [])
    setup = _setup(recipe, dataset)
    steps = _steps(recipe, dataset, "")[0].value
    return steps, memory.checkpoint_bytes(spec, setup), setup.element * memory.num_parameters(spec)


def _decide(recipe: Recipe) -> tuple[list[Decision], list[str]]:
    """The decisions of `train`, and what it would refuse: files that are not on this machine, above all."""
    found, problems = [], []
    chosen = None if recipe.engine == engines.AUTO else recipe.engine
    for part in preflight.parts(chosen):
        try:
            found += part(recipe)
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def _engine(recipe: Recipe, problems: list[str]) -> list[Decision]:
    """That of this machine, which need not have one to plan."""
    try:
        found = preflight.engine(recipe)
    except ValueError as error:
        problems.append(str(error))
        return []
    return [Decision("engine", found.text, found.reason)]


def _tokenize(recipe: Recipe, problems: list[str]) -> TokenizedDataset | None:
    """The training set, in memory; None where the recipe's files are not all here, which `problems` says."""
    sources = prepare.sources(recipe)
    if problems or not all(Path(source.path).exists() for source in sources) or not Path(recipe.model.path).is_dir():
        return None
    try:
        tokenizer = prepare.load_tokenizer(recipe, prepare.hugging_face_files(Path(recipe.model.path)))
        return mixture.in_memory(sources, tokenizer, **prepare.row_settings(recipe))
    except ValueError as error:
        problems.append(str(error))
        return None


def _steps(recipe: Recipe, dataset: TokenizedDataset | None, unknown: str) -> list[Decision]:
    """unknown: why there is no dataset to count."""
    size = recipe.data.global_batch_size
    most = Decision("tokens", f"at most {size * recipe.data.max_length:,} a step", "global_batch_size x max_length")
    if dataset is None:
        value = recipe.trainer.max_steps or f"{recipe.trainer.epochs} x floor(examples / {size})"
        return [Decision("steps", str(value), unknown), most]
    per_epoch, steps = _num_steps(recipe, dataset)
    counts = dataset.summary
    mean, targets = (round(size * n / len(dataset)) for n in (counts.num_tokens, counts.num_target_tokens))
    found = [
        Decision("steps", str(steps), f"{per_epoch} an epoch of {len(dataset)} examples"),
        Decision("tokens", f"{mean:,} a step, {targets:,} of them targets", "mean over the training set"),
    ]
    if recipe.data.packing:
        found.append(packed.decision(recipe, dataset, steps, packed.count_rows(recipe, dataset, steps)))
    return found


def _ends(recipe: Recipe, dataset: TokenizedDataset | None) -> list[Decision]:
    """What answers end with, where the training set is here."""
    if dataset is None:
        return []
    from conversion.generation import missing_stop_tokens

    hf = prepare.hugging_face_files(Path(recipe.model.path))
    tokenizer = prepare.load_tokenizer(recipe, hf)
    ends = trained_ends(dataset, tokenizer, recipe.data.max_length)
    change = missing_stop_tokens(hf, ends)
    return prepare.end_decisions(tokenizer, ends, [] if change is None else [change])


def _num_steps(recipe: Recipe, dataset: TokenizedDataset) -> tuple[int, int]:
    """Optimizer steps of an epoch, and of the run."""
    per_epoch = order.steps_per_epoch(len(dataset), recipe.data.global_batch_size)
    return per_epoch, recipe.trainer.max_steps or per_epoch * (recipe.trainer.epochs or 1)


def _setup(recipe: Recipe, dataset: TokenizedDataset | None) -> Setup:
    """The largest micro-batch: of the longest example where the data is here, else of max_length, all of it targets.

    With packing, it is always the latter.
    """
    length = targets = recipe.data.max_length
    if dataset is not None and not recipe.data.packing:
        length, targets = dataset.summary.longest, int(dataset.num_targets().max())
    num_targets = recipe.data.micro_batch_size * min(targets, -(-length // recipe.parallel.context_parallel_size))
    found = memory.setup(
        recipe, length=length, num_targets=num_targets, drops_rows=recipe.resolved.objective.key != "original"
    )
    if dataset is None or not recipe.data.packing:
        return found
    num_rows = packed.count_rows(recipe, dataset, _num_steps(recipe, dataset)[1])
    return replace(found, num_micro_batches=num_rows // (found.micro_batch * found.dp))


def _show_stages(recipe: Recipe, ranks: list[Rank]) -> None:
    size = recipe.trainer.devices * recipe.trainer.num_nodes // len(ranks)
    headings = ("stage", "ranks", "layers", "micro-batches", *ranks[0].parts, "total")
    lines = [
        [
            *(f"{rank.stage}", f"{rank.stage * size} to {(rank.stage + 1) * size - 1}", f"{rank.num_layers}"),
            f"{rank.micro_batches:g}",
            *(readable(number) for number in (*rank.parts.values(), rank.total)),
        ]
        for rank in ranks
    ]
    decisions.table("Memory of one rank, by pipeline stage", headings, lines)


def _parts(spec: ModelSpec, s: Setup, rank: Rank) -> list[Decision]:
    frozen, trained = memory.parameters(spec, s, rank.stage)
    split = f"dp {s.dp} x cp {s.cp}, distributed optimizer"
    states = "master weight and two moments" if s.element == 2 else "two moments"
    why = {
        "weights": f"{s.element} B x {frozen + trained:,} parameters of {memory.num_parameters(spec):,} in the model",
        "gradients": f"4 B x {trained:,} parameters that are trained; fp32 buffers",
        "optimizer": f"{12 if s.element == 2 else 8} B x {trained:,} trained: fp32 {states}; divided by {split}",
        "activations": _activations(spec, s, rank),
        "logits": _logits(spec, s) if rank.stage == s.pp - 1 else "on the last stage",
        "working": "largest short-lived tensors of the backward pass, an estimate",
    }
    return [Decision(name, readable(value), why[name]) for name, value in rank.parts.items()]


def _activations(spec: ModelSpec, s: Setup, rank: Rank) -> str:
    e, n, tp = s.element, s.norm_split, s.tp
    hidden, ffn = spec.hidden_size, spec.ffn_hidden_size
    query, key = spec.num_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    layer = readable(memory.layer_activations(spec, s))
    formula = f"T e (4 H/n + (3 Q + 3 K + 3 F)/tp) with T {s.tokens:,}, e {e}, H {hidden}, Q {query}, K {key}, F {ffn}"
    if s.recompute == "full":
        formula = f"T e H/n, recomputed, with T {s.tokens:,}, e {e}, H {hidden}"
    return (
        f"{rank.micro_batches:g} (micro-batches in flight) x {rank.num_layers} layers x {layer}: {formula}, n {n}, "
        f"tp {tp}, and small terms; arXiv 2205.05198"
    )


def _logits(spec: ModelSpec, s: Setup) -> str:
    held, columns = memory.logits_shape(spec, s)
    shape = f"[{held:,}, {columns:,}] of {s.element} B"
    if not s.skip_rows:
        return f"[T, V/tp] = {shape}; head.skip_rows keeps the rows with a loss only"
    total, every = memory.logits(spec, s), memory.logits(spec, replace(s, skip_rows=False))
    twice = ", and a copy: the objective may leave rows without a gradient" * (total > held * columns * s.element)
    return f"[N, V/tp] = {shape}{twice}; without head.skip_rows {readable(every)}"


def _fits(rank: Rank) -> Decision:
    left = GPU_BYTES - rank.total
    if left >= 0:
        reason = f"fits 80 GiB: {readable(left)} are left for CUDA's context, NCCL's buffers and fragmentation"
        return Decision("largest rank", readable(rank.total), reason)
    name = max(rank.parts, key=lambda part: rank.parts[part])
    reason = f"does NOT fit 80 GiB. The largest part, {name}: {SHORTER[name]}"
    return Decision("largest rank", readable(rank.total), reason)


def _without_cuda(spec: ModelSpec, s: Setup) -> Decision:
    largest = max(rank.total for rank in memory.ranks(spec, replace(s, distributed_optimizer=False)))
    reason = "the optimizer's state is not divided there, and layers without Transformer Engine keep more activations"
    if s.element == 2:
        reason += f"; {prepare.SLOW_BF16}"
    return Decision("on CPUs", f"at least {readable(largest)}", reason)


def _disk(recipe: Recipe, spec: ModelSpec, s: Setup) -> Decision:
    size, keep = memory.checkpoint_bytes(spec, s), recipe.checkpoint.keep_last
    best = recipe.checkpoint.keep_best is not None
    most = (keep + 1 + best) * size
    kept = f"the last {keep}{' and the best' if best else ''} are kept"
    reason = f"on disk, with the optimizer's state; every {recipe.checkpoint.every_steps} steps, {kept}"
    return Decision("checkpoint", readable(size), f"{reason}: {readable(most)} while one is written")


def readable(number: int) -> str:
    """Bytes as GiB, or as MiB below one."""
    if number == 0:
        return "0"
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"
