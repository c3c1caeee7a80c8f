"""The shipped recipes, and mutations of them: a recipe loads with every key in force or is refused in one line."""

import copy
import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_probsft import config
from nemo_probsft.config import strictyaml

ROOT = Path(__file__).parents[2]
ALL = sorted((ROOT / "recipes").glob("*/*.yaml"))
RECIPES = [path for path in ALL if path.parent.name not in ("demo", "continuum", "real")]
NAMES = [str(path.relative_to(ROOT)) for path in RECIPES]

# layers, attention heads, key-value heads, ffn, vocabulary: config.json of each public model
SHAPES = {
    "Qwen/Qwen2.5-1.5B": (28, 12, 2, 8960, 151936),
    "Qwen/Qwen2.5-3B": (36, 16, 2, 11008, 151936),
    "Qwen/Qwen2.5-7B": (28, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-14B": (48, 40, 8, 13824, 152064),
    "Qwen/Qwen2.5-32B": (64, 40, 8, 27648, 152064),
    "Qwen/Qwen2.5-Math-1.5B": (28, 12, 2, 8960, 151936),
    "Qwen/Qwen2.5-Math-7B": (28, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-Coder-7B": (28, 28, 4, 18944, 152064),
    "meta-llama/Llama-3.1-8B": (32, 32, 8, 14336, 128256),
    "meta-llama/Llama-3.2-3B": (28, 24, 8, 8192, 128256),
    "deepseek-ai/deepseek-math-7b-base": (30, 32, 32, 11008, 102400),
}
# domain -> model -> lr, max_length, micro-batch, weight decay, objective: the paper's tables
PAPER = {
    "math/llama-3.1-8b": (2e-5, 3072, 4, 0.01, "p"),
    "math/deepseek-math-7b": (5e-5, 3072, 4, 0.01, "p"),
    "math/qwen2.5-math-1.5b": (5e-5, 3072, 4, 0.01, "p"),
    "math/qwen2.5-math-7b": (5e-5, 3072, 4, 0.01, "OnlyTopLogP-0.2"),
    "math/qwen2.5-3b": (5e-5, 3072, 8, 0.01, "p"),
    "math/qwen2.5-7b": (5e-5, 3072, 4, 0.01, "p"),
    "math/qwen2.5-14b": (2e-5, 3072, 2, 0.01, "p"),
    "math/qwen2.5-32b": (1e-5, 3072, 1, 0.01, "p"),
    "medical/llama-3.2-3b": (5e-5, 1024, 16, 0.01, "original"),
    "medical/llama-3.1-8b": (2e-5, 1024, 16, 0.01, "original"),
    "medical/qwen2.5-1.5b": (5e-5, 1024, 16, 0.01, "original"),
    "medical/qwen2.5-math-7b": (5e-5, 1024, 16, 0.01, "p"),
    "figfont/llama-3.2-3b": (5e-5, 800, 16, 1e-5, "original"),
    "figfont/llama-3.1-8b": (2e-5, 800, 16, 1e-5, "original"),
    "figfont/qwen2.5-1.5b": (5e-5, 800, 16, 1e-5, "original"),
    "figfont/qwen2.5-7b": (5e-5, 800, 16, 1e-5, "original"),
    "coding/qwen2.5-coder-7b": (5e-5, 3096, 4, 0.01, "p"),
    "low_resource/llama-3.1-8b": (2e-5, 1024, 16, 1e-4, "original"),
    "low_resource/qwen2.5-7b": (5e-5, 1024, 16, 1e-4, "original"),
    "instruction/qwen2.5-3b": (5e-5, 2048, 8, 1e-4, "original"),
    "instruction/qwen2.5-7b": (2e-6, 2048, 4, 1e-4, "original"),
    "instruction/qwen2.5-14b": (1e-6, 2048, 2, 1e-4, "p"),
    "openbookqa/qwen2.5-7b": (5e-5, 600, 8, 1e-5, "original"),
    "openbookqa/qwen2.5-14b": (2e-5, 600, 8, 1e-5, "original"),
}
HEADER = (
    "Source: arXiv 2510.00526v3, ",
    "Hardware: ",
    "Launch: ",
    "Compare: ",
    "Measured by the paper ",
    "Recommended ",
)


@pytest.mark.parametrize("path", ALL, ids=[path.parent.name + "/" + path.stem for path in ALL])
def test_recipe_loads(path):
    assert config.load(path).resolved.objective.key


def test_there_is_a_recipe_for_every_pair_of_the_paper_and_no_other():
    assert [str(path.relative_to(ROOT / "recipes").with_suffix("")) for path in RECIPES] == sorted(PAPER)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_has_the_papers_hyper_parameters(path):
    recipe = config.load(path)
    optim, data = recipe.optim, recipe.data
    expected = PAPER[f"{path.parent.name}/{path.stem}"]
    assert (optim.lr, data.max_length, data.micro_batch_size, optim.weight_decay, recipe.objective) == expected
    assert (data.global_batch_size, optim.betas, optim.warmup_ratio, optim.clip_grad) == (256, (0.9, 0.95), 0.1, 1.0)
    assert (optim.schedule, optim.min_lr, recipe.trainer.epochs) == ("cosine", 0.0, 1)
    assert recipe.resolved.denominator == "target"
    assert data.train == f"data/{path.parent.name}/train.jsonl"
    assert recipe.run_dir == f"runs/{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_layout_divides_the_model(path):
    recipe = config.load(path)
    tp, pp, cp = recipe.model_parallel_sizes
    layers, *divided = SHAPES[recipe.model.path]
    assert [count % tp for count in divided] == [0, 0, 0, 0]
    assert layers % pp == 0
    assert recipe.data_parallel_size * tp * pp * cp == recipe.trainer.devices * recipe.trainer.num_nodes
    assert recipe.num_micro_batches * recipe.data.micro_batch_size * recipe.data_parallel_size == 256


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_weights_gradients_and_optimizer_fit_into_half_of_the_memory(path):
    """18 bytes a parameter: bf16 weight, fp32 gradient, master weight and two moments, not sharded over data ranks."""
    recipe = config.load(path)
    billions = float(re.search(r"-(\d+\.?\d*)b", path.stem, re.IGNORECASE)[1])
    tp, pp, _ = recipe.model_parallel_sizes
    assert 18 * billions / (tp * pp) < 40


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_header_says_where_it_is_from_and_how_to_run_it(path):
    text = path.read_text()
    header = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    for start in HEADER:
        assert [line for line in header if line.startswith(start)], start
    recipe = config.load(path)
    gpus = recipe.trainer.devices * recipe.trainer.num_nodes
    assert f"# Hardware: {gpus} x 80 GB" in text
    name = str(path.relative_to(ROOT))
    assert all(name in line for line in header if line.startswith(("Launch: ", "Compare: ")))


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_compare_line_changes_the_objective_and_the_run_directory(path):
    compare = re.search(r"^# Compare: .*$", path.read_text(), re.MULTILINE)[0]
    overrides = [word for word in compare.split() if "=" in word]
    recipe, other = config.load(path), config.load(path, overrides)
    assert other.resolved.objective != recipe.resolved.objective
    assert other.run_dir != recipe.run_dir
    assert (other.optim, other.data, other.parallel, other.trainer) == (
        recipe.optim,
        recipe.data,
        recipe.parallel,
        recipe.trainer,
    )


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_states_only_what_differs_from_the_defaults(path):
    written = strictyaml.plain(strictyaml.parse(path.read_text(), str))
    default = config.dump(smallest_of(written))
    for section in ("parallel", "optim", "trainer", "data"):
        for key, value in written.get(section, {}).items():
            assert key == "train" or value != default[section][key], f"{section}.{key}"


def smallest_of(written):
    return config.load({key: written[key] for key in ("model", "run_dir", "objective")} | {"data": {"train": "t"}})


WHOLE = {
    "run_dir": "runs/x",
    "model": {"path": "a/b", "revision": "main", "trust_remote_code": False},
    "data": {
        "train": "t.jsonl",
        "max_length": 64,
        "global_batch_size": 32,
        "micro_batch_size": 2,
        "long_prompts": "skip",
    },
    "objective": {"name": "power", "alpha": 2.5, "keep": {"min_p": 0.1, "max_p": 0.9}, "denominator": "kept"},
    "parallel": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "context_parallel_size": 1,
        "sequence_parallel": True,
    },
    "optim": {"lr": 0.001, "min_lr": 0.0001, "betas": [0.9, 0.95], "warmup_ratio": 0.5, "schedule": "linear"},
    "trainer": {"devices": 4, "num_nodes": 2, "max_steps": 5, "precision": "fp32", "recompute": "full", "seed": 1},
    "checkpoint": {"every_steps": 2, "keep_last": 3},
    "log": {"every_steps": 2, "wandb": {"project": "x", "name": "y"}},
    "export": {"at_end": True, "dtype": "bf16"},
    "diagnose": {"max_tokens": 100, "output": "d.json"},
}
TEXT = yaml.safe_dump(WHOLE, sort_keys=False)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 64) | st.integers(),
    st.floats(),
    st.sampled_from(
        ["p", "original", "nll", "OnlyTopP-0.2", "GeneralFamily-3", "kept", "full", "1", "true", "1e-5", ""]
    ),
    st.sampled_from(["${a}", "_target_", "a\nb", "\0", "~", "é", "!!int", "x" * 200]),
    st.text(max_size=8),
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3))
KEYS = sorted({key for section in WHOLE.values() if isinstance(section, dict) for key in section} | set(WHOLE))


