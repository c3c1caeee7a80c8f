"""What an evaluation writes: one directory per (model, task, decoding).

<output>/<model>/<task>/<decoding>/settings.json   everything the answers depend on
                                   samples.jsonl   one object per item: prompt, target, answers, score of each answer
                                   answers.jsonl   while it runs: answers of items that are not judged yet
                                   results.json    written last, so its presence means complete
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.statistics import CONFIDENCE, RESAMPLES, Estimate, estimate
from nemo_probsft.files import write_atomically, write_json

COUNTS = ("cut_at_token_limit", "prompt_too_long", "timed_out_judgements")  # answers to look at
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py")  # the last: of a tokenizer


@dataclass(frozen=True)
class Store:
    """The directory of one (model, task, decoding)."""

    directory: Path

    @property
    def results_path(self) -> Path:
        return self.directory / "results.json"

    @property
    def answers_path(self) -> Path:
        return self.directory / "answers.jsonl"

    @property
    def samples_path(self) -> Path:
        return self.directory / "samples.jsonl"

    def open(self, settings: dict[str, Any]) -> None:
        """Keep the samples if they were made with the same `settings`, else start over."""
        path = self.directory / "settings.json"
        if path.is_file() and json.loads(path.read_text()) == json.loads(json.dumps(settings)):
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for stale in (self.results_path, self.samples_path, self.answers_path):
            stale.unlink(missing_ok=True)
        write_json(path, settings)

    def complete(self) -> bool:
        return self.results_path.is_file()

    def samples(self) -> list[dict[str, Any]]:
        """The samples so far, in the order of their items."""
        return sorted(_lines(self.samples_path), key=lambda sample: sample["item"])

    def append(self, samples: list[dict[str, Any]]) -> None:
        _append(self.samples_path, samples)

    def answers(self) -> list[dict[str, Any]]:
        """What `append_answers` kept, of items that are judged and of others."""
        return _lines(self.answers_path)

    def append_answers(self, answers: list[dict[str, Any]]) -> None:
        """Keep finished answers until all of their item are there, and are judged."""
        _append(self.answers_path, answers)

    def finish(self, result: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
        """Put the samples in the order of their items, write what `result` makes of them, forget the answers."""
        samples = self.samples()
        write_atomically(self.samples_path, "".join(map(_line, samples)))
        summary = result(samples)
        write_json(self.results_path, summary)
        self.answers_path.unlink(missing_ok=True)
        return summary


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _append(path: Path, contents: list[dict[str, Any]]) -> None:
    if contents:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, contents))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that grows by lines; a last line cut off by an interruption is dropped, there, too."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="ignore")  # the cut may be in a character
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomically(path, whole)
    # Not splitlines(): an answer may hold U+2028 and the like, which JSON leaves as they are.
    return [json.loads(line) for line in whole.split("\n") if line]


def summarize(settings: dict[str, Any], samples: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, Any]:
    """The content of results.json for the complete `samples` of one (model, task, decoding).

    Without scores (`judged` is false: the task needs a judge) it has everything but the mean and its interval.
    """
    finishes = [finish for sample in samples for finish in sample["finish"]]
    extras = [name for name in samples[0]["extra"] if name != "timed_out"]
    judged = bool(samples[0]["scores"])
    return {
        **settings,
        "judged": judged,
        **(asdict(_estimate(samples, settings["seed"])) if judged else {}),
        "num_items": len(samples),
        "samples_per_item": len(samples[0]["answers"]),
        "interval": f"{CONFIDENCE:.0%} percentile bootstrap over items, {RESAMPLES} resamples",
        "prompt_hash": sha256("\0".join(sample["prompt"] for sample in samples).encode()).hexdigest(),
        "cut_at_token_limit": finishes.count("length"),
        "prompt_too_long": finishes.count("prompt_too_long"),
        "timed_out_judgements": int(sum(sum(sample["extra"].get("timed_out", [])) for sample in samples)),
        "mean_tokens": float(np.mean([count for sample in samples for count in sample["num_tokens"]])),
        "extra": {name: asdict(_extra(samples, name, settings["seed"])) for name in extras},
        "versions": versions,
    }


def _estimate(samples: list[dict[str, Any]], seed: int) -> Estimate:
    return estimate(np.array([sample["scores"] for sample in samples]), seed=seed)


def _extra(samples: list[dict[str, Any]], name: str, seed: int) -> Estimate:
    """Another metric of the task: one value per answer, or one per item."""
    values = [sample["extra"][name] for sample in samples]
    return estimate(np.array(values, dtype=float).reshape(len(values), -1), seed=seed)


def read_result(path: Path) -> dict[str, Any]:
    """A results.json. Raises: ValueError when it is not one."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot read this result ({error}); evaluate the model again") from None
    if not isinstance(result, dict) or "num_items" not in result:
        raise ValueError(f"{path}: not a results.json of an evaluation; pass the files that the evaluation wrote")
    return result


def model_files(model_dir: Path) -> list[Path]:
    """Configuration, tokenizer and weights of a Hugging Face directory."""
    return sorted({path for pattern in MODEL_FILES for path in model_dir.glob(pattern)})


def fingerprint(model_dir: Path, advance: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 over `model_files`. advance: told of so many bytes more."""
    digest = sha256()
    for path in model_files(model_dir):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                advance(len(block))
    return digest.hexdigest()
