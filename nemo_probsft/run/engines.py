"""Which engine trains: NeMo 2 or Megatron-Bridge. Told by what is installed; neither is imported for it.

Versions: docs/engines.md. Found by the packages' metadata and by the folder that must be in them, since nemo-toolkit
3.0 is installed under the same name and has no language models any more.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

Name = Literal["nemo", "bridge"]
AUTO = "auto"


class Kind(NamedTuple):
    """What is known about an engine before it is looked for."""

    title: str
    package: str  # its distribution
    module: str  # without which it cannot train
    oldest: tuple[int, int]  # minor version that has what the adapter plugs into
    tested: tuple[int, int]  # the minor version that the tests run with
    install: str


KINDS: dict[Name, Kind] = {
    "nemo": Kind(
        title="NeMo",
        package="nemo-toolkit",
        module="nemo.collections.llm",
        oldest=(2, 6),
        tested=(2, 7),
        install="use the container nvcr.io/nvidia/nemo:25.11, or Python 3.11 with requirements/train.lock",
    ),
    "bridge": Kind(
        title="Megatron-Bridge",
        package="megatron-bridge",
        module="megatron.bridge",
        oldest=(0, 5),
        tested=(0, 6),
        install="use the container nvcr.io/nvidia/nemo:26.06 or 26.08, or Python 3.12 with requirements/bridge.lock",
    ),
}


class Engine(NamedTuple):
    """The engine that trains."""

    name: Name
    version: str  # of its package
    reason: str

    @property
    def text(self) -> str:
        return f"{KINDS[self.name].title} {self.version}"


def choose(engine: Name | Literal["auto"]) -> Engine:
    """The engine that a recipe's `engine` means here; `auto` takes the one that can train, NeMo 2 if both can.

    Raises ValueError with problem and remedy, without the key, if there is none.
    """
    if engine != "auto":
        return _usable(engine, "the recipe asks for it")
    problems = {name: problem for name in KINDS if (problem := _problem(name))}
    if len(problems) == len(KINDS):
        remedies = "; or ".join(KINDS[name].install for name in reversed(KINDS))
        raise ValueError(f"auto finds none: {'; '.join(problems.values())}; {remedies}")
    if not problems:
        return _usable("nemo", "both engines are installed; engine: bridge asks for the other")
    ((other, problem),) = problems.items()
    (name,) = KINDS.keys() - {other}
    return _usable(name, f"the only one that can train here: {problem}")


def trainer_of(name: Name) -> Any:
    """The module with `fit` and `collect_logp` of an engine. Imports it: inside a rank only."""
    _usable(name, "the run was prepared for it")
    return importlib.import_module(f"nemo_probsft.adapters.{name}.trainer")


def _usable(name: Name, reason: str) -> Engine:
    if problem := _problem(name):
        raise ValueError(f"{name}: {problem}; {KINDS[name].install}")
    kind, version = KINDS[name], _version(name)
    assert version is not None
    if _minor(version) > kind.tested:
        reason += f"; untested with {kind.title} {version}, tested with {_text(kind.tested)}"
    return Engine(name, version, reason)


def _problem(name: Name) -> str | None:
    """Why an engine cannot train here; None if it can."""
    kind, version = KINDS[name], _version(name)
    if version is None:
        return f"{kind.package} is not installed"
    if _minor(version) < kind.oldest:
        return f"{kind.package} {version} is older than {_text(kind.oldest)}, the oldest that can be used"
    if not _has_module(kind.module):
        return f"{kind.package} {version} is installed, but has no {kind.module}"
    return None


def _version(name: Name) -> str | None:
    try:
        return importlib.metadata.version(KINDS[name].package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _has_module(module: str) -> bool:
    """`find_spec` of a nested module would import its parents; that of a first part imports nothing."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    places = (spec.submodule_search_locations or []) if spec else []  # several for `megatron`, a namespace package
    return any(Path(place, *rest, "__init__.py").is_file() for place in places)


def _text(minor: tuple[int, int]) -> str:
    return ".".join(map(str, minor))