def leaves(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {key: leaf for name, child in tree.items() for key, leaf in leaves(child, f"{prefix}.{name}").items()}


def mappings(tree):
    return [tree] + [m for child in tree.values() if isinstance(child, dict) for m in mappings(child)]


@st.composite
def mutated_trees(draw):
    tree = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from(mappings(tree)))
        key = draw(st.sampled_from(sorted(section))) if section else "x"
        kind = draw(st.sampled_from(["remove", "replace", "add", "rename", "nudge"]))
        if kind == "nudge" and isinstance(section.get(key), int | float):
            section[key] = type(section[key])(section[key] * draw(st.sampled_from([-1, 0, 1, 2, 3, 0.5])))
        elif kind == "add":
            section[draw(st.sampled_from(KEYS) | st.text(max_size=6))] = draw(VALUES)
        elif kind == "rename" and key in section:
            section[draw(st.sampled_from([key.upper(), key[1:], key + "s", key.replace("_", "-")]))] = section.pop(key)
        elif kind == "replace":
            section[key] = draw(VALUES)
        else:
            section.pop(key, None)
    return tree


@st.composite
def mutated_texts(draw):
    text = TEXT
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        inserted = draw(
            st.sampled_from([*" \n\t:-#[]{}&*!|>'\"%@,?0", "\n  ", "null", "---\n", "<<: "]) | st.text(max_size=3)
        )
        text = text[:at] + inserted + text[at + draw(st.integers(0, 3)) :]
    return text


