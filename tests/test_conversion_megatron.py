"""Converted checkpoints in stock NeMo and Megatron-Core: they load strictly at any layout, compute what transformers
computes, and what Megatron saves comes back to Hugging Face bit by bit."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from conversion import export_hf, import_hf, verify
from conversion.torch_dist import TorchDistReader
from tests.conversion_models import FAMILIES, make_hf
from tests.conversion_ranks import PIPELINED, load_forward_save
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every family through Megatron once: (folder, tokens, results of rank 0)."""
    folder = tmp_path_factory.mktemp("megatron")
    tokens = torch.randint(301, (2, 40), generator=torch.Generator().manual_seed(0))
    for family in FAMILIES:
        make_hf(folder / f"hf-{family}", family, torch.float32)
        import_hf(folder / f"hf-{family}", folder / f"nemo-{family}")
    checkpoints = {family: folder / f"nemo-{family}" for family in FAMILIES}
    results = run_ranks(load_forward_save, 2, checkpoints, tokens, folder, timeout_s=600)  # each rank imports NeMo
    return folder, tokens, results[0]


def reference(folder, family):
    return AutoModelForCausalLM.from_pretrained(
        folder / f"hf-{family}", dtype=torch.float32, attn_implementation="eager"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(run, family, record_property):
    folder, tokens, results = run
    with torch.no_grad():
        expected = reference(folder, family)(tokens).logits
    vocab_size = expected.shape[-1]
    for layout in ("tp1", "tp2"):
        logits = results[family][layout]
        assert logits.shape[-1] == 384  # padded
        difference = (logits[..., :vocab_size] - expected).abs().max().item()
        record_property(f"max_difference_{layout}", difference)
        assert difference < 1e-4 < expected.abs().max() / 10
        assert not logits[..., vocab_size:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_greedy_tokens_equal_those_of_transformers(run, family):
    folder, tokens, results = run
    prompt = tokens[:1, :8]
    expected = reference(folder, family).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=50, min_new_tokens=50, do_sample=False
    )
    assert results[family]["greedy"].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("layout", "family"), [("tp2", family) for family in FAMILIES] + [("pp2", family) for family in PIPELINED]
)
def test_what_megatron_saves_comes_back(run, tmp_path, family, layout):
    folder, _, _ = run
    export_hf(folder / f"{layout}-{family}", tmp_path / "back", base=folder / f"hf-{family}")
    report = verify(folder / f"hf-{family}", tmp_path / "back")
    assert report.equal, report.table()
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (folder / f"hf-{family}" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_megatron_saves_under_the_names_of_the_import(run, family):
    """Megatron maps its own layers to the names of Transformer Engine's on disk; the import writes the same ones."""
    folder, _, results = run
    imported = TorchDistReader(folder / f"nemo-{family}" / "weights")
    saved = TorchDistReader(folder / f"tp2-{family}" / "weights")
    assert set(imported) == set(saved)
    assert {f"module.{key}" for key in imported} == {k for k in results[family]["keys"] if "_extra_state" not in k}
    for key in imported:
        assert imported.dtype(key) == saved.dtype(key)
        if key not in ("embedding.word_embeddings.weight", "output_layer.weight"):  # padded in Megatron
            assert imported.shape(key) == saved.shape(key)
