"""Autograd ops on vocabulary-sharded logits. Process groups are arguments; no framework is known here."""

from nemo_probsft.ops.lm_head import HeadReport, lm_head_logprob
from nemo_probsft.ops.logprob import target_logprob

__all__ = ["HeadReport", "lm_head_logprob", "target_logprob"]
