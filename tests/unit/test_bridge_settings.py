"""The table of what a Bridge configuration must not have, asked with plain objects shaped as a ConfigContainer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from nemo_probsft.config.exactness import (
    BRIDGE_SETTINGS,
    MODEL_SETTINGS,
    SET_BY_THE_TRAINER,
    Setting,
    bridge_values,
    refused_setting,
)


def container(nested: bool = False) -> SimpleNamespace:
    """With every field of the table at the value that is allowed, sections and all."""
    root = SimpleNamespace()
    for rule in BRIDGE_SETTINGS:
        *sections, name = rule.name.split(".")
        place = root
        for section in [*sections, *(["transformer"] * (nested and sections == ["model"]))]:
            if not hasattr(place, section):
                setattr(place, section, SimpleNamespace())
            place = getattr(place, section)
        setattr(place, name, rule.allowed[0])
    return root


def refused(config: SimpleNamespace) -> str | None:
    return refused_setting(bridge_values(config), BRIDGE_SETTINGS)


@pytest.mark.parametrize("nested", [False, True])
def test_a_configuration_with_what_is_exact_passes_in_both_forms_of_a_model(nested):
    config = container(nested)
    assert bridge_values(config).keys() == {rule.name for rule in BRIDGE_SETTINGS}
    assert refused(config) is None


@pytest.mark.parametrize("rule", BRIDGE_SETTINGS, ids=[rule.name for rule in BRIDGE_SETTINGS])
def test_every_setting_is_refused_with_its_reason(rule):
    *sections, name = rule.name.split(".")
    config = container()
    place = config
    for section in sections:
        place = getattr(place, section)
    wrong = wrong_value(rule)
    setattr(place, name, wrong)
    assert refused(config) == f"{rule.name} {wrong} ({rule.why})"


def wrong_value(rule: Setting) -> object:
    first = rule.allowed[0]
    if False in rule.allowed or True in rule.allowed:
        return not rule.allowed[-1]
    return {type(None): "x", int: 7, float: 0.5, str: "other", list: [3]}[type(first)]


def test_sections_that_are_absent_or_still_a_name_have_no_fields():
    """`ft`, `peft`, `comm_overlap` are None without a value; `mixed_precision` may be `bf16_mixed`."""
    config = container()
    config.peft = config.comm_overlap = config.inprocess_restart = None
    config.mixed_precision = "bf16_mixed"
    assert refused(config) is None


def test_the_table_has_every_setting_of_a_model_that_bridge_has():
    names = {rule.name for rule in BRIDGE_SETTINGS}
    assert len(names) == len(BRIDGE_SETTINGS)
    for rule in (*MODEL_SETTINGS, *SET_BY_THE_TRAINER):
        assert (f"model.{rule.name}" in names) == ("bridge" in rule.engines)


def test_what_bridges_recipes_say_about_the_loss_is_refused():
    config = container()
    config.model.cross_entropy_loss_fusion, config.model.calculate_per_token_loss = True, False
    assert refused(config).startswith("model.calculate_per_token_loss False (False optimises the mean of micro-batch ")
    config.model.calculate_per_token_loss = True
    assert refused(config).startswith("model.cross_entropy_loss_fusion True (")
    config.model.cross_entropy_loss_fusion = False
    config.objective = "p"  # what a YAML file or an override would have said
    assert "give it to ObjectiveStep" in refused(config)
    del config.objective
    config.optimizer.grad_norm_skip_threshold = math.nan
    assert refused(config).startswith("optimizer.grad_norm_skip_threshold nan")
