"""Rows of training data for scripts of your own: `token_ids(tokenizer, parse_row(record, where))`."""

from nemo_probsft.data.rows import Row, parse_row, read_rows

__all__ = ["Row", "parse_row", "read_rows"]
