"""The objective in a training loop, as far as no framework owns it. NeMo's reduction and Bridge's functor call it.

A step is `begin`, `loss` once a micro-batch, `reduce` on the last pipeline stage, `end`. Process groups are arguments.
What a step computes stays on the device until `reduce` reads all of it at once; nothing else waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from nemo_probsft.adapters.megatron import guards
from nemo_probsft.adapters.megatron.rows import HeadRows
from nemo_probsft.adapters.megatron.statistics import STATISTICS_LENGTH, add_counts, add_weights, sum_of, summarise
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.loss import REPORT, token_loss
from nemo_probsft.objectives import (
    Adaptive,
    FileMeans,
    Moment,
    Objective,
    Prior,
    RunningMean,
    group_means,
    objective_at,
)
from nemo_probsft.ops import HeadReport

Group = torch.distributed.ProcessGroup


class MicroBatch(NamedTuple):
    """What a step keeps of a micro-batch until it is over."""

    sums: torch.Tensor  # fp32 [2 names]: sum and count of each of the step's `names`
    nll: torch.Tensor  # [b, s] fp32
    groups: torch.Tensor | None  # [b, s] int64, of an objective that has some
    loss_mask: torch.Tensor  # [b, s]


class TrainingStep:
    """Holds what an objective needs to know of training: where it stands, and the means of p, running or the base's.

    num_labels: the size of the vocabulary, without padding. log_every: every how many steps metrics are wanted, besides
    the last one's; the other steps compute only what the objective and the guard need. examples(step, micro_batch),
    both counted from 0: which one of the training set each position of this rank's micro-batch belongs to, int64 [b, 1]
    where a row is an example, or [b, s]; `prior` needs it, the others only to name examples in an error. files: of each
    example of the training set, int64 [num_examples], which file it comes from; for `prior`.

    Raises ValueError for `prior` without both.
    """

    def __init__(
        self,
        resolved: ResolvedObjective,
        *,
        num_steps: int,
        num_labels: int,
        log_every: int = 1,
        examples: Callable[[int, int], np.ndarray] | None = None,
        files: np.ndarray | None = None,
    ) -> None:
        self.objective, self.denominator = resolved.objective, resolved.denominator
        self.num_steps, self.log_every, self.examples = num_steps, log_every, examples
        self.running_p = RunningMean(self.objective.decay) if isinstance(self.objective, Adaptive) else RunningMean()
        self.group_means = group_means(self.objective, num_labels)
        self.files, self.file_means = files, None
        if isinstance(self.objective, Prior):
            if files is None or examples is None:
                problem = "needs to know which training file each example comes from; train with `nemo-probsft train`"
                raise ValueError(f"objective {self.objective.key} {problem}, or take GeneralFamily-a")
            self.file_means = FileMeans(self.objective, 1 + int(files.max()))
        self.head = HeadReport()  # the head hook adds to it; see `hook.install_target_logprob`
        self.head_rows = HeadRows(  # and takes from this what it needs to know
            find_zeros=self.objective.has_threshold,
            wants_top=self.group_means is not None and self.group_means.by_confidence,
        )
        self.number = 0  # of the step being trained, from 1
        self.micro_batches: list[MicroBatch] = []  # seen in this step
        self.statistics = torch.zeros(STATISTICS_LENGTH)  # the last step's sums over the global batch
        self.values = self.statistics.double()  # the same, on the host
        self.mean_alpha = 0.0
        self.probes: torch.Tensor | None = None  # in the first step of this start, and in the last, until it is read
        self.probed: tuple[Moment, torch.Tensor] | None = None  # when, and what was read

    def to(self, device: torch.device | str | int) -> None:
        """Move what the loss reads, once the device is known."""
        for means in (self.group_means, self.file_means):
            if means is not None:
                means.to(device)

    def begin(self, number: int) -> None:
        """Before the first micro-batch of step `number`, from 1."""
        self.number, self.micro_batches = number, []
        vars(self.head).update(vars(HeadReport()))
        if number == self.num_steps:
            self.probed = None

    def loss(
        self, nll: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Megatron's (loss_sum, num_tokens int32) of a micro-batch; nll fp32, labels int64, loss_mask, all [b, s]."""
        groups = self.groups(labels)
        objective = self.now(groups) if self.file_means is None else self._of_files(labels)
        loss_sum, num_tokens, report = token_loss(objective, -nll, loss_mask, self.denominator, self.names)
        self.micro_batches.append(MicroBatch(torch.cat([*report.values()]), nll.detach(), groups, loss_mask))
        if self.probed is None and self.probes is None:
            self.probes = guards.probe(objective_at(self.objective, self.moment), self.denominator, nll.device)
        return loss_sum, num_tokens

    @property
    def logs(self) -> bool:
        """Whether somebody wants the metrics of this step."""
        return self.number % self.log_every == 0 or self.number == self.num_steps

    @property
    def names(self) -> tuple[str, ...]:
        """Those of REPORT that this step needs, in its order: the guard the first two, an adaptive objective p."""
        return REPORT if self.logs else REPORT[:3] if isinstance(self.objective, Adaptive) else REPORT[:2]

    @property
    def pairs(self) -> dict[str, torch.Tensor]:
        """[sum, count] of each of `names` in the last micro-batch: what an engine may sum, and divide once."""
        return dict(zip(self.names, self.micro_batches[-1].sums.view(-1, 2), strict=True))

    def reduce(self, group: Group | None) -> None:
        """After the last micro-batch, and before the gradients are those of all ranks: nothing may be trained before.

        One all-reduce over the data and context parallel ranks of `group`, and one transfer to the host.
        Raises FloatingPointError, which names step, rank, micro-batch and examples, where log p is no number.
        """
        self.statistics = sum_of([micro_batch.sums for micro_batch in self.micro_batches])
        if self.logs:
            add_counts(self.statistics, self._all("nll"), self._all("loss_mask"))
            add_weights(self.statistics, self.head)
        if self.group_means is None:
            torch.distributed.all_reduce(self.statistics, group=group)
        else:
            self.group_means.see(self._all("groups"), -self._all("nll"), self._all("loss_mask"))
            of_groups = self.group_means.step
            both = torch.cat([self.statistics.double(), of_groups.flatten()])
            torch.distributed.all_reduce(both, group=group)
            self.statistics = both[:STATISTICS_LENGTH].float()
            of_groups.copy_(both[STATISTICS_LENGTH:].view_as(of_groups))
        self._read()

    def _all(self, name: str) -> torch.Tensor:
        """A field of every micro-batch, [tokens]."""
        return torch.cat([getattr(micro_batch, name).flatten() for micro_batch in self.micro_batches])

    def _read(self) -> None:
        """Bring to the host, at once, what it needs of the step."""
        parts = {"statistics": self.statistics, "guarded": self._guarded().flatten()}
        if self.group_means is not None:
            parts["alpha"] = self.group_means.mean_alpha(self.running_p.value)[None]
        if self.probes is not None:
            parts["probes"] = self.probes.flatten()
        read = torch.cat([part.double() for part in parts.values()]).cpu()
        host = dict(zip(parts, read.split([len(part) for part in parts.values()]), strict=True))
        self.values = host["statistics"]
        if "alpha" in host:
            self.mean_alpha = float(host["alpha"])
        if "probes" in host:
            self.probes, self.probed = None, (self.moment, host["probes"].view(-1, 3))
        self._refuse_what_is_no_number(host["guarded"].view(-1, 2))

    def check(self) -> None:
        """Raise what `reduce` would, without it: for who must know before the last backward pass. Waits once more."""
        self._refuse_what_is_no_number(self._guarded().cpu())

    def _guarded(self) -> torch.Tensor:
        """[n, 2] sums of f(p) and of -log p of this rank's micro-batches."""
        return torch.stack([micro_batch.sums[0:3:2] for micro_batch in self.micro_batches])

    def _refuse_what_is_no_number(self, sums: torch.Tensor) -> None:
        index = guards.first_not_finite(sums)
        if index is None:
            return
        _, nll, _, loss_mask = self.micro_batches[index]
        examples = np.array([[f"row {i} of the micro-batch"] for i in range(len(nll))])
        if self.examples is not None:
            examples = self.examples(self.number - 1, index)
        place = f"step {self.number}, rank {torch.distributed.get_rank()}, micro-batch {index + 1}"
        said = guards.describe(self.micro_batches[index].sums[0], nll, loss_mask, examples)
        raise FloatingPointError(f"{place}: {said}")

    @property
    def mean(self) -> torch.Tensor:
        """The step's mean objective, fp32 [], after `reduce`."""
        return self.statistics[0] / self.statistics[1].clamp(min=1)

    def end(self) -> None:
        """After `reduce`, and after whoever wants to look at the micro-batches."""
        self.micro_batches = []
        if isinstance(self.objective, Adaptive):
            total, count = self.values[2 * REPORT.index("p") :][:2].tolist()
            if count:
                self.running_p.add(total / count)
        if self.group_means is not None:
            self.group_means.end_step()

    @property
    def moment(self) -> Moment:
        return Moment((self.number - 1) / max(1, self.num_steps - 1), self.running_p.value)

    def groups(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Those of the micro-batch that went through the model last, [b, s] int64; once, after its forward pass."""
        if self.group_means is None:
            return None
        return self.group_means.groups(labels, self.head_rows.take_top())

    def held_out(self, labels: torch.Tensor) -> Objective:
        """Of a micro-batch of rows that are not trained on, after its forward pass; of no training file."""
        return self.now(self.groups(labels))

    def _of_files(self, labels: torch.Tensor) -> Objective:
        """Of the training micro-batch that comes next."""
        assert self.file_means is not None
        assert self.examples is not None
        assert self.files is not None
        examples = self.examples(self.number - 1, len(self.micro_batches))
        files = torch.from_numpy(self.files[examples])
        if files.shape[1] > 1:  # rows that are packed, without what they are filled up with
            files = torch.nn.functional.pad(files, (0, labels.shape[1] - files.shape[1]))
        if labels.is_cuda:
            files = files.pin_memory()
        return self.file_means.objective_of(files.to(labels.device, non_blocking=True).expand(labels.shape))

    def know(self, group: Group | None) -> None:
        """After the base model has gone through the training files, on the last pipeline stage: sum over the ranks."""
        assert self.file_means is not None
        torch.distributed.all_reduce(self.file_means.sums, group=group)
        self.running_p = RunningMean()
        self.running_p.add(self.file_means.mean)

    def now(self, groups: torch.Tensor | None) -> Objective:
        """The objective of this step for tokens of these groups, [b, s]."""
        if self.group_means is None:
            return objective_at(self.objective, self.moment)
        assert groups is not None
        return self.group_means.objective_of(groups, self.running_p.value)

    def metrics(self) -> dict[str, float]:
        """What metrics.jsonl says of this step, after `reduce` and before `end`."""
        assert self.logs, f"nobody wanted the metrics of step {self.number}"
        return summarise(self.values) | self.moving

    @property
    def measured(self) -> dict[str, Any]:
        """For `run.audit`, after `reduce`: what the loss computed, of which objective."""
        assert self.probed is not None
        moment, probes = self.probed
        return guards.measured(self.objective, moment, self.denominator, probes)

    @property
    def moving(self) -> dict[str, float]:
        """What moves, and where it is in this step."""
        if isinstance(self.objective, Objective):
            return {}
        moving = self.objective.moving(self.moment)
        if self.group_means is not None:
            moving["alpha"] = self.mean_alpha
        return moving

    def state(self, pipeline_group: Group | None, last_stage: int, device: torch.device | str | int) -> dict[str, Any]:
        """The means, for a checkpoint. Every rank calls it; last_stage: global rank of the last pipeline stage.

        Only the last stage has them, from the statistics that are reduced anyway. The others learn them here, because
        the common part of a checkpoint comes from rank 0, which may be of the first stage.
        """
        mean = self.running_p
        state = torch.tensor([mean.total, mean.weight], dtype=torch.float64, device=device)
        torch.distributed.broadcast(state, src=last_stage, group=pipeline_group)
        mean.total, mean.weight = state.tolist()
        saved: dict[str, Any] = {"total": mean.total, "weight": mean.weight}
        for name, sums in self._sums.items():
            torch.distributed.broadcast(sums, src=last_stage, group=pipeline_group)
            saved[name] = sums.clone().cpu()
        return saved

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.running_p.total, self.running_p.weight = state["total"], state["weight"]
        for name, sums in self._sums.items():
            sums.copy_(state[name])

    @property
    def _sums(self) -> dict[str, torch.Tensor]:
        """By their names in a checkpoint."""
        if self.group_means is not None:
            return {f"by_{self.group_means.objective.by}": self.group_means.sums}
        return {} if self.file_means is None else {"by_file": self.file_means.sums}
