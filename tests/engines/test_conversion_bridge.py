"""Stock Megatron-Bridge loads what the conversion writes, and the conversion reads what Bridge saves."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conversion import export_hf, import_hf, verify
from conversion.bridge_config import read_run_config
from conversion.checkpoint import last_checkpoint
from tests.support.conversion_bridge_ranks import LORA, STEPS, run_jobs
from tests.support.conversion_models import LLAMA3_ROPE, RELEASED_ROPE, make_hf

LOADED = ("qwen2-tied-301", "qwen3-tied-wide-heads", RELEASED_ROPE)
TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2, "variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
TRAINED = {  # name: (family, layout, base: imported checkpoint or Hugging Face directory, LoRA)
    "tp2": ("qwen2-tied-301", TP2, "bridge", False),
    "pp2": (RELEASED_ROPE, PP2, "bridge", False),
    "lora": ("qwen2-tied-301", TP2, "bridge", True),
    "lora-on-hf": ("qwen3-tied-wide-heads", TP2, "hf", True),
}
WHOLE = [name for name, (*_, lora) in TRAINED.items() if not lora]


@pytest.fixture(scope="module")
def folder(bridge, tmp_path_factory):
    """hf-* and bridge-* of every family, and what the jobs of conversion_bridge_ranks saved."""
    folder = tmp_path_factory.mktemp("bridge")
    for family in LOADED:
        make_hf(folder / f"hf-{family}", family, torch.float32)
        import_hf(folder / f"hf-{family}", folder / f"bridge-{family}", engine="bridge")
    tokens = sample_tokens().tolist()
    imported = {family: str(folder / f"bridge-{family}") for family in LOADED}
    sources = {family: str(folder / f"hf-{family}") for family in LOADED}
    jobs = [job(folder, "load", "load", 1, checkpoints=imported, models=sources, tokens=tokens)]
    for name, (family, layout, base, lora) in TRAINED.items():
        arguments = {"base": str(folder / f"{base}-{family}"), "hf": sources[family], "parallel": layout, "lora": lora}
        jobs.append(job(folder, "train", name, 2, **arguments, tokens=tokens))
    trained = {name: str(folder / name / "checkpoints") for name in WHOLE}
    models = {name: sources[TRAINED[name][0]] for name in WHOLE}
    jobs.append(job(folder, "export", "export", 1, trained=trained, models=models))
    run_jobs(bridge, jobs)
    return folder


def job(folder, do, name, world_size, **arguments):
    return {"do": do, "world_size": world_size, "arguments": arguments, "output": str(folder / name)}


def sample_tokens():
    return torch.randint(301, (2, 40), generator=torch.Generator().manual_seed(0))


def result(folder, name):
    return torch.load(folder / name / "result.pt", weights_only=True)


def logits(directory, **settings):
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **settings
    )
    with torch.no_grad():
        return model(sample_tokens()).logits


@pytest.mark.parametrize("family", LOADED)
def test_bridge_computes_the_logits_of_transformers(folder, family, record_property):
    expected, found = logits(folder / f"hf-{family}"), result(folder, "load")[family]["logits"]
    difference = (found - expected).abs().max().item()
    record_property("max_difference", difference)
    assert difference < 2e-4 < expected.abs().max() / 1000


@pytest.mark.parametrize("family", LOADED)
def test_the_imported_description_is_what_bridge_makes_of_config_json(folder, family):
    assert result(folder, "load")[family]["differing"] == {}


def test_rope_that_is_refused_would_be_computed_wrongly(folder):
    """What Bridge computes does not depend on the four constants, what transformers computes does."""
    found = result(folder, "load")[RELEASED_ROPE]["logits"]
    other = logits(folder / f"hf-{RELEASED_ROPE}", rope_scaling=LLAMA3_ROPE)
    assert (found - other).abs().max() > 0.1


@pytest.mark.parametrize("name", WHOLE)
def test_what_bridge_trains_is_exported_as_bridge_exports_it(folder, tmp_path, name, record_property):
    """With the optimizer's state beside it, and at any layout; Bridge leaves the vocabulary's padding in."""
    family, checkpoints = TRAINED[name][0], folder / name / "checkpoints"
    saved = last_checkpoint(checkpoints)
    assert saved.name == f"iter_{STEPS:07d}"
    assert b"optimizer.state.exp_avg" in (saved / ".metadata").read_bytes()
    assert read_run_config(saved)["share_embeddings_and_output_weights"] == (name == "tp2")
    export_hf(checkpoints, tmp_path / "back", base=folder / f"hf-{family}")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "back", folder / "export" / name))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key][: len(tensor)]) for key, tensor in ours.items())
    found, base = logits(tmp_path / "back"), logits(folder / f"hf-{family}")
    assert (found - base).abs().max() > 0.1
    if name == "tp2":  # the first rank, which returns its logits, has all stages
        difference = (found - result(folder, name)[..., : found.shape[-1]]).abs().max().item()
        record_property("max_difference", difference)
        assert difference < 1e-4


def test_what_bridge_trains_becomes_a_nemo_checkpoint(folder, tmp_path):
    hf = folder / f"hf-{TRAINED['tp2'][0]}"
    import_hf(folder / "tp2" / "checkpoints", tmp_path / "nemo", base=hf)
    assert verify(tmp_path / "nemo", folder / "tp2" / "checkpoints").equal
    assert not verify(tmp_path / "nemo", hf).equal


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in WHOLE])
def test_lora_of_bridge_is_merged_and_written_for_peft(folder, tmp_path, name):
    """The base is the one that run_config.yaml names: an imported checkpoint, or a Hugging Face directory."""
    family = TRAINED[name][0]
    checkpoints = folder / name / "checkpoints"
    export_hf(checkpoints, tmp_path / "merged")
    found, base = logits(tmp_path / "merged"), logits(folder / f"hf-{family}")
    trained = result(folder, name)[..., : found.shape[-1]]
    assert (found - trained).abs().max() < 2e-4 < (found - base).abs().max() / 100
    export_hf(checkpoints, tmp_path / "adapter", adapter=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (LORA["dim"], LORA["alpha"])
