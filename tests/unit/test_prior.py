"""`prior`: the base model's mean p of each file, its alphas, and the shared step that takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.data.order import sample, sample_of_each
from nemo_probsft.data.tokens import DataSummary, FileCounts, TokenizedDataset
from nemo_probsft.objectives import FileMeans, Moment, objective_at, parse_objective
from tests.support.waits import Waits

FILES = np.array([0, 0, 1, 1, 1, 2])  # of six examples
KNOWN = [0.1, 0.5, 0.9]  # mean p of each file


def seen(key: str = "prior") -> FileMeans:
    """Every file with two targets around its mean, and junk outside of the mask."""
    means = FileMeans(parse_objective(key), 3)
    for file, mean in enumerate(KNOWN):
        p = torch.tensor([mean - 0.05, mean + 0.05, float("nan")])
        means.see(torch.tensor([file, file, -1]), p.log(), torch.tensor([1, 1, 0]))
    return means


def test_each_file_has_the_alpha_of_its_mean():
    means = seen()
    torch.testing.assert_close(means.alphas, torch.tensor([0.0, 0.5, 1.0]))
    assert means.mean == pytest.approx(np.mean(KNOWN))
    logp = torch.linspace(-6, -0.1, 20).expand(3, 20)
    objective = means.objective_of(torch.tensor([[0], [1], [2]]).expand(3, 20))
    for row, key in enumerate(("original", "GeneralFamily-0.5", "p")):
        alone = parse_objective(key)
        torch.testing.assert_close(objective.value(logp)[row], alone.value(logp[row]))
        torch.testing.assert_close(objective.weight(logp)[row], alone.weight(logp[row]))


def test_its_constants_and_its_threshold_hold_for_every_file():
    torch.testing.assert_close(seen("prior-0.1-0.9").alphas, torch.tensor([0.0, 0.5, 1.0]))
    kept = seen("prior-0.4-0.6@0.2..1").objective_of(torch.tensor([0, 1, 2]))
    assert kept.keep(torch.tensor([0.1, 0.3, 0.1]).log()).tolist() == [False, True, False]


def test_no_order_of_the_tokens_changes_a_bit():
    generator = torch.Generator().manual_seed(0)
    logp, files = -10 * torch.rand(500, generator=generator), torch.randint(3, (500,), generator=generator)
    one, other = (FileMeans(parse_objective("prior"), 3) for _ in range(2))
    one.see(files, logp, torch.ones(500))
    for part in torch.randperm(500, generator=generator).split(70):
        other.see(files[part], logp[part], torch.ones(len(part)))
    assert torch.equal(one.sums, other.sums)


@pytest.mark.parametrize(("mean", "key"), [(0.2, "original"), (0.5, "GeneralFamily-0.5"), (0.9, "p")])
def test_rows_of_no_file_have_the_alpha_of_all_targets(mean, key):
    now, alone = objective_at(parse_objective("prior"), Moment(1.0, mean)), parse_objective(key)
    logp = torch.linspace(-6, -0.1, 20)
    torch.testing.assert_close(now.value(logp), alone.value(logp))


def a_step(examples, files=FILES) -> TrainingStep:
    resolved = ResolvedObjective(parse_objective("prior"), "target", "prior")
    return TrainingStep(resolved, num_steps=9, num_labels=7, examples=examples, files=files)


def test_every_position_has_the_alpha_of_its_example():
    """A row is an example, or packed: then the last position is filled up, and outside of the mask."""
    asked = []
    packed = np.array([[0, 2, 2, 5], [5, 5, 0, -1]])
    for examples, places in ((np.array([[1], [5]]), [[1] * 5, [5] * 5]), (packed, [[0, 2, 2, 5], [5, 5, 0]])):
        step = a_step(lambda number, micro_batch, given=examples: asked.append((number, micro_batch)) or given)
        step.file_means = seen()
        step.begin(4)
        nll = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) + 0.1
        mask = torch.zeros(2, 5)
        expected = torch.zeros((), dtype=torch.float64)
        for row, of in enumerate(places):
            for column, example in enumerate(of):
                mask[row, column] = 1
                key = ("original", "GeneralFamily-0.5", "p")[FILES[example]]
                expected += parse_objective(key).value(-nll[row, column].double())
        for _ in range(2):
            loss_sum, num_tokens = step.loss(nll, torch.zeros(2, 5, dtype=torch.int64), mask)
            assert float(loss_sum) == pytest.approx(float(expected), rel=1e-6)
            assert num_tokens == sum(map(len, places))
    assert asked == [(3, 0), (3, 1)] * 2


def test_a_micro_batch_asks_the_device_nothing():
    step, waits = a_step(lambda *_: np.array([[1], [5]])), Waits()
    step.file_means = seen()
    step.begin(9)
    nll = torch.ones(2, 5, requires_grad=True)
    with waits:
        step.loss(nll, torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5))[0].backward()
    assert not waits.seen
    with waits:
        assert (step.file_means.alphas <= 1).all()
    assert waits.seen, "one that asks would have been seen"


def test_what_the_base_model_knew_is_in_the_state():
    step, other = (a_step(lambda *_: np.array([[0]])) for _ in range(2))
    step.file_means = seen()
    step.running_p.add(step.file_means.mean)
    other.file_means.sums.copy_(torch.full((2, 3), 7.0))
    state = {"total": step.running_p.total, "weight": step.running_p.weight, "by_file": step.file_means.sums.clone()}
    other.load_state(state)
    assert torch.equal(other.file_means.sums, step.file_means.sums)
    assert other.running_p == step.running_p


def test_it_is_refused_where_nobody_knows_the_files():
    for examples, files in ((None, FILES), (lambda *_: None, None)):
        with pytest.raises(ValueError, match="prior needs to know which training file each example comes from; train"):
            a_step(examples, files)


def test_examples_of_each_file_are_drawn_by_themselves():
    num_targets, files = np.full(300, 10), np.repeat([0, 1], [200, 100])
    drawn = sample_of_each(num_targets, files, 500, seed=3)
    assert [int((files[drawn] == file).sum()) for file in (0, 1)] == [50, 50]
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn[:50], sample(num_targets[:200], 500, 3))
    assert np.array_equal(sample_of_each(num_targets, files, 10**6, seed=3), np.arange(300))


def test_examples_know_their_file():
    def dataset(files):
        summary = DataSummary(6, 6, 6, 0, 0, 1, files=files)
        return TokenizedDataset(np.zeros(6), np.ones(6), np.arange(7), np.arange(6), summary)

    assert dataset(()).files().tolist() == [0] * 6
    several = tuple(FileCounts(name, 9, count, count) for name, count in (("a", 2), ("b", 0), ("c", 4)))
    assert dataset(several).files().tolist() == [0, 0, 2, 2, 2, 2]
