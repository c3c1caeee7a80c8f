"""docs/real-continuum.md: its figures from the cells, its choices from validation, its verdicts from intervals."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evaluation.statistics import RESAMPLES
from experiments.real import page, shortfalls, tables
from experiments.real.claims import CLAIMS, judge
from experiments.real.figures import gains_over_base
from experiments.real.goals import averages, on_average, shortlisted, unchosen
from experiments.real.plan import SEEDS
from experiments.real.scores import FIXED, Results, difference, is_adaptive, item_values

ROOT = Path(__file__).parents[2]
ITEMS = 60
MEASURED = {
    "labels": {"targets": 9876, "distinct": 4321, "seen_once": 1728, "seen_10": 864},
    "last_alpha": 0.75,
    "last_alpha_spread": 0.125001,
}


def answers(mean, rng, num_items=ITEMS):
    """Probabilities of the right answers around `mean`; greedily right where it is the likely answer."""
    sampled = np.clip(mean + 0.1 * rng.standard_normal(num_items), 0, 1)
    return {"sampled": sampled.round(6).tolist(), "greedy": "".join(str(int(p > 0.5)) for p in sampled)}


def solutions(mean_p, rng, num_items=ITEMS, nll=None):
    """Long ones are less likely, so that a mean over items is not one over tokens."""
    tokens = rng.integers(20, 300, num_items)
    p = np.clip(mean_p - (tokens - 160) / 3000 + 0.05 * rng.standard_normal(num_items), 0.01, 0.99)
    nll = -np.log(p) if nll is None else np.full(num_items, nll)
    return {"nll": (tokens * nll).tolist(), "p": (tokens * p).tolist(), "tokens": tokens.tolist()}


def cell(task, objective, test, *, validation=None, lr=1e-4, seed=0, **more):
    """test, validation: mean scores; drawn anew for every cell, but the same whenever they are asked for."""
    score = solutions if task in ("math", "humaneval") else answers
    rng = np.random.default_rng([seed, round(1e7 * lr), *f"{task} {objective}".encode()])
    means = {"test": test, "validation": test if validation is None else validation}
    return {
        "task": task, "objective": objective, "lr": lr, "seed": seed, "steps": 120, "batch": 32, "device": "CPU",
        "versions": {"torch": "2.13.0", "git": "abc"}, "date": "2026-11-28",
    } | {part: score(mean, rng) for part, mean in means.items()} | more  # fmt: skip


def base(task, mean):
    return cell(task, "base", mean, lr=0)


def diagnosis(task, mean_p, shortlist=("original", "p")):
    region = "weak" if mean_p < 0.285 else "strong" if mean_p > 0.675 else "intermediate"
    return {"task": task, "mean_p": mean_p, "interval_95": [mean_p - 0.01, mean_p + 0.01], "region": region} | {
        "shortlist": list(shortlist)
    }


def results(cells, diagnoses=()):
    return Results(cells, {of["task"]: of for of in diagnoses})


def over_seeds(task, objective, mean, **more):
    return [cell(task, objective, mean, seed=seed, **more) for seed in SEEDS]


def written(tmp_path, cells, diagnoses=()):
    docs = tmp_path / "real"
    docs.mkdir()
    for name, lines in (("cells", cells), ("tasks", diagnoses)):
        (docs / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return page.write(docs).read_text()


def a_grid():
    """Some tasks and objectives of each kind: three learning rates with seed 0, one of them with three seeds."""
    cells, diagnoses = [], []
    for number, task in enumerate(("caesar", "math", "mixture", "known_noisy", "a_task_of_your_own")):
        cells.append(base(task, 0.3))
        diagnoses.append(diagnosis(task, 0.05 + 0.1 * number))
        for place, key in enumerate(("original", "p", "adaptive", "adaptive-by-label", "by-context")):
            for lr in (3e-5, 1e-4, 3e-4):
                of_seeds = SEEDS if lr == 1e-4 else SEEDS[:1]
                more = MEASURED if (number, key) == (0, "adaptive-by-label") else {}
                cells += [cell(task, key, 0.3 + 0.05 * place + 1e3 * lr, lr=lr, seed=seed, **more) for seed in of_seeds]
    return cells, diagnoses


def test_a_mean_per_token_has_the_interval_of_the_ratio():
    """Against a bootstrap of the ratio itself: items are drawn with their sums and their numbers of tokens."""
    found = solutions(0.5, np.random.default_rng(1))
    sums, tokens = np.array(found["p"]), np.array(found["tokens"])
    of = results([cell("math", "p", 0.5) | {"test": found, "validation": found}]).chosen("math", "p").estimate("p")
    drawn = np.random.default_rng(2).integers(ITEMS, size=(RESAMPLES, ITEMS))
    low, high = np.quantile(sums[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), [0.025, 0.975])
    assert of.mean == pytest.approx(sums.sum() / tokens.sum(), abs=1e-12)
    # The two differ by their draws, 2 % of the width, and by the second order of the ratio, which is smaller.
    assert (of.low, of.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert abs((sums / tokens).mean() - of.mean) > 0.005  # the known mistake: every item the same weight
    fixed_length = np.quantile(sums[drawn].mean(axis=1) / tokens.mean(), [0.025, 0.975])
    assert np.ptp(fixed_length) > 2 * (high - low)  # and: as if the number of tokens did not vary


def test_the_table_has_the_interval_over_items_and_seeds(tmp_path):
    cells = over_seeds("caesar", "p", 0.6)
    text = written(tmp_path, [base("caesar", 0.2), *cells])
    line = next(line for line in text.splitlines() if line.startswith("| `p` |"))
    shown, _, seeds = line.split("|")[2].strip().partition("<br>")
    mean, low, high = (
        float(x) for x in shown.replace("*", "").replace("[", "").replace("]", "").split(", ") for x in x.split()
    )
    values = np.array([of["test"]["sampled"] for of in cells])
    rng = np.random.default_rng(3)
    means = [values[rng.integers(3, size=3)][:, rng.integers(ITEMS, size=ITEMS)].mean() for _ in range(RESAMPLES)]
    assert seeds == "1e-4, 3 seeds"
    assert mean == pytest.approx(100 * values.mean(), abs=0.051)
    # One digit is shown; the two bootstraps differ by 2 % of the width.
    own = 100 * np.quantile(means, [0.025, 0.975])
    assert (low, high) == pytest.approx(own, abs=0.051 + 0.04 * np.ptp(own))


def test_validation_chooses_the_learning_rate_and_test_items_do_not():
    rising = [
        cell("caesar", "p", 0.9 - 0.2 * n, validation=0.3 + 0.2 * n, lr=lr) for n, lr in enumerate((3e-5, 1e-4, 3e-4))
    ]
    assert results(rising).chosen("caesar", "p").lr == 3e-4
    same = [of | {"validation": rising[0]["validation"]} for of in rising]
    assert results(same).chosen("caesar", "p").lr == 3e-5  # of equal ones the smallest
    assert results(list(reversed(same))).chosen("caesar", "p").lr == 3e-5
    one_more = [*rising, cell("caesar", "p", 0.5, validation=0.0, lr=3e-4, seed=1)]
    assert results(one_more).chosen("caesar", "p").lr == 3e-4  # by the seed that all of them have
    solved = [cell("math", "p", mean, lr=lr) for mean, lr in ((0.5, 1e-4), (0.6, 3e-4))]
    swapped = [of | {"validation": of["validation"] | {"nll": other["validation"]["nll"]}}
               for of, other in zip(solved, reversed(solved), strict=True)]  # fmt: skip
    chosen = [results(of).chosen("math", "p").lr for of in (solved, swapped)]
    assert chosen == [3e-4, 1e-4]  # by -log p, not by p


def test_what_choosing_is_worth_is_measured_with_the_seeds_of_both_rates():
    cells = [*over_seeds("caesar", "p", 0.3, lr=1e-4), cell("caesar", "p", 0.9, lr=3e-4)]
    found = results([*cells, cell("caesar", "original", 0.5, lr=1e-4), cell("caesar", "original", 0.4, lr=3e-4)])
    text = tables.effect_of_choice(found, 1e-4)
    gain = 100 * (np.mean(cells[3]["test"]["sampled"]) - np.mean(cells[0]["test"]["sampled"]))
    assert f"for 1 of 2 pairs of task and objective. Over all pairs, choosing is worth {gain / 2:+.1f} points" in text
    assert f"{gain:+.1f} points, for `p` on `caesar`" in text
    assert "differs on `caesar` (`original` at 1e-4, `p` at the chosen ones)" in text


@pytest.mark.parametrize(("of_p", "verdict"), [(0.8, "holds"), (0.2, "does NOT hold"), (0.5, "is not decided")])
def test_a_claim_follows_its_interval(of_p, verdict):
    cells = [*over_seeds("known_noisy", "original", 0.5), *over_seeds("known_noisy", "p", of_p)]
    found = next(of for of in judge(results(cells)) if of.number == 1)
    assert found.verdict == verdict
    means = [np.mean([of["test"]["sampled"] for of in cells if of["objective"] == key]) for key in ("p", "original")]
    assert found.found.mean == pytest.approx(means[0] - means[1], abs=1e-9)


@pytest.mark.parametrize(("of_p", "verdict"), [(0.5, "holds"), (0.6, "does NOT hold"), (0.4, "does NOT hold")])
def test_a_margin_is_met_by_the_whole_interval(of_p, verdict):
    cells = [*over_seeds("math", "original", 0.5), *over_seeds("math", "p", of_p)]
    assert next(of for of in judge(results(cells)) if of.claim.within == 0.02).verdict == verdict
    few = [of | {"test": solutions(of_p, np.random.default_rng(of["seed"]), num_items=4)} for of in cells]
    original, p = few[0], few[3] | {"test": solutions(of_p + 0.02, np.random.default_rng(9), num_items=4)}
    assert next(of for of in judge(results([original, p])) if of.claim.within == 0.02).verdict == "is not decided"


def test_many_claims_ask_for_smaller_p_values():
    """One that would hold alone is not decided among others, whose own p-values do not make up for it."""
    rng = np.random.default_rng(4)
    original = rng.random(ITEMS)
    signs = np.array([1] * 39 + [-1] * 21)  # about 0.03, two-sided
    p = {"sampled": (original + 0.1 * signs).tolist(), "greedy": "1" * ITEMS}
    pair = [cell("known_noisy", "original", 0.5), cell("known_noisy", "p", 0.5)]
    pair = [pair[0] | {"test": {"sampled": original.tolist(), "greedy": "1" * ITEMS}}, pair[1] | {"test": p}]
    first = judge(results(pair))[0]
    alone = difference(
        results(pair).chosen("known_noisy", "p"), results(pair).chosen("known_noisy", "original"), "sampled"
    )
    assert alone.low > 0
    assert alone.p_value < 0.05 < first.corrected_p == pytest.approx(2 * alone.p_value)  # the greedy gap is the other
    assert first.verdict == "is not decided"


def test_the_greedy_gap_and_the_base_model_are_what_the_claims_say():
    cells = [base("copy_noisy", 0.7), *over_seeds("copy_noisy", "original", 0.55), *over_seeds("copy_noisy", "p", 0.9)]
    by_number = {of.number: of for of in judge(results(cells))}
    below = np.mean(cells[0]["test"]["sampled"]) - np.mean([of["test"]["sampled"] for of in cells[1:4]])
    assert by_number[4].found.mean == pytest.approx(below, abs=1e-9)
    assert by_number[4].verdict == "holds"
    means = {
        (way, side): np.mean([item_values(of["test"], way) for of in group])
        for way in ("sampled", "greedy") for side, group in (("p", cells[4:]), ("original", cells[1:4]))
    }  # fmt: skip
    gap = (means["sampled", "p"] - means["sampled", "original"]) - (means["greedy", "p"] - means["greedy", "original"])
    assert by_number[5].found.mean == pytest.approx(gap, abs=1e-9)


def test_the_last_claim_ranks_every_task_that_was_diagnosed():
    known = {"spell_backward": 0.1, "caesar": 0.2, "math": 0.5, "copy_noisy": 0.8}
    cells = [
        of for n, task in enumerate(known) for key, mean in (("original", 0.5), ("p", 0.3 + 0.1 * n))
        for of in over_seeds(task, key, mean)
    ]  # fmt: skip
    rank = judge(results(cells, [diagnosis(task, p) for task, p in known.items()]))[-1]
    assert (rank.number, rank.found.mean, rank.found.num_items) == (len(CLAIMS), pytest.approx(1), 4)
    assert rank.verdict == "is not decided"  # four tasks are in that order by chance in 1 of 24 cases, and 1 reversed
    assert all(of.claim.measure != "rank" for of in judge(results(cells, [diagnosis("caesar", 0.2)])))


def test_the_place_in_the_shortlist_is_that_of_the_best_on_test_items():
    scores = {"original": 0.3, "GeneralFamily-10": 0.5, "p": 0.7}
    cells = [of for key, mean in scores.items() for of in over_seeds("caesar", key, mean, validation=1 - mean)]
    lists = {("p", "original"): "first", ("original", "p"): "second", ("original",): "not in the list",
             ("original", "GeneralFamily-10", "p"): "number 3 of 3"}  # fmt: skip
    for shortlist, place in lists.items():
        (found,) = shortlisted(results(cells, [diagnosis("caesar", 0.1, shortlist)]))
        assert (found.best, found.place, found.lost is None) == ("p", place, place == "first")
    lost = shortlisted(results(cells, [diagnosis("caesar", 0.1)]))[0].lost
    assert lost.mean == pytest.approx(0.4, abs=0.04)
    dft = [*cells, *over_seeds("caesar", "dft", 0.8)]
    assert shortlisted(results(dft, [diagnosis("caesar", 0.1)]))[0].place == "second"  # the gradient of p


@pytest.mark.parametrize(("adaptive", "verdict"), [(0.7, "reached"), (0.5, "missed")])
def test_an_adaptive_objective_is_held_against_the_one_that_validation_chose(adaptive, verdict):
    cells = [
        *over_seeds("caesar", "original", 0.65, validation=0.9),
        *over_seeds("caesar", "p", 0.95, validation=0.1),  # better on test items, which nobody could know
        *over_seeds("caesar", "adaptive", adaptive),
    ]
    (found,) = unchosen(results(cells), "adaptive")
    assert (found.best, found.verdict) == ("original", verdict)
    one_point_below = [of | {"test": answers(0.63, np.random.default_rng(of["seed"]), 8)} for of in cells[-3:]]
    few = [of | {"test": answers(0.65, np.random.default_rng(5 + of["seed"]), 8)} for of in cells[:3]]
    (loose,) = unchosen(results([*few, *one_point_below]), "adaptive")
    assert loose.verdict.endswith("by the mean only")


def test_averages_count_every_judged_task_alike_and_leave_solutions_out():
    means = {"caesar": (0.2, 0.5), "copy_noisy": (0.8, 0.6), "math": (0.9, 0.1)}
    cells = [
        of for task, both in means.items() for key, mean in zip(("adaptive", "p"), both, strict=True)
        for of in over_seeds(task, key, mean)
    ]  # fmt: skip
    found, num_tasks = on_average(results(cells), "adaptive", "p")
    own = [
        np.mean([of["test"]["sampled"] for of in cells if (of["task"], of["objective"]) == (task, key)])
        for task in ("caesar", "copy_noisy") for key in ("adaptive", "p")
    ]  # fmt: skip
    assert num_tasks == 2
    assert found.mean == pytest.approx((own[0] - own[1] + own[2] - own[3]) / 2, abs=1e-9)
    assert averages(results(cells))["p"].mean == pytest.approx((own[1] + own[3]) / 2, abs=1e-9)
    assert "p" not in averages(results([of for of in cells if (of["task"], of["objective"]) != ("caesar", "p")]))


def test_what_moves_is_adaptive_and_so_is_what_the_package_does_not_know():
    keys = (*FIXED, "GeneralFamily-0.1", "adaptive", "adaptive-by-label", "GeneralFamily-0to1", "something-new")
    assert [is_adaptive(key) for key in keys] == [False] * 6 + [True] * 4


def test_what_is_missing_is_listed():
    cells = [base("caesar", 0.2), *over_seeds("caesar", "p", 0.5), cell("caesar", "p", 0.4, lr=3e-4)]
    whole = [*cells, cell("caesar", "p", 0.3, lr=3e-5)]
    lacking = "\n".join(shortfalls.sections(results(cells, [diagnosis("caesar", 0.1)])))
    assert "| `p` | **3**, 1 | no cell |" in lacking
    assert "| `p` | complete | no cell |" in "\n".join(shortfalls.sections(results(whole)))
    assert "no diagnosis: `caesar`, " in "\n".join(shortfalls.sections(results(whole)))
    assert "no diagnosis: `caesar`" not in lacking


def test_a_page_without_cells_says_so_and_states_the_claims(tmp_path):
    text = written(tmp_path, [])
    assert "No cell has been run yet." in text
    assert all(claim.text in text for claim in CLAIMS)
    assert not list((tmp_path / "real").glob("*.png"))


def test_every_part_of_a_grid_gives_a_page(tmp_path):
    """Whatever was run first: no task, objective, learning rate, seed or diagnosis has to be there."""
    cells, diagnoses = a_grid()
    parts = {
        "all": (cells, diagnoses),
        "no base model": ([of for of in cells if of["objective"] != "base"], diagnoses[2:]),
        "base model": ([of for of in cells if of["objective"] == "base"], diagnoses),
        "no original": ([of for of in cells if of["objective"] == "adaptive" and of["seed"] == 1], diagnoses),
        "solutions": ([of for of in cells if of["task"] == "math"], []),
    }
    for name, (some, known) in parts.items():
        (tmp_path / name).mkdir()
        text = written(tmp_path / name, some, known)
        assert "nan" not in text
        shown = {line.rpartition("(real/")[2][:-1] for line in text.splitlines() if line.startswith("![")}
        assert shown == {path.name for path in (tmp_path / name / "real").glob("*.png")}
        assert all(line.count("|") == before.count("|") for before, line in tables_of(text))
    text = (tmp_path / "all" / "real-continuum.md").read_text()
    assert "| `caesar` | 9,876 | 4,321 | 40 % | 20 % | 0.75 ± 0.13, 1 seed | - |" in text
    assert text.index("## The tasks") < text.index("## Accuracy at T=1") < text.index("## Claims")


def tables_of(text):
    """Neighbouring lines of a table."""
    lines = text.splitlines()
    return [(a, b) for a, b in pairwise(lines) if a.startswith("|") and b.startswith("|")]


def test_the_figure_shows_every_gain_in_points():
    cells = [base("caesar", 0.2), *over_seeds("caesar", "p", 0.5), *over_seeds("caesar", "adaptive", 0.7)]
    found = results(cells)
    gains = page._gains(found, "base")
    figure = gains_over_base(gains, {"caesar": 0.1, "math": None}, found.objectives)
    drawn = {bar.get_label(): bar.lines[0].get_ydata()[0] for bar in figure.axes[0].containers}
    base_mean = np.mean(cells[0]["test"]["sampled"])
    for key, some in (("p", cells[1:4]), ("adaptive", cells[4:])):
        gain = 100 * (np.mean([of["test"]["sampled"] for of in some]) - base_mean)
        assert drawn[key] == pytest.approx(gain, abs=1e-9)


def test_the_committed_page_is_what_the_committed_lines_give(tmp_path):
    (tmp_path / "real").mkdir()
    for lines in (ROOT / "docs/real").glob("*.jsonl"):
        shutil.copy(lines, tmp_path / "real")
    assert page.write(tmp_path / "real").read_text() == (ROOT / "docs/real-continuum.md").read_text()


def test_cells_of_the_whole_model_replace_those_of_its_last_layers():
    last = [cell("caesar", "p", 0.2, trained_layers=4), cell("caesar", "original", 0.9, trained_layers=4)]
    whole = [cell("caesar", "p", 0.6, trained_layers=None)]
    assert results(last).objectives == ["original", "p"]
    assert results(last + whole).cells == whole
