"""A recipe that is already in memory: a mapping or an OmegaConf DictConfig -> the tree that a YAML file gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_probsft.config.strictyaml import MAX_DEPTH, Node, check_text


def tree(source: Any) -> Node:
    """Values -> tree; the place of each is "mapping" or "DictConfig". Raises ValueError for what is not plain data."""
    if type(source).__module__.partition(".")[0] == "omegaconf":  # asked by name: who has none need not install it
        from omegaconf import OmegaConf

        container = OmegaConf.to_container(source, resolve=False)
        return _node(container, type(source).__name__, key="", depth=0)
    if not isinstance(source, Mapping):
        problem = f"a recipe of type {type(source).__name__} cannot be loaded"
        raise ValueError(f"{problem}; give a path, a mapping or an OmegaConf DictConfig")
    return _node(source, "mapping", key="", depth=0)


def _node(value: Any, where: str, key: str, depth: int) -> Node:
    place = f"{where}: {key}" if key else where
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} levels deep; no key is that deep")
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str:
                raise ValueError(f"{place}: key {name!r} is not text; use a plain word")
        children = {name: _node(child, where, f"{key}.{name}".lstrip("."), depth + 1) for name, child in value.items()}
        return Node(children, where)
    if isinstance(value, list | tuple):
        return Node([_node(child, where, f"{key}[{i}]", depth + 1) for i, child in enumerate(value)], where)
    if value is not None and type(value) not in (bool, int, float, str):
        problem = f"a value of type {type(value).__name__} is not plain data"
        raise ValueError(f"{place}: {problem}; use text, a number, true, false, None, a list or a mapping")
    if isinstance(value, str):
        if value == "???" and where == "DictConfig":
            raise ValueError(f"{place}: ??? stands for a missing value; set it, or remove the key")
        check_text(value, place)
    return Node(value, where)
