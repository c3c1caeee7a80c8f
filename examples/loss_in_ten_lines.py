"""Train a tiny model with f(p) in plain torch: `python examples/loss_in_ten_lines.py [OBJECTIVE]`, for example p."""

import sys

import torch

from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import parse_objective
from nemo_probsft.ops import target_logprob

torch.manual_seed(0)
objective = parse_objective(sys.argv[1] if len(sys.argv) > 1 else "GeneralFamily-0.5")
model = torch.nn.Sequential(torch.nn.Embedding(100, 32), torch.nn.Linear(32, 100))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
tokens = torch.randint(100, (8, 33))
inputs, labels = tokens[:, :-1], tokens[:, 1:].clone()
labels[:, :8] = -100  # the prompt: no loss

for step in range(1, 101):
    logp = target_logprob(model(inputs), labels)  # [8, 32], fp32, 0 where the label is -100
    loss_sum, num_tokens, report = token_loss(objective, logp, labels != -100)
    optimizer.zero_grad()
    (loss_sum / num_tokens).backward()
    optimizer.step()
    if step in (1, 100):
        means = {name: float(total / count) for name, (total, count) in report.items()}
        print(f"step {step}: {objective.key} {means['objective']:.4f}, nll {means['nll']:.4f}, p {means['p']:.4f}")
