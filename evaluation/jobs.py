"""What there is to evaluate: one job a task of the harness, decoding and model, with all that decides its answers."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.results import Store

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

    def requests(self, lm: Any) -> list[Any]:
        """The harness's request of every item, in their order; `doc_id` is the item's index.

        All of them, also where some are answered: examples that a task draws at random are then those of every run.
        """
        rendered, seed = self.settings["chat_template"], self.settings["seed"]
        random.seed(seed)
        self.task.set_fewshot_seed(seed)
        self.task.build_all_requests(
            limit=self.num_items,
            apply_chat_template=rendered,
            fewshot_as_multiturn=True,
            chat_template=lm.apply_chat_template if rendered else None,
            tokenizer_name=lm.tokenizer_name if rendered else "",
        )
        return self.task.instances


def jobs_of(manager, name: str, model_output: Path, samples, shared: dict[str, Any], model_dir: Path) -> Iterator[Job]:
    metadata = manager.load(name)["tasks"][name].config.metadata
    for decoding in metadata.get("decodings", ["as_defined"]):
        task = manager.load(name)["tasks"][name]  # a fresh one: its configuration is changed below
        if task.OUTPUT_TYPE != "generate_until":
            raise ValueError(f"task {name}: output type {task.OUTPUT_TYPE} is not supported; use a generate_until task")
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ValueError(f"task {name}: runs code unconfined, or needs images; use a task of text that does not")
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


def max_model_len(model_dir: Path, generation_budget: int) -> int:
    """Tokens of context to serve: the generation budget and a long prompt, within what the model was made for."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return min(generation_budget + MAX_PROMPT_TOKENS, config["max_position_embeddings"])


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
