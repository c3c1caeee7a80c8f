"""Models that are refused from their files alone: what NeMo would compute otherwise, and what would run as code."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo

from nemo_probsft import config
from nemo_probsft.config.exactness import MODEL_SETTINGS
from nemo_probsft.run.model_files import ARCHITECTURES, EXPORT, check_model
from tests.support.model_directories import huggingface, nemo


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: {path: m}\ndata: {train: t.jsonl, global_batch_size: 24}\nobjective: p\n")


def refusal(*overrides):
    before = sorted(Path().rglob("*"))
    with pytest.raises(ValueError, match=r".") as caught:
        check_model(config.load("r.yaml", overrides))
    assert sorted(Path().rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reason(*overrides):
    return check_model(config.load("r.yaml", overrides))[0].reason


MODEL = "r.yaml:1: model.path: "
NEMO = "override model.path=n: model.path: "


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_supported_architectures_pass(architecture):
    huggingface(architectures=[architecture], model_type=architecture.removesuffix("ForCausalLM").lower())
    assert reason() == "Hugging Face directory"


BAD_CONFIGS = [
    (
        {"architectures": ["GPT2LMHeadModel"]},
        "m/config.json has architecture GPT2LMHeadModel; use one of LlamaForCausalLM, Qwen2ForCausalLM, "
        "Qwen3ForCausalLM",
    ),
    (
        {"num_hidden_layers": None},
        "m/config.json: num_hidden_layers must be a positive integer, not None; use another model",
    ),
    (
        {"vocab_size": "48"},
        "m/config.json: vocab_size must be a positive integer, not '48'; use another model",
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        "m/config.json: rope_scaling {'rope_type': 'yarn', 'factor': 4} of qwen2 has no counterpart in NeMo or "
        "Megatron-Bridge; use another model",
    ),
    (
        {"rope_scaling": "yarn"},
        "m/config.json: rope_scaling must be a mapping, not 'yarn'; use another model",
    ),
    (
        {"use_sliding_window": True},
        "m/config.json sets use_sliding_window: true, which Megatron would ignore; use another model",
    ),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "m/config.json sets layer_types other than full_attention, which Megatron would ignore; use another model",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4}},
        "m/config.json: rope_parameters {'rope_type': 'yarn', 'factor': 4} of qwen2 has no counterpart in NeMo or "
        "Megatron-Bridge; use another model",
    ),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "m/config.json: rope_parameters {'full_attention': {'rope_theta': 1000000.0}} differs by layer; only one set "
        "for all layers is supported; use another model",
    ),
    (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True},
        "m/config.json sets attention_bias: true, which Megatron would ignore; use another model",
    ),
    (
        {"attention_dropout": 0.1},
        "m/config.json sets attention_dropout: 0.1, which Megatron would ignore; use another model",
    ),
    (
        {"num_nextn_predict_layers": 1},
        "m/config.json sets num_nextn_predict_layers: each of them adds a loss of its own to the objective; use "
        "another model",
    ),
    (
        {"hidden_act": "gelu"},
        "m/config.json: hidden_act is 'gelu'; only 'silu' is supported; use another model",
    ),
    (
        {"quantization_config": {"bits": 4}},
        "m/config.json: quantization_config is {'bits': 4}; only None is supported; use another model",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS)
def test_model_that_would_be_loaded_wrongly_is_refused(changes, message):
    huggingface(**changes)
    assert refusal() == MODEL + message


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def in_both_spellings(**changes):
    """The key and config.json of transformers 4, and those of 5."""
    rope = {"rope_type": "llama3", **LLAMA3, **changes}
    return [
        ("rope_scaling", {"rope_scaling": rope}),
        ("rope_parameters", {"rope_parameters": rope | {"rope_theta": 1e6}}),
    ]


def test_settings_that_nemo_reads_pass():
    for _, spelling in in_both_spellings():
        huggingface(**LLAMA, **spelling)
        assert reason() == "Hugging Face directory"
    huggingface(rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    assert reason() == "Hugging Face directory"
    huggingface(rope_theta=1e6, use_sliding_window=False, attention_dropout=0.0, num_nextn_predict_layers=0)
    assert reason() == "Hugging Face directory"


def test_bias_of_the_output_layer_is_refused():
    from safetensors.torch import load_file, save_file

    path = huggingface() / "model.safetensors"
    save_file(load_file(path) | {"lm_head.bias": torch.zeros(48)}, path)
    assert refusal() == MODEL + (
        "m: 1 tensors are not part of this qwen2 model, e.g. lm_head.bias; restore the model, or use another"
    )


def test_incomplete_model_directories_are_refused():
    huggingface("without-tokenizer", tokenizer=None)
    assert refusal("model.path=without-tokenizer") == (
        "override model.path=without-tokenizer: model.path: without-tokenizer has no tokenizer (tokenizer.json, "
        "tokenizer.model, vocab.json); save the model's tokenizer there"
    )
    huggingface("bin", weights="pytorch_model.bin")
    assert "bin has no .safetensors weights; convert it" in refusal("model.path=bin")
    path = huggingface("sharded", weights="a.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert "b.safetensors" in refusal("model.path=sharded")
    for content in ("[]", '{"weight_map": {"x": "../m/model.safetensors"}}', "{", "[" * 100_000):
        index.write_text(content)
        assert refusal("model.path=sharded").startswith("override model.path=sharded: model.path: ")
    for content in ("{", "[" * 100_000, "[]", "\xff", "3"):
        (path / "config.json").write_text(content, encoding="latin-1")
        assert "sharded/config.json is not a model's configuration (" in refusal("model.path=sharded")
    damaged = huggingface("damaged") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "damaged" in refusal("model.path=damaged")
    (nemo("unfinished") / "weights" / "metadata.json").unlink()
    assert refusal("model.path=unfinished").endswith(
        "unfinished has neither config.json (Hugging Face) nor complete weights/ and context/ (NeMo) nor a complete "
        "iter_N (Bridge); name a model"
    )


def test_nemo_checkpoint_and_its_shape():
    nemo()
    assert reason("model.path=n") == "NeMo checkpoint"
    size = "parallel.tensor_model_parallel_size=8"
    assert refusal("model.path=n", "trainer.devices=8", size).endswith(
        "8 does not divide the 4 key-value heads of n/hf/config.json; use one of 1, 2, 4"
    )


def test_nemo_checkpoint_without_hugging_face_files_is_refused():
    (nemo() / "hf" / "config.json").unlink()
    assert refusal("model.path=n") == NEMO + (
        "n has no config.json in hf/ or context/hf/, so it could not be exported again; make it from the Hugging Face "
        "directory with `nemo-probsft convert import`"
    )


def name(module, symbol):
    return {"type": "pyref", "module": module, "name": symbol}


WRONG = {
    "parallel_output": False,
    "mtp_num_layers": 1,
    "num_moe_experts": 8,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "fp8": "hybrid",
    "fp4": "e2m1",
    "fp8_output_proj": True,
    "quant_recipe": "x",
    "use_kitchen": True,
    "restore_modelopt_state": True,
    "fp16_lm_cross_entropy": True,
    "use_mup": True,
    "final_logit_softcapping": 30.0,
    "seq_len_interpolation_factor": 2.0,
    "experimental_attention_variant": "dsa",
    "is_hybrid_model": True,
    "delay_wgrad_compute": True,
    "overlap_moe_expert_parallel_comm": True,
    "cuda_graph_impl": "local",
    "hybrid_context_parallel": True,
    "gtp_weight_remat_size": 2,
    "tensor_parallel_num_weight_shards": 2,
    "defer_embedding_wgrad_compute": True,
    "forward_step_fn": name("nemo.collections.llm.gpt.model.hf_llama_embedding", "forward_step"),
    "data_step_fn": name("nemo.collections.llm.gpt.model.base", "other_data_step"),
    "enable_cuda_graph": True,
    "external_cuda_graph": True,
    "pipeline_model_parallel_layout": "Et*3|t*9L",
    "num_layers_in_first_pipeline_stage": 5,
    "num_layers_in_last_pipeline_stage": 5,
    "account_for_embedding_in_pipeline_split": True,
    "account_for_loss_in_pipeline_split": True,
}


@pytest.mark.parametrize("setting", MODEL_SETTINGS, ids=[setting.name for setting in MODEL_SETTINGS])
def test_nemo_checkpoint_with_another_objective_in_its_settings_is_refused(setting):
    value = WRONG[setting.name]
    nemo(**{setting.name: value})
    shown = f"{value['module']}.{value['name']}" if isinstance(value, dict) else value
    assert refusal("model.path=n") == NEMO + f"n was made with {setting.name} {shown} ({setting.why}); {EXPORT}"


def test_nemo_checkpoint_with_harmless_settings_passes():
    nemo(
        calculate_per_token_loss=False,  # the trainer sets it
        cross_entropy_loss_fusion=True,
        mtp_num_layers=None,
        forward_step_fn=name("nemo.collections.llm.gpt.model.base", "gpt_forward_step"),
        attention_backend=name("megatron.core.transformer.enums", "AttnBackend.unfused"),
        activation_func=name("torch.nn.functional", "silu"),
    )
    assert reason("model.path=n") == "NeMo checkpoint"


def test_settings_are_also_read_where_nemo_writes_the_defaults_of_a_class():
    path = nemo()
    (path / "context" / "model.yaml").write_text("_target_: x\nconfig: {mtp_num_layers: 2}\n")
    assert "n was made with mtp_num_layers 2 (" in refusal("model.path=n")
    (path / "context" / "model.yaml").write_text("config: !!python/object/apply:os.system ['true']\n")
    assert refusal("model.path=n") == NEMO + "n/context/model.yaml was not written by NeMo; save the model again"


def edit(path, change):
    source = path / "context" / "io.json"
    tree = json.loads(source.read_text())
    change(tree["objects"])
    source.write_text(json.dumps(tree))


def objects_of(objects, kind):
    return [item for item in objects.values() if item["type"]["name"] == kind]


def target(item):
    return dict(item["items"])["Attr(name='fn_or_cls')"]


def call_os_system(objects):
    for item in objects_of(objects, "BuildableTraverserMetadata"):
        if target(item)["name"] == "AutoTokenizer":
            target(item).update(name("os", "system"))


def unpickle_a_file(objects):
    next(item for item in objects.values() if "<root>.model.tokenizer" in item.get("paths", []))["type"] = name(
        "nemo.collections.common.tokenizers", "AutoTokenizer"
    )


def import_a_module(objects):
    objects["x"] = {"type": name("antigravity", "x"), "items": [], "metadata": None}


def other_model(objects):
    for item in objects_of(objects, "BuildableTraverserMetadata"):
        if target(item)["name"] == "Qwen2Config":
            target(item).update(name("nemo.collections.llm.gpt.model.qwen3", "Qwen3MoEConfig"))


def function_value(objects):
    config_item = next(item for item in objects.values() if "<root>.model.config" in item.get("paths", []))
    config_item["items"].append(["Attr(name='activation_func')", name("os", "system")])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (call_os_system, "os.system"),
        (unpickle_a_file, "nemo.collections.common.tokenizers.AutoTokenizer"),
        (import_a_module, "antigravity.x"),
        (other_model, "nemo.collections.llm.gpt.model.qwen3.Qwen3MoEConfig"),
        (function_value, "os.system"),
    ],
)
def test_nemo_checkpoint_that_names_foreign_code_is_refused(change, what):
    edit(nemo(), change)
    assert refusal("model.path=n") == NEMO + (
        f"n/context/io.json would build {what}, which is none of NeMo's Llama, Qwen2 and Qwen3 parts; {EXPORT}"
    )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"objects": {}}', '{"objects": {"a": 3}}', "[" * 100_000, "\ud800", '{"objects": 3}']
)
def test_damaged_description_is_refused(content):
    (nemo() / "context" / "io.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert refusal("model.path=n").startswith(NEMO + "n/context/io.json is not the description of a NeMo model (")


def test_adapters_without_their_base_are_refused():
    def add(objects):
        model = next(item for item in objects.values() if "<root>.model" in item.get("paths", []))
        model["items"].append(["Attr(name='model_transform')", {"type": "leaf", "value": "lora", "paths": []}])

    edit(nemo(), add)
    assert refusal("model.path=n") == NEMO + (
        f"n holds adapters (LoRA) of another checkpoint; {EXPORT}, which merges them"
    )


def test_tokenizer_that_would_run_code_needs_leave():
    def trust(objects):
        tokenizer = next(item for item in objects.values() if "<root>.model.tokenizer" in item.get("paths", []))
        tokenizer["items"].append(["Attr(name='trust_remote_code')", {"type": "leaf", "value": True, "paths": []}])

    edit(nemo(), trust)
    assert refusal("model.path=n") == NEMO + (
        f"n has a tokenizer with trust_remote_code; set model.trust_remote_code: true, or {EXPORT}"
    )
    assert reason("model.path=n", "model.trust_remote_code=true") == "NeMo checkpoint"


class Mark:
    def __reduce__(self):
        return (Path("unpickled").touch, ())


def test_pickles_of_a_checkpoint_are_never_run():
    path = nemo()
    (path / "weights" / ".metadata").write_bytes(pickle.dumps(Mark()))
    assert "damaged or foreign checkpoint index" in refusal("model.path=n")
    assert not Path("unpickled").exists()


def test_filled_extra_state_is_refused():
    """Transformer Engine unpickles what is in it."""
    weights = nemo() / "weights"
    metadata = pickle.loads((weights / ".metadata").read_bytes())
    index = next(index for index in metadata.storage_data if "linear_fc2._extra_state" in index.fqn)
    torch.save([torch.ones(8, dtype=torch.uint8)], weights / "__9_0.distcp")
    metadata.storage_data[index] = _StorageInfo("__9_0.distcp", 0, (weights / "__9_0.distcp").stat().st_size)
    (weights / ".metadata").write_bytes(pickle.dumps(metadata))
    assert refusal("model.path=n") == NEMO + (
        f"n holds pickled state of Transformer Engine ({index.fqn}), which can run code; {EXPORT}"
    )
    (weights / "__9_0.distcp").write_bytes(pickle.dumps(Mark()).ljust(2000))
    assert "is damaged" in refusal("model.path=n")
    assert not Path("unpickled").exists()
