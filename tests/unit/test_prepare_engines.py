"""What a run starts from with either engine, that it ends with the one it was started with, and what a user is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import conversion
from conversion.checkpoint import is_bridge, is_nemo, iteration_directory
from nemo_probsft import config, sweep
from nemo_probsft.__main__ import main
from nemo_probsft.plan.show import preview
from nemo_probsft.run import preflight, prepare
from tests.support.engine_packages import install_bridge
from tests.unit.test_command_line import CHATML, good, model, refused

__all__ = ["good", "model"]  # fixtures
WHERE = "use the container nvcr.io/nvidia/nemo:26.06 or 26.08, or Python 3.12 with requirements/bridge.lock"


@pytest.fixture
def recipe(good):
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    return good


@pytest.fixture
def bridge(tmp_path_factory, monkeypatch):
    """Megatron-Bridge beside the engine that the tests have."""
    site = tmp_path_factory.mktemp("site")
    install_bridge(site)
    monkeypatch.syspath_prepend(site)


def prepared_with(*overrides):
    return prepare.prepare(config.load("recipe.yaml", overrides))


def test_without_a_word_the_installed_engine_prepares_as_ever(recipe):
    prepared, found = prepared_with()
    assert (prepared.engine, prepared.base) == ("nemo", "run/base")
    assert is_nemo(Path("run/base"))
    assert yaml.safe_load(Path("run/run.yaml").read_text())["engine"] == "nemo"
    (decision,) = [decision for decision in found if decision.key == "engine"]
    assert decision.value.startswith("NeMo 2.")
    assert decision.reason == "the only one that can train here: megatron-bridge is not installed"


def test_bridge_starts_from_a_hugging_face_directory_itself(recipe, bridge, model):
    prepared, found = prepared_with("engine=bridge")
    assert (prepared.engine, prepared.base, prepared.hf) == ("bridge", str(model), str(model))
    assert json.loads(Path("run/prepared.json").read_text())["engine"] == "bridge"
    assert yaml.safe_load(Path("run/run.yaml").read_text())["engine"] == "bridge"
    assert sorted(path.name for path in Path("run").iterdir()) == ["data", "prepared.json", "run.yaml"]
    decision = next(decision for decision in found if decision.key == "engine")
    assert (decision.value, decision.reason) == ("Megatron-Bridge 0.6.2", "the recipe asks for it")


def test_a_template_of_the_recipe_goes_into_the_run_and_not_into_the_model(recipe, bridge, model):
    before = sorted(model.rglob("*"))
    recipe["data"] |= {"chat_template": CHATML, "max_length": 96}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    prepared, _ = prepared_with("engine=bridge")
    assert (prepared.base, prepared.hf) == (str(model), "run/hf")
    assert Path("run/hf/chat_template.jinja").read_text() == CHATML
    assert Path("run/hf/config.json").read_bytes() == (model / "config.json").read_bytes()
    assert sorted(model.rglob("*")) == before


@pytest.mark.parametrize("engine", ["nemo", "bridge"])
def test_a_checkpoint_of_the_engine_is_started_from_as_it_is(recipe, bridge, model, engine):
    conversion.import_hf(model, Path("checkpoint"), engine=engine)
    prepared, _ = prepared_with(f"engine={engine}", "model.path=checkpoint")
    assert prepared.base == str(Path.cwd() / "checkpoint")
    root = Path("checkpoint") if engine == "nemo" else iteration_directory(Path("checkpoint"))
    assert prepared.hf == str(Path.cwd() / root / "hf")
    assert not Path("run/base").exists()


@pytest.mark.parametrize(("engine", "is_kind"), [("nemo", is_nemo), ("bridge", is_bridge)])
def test_a_checkpoint_of_the_other_engine_is_converted_into_the_run(recipe, bridge, model, engine, is_kind):
    other = "bridge" if engine == "nemo" else "nemo"
    conversion.import_hf(model, Path("checkpoint"), engine=other)
    prepared, _ = prepared_with(f"engine={engine}", "model.path=checkpoint")
    assert prepared.base == "run/base"
    assert is_kind(Path("run/base"))
    conversion.export_hf(Path("run/base"), Path("exported"))
    assert Path("exported/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("first", "second"), [("nemo", "bridge"), ("bridge", "nemo")])
def test_a_run_does_not_go_on_with_the_other_engine(capsys, recipe, bridge, first, second):
    prepared_with(f"engine={first}")
    assert refused(capsys, recipe, f"engine={second}") == (
        f"override engine={second}: engine: {second}, but run was started with {first}, whose checkpoints are of "
        f"another form; use engine: {first}, or another run_dir, for example run_dir=run-2"
    )
    prepared, found = prepared_with()  # auto
    assert prepared.engine == first
    assert next(found.reason for found in found if found.key == "engine") == "run was started with it"


def test_a_run_whose_engine_is_gone_says_so(capsys, recipe, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        install_bridge(tmp_path / "site")
        patch.syspath_prepend(tmp_path / "site")
        prepared_with("engine=bridge")
    assert refused(capsys, recipe) == (
        f"recipe.yaml:1: engine: run was started with bridge: megatron-bridge is not installed; {WHERE}"
    )


def test_a_run_from_before_there_was_a_choice_is_one_of_nemo(capsys, recipe, bridge):
    prepared_with()
    path = Path("run/prepared.json")
    before = json.loads(path.read_text())
    del before["engine"]
    path.write_text(json.dumps(before))
    assert prepare.already(config.load("recipe.yaml", ["optim.lr=1"])) is None  # another recipe: it is not read
    assert "run was started with nemo" in refused(capsys, recipe, "engine=bridge")
    assert prepared_with()[0].engine == "nemo"


def test_a_missing_engine_and_a_misspelt_one_are_one_line(capsys, recipe):
    assert refused(capsys, recipe, "engine=bridge") == (
        f"override engine=bridge: engine: bridge: megatron-bridge is not installed; {WHERE}"
    )
    line = refused(capsys, recipe, "engine=megatron")
    assert line.startswith("override engine=megatron: engine: ")
    assert all(name in line for name in ("auto", "nemo", "bridge"))


def test_versions_are_refused_and_warned_about(capsys, recipe, monkeypatch, tmp_path):
    install_bridge(tmp_path / "old", "0.4.2")
    monkeypatch.syspath_prepend(tmp_path / "old")
    assert refused(capsys, recipe, "engine=bridge") == (
        "override engine=bridge: engine: bridge: megatron-bridge 0.4.2 is older than 0.5, the oldest that can be used; "
        f"{WHERE}"
    )
    install_bridge(tmp_path / "new", "0.7.0")
    monkeypatch.syspath_prepend(tmp_path / "new")
    _, found = prepared_with("engine=bridge")
    reason = next(decision.reason for decision in found if decision.key == "engine")
    assert reason == "the recipe asks for it; untested with Megatron-Bridge 0.7.0, tested with 0.6"


def test_a_job_for_other_machines_needs_no_engine_here(recipe):
    found = preflight.check(config.load("recipe.yaml", ["engine=bridge"]), here=False)
    assert "engine" not in [decision.key for decision in found]


def test_cells_of_a_sweep_share_an_import_or_need_none(recipe, bridge, model):
    base = sweep.import_base(config.load("recipe.yaml", ["engine=bridge", "run_dir=sweep"]))
    assert base == model
    sweep.link_base(base, Path("sweep/p-seed0"))
    assert list(Path("sweep").rglob("*")) == [Path("sweep/p-seed0")]
    base = sweep.import_base(config.load("recipe.yaml", ["engine=nemo", "run_dir=other"]))
    assert base == Path("other/base")
    sweep.link_base(base, Path("other/p-seed0"))
    assert Path("other/p-seed0/base").resolve() == base.resolve()


def test_a_sweep_hands_the_engine_on(recipe, bridge):
    planned = sweep.plan_sweep("recipe.yaml", ["engine=bridge"], "p", sweep.Options(tasks="t"))
    assert "engine=bridge" in planned.command(planned.cells[0])


def test_a_plan_names_the_engine_or_what_is_missing(capsys, recipe, monkeypatch, tmp_path):
    preview("recipe.yaml", ["engine=bridge"])
    shown = capsys.readouterr().out
    assert "train would stop here: override engine=bridge: engine: bridge: megatron-bridge is not installed" in shown
    install_bridge(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    preview("recipe.yaml", ["engine=bridge"])
    shown = capsys.readouterr().out
    assert "Megatron-Bridge 0.6.2" in shown
    assert "train would stop here" not in shown
    assert not Path("run").exists()


def test_a_rank_of_an_engine_that_is_gone_says_so(recipe, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        install_bridge(tmp_path / "site")
        patch.syspath_prepend(tmp_path / "site")
        prepared_with("engine=bridge")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=r"^bridge: megatron-bridge is not installed; use the container"):
        main(["train", "recipe.yaml", "engine=bridge"])
