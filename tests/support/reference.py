"""The truth that tests compare against: float64, dense, imports torch only, shares no code with the package.

Every function takes the same rounded inputs as the code under test and returns float64.
"""

import torch

IGNORE = -100


def target_logprob(logits, labels, vocab_size=None):
    """log softmax(logits)[label] over the first vocab_size columns; 0 where the label is IGNORE."""
    real = logits.double()[..., :vocab_size]
    picked = torch.log_softmax(real, -1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels == IGNORE, 0.0, picked)


def top_logprob(logits, labels, vocab_size=None):
    """The largest of log softmax(logits) over the first vocab_size columns; 0 where the label is IGNORE."""
    return torch.where(labels == IGNORE, 0.0, torch.log_softmax(logits.double()[..., :vocab_size], -1).amax(-1))


def logprob_and_grad(logits, labels, dlogp, vocab_size=None):
    """(logp, dlogits) for an upstream gradient dlogp of the labels' shape."""
    leaf = logits.detach().double().requires_grad_()
    logp = target_logprob(leaf, labels, vocab_size)
    (dlogits,) = torch.autograd.grad(logp, leaf, dlogp.double())
    return logp.detach(), dlogits


def head_and_grad(hidden, weight, labels, dlogp, vocab_size=None):
    """(logp, dhidden, dweight) of logits = hidden @ weight.T; hidden [..., H], weight [V, H]."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logp = target_logprob(hidden @ weight.t(), labels, vocab_size)
    return logp.detach(), *torch.autograd.grad(logp, (hidden, weight), dlogp.double())


# f(p) as printed in the papers, in p itself; detached factors are detached.
FORMULAS = {
    "original": lambda p: -p.log(),
    "logp": lambda p: -p.log(),
    "p": lambda p: 1 - p,
    "GeneralFamily-10": lambda p: (1 - p**10) / 10,
    "GeneralFamily-0.5": lambda p: (1 - p**0.5) / 0.5,
    "GeneralFamily--1": lambda p: (1 - p**-1) / -1,
    "GeneralFamily--0.25": lambda p: (1 - p**-0.25) / -0.25,
    "convexity-3": lambda p: -(p**3) / 3,
    "convexity-0.1": lambda p: -(p**0.1) / 0.1,
    "Unlikehood": lambda p: torch.log(1 - p + 1e-3),
    "dft": lambda p: -p.detach() * p.log(),
    "focal-2": lambda p: -((1 - p) ** 2) * p.log(),
    "focal-0.5": lambda p: -((1 - p) ** 0.5) * p.log(),
    "trsft-0.1": lambda p: torch.where(p >= 0.1, -p.log(), -torch.tensor(0.1).double().log() + 1 - p / 0.1),
    "chord": lambda p: -(p * (1 - p)).detach() * p.log(),
}


def value_and_weight(key, logp):
    """(f(p), -p f'(p)) for a key of FORMULAS."""
    leaf = logp.detach().double().requires_grad_()
    value = FORMULAS[key](leaf.exp())
    (dlogp,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), -dlogp
