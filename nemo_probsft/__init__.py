"""Probability-based fine-tuning objectives for NeMo and Megatron: target log-prob -> f -> masked sum."""

__version__ = "0.1.0"
