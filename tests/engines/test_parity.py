"""The real trainer's first step, loss and every parameter's gradient, at many layouts, against one process in float64.

All layouts run with one import of NeMo (`tests/support/engine.py`). docs/parity.md lists what was found.
"""

import numpy as np
import pytest
import torch

from nemo_probsft.adapters.megatron.statistics import loss_function
from nemo_probsft.data.batches import collate
from nemo_probsft.data.tokens import Example
from nemo_probsft.objectives import parse_objective
from tests.support.parity_cases import Case, covering_cases
from tests.support.parity_checks import (
    RTOL,
    had_an_uneven_batch,
    is_that_of_one_process_in_float64,
    is_that_of_the_merged_model,
    prepare,
    shows_the_known_mistakes,
    shows_the_mistakes_of_packing,
    written,
)
from tests.support.parity_gradients import load_ranks, overall, relative_error
from tests.support.parity_ranks import CONTEXT_FILES
from tests.support.parity_reference import Reference

FURTHER = [
    Case(tp=2, sp=True, model="qwen3-tied", objective="GeneralFamily-10"),
    Case(tp=2, pp=2, model="llama-untied", objective="OnlyBottomP-0.5", denominator="kept"),
    Case(tp=2, sp=True, pp=2, vp=2, objective="OnlyTopLogP-0.2", denominator="kept", recompute="full"),
    Case(tp=4, sp=True, model="qwen2-tied", objective="p", recompute="selective"),
]
PACKED = [
    Case(packing=True, tp=2, sp=True, dp=2, model="qwen2-tied", objective="OnlyTopLogP-0.2", denominator="kept"),
    Case(packing=True, tp=2, pp=2, vp=2, micro_batch=1, objective="p", recompute="full"),
    Case(packing=True, pp=2, dp=2, model="llama-untied", objective="GeneralFamily-10"),
    Case(packing=True, model="qwen3-tied", objective="OnlyBottomP-0.5", recompute="selective"),
]
BF16 = Case(tp=2, sp=True, pp=2, objective="p", precision="bf16")
LORA = [
    Case(lora=True, tp=2, sp=True, dp=2, model="qwen2-tied", objective="OnlyTopLogP-0.2"),
    Case(lora=True, tp=2, pp=2, vp=2, objective="p"),
    Case(lora=True, pp=2, dp=2, model="qwen2-tied", objective="OnlyBottomP-0.5", denominator="kept"),
    Case(lora=True, tp=4, objective="GeneralFamily-10", micro_batch=1, recompute="selective"),
    Case(lora=True, packing=True, tp=2, sp=True, dp=2, objective="p"),
]
CASES = {case.name: case for case in [*covering_cases(), *FURTHER]}
ALL = CASES | {case.name: case for case in [BF16, *LORA, *PACKED]}


@pytest.fixture(scope="module")
def launch(engine, tmp_path_factory):
    """The first step of every case."""
    root = tmp_path_factory.mktemp("parity")
    launch, jobs = prepare(root, "nemo", ALL)
    jobs += [write_context_job(root, name, objective) for name in CONTEXT_MASKS for objective in CONTEXT_OBJECTIVES]
    engine.run(jobs)
    return launch


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_is_that_of_one_process_in_float64(launch, name, record_property):
    is_that_of_one_process_in_float64(launch, name, record_property)


@pytest.mark.parametrize("name", CASES)
def test_the_known_mistakes_would_have_been_seen(launch, name):
    shows_the_known_mistakes(launch, name)


@pytest.mark.parametrize("name", CASES)
def test_the_batch_was_as_uneven_as_it_is_meant_to_be(launch, name):
    had_an_uneven_batch(launch, name)


@pytest.mark.parametrize("name", [case.name for case in PACKED])
def test_packed_rows_have_the_first_step_of_their_examples(launch, name, record_property):
    is_that_of_one_process_in_float64(launch, name, record_property)
    shows_the_known_mistakes(launch, name)
    shows_the_mistakes_of_packing(launch, name)


