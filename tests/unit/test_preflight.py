"""Checks before any process group starts: files of every kind of wrongness, layouts against the model's shape."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nemo_probsft import config
from nemo_probsft.run.model_files import check_model_directory
from nemo_probsft.run.preflight import check, resumable
from tests.support.model_directories import huggingface


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    huggingface()
    Path("t.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    Path("r.yaml").write_text(
        "model: {path: m}\ndata: {train: t.jsonl, max_length: 512, global_batch_size: 24}\nobjective: p\n"
    )


def load(*overrides):
    return config.load("r.yaml", overrides)


def refusal(*overrides):
    before = sorted(Path().rglob("*"))
    with pytest.raises(ValueError, match=r".") as caught:
        check(load(*overrides))
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


def decided(*overrides):
    return {decision.key: decision for decision in check(load(*overrides))}


def test_decisions_name_what_follows_from_several_keys():
    layout = [f"parallel.{name}_model_parallel_size=2" for name in ("tensor", "pipeline")]
    found = decided("trainer.devices=8", "data.micro_batch_size=3", *layout)
    assert found["objective"].value == "p"
    assert found["objective"].reason == "f(p) = 1 - p, divided by all supervised tokens of the global batch"
    assert found["parallel"].value == "tensor 2 x pipeline 2 x context 1 x data 2"
    assert found["data.global_batch_size"].reason == "micro-batch 3 x data-parallel 2 x 4 micro-batches"
    assert (found["model.path"].value, found["model.path"].reason) == ("m", "Hugging Face directory")
    assert (found["run_dir"].value, found["run_dir"].reason) == ("runs/r", "new run")
    assert "data.max_length" not in found
    assert "512 positions of m/config.json" in decided("data.max_length=513")["data.max_length"].reason


def test_kept_denominator_and_resolved_percentile_are_decisions():
    Path("d.json").write_text('{"percentiles": {"10": 0.175}, "model": "base", "data": "t.jsonl"}')
    keep = "keep: {min_percentile: 10, diagnosis: d.json}"
    found = decided(f"objective={{name: nll, {keep}, denominator: kept}}")
    assert found["objective"].value == "OnlyTopLogP-0.175"
    assert found["objective"].reason.endswith("divided by the tokens of the global batch that pass the threshold")
    percentile = found["objective.keep.min_percentile"]
    assert percentile.value == "10 is p = 0.175"
    assert percentile.reason == "by d.json of model base on t.jsonl"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["3"], "3 does not divide the 8 attention heads of m/config.json; use one of 1, 2, 4"),
        (["8"], "8 does not divide the 4 key-value heads of m/config.json; use one of 1, 2, 4"),
    ],
)
def test_tensor_parallel_size_divides_the_heads(overrides, message):
    size = f"parallel.tensor_model_parallel_size={overrides[0]}"
    assert refusal("trainer.devices=24", size) == f"override {size}: parallel.tensor_model_parallel_size: {message}"


def test_tensor_parallel_size_divides_the_ffn():
    huggingface(intermediate_size=98)
    size = "parallel.tensor_model_parallel_size=4"
    assert refusal("trainer.devices=4", size).endswith(
        "4 does not divide the 98 ffn units of m/config.json; use one of 1, 2"
    )


@pytest.mark.parametrize(
    ("pp", "vp", "message"),
    [
        (8, None, "8 does not divide the 12 layers of m/config.json; use one of 1, 2, 3, 4, 6, 12"),
        (4, 2, "4 x virtual 2 does not divide the 12 layers of m/config.json; use one of 1, 2, 3, 6"),
        (
            2,
            5,
            "2 x virtual 5 does not divide the 12 layers of m/config.json; set "
            "parallel.virtual_pipeline_model_parallel_size to null",
        ),
    ],
)
def test_pipeline_parallel_size_divides_the_layers(pp, vp, message):
    overrides = ["trainer.devices=8", f"parallel.pipeline_model_parallel_size={pp}"]
    if vp:
        overrides.append(f"parallel.virtual_pipeline_model_parallel_size={vp}")
    assert refusal(*overrides) == f"override {overrides[1]}: parallel.pipeline_model_parallel_size: {message}"


def test_layouts_that_divide_pass():
    sizes = {"tensor_model": 4, "pipeline_model": 2, "virtual_pipeline_model": 3}
    overrides = [f"parallel.{name}_parallel_size={size}" for name, size in sizes.items()]
    assert decided("trainer.devices=8", *overrides)["parallel"].value == "tensor 4 x pipeline 2 x context 1 x data 1"


@pytest.mark.parametrize("name", ["missing", "./a/b", "/no/such", "a/b/c", "m/typo", "t.jsonl", "../up"])
def test_path_without_a_model_is_refused(name):
    assert refusal(f"model.path={name}").endswith(
        f"model.path: {name} is not a directory; name a Hugging Face model, its directory, or a checkpoint of an engine"
    )


def test_hub_name_is_left_to_the_loader_and_then_checked():
    found = decided("model.path=Qwen/Qwen2.5-7B", "model.revision=abc")["model.path"]
    assert "so abc of that model on the Hugging Face hub" in found.reason
    assert refusal("model.revision=abc").endswith(
        "model.revision: abc has no effect, model.path m is a directory; remove it"
    )
    recipe = load("model.path=Qwen/Qwen2.5-7B", "trainer.devices=3", "parallel.tensor_model_parallel_size=3")
    with pytest.raises(ValueError, match=r"3 does not divide the 8 attention heads of m/config\.json"):
        check_model_directory(recipe, Path("m"))


def test_training_data_that_is_not_there_is_refused():
    Path("empty.jsonl").touch()
    Path("d").mkdir()
    Path("t.csv").write_text("a")
    cases = {
        "no.jsonl": "no.jsonl does not exist; name a .jsonl or .parquet file or a Hugging Face data set",
        "d/no": "d/no does not exist; name a .jsonl or .parquet file or a Hugging Face data set",
        "empty.jsonl": "empty.jsonl is empty; give it at least one row",
        "d": "d is a directory without a saved data set; name a .jsonl or .parquet file in it",
        "t.csv": "t.csv has ending '.csv'; use a .jsonl or .parquet file",
        "data/math/train.jsonl": (
            "data/math/train.jsonl does not exist; name a .jsonl or .parquet file or a Hugging Face data set"
        ),
    }
    for name, message in cases.items():
        assert refusal(f"data.train={name}") == f"override data.train={name}: data.train: {message}"
    assert refusal("data.split=test") == (
        "override data.split=test: data.split: test has no effect, data.train t.jsonl is a file; remove it"
    )


def test_other_sources_of_data_are_left_to_the_reader():
    assert (
        "split test of that Hugging Face data set" in decided("data.train=a/b", "data.split=test")["data.train"].reason
    )
    Path("saved").mkdir()
    Path("saved/state.json").write_text("{}")
    assert "save_to_disk" in decided("data.train=saved")["data.train"].reason


def test_context_parallelism_needs_transformer_engine():
    import importlib.util

    overrides = ("trainer.devices=2", "parallel.context_parallel_size=2")
    if importlib.util.find_spec("transformer_engine"):
        assert decided(*overrides)["parallel"].value == "tensor 1 x pipeline 1 x context 2 x data 1"
    else:
        assert refusal(*overrides).endswith(
            "parallel.context_parallel_size: 2 needs the attention of Transformer Engine, which is not installed; "
            "install it or use 1"
        )


def test_wandb_must_be_there_to_log_to(monkeypatch):
    assert decided("log.wandb.project=x")
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python does for a package that is not installed
    assert refusal("log.wandb.project=x").endswith(
        'log.wandb: project "x" needs the package wandb; install it, or remove the key'
    )


@pytest.mark.gpu
def test_more_devices_than_gpus_are_refused():
    count = torch.cuda.device_count()
    assert decided(f"trainer.devices={count}", f"data.global_batch_size={count}")
    devices, batch = f"trainer.devices={count + 1}", f"data.global_batch_size={count + 1}"
    assert f"{count + 1} is more than the {count} GPUs of this machine" in refusal(devices, batch)


def start_run(recipe, **changes):
    run_dir = Path(recipe.run_dir)
    run_dir.mkdir(parents=True)
    (run_dir / "run.yaml").write_text(yaml.safe_dump({"recipe": config.dump(recipe), "objective": "p", **changes}))
    return run_dir


def test_run_of_the_same_recipe_is_continued():
    recipe = load("objective={name: power, alpha: 1}", "optim.lr=1e-5")
    assert not resumable(recipe.run_dir, recipe)
    run_dir = start_run(recipe)
    assert resumable(run_dir, recipe)
    assert resumable(run_dir, load("objective=p", "optim.lr=0.00001"))
    assert "continues it" in decided("optim.lr=1e-5")["run_dir"].reason


def test_run_is_continued_at_another_layout():
    run_dir = start_run(load())
    overrides = ["trainer.devices=4", "parallel.tensor_model_parallel_size=2", "data.micro_batch_size=2"]
    assert resumable(
        run_dir, load(*overrides, "trainer.recompute=full", "checkpoint.every_steps=7", "log.every_steps=2")
    )


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("objective=original", "objective p there, original here"),
        ("optim.lr=1e-5", "optim.lr 5e-05 there, 1e-05 here"),
        ("trainer.max_steps=9", "trainer.epochs 1 there, None here"),
        ("trainer.seed=1", "trainer.seed 0 there, 1 here"),
        ("data.global_batch_size=48", "data.global_batch_size 24 there, 48 here"),
        ("objective={name: power, alpha: 1, denominator: kept}", "objective p there, None here"),
    ],
)
def test_other_run_is_never_overwritten(override, difference):
    run_dir = start_run(load())
    assert refusal(override).endswith(
        f"run_dir: {run_dir} holds another run ({difference}); choose another, for example run_dir={run_dir}-2"
    )


def test_diagnosis_that_changed_makes_it_another_run():
    Path("d.json").write_text('{"percentiles": {"10": 0.175}}')
    percentile = "objective={name: nll, keep: {min_percentile: 10, diagnosis: d.json}}"
    recipe = load(percentile)
    run_dir = start_run(recipe)
    assert resumable(run_dir, recipe)
    Path("d.json").write_text('{"percentiles": {"10": 0.2}}')
    with pytest.raises(ValueError, match=r"objective OnlyTopLogP-0\.175 there, OnlyTopLogP-0\.2 here"):
        resumable(run_dir, load(percentile))


@pytest.mark.parametrize("content", [None, "", "{", "[" * 1000, "a: &a [*a]", "recipe: 3", "other: {}", "- 1", "\x00"])
def test_directory_with_something_else_is_never_overwritten(content):
    Path("out").mkdir()
    assert decided("run_dir=out")["run_dir"].reason == "new run"
    Path("out/file").touch()
    if content is not None:
        Path("out/run.yaml").write_text(content)
    assert refusal("run_dir=out") == (
        "override run_dir=out: run_dir: out is not empty and holds no readable run.yaml; choose another, for example "
        "run_dir=out-2"
    )


def test_diagnosis_in_the_run_directory_is_no_run():
    Path("runs/r/diagnose").mkdir(parents=True)
    assert decided()["run_dir"].reason == "new run"
    Path("runs/r/checkpoints").mkdir()
    assert "runs/r is not empty and holds no readable run.yaml" in refusal()


def test_run_directory_below_a_file_is_refused():
    assert "t.jsonl is not a writable directory; name another" in refusal("run_dir=t.jsonl/x")
    assert "t.jsonl is not a writable directory; name another" in refusal("run_dir=t.jsonl")


def test_recipe_that_was_changed_in_code_still_names_its_keys():
    recipe = dataclasses.replace(load(), run_dir="t.jsonl")
    with pytest.raises(ValueError, match=r"^r\.yaml:1: run_dir: t\.jsonl: "):
        check(recipe)
