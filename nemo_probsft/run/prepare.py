"""What is done once, before any rank starts: check, tokenise, import the weights, write down what the ranks need."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conversion.checkpoint import kind_of, last_checkpoint
from nemo_probsft import config
from nemo_probsft.config import Recipe, strictyaml
from nemo_probsft.data import mixture, order, templates, tokens
from nemo_probsft.data.ends import oddities, trained_ends
from nemo_probsft.files import first_line, write_atomically
from nemo_probsft.run import decisions, engines, model_files, packed, preflight, validation
from nemo_probsft.run.decisions import Decision
from nemo_probsft.run.preflight import PREPARED

RUN = "run.yaml"
SLOW_BF16 = "bf16 takes about twice the time of fp32 on a CPU: trainer.precision=fp32 is faster there"
# Of a model on the hub: its configuration and its tokenizer, whose code runs only where model.trust_remote_code asks.
TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*"]
STARTS_FROM = {"nemo": ("nemo",), "bridge": ("bridge", "huggingface")}  # kinds of directories that need no import


@dataclass(frozen=True)
class Prepared:
    """Facts every rank needs; paths are strings, so that it is one JSON object."""

    fingerprint: str  # of the recipe it was prepared for
    engine: engines.Name  # a run ends with the one that it was started with
    base: str  # what that engine starts from: a checkpoint of its own, or with bridge a Hugging Face directory
    hf: str  # Hugging Face files without weights: config, tokenizer, generation settings
    examples: str  # tokenised training set
    vocab_size: int  # without padding
    pad_id: int
    num_examples: int
    num_target_tokens: int
    num_steps: int
    num_rows: int | None = None  # of a step, with data.packing
    validation: str | None = None  # tokenised held-out rows


def prepare(recipe: Recipe) -> tuple[Prepared, list[Decision]]:
    """Fill the run directory with what the ranks need, and say what was decided and why.

    What is new in the run directory is removed again when something fails. Raises ValueError for the user.
    """
    checked = preflight.check(recipe)
    run_dir = Path(recipe.run_dir)
    missing = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    before = set() if missing else set(run_dir.iterdir())
    try:
        prepared, found = _fill(recipe, run_dir)
    except BaseException:
        _remove_new(run_dir, before, missing)
        raise
    return prepared, checked + found


def _remove_new(run_dir: Path, before: set[Path], missing: list[Path]) -> None:
    """Leave `run_dir` with what was in it `before`, and none of the `missing` directories that nobody else uses."""
    for path in set(run_dir.iterdir()) - before if run_dir.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for directory in missing:
        if directory.exists() and not any(directory.iterdir()):
            directory.rmdir()


class Model(NamedTuple):
    """What a run starts from."""

    source: Path  # Hugging Face directory, or a checkpoint of either engine
    hf: Path  # config.json, tokenizer, generation settings
    tokenizer: Any
    vocab_size: int  # without padding


def _fill(recipe: Recipe, run_dir: Path) -> tuple[Prepared, list[Decision]]:
    engine = preflight.engine(recipe).name
    model = _open_model(recipe, engine)
    run_dir.mkdir(parents=True, exist_ok=True)
    examples, dataset = _tokenize(recipe, model, run_dir)
    num_steps, per_epoch = _count_steps(recipe, len(dataset))
    num_rows = packed.count_rows(recipe, dataset, num_steps) if recipe.data.packing else None
    held_out, of_held_out = _hold_out(recipe, model, run_dir, num_steps)
    ends = trained_ends(dataset, model.tokenizer, recipe.data.max_length)
    hf, changes = _files_of_run(recipe, model, ends)
    _write_run_yaml(recipe, model, engine, ends, changes)
    base = import_base(model.source, run_dir, engine)
    prepared = Prepared(
        fingerprint=_fingerprint(recipe),
        engine=engine,
        base=str(base),
        hf=str(hf),
        examples=str(examples),
        vocab_size=model.vocab_size,
        pad_id=tokens.padding_id(model.tokenizer),
        num_examples=len(dataset),
        num_target_tokens=dataset.summary.num_target_tokens,
        num_steps=num_steps,
        num_rows=num_rows,
        validation=held_out,
    )
    write_atomically(run_dir / PREPARED, json.dumps(dataclasses.asdict(prepared), indent=2) + "\n")
    found = _found(recipe, prepared, dataset, model.tokenizer, per_epoch)
    return prepared, [*found, *of_held_out, *end_decisions(model.tokenizer, ends, changes)]


def _open_model(recipe: Recipe, engine: str) -> Model:
    source = local_model(recipe, engine).absolute()
    hf = hugging_face_files(source)
    vocab_size = json.loads((hf / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer = load_tokenizer(recipe, hf)
    tokens.check_tokenizer(tokenizer, vocab_size)
    return Model(source, hf, tokenizer, vocab_size)


def _tokenize(recipe: Recipe, model: Model, run_dir: Path) -> tuple[Path, tokens.TokenizedDataset]:
    """The directory of the tokenized training set, and what is in it."""
    examples = mixture.tokenized(sources(recipe), model.tokenizer, run_dir / "data", **row_settings(recipe))
    dataset = tokens.TokenizedDataset.load(examples)
    tokens.check_ids(dataset, model.vocab_size)
    _refuse_other_data(recipe, dataset, examples, run_dir)
    return examples, dataset


def _hold_out(recipe: Recipe, model: Model, run_dir: Path, num_steps: int) -> tuple[str | None, list[Decision]]:
    """The directory of the tokenised held-out rows, and what to say of them."""
    if recipe.validate is None:
        return None, []
    settings = row_settings(recipe)
    directory = validation.tokenized(recipe, model.tokenizer, model.vocab_size, run_dir / "data", settings)
    return str(directory), validation.found(recipe, tokens.TokenizedDataset.load(directory), num_steps)


def sources(recipe: Recipe) -> list[mixture.Source]:
    """What the training set is made of."""
    split = recipe.data.split
    return [
        mixture.Source(given.path, given.split or split, given.weight, given.max_rows) for given in recipe.data.sources
    ]


def row_settings(recipe: Recipe) -> dict[str, Any]:
    """How rows become examples: keywords of `tokens.of_source`."""
    names = ("max_length", "prompt_key", "response_key", "long_prompts", "supervise")
    return {name: getattr(recipe.data, name) for name in names}


def _count_steps(recipe: Recipe, num_examples: int) -> tuple[int, int]:
    """Optimizer steps of the run, and of an epoch."""
    size = recipe.data.global_batch_size
    if num_examples < size:
        found = f"the {num_examples} examples of {recipe.data.name}"
        raise recipe.error("data.global_batch_size", f"{size} is more than {found}; lower it or add data")
    per_epoch = order.steps_per_epoch(num_examples, size)
    num_steps = recipe.trainer.max_steps or per_epoch * (recipe.trainer.epochs or 1)
    if num_steps > config.MAX_INT32:
        problem = f"{recipe.trainer.epochs} of {per_epoch} steps each are more than 2**31 - 1 steps; lower it"
        raise recipe.error("trainer.epochs", problem)
    return num_steps, per_epoch


def import_base(source: Path, run_dir: Path, engine: engines.Name) -> Path:
    """What `engine` starts from: `source` where it can, else `run_dir`/base, imported if it is not there yet."""
    import conversion

    if kind_of(source) in STARTS_FROM[engine]:
        return source
    base = run_dir / "base"
    if kind_of(base) != engine:
        conversion.import_hf(source, base, engine=engine, progress=True)
    return base


def _refuse_other_data(recipe: Recipe, dataset: tokens.TokenizedDataset, examples: Path, run_dir: Path) -> None:
    """A run that has been trained already goes on with the tokens it was trained on, or not at all."""
    if last_checkpoint(run_dir / "checkpoints") is None or not (run_dir / PREPARED).exists():
        return
    started = json.loads((run_dir / PREPARED).read_text(encoding="utf-8"))["examples"]
    directory = run_dir / "data" / Path(started).name
    if directory == examples or not directory.exists():
        return
    then = tokens.map_arrays(directory)
    if not all(np.array_equal(then[name], getattr(dataset, name)) for name in tokens.TOKENS):
        problem = (
            f"{recipe.data.name} or the tokenizer has changed since {run_dir} was started "
            f"({len(then['input_ids'])} tokens in {len(then['offsets']) - 1} examples then, "
            f"{dataset.summary.num_tokens} in {len(dataset)} now); choose another run_dir, "
            f"for example run_dir={run_dir}-2"
        )
        shutil.rmtree(examples)
        raise recipe.error("data.train", problem)


def _found(recipe: Recipe, prepared: Prepared, dataset: Any, tokenizer: Any, per_epoch: int) -> list[Decision]:
    counts = dataset.summary
    size = f"{counts.num_examples} examples, {counts.num_tokens} tokens, {counts.num_target_tokens} of them targets"
    cut = f"{counts.num_truncated} truncated to {recipe.data.max_length} tokens, {counts.num_skipped} skipped"
    has_template = tokenizer.chat_template is not None
    form = "the tokenizer's chat template" if has_template else "no chat template: prompt + response + end token"
    covered = {"answers": "every answer", "last": "the last answer", "flagged": "answers that their turns mark"}[
        recipe.data.supervise
    ]
    dropped = counts.num_examples - per_epoch * recipe.data.global_batch_size
    found = [
        _device(),
        Decision("data", f"{size}; {cut}", form),
        *_files(recipe, counts),
        *_notes(counts),
        Decision("example", tokens.preview(dataset, tokenizer), f"the loss covers what stands in [[ ]]: {covered}"),
        Decision("steps", str(prepared.num_steps), f"{per_epoch} steps an epoch, the last {dropped} examples dropped"),
        _precision(recipe),
    ]
    if prepared.num_rows is not None:
        found.append(packed.decision(recipe, dataset, prepared.num_steps, prepared.num_rows))
    last = last_checkpoint(Path(recipe.run_dir) / "checkpoints")
    if last is not None:
        found.append(Decision("start", str(last), "the last complete checkpoint of this run"))
    return found


def _precision(recipe: Recipe) -> Decision:
    import torch

    reason = "log p, f(p), gradient sums and Adam's state are fp32"
    if recipe.trainer.precision == "bf16" and not torch.cuda.is_available():
        reason += f"; {SLOW_BF16}"
    return Decision("trainer.precision", recipe.trainer.precision, reason)


def _files(recipe: Recipe, counts: tokens.DataSummary) -> list[Decision]:
    return [
        Decision(
            f"data.train[{i}]",
            f"{file.name}: {file.num_examples} examples, {file.num_target_tokens} targets",
            f"weight {source.weight:g} x {file.num_in_file} examples"
            + (f" of at most {source.max_rows} rows" if source.max_rows else ""),
        )
        for i, (file, source) in enumerate(zip(counts.files, recipe.data.sources, strict=False))
    ]


def _notes(counts: tokens.DataSummary) -> list[Decision]:
    return [Decision("rows", value, reason) for value, reason in tokens.said(counts.notes)]


def _device() -> Decision:
    import torch

    if torch.cuda.is_available():
        return Decision("device", torch.cuda.get_device_name(), "CUDA: NCCL, and the stock packages without a patch")
    return Decision("device", "CPU", "no CUDA: gloo, and the patches that cpu.py of each adapter lists")


def wait_for(recipe: Recipe, seconds: float = 3600) -> Prepared:
    """What rank 0 or the process that started the ranks prepared; other nodes see it through the run directory."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        prepared = already(recipe)
        if prepared is not None:
            return prepared
        time.sleep(0.2)
    path = Path(recipe.run_dir) / PREPARED
    raise ValueError(
        f"{path} was not written within {seconds:.0f} s; put run_dir on a file system that every node shares"
    )


