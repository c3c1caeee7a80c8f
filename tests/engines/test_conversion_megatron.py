"""Converted checkpoints in stock NeMo and Megatron-Core: they load strictly at any layout and compute what transformers
computes; what Megatron saves, and what NeMo trains, with and without LoRA, comes back to Hugging Face."""

import dataclasses
import json

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conversion import export_hf, import_hf, verify
from conversion.torch_dist import TorchDistReader
from nemo_probsft import config
from nemo_probsft.run import prepare
from tests.support.conversion_models import FAMILIES, make_hf
from tests.support.conversion_ranks import LORA, run_jobs

PIPELINED = ("qwen2-tied-301", "qwen3-untied")  # a save takes seconds, and two cover both kinds of last stage
TRAINED = {  # name: (family, world size, parallel section of the recipe, optimizer state, LoRA)
    "tp2": ("qwen2-tied-301", 2, {"tensor_model_parallel_size": 2}, True, False),
    "pp2-vpp2": (
        "qwen3-untied",
        2,
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        True,
        False,
    ),
    "tp2-pp2": (
        "llama3-tied-scaled-rope",
        4,
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
        False,
        False,
    ),
    "lora-tp2": ("qwen2-tied-301", 2, {"tensor_model_parallel_size": 2}, True, True),
}
WITHOUT_LORA = [name for name in TRAINED if not name.startswith("lora")]


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory):
    """Every family through Megatron and NeMo once: hf-*, nemo-* and what the jobs of conversion_ranks saved."""
    folder = tmp_path_factory.mktemp("megatron")
    for family in FAMILIES:
        make_hf(folder / f"hf-{family}", family, torch.float32)
        import_hf(folder / f"hf-{family}", folder / f"nemo-{family}")
    tokens = sample_tokens().tolist()
    checkpoints = {family: str(folder / f"nemo-{family}") for family in FAMILIES}
    jobs = [job(folder, "load_forward_save", 2, checkpoints=checkpoints, pipelined=PIPELINED, tokens=tokens)]
    for name, (family, world_size, parallel, optimizer, lora) in TRAINED.items():
        path, prepared = training(folder, name, family, world_size, parallel)
        arguments = {"recipe": path, "prepared": prepared, "save_optimizer": optimizer, "lora": lora, "tokens": tokens}
        jobs.append({"do": "train", "world_size": world_size, "arguments": arguments, "output": str(folder / name)})
    trained = {
        name: (str(folder / name / "trained" / "weights"), checkpoints[TRAINED[name][0]]) for name in WITHOUT_LORA
    }
    jobs.append(job(folder, "reload", 1, trained=trained, tokens=tokens))
    run_jobs(engine, jobs)
    return folder


def job(folder, do, world_size, **arguments):
    return {"do": do, "world_size": world_size, "arguments": arguments, "output": str(folder / do)}


def training(folder, name, family, world_size, parallel):
    """The path of a recipe and what `prepare` made for it: two steps of 4 examples."""
    (folder / "train.jsonl").write_text('{"prompt": "a b c", "response": "d e f"}\n' * 8)
    recipe = {
        "run_dir": str(folder / f"run-{name}"),
        "model": {"path": str(folder / f"nemo-{family}")},
        "data": {"train": str(folder / "train.jsonl"), "max_length": 16, "global_batch_size": 4, "micro_batch_size": 2},
        "objective": "original",
        "parallel": parallel,
        "optim": {"lr": 1e-2, "warmup_ratio": 0.0},
        "trainer": {"devices": world_size, "max_steps": 2, "precision": "fp32"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    prepared, _ = prepare.prepare(config.load(str(path), []))
    return str(path), dataclasses.asdict(prepared)


def sample_tokens():
    return torch.randint(301, (2, 40), generator=torch.Generator().manual_seed(0))


def result(folder, do):
    return torch.load(folder / do / "result.pt", weights_only=True)


@pytest.fixture
def run(folder):
    """(folder, tokens, what rank 0 of load_forward_save returned)."""
    return folder, sample_tokens(), result(folder, "load_forward_save")


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
    export_hf(folder / "load_forward_save" / f"{layout}-{family}", tmp_path / "back", base=folder / f"hf-{family}")
    report = verify(folder / f"hf-{family}", tmp_path / "back")
    assert report.equal, report.table()
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (folder / f"hf-{family}" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_megatron_saves_under_the_names_of_the_import(run, family):
    """Megatron maps its own layers to the names of Transformer Engine's on disk; the import writes the same ones."""
    folder, _, results = run
    imported = TorchDistReader(folder / f"nemo-{family}" / "weights")
    saved = TorchDistReader(folder / "load_forward_save" / f"tp2-{family}" / "weights")
    assert set(imported) == set(saved)
    assert {f"module.{key}" for key in imported} == {k for k in results[family]["keys"] if "_extra_state" not in k}
    for key in imported:
        assert imported.dtype(key) == saved.dtype(key)
        if key not in ("embedding.word_embeddings.weight", "output_layer.weight"):  # padded in Megatron
            assert imported.shape(key) == saved.shape(key)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("name", WITHOUT_LORA)
def test_what_nemo_trains_is_exported(folder, tmp_path, name, record_property):
    """At any layout, with and without optimizer state; the checkpoint needs no other directory."""
    family, _, _, optimizer, _ = TRAINED[name]
    saved = folder / name / "trained"
    index = (saved / "weights" / ".metadata").read_bytes()
    assert (b"optimizer.state.exp_avg" in index) == optimizer
    export_hf(saved, tmp_path / "back")
    tokens = sample_tokens()
    expected, base = result(folder, "reload")[name], logits(reference(folder, family), tokens)
    found = logits(load(tmp_path / "back"), tokens)
    difference = (found - expected[..., : found.shape[-1]]).abs().max().item()
    record_property("max_difference", difference)
    assert difference < 1e-4 < (found - base).abs().max() / 100
    for file in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (folder / f"hf-{family}" / file).read_bytes()


def test_lora_of_nemo_is_merged_and_loads_in_peft(folder, tmp_path):
    """Both are the model that NeMo held in memory when it saved the adapters."""
    saved, base = folder / "lora-tp2" / "trained", folder / f"hf-{TRAINED['lora-tp2'][0]}"
    tokens, trained = sample_tokens(), result(folder, "lora-tp2")
    export_hf(saved, tmp_path / "merged")
    export_hf(saved, tmp_path / "adapter", adapter=True)
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    merged = logits(load(tmp_path / "merged"), tokens)
    adapted = logits(peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter"), tokens)
    trained = trained[..., : merged.shape[-1]]
    assert (merged - trained).abs().max() < 1e-4
    assert (adapted - trained).abs().max() < 1e-4 < (trained - logits(load(base), tokens)).abs().max() / 100
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (LORA["dim"], LORA["alpha"])
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert verify(tmp_path / "merged", saved).equal
