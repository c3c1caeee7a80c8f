"""From files to batches: records, rows, token ids, the order in which a run sees them."""
