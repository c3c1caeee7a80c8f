"""The objectives: every one is a function f of the target token's probability p, written in terms of logp = log p.

`forms` has the formulas, `moving` what changes them while a model trains, `prior` what the base model decides, `steps`
what each is at one step, `keys` the names that all have in recipes.
"""

from nemo_probsft.objectives.forms import Objective
from nemo_probsft.objectives.keys import OBJECTIVE_KEYS, ObjectiveError, parse_objective
from nemo_probsft.objectives.moving import Adaptive, GroupMeans, Moment, RunningMean, Scheduled
from nemo_probsft.objectives.prior import ENOUGH_TOKENS, FileMeans, Prior
from nemo_probsft.objectives.steps import AnyObjective, group_means, objective_at

__all__ = [
    "ENOUGH_TOKENS",
    "OBJECTIVE_KEYS",
    "Adaptive",
    "AnyObjective",
    "FileMeans",
    "GroupMeans",
    "Moment",
    "Objective",
    "ObjectiveError",
    "Prior",
    "RunningMean",
    "Scheduled",
    "group_means",
    "objective_at",
    "parse_objective",
]
