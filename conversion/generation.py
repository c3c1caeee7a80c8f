"""generation_config.json: the tokens at which `generate` and `vllm serve` stop by themselves."""

import json
from collections.abc import Collection
from pathlib import Path

from conversion.hf_files import read_config

FILE = "generation_config.json"
# What transformers takes over from config.json where there is no such file (`GenerationConfig.from_model_config`).
_FROM_CONFIG = ("bos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def stop_tokens(directory: Path) -> list[int]:
    """Ids of the tokens at which generation with the model in `directory` stops: of this file, else of config.json.

    Raises: ValueError if the file is no JSON object.
    """
    found = _settings(directory).get("eos_token_id")
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def missing_stop_tokens(directory: Path, ids: Collection[int]) -> str | None:
    """What `add_stop_tokens` would change, in words; None for nothing."""
    before = _settings(directory).get("eos_token_id")
    after = _with(stop_tokens(directory), ids)
    return None if after == stop_tokens(directory) else f"{FILE}: eos_token_id {before} became {_plain(after)}"


def add_stop_tokens(directory: Path, ids: Collection[int]) -> str | None:
    """Have generation stop at `ids`, too; every byte stays where it does so already. Returns what changed, in words."""
    change = missing_stop_tokens(directory, ids)
    if change is not None:
        settings = _settings(directory) | {"eos_token_id": _plain(_with(stop_tokens(directory), ids))}
        text = json.dumps(settings, indent=2, sort_keys=True)
        (directory / FILE).write_text(text + "\n", encoding="utf-8")
    return change


def _with(listed: list[int], ids: Collection[int]) -> list[int]:
    return list(dict.fromkeys([*listed, *ids]))


def _plain(ids: list[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else ids


def _settings(directory: Path) -> dict:
    file = directory / FILE
    if not file.is_file():
        config = read_config(directory)
        kept = {key: config[key] for key in _FROM_CONFIG if config.get(key) is not None}
        return kept | {"eos_token_id": config.get("eos_token_id")}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); download it again") from error
    listed = settings.get("eos_token_id") if isinstance(settings, dict) else "?"
    if not (listed is None or isinstance(listed, int) or _all_ids(listed)):
        raise ValueError(f"{file}: holds no settings with an id or ids as eos_token_id; download it again")
    return settings


def _all_ids(listed: object) -> bool:
    return isinstance(listed, list) and all(isinstance(number, int) for number in listed)
