"""A mapping and a DictConfig are read as strictly as a file, and mean the same."""

from __future__ import annotations

import enum
from fractions import Fraction
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_probsft import config
from nemo_probsft.config import strictyaml
from tests.support.bad_recipes import BAD_RECIPES, WHOLE

ROOT = Path(__file__).parents[2]


class Color(enum.Enum):
    RED = 1


# A good recipe, and the bad ones that are YAML at all: as a mapping and as a DictConfig.
DOORS = {"mapping": dict, "DictConfig": OmegaConf.create}


def from_file(folder, *overrides):
    path = folder / "r.yaml"
    path.write_text(WHOLE, encoding="utf-8")
    return config.load(path, overrides)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_same_recipe(door, tmp_path):
    values = strictyaml.plain(strictyaml.parse(WHOLE, str))
    recipe = config.load(DOORS[door](values), ["optim.lr=1e-4"])
    assert recipe == from_file(tmp_path, "optim.lr=1e-4")
    assert recipe.resolved == from_file(tmp_path).resolved


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("recipes/*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_shipped_recipe_read_by_omegaconf_is_the_same(path):
    found = OmegaConf.load(path)
    recipe = config.load(path)
    assert config.load(found, [f"run_dir={recipe.run_dir}"]) == recipe


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("text", "message"), BAD_RECIPES.items(), ids=list(BAD_RECIPES.values()))
def test_a_bad_recipe_is_refused_at_every_door(door, text, message):
    try:
        values = strictyaml.plain(strictyaml.parse(text, str))
    except ValueError:
        return  # not YAML at all, so there are no values
    if not isinstance(values, dict) or "is longer than" in message:
        return  # of a file alone
    if set(SMALLEST_KEYS) <= values.keys():
        values.setdefault("run_dir", "runs/r")  # a mapping has no file whose name could give it
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        config.load(DOORS[door](values))
    assert str(caught.value).startswith(door)
    assert str(caught.value).partition(": ")[2] == message.partition(": ")[2]


SMALLEST_KEYS = ("model", "data", "objective")
STRANGE = {
    "fraction": (Fraction(1, 2), "optim.lr: a value of type Fraction is not plain data"),
    "enum": (Color.RED, "optim.lr: a value of type Color is not plain data"),
    "quoted": ("4", 'optim.lr: "4" is not allowed; expected a finite number, without quotes'),
    "interpolation": ("${x}", 'optim.lr: "${x}": interpolation is not supported; write the value itself'),
}


@pytest.mark.parametrize(("value", "problem"), STRANGE.values(), ids=STRANGE)
def test_what_is_not_plain_data_is_refused(value, problem):
    values = {"model": {"path": "m"}, "data": {"train": "t"}, "objective": "p", "run_dir": "r", "optim": {"lr": value}}
    doors = [dict] if isinstance(value, Fraction) else DOORS.values()  # OmegaConf itself refuses a Fraction
    for door in doors:
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            config.load(door(values))
        assert problem in str(caught.value)


def test_what_else_a_mapping_or_another_object_cannot_be():
    good = {"model": {"path": "m"}, "data": {"train": "t"}, "objective": "p"}
    endless = dict(good)
    endless["optim"] = endless
    cases = [
        (good, "mapping: run_dir: missing; give a directory"),
        (OmegaConf.create(good | {"run_dir": "???"}), "DictConfig: run_dir: ??? stands for a missing value; set it"),
        (OmegaConf.create([good]), "the recipe is not a mapping"),
        (good | {1: 2}, "mapping: key 1 is not text; use a plain word"),
        (endless, "nested more than 16 levels deep"),
        ([good], "a recipe of type list cannot be loaded; give a path, a mapping or an OmegaConf DictConfig"),
    ]
    for source, problem in cases:
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            config.load(source)
        assert problem in str(caught.value)
