"""The objectives: every one is a function f of the target token's probability p, written in terms of logp = log p.

`forms` has the formulas, `moving` what changes them while a model trains, `keys` the names that both have in recipes.
"""

from nemo_probsft.objectives.forms import Objective
from nemo_probsft.objectives.keys import OBJECTIVE_KEYS, ObjectiveError, parse_objective
from nemo_probsft.objectives.moving import (
    Adaptive,
    AnyObjective,
    GroupMeans,
    Moment,
    RunningMean,
    Scheduled,
    group_means,
    objective_at,
)

__all__ = [
    "OBJECTIVE_KEYS",
    "Adaptive",
    "AnyObjective",
    "GroupMeans",
    "Moment",
    "Objective",
    "ObjectiveError",
    "RunningMean",
    "Scheduled",
    "group_means",
    "objective_at",
    "parse_objective",
]