def test_bf16_is_no_further_from_the_truth_than_transformers_in_bf16(launch):
    """Both round weights and activations to 8 bits, in other places: the errors are alike, at most twice as large."""
    root = launch.root
    case, rounded, rows, ranks, gradients = launch.first_step(BF16.name, torch.bfloat16)
    truth = rounded.gradients(rounded.loss(rows, case.objective, case.denominator))
    transformers = Reference(root / "hf" / case.model, torch.bfloat16, compute=torch.bfloat16)
    theirs = transformers.gradients(transformers.loss(rows, case.objective, case.denominator))
    assert overall(gradients, truth) < 2 * overall(theirs, truth)
    loss = float(rounded.loss(rows, case.objective, case.denominator).detach())
    assert written(ranks)["objective"] == pytest.approx(loss, rel=0.02)
    plain = rounded.gradients(rounded.loss(rows, "original", "target"))
    assert overall(gradients, plain) > 5 * overall(gradients, truth)


@pytest.mark.parametrize("name", [case.name for case in LORA])
def test_adapters_have_the_gradient_of_the_merged_model(launch, name, record_property):
    is_that_of_the_merged_model(launch, name, record_property)


# Context parallelism needs Transformer Engine's attention. Its loss, counts and division of the gradient need none: a
# table of logits stands for the model. Of 16 positions in 4 chunks rank 0 gets the outer two chunks, rank 1 the inner.
CONTEXT_MASKS = {
    "uneven": torch.tensor([[0] * 6 + [1] * 10, [1] * 2 + [0] * 14, [0] * 5 + [1] * 5 + [0] * 6, [0] * 16]),
    "one-sided": torch.tensor([[0] * 4 + [1] * 8 + [0] * 4, [0] * 16, [0] * 5 + [1] + [0] * 10, [0] * 16]),
}
# Key of an objective with a mean for each group of tokens -> (tokens of the mean of all in each, group of each token)
CONTEXT_GROUPS = {
    "adaptive-by-label-0.05-0.45-0.9-2": (2, lambda labels, top: labels),
    "adaptive-by-confidence-0.05-0.45-0.9-2": (2, lambda labels, top: (10 * top).long()),
    "prior-0.05-0.45": (0, lambda labels, top: torch.tensor(CONTEXT_FILES)[:, None].expand_as(labels)),
}
CONTEXT_OBJECTIVES = {"OnlyTopLogP-0.2": "kept", **dict.fromkeys(CONTEXT_GROUPS, "target")}  # with denominators


