"""The row-sparse head in Megatron's own GPTModel against the same model with every row, on two gloo ranks."""

import pytest
import torch
from torch import nn

from tests.support.ranks import run_ranks

V, H, S, B = 30, 16, 8, 2
CASES = [  # tp, sequence parallel, tied embeddings
    (1, False, True),
    (2, False, False),
    (2, True, False),
    (2, True, True),
]


def _gpt(tp, sequence_parallel, tied):
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    torch.manual_seed(1)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=H,
        num_attention_heads=2,
        tensor_model_parallel_size=tp,
        sequence_parallel=sequence_parallel,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        add_bias_linear=False,
        calculate_per_token_loss=True,
        use_cpu_initialization=True,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=32,  # padded to a multiple of tp
        max_sequence_length=S,
        share_embeddings_and_output_weights=tied,
        position_embedding_type="rope",
    )


def _batch():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(V, (B, S), generator=generator)
    labels = torch.randint(V, (B, S), generator=generator)
    labels[:, : S // 2] = -100
    weights = torch.rand(B, S, generator=generator)
    weights[0, -2:] = 0  # as a threshold leaves them
    mask = torch.ones(1, 1, S, S, dtype=torch.bool).triu(1)
    return tokens, torch.arange(S).expand(B, S), mask, labels, weights


def _run(model, **settings):
    """(nll, logits without labels, {name: gradient}, report, what was said)."""
    from megatron.core import parallel_state

    from nemo_probsft.adapters.megatron.hook import install_target_logprob
    from nemo_probsft.adapters.megatron.rows import HeadRows
    from nemo_probsft.config import HeadConfig
    from nemo_probsft.data.batches import loss_rows
    from nemo_probsft.ops import HeadReport

    report, group, known = HeadReport(), parallel_state.get_tensor_model_parallel_group(), HeadRows()
    said = install_target_logprob([model], V, group, HeadConfig(**settings), report, known)
    *inputs, labels, weights = _batch()
    batch = {"loss_rows": loss_rows(labels != -100)}
    assert next(known.watch(iter([(batch, 0, 0)])))[0] is batch
    nll = model(*inputs, labels=labels)
    assert (known.rows is None) == said.startswith("on"), "they belong to one forward pass"
    (nll * weights).sum().backward()
    with torch.no_grad():
        logits = model(*inputs)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return nll.detach(), logits, gradients, report, said


def _cases():
    from nemo_probsft.adapters.megatron import cpu

    cpu.install(cpu.PATCHES)
    from megatron.core import parallel_state

    results = []
    for tp, sequence_parallel, tied in CASES:
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
        results.append([_run(_gpt(tp, sequence_parallel, tied), skip_rows=skip) for skip in (True, False)])
    return results, _reasons(), _opted_in()


def _opted_in():
    """Statistics of a step with `skip_below` and `chunk_tokens`, and the report they come from."""
    from nemo_probsft.adapters.megatron.statistics import STATISTICS_LENGTH, add_weights, summarise

    report = _run(_gpt(2, True, False), skip_below=0.2, chunk_tokens=3)[3]
    statistics, before = torch.zeros(STATISTICS_LENGTH), (report.skipped_weight, report.total_weight)
    add_weights(statistics, report)
    return summarise(statistics), before


def _reasons():
    """why_not of models whose head is no plain product."""
    from nemo_probsft.adapters.megatron.head import why_not

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    def changed(change):
        model = _gpt(2, False, False)
        change(model)
        return why_not(model)

    def bias(model):
        model.output_layer.bias = nn.Parameter(torch.zeros(V))

    def wrap(model):
        model.output_layer = Wrapped(model.output_layer)

    return [
        changed(lambda model: None),
        changed(wrap),
        changed(bias),
        changed(lambda model: setattr(model.output_layer, "gather_output", True)),
        changed(lambda model: setattr(model.output_layer, "disable_grad_reduce", True)),
        changed(lambda model: setattr(model.config, "defer_embedding_wgrad_compute", True)),
        changed(lambda model: model.output_layer.register_forward_hook(lambda *_: None)),
        changed(lambda model: setattr(model, "mtp_process", True)),
    ]


@pytest.fixture(scope="module")
def outcome():
    return run_ranks(_cases, 2, timeout_s=600)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_gradients_are_those_of_the_whole_head(outcome, case):
    supervised = _batch()[3] != -100
    for results, *_ in outcome:
        (nll, logits, gradients, report, said), (whole_nll, whole_logits, whole_gradients, _, whole_said) = results[
            case
        ]
        assert said.startswith("on: ")
        assert whole_said == "off: head.skip_rows is false"
        assert (report.num_tokens, report.num_forward, report.num_backward) == (B * S, B * S // 2, B * S // 2 - 2)
        torch.testing.assert_close(nll[supervised], whole_nll[supervised], rtol=1e-5, atol=1e-6)
        assert (nll[~supervised] == 0).all()
        torch.testing.assert_close(logits, whole_logits)
        assert gradients.keys() == whole_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        head = "embedding.word_embeddings.weight" if CASES[case][2] else "output_layer.weight"
        assert gradients[head].abs().max() > 1e-2


def test_a_head_that_is_no_plain_product_is_left_alone_with_the_reason(outcome):
    reasons = outcome[0][1]
    assert reasons == [
        None,
        "the output layer is a Wrapped, more than one product of hidden and weight",
        "the output layer has a bias",
        "the output layer gathers its logits",
        "somebody else reduces the output layer's gradient",
        "the output layer's weight gradient is deferred",
        "hooks of the output layer read its logits",
        "multi-token-prediction heads, which keep -log p of every token, use the same output layer",
    ]


def test_the_weight_that_was_asked_to_be_skipped_is_logged(outcome):
    metrics, (skipped, total) = outcome[0][2]
    assert 0 < skipped <= 0.2 * total
    assert total == pytest.approx(_batch()[4][:, S // 2 :].sum().item())
    assert metrics["skipped_weight"] == pytest.approx(skipped / total)
