"""diagnose.html: a diagnosis as one page that needs no other file."""

from __future__ import annotations

import unicodedata
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemo_probsft.diagnosis import figures
from nemo_probsft.diagnosis.measures import CONFIDENT
from nemo_probsft.pages.templates import load_template

TEMPLATE = Path(__file__).with_name("page.html.jinja")
SHOWN_SYMBOLS = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}


def render(result: Mapping[str, Any]) -> str:
    """The page of what diagnose.json holds."""
    images = {name: b64encode(svg).decode() for name, svg in figures.draw(result).items()}
    row = "line" if result["data"].endswith(".jsonl") else "row"
    return load_template(TEMPLATE, FILTERS).render(
        result, images=images, row_heading=row, confident=CONFIDENT, above=f"fraction_above_{CONFIDENT}", all=result
    )


def interval_text(interval_95: list[float] | None) -> str:
    return "(one example: no interval)" if interval_95 is None else "[{:.4f}, {:.4f}]".format(*interval_95)


def probability_text(p: float) -> str:
    """p in 4 digits; below a ten-thousandth as a power."""
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.1e}"


def visible(text: str) -> str:
    """White space other than the blank as a symbol, and what is not printed (controls, directions) as its number."""
    return "".join(SHOWN_SYMBOLS.get(c) or (c if _is_printed(c) else f"\\u{ord(c):04x}") for c in text)


def _is_printed(character: str) -> bool:
    return unicodedata.category(character)[0] != "C"


FILTERS: dict[str, Callable[..., Any]] = {
    "interval": interval_text,
    "number": "{:,}".format,
    "percent": lambda value: f"{100 * value:.1f} %",
    "probability": probability_text,
    "visible": visible,
}
