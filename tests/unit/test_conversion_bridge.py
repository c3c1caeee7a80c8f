"""Hugging Face, NeMo 2 and Megatron-Bridge: any of the three becomes any other, bit for bit, or is refused."""

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conversion import export_hf, import_hf, verify
from conversion.bridge_config import read_run_config
from conversion.checkpoint import iteration_directory, kind_of, last_checkpoint
from conversion.families import model_spec, parts_that_bridge_adds, rope_that_bridge_replaces
from conversion.torch_dist import TorchDistReader, TorchDistWriter
from nemo_probsft.__main__ import main
from tests.support.conversion_models import FAMILIES, FOR_BRIDGE, LLAMA3_ROPE, make_hf

REPLACED = "llama3-tied-scaled-rope"  # its original_max_position_embeddings is 16


def files(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def change_config(directory: Path, **changes: object) -> dict:
    """Change keys of config.json; those that become None are removed."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=2))
    return json.loads(file.read_text())


@pytest.mark.parametrize("family", FOR_BRIDGE)
def test_every_byte_comes_back_through_both_engines(tmp_path, family):
    hf, nemo, bridge, again = make_hf(tmp_path / "hf", family), *(tmp_path / name for name in ("nemo", "bridge", "2"))
    import_hf(hf, nemo)
    import_hf(nemo, bridge, engine="bridge")
    import_hf(bridge, again, engine="nemo")
    assert [kind_of(path) for path in (hf, nemo, bridge, again)] == ["huggingface", "nemo", "bridge", "nemo"]
    for source in (bridge, again):
        export_hf(source, tmp_path / "back")
        assert files(tmp_path / "back") == files(hf)
        shutil.rmtree(tmp_path / "back")
    for a, b in permutations((hf, nemo, bridge), 2):
        report = verify(a, b)
        assert report.equal, report.table()
        assert report.num_files == len(files(hf)) - 1  # without the weights


def test_both_engines_get_the_same_tensors_but_for_the_prefix(tmp_path):
    hf = make_hf(tmp_path / "hf", "qwen3-untied")
    import_hf(hf, tmp_path / "nemo")
    import_hf(hf, tmp_path / "bridge", engine="bridge")
    iteration = iteration_directory(tmp_path / "bridge")
    a, b = TorchDistReader(tmp_path / "nemo" / "weights"), TorchDistReader(iteration)
    assert {key: a.shape(key) for key in a} == {key: b.shape(key) for key in b}
    indexes = [(folder / ".metadata").read_bytes() for folder in (a.directory, b.directory)]
    assert [b"module.decoder" in index for index in indexes] == [True, False]
    assert sorted(path.name for path in (tmp_path / "bridge").iterdir()) == [
        "iter_0000000",
        "latest_checkpointed_iteration.txt",
        "latest_train_state.pt",
    ]
    state = torch.load(iteration / "train_state.pt", weights_only=True)
    assert (int(state["step"]), int(state["consumed_train_samples"])) == (0, 0)


def test_the_description_of_the_model_is_read_as_data(tmp_path):
    import_hf(make_hf(tmp_path / "hf", "qwen2-tied-301"), tmp_path / "bridge", engine="bridge")
    settings = read_run_config(iteration_directory(tmp_path / "bridge"))
    assert (settings["num_layers"], settings["vocab_size"], settings["make_vocab_size_divisible_by"]) == (4, 301, 1)
    assert (settings["params_dtype"], settings["bf16"]) == ("torch.bfloat16", True)
    assert settings["activation_func"] == "torch.nn.functional.silu"
    import_hf(tmp_path / "hf", tmp_path / "elsewhere", engine="bridge")
    assert files(tmp_path / "elsewhere") == files(tmp_path / "bridge")


def test_a_cast_reaches_the_weights_and_both_descriptions(tmp_path):
    hf = make_hf(tmp_path / "hf", "deepseekmath", torch.float32)
    import_hf(hf, tmp_path / "bridge", engine="bridge", dtype="bfloat16")
    assert read_run_config(iteration_directory(tmp_path / "bridge"))["bf16"] is True
    import_hf(tmp_path / "bridge", tmp_path / "nemo", dtype="float32")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (hf, tmp_path / "back"))
    assert all(torch.equal(after[name], tensor.bfloat16().float()) for name, tensor in before.items())


def test_import_of_a_checkpoint_takes_model_files_from_base(tmp_path):
    hf = make_hf(tmp_path / "hf", "deepseekmath")
    import_hf(hf, tmp_path / "bridge", engine="bridge")
    shutil.rmtree(tmp_path / "bridge" / "iter_0000000" / "hf")
    with pytest.raises(ValueError, match="--base"):
        import_hf(tmp_path / "bridge", tmp_path / "nemo")
    import_hf(tmp_path / "bridge", tmp_path / "nemo", base=hf)
    assert verify(hf, tmp_path / "nemo").equal


@pytest.mark.parametrize("spelling", [4, 5])
def test_rope_that_megatron_replaces_is_refused_for_bridge_alone(tmp_path, spelling):
    hf = make_hf(tmp_path / "hf", REPLACED)
    place = "rope_scaling"
    if spelling == 5:
        place = "rope_parameters"
        change_config(hf, rope_scaling=None, rope_theta=None, rope_parameters={"rope_theta": 5e5, **LLAMA3_ROPE})
    before = sorted(tmp_path.rglob("*"))
    key = f"{place}.original_max_position_embeddings 16, which Megatron-Core replaces by 8192"
    with pytest.raises(ValueError, match=key) as error:
        import_hf(hf, tmp_path / "bridge", engine="bridge")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
    import_hf(hf, tmp_path / "nemo")
    with pytest.raises(ValueError, match=key):
        import_hf(tmp_path / "nemo", tmp_path / "bridge", engine="bridge")
    scaling = json.loads((hf / "config.json").read_text())[place]
    change_config(hf, **{place: scaling | {"original_max_position_embeddings": 8192}})
    import_hf(hf, tmp_path / "bridge", engine="bridge")
    settings = read_run_config(iteration_directory(tmp_path / "bridge"))
    assert (settings["rope_scaling"], settings["rope_scaling_factor"], settings["rotary_base"]) == (True, 8.0, 5e5)


def test_every_constant_of_rope_is_compared():
    config = FAMILIES[REPLACED].to_dict()
    released = LLAMA3_ROPE | {"original_max_position_embeddings": 8192, "factor": 32.0}
    assert rope_that_bridge_replaces(config | {"rope_scaling": released}) is None
    assert rope_that_bridge_replaces(FAMILIES["qwen3-untied"].to_dict()) is None
    for key, value in {"low_freq_factor": 2.0, "high_freq_factor": 8, "original_max_position_embeddings": 4096}.items():
        assert f"rope_scaling.{key} {value}" in rope_that_bridge_replaces(
            config | {"rope_scaling": released | {key: value}}
        )


def test_keys_that_only_bridge_reads_are_refused(tmp_path):
    hf = make_hf(tmp_path / "hf", "qwen2-tied-301")
    assert parts_that_bridge_adds(change_config(hf, num_experts=0)) is None
    change_config(hf, use_qk_norm=True)
    with pytest.raises(ValueError, match="use_qk_norm True, for which Megatron-Bridge builds other layers"):
        import_hf(hf, tmp_path / "bridge", engine="bridge")
    import_hf(hf, tmp_path / "nemo")


def test_another_engine_is_refused(tmp_path):
    with pytest.raises(ValueError, match="engine 'megatron' is not supported; choose one of nemo, bridge"):
        import_hf(tmp_path, tmp_path / "out", engine="megatron")


V5 = {"torch_dtype": None, "rope_theta": None, "rope_scaling": None, "dtype": "float32"}
SPELLINGS = {
    "transformers 4": {"dtype": None, "torch_dtype": "float32"},
    "transformers 5": {**V5, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    "both": {"dtype": "float32", "torch_dtype": "float32"},
    "none": {"dtype": None, "torch_dtype": None},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("engine", ["nemo", "bridge"])
def test_both_spellings_of_transformers_are_read_and_kept(tmp_path, spelling, engine):
    hf = make_hf(tmp_path / "hf", "qwen2-untied-384", torch.float32)
    config = change_config(hf, **SPELLINGS[spelling])
    assert model_spec(config).values["rotary_base"] == 1e6
    import_hf(hf, tmp_path / "checkpoint", engine=engine)
    export_hf(tmp_path / "checkpoint", tmp_path / "back")
    assert files(tmp_path / "back") == files(hf)
    export_hf(tmp_path / "checkpoint", tmp_path / "cast", dtype="bfloat16")
    written = json.loads((tmp_path / "cast" / "config.json").read_text())
    names = [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]
    assert written == config | dict.fromkeys(names, "bfloat16")


def test_a_part_of_the_head_without_rope_is_refused_in_both_spellings():
    config = FAMILIES["qwen2-tied-301"].to_dict() | {"rope_theta": None}
    for change in (
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ):
        with pytest.raises(ValueError, match=r"partial_rotary_factor is 0\.5"):
            model_spec(config | change)


def trained(run_dir: Path, base: Path, step: int) -> Path:
    """A checkpoint of a run on Bridge: another weight, and beside the model entries of optimizer, rng and training."""
    import_hf(base, run_dir / "imported", engine="bridge")
    iteration = run_dir / "checkpoints" / f"iter_{step:07d}"
    iteration.parent.mkdir(exist_ok=True)
    (run_dir / "imported" / "iter_0000000").rename(iteration)
    shutil.rmtree(run_dir / "imported")
    reader = TorchDistReader(iteration)
    tensors = {key: reader.read(key, None, 0, reader.shape(key)[0]) for key in reader}
    tensors["decoder.final_layernorm.weight"] += 1
    writer = TorchDistWriter(iteration)
    for key, tensor in tensors.items():
        writer.add_rows(key, tensor, 0, tuple(tensor.shape))
        for prefix in ("optimizer.state.exp_avg", "chained_0.optimizer.state.exp_avg_sq", "optimizer.state.fp32_param"):
            writer.add_rows(f"{prefix}.{key}", tensor.float(), 0, tuple(tensor.shape))
    flat = torch.zeros(100)
    name = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.float32, torch.float32).bucket_idx_0.exp_avg"
    writer.add_rows(name, flat, 0, (100,))
    for key in ("rng_state/shard_0_1", "rerun_state_machine_state/shard_0_1", "common_state/shard_0_1"):
        writer.add_object(key, {"iteration": step})
    writer.close({})
    (iteration.parent / "latest_checkpointed_iteration.txt").write_text(str(step))
    return iteration


def test_what_a_run_saved_beside_the_model_is_left_out(tmp_path):
    hf = make_hf(tmp_path / "hf", "qwen2-tied-301")
    iteration = trained(tmp_path / "run", hf, 7)
    (tmp_path / "run" / "run.yaml").write_text("objective: p\n")
    assert last_checkpoint(tmp_path / "run" / "checkpoints") == iteration
    for number, source in enumerate((iteration, iteration.parent)):
        export_hf(source, tmp_path / f"back-{number}")
    assert files(tmp_path / "back-0") == files(tmp_path / "back-1")
    assert "| Checkpoint | iter_0000007 |" in (tmp_path / "back-0" / "README.md").read_text()
    before, after = (load_file(folder / "model.safetensors") for folder in (hf, tmp_path / "back-0"))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["model.norm.weight"]
    assert [d.name for d in verify(hf, iteration).differences if d.what == "tensor"] == ["model.norm.weight"]


def test_command_line(tmp_path, capsys):
    hf, bridge, nemo = make_hf(tmp_path / "hf", "qwen2-tied-301"), tmp_path / "bridge", tmp_path / "nemo"

    def convert(*arguments: object) -> tuple[int, str]:
        code = main(["convert", *map(str, arguments)])
        return code, capsys.readouterr().out.splitlines()[-1]

    assert convert("import", hf, bridge, "--engine", "bridge") == (0, f"wrote {bridge}")
    assert convert("import", bridge, nemo, "--engine", "nemo") == (0, f"wrote {nemo}")
    assert convert("verify", bridge, nemo) == (0, "EQUAL")
    assert convert("export", bridge, tmp_path / "back") == (0, f"wrote {tmp_path / 'back'}")
    assert files(tmp_path / "back") == files(hf)


FOREIGN = {
    "another model": (("model", "_target_"), "os.system", "would build os.system"),
    "no model": (("model", "_target_"), None, "would build None"),
    "a call": (
        ("model", "init_method"),
        {"_target_": "subprocess.run", "_partial_": True},
        "would call subprocess.run",
    ),
    "a detour": (
        ("model", "init_method"),
        {"_target_": "torch.nn.init.warnings.sys.exit"},
        "would call torch.nn.init.w",
    ),
    "a call in a list": (("model", "recompute_modules"), [{"_target_": "builtins.eval"}], "would call builtins.eval"),
    "no text": (("model", "init_method"), {"_target_": ["os", "system"]}, "would call"),
    "a number": (("model",), 5, "model is not a mapping"),
    "nothing": (("model",), None, "has no section model"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_description_that_names_foreign_code_is_refused(tmp_path, case):
    import_hf(make_hf(tmp_path / "hf", "qwen2-tied-301"), tmp_path / "bridge", engine="bridge")
    iteration = iteration_directory(tmp_path / "bridge")
    (*sections, key), value, message = FOREIGN[case]
    content = yaml.safe_load((iteration / "run_config.yaml").read_text())
    place = content[sections[0]] if sections else content
    place[key] = value
    (iteration / "run_config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message) as error:
        read_run_config(iteration)
    assert "\n" not in str(error.value)
    assert verify(tmp_path / "hf", iteration).equal  # the weights can be had all the same


@pytest.mark.parametrize(
    "text", ["", "[1]", "a: [", "model: !!python/object/apply:os.system [ls]", "\x00", "a: 2026-99-99"]
)
def test_a_damaged_description_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "run_config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"run_config\.yaml: not the description of a run of Bridge") as error:
        read_run_config(tmp_path)
    assert "\n" not in str(error.value)