def context_case(name: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    table = 3 * torch.randn(8, 8, generator=generator)
    ids = torch.randint(0, 8, (4, 17), generator=generator)
    mask = CONTEXT_MASKS[name].float()
    return {"table": table, "batch": {"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": mask}}


def write_context_job(root, name: str, objective: str) -> dict:
    path = root / f"context-{name}.pt"
    torch.save(context_case(name), path)
    output = root / f"context-{name}-{objective}"
    job = {
        "task": "tests.support.parity_ranks:context_parallel",
        "batch": str(path),
        "world_size": 2,
        "output": str(output),
    }
    return job | {"objective": objective, "denominator": CONTEXT_OBJECTIVES[objective]}


def context_result(launch, name: str, objective: str):
    """(what the two ranks saved, the batch, the table of logits and log p of every label, both fp64)."""
    case, ranks = context_case(name), load_ranks(launch.root / f"context-{name}-{objective}", 2)
    batch, table = case["batch"], case["table"].double().requires_grad_()
    logp = torch.log_softmax(table, -1)[batch["tokens"]].gather(-1, batch["labels"][..., None])[..., 0]
    return ranks, batch, table, logp


@pytest.mark.parametrize("objective", CONTEXT_GROUPS)
@pytest.mark.parametrize("name", CONTEXT_MASKS)
def test_context_parallel_ranks_share_the_mean_of_each_group(launch, name, objective):
    ranks, batch, table, logp = context_result(launch, name, objective)
    target, p = batch["loss_mask"] > 0, logp.detach().exp()
    shrinkage, group_of = CONTEXT_GROUPS[objective]
    groups = group_of(batch["labels"], torch.softmax(table.detach(), -1).amax(-1)[batch["tokens"]])
    overall = p[target].mean()

    def loss_with(seen):
        """That of the second step, when the first one saw these targets."""
        of_groups = (seen & (groups == group) for group in range(11))
        mean = torch.stack([(p[own].sum() + shrinkage * overall) / (own.sum() + shrinkage) for own in of_groups])
        mean = mean.nan_to_num(0.3)  # of a file that a mistake would not have seen
        alpha = ((mean - 0.05) / 0.4).clamp(1e-9, 1)[groups[target]]
        return (-torch.expm1(alpha * logp[target]) / alpha).mean(), alpha

    loss, alpha = loss_with(target)
    (truth,) = torch.autograd.grad(loss, table, retain_graph=True)
    assert alpha.min() > 1e-9
    assert alpha.unique().numel() > 1
    for rank in ranks:
        assert rank["total"] == target.sum()
        assert float(rank["objective"]) == pytest.approx(loss.item(), rel=RTOL)
        assert relative_error(rank["gradient"], truth) < RTOL
    of_rank_0 = torch.tensor([1] * 4 + [0] * 8 + [1] * 4) > 0
    (mistaken,) = torch.autograd.grad(loss_with(target & of_rank_0)[0], table)
    assert relative_error(mistaken, truth) > 100 * RTOL


@pytest.mark.parametrize("name", CONTEXT_MASKS)
def test_context_parallel_ranks_divide_by_the_tokens_of_all(launch, name):
    ranks, batch, table, logp = context_result(launch, name, "OnlyTopLogP-0.2")
    kept = (batch["loss_mask"] > 0) & (logp.exp() >= 0.2)
    loss = -logp[kept].mean()
    (truth,) = torch.autograd.grad(loss, table, retain_graph=True)
    assert ranks[0]["local"] != ranks[1]["local"]
    assert name != "one-sided" or 0 in [rank["local"] for rank in ranks]
    for rank in ranks:
        assert rank["total"] == kept.sum()
        assert float(rank["objective"]) == pytest.approx(loss.item(), rel=RTOL)
        assert relative_error(rank["gradient"], truth) < RTOL
    of_rank = torch.tensor([0] * 4 + [1] * 8 + [0] * 4)
    local = [-logp[kept & (of_rank == r)].sum() / max(1, ranks[r]["local"]) for r in range(2)]
    (mistaken,) = torch.autograd.grad(torch.stack(local).mean(), table)
    assert relative_error(mistaken, truth) > 0.1


@pytest.mark.parametrize("name", CONTEXT_MASKS)
def test_context_parallel_ranks_are_told_the_rows_of_their_part(launch, name):
    """Before Megatron slices the batch, whose mask [b, s/cp] is then this; the head's rows are those of [s/cp, b]."""
    ranks, batch, *_ = context_result(launch, name, "OnlyTopLogP-0.2")
    for rank in ranks:
        assert rank["rows"].tolist() == rank["loss_mask"].T.reshape(-1).nonzero().flatten().tolist()
        assert rank["rows"].tolist() != batch["loss_mask"].T.reshape(-1).nonzero().flatten().tolist()


def test_a_packed_row_has_the_loss_of_its_parts():
    """Packing moves rows into one; the loss is token by token, and no target is in another row than its context."""
    objective, generator = parse_objective("GeneralFamily-10"), torch.Generator().manual_seed(0)
    examples = [Example(np.arange(n, dtype=np.int32), (np.arange(n) % 3 != 0).astype(np.uint8)) for n in (3, 17, 8)]
    for example in examples:
        example.loss_mask[-1] = 0  # as `data` writes it: what follows the last token is no target
    separate = [collate([example], pad_id=0) for example in examples]
    masks = [batch["loss_mask"] for batch in separate]
    nlls = [-torch.rand(mask.shape, generator=generator).log() for mask in masks]
    packed_mask, packed_nll = torch.cat(masks, 1), torch.cat(nlls, 1).requires_grad_()
    loss_sum, num_tokens, statistics = loss_function(objective, "target", packed_nll, packed_mask)
    parts = [loss_function(objective, "target", nll, mask) for nll, mask in zip(nlls, masks, strict=True)]
    assert loss_sum.item() == pytest.approx(sum(part[0].item() for part in parts), rel=1e-6)
    assert num_tokens == sum(part[1] for part in parts) == sum(int(e.loss_mask.sum()) for e in examples)
    torch.testing.assert_close(statistics, sum(part[2] for part in parts))
    (gradient,) = torch.autograd.grad(loss_sum, packed_nll)
    torch.testing.assert_close(gradient, packed_mask * torch.exp(-10 * packed_nll.detach()))
