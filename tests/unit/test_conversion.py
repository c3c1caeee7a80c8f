"""Hugging Face -> NeMo -> Hugging Face: every byte comes back; the Megatron layout is the documented one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion import export_hf, import_hf, verify
from conversion.families import mappings, model_spec
from conversion.layout import Rows, locate, pieces, segments, split
from conversion.torch_dist import TorchDistReader, TorchDistWriter
from nemo_probsft import config
from nemo_probsft.__main__ import main
from nemo_probsft.run import decisions
from tests.support.conversion_models import FAMILIES, make_hf


def files(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_round_trip_returns_every_byte(tmp_path, family, dtype):
    source = make_hf(tmp_path / "hf", family, dtype)
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    expected, returned = files(source), files(tmp_path / "back")
    assert returned.keys() == expected.keys()
    assert [name for name in expected if returned[name] != expected[name]] == []


def test_shards_and_index_are_those_of_save_pretrained(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen2-untied-384", max_shard_size=300_000)
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back", shard_bytes=300_000)
    expected, returned = files(source), files(tmp_path / "back")
    index = "model.safetensors.index.json"
    assert len([name for name in expected if name.endswith(".safetensors")]) > 2
    assert json.loads(returned.pop(index)) == json.loads(expected.pop(index))
    assert returned == expected


def test_exported_directory_loads_in_transformers_with_the_same_logits(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen3-tied-wide-heads", torch.float32)
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        a, b = (AutoModelForCausalLM.from_pretrained(d)(tokens).logits for d in (source, tmp_path / "back"))
    assert torch.equal(a, b)
    assert AutoTokenizer.from_pretrained(tmp_path / "back").apply_chat_template([{"role": "user", "content": "a b"}])


def test_qkv_rows_are_interleaved_by_query_group():
    """Megatron's order (Attention.get_query_key_value_tensors): q heads of group 0, its k, its v, then group 1."""
    config = FAMILIES["qwen2-untied-384"].to_dict()
    spec = model_spec(config)
    mapping = next(m for m in mappings(spec) if m.megatron.endswith("linear_qkv.bias"))
    q = torch.tensor([[100 + head] * 32 for head in range(4)]).flatten()
    k = torch.tensor([[200 + head] * 32 for head in range(2)]).flatten()
    v = torch.tensor([[300 + head] * 32 for head in range(2)]).flatten()
    fused = torch.cat([(q, k, v)[part][first : first + count] for part, first, count in segments(mapping, spec)])
    assert fused[::32].tolist() == [100, 101, 200, 300, 102, 103, 201, 301]
    assert not torch.equal(fused, torch.cat([q, k, v]))  # the plain concatenation is the classic mistake
    assert all(torch.equal(x, y) for x, y in zip(split(mapping, fused, spec), (q, k, v), strict=True))
    for first, count in ((0, 256), (50, 100), (63, 2), (255, 1)):
        found = [(q, k, v)[part][low : low + size] for part, low, size in pieces(mapping, spec, first, count)]
        assert torch.equal(torch.cat(found), fused[first : first + count])
    found = [fused[low : low + size] for low, size in locate(mapping, spec, Rows(0, 30, 90))]
    assert torch.equal(torch.cat(found), q[30:120])


def test_keys_and_shapes_are_those_of_transformer_engine_layers(tmp_path):
    import_hf(make_hf(tmp_path / "hf", "qwen3-untied"), tmp_path / "nemo")
    reader = TorchDistReader(tmp_path / "nemo" / "weights")
    layer = "decoder.layers."
    assert {key: reader.shape(key) for key in reader} == {
        "embedding.word_embeddings.weight": (384, 128),
        f"{layer}self_attention.linear_qkv.layer_norm_weight": (4, 128),
        f"{layer}self_attention.linear_qkv.weight": (4, 256, 128),
        f"{layer}self_attention.q_layernorm.weight": (4, 32),
        f"{layer}self_attention.k_layernorm.weight": (4, 32),
        f"{layer}self_attention.linear_proj.weight": (4, 128, 128),
        f"{layer}mlp.linear_fc1.layer_norm_weight": (4, 128),
        f"{layer}mlp.linear_fc1.weight": (4, 384, 128),
        f"{layer}mlp.linear_fc2.weight": (4, 128, 192),
        "decoder.final_layernorm.weight": (128,),
        "output_layer.weight": (384, 128),
    }


