"""LoRA adapters of Megatron-Bridge: read with the settings of run_config.yaml, on the base that it names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conversion import export_hf, import_hf, verify
from conversion.checkpoint import kind_of
from conversion.torch_dist import TorchDistWriter
from tests.support.conversion_models import make_hf

LAYERS, DIM, ALPHA = 4, 8, 16
SHAPES = {  # of layers that LoRA adapts: columns, rows
    "self_attention.linear_qkv": (128, 256),
    "self_attention.linear_proj": (128, 128),
    "mlp.linear_fc1": (128, 384),
    "mlp.linear_fc2": (192, 128),
}


def save_lora(root: Path, base: Path, **peft: object) -> Path:
    """Adapters alone, as Bridge saves them."""
    iteration = root / "iter_0000002"
    iteration.mkdir(parents=True)
    writer, generator = TorchDistWriter(iteration), torch.Generator().manual_seed(1)
    for name, (columns, rows) in SHAPES.items():
        for factor, shape in {"linear_in": (DIM, columns), "linear_out": (rows, DIM)}.items():
            for layer in range(LAYERS):
                key = f"decoder.layers.{name}.adapter.{factor}.weight"
                writer.add_rows(key, torch.randn(shape, generator=generator), 0, (LAYERS, *shape), layer)
    writer.close({})
    settings = {"_target_": "megatron.bridge.peft.lora.LoRA", "dim": DIM, "alpha": ALPHA, "dropout": 0.1} | peft
    checkpoint = {"pretrained_checkpoint": str(base)}
    content = {"checkpoint": checkpoint, "model": {}, "peft": settings, "train": None}
    (iteration / "run_config.yaml").write_text(yaml.safe_dump(content))
    (root / "latest_checkpointed_iteration.txt").write_text("2")
    return root


@pytest.fixture
def hf(tmp_path):
    return make_hf(tmp_path / "hf", "qwen2-tied-301", torch.float32)


def test_adapters_are_merged_into_a_base_of_either_form(tmp_path, hf):
    import_hf(hf, tmp_path / "base", engine="bridge")
    lora = {"hf": save_lora(tmp_path / "a", hf), "bridge": save_lora(tmp_path / "b", tmp_path / "base")}
    assert kind_of(lora["hf"]) == "bridge"
    for name, checkpoint in lora.items():
        export_hf(checkpoint, tmp_path / f"merged-{name}")
    before, merged, other = (
        load_file(folder / "model.safetensors") for folder in (hf, tmp_path / "merged-hf", tmp_path / "merged-bridge")
    )
    assert all(torch.equal(merged[name], other[name]) for name in before)
    generator = torch.Generator().manual_seed(1)
    stacks = {  # in the order in which `save_lora` drew them
        name: [torch.stack([torch.randn(shape, generator=generator) for _ in range(LAYERS)]) for shape in shapes]
        for name, shapes in {n: ((DIM, columns), (rows, DIM)) for n, (columns, rows) in SHAPES.items()}.items()
    }
    change = {name: ALPHA / DIM * b @ a for name, (a, b) in stacks.items()}
    layer, qkv = "model.layers.3.", change["self_attention.linear_qkv"][3]
    expected = {
        f"{layer}self_attn.q_proj.weight": torch.cat([qkv[:64], qkv[128:192]]),
        f"{layer}self_attn.v_proj.weight": torch.cat([qkv[96:128], qkv[224:]]),
        f"{layer}mlp.up_proj.weight": change["mlp.linear_fc1"][3, 192:],
        f"{layer}mlp.down_proj.weight": change["mlp.linear_fc2"][3],
    }
    for name, delta in expected.items():
        torch.testing.assert_close(merged[name], before[name] + delta, rtol=1e-5, atol=1e-5)
    assert verify(tmp_path / "merged-hf", lora["hf"], logits=True).equal
    assert verify(lora["bridge"], tmp_path / "merged-hf").equal


def test_adapters_alone_and_for_the_other_engine(tmp_path, hf):
    lora = save_lora(tmp_path / "lora", hf)
    export_hf(lora, tmp_path / "adapter", adapter=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (DIM, ALPHA, 0.1)
    import_hf(lora, tmp_path / "nemo")
    assert verify(lora, tmp_path / "nemo").equal


def test_a_base_that_moved_is_named_by_the_user(tmp_path, hf):
    lora = save_lora(tmp_path / "lora", hf)
    export_hf(lora, tmp_path / "merged")
    hf.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"base of the LoRA checkpoint is not there.*--base"):
        export_hf(lora, tmp_path / "again")
    export_hf(lora, tmp_path / "again", base=tmp_path / "moved")
    assert verify(tmp_path / "merged", tmp_path / "again").equal
    import_hf(tmp_path / "moved", tmp_path / "nemo")
    shutil.rmtree(tmp_path / "again")
    export_hf(lora, tmp_path / "again", base=tmp_path / "nemo")
    assert verify(tmp_path / "merged", tmp_path / "again").equal


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"_target_": "megatron.bridge.peft.dora.DoRA"}, "only megatron.bridge.peft.lora.LoRA is supported"),
        ({"alpha": "16"}, "peft.alpha is '16', not a number"),
        ({"dim": 4}, "LoRA of dim 4"),
    ],
)
def test_adapters_with_other_settings_are_refused(tmp_path, hf, peft, message):
    lora = save_lora(tmp_path / "lora", hf, **peft)
    with pytest.raises(ValueError, match=message) as error:
        export_hf(lora, tmp_path / "back")
    assert "\n" not in str(error.value)
