"""docs/recipes.md is what the schema says: every key, nothing else, and the committed page is the printed one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nemo_probsft import config
from nemo_probsft.config import reference, strictyaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def test_every_key_is_documented():
    sections = {
        **strictyaml.schema(config.Recipe),
        "objective": config.ObjectiveConfig,
        "objective.keep": config.KeepConfig,
        "objective.schedule": config.ScheduleConfig,
        "log.wandb": config.WandbConfig,
        "peft": config.PeftConfig,
        "validate": config.ValidateConfig,
        "data.train[]": config.SourceConfig,
    }
    keys = {key for name, kind in sections.items() for key in (dotted(name, kind) or [name])}
    expected = sorted(keys - {"objective.keep", "objective.schedule", "log.wandb"} | {"objective"})
    assert sorted(key.name for key in reference.keys()) == expected  # noqa: SIM118
    assert sorted(reference.MEANINGS) == expected


def dotted(name, kind):
    return [f"{name}.{key}" for key in strictyaml.schema(kind)] if dataclasses.is_dataclass(kind) else []


def test_the_page_is_what_the_schema_says():
    assert PAGE.read_text(encoding="utf-8") == reference.page()


def test_types_and_defaults_are_those_of_the_schema():
    found = {key.name: key for key in reference.keys()}  # noqa: SIM118
    assert found["optim.lr"] == ("optim.lr", "number above 0", "5e-05")
    assert found["optim.betas"] == ("optim.betas", "list of 2: number in [0, 1)", "[0.9, 0.95]")
    assert found["trainer.precision"] == ("trainer.precision", "`bf16` or `fp32`", "bf16")
    assert found["model.path"] == ("model.path", "text", "required")
    assert found["objective"].kind == "text or mapping"
    assert found["data.chat_template"].default == "null"
