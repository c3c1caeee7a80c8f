"""What a diagnosis says, from log p alone: intervals, samples, the region, and what an objective would learn from."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_probsft.data import order
from nemo_probsft.diagnose import Follower
from nemo_probsft.diagnosis.measures import (
    by_confidence,
    by_example,
    by_file,
    by_position,
    interval,
    measure,
    percentiles_1_minus_p,
)
from nemo_probsft.diagnosis.region import NUM_BINS, SHORTLISTS, gradient_weights, region_of
from nemo_probsft.diagnosis.targets import Targets, collected
from nemo_probsft.objectives import parse_objective
from nemo_probsft.progress import Progress

TABLE_5 = {
    "strong": {"Llama-3.1-8B": 0.80, "DeepSeekMath-7B": 0.76, "Qwen2.5-Math-1.5B": 0.80, "Qwen2.5-Math-7B": 0.81},
    "intermediate": {"Llama-3.2-3B": 0.50, "Llama-3.1-8B": 0.53, "Qwen2.5-1.5B": 0.56, "Qwen2.5-Math-7B": 0.59},
    "weak": {"Llama-3.2-3B": 0.01, "Llama-3.1-8B": 0.01, "Qwen2.5-1.5B": 0.01, "Qwen2.5-7B": 0.07},
}


@pytest.mark.parametrize("name", TABLE_5)
def test_the_rule_puts_the_papers_pairs_where_the_paper_does(name):
    for mean_p in TABLE_5[name].values():
        found = region_of(mean_p)
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
    drawn = order.sample(sizes, 10, seed=0)
    assert sizes[drawn].sum() >= 10
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, order.sample(sizes, 10, seed=0))
    assert {tuple(order.sample(sizes, 10, seed)) for seed in range(5)} != {tuple(drawn)}
    assert np.array_equal(order.sample(sizes, None, seed=0), np.arange(6))
    assert np.array_equal(order.sample(sizes, 10_000, seed=0), np.arange(6))


def test_gradient_weights_by_hand():
    p, top = np.array([0.05, 0.55, 0.95]), np.array([0.45, 0.55, 0.95])
    by_tenth = ((p + 10 * p.mean()) / 11 - 0.3) / 0.4  # one token in each of three tenths
    weights = {
        "original": 1 - p,
        "p": p * (1 - p),
        "OnlyTopLogP-0.2": (1 - p) * (p >= 0.2),
        "adaptive": p ** ((p.mean() - 0.3) / 0.4) * (1 - p),
        "adaptive-by-label-0.3-0.7-0.9-0.01": p ** np.array([0, 1, 1]) * (1 - p),
        "adaptive-by-confidence": p**by_tenth * (1 - p),
    }
    places = np.arange(3), np.arange(3)
    found = gradient_weights(Targets(np.log(p), *places, np.array([2, 0, 0]), np.log(top)), list(weights))
    for key, weight in weights.items():
        shares = np.array(found[key]["shares"])
        assert len(shares) == NUM_BINS
        assert shares[[0, 5, 9]] == pytest.approx(weight / weight.sum())
        assert np.array(found[key]["decile_shares"])[[0, 3, 6]] == pytest.approx(weight / weight.sum())
        assert found[key]["effective_tokens"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum() / 3)
    certain = Targets(np.zeros(3), *places, np.zeros(3, dtype=np.int64), np.zeros(3))
    sure = gradient_weights(certain, ["original"])["original"]
    assert (sum(sure["shares"]), sure["effective_tokens"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", SHORTLISTS)
def test_a_shortlist_can_be_trained(name):
    assert all(parse_objective(key).key == key for key in SHORTLISTS[name])
    assert "original" in SHORTLISTS[name]


def targets(*answers: list[float], first: int = 3) -> Targets:
    """Examples of one answer each, given by p; every prompt has `first` tokens."""
    lengths = [len(answer) for answer in answers]
    return Targets(
        np.log(np.concatenate(answers)).astype(np.float32),
        np.repeat(np.arange(len(answers)), lengths),
        np.concatenate([first + np.arange(length) for length in lengths]),
        np.zeros(sum(lengths), dtype=np.int64),
        np.log(np.concatenate(answers)).astype(np.float32),
    )


def test_statistics_of_one_example_have_no_interval():
    found = measure(targets([0.9, 0.8]))
    assert found["interval_95"] is None
    assert found["region"]["name"] == "strong"
    assert [entry["objective"] for entry in found["shortlist"]] == list(found["gradient_weight"])
    assert [entry["interval_95"] for entry in found["by_position"]] == [None, None]


def test_by_confidence_by_hand():
    """The model is sure of five tokens and right at three of them; unsure of two, one of them its likeliest."""
    found = targets([0.95, 0.95, 0.01, 0.99, 0.31], [0.05, 0.2])
    top = np.array([0.95, 0.95, 0.97, 0.99, 0.31, 0.91, 0.35])
    low, high = by_confidence(found._replace(top_logp=np.log(top).astype(np.float32)))
    assert (low["low"], low["high"], low["num_tokens"]) == (0.3, 0.4, 2)
    assert (low["likeliest"], high["likeliest"]) == (0.5, 0.6)
    assert (high["low"], high["high"], high["num_tokens"]) == (0.9, 1.0, 5)
    assert high["confidence"] == pytest.approx(np.mean([0.95, 0.95, 0.97, 0.99, 0.91]))
    assert high["mean_p"] == pytest.approx(np.mean([0.95, 0.95, 0.01, 0.99, 0.05]))
    assert high["interval_95"] == pytest.approx(interval(np.array([1, 1, 0, 1, 0]), np.array([0, 0, 0, 0, 1])))
    (certain,) = by_confidence(found._replace(logp=np.zeros(7), top_logp=np.full(7, 1e-6)))  # 1 + the last bit
    assert (certain["low"], certain["likeliest"]) == (0.9, 1.0)


def test_by_file_by_hand():
    """The third file has no target, the fourth was not drawn."""
    found = targets([0.1, 0.2], [0.9], [0.7, 0.4])
    one, two = by_file(found, np.array([0, 1, 1, 2, 3]), ["a", "b", "c", "d"])
    assert (one["file"], one["num_tokens"], one["region"], one["alpha"]) == ("a", 2, "weak", 0.0)
    assert one["mean_p"] == pytest.approx(0.15)
    assert one["interval_95"] is None
    assert (two["file"], two["num_tokens"], two["region"]) == ("b", 3, "intermediate")
    assert two["mean_p"] == pytest.approx(2 / 3)
    assert two["alpha"] == pytest.approx((2 / 3 - 0.3) / 0.4)
    np.testing.assert_allclose(two["interval_95"], interval(found.p[2:], found.example[2:]))


def test_ranks_are_put_in_the_order_of_the_file_and_of_its_texts():
    """Context parallelism gives a rank the two ends of an example and another its middle."""
    shards = [
        {"logp": np.array([-1.0, -4.0, -7.0]), "example": np.array([0, 0, 2]), "position": np.array([3, 6, 1])},
        {"logp": np.array([-5.0, -6.0]), "example": np.array([1, 1]), "position": np.array([4, 5])},
        {"logp": np.array([-2.0, -3.0]), "example": np.array([0, 0]), "position": np.array([4, 5])},
    ]
    for shard in shards:
        shard["label"] = (-10 * shard["logp"]).astype(np.int64)
        shard["top_logp"] = shard["logp"] / 100
    found = collected(shards)
    assert found.logp.tolist() == [-1, -2, -3, -4, -5, -6, -7]
    assert found.example.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert found.position.tolist() == [3, 4, 5, 6, 4, 5, 1]
    assert found.label.tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert found.top_logp.tolist() == [-0.01, -0.02, -0.03, -0.04, -0.05, -0.06, -0.07]
    shards[1]["logp"][0] = np.nan
    with pytest.raises(ValueError, match=r"log p of 1 of 7 targets is not finite; use another checkpoint"):
        collected(shards)


def test_the_place_in_an_answer_starts_anew_with_each_answer():
    """Example 0 has two answers, which 5 and 6 divide; example 1 goes on at the position where it ended."""
    position, example = np.array([3, 4, 7, 8, 9, 10, 11]), np.array([0, 0, 0, 0, 0, 1, 1])
    found = Targets(np.zeros(7), example, position, np.zeros(7), np.zeros(7))
    assert found.place_in_answer().tolist() == [1, 2, 1, 2, 3, 1, 2]


def test_by_position_by_hand():
    random = np.random.default_rng(1)
    answers = [random.uniform(0.01, 1, length).tolist() for length in (3, 40, 11)]
    found = by_position(targets(*answers))
    spans = [(entry["first"], entry["last"]) for entry in found]
    assert spans == [*((i, i) for i in range(1, 9)), (9, 16), (17, 32), (33, 40)]
    for entry in found:
        inside = [p for answer in answers for p in answer[entry["first"] - 1 : entry["last"]]]
        assert entry["num_tokens"] == len(inside)
        assert entry["mean_p"] == pytest.approx(np.mean(inside))
        assert entry["mean_nll"] == pytest.approx(-np.log(inside).mean())
        assert (entry["interval_95"] is None) == (entry["first"] > 16), "only one answer is that long"
    assert sum(entry["num_tokens"] for entry in found) == 54


def test_by_example_takes_the_mean_of_each():
    found = by_example(targets([0.5] * 9, [0.1], [0.5, 0.02]))
    means = -np.log([0.5, 0.1, 0.1])
    assert found["mean_nll_percentiles"]["90"] == pytest.approx(np.percentile(means, 90))
    assert found["mean_nll_histogram"]["counts"][-1] == 2
    assert sum(found["mean_nll_histogram"]["counts"]) == 3


def test_percentiles_near_one_are_resolved():
    """1 - exp(log p) of fp32 numbers is 0 or a multiple of 6e-8."""
    logp = np.full(100, -1e-9, dtype=np.float32)
    assert percentiles_1_minus_p(logp)["50"] == pytest.approx(1e-9, rel=1e-6)
    assert 1 - np.exp(logp[0]) == 0
    p = np.random.default_rng(0).uniform(0.1, 0.9, 101)
    found = percentiles_1_minus_p(np.log(p).astype(np.float32))
    assert all(value == pytest.approx(1 - np.percentile(p, int(q)), rel=1e-5) for q, value in found.items())


def test_the_display_follows_the_slowest_rank_and_pools_p(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nemo_probsft.progress.LOG_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with Progress("diagnose r.yaml", 8, "batches") as progress:
        follow = Follower(progress, tmp_path)
        follow()
        (tmp_path / "0.progress.jsonl").write_text("[1, 5, 1.0]\n[3, 30, 6.0]\n")
        (tmp_path / "1.progress.jsonl").write_text("[2, 10, 4.0]\n[3, 15")  # a line is being written
        follow()
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("diagnose r.yaml: 0 batches of 8")
    assert last.startswith("diagnose r.yaml: 2 batches of 8, ")
    assert last.endswith("s left  mean p 0.2500 of 40 targets")
