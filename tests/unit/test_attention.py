"""trainer.attention_backend, and CUDA without Transformer Engine: told in one line before any rank starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nemo_probsft import config
from nemo_probsft.run import attention
from nemo_probsft.run.attention import Machine
from nemo_probsft.run.preflight import check, resumable
from tests.support.model_directories import huggingface

GPU = Machine(cuda=True, transformer_engine=True, flash=True)
CPU = Machine(cuda=False, transformer_engine=False, flash=False)
BACKENDS = tuple(attention.BACKENDS)


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    huggingface()
    Path("t.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    Path("r.yaml").write_text("model: {path: m}\ndata: {train: t.jsonl}\nobjective: p\n")


def load(backend="auto", *overrides):
    return config.load("r.yaml", (f"trainer.attention_backend={backend}", *overrides))


def refusal(backend, machine, engine="nemo"):
    with pytest.raises(ValueError, match=r".") as caught:
        attention.refuse(load(backend), engine, machine)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("engine", "container"), [("nemo", "nemo:25.11"), ("bridge", "nemo:26.06 or 26.08")])
def test_cuda_without_transformer_engine_is_refused_with_every_backend(backend, engine, container):
    said = refusal(backend, dataclasses.replace(GPU, transformer_engine=False), engine)
    assert f"engine: {engine} on a GPU needs Transformer Engine, which is not installed; " in said
    assert f"use the container nvcr.io/nvidia/{container}, " in said
    assert "pip install 'transformer-engine[pytorch]'" in said
    assert "CUDA_VISIBLE_DEVICES=" in said


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_with_everything_takes_every_backend(backend):
    attention.refuse(load(backend), "nemo", GPU)


def test_flash_needs_its_package_and_the_others_do_not():
    without = dataclasses.replace(GPU, flash=False)
    said = refusal("flash", without)
    assert said == (
        "override trainer.attention_backend=flash: trainer.attention_backend: flash needs the package flash-attn, "
        "which is not installed; install it, or use auto or fused"
    )
    for backend in set(BACKENDS) - {"flash"}:
        attention.refuse(load(backend), "nemo", without)


def test_a_cpu_computes_what_has_no_special_kernels():
    for backend in ("auto", "unfused", "local"):
        attention.refuse(load(backend), "bridge", CPU)
    for backend in ("flash", "fused"):
        assert f"{backend} needs a GPU, and there is none; use auto" in refusal(backend, CPU)


@pytest.mark.parametrize(
    ("backend", "precision", "blamed"),
    [
        ("unfused", "bf16", "trainer.attention_backend unfused"),
        ("local", "fp32", "trainer.attention_backend local"),
        ("auto", "fp32", "trainer.precision fp32"),
    ],
)
def test_packed_rows_need_attention_of_variable_length_on_a_gpu(backend, precision, blamed):
    recipe = load(backend, f"trainer.precision={precision}", "data.packing=true")
    with pytest.raises(ValueError, match=r"^override data\.packing=true: data\.packing: ") as caught:
        attention.refuse(recipe, "nemo", GPU)
    assert f"flash or fused attention, which {blamed} rules out; use auto and bf16" in str(caught.value)
    attention.refuse(recipe, "nemo", CPU)
    attention.refuse(load("auto", "data.packing=true"), "bridge", GPU)


@pytest.mark.parametrize("machine", [GPU, CPU], ids=["GPU", "CPU"])
@pytest.mark.parametrize(("backend", "wrong"), [("auto", "0"), ("unfused", "1"), ("local", "1")])
def test_variables_that_megatron_would_refuse_are_refused(machine, backend, wrong):
    said = refusal(backend, dataclasses.replace(machine, environment={"NVTE_FUSED_ATTN": wrong}))
    right = str(1 - int(wrong))
    assert said.endswith(
        f"{backend} needs NVTE_FUSED_ATTN={right}, and the environment has NVTE_FUSED_ATTN={wrong}; unset it, "
        "trainer.attention_backend chooses"
    )
    attention.refuse(load(backend), "nemo", dataclasses.replace(machine, environment={"NVTE_FUSED_ATTN": right}))


def test_what_has_no_kernel_anywhere_is_refused_when_the_recipe_is_loaded():
    for backend in ("flash", "fused"):
        with pytest.raises(ValueError, match=f"{backend} has no kernels for trainer.precision fp32; use auto"):
            load(backend, "trainer.precision=fp32")
        assert load(backend).trainer.attention_backend == backend
    divided = ("trainer.devices=2", "parallel.context_parallel_size=2")
    for backend in ("unfused", "local"):
        with pytest.raises(ValueError, match=f"{backend} attention cannot divide a sequence over context_par"):
            load(backend, *divided)
        assert load(backend, "trainer.precision=fp32").trainer.attention_backend == backend
    load("auto", *divided, "trainer.precision=fp32")


def test_the_parent_asks_and_says_what_was_decided(monkeypatch):
    found = {decision.key: decision for decision in check(load("unfused"))}
    assert found["attention"].value == "unfused"
    monkeypatch.setattr(attention, "this_machine", lambda: dataclasses.replace(GPU, transformer_engine=False))
    with pytest.raises(ValueError, match="needs Transformer Engine, which is not installed"):
        check(load())
    assert check(load(), here=False), "another machine's packages are not known"


def test_a_run_may_go_on_with_another_backend():
    recipe = load("fused")
    Path(recipe.run_dir).mkdir(parents=True)
    saved = config.dump(recipe)
    Path(recipe.run_dir, "run.yaml").write_text(config.strictyaml.dump({"recipe": saved}))
    assert saved["trainer"]["attention_backend"] == "fused"
    assert resumable(recipe.run_dir, load("unfused"))