def already(recipe: Recipe) -> Prepared | None:
    """What an earlier `prepare` of this very recipe wrote, if it came to its end."""
    path = Path(recipe.run_dir) / PREPARED
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Prepared(**found) if found["fingerprint"] == _fingerprint(recipe) else None


def local_model(recipe: Recipe, engine: str) -> Path:
    """The model's directory; a hub name is downloaded first, without weights in formats that can run code."""
    path = Path(recipe.model.path)
    if path.is_dir():
        return path
    found = downloaded(recipe, [*TEXTS, "*.safetensors"])
    model_files.check_model_directory(recipe, found, engine)
    return found


def downloaded(recipe: Recipe, patterns: list[str]) -> Path:
    """The files of a hub name that match, in the cache of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(recipe.model.path, revision=recipe.model.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ValueError(
            f"model.path: {recipe.model.path} could not be downloaded ({reason}); give a local directory"
        ) from error


def hugging_face_files(source: Path) -> Path:
    """Where config.json and the tokenizer of a model are; a checkpoint carries them."""
    if kind_of(source) == "huggingface":
        return source
    from conversion.checkpoint import model_files_directory

    return model_files_directory(source, None)


def load_tokenizer(recipe: Recipe, hf: Path) -> Any:
    """That of a model's files, with the recipe's chat template."""
    from transformers import AutoTokenizer

    from conversion.hf_files import tokenizer_code

    try:
        tokenizer = AutoTokenizer.from_pretrained(hf, trust_remote_code=recipe.model.trust_remote_code)
        tokenizer("whether it works shows when it is used")
    except Exception as error:  # the tokenizers library raises nothing narrower
        if (code := tokenizer_code(hf)) and not recipe.model.trust_remote_code:
            problem = f"{hf} has a tokenizer with code of its own ({', '.join(code)}), which would run here"
            remedy = "read it, and set model.trust_remote_code: true if you trust it"
            raise recipe.error("model.path", f"{problem}; {remedy}", "model.trust_remote_code") from error
        reason = first_line(error)
        problem = f"{hf} has no tokenizer that can be read ({reason}); save the model's tokenizer there"
        raise recipe.error("model.path", problem) from error
    if recipe.data.chat_template is not None:
        tokenizer.chat_template = recipe.data.chat_template
        if unfit := templates.problem(recipe.data.chat_template):
            raise recipe.error("data.chat_template", unfit)
    return tokenizer


def _files_of_run(recipe: Recipe, model: Model, ends: list[int]) -> tuple[Path, list[str]]:
    """The model's files as checkpoints and export carry them, and what was changed, in words.

    An exported model must be asked in the form that it was trained in, and stop where it was trained to stop.
    """
    from conversion.generation import add_stop_tokens, missing_stop_tokens
    from conversion.hf_files import copy_model_files

    stop = missing_stop_tokens(model.hf, ends)
    if recipe.data.chat_template is None and stop is None:
        return model.hf, []
    files = Path(recipe.run_dir) / "hf"
    files.mkdir(exist_ok=True)
    copy_model_files(model.hf, files)
    if recipe.data.chat_template is not None:
        (files / "chat_template.jinja").write_text(model.tokenizer.chat_template, encoding="utf-8")
    add_stop_tokens(files, ends)
    template = ["chat_template.jinja: data.chat_template of the recipe"] if recipe.data.chat_template else []
    return files, template + ([] if stop is None else [stop])


def end_decisions(tokenizer: Any, ends: list[int], changes: Sequence[str]) -> list[Decision]:
    """What answers end with, and what is odd about the tokenizer's own end token."""
    stop = [change for change in changes if "eos_token_id" in change]
    reason = f"generate and vLLM must stop there: {stop[0]}" if stop else "generate and vLLM stop there by themselves"
    named = ", ".join(f"{text} ({number})" for text, number in named_tokens(tokenizer, ends).items())
    found = [Decision("end of answers", named or "not known", reason)]
    return found + [Decision("end of answers", "CHECK", problem) for problem in oddities(tokenizer, ends)]


def named_tokens(tokenizer: Any, ids: list[int]) -> dict[str, int]:
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))


def _write_run_yaml(recipe: Recipe, model: Model, engine: str, ends: list[int], changes: list[str]) -> None:
    target = Path(recipe.run_dir) / RUN
    if not target.exists():
        record = decisions.run_yaml(recipe, model.source, engine)
        record |= {"data": mixture.identity(sources(recipe))}
        if recipe.data.validation is not None:
            record |= {"validation": mixture.identity([mixture.Source(recipe.data.validation)])}
        record |= {"end_tokens": named_tokens(model.tokenizer, ends), "changed_model_files": changes}
        write_atomically(target, strictyaml.dump(record))


def _fingerprint(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(config.dump(recipe), sort_keys=True).encode()).hexdigest()
