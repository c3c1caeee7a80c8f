"""`eval` ends an answer where the model's chat template does, whatever eos_token and generation_config.json say."""

from __future__ import annotations

import json

from nemo_probsft.run import eval_env
from tests.support.stopping import saved


def test_an_answer_ends_with_the_template_s_own_token(tmp_path):
    model = saved(tmp_path / "stops" / "model")
    rows = [{"question": "no " * (i + 1), "answer": "yes"} for i in range(4)]
    (tmp_path / "figfont.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "results"
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == 0  # which it never writes
    code = eval_env.evaluate([str(model), "--tasks", "figfont", "--data-dir", str(tmp_path), "--output", str(output)])
    assert code == 0
    (samples,) = output.rglob("greedy/samples.jsonl")
    answers = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [answer["answers"] for answer in answers] == [[" yes"]] * 4  # the tokenizer has spaces between its words
    assert [answer["finish"] for answer in answers] == [["stop"]] * 4
    assert [answer["num_tokens"] for answer in answers] == [[2]] * 4  # the end token is one of them