def test_dtype_converts_the_weights_and_says_so_in_the_config(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen2-tied-301", torch.float32)
    import_hf(source, tmp_path / "nemo", dtype="bfloat16")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(after[name], tensor.bfloat16()) for name, tensor in before.items())
    configs = [json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "back")]
    assert configs[1] == configs[0] | {"dtype": "bfloat16"} != configs[0]


def test_import_order_of_source_files_does_not_matter(tmp_path):
    """Hub snapshots hold links to blobs, and shards cut at any tensor."""
    source = make_hf(tmp_path / "hf", "qwen2-tied-301")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, blobs / shard)
        (source / shard).symlink_to(blobs / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    returned = load_file(tmp_path / "back" / "model.safetensors")
    assert returned.keys() == tensors.keys()
    assert all(torch.equal(returned[name], tensors[name]) for name in tensors)


def test_export_takes_model_files_from_base(tmp_path):
    source = make_hf(tmp_path / "hf", "deepseekmath")
    import_hf(source, tmp_path / "nemo")
    for base in (source, tmp_path / "nemo"):
        bare = tmp_path / f"bare-{base.name}"
        bare.mkdir()
        (bare / "weights").symlink_to(tmp_path / "nemo" / "weights")
        with pytest.raises(ValueError, match="--base"):
            export_hf(bare, tmp_path / "out")
        export_hf(bare, tmp_path / f"out-{base.name}", base=base)
        assert files(tmp_path / f"out-{base.name}") == files(source)


def test_verify_reports_what_differs(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen2-tied-301")
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    same = verify(source, tmp_path / "nemo", logits=True)
    assert (same.equal, same.num_tensors, same.logits) == (True, 50, 0.0)
    assert verify(tmp_path / "nemo", tmp_path / "nemo").equal

    tensors = load_file(tmp_path / "back" / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.bias"
    tensors[name][5] += 0.5
    save_file(tensors, tmp_path / "back" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "back" / "config.json").read_text()) | {"rope_theta": 5.0}
    (tmp_path / "back" / "config.json").write_text(json.dumps(config))
    (tmp_path / "back" / "chat_template.jinja").write_text("other")
    report = verify(tmp_path / "nemo", tmp_path / "back", logits=True)
    assert [(d.what, d.name) for d in report.differences] == [
        ("tensor", name),
        ("config.json", "rope_theta"),
        ("file", "chat_template.jinja"),
        ("logits", "64 tokens"),
    ]
    assert report.logits > 0
    assert "0.5" in report.table()
    assert report.table().endswith("DIFFERENT")


def test_one_wrong_bit_is_found_even_where_numbers_compare_equal(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen2-tied-301")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 0.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    import_hf(source, tmp_path / "nemo")
    assert verify(source, tmp_path / "nemo").equal
    tensors["model.norm.weight"][3] = -0.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert [d.name for d in verify(source, tmp_path / "nemo").differences] == ["model.norm.weight"]


def test_export_of_a_run_names_the_origin(tmp_path):
    """Without being told: the run.yaml of the run directory that the checkpoint lies in."""
    recipe = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": "Qwen/Qwen2.5-Math-1.5B", "revision": "4a83ca6e4526a4f2da3aa259ec36c259f66b2ab2"},
        "data": {"train": "train.jsonl", "max_length": 64, "global_batch_size": 8, "micro_batch_size": 2},
        "objective": {"name": "power", "alpha": 10, "denominator": "kept", "keep": {"min_p": 0.2}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    record = decisions.run_yaml(config.load(str(tmp_path / "recipe.yaml"), []), tmp_path / "hf", "nemo")
    import_hf(make_hf(tmp_path / "hf", "qwen2-tied-301"), tmp_path / "run" / "checkpoints" / "step=7")
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(record))
    export_hf(tmp_path / "run" / "checkpoints" / "step=7", tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "Qwen/Qwen2.5-Math-1.5B"
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", card, re.MULTILINE))
    objective, versions = record["objective"], record["versions"]
    assert (rows["Objective"], rows["f(p)"]) == (objective["key"], objective["formula"].replace("|", "\\|"))
    assert (rows["Denominator"], rows["Training data"], rows["Checkpoint"]) == ("kept", "train.jsonl", "step=7")
    assert rows["Revision"] == recipe["model"]["revision"]
    assert f"megatron-core {versions['megatron-core']}" in rows["Versions"]
    assert yaml.safe_load((tmp_path / "back" / "run.yaml").read_text()) == record
    export_hf(tmp_path / "run" / "checkpoints" / "step=7", tmp_path / "told", provenance={"objective": "p"})
    assert "| Objective | p |" in (tmp_path / "told" / "README.md").read_text()


def test_command_line(tmp_path, capsys):
    source = make_hf(tmp_path / "hf", "qwen2-tied-301")
    nemo, back, run = tmp_path / "nemo", tmp_path / "back", tmp_path / "run.yaml"
    run.write_text("objective: p\n")

    def convert(*arguments: object) -> tuple[int, str]:
        code = main(["convert", *map(str, arguments)])
        output = capsys.readouterr()
        return code, (output.out + output.err).splitlines()[-1]

    assert convert("import", source, nemo) == (0, f"wrote {nemo}")
    assert convert("export", nemo, back, "--dtype", "float32", "--run", run) == (0, f"wrote {back}")
    assert (back / "run.yaml").read_text() == "objective: p\n"
    assert convert("verify", source, nemo) == (0, "EQUAL")
    assert convert("verify", source, back) == (1, "DIFFERENT")
    code, line = convert("import", source, nemo)
    assert code == 2
    assert line.startswith(f"nemo-probsft: {nemo}: exists already")


def test_import_of_the_package_and_the_command_line_is_light():
    heavy = "{'torch', 'nemo', 'transformers', 'yaml'}"
    code = f"import sys, conversion, conversion.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_conversion_needs_neither_nemo_nor_megatron(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen2-tied-301")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['nemo', 'megatron', 'lightning', 'transformer_engine']))\n"
        "from conversion import export_hf, import_hf, verify\n"
        f"import_hf({str(source)!r}, {str(tmp_path / 'nemo')!r})\n"
        f"export_hf({str(tmp_path / 'nemo')!r}, {str(tmp_path / 'back')!r})\n"
        f"assert verify({str(source)!r}, {str(tmp_path / 'back')!r}).equal"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def save_lora(checkpoint: Path, base: Path, adapters: dict[str, torch.Tensor], dim: int, alpha: int) -> None:
    """A checkpoint as NeMo's PEFT callback writes it: adapters only, the path of the base, and the settings."""
    (checkpoint / "weights").mkdir(parents=True)
    writer = TorchDistWriter(checkpoint / "weights")
    for key, stacked in adapters.items():
        for layer, tensor in enumerate(stacked):
            writer.add_rows(f"module.{key}", tensor, 0, tuple(stacked.shape), layer)
    writer.close({})
    (checkpoint / "weights" / "adapter_metadata.json").write_text(
        json.dumps({"model_ckpt_path": str(base / "weights")})
    )
    (checkpoint / "context").mkdir()
    settings = [
        ["Attr(name='dim')", {"type": "leaf", "value": dim}],
        ["Attr(name='alpha')", {"type": "leaf", "value": alpha}],
    ]
    lora = {"type": "pyref", "module": "nemo.collections.llm.peft.lora", "name": "LoRA"}
    objects = {
        "metadata_1": {"items": [["Attr(name='fn_or_cls')", lora]], "metadata": None},
        "lora_1": {"items": settings, "metadata": {"type": "ref", "key": "metadata_1"}},
    }
    (checkpoint / "context" / "io.json").write_text(json.dumps({"objects": objects}))


def test_lora_adapters_are_merged_into_their_base(tmp_path):
    source = make_hf(tmp_path / "hf", "qwen2-tied-301", torch.float32)
    import_hf(source, tmp_path / "base")
    torch.manual_seed(1)
    stem = "decoder.layers.{}.adapter.linear_{}.weight"
    adapters = {
        stem.format("self_attention.linear_qkv", "in"): torch.randn(4, 8, 128),
        stem.format("self_attention.linear_qkv", "out"): torch.randn(4, 256, 8),
        stem.format("mlp.linear_fc1", "in"): torch.randn(4, 8, 128),
        stem.format("mlp.linear_fc1", "out"): torch.randn(4, 384, 8),
    }
    save_lora(tmp_path / "lora", tmp_path / "base", adapters, dim=8, alpha=16)
    export_hf(tmp_path / "lora", tmp_path / "merged")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    qkv_delta = torch.stack([2.0 * out @ into for into, out in zip(*list(adapters.values())[:2], strict=True)])
    fc1_delta = torch.stack([2.0 * out @ into for into, out in zip(*list(adapters.values())[2:], strict=True)])
    attention, mlp = "model.layers.3.self_attn.", "model.layers.3.mlp."
    # Rows of one query group in Megatron's order: 2 heads of q (64), k (32), v (32).
    expected = {
        f"{attention}q_proj.weight": torch.cat([qkv_delta[3, :64], qkv_delta[3, 128:192]]),
        f"{attention}k_proj.weight": torch.cat([qkv_delta[3, 64:96], qkv_delta[3, 192:224]]),
        f"{attention}v_proj.weight": torch.cat([qkv_delta[3, 96:128], qkv_delta[3, 224:]]),
        f"{mlp}gate_proj.weight": fc1_delta[3, :192],
        f"{mlp}up_proj.weight": fc1_delta[3, 192:],
    }
    for name, delta in expected.items():
        torch.testing.assert_close(after[name], before[name] + delta, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[name], before[name] + delta / 2, rtol=1e-2, atol=1e-2)  # alpha / dim forgotten
    assert torch.equal(after[f"{attention}o_proj.weight"], before[f"{attention}o_proj.weight"])
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"base of the LoRA checkpoint is gone.*--base"):
        export_hf(tmp_path / "lora", tmp_path / "again")
    export_hf(tmp_path / "lora", tmp_path / "again", base=tmp_path / "moved")
    assert files(tmp_path / "again") == files(tmp_path / "merged")


