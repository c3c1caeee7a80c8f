"""One process, float64, transformers, no code of the package: the loss and gradients that every layout must reproduce.

A row is (token ids, targets): targets are the positions of the ids that the loss covers.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

THRESHOLDS = (0.2, 0.5)
LONG = {0, 1, 2, 3, 5}  # rows with many targets
MARGIN = 1e-3  # no target lies so close to a threshold that fp32 could decide otherwise

FORMULAS = {  # key: (f, whether a token is kept), in p
    "original": (lambda p: -p.log(), lambda p: p >= 0),
    "p": (lambda p: 1 - p, lambda p: p >= 0),
    "GeneralFamily-10": (lambda p: (1 - p**10) / 10, lambda p: p >= 0),
    "OnlyTopLogP-0.2": (lambda p: -p.log(), lambda p: p >= 0.2),
    "OnlyBottomP-0.5": (lambda p: 1 - p, lambda p: p <= 0.5),
}


@dataclass
class Row:
    ids: list[int]
    targets: list[int]


class Reference:
    """Weights rounded to `weights`, everything else in `compute`."""

    def __init__(
        self, directory: Path, weights: torch.dtype = torch.float32, compute: torch.dtype = torch.float64
    ) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=weights, attn_implementation="eager")
        # transformers drops what a padding token's embedding gets as an input; SmolLM2 pads with the end of a turn,
        # which every prompt has. Megatron has no such index: the loss's own gradient is what both are held to.
        model.get_input_embeddings().padding_idx = None
        self.model = model.to(compute)

    def probabilities(self, ids: list[int]) -> torch.Tensor:
        """[L - 1] p of ids[1:], each given what stands before it."""
        logits = self.model(torch.tensor([ids[:-1]])).logits[0]
        return torch.softmax(logits.double(), -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    def loss(self, rows: list[Row], key: str, denominator: str) -> torch.Tensor:
        """The paper's Eq. 4 over a global batch."""
        total, targets, kept = self._sums(rows, key)
        return total / (targets if denominator == "target" else kept)

    def mean_of_means(self, groups: list[list[Row]], key: str, denominator: str) -> torch.Tensor:
        """The known mistake: each group (a micro-batch, a rank) divided by its own count, then averaged."""
        losses = []
        for rows in groups:
            total, targets, kept = self._sums(rows, key)
            losses.append(total / max(1, targets if denominator == "target" else kept))
        return torch.stack(losses).mean()

    def attending_across(self, packed: list[list[Row]], key: str, denominator: str) -> torch.Tensor:
        """The mistake of packing: a token attends to the examples before its own in the same row."""
        parts = []
        for rows in packed:
            logits = self.model(torch.tensor([[token for row in rows for token in row.ids[:-1]]])).logits[0]
            labels = torch.tensor([token for row in rows for token in row.ids[1:]])
            starts = itertools.accumulate((len(row.ids) - 1 for row in rows), initial=0)
            at = [start + target - 1 for start, row in zip(starts, rows, strict=False) for target in row.targets]
            parts.append(torch.softmax(logits.double(), -1).gather(1, labels[:, None])[at, 0])
        p = torch.cat(parts)
        f, keep = FORMULAS[key]
        return (f(p) * keep(p)).sum() / (len(p) if denominator == "target" else keep(p).sum())

    def metrics(self, rows: list[Row], key: str, denominator: str) -> dict[str, float]:
        p = torch.cat([self.probabilities(row.ids)[[t - 1 for t in row.targets]] for row in rows if row.targets])
        return {
            "objective": self.loss(rows, key, denominator).item(),
            "nll": -p.log().mean().item(),
            "p": p.mean().item(),
            "kept_fraction": FORMULAS[key][1](p).double().mean().item(),
        }

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    def _sums(self, rows: list[Row], key: str) -> tuple[torch.Tensor, int, int]:
        f, keep = FORMULAS[key]
        total, targets, kept = torch.zeros((), dtype=torch.float64), 0, 0
        for row in rows:
            p = self.probabilities(row.ids)[[t - 1 for t in row.targets]]
            indicator = keep(p)
            total = total + (f(p) * indicator).sum()
            targets, kept = targets + len(p), kept + int(indicator.sum())
        return total, targets, kept


def make_rows(reference: Reference, count: int, vocab_size: int, seed: int) -> list[Row]:
    """Sequences of 4 to 40 ids, about half of them what the model itself says is likeliest; 1 to 36 targets a row."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    rows = []
    with torch.no_grad():
        for i in range(count):
            length = draw(30, 41) if i in LONG else draw(4, 14)
            ids = [draw(2, vocab_size)]
            while len(ids) < length:
                likeliest = int(reference.model(torch.tensor([ids])).logits[0, -1, :vocab_size].argmax())
                ids.append(likeliest if draw(0, 2) else draw(2, vocab_size))
            first = draw(1, 5) if i in LONG else draw(length - 4, length)
            rows.append(Row(ids, _clear(reference, ids, max(1, first))))
    return rows


def without_kept(reference: Reference, row: Row, key: str) -> Row:
    """The same row with only those targets that the objective's threshold drops."""
    dropped = ~FORMULAS[key][1](reference.probabilities(row.ids))
    return Row(row.ids, [target for target in _clear(reference, row.ids, 1) if dropped[target - 1]])


def _clear(reference: Reference, ids: list[int], first: int) -> list[int]:
    p = reference.probabilities(ids)
    return [t for t in range(first, len(ids)) if all(abs(p[t - 1].item() - q) > MARGIN for q in THRESHOLDS)]
