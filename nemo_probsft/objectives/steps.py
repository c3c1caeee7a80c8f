"""What every objective is at one step of a training: the function f that its tokens take."""

from __future__ import annotations

from nemo_probsft.objectives.forms import Objective
from nemo_probsft.objectives.moving import NUM_BINS, Adaptive, GroupMeans, Moment, Scheduled
from nemo_probsft.objectives.prior import Prior

AnyObjective = Objective | Scheduled | Adaptive | Prior


def objective_at(objective: AnyObjective, moment: Moment) -> Objective:
    """The objective of one step; one that does not move is that of all."""
    return objective if isinstance(objective, Objective) else objective.at(moment)


def group_means(objective: AnyObjective, num_labels: int) -> GroupMeans | None:
    """Before the first step; None for an objective that has no groups."""
    if isinstance(objective, Adaptive) and objective.by is not None:
        return GroupMeans(objective, num_labels if objective.by == "label" else NUM_BINS)
    return None
