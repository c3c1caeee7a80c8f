"""What a diagnosis says, from log p alone: intervals, samples, the region, and what an objective would learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_probsft import batches
from nemo_probsft.diagnose import collected, diagnose, interval, statistics
from nemo_probsft.objectives import parse_objective
from nemo_probsft.region import NUM_BINS, SHORTLISTS, gradient_weights, region

TABLE_5 = {
    "strong": {"Llama-3.1-8B": 0.80, "DeepSeekMath-7B": 0.76, "Qwen2.5-Math-1.5B": 0.80, "Qwen2.5-Math-7B": 0.81},
    "intermediate": {"Llama-3.2-3B": 0.50, "Llama-3.1-8B": 0.53, "Qwen2.5-1.5B": 0.56, "Qwen2.5-Math-7B": 0.59},
    "weak": {"Llama-3.2-3B": 0.01, "Llama-3.1-8B": 0.01, "Qwen2.5-1.5B": 0.01, "Qwen2.5-7B": 0.07},
}


@pytest.mark.parametrize("name", TABLE_5)
def test_the_rule_puts_the_papers_pairs_where_the_paper_does(name):
    for mean_p in TABLE_5[name].values():
        found = region(mean_p)
        assert found["name"] == name
        assert found["distance"] > 0.08, "none is near a border"


def test_the_interval_takes_an_example_as_one():
    """Against the spread of the mean over data sets drawn anew, whose examples have one p for all of their tokens."""
    random = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        lengths = random.integers(1, 40, 60)
        return np.repeat(random.uniform(size=60), lengths), np.repeat(np.arange(60), lengths)

    means = [draw()[0].mean() for _ in range(4000)]
    widths = [np.diff(interval(*draw()))[0] for _ in range(200)]
    assert np.mean(widths) / 2 == pytest.approx(1.96 * np.std(means), rel=0.1)
    p, example = draw()
    assert np.diff(interval(p, np.arange(len(p))))[0] < 0.5 * np.diff(interval(p, example))[0], "tokens alone mislead"
    assert interval(p[:5], np.zeros(5, dtype=int)) is None


def test_a_sample_is_of_whole_examples_and_depends_on_the_seed_alone():
    sizes = np.array([5, 1, 9, 3, 7, 2])
    drawn = batches.sample(sizes, 10, seed=0)
    assert sizes[drawn].sum() >= 10
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, batches.sample(sizes, 10, seed=0))
    assert {tuple(batches.sample(sizes, 10, seed)) for seed in range(5)} != {tuple(drawn)}
    assert np.array_equal(batches.sample(sizes, None, seed=0), np.arange(6))
    assert np.array_equal(batches.sample(sizes, 10_000, seed=0), np.arange(6))


def test_gradient_weights_by_hand():
    p = np.array([0.05, 0.55, 0.95])
    found = gradient_weights(np.log(p), ["original", "p", "OnlyTopLogP-0.2", "adaptive"], mean_p=0.2)
    weights = {"original": 1 - p, "p": p * (1 - p), "OnlyTopLogP-0.2": (1 - p) * (p >= 0.2), "adaptive": 1 - p}
    for key, weight in weights.items():
        shares = np.array(found[key]["shares"])
        assert len(shares) == NUM_BINS
        assert shares[[0, 5, 9]] == pytest.approx(weight / weight.sum())
        assert found[key]["effective_tokens"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum() / 3)
    sure = gradient_weights(np.zeros(4), ["original"], mean_p=1.0)["original"]
    assert (sum(sure["shares"]), sure["effective_tokens"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", SHORTLISTS)
def test_a_shortlist_can_be_trained(name):
    assert all(parse_objective(key).key == key for key in SHORTLISTS[name])
    assert "original" in SHORTLISTS[name]


def test_statistics_of_one_example_have_no_interval():
    found = statistics(torch.tensor([0.9, 0.8]).log().numpy(), np.zeros(2, dtype=np.int64))
    assert found["interval_95"] is None
    assert found["region"]["name"] == "strong"
    assert [entry["objective"] for entry in found["shortlist"]] == list(found["gradient_weight"])


def test_ranks_are_put_in_the_order_of_the_file():
    shards = [
        {"logp": np.array([-1.0, -2.0, -5.0]), "example": np.array([0, 0, 2])},
        {"logp": np.array([-3.0, -4.0]), "example": np.array([1, 1])},
    ]
    logp, example = collected(shards)
    assert logp.tolist() == [-1, -2, -3, -4, -5]
    assert example.tolist() == [0, 0, 1, 1, 2]
    shards[1]["logp"][0] = np.nan
    with pytest.raises(ValueError, match=r"log p of 1 of 5 targets is not finite; use another checkpoint"):
        collected(shards)


def test_under_a_torchrun_of_the_user_it_says_what_to_do(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=r"run `nemo-probsft diagnose recipes/demo/base\.yaml` without torchrun"):
        diagnose("recipes/demo/base.yaml")
