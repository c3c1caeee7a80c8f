"""From files to batches: records, rows, token ids, the order in which a run sees them."""

from nemo_probsft.data.tokens import prompt_ids, token_ids

__all__ = ["prompt_ids", "token_ids"]
