"""Variants of the adaptive objective, in plain torch."""
