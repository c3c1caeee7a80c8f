"""The order of the data is a pure function of seed and step, and a padded batch gives the logits of its rows alone."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from nemo_probsft.data.batches import collate, collate_packed, loss_rows, padded_length
from nemo_probsft.data.order import epoch_order, rank_micro_batches, step_indices, steps_per_epoch
from nemo_probsft.data.tokens import Example


def example(input_ids: list[int], num_prompt: int) -> Example:
    is_target = [int(i >= num_prompt) for i in range(len(input_ids))]
    return Example(np.array(input_ids, np.int32), np.array([*is_target[1:], 0], np.uint8))


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    orders = [epoch_order(50, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    # (seed, epoch) must not be folded into seed + epoch, or runs with neighbouring seeds would share their epochs.
    assert not np.array_equal(orders[1], orders[2])


def test_epoch_order_is_the_same_on_every_machine_and_version():
    assert epoch_order(10, 0, 0).tolist() == [6, 1, 0, 5, 3, 8, 7, 9, 2, 4]
    assert epoch_order(10, 3, 2).tolist() == [8, 1, 7, 2, 0, 3, 4, 9, 5, 6]


def test_steps_walk_through_epochs_and_drop_the_rest():
    seen = np.stack([step_indices(11, 4, 0, step) for step in range(6)])
    assert steps_per_epoch(11, 4) == 2
    for epoch in range(3):
        assert seen[2 * epoch : 2 * epoch + 2].ravel().tolist() == epoch_order(11, 0, epoch)[:8].tolist()
    assert np.array_equal(step_indices(11, 4, 0, 5), seen[5])  # asked alone, as after a resume, and in any order
    assert np.array_equal(step_indices(11, 4, 0, 0), seen[0])


def test_ranks_share_a_global_batch_without_overlap():
    indices = step_indices(100, 24, 0, 3)
    for dp_size in (1, 2, 4):
        for micro_batch_size in (1, 2, 3):
            shares = [rank_micro_batches(indices, micro_batch_size, rank, dp_size) for rank in range(dp_size)]
            assert {share.shape for share in shares} == {(24 // dp_size // micro_batch_size, micro_batch_size)}
            assert sorted(np.concatenate(shares).ravel()) == sorted(indices)


def test_bad_batch_sizes():
    with pytest.raises(ValueError, match=r"^the data has 3 examples, .*: lower global_batch_size 4 or add data$"):
        steps_per_epoch(3, 4)
    with pytest.raises(ValueError, match=r"size 4 is not a multiple of micro_batch_size 1 x data-parallel size 3$"):
        rank_micro_batches(np.arange(4), 1, 0, 3)


def test_collate_shifts_labels_and_pads_on_the_right():
    batch = collate([example([5, 6, 7, 8], 2), example([5, 9], 1)], pad_id=0, pad_to_multiple_of=4)
    assert batch["tokens"].tolist() == [[5, 6, 7, 0], [5, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 7, 8, -100], [9, -100, -100, -100]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 2
    assert batch["attention_mask"].tolist() == [
        [[[False] + [True] * 3, [False] * 2 + [True] * 2, [False] * 3 + [True], [False] * 4]]
    ]
    assert [batch[name].dtype for name in ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")] == [
        torch.int64,
        torch.int64,
        torch.float32,
        torch.int64,
        torch.bool,
    ]


def test_the_rows_with_a_loss_are_those_of_the_head():
    """Megatron's hidden states are [s, b, H]: the row of position t of example i is t b + i."""
    batch = collate([example([5, 6, 7, 8], 2), example([5, 9], 1), example([5, 6, 7], 2)], pad_id=0)
    assert batch["loss_rows"].tolist() == [0 * 3 + 1, 1 * 3 + 0, 1 * 3 + 2, 2 * 3 + 0]
    assert batch["loss_rows"].dtype == torch.int64
    labels = batch["labels"].transpose(0, 1).reshape(-1)
    assert labels[batch["loss_rows"]].tolist() == [9, 7, 7, 8]
    assert not torch.equal(batch["loss_mask"].reshape(-1).nonzero().squeeze(1), batch["loss_rows"]), "[b, s] would pass"
    assert loss_rows(torch.zeros(2, 3)).tolist() == []


def test_collate_lengths():
    examples = [example([5, 6, 7, 8], 2)]
    assert padded_length(4) == 3
    assert [padded_length(n, 4) for n in (2, 5, 6)] == [4, 4, 8]
    assert collate(examples, 0)["tokens"].shape == (1, 3)
    long = collate(examples, 0, length=8, pad_to_multiple_of=2, attention_mask=False)
    assert long["tokens"].shape == (1, 8)
    assert "attention_mask" not in long
    with pytest.raises(AssertionError, match="does not fit 2 positions"):
        collate(examples, 0, length=2)
    with pytest.raises(AssertionError, match="8 positions are no multiple of 3"):
        collate(examples, 0, length=8, pad_to_multiple_of=3)


