"""What is answered is on the disk and is not asked for again: the real harness, with scripted answers for a model's."""

import json
import subprocess

from nemo_probsft.run.eval_env import evaluation_python
from tests.support.evaluation_run import CONTEXT, ROOT
from tests.support.evaluation_sets import DEMO_PROMPTS, write_sets


def test_interruptions_lose_nothing_and_ask_for_nothing_twice(tmp_path):
    write_sets(tmp_path / "data", ["2"] * len(DEMO_PROMPTS))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT}))
    command = [evaluation_python(), "-m", "tests.support.scripted_answers", tmp_path / "data", model, tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    num_demo, num_math = len(DEMO_PROMPTS), 2
    totals = [num_demo, 16 * num_demo, 16 * num_math, 1, 1, 2, 1]  # demo_strong is greedy, then sampled
    assert found["asked"] == [sum(totals)] * 2
    kept = iter(found["kept"])
    assert [next(kept) for _ in totals] == totals
    for total in totals:
        assert [next(kept) for _ in range(4)] == [min(3, total), min(8, total), min(8, total), total]
    whole, interrupted = tmp_path / "out" / "whole", tmp_path / "out" / "interrupted"
    written = sorted(path.relative_to(whole) for path in whole.rglob("*.json*"))
    assert written == sorted(path.relative_to(interrupted) for path in interrupted.rglob("*.json*"))
    assert len(written) == 3 * len(totals) + 1  # no answers.jsonl is left; one more for AlpacaEval's judge
    for path in written:
        if path.name != "model_outputs.json":  # which has the name of its directory
            assert (whole / path).read_bytes() == (interrupted / path).read_bytes()
    line = json.loads((whole / "math_500" / "sample" / "samples.jsonl").read_text().splitlines()[0])
    assert line["scores"] == [float(repeat == 2) for repeat in range(16)]  # the answer to 1+1
