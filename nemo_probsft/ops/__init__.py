"""Autograd ops on vocabulary-sharded logits. Process groups are arguments; no framework is known here."""

from nemo_probsft.ops.logprob import target_logprob

__all__ = ["target_logprob"]
