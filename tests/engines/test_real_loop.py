"""experiments.real.train: its steps are those of the NeMo trainer, and its scores what generating would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.real import train
from experiments.real.moving import moving
from nemo_probsft.data import tokens
from nemo_probsft.run.log import read_metrics
from tests.support.first_step import recipe, write_workspace

STEPS, BATCH, LR = 12, 4, 1e-3
KEYS = ["p", "OnlyTopLogP-0.004", "dft", "adaptive-by-label-0.002-0.004-0.9-10", "prior-0.001-0.004"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def loaded(workspace):
    """(model, rows)"""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workspace / "model")
    dataset = tokens.of_source(workspace / "train.jsonl", tokenizer, max_length=96)
    examples = [dataset[i] for i in range(len(dataset))]
    model = train.Model(workspace / "model", "cpu")
    return model, train.Rows(examples, [0] * len(examples))


def fine_tuned(loaded, key: str, lr: float = LR) -> list[dict[str, float]]:
    model, rows = loaded
    model.reset()
    state = moving(key, model.module.config.vocab_size, "cpu")
    return train.fine_tune(model, rows, state, lr=lr, seed=0, steps=STEPS, batch_size=BATCH)


def test_the_steps_are_those_of_the_trainer(engine, workspace, loaded):
    for number, key in enumerate(KEYS):
        settings = {
            "data": {"global_batch_size": BATCH},
            "parallel": {"tensor_model_parallel_size": 1},
            "optim": {"lr": LR, "warmup_ratio": 0.1},
            "trainer": {"devices": 1, "max_steps": STEPS},
        }
        path = recipe(workspace, f"run-{number}", objective=key, **settings)
        engine.command("train", path, world_size=1, output=workspace / f"ranks-{number}")
        truth, found, other = (
            read_metrics(workspace / f"run-{number}"),
            fine_tuned(loaded, key),
            fine_tuned(loaded, "original"),
        )
        for name in ("nll", "p", "grad_norm"):
            wanted = np.array([row[name] for row in truth])
            np.testing.assert_allclose([row[name] for row in found], wanted, rtol=2e-4, err_msg=f"{key} {name}")
            assert np.abs(np.array([row[name] for row in other]) / wanted - 1).max() > 1e-2, f"-log p passes for {key}"


def test_dft_makes_the_steps_of_p(loaded):
    """So the grid has no cells of it."""
    p, dft = fine_tuned(loaded, "p"), fine_tuned(loaded, "dft")
    for name in ("nll", "p", "grad_norm"):
        np.testing.assert_allclose([row[name] for row in dft], [row[name] for row in p], rtol=2e-4, err_msg=name)


def test_a_model_goes_back_to_its_base(loaded):
    first = fine_tuned(loaded, "p")
    assert fine_tuned(loaded, "p") == first
    assert first[-1]["p"] > first[0]["p"]


def test_scores_are_those_of_generating(loaded):
    """After a training that some answers survive, some not: every answer is generated greedily, and multiplied up."""
    model, rows = loaded
    fine_tuned(loaded, "original", lr=3e-3)
    scores, likelihood = train.score_answers(model, rows), train.score_likelihood(model, rows)
    greedy, sampled = "", []
    for ids, mask in rows.examples:
        begin = int(np.flatnonzero(mask)[0]) + 1
        prompt, answer = torch.tensor(ids[:begin]).long(), torch.tensor(ids[begin:]).long()
        with torch.no_grad():
            said = model.module.generate(prompt[None], max_new_tokens=len(answer), do_sample=False)[0, begin:]
            every = torch.log_softmax(model.module(torch.tensor(ids).long()[None]).logits[0].double(), -1)
        logp = every[begin - 1 : -1].gather(1, answer[:, None])
        greedy += str(int(said.tolist() == answer.tolist()))
        sampled.append(float(logp.sum().exp()))
    assert scores["greedy"] == greedy
    np.testing.assert_allclose(scores["sampled"], sampled, rtol=1e-3)
    assert likelihood["tokens"] == [int(mask.sum()) for _, mask in rows.examples]
    np.testing.assert_allclose(np.exp(-np.array(likelihood["nll"])), sampled, rtol=1e-3)
    assert set(greedy) == {"0", "1"}


def test_frozen_layers_are_those_of_the_whole_model(workspace, loaded):
    """With the states of its lower layers, the last layer learns as it would if all were computed; the rest stays."""
    whole, rows = loaded
    part = train.Model(workspace / "model", "cpu", trained_layers=1)
    mine = train.Rows(rows.examples, rows.sources, part.states(rows.examples))
    whole.reset()
    assert train.score_likelihood(part, mine) == train.score_likelihood(whole, rows)
    state = moving("p", part.module.config.vocab_size, "cpu")
    train.fine_tune(part, mine, state, lr=LR, seed=0, steps=STEPS, batch_size=BATCH)
    after = train.Model(workspace / "model", "cpu")
    changed = {
        name for name, p in part.module.named_parameters() if not torch.equal(p, after.module.get_parameter(name))
    }
    last = f"model.layers.{len(part.module.model.layers) - 1}."
    assert changed == {name for name, _ in part.module.named_parameters() if name.startswith((last, "model.norm"))}
    after.module.load_state_dict(part.module.state_dict())
    np.testing.assert_allclose(
        train.score_likelihood(part, mine)["nll"], train.score_likelihood(after, rows)["nll"], rtol=1e-5
    )
