"""A run directory: what is checked and prepared before ranks start, the ranks, and what they leave behind."""
