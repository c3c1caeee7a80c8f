"""From files to batches: records, rows, token ids, the order in which a run sees them."""

from typing import Any

__all__ = ["prompt_ids", "token_ids"]


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: the evaluation's environment reads records without NumPy and transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nemo_probsft.data import spans

    return getattr(spans, name)