@pytest.fixture(scope="module")
def model():
    """Rotary, of two layers, in float64."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    config = Qwen2Config(vocab_size=32, num_attention_heads=2, num_key_value_heads=2, **shape)
    return Qwen2ForCausalLM(config).double().eval()


def logits(model, batch: dict, forbidden: torch.Tensor) -> torch.Tensor:
    bias = torch.zeros(forbidden.shape, dtype=torch.float64).masked_fill(forbidden, -torch.inf)
    shape = (batch["tokens"].shape[0], 1, *forbidden.shape[2:])
    ids = {"input_ids": batch["tokens"], "position_ids": batch["position_ids"]}
    return model(**ids, attention_mask=bias.expand(shape)).logits


def alone(model, row: Example) -> torch.Tensor:
    return model(torch.tensor(row.input_ids[None, :-1], dtype=torch.int64)).logits[0]


def test_right_padding_needs_no_padding_mask(model):
    """Under the causal mask alone, the logits at real positions are those of the row alone, whatever the padding is."""
    rows = [example([5, 6, 7, 8, 9, 1], 2), example([5, 9, 1], 1), example([3, 4, 5, 1], 3)]
    for pad_id in (0, 7):
        batch = collate(rows, pad_id, pad_to_multiple_of=8)
        forbidden = batch["attention_mask"]
        padded, without_mask = logits(model, batch, forbidden), logits(model, batch, torch.zeros_like(forbidden))
        for i, row in enumerate(rows):
            n = len(row.input_ids) - 1
            torch.testing.assert_close(padded[i, :n], alone(model, row), rtol=1e-10, atol=1e-12)
            assert (without_mask[i, :n] - alone(model, row)).abs().max() > 1e-3
            assert batch["loss_mask"][i, n:].sum() == 0


PACKED = [[example([5, 6, 7, 8], 2), example([5, 9], 1), example([2, 3, 4], 1)], [example([9, 8, 7, 1], 3)], []]


def test_packed_rows_hold_the_tensors_of_their_examples():
    batch = collate_packed(PACKED, 0, pad_to_multiple_of=4)
    assert batch["tokens"].tolist() == [[5, 6, 7, 5, 2, 3, 0, 0], [9, 8, 7, 0, 0, 0, 0, 0], [0] * 8]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4], list(range(8))]
    assert batch["attention_mask"].shape == (3, 1, 8, 8)
    for i, row in enumerate(PACKED):
        start = 0
        for item in row:
            separate = collate([item], 0)
            end = start + len(item.input_ids) - 1
            for name in ("tokens", "labels", "loss_mask", "position_ids"):
                assert torch.equal(batch[name][i, start:end], separate[name][0])
                assert batch[name].dtype == separate[name].dtype
            assert torch.equal(batch["attention_mask"][i, 0, start:end, start:end], separate["attention_mask"][0, 0])
            assert batch["attention_mask"][i, 0, start:end, :start].all()
            assert batch["attention_mask"][i, 0, end:, start:end].all()
            start = end
        assert (batch["labels"][i, start:] == -100).all()
        assert not batch["loss_mask"][i, start:].any()
    assert not batch["attention_mask"].all(-1).any()  # a token that may attend to nothing has no softmax


def test_a_packed_row_has_the_logits_of_its_examples_alone(model):
    """Whatever its positions are: rotary attention depends on distances only, up to its rounding of angles to fp32."""
    batch = collate_packed(PACKED, 0, pad_to_multiple_of=4)
    forbidden = batch["attention_mask"]
    going_on = batch | {"position_ids": torch.arange(8).expand(3, 8)}
    variants = {
        "ours": logits(model, batch, forbidden),
        "positions that go on": logits(model, going_on, forbidden),
        "attention to earlier examples": logits(model, batch, torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)),
    }
    apart = dict.fromkeys(variants, 0.0)
    for i, row in enumerate(PACKED):
        start = 0
        for item in row:
            end = start + len(item.input_ids) - 1
            for name, found in variants.items():
                difference = (found[i, start:end] - alone(model, item)).abs().max().item()
                apart[name] = max(apart[name], difference)
            start = end
    assert apart["ours"] < 1e-12
    assert apart["positions that go on"] < 1e-6
    assert apart["attention to earlier examples"] > 1e-2


def test_rows_are_joined_to_one_for_variable_length_attention():
    batch = collate_packed(PACKED, 0, pad_to_multiple_of=4, attention_mask=False)
    assert batch["tokens"].tolist() == [[5, 6, 7, 5, 2, 3, 9, 8, 7, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 0, 1, 2, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 7, 8, 9, 3, 4, -100, -100, 1, -100, -100, -100]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 4, 6, 9, 12]
    assert (batch["cu_seqlens_argmin"], batch["max_seqlen"]) == (6, 3)
    assert {batch[name].dtype for name in ("cu_seqlens", "cu_seqlens_argmin", "max_seqlen")} == {torch.int32}
    assert "attention_mask" not in batch
    full = collate_packed(PACKED[1:2], 0, pad_to_multiple_of=3, attention_mask=False)
    assert full["cu_seqlens"].tolist() == [0, 3]  # nothing pads
    empty = collate_packed([[]], 0, pad_to_multiple_of=4, attention_mask=False)
    assert empty["cu_seqlens"].tolist() == [0, 4]
