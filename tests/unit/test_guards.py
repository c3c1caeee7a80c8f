"""What only the loss can say: the objective that it computed, and where log p is no number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nemo_probsft.adapters.megatron import guards
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.objectives import Moment, objective_at, parse_objective
from nemo_probsft.run import audit

KEYS = ("original", "p", "GeneralFamily-10", "OnlyTopLogP-0.2", "OnlyBottomP-0.5", "dft", "UnlikehoodTop-0.3")
MOVING = ("adaptive", "GeneralFamily-0to1", "OnlyTopLogP-0to0.9")


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run.yaml").write_text("recipe: {objective: p}\nseed: 0\n")
    return tmp_path


def meant(key: str, denominator: str = "target") -> ResolvedObjective:
    return ResolvedObjective(parse_objective(key), denominator, key)


def measured(key: str, denominator: str = "target") -> dict:
    objective, moment = parse_objective(key), Moment(0.25, 0.4)
    probes = guards.probe(objective_at(objective, moment), denominator, torch.device("cpu"))
    return guards.measured(objective, moment, denominator, probes)


@pytest.mark.parametrize("denominator", ["target", "kept"])
@pytest.mark.parametrize("key", KEYS + MOVING)
def test_what_the_loss_recorded_is_what_the_recipe_means(run_dir, key, denominator):
    audit.record(run_dir, measured(key, denominator))
    audit.check(run_dir, meant(key, denominator))
    assert "seed: 0" in (run_dir / "run.yaml").read_text()


def test_another_objective_or_denominator_in_the_loss_is_an_error(run_dir):
    with pytest.raises(RuntimeError, match=r"objective_in_use.key is None, but the recipe means p"):
        audit.check(run_dir, meant("p"))
    audit.record(run_dir, measured("original"))
    with pytest.raises(RuntimeError, match=r"objective_in_use.key is original, but the recipe means p; do not use"):
        audit.check(run_dir, meant("p"))
    audit.record(run_dir, measured("OnlyTopP-0.2", "kept"))
    with pytest.raises(RuntimeError, match=r"objective_in_use.denominator is kept"):
        audit.check(run_dir, meant("OnlyTopP-0.2"))
    audit.record(run_dir, measured("original") | {"key": "p"})  # the right name on the wrong loss
    with pytest.raises(RuntimeError, match=r"objective_in_use.probes is"):
        audit.check(run_dir, meant("p"))
    audit.record(run_dir, measured("adaptive") | {"moment": {"fraction": 0.25, "running_p": 0.6}})
    with pytest.raises(RuntimeError, match=r"objective_in_use.probes is"):
        audit.check(run_dir, meant("adaptive"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_sum_is_found(bad):
    good = [1.0, 2.0]
    assert guards.first_not_finite(torch.tensor([good, good])) is None
    assert guards.first_not_finite(torch.tensor([good, good, [bad, 2.0], [bad, bad]])) == 2, "f(p) overflows"
    assert guards.first_not_finite(torch.tensor([good, [1.0, bad]])) == 1, "a threshold drops the token"


def test_log_p_that_is_not_finite_is_described():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 0]])
    nll = torch.tensor([[0.5, 2.0, math.nan], [math.nan, 1.0, math.inf], [9.0, 3.0, 9.0]])
    said = guards.describe(torch.tensor(math.nan), nll, mask, examples=np.array([[41], [7], [12]]))
    assert "of 6 target tokens 2 have a log p that is not finite (1 of them NaN)" in said
    assert "the lowest other log p is -3;" in said
    assert said.endswith("examples of the training set: 7")
    packed = np.array([[41, 41, 8], [7, 9, 12], [5, 5, 5]])
    assert guards.describe(torch.tensor(math.nan), nll, mask, packed).endswith("examples of the training set: 7, 12")
