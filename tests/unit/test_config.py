"""Recipes: what loads, with which values, and what every bad recipe says."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_probsft import config
from nemo_probsft.config import strictyaml
from nemo_probsft.objectives import parse_objective
from nemo_probsft.run import preflight
from tests.support.bad_recipes import BAD_RECIPES, SMALLEST, WHOLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text, *overrides, name="r.yaml"):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return config.load(name, overrides)


def resolved(recipe):
    return recipe.resolved.objective, recipe.resolved.denominator


def refusal(text, *overrides):
    with pytest.raises(ValueError, match=r".") as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_value_of_a_whole_recipe_arrives():
    recipe = load(WHOLE)
    assert recipe.run_dir == "runs/my-run"
    assert recipe.model == config.ModelConfig("Qwen/Qwen2.5-Math-1.5B")
    assert recipe.data == config.DataConfig("train.jsonl", "train", 3072, 256, 4)
    assert recipe.objective == "GeneralFamily-10"
    assert recipe.parallel == config.ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    assert (recipe.optim.lr, recipe.optim.betas, recipe.optim.schedule) == (5e-5, (0.9, 0.95), "cosine")
    assert (recipe.data_parallel_size, recipe.num_micro_batches) == (4, 16)
    assert resolved(recipe) == (parse_objective("GeneralFamily-10"), "target")


def test_defaults_are_the_papers_common_setup():
    recipe = load(SMALLEST, name="my-model.yaml")
    assert recipe.run_dir == "runs/my-model"
    assert (recipe.trainer.epochs, recipe.trainer.max_steps, recipe.trainer.precision) == (1, None, "bf16")
    assert dataclasses.astuple(recipe.optim) == (5e-5, 0.0, 0.01, (0.9, 0.95), 1e-8, 0.1, "cosine", 1.0)
    assert recipe.data.global_batch_size == 256


def test_max_steps_replaces_epochs():
    recipe = load(SMALLEST, "trainer.max_steps=7")
    assert (recipe.trainer.epochs, recipe.trainer.max_steps) == (None, 7)
    recipe = load(WHOLE, "trainer.max_steps=7", "trainer.epochs=null")
    assert (recipe.trainer.epochs, recipe.trainer.max_steps) == (None, 7)


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("optim.lr=1e-5", lambda r: r.optim.lr, 1e-5),
        ("optim.lr=1", lambda r: r.optim.lr, 1.0),
        ("optim.betas=[0, 0.99]", lambda r: r.optim.betas, (0.0, 0.99)),
        ("trainer.devices=2", lambda r: r.trainer.devices, 2),
        ('model.revision="0123"', lambda r: r.model.revision, "0123"),
        ("model.path=a=b/c", lambda r: r.model.path, "a=b/c"),
        ("export.at_end=true", lambda r: r.export.at_end, True),
        ("log.wandb.project=x", lambda r: r.log.wandb, config.WandbConfig("x")),
        ("data.chat_template='{{ messages }}'", lambda r: r.data.chat_template, "{{ messages }}"),
        ("objective={name: power, alpha: -1}", lambda r: r.objective, config.ObjectiveConfig("power", alpha=-1.0)),
    ],
)
def test_override_changes_one_value(override, read, value):
    plain, changed = load(SMALLEST), load(SMALLEST, override)
    assert read(changed) == value
    assert read(plain) != value
    assert type(read(changed)) is type(value)


def test_override_reaches_into_an_objective_of_the_file():
    text = SMALLEST.replace("objective: p", "objective: {name: power, alpha: 2, denominator: kept}")
    recipe = load(text, "objective.alpha=3", "objective.keep.min_p=0.25")
    assert resolved(recipe) == (parse_objective("GeneralFamily-3@0.25..1"), "kept")


@pytest.mark.parametrize(
    "objective",
    ["p", "{name: power, alpha: 10, keep: {min_p: 0.2}}", "{name: nll, keep: {max_p: 0.5}, denominator: kept}"],
)
def test_dump_loads_to_the_same_recipe(objective):
    recipe = load(WHOLE, f"objective={objective}", "log.wandb={project: x}")
    dumped = config.dump(recipe)
    again = load(yaml.safe_dump(dumped))
    assert resolved(again) == resolved(recipe)
    assert config.dump(again) == dumped
    assert dataclasses.replace(again, objective="p") == dataclasses.replace(recipe, objective="p")


@pytest.mark.parametrize(
    "text", ["1e5", "null", "~x", "yes", "0123", "2026-01-01", ".inf", "a: b", "- a", "#", "é", "%"]
)
def test_a_text_that_looks_like_something_else_is_dumped_as_text(text):
    recipe = load(SMALLEST, f"log.wandb.project={json.dumps(text)}")
    assert load(strictyaml.dump(config.dump(recipe))) == recipe
    assert yaml.safe_load(strictyaml.dump({"a": text})) == {"a": text}


def test_equal_objectives_dump_equally():
    mapping = load(SMALLEST, "objective={name: power, alpha: 10}")
    assert config.dump(mapping) == config.dump(load(SMALLEST, "objective=GeneralFamily-10"))


PERCENTILE = "objective={name: nll, keep: {min_percentile: 10, diagnosis: d.json}}"


def write_diagnosis(content):
    with open("d.json", "w") as file:
        file.write(content if isinstance(content, str) else json.dumps(content))


def test_percentile_becomes_the_probability_of_the_diagnosis():
    write_diagnosis({"percentiles": {"5": 0.04, "10": 0.175, "90": 0.99998}})
    recipe = load(SMALLEST, PERCENTILE)
    assert resolved(recipe) == (parse_objective("OnlyTopLogP-0.175"), "target")
    assert config.dump(recipe)["objective"] == "OnlyTopLogP-0.175"
    both = "objective={name: nll, keep: {min_percentile: 5, max_percentile: 90, diagnosis: d.json}}"
    assert resolved(load(SMALLEST, both))[0] == parse_objective("original@0.04..0.99998")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "objective.keep.diagnosis: d.json does not exist; make it with `nemo-probsft diagnose RECIPE`"),
        ("{", "objective.keep.diagnosis: d.json is not a diagnosis; make it with `nemo-probsft diagnose RECIPE`"),
        ("[]", "objective.keep.diagnosis: d.json is not a diagnosis; make it with `nemo-probsft diagnose RECIPE`"),
        (
            "[" * 100_000,
            "objective.keep.diagnosis: d.json is not a diagnosis; make it with `nemo-probsft diagnose RECIPE`",
        ),
        ({"percentiles": {"x": 1}}, "objective.keep.diagnosis: d.json is not a diagnosis; make it with "),
        (
            {"percentiles": {"5": 0.1, "20": 0.5}},
            "objective.keep.min_percentile: 10 is not in d.json; choose from 5, 20, or make it with ",
        ),
        ({"percentiles": {"10": 7}}, "objective: 'nll': threshold min_p is 7, but a probability lies in [0, 1]"),
    ],
)
def test_percentile_without_its_diagnosis_is_refused_except_for_a_diagnosis(content, problem):
    if content is not None:
        write_diagnosis(content)
    message = refusal(SMALLEST, PERCENTILE)
    assert message.startswith("override objective=")
    assert problem in message
    recipe = config.load("r.yaml", [PERCENTILE], own_objective=False)
    assert resolved(recipe) == (parse_objective("original"), "target")
    assert config.dump(recipe)["objective"] == "original"


def test_a_bad_objective_is_refused_for_a_diagnosis_too():
    load(SMALLEST)
    crossed = "{name: nll, keep: {min_percentile: 90, max_percentile: 10, diagnosis: d}}"
    for bad, problem in {"no-such": "unknown objective", crossed: "'nll': .* keeps no token"}.items():
        with pytest.raises(ValueError, match=rf"^override objective=.* objective: {problem}"):
            config.load("r.yaml", [f"objective={bad}"], own_objective=False)


def test_a_percentile_beside_a_moving_parameter_is_resolved_and_dumped():
    write_diagnosis({"percentiles": {"10": 0.175}})
    keep = "keep: {min_percentile: 10, diagnosis: d.json}"
    text = f"{{name: power, schedule: {{alpha: [0, 1]}}, {keep}, denominator: kept}}"
    recipe = load(SMALLEST, f"objective={text}")
    assert resolved(load(yaml.safe_dump(config.dump(recipe)))) == resolved(recipe)
    assert resolved(recipe) == (parse_objective("GeneralFamily-0to1@0.175..1"), "kept")
    decision = preflight._objective(recipe)[1]
    assert (decision.key, decision.value) == ("objective.keep.min_percentile", "10 is p = 0.175")


@pytest.mark.parametrize(("text", "message"), BAD_RECIPES.items(), ids=list(BAD_RECIPES.values()))
def test_bad_recipe(text, message):
    assert refusal(text) == message


BAD_OBJECTIVES = {
    "5": 'objective: 5 is not text; put it in quotes: "5"',
    "null": "objective: null is not allowed; expected text or a mapping",
    "[p, original]": (
        'objective: ["p", "original"]: a mixture has no single f(p), so no key says what was trained; name one '
        "objective in `objective`"
    ),
    "{}": "objective.name: missing; give the objective's name, for example power",
    "{name: power, alpha: ten}": 'objective.alpha: "ten" is not allowed; expected a finite number',
    "{name: power, beta: 1}": (
        "objective.beta: unknown key; choose from name, alpha, gamma, low, high, decay, by, shrinkage, keep, schedule, "
        "denominator"
    ),
    "{name: nll, keep: 0.2}": "objective.keep: 0.2 is not a mapping; write {min_p: ..., max_p: ...}",
    "{name: nll, keep: {min: 0.2}}": "objective.keep.min: unknown key; did you mean objective.keep.min_p?",
    "{name: nll, keep: {min_p: 1.5}}": "objective.keep.min_p: 1.5 is out of range; use a number in [0, 1]",
    "{name: nll, denominator: all}": 'objective.denominator: "all" is not allowed; expected one of target, kept',
    "{name: nll, keep: {min_percentile: 100}}": (
        "objective.keep.min_percentile: 100 is out of range; use a number in (0, 100)"
    ),
    "{name: nll, keep: {min_percentile: 10}}": (
        "objective.keep.min_percentile: 10 needs the model's probabilities; run `nemo-probsft diagnose RECIPE` and "
        "name its JSON file in objective.keep.diagnosis"
    ),
    "{name: nll, keep: {min_percentile: 10, min_p: 0.1}}": (
        "objective.keep.min_percentile: 10 and min_p 0.1 are both given; remove one"
    ),
    "{name: nll, keep: {min_p: 0.1, diagnosis: d}}": (
        'objective.keep.diagnosis: "d" has no effect without min_percentile or max_percentile; remove it'
    ),
}


@pytest.mark.parametrize(("objective", "message"), BAD_OBJECTIVES.items())
def test_bad_objective(objective, message):
    assert refusal(SMALLEST.replace("objective: p", f"objective: {objective}")) == f"r.yaml:3: {message}"


@pytest.mark.parametrize(
    ("objective", "start", "part"),
    [
        ("no-such", "r.yaml:3: objective: unknown objective 'no-such'", "GeneralFamily-alpha"),
        ("GeneralFamily", "r.yaml:3: objective: unknown objective 'GeneralFamily'", "GeneralFamily-alpha"),
        ("GeneralFamily-x", "r.yaml:3: objective: 'GeneralFamily-x'", "not a number"),
        ("OnlyTopP-1.5", "r.yaml:3: objective: 'OnlyTopP-1.5'", "[0, 1]"),
        ("{name: powr, alpha: 1}", "r.yaml:3: objective.name: 'powr'", "power"),
        ("{name: power}", "r.yaml:3: objective: 'power'", "alpha"),
        ("{name: nll, alpha: 1}", "r.yaml:3: objective: 'nll'", "'alpha'"),
        ("{name: nll, keep: {min_p: 0.9, max_p: 0.1}}", "r.yaml:3: objective: 'nll'", "min_p 0.9 > max_p 0.1"),
    ],
)
def test_refusals_of_the_objectives_name_file_and_key(objective, start, part):
    message = refusal(SMALLEST.replace("objective: p", f"objective: {objective}"))
    assert message.startswith(start)
    assert part in message


BAD_OVERRIDES = {
    ("optim.lr",): "override optim.lr: expected key=value, for example optim.lr=1e-5",
    ("=1",): "override =1: expected key=value, for example optim.lr=1e-5",
    ("optim..lr=1",): "override optim..lr=1: expected key=value, for example optim.lr=1e-5",
    ("optim.lr=",): "override optim.lr=: optim.lr: null is not allowed; expected a finite number",
    ("optim.lr=fast",): 'override optim.lr=fast: optim.lr: "fast" is not allowed; expected a finite number',
    ("optim.lr=[1",): ("override optim.lr=[1: not valid YAML: expected ',' or ']', but got '<stream end>'; correct it"),
    ("--optim.lr=1",): ("override --optim.lr=1: --optim: unknown key; did you mean optim?"),
    ("lr=1",): "override lr=1: lr: unknown key; did you mean optim.lr?",
    ("optim={lr: 1}",): (
        "override optim={lr: 1}: optim is a section; override its keys one by one, for example optim.KEY=VALUE"
    ),
    ("optim.lr=1", "optim.lr=2"): 'override optim.lr=2: "optim.lr" is overridden twice; keep one',
    ("a." * 100_000 + "x=1",): f"override {'a.' * 28}a...: nested more than 16 levels deep; no key is that deep",
    ("optim.lr.x=1",): (
        "override optim.lr.x=1: optim.lr is 5e-05, not a mapping, so it has no x; override it as a whole: "
        "optim.lr={x: ...}"
    ),
    ("objective.alpha=1",): (
        'override objective.alpha=1: objective is "GeneralFamily-10", not a mapping, so it has no alpha; override it '
        "as a whole: objective={alpha: ...}"
    ),
    ("optim.lr=a\nb",): 'override "optim.lr=a\\nb": optim.lr: "a b" is not allowed; expected a finite number',
    ("trainer.max_steps=5",): (
        "override trainer.max_steps=5: trainer.max_steps: 5 contradicts trainer.epochs 1; set one of them to null"
    ),
    ("data.micro_batch_size=3",): (
        "override data.micro_batch_size=3: data.global_batch_size: 256 is not a multiple of 12 (micro_batch_size 3 x "
        "data-parallel size 4); use 252"
    ),
    ("parallel.tensor_model_parallel_size=3",): (
        "override parallel.tensor_model_parallel_size=3: trainer.devices: 8 x num_nodes 1 is not a multiple of the 3 "
        "devices of one model copy (tensor 3 x pipeline 1 x context 1); change one of them"
    ),
}


@pytest.mark.parametrize(("overrides", "message"), BAD_OVERRIDES.items())
def test_bad_override_is_named(overrides, message):
    assert refusal(WHOLE, *overrides) == message


def test_missing_recipe_suggests_its_neighbour(tmp_path):
    load(SMALLEST, name="qwen2.5-7b.yaml")
    cases = {
        "qwen2.5-7b.yml": "qwen2.5-7b.yml: no such recipe; did you mean qwen2.5-7b.yaml?",
        "other": "other: no such recipe; name an existing recipe file",
        str(tmp_path): f"{tmp_path}: is a directory; name a recipe file in it",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=r".") as caught:
            config.load(path)
        assert str(caught.value) == message


def test_text_that_is_not_utf8_is_refused():
    with open("r.yaml", "wb") as file:
        file.write(b"run_dir: \xff\n")
    with pytest.raises(ValueError, match=r"^r\.yaml: byte 9 is not UTF-8; save the recipe as UTF-8 text$"):
        config.load("r.yaml")


def test_importing_the_schema_does_not_import_torch():
    probe = "import sys, nemo_probsft.config; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
