"""Hugging Face, NeMo 2 and Megatron-Bridge: models converted bit-exactly, without a GPU or an engine.

`import_hf`, `export_hf` and `verify` load torch when they are first used; importing this package does not.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "export_hf": "conversion.convert",
    "import_hf": "conversion.convert",
    "Report": "conversion.compare",
    "verify": "conversion.compare",
}
__all__ = ["Report", "export_hf", "import_hf", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
