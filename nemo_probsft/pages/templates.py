"""Jinja templates, strict about names; HTML pages extend `base.html.jinja`, which has the CSS that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(path: Path, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """The template at `path`. HTML escapes every text that it is given: texts of the data are nobody's markup."""
    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=path.name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)