LORA_DAMAGE = {
    "no file": (lambda file: file.unlink(), "missing or damaged"),
    "no json": (lambda file: file.write_text("{"), "missing or damaged"),
    "no tree": (lambda file: file.write_text('{"objects": [1]}'), "missing or damaged"),
    "alpha is text": (lambda file: file.write_text(file.read_text().replace("16", '"16"')), "missing or damaged"),
    "another adapter": (lambda file: file.write_text(file.read_text().replace("LoRA", "DoRA")), "no LoRA settings"),
}


@pytest.mark.parametrize("damage", LORA_DAMAGE)
def test_adapters_without_their_settings_are_refused(tmp_path, damage):
    """A default would scale them wrongly and say nothing."""
    import_hf(make_hf(tmp_path / "hf", "qwen2-tied-301"), tmp_path / "base")
    stem = "decoder.layers.mlp.linear_fc1.adapter.linear_"
    adapters = {f"{stem}in.weight": torch.ones(4, 8, 128), f"{stem}out.weight": torch.ones(4, 384, 8)}
    save_lora(tmp_path / "lora", tmp_path / "base", adapters, dim=8, alpha=16)
    change, message = LORA_DAMAGE[damage]
    change(tmp_path / "lora" / "context" / "io.json")
    with pytest.raises(ValueError, match=f"io.json: {message}") as error:
        export_hf(tmp_path / "lora", tmp_path / "back")
    assert "\n" not in str(error.value)
