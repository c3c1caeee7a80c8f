"""Evaluation of exported models with lm-evaluation-harness on vLLM, graders, statistics and the report."""
