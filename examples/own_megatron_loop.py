"""f(p) in a Megatron loop of your own: `python examples/own_megatron_loop.py [OBJECTIVE]`.

One process, on a CPU, and a model of one layer. What you need in your own loop is marked (1) to (3). With Megatron's
DDP, leave (3) to `megatron.core.distributed.finalize_model_grads`: it divides in the same way, over all ranks.
"""

import sys
from functools import partial

import torch
from torch import distributed

from nemo_probsft.adapters.megatron import cpu

cpu.install()  # Megatron without CUDA; leave it out on a GPU
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig

from nemo_probsft.adapters.megatron.hook import install_target_logprob
from nemo_probsft.adapters.megatron.statistics import loss_function, summarise
from nemo_probsft.config import HeadConfig
from nemo_probsft.objectives import parse_objective
from nemo_probsft.ops import HeadReport

VOCABULARY, LENGTH, SEQUENCES, MICRO_BATCH, STEPS = 64, 16, 8, 2, 30


def divide_by_tokens(chunks, num_tokens, **_):
    """(3) One division of the summed gradients, by the target tokens of the global batch."""
    for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
        parameter.grad /= num_tokens


def build_model():
    config = TransformerConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        calculate_per_token_loss=True,  # (1) a sum and a count leave the loss; nothing is divided on the way
    )
    config.finalize_model_grads_func = divide_by_tokens
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    model = GPTModel(config, spec, VOCABULARY, LENGTH, position_embedding_type="rope")
    group = parallel_state.get_tensor_model_parallel_group()
    install_target_logprob([model], VOCABULARY, group, HeadConfig(), HeadReport())  # (2) the model returns -log p
    return model


def forward_step(objective, statistics, batches, model):
    """What Megatron's schedule calls for each micro-batch. labels are -100 where there is no loss."""
    tokens, labels = next(batches)
    positions = torch.arange(LENGTH).expand_as(tokens)
    future = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)

    def loss(nll):
        loss_sum, num_tokens, micro_batch = loss_function(objective, "target", nll, labels != -100)
        statistics.append(micro_batch)
        return loss_sum, num_tokens, {}

    return model(tokens, positions, future, labels=labels), loss


def main(key="p"):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    torch.manual_seed(0)
    model, objective = build_model(), parse_objective(key)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rows = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1))
    tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:].clone()
    labels[:, : LENGTH // 2] = -100
    for step in range(1, STEPS + 1):
        statistics = []
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=partial(forward_step, objective, statistics),
            data_iterator=iter(zip(tokens.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True)),
            model=[model],
            num_microbatches=SEQUENCES // MICRO_BATCH,
            seq_length=LENGTH,
            micro_batch_size=MICRO_BATCH,
            forward_only=False,
        )
        optimizer.step()
        if step in (1, STEPS):
            means = summarise(sum(statistics))
            print(f"step {step}: {key} {means['objective']:.4f}, nll {means['nll']:.4f}, p {means['p']:.4f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
