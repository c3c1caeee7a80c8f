"""Bad input and interruptions: one clear line, nothing left behind, nothing skipped."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion import export_hf, import_hf
from conversion.safetensors_io import read_header
from conversion.weights import HFWeights
from nemo_probsft.__main__ import main
from tests.support.conversion_models import make_hf


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_hf(tmp_path_factory.mktemp("pristine") / "hf", "qwen2-untied-384")


@pytest.fixture
def source(pristine, tmp_path):
    """A private copy of a good model directory, to be damaged."""
    (tmp_path / "hf").mkdir()
    for file in pristine.iterdir():
        (tmp_path / "hf" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "hf"


def edit_tensors(source: Path, edit) -> None:
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def edit_config(source: Path, **changes: object) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))


def truncate(source: Path) -> None:
    os.truncate(source / "model.safetensors", (source / "model.safetensors").stat().st_size - 10)


def missing_shard(source: Path) -> None:
    names = load_file(source / "model.safetensors")
    (source / "model.safetensors").rename(source / "a.safetensors")
    weight_map = dict.fromkeys(names, "a.safetensors") | {"lm_head.weight": "b.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def wrong_index(source: Path) -> None:
    names = load_file(source / "model.safetensors")
    (source / "model.safetensors").rename(source / "a.safetensors")
    weight_map = dict.fromkeys(names, "a.safetensors") | {"model.extra": "a.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def escaping_index(source: Path) -> None:
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../x.safetensors"}}))


def overlapping_header(source: Path) -> None:
    file = source / "model.safetensors"
    info = read_header(file)["lm_head.weight"]
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header["lm_head.weight"]["data_offsets"] = [8, 8 + info.num_bytes]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])


def looping_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to("tokenizer.json")


def looping_config(source: Path) -> None:
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("config.json")


def pickled(source: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()


DAMAGE = {
    "truncated": (truncate, "the file is truncated"),
    "empty file": (lambda s: os.truncate(s / "model.safetensors", 0), "truncated or not a safetensors file"),
    "not safetensors": (lambda s: (s / "model.safetensors").write_text("hello" * 99), "truncated or not a safetensors"),
    "overlapping tensors": (overlapping_header, "starts at byte"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "missing shard": (missing_shard, "b.safetensors: missing, but model.safetensors.index.json names it"),
    "wrong index": (wrong_index, "model.extra: the index says a.safetensors, the files say None"),
    "index points outside": (escaping_index, "is not the name of a safetensors file in the same directory"),
    "index is no json": (lambda s: (s / "model.safetensors.index.json").write_text("{"), "not a weight index"),
    "missing tensor": (
        lambda s: edit_tensors(s, lambda t: t.pop("model.layers.2.mlp.up_proj.weight")),
        "up_proj.weight",
    ),
    "unexpected tensor": (
        lambda s: edit_tensors(s, lambda t: t.update({"model.layers.4.mlp.up_proj.weight": torch.ones(2)})),
        "not part of this qwen2 model, e.g. model.layers.4.mlp.up_proj.weight",
    ),
    "wrong shape": (
        lambda s: edit_tensors(s, lambda t: t.update({"model.norm.weight": torch.ones(127)})),
        r"model.norm.weight has shape \(127,\), config.json asks for \(128,\)",
    ),
    "integer tensor": (
        lambda s: edit_tensors(s, lambda t: t.update({"model.norm.weight": torch.ones(128, dtype=torch.int8)})),
        "model.norm.weight has dtype I8",
    ),
    "NaN": (
        lambda s: edit_tensors(s, lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[77:78].fill_(float("nan"))),
        "model.layers.1.mlp.up_proj.weight holds NaN",
    ),
    "infinity": (
        lambda s: edit_tensors(s, lambda t: t["model.norm.weight"][3:4].fill_(float("-inf"))),
        "model.norm.weight holds NaN or infinite",
    ),
    "tied but different": (
        lambda s: edit_config(s, tie_word_embeddings=True),
        "lm_head.weight differs from the embedding",
    ),
    "unknown architecture": (
        lambda s: edit_config(s, model_type="mixtral"),
        "hf/config.json: .*'mixtral' is not supported",
    ),
    "unsupported rope": (lambda s: edit_config(s, rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling"),
    "rope as text": (lambda s: edit_config(s, rope_scaling="yarn"), "rope_scaling must be a mapping, not 'yarn'"),
    "sliding window": (lambda s: edit_config(s, use_sliding_window=True), "use_sliding_window is True"),
    "partial rope": (lambda s: edit_config(s, partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "one tensor of another dtype": (
        lambda s: edit_tensors(s, lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(64, 128)})),
        r"k_proj.weight is float32, .*q_proj.weight is bfloat16, but Megatron stores them as one tensor",
    ),
    "tokenizer is a loop of links": (looping_tokenizer, "tokenizer.json: a link to nothing, or a loop of links"),
    "config is a loop of links": (looping_config, "config.json: Too many levels of symbolic links"),
    "quantised": (lambda s: edit_config(s, quantization_config={"bits": 4}), "quantization_config"),
    "heads do not divide": (lambda s: edit_config(s, num_key_value_heads=3), "not a multiple of the 3"),
    "size is text": (lambda s: edit_config(s, hidden_size="128"), "hidden_size must be a positive integer, not '128'"),
    "config is no json": (lambda s: (s / "config.json").write_text("{"), "config.json: not valid JSON"),
    "no config": (lambda s: (s / "config.json").unlink(), "config.json: missing"),
    "pickled weights": (pickled, "pickled weights can run code"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_source_is_one_line_and_leaves_nothing(source, tmp_path, damage):
    change, message = DAMAGE[damage]
    change(source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message) as error:
        import_hf(source, tmp_path / "nemo")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def damaged_metadata(checkpoint: Path) -> None:
    os.truncate(checkpoint / "weights" / ".metadata", 400)


def hostile_metadata(checkpoint: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(checkpoint.parent / "owned"),)

    (checkpoint / "weights" / ".metadata").write_bytes(pickle.dumps(Hostile()))


def hostile_metadata_by_attribute(checkpoint: Path) -> None:
    """A dotted name would reach `os` through a module that the index may name."""
    target = str(checkpoint.parent / "owned").encode()
    code = b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x08os.mkdir\x93\x8c"
    (checkpoint / "weights" / ".metadata").write_bytes(code + bytes([len(target)]) + target + b"\x85R.")


def damaged_data(checkpoint: Path) -> None:
    file = checkpoint / "weights" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[100_000:100_400] = bytes(400)
    data[:4000] = bytes(4000)
    file.write_bytes(data)


CHECKPOINT_DAMAGE = {
    "truncated index": (damaged_metadata, "damaged or foreign checkpoint index"),
    "index runs code": (hostile_metadata, "does not belong in a checkpoint index"),
    "index runs code by attribute": (hostile_metadata_by_attribute, "not a checkpoint index"),
    "damaged data": (damaged_data, "__0_0.distcp: .* is damaged"),
    "truncated data": (lambda c: os.truncate(c / "weights" / "__0_0.distcp", 5000), "it is truncated"),
    "missing data": (lambda c: (c / "weights" / "__0_0.distcp").unlink(), "missing; the checkpoint is incomplete"),
    "unfinished": (lambda c: (c / "weights" / "metadata.json").unlink(), "not a complete torch_dist"),
    "other format": (lambda c: (c / "weights" / "metadata.json").write_text('{"sharded_backend": "zarr"}'), "'zarr'"),
    "other model": (lambda c: edit_config(c / "hf", num_hidden_layers=5), "config.json asks for"),
    "other family": (lambda c: edit_config(c / "hf", model_type="llama"), "linear_qkv.bias is not part of the model"),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGE)
def test_damaged_checkpoint_is_one_line_and_leaves_nothing(source, tmp_path, damage):
    import_hf(source, tmp_path / "nemo")
    change, message = CHECKPOINT_DAMAGE[damage]
    change(tmp_path / "nemo")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message) as error:
        export_hf(tmp_path / "nemo", tmp_path / "back")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_with_a_remedy_and_never_run(source, tmp_path, file):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (source / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile()}, source / file)
    with pytest.raises(ValueError, match=f"{file}: pickled weights .*save_pretrained"):
        import_hf(source, tmp_path / "nemo")
    assert not (tmp_path / "owned").exists()


def test_pickles_of_a_trainer_beside_safetensors_are_no_matter(source, tmp_path):
    torch.save({"step": 3}, source / "optimizer.pt")
    pickled_beside = source / "pytorch_model.bin"
    torch.save(load_file(source / "model.safetensors"), pickled_beside)
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_derived_tensors_are_left_out_with_a_warning(source, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(source, lambda tensors: tensors.update({name: torch.ones(16)}))
    with pytest.warns(UserWarning, match=name):
        import_hf(source, tmp_path / "nemo")


def test_too_small_dtype_is_an_error(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors["model.norm.weight"][0:1].fill_(1e30))
    with pytest.raises(ValueError, match=r"model\.norm\.weight: its numbers do not fit into float16"):
        import_hf(source, tmp_path / "nemo", dtype="float16")


def test_existing_target_is_never_touched(source, tmp_path):
    for target in (tmp_path / "file", tmp_path / "dangling"):
        target.symlink_to(tmp_path / "nowhere") if target.name == "dangling" else target.write_text("mine")
        with pytest.raises(ValueError, match="exists already"):
            import_hf(source, target)
    assert (tmp_path / "file").read_text() == "mine"


def test_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="loop of symbolic links"):
        import_hf(tmp_path / "a", tmp_path / "nemo")
    with pytest.raises(ValueError, match="no such directory"):
        import_hf(tmp_path / "c", tmp_path / "nemo")


CHANGES = {
    "rewritten": (lambda s: os.utime(s / "model.safetensors", ns=(1, 1)), r"model.safetensors: changed while"),
    "other tokenizer": (lambda s: (s / "tokenizer.json").write_text("{}"), r"tokenizer.json: changed while"),
    "truncated": (lambda s: os.truncate(s / "model.safetensors", 9000), r"model.safetensors: ends inside a tensor"),
    "shard deleted": (lambda s: (s / "model.safetensors").unlink(), r"model.safetensors: No such file"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_source_that_changes_while_it_is_read(source, tmp_path, monkeypatch, change):
    edit, message = CHANGES[change]
    read_into, reads = HFWeights.read_into, []

    def edit_half_way(*arguments):
        reads.append(arguments)
        if len(reads) == 20:
            edit(source)
        read_into(*arguments)

    monkeypatch.setattr(HFWeights, "read_into", edit_half_way)
    with pytest.raises(ValueError, match=message):
        import_hf(source, tmp_path / "nemo")
    assert len(reads) >= 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_command_line_error_is_one_line_and_exit_code_2(source, tmp_path, capsys):
    truncate(source)
    assert main(["convert", "import", str(source), str(tmp_path / "nemo")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nemo-probsft: ")
