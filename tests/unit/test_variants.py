"""experiments.variants: its forward pass is transformers', a weight is the gradient of its value, runs repeat."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from experiments import jsonl
from experiments.forward import log_probs, pack
from experiments.variants import page, run
from experiments.variants.objectives import VARIANTS, Now, Running, running, variant
from experiments.variants.tasks import TASKS, Task, source, tokenize
from nemo_probsft import demo_data

BY_LABEL = "adaptive-by-label-0.1-0.6-0.9-2"
KEYS = [*VARIANTS, "original", "OnlyTopLogP-0.2", "adaptive", BY_LABEL, "GeneralFamily-0to1"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(tokenizer, random model) of the demo."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    directory = tmp_path_factory.mktemp("variants")
    demo_data.write_tokenizer(directory)
    demo_data.write_random_base(directory, 0)
    return AutoTokenizer.from_pretrained(directory), Qwen2ForCausalLM.from_pretrained(directory)


def rows(demo, name="weak_noisy", count=16):
    train, test = TASKS[name].rows(0)
    return tokenize(demo[0], train[:count]), tokenize(demo[0], test[:count])


def some_step(requires_grad=True, key="original") -> Now:
    """40 targets of 8 examples over 30 labels, in the middle of a run."""
    generator = torch.Generator().manual_seed(0)
    every = torch.log_softmax(4 * torch.randn(40, 30, generator=generator, dtype=torch.float64), -1).float()
    labels = torch.randint(30, (40,), generator=generator)
    labels[10:] = every[10:].argmax(-1)  # most of them are probable
    logp = every.gather(1, labels[:, None])[:, 0].requires_grad_(requires_grad)
    example = torch.arange(8).repeat_interleave(5)
    hidden = torch.randn(40, 6, generator=generator)
    now = Now(
        logp,
        every,
        labels,
        example,
        example // 2,
        example % 2,
        hidden,
        logp.detach() - 0.1,
        running(variant(key), 30),
        0.5,
    )
    for _ in range(3):
        now.running.add(now)
    return now


def test_forward_pass_is_that_of_transformers(demo):
    examples, _ = rows(demo)
    truth = []
    for ids, mask in examples:
        logits = demo[1](torch.tensor(ids[:-1])[None].long()).logits[0]
        truth.append(torch.log_softmax(logits, -1)[torch.tensor(mask[:-1]) == 1])
    batch = pack(examples)
    assert len(batch.tokens) < batch.grid.numel()
    torch.testing.assert_close(log_probs(demo[1], batch), torch.cat(truth), atol=2e-5, rtol=0)
    labels = [id for ids, mask in examples for id in ids[1:][mask[:-1] == 1]]
    assert batch.labels.tolist() == labels


def test_gradients_are_those_of_transformers(demo):
    examples, _ = rows(demo, count=4)
    ours, theirs = copy.deepcopy(demo[1]), copy.deepcopy(demo[1])
    batch = pack(examples)
    log_probs(ours, batch).gather(1, batch.labels[:, None]).sum().backward()
    for ids, mask in examples:
        ids = torch.tensor(ids).long()
        labels = torch.where(torch.tensor(mask[:-1]) == 1, ids[1:], -100)
        logits = theirs(ids[None, :-1]).logits[0]
        (-torch.nn.functional.cross_entropy(logits, labels, reduction="sum")).backward()
    for (name, mine), truth in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = truth.grad.abs().max()
        assert (mine.grad - truth.grad).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize("key", KEYS)
def test_weight_is_minus_the_gradient_of_the_value(key):
    now = some_step(key=key)
    (gradient,) = torch.autograd.grad(variant(key).value(now).sum(), now.logp)
    weight = variant(key).weight(now)
    torch.testing.assert_close(-gradient, weight, atol=1e-6, rtol=1e-5)
    assert (weight >= 0).all()
    assert key == "original" or not torch.allclose(weight, torch.ones_like(weight))


def test_what_moves_by_the_steps_before_is_minus_log_p_at_the_start():
    now = some_step()
    fresh = dataclasses.replace(now, running=Running(30), fraction=0.0)
    keys = (
        "adaptive",
        "median",
        "to-2",
        "confidence",
        "DEFT-late",
        "plateau",
        "rising-threshold",
        "trim",
        "per-label",
        "per-prompt",
    )
    for key in (*keys, "calibrated"):
        assert torch.equal(variant(key).weight(fresh), torch.ones(40)), key


def test_a_mean_for_each_label_is_the_package_s():
    now = some_step(key=BY_LABEL)
    p = now.p.double()
    for label in now.labels.unique():
        own = now.labels == label
        tokens = int(own.sum()) * (1 + 0.9 + 0.81)
        mean = (tokens * p[own].mean() + 2 * now.running.p.value) / (tokens + 2)
        alpha = ((mean - 0.1) / 0.5).clamp(0, 1)
        torch.testing.assert_close(variant(BY_LABEL).weight(now)[own], (p[own] ** alpha).float())


def test_running_means_follow_what_they_saw():
    now = some_step(requires_grad=False)
    p = now.logp.exp()
    assert now.running.p.value == pytest.approx(float(p.mean()))
    for label in now.labels.unique():
        assert now.running.by_label.value()[label] == pytest.approx(float(p[now.labels == label].mean()), rel=1e-5)


def test_candidates_see_the_step():
    now = some_step()
    seen = now.as_candidates_see_it
    assert torch.equal(seen.logp, now.logp)
    assert not seen.logp.requires_grad
    assert torch.equal(seen.top, now.log_probs[torch.arange(40), now.log_probs.argmax(-1)])
    assert (seen.top > seen.logp).any()


def test_a_mixture_s_rows_tell_where_they_are_from():
    for name, share, known in (("mixed_10", 0.1, 0), ("mixed_20_copies", 0.2, 1)):
        train, test = TASKS[name].rows(0)
        sources = [source(row) for row in train]
        assert set(sources) == {known, 2}
        assert sources.count(2) / len(sources) == pytest.approx(share, abs=1e-3)
        assert {source(row) for row in test} == {2}


def test_prompts_are_classed_by_what_the_base_model_makes_of_them(demo):
    examples, _ = rows(demo, count=40)
    classes = run.prompt_classes(demo[1], examples, chunk=7)
    assert classes.bincount().tolist() == [4] * 10
    means = []
    for ids, mask in examples:
        prompt = torch.tensor(ids[: int(np.flatnonzero(mask)[0]) + 1]).long()
        logits = demo[1](prompt[None, :-1]).logits[0]
        means.append(-torch.nn.functional.cross_entropy(logits, prompt[1:]).item())
    by_class = [[m for m, c in zip(means, classes, strict=True) if c == k] for k in range(10)]
    assert all(max(low) < min(high) for low, high in itertools.pairwise(by_class))


def test_noise_replaces_the_share_it_names():
    (clean, clean_test), (noisy, noisy_test) = (TASKS[name].rows(0) for name in ("weak", "weak_noisy"))
    right = {row["prompt"]: row["response"] for row in clean}
    wrong = sum(row["response"] != right[row["prompt"]] for row in noisy)
    assert wrong == round(0.3 * len(clean))
    assert clean_test == noisy_test


def test_a_run_repeats_to_the_bit_and_depends_on_its_seed(demo):
    tokenizer, model = demo
    before = {name: p.clone() for name, p in model.named_parameters()}
    task = Task("tiny", "", lambda seed: tuple(part[:64] for part in TASKS["strong"].rows(seed)), batch_size=8)
    lines = [run.run(model, tokenizer, task, variant("per-label"), seed, 3) for seed in (0, 0, 1)]
    for line in lines:
        del line["seconds"]
    assert lines[0] == lines[1] != lines[2]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_scores_are_those_of_generating(demo):
    """A model that has learned two of four rows: greedy decoding, token by token, agrees with the score."""
    examples, _ = rows(demo, "weak", 4)
    model = copy.deepcopy(demo[1])
    run.fine_tune(model, examples[:2], variant("original"), 2, 0, 30, 3e-3)
    greedy, sampled = run.scores(model, examples)
    generated = []
    for ids, mask in examples:
        num_prompt = int(np.flatnonzero(mask)[0]) + 1
        prompt = torch.tensor(ids[:num_prompt]).long()[None]
        out = model.generate(prompt, max_new_tokens=len(ids) - num_prompt, do_sample=False, pad_token_id=0)
        generated.append(int(out[0].tolist() == ids.tolist()))
    assert greedy == generated
    assert greedy == [1, 1, 0, 0]
    assert all(0 < p <= 1 for p in sampled)
    assert sampled[0] > 0.5 > sampled[2]


def test_a_line_cut_off_by_a_kill_is_run_again(tmp_path):
    lines = tmp_path / "lines.jsonl"
    assert jsonl.read(lines) == []
    lines.write_text('{"task": "weak", "objective": "p", "seed": 0}\n{"task": "weak", "obj')
    assert [line["objective"] for line in jsonl.read(lines)] == ["p"]
    jsonl.append(lines, {"task": "weak", "objective": "original"})
    jsonl.append(lines, {"task": "weak", "objective": "dft"})
    assert [line["objective"] for line in jsonl.read(lines)] == ["p", "original", "dft"]


def test_page_pools_seeds_and_marks_the_best(tmp_path):
    lines, target = tmp_path / "lines.jsonl", tmp_path / "page.md"
    for objective, p, seed in (("p", 0.1, 0), ("adaptive", 0.9, 0), ("adaptive", 0.7, 1)):
        items = {"greedy": "01" * 50, "sampled": [p] * 100}
        cell = {"task": "weak", "objective": objective, "seed": seed, "steps": 200, "first_p": 0.25, "items": items}
        jsonl.append(lines, cell | {"versions": "torch", "date": "2026-11-26"})
    page.write(lines, target)
    text = target.read_text(encoding="utf-8").splitlines()
    best = text.index("| objective | `weak` |") + 2
    assert text[best].startswith("| `adaptive` | **80.0** [78.")
    assert text[best].endswith(", 2 seeds |")
    assert text[best + 1].startswith("| `p` | 10.0 [")


def test_seeds_are_compared_where_an_objective_has_all_of_them(tmp_path):
    lines, target = tmp_path / "lines.jsonl", tmp_path / "page.md"
    for objective, seeds in (("p", (0, 1)), ("adaptive", (0, 1, 2))):
        for task, seed in itertools.product(("mixed_10", "mixed_20_copies", "weak_noisy_batch_8"), seeds):
            items = {"greedy": "01" * 50, "sampled": [0.5 + seed / 10] * 100}
            cell = {"task": task, "objective": objective, "seed": seed, "steps": 200, "first_p": 0.25, "items": items}
            jsonl.append(lines, cell | {"versions": "torch", "date": "2026-11-26"})
    page.write(lines, target)
    one_seed, three_seeds = target.read_text(encoding="utf-8").split("## Where it breaks")[1].split("Seeds 0, 1 and 2:")
    three_seeds = three_seeds.split("##")[0]
    assert one_seed.count("**50.0**") == 6
    assert "| `p` |" in one_seed
    assert "| `p` |" not in three_seeds
    assert three_seeds.count("**60.0**") == 3
