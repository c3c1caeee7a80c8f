"""An objective that moves, in a loop in plain torch: a recipe's, or a candidate for one."""

from __future__ import annotations

import torch

from experiments.real.candidates import CANDIDATES, NUM_SOURCES, ByGap, Now, OfBase, State, Threshold
from nemo_probsft.objectives import (
    Adaptive,
    FileMeans,
    Moment,
    Objective,
    Prior,
    RunningMean,
    group_means,
    objective_at,
    parse_objective,
)


class Recipe:
    """That of a recipe's key; `fraction` of the run: 0 at the first step, 1 at the last."""

    def __init__(self, key: str, num_labels: int, device: torch.device | str) -> None:
        self.of = parse_objective(key)
        self.running_p = RunningMean(self.of.decay) if isinstance(self.of, Adaptive) else RunningMean()
        self.group_means = group_means(self.of, num_labels)
        if self.group_means is not None:
            self.group_means.to(device)
        self.file_means = FileMeans(self.of, NUM_SOURCES) if isinstance(self.of, Prior) else None

    @property
    def wants_base(self) -> bool:
        return self.file_means is not None

    def know(self, base: Now) -> None:
        """Targets of the training rows under the base model, before the first step."""
        assert self.file_means is not None
        self.file_means.to(base.logp.device)
        self.file_means.see(base.source, base.logp, torch.ones_like(base.labels))

    def now(self, now: Now, fraction: float) -> Objective:
        if self.file_means is not None:
            return self.file_means.objective_of(now.source)
        if self.group_means is not None:
            return self.group_means.objective_of(self.group_means.groups(now.labels, now.top), self.running_p.value)
        return objective_at(self.of, Moment(fraction, self.running_p.value))

    def see(self, now: Now) -> None:
        """After `now`."""
        if isinstance(self.of, Adaptive):
            self.running_p.add(float(now.logp.exp().mean()))
        if self.group_means is not None:
            groups = self.group_means.groups(now.labels, now.top)
            self.group_means.see(groups, now.logp, torch.ones_like(now.labels))
            self.group_means.end_step()


class Candidate:
    """(1 - p^a)/a with the alpha that a state gives each token."""

    def __init__(self, state: State | ByGap | Threshold) -> None:
        self.state = state

    @property
    def wants_base(self) -> bool:
        return isinstance(self.state, OfBase)

    def know(self, base: Now) -> None:
        assert isinstance(self.state, OfBase)
        self.state.know(base)

    def now(self, now: Now, fraction: float) -> Objective:
        return Objective("power", self.state.alpha(now))

    def see(self, now: Now) -> None:
        self.state.see(now)


Moving = Recipe | Candidate


def moving(key: str, num_labels: int, device: torch.device | str) -> Moving:
    """Before the first step. Raises: ValueError for a key of neither kind."""
    return Candidate(CANDIDATES[key].start()) if key in CANDIDATES else Recipe(key, num_labels, device)