def load_or_refuse(text, overrides=()):
    """The recipe, or None after checking that the refusal is one line that starts with its place."""
    path = Path("r.yaml")
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    refusals = []
    try:
        return config.load(path, overrides)
    except ValueError as error:
        refusals.append(error)
    message = str(refusals[0])
    assert type(refusals[0]) is ValueError
    assert re.match(r"(r\.yaml|override )", message), message
    assert len(message.splitlines()) == 1, message
    return None


def in_force(recipe, written):
    """Every written leaf is the recipe's value; only null may stand for a default."""
    values = leaves(dataclasses.asdict(recipe) | {"tree": None})
    for key, value in leaves(written).items():
        if isinstance(value, list):
            value = tuple(value)
        found = values.get(key)
        assert value is None or (found == value and isinstance(found, bool) == isinstance(value, bool)), (
            key,
            value,
            found,
        )


MUTATIONS = settings(
    max_examples=int(os.environ.get("MUTATIONS", "200")), derandomize=True, deadline=None, database=None
)


@pytest.fixture(scope="module", autouse=True)
def in_empty_directory(tmp_path_factory):
    previous = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("mutations"))
    yield
    os.chdir(previous)


def test_the_unmutated_recipe_is_in_force():
    recipe = load_or_refuse(TEXT)
    in_force(recipe, WHOLE)
    with pytest.raises(AssertionError):
        in_force(recipe, WHOLE | {"checkpoint": {"every_steps": 3}})
    with pytest.raises(AssertionError):
        in_force(recipe, WHOLE | {"unknown": 3})


@MUTATIONS
@given(mutated_trees())
def test_mutated_values_load_or_are_refused(tree):
    recipe = load_or_refuse(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    if recipe is not None:
        in_force(recipe, tree)


@MUTATIONS
@given(mutated_texts())
def test_mutated_text_loads_or_is_refused(text):
    recipe = load_or_refuse(text)
    if recipe is not None:
        in_force(recipe, strictyaml.plain(strictyaml.parse(text, str)))
        assert leaves(yaml.safe_load(text)).keys() == leaves(strictyaml.plain(strictyaml.parse(text, str))).keys()


@MUTATIONS
@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.builds("{}={}".format, st.sampled_from([key.lstrip(".") for key in leaves(WHOLE)]), SCALARS),
            st.builds("{}.{}={}".format, st.sampled_from(KEYS), st.sampled_from(KEYS), SCALARS),
        ),
        max_size=3,
    )
)
def test_mutated_overrides_load_or_are_refused(overrides):
    recipe = load_or_refuse(TEXT, overrides)
    if recipe is not None:
        for text in overrides:
            key, _, value = text.partition("=")
            written = strictyaml.plain(strictyaml.parse(value, str))
            for part in reversed(key.split(".")):
                written = {part: written}
            in_force(recipe, written)
