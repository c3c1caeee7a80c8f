"""What a run on Megatron-Bridge refuses of a model's files: its checkpoints, and what it would compute otherwise."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

import conversion
from conversion.checkpoint import iteration_directory
from nemo_probsft import config
from nemo_probsft.config.exactness import BRIDGE, MODEL_SETTINGS
from nemo_probsft.run.model_files import EXPORT, check_model
from tests.support.model_directories import huggingface, nemo
from tests.unit.test_model_files import LLAMA, WRONG, Mark, in_both_spellings


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: {path: b}\ndata: {train: t.jsonl, global_batch_size: 24}\nobjective: p\n")


def bridge(directory="b", **changes) -> Path:
    """A checkpoint of our importer; `changes` of the model's settings in run_config.yaml. Returns its iteration."""
    conversion.import_hf(huggingface(f"{directory}-source"), Path(directory), engine="bridge")
    iteration = iteration_directory(Path(directory))
    edit(iteration, changes)
    return iteration


def edit(iteration: Path, changes: dict) -> None:
    source = iteration / "run_config.yaml"
    content = yaml.safe_load(source.read_text())
    content["model"] |= changes
    source.write_text(yaml.safe_dump(content))


def refusal(*overrides, engine="bridge"):
    before = sorted(Path().rglob("*"))
    with pytest.raises(ValueError, match=r".") as caught:
        check_model(config.load("r.yaml", overrides), engine)
    assert sorted(Path().rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("r.yaml:1: model.path: ")


def reason(*overrides, engine="bridge"):
    return check_model(config.load("r.yaml", overrides), engine)[0].reason


@pytest.mark.parametrize("engine", [None, "nemo", "bridge"])
def test_a_checkpoint_of_bridge_is_a_model_for_either_engine(engine):
    iteration = bridge()
    assert reason(engine=engine) == "Megatron-Bridge checkpoint"
    assert reason(f"model.path={iteration}", engine=engine) == "Megatron-Bridge checkpoint"
    size = "parallel.tensor_model_parallel_size=8"
    assert refusal("trainer.devices=8", size, engine=engine).endswith(
        f"8 does not divide the 4 key-value heads of {iteration}/hf/config.json; use one of 1, 2, 4"
    )


SETTINGS = [rule for rule in MODEL_SETTINGS if BRIDGE in rule.engines]


@pytest.mark.parametrize("rule", SETTINGS, ids=[rule.name for rule in SETTINGS])
def test_another_objective_in_its_settings_is_refused(rule):
    bridge(**{rule.name: WRONG[rule.name]})
    assert refusal() == f"b was made with {rule.name} {WRONG[rule.name]} ({rule.why}); {EXPORT}"


def test_settings_that_the_trainer_sets_pass():
    """Every checkpoint of Bridge's own recipes says both."""
    bridge(calculate_per_token_loss=False, cross_entropy_loss_fusion=True)
    assert reason() == "Megatron-Bridge checkpoint"


def test_foreign_code_is_refused():
    iteration = bridge(activation_func={"_target_": "os.system", "_call_": False})
    assert (
        refusal() == f"{iteration}/run_config.yaml would call os.system, which is none of Bridge's own parts; {EXPORT}"
    )
    edit(iteration, {"_target_": "megatron.bridge.models.gemma.gemma2_provider.Gemma2ModelProvider"})
    assert "Gemma2ModelProvider, which is no model of Bridge's GPT families" in refusal()


def test_pickles_are_never_run():
    iteration = bridge()
    (iteration / ".metadata").write_bytes(pickle.dumps(Mark()))
    assert "damaged or foreign checkpoint index" in refusal()
    assert not Path("unpickled").exists()


def test_a_checkpoint_without_hugging_face_files_is_refused():
    iteration = bridge()
    (iteration / "hf" / "config.json").unlink()
    assert refusal().startswith(
        "b has no config.json in hf/ or context/hf/, so it could not be exported again; make it"
    )


def test_a_save_that_was_cut_off_is_no_model():
    (bridge() / "run_config.yaml").unlink()
    assert refusal().startswith("b has neither config.json (Hugging Face) nor complete weights/")


@pytest.mark.parametrize(("key", "spelling"), in_both_spellings(), ids=["transformers 4", "transformers 5"])
def test_rope_that_megatron_replaces_is_refused_with_bridge_only(key, spelling):
    huggingface("b", **LLAMA, **spelling)
    assert refusal() == (
        f"b/config.json sets {key}.original_max_position_embeddings 64, which Megatron-Core replaces by 8192; use "
        "engine: nemo, or another model"
    )
    assert reason(engine="nemo") == reason(engine=None) == "Hugging Face directory"
    real = dict(in_both_spellings(original_max_position_embeddings=8192))[key]
    huggingface("b", **LLAMA, **real)
    assert reason() == "Hugging Face directory"


def test_rope_is_looked_at_in_a_checkpoint_of_nemo_too():
    """Which is converted for Bridge, with the same config.json."""
    files = nemo("n") / "hf"
    huggingface("b", **LLAMA, **dict(in_both_spellings())["rope_scaling"])
    (files / "config.json").write_text(Path("b/config.json").read_text())
    assert "which Megatron-Core replaces by 8192" in refusal("model.path=n")


def test_what_bridge_builds_and_transformers_does_not_is_refused_with_bridge_only():
    huggingface("b", use_qk_norm=True)
    assert refusal().endswith(
        "use_qk_norm True, for which Megatron-Bridge builds other layers; use engine: nemo, or another model"
    )
    assert reason(engine="nemo") == "Hugging Face directory"
