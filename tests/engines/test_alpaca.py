"""AlpacaEval: what the judge is given, and what is read from its leaderboard."""

import json

from evaluation import alpaca
from tests.support.evaluation_run import run_evaluation


def test_outputs_are_in_alpaca_evals_format(tmp_path):
    directory = tmp_path / "base-hf" / "alpaca_eval" / "sample"
    directory.mkdir(parents=True)
    samples = [{"item": 1, "answers": [" é\n", "second"]}, {"item": 0, "answers": [""]}]
    docs = [{"prompt": "a?", "dataset": "koala"}, {"prompt": "b?", "dataset": "vicuna"}]
    alpaca.write_outputs(directory, samples, docs)
    rows = json.loads((directory / alpaca.OUTPUTS).read_text(encoding="utf-8"))
    assert [(row["instruction"], row["output"], row["dataset"]) for row in rows] == [
        ("b?", "é", "vicuna"),
        ("a?", "", "koala"),
    ]
    assert {row["generator"] for row in rows} == {"base-hf"}


def test_figures_are_those_of_the_model_in_the_leaderboard(tmp_path):
    path = tmp_path / "leaderboard.csv"
    path.write_text(
        ",win_rate,standard_error,mode,avg_length,n_total,length_controlled_winrate\n"
        "other,1.0,0.1,community,10,805,2.0\n"
        "run-hf,57.1,1.5,community,1900,805,57.5\n"
    )
    assert alpaca.figures(path, "run-hf") == {
        "length_controlled_winrate": 57.5,
        "win_rate": 57.1,
        "standard_error": 1.5,
        "n_total": 805,
        "avg_length": 1900,
    }


def test_a_judge_without_the_package_is_one_line(tmp_path):
    done = run_evaluation(tmp_path, "--tasks", "alpaca_eval", "--output", tmp_path / "out", "--judge", "gpt4")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("nemo-probsft: --judge needs the package alpaca_eval")
