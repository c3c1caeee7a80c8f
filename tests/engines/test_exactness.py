"""The table of what is exact and what is refused: it is the documentation, and everything in it is asked for."""

import re
from pathlib import Path

import pytest

from nemo_probsft import config
from nemo_probsft.config import exactness
from nemo_probsft.config.combinations import EXACT, REFUSED_COMBINATIONS
from nemo_probsft.config.exactness import MODEL_SETTINGS, REFUSED_KEYS, SET_BY_THE_TRAINER

ROOT = Path(__file__).parents[2]
RECIPE = "model: {path: a/b}\ndata: {train: t.jsonl, global_batch_size: 8}\nobjective: p\n"
REFUSALS = {
    "`objective` as a list": (
        'override objective=[p, original]: objective: ["p", "original"]: a mixture has no single f(p), so no key says '
        "what was trained; name one objective in `objective`"
    ),
    "an objective or parameter that is not in the table": (
        "override objective=cross_entropy: objective: unknown objective 'cross_entropy'; the keys are original, logp, "
    ),
    "a percentile without its diagnosis": (
        "override objective={name: nll, keep: {min_percentile: 10}}: objective.keep.min_percentile: 10 needs the "
        "model's probabilities; run `nemo-probsft diagnose RECIPE` and name its JSON file in objective.keep.diagnosis"
    ),
    "sequence parallelism without tensor parallelism": (
        "override parallel.sequence_parallel=true: parallel.sequence_parallel: true needs tensor_model_parallel_size "
        "of at least 2 (Megatron refuses it at 1); set it to false"
    ),
    "a global batch that is not whole micro-batches": (
        "override data.global_batch_size=6: data.global_batch_size: 6 is not a multiple of 4 (micro_batch_size 4 x "
        "data-parallel size 1); use 4"
    ),
    "`peft` with `trainer.recompute: full`": (
        "override trainer.recompute=full: trainer.recompute: full would train nothing with peft: Megatron recomputes a "
        "layer only if its input needs a gradient, and a frozen embedding has none; use selective or none"
    ),
    "`trainer.attention_backend` `flash` or `fused` with fp32": (
        "override trainer.attention_backend=flash: trainer.attention_backend: flash has no kernels for "
        "trainer.precision fp32; use auto or unfused, or precision bf16"
    ),
    "`trainer.attention_backend: unfused` or `local` with context parallelism": (
        "override trainer.attention_backend=unfused: trainer.attention_backend: unfused attention cannot divide a "
        "sequence over context_parallel_size 2; use auto, or size 1"
    ),
    "`data.packing` with context parallelism": (
        "override data.packing=true: data.packing: true with parallel.context_parallel_size 2: Megatron-Core 0.15 "
        "would slice a row over the ranks as if it were one example; set one of them to its default"
    ),
    "2^31 or more tokens in a global batch": (
        "override data.global_batch_size=4194304: data.global_batch_size: 4194304 x data.max_length 1024 tokens are "
        "more than Megatron counts in int32, 2**31 - 1; lower one of them"
    ),
}


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)


def refusal(*overrides):
    with pytest.raises(ValueError, match=r".") as caught:
        config.load("r.yaml", overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_page_is_the_table():
    assert (ROOT / "docs" / "exactness.md").read_text() == exactness.markdown()


@pytest.mark.parametrize("row", REFUSED_COMBINATIONS, ids=[row.combination for row in REFUSED_COMBINATIONS])
def test_refused_combination(row):
    config.load("r.yaml")
    assert refusal(*row.overrides).startswith(REFUSALS[row.combination])


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_refused_key_says_why_at_every_level(key):
    for place in (key, f"trainer.{key}", f"objective.{key}"):
        overrides = ["objective={name: nll}"] if place.startswith("objective.") else []
        assert refusal(*overrides, f"{place}=1") == f"override {place}=1: {place}: {REFUSED_KEYS[key]}"
        assert "; " in REFUSED_KEYS[key]  # reason; remedy


@pytest.mark.parametrize("engine", ["nemo", "bridge"])
@pytest.mark.parametrize("row", EXACT, ids=[row.combination for row in EXACT])
def test_what_is_called_exact_is_shown_by_a_test_that_exists(row, engine):
    shown_by = getattr(row, engine)
    if "::" in shown_by:
        path, name = shown_by.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    else:
        assert shown_by.startswith("not shown: ")


def test_a_built_model_is_looked_at_once_more():
    from megatron.core.transformer import TransformerConfig

    from nemo_probsft.adapters.megatron.hook import check_config

    def built(**settings):
        settings = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "calculate_per_token_loss": True, **settings}
        return TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, **settings)

    check_config(built())
    for settings in ({"calculate_per_token_loss": False}, {"cross_entropy_loss_fusion": True}, {"mtp_num_layers": 1}):
        (name,) = settings
        why = next(rule.why for rule in SET_BY_THE_TRAINER + MODEL_SETTINGS if rule.name == name)
        with pytest.raises(
            ValueError, match=re.escape(f"built with {name} {settings[name]} ({why}); docs/exactness.md")
        ):
            check_config(built(**settings))
