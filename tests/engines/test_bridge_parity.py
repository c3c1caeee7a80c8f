"""The first step of Megatron-Bridge: what `test_parity.py` asks of NeMo, from a Hugging Face directory as the base."""

import pytest

from tests.support.parity_cases import Case, covering_cases
from tests.support.parity_checks import (
    had_an_uneven_batch,
    is_that_of_one_process_in_float64,
    is_that_of_the_merged_model,
    prepare,
    shows_the_known_mistakes,
    shows_the_mistakes_of_packing,
)

FURTHER = [
    Case(tp=2, sp=True, model="qwen3-tied", objective="GeneralFamily-10"),
    Case(tp=2, pp=2, model="llama-untied", objective="OnlyBottomP-0.5", denominator="kept"),
    Case(tp=2, sp=True, pp=2, vp=2, objective="OnlyTopLogP-0.2", denominator="kept", recompute="full"),
    Case(tp=2, sp=True, dp=2, model="qwen2-tied", objective="p", recompute="selective"),
]
PACKED = [
    Case(packing=True, tp=2, sp=True, dp=2, model="qwen2-tied", objective="OnlyTopLogP-0.2", denominator="kept"),
    Case(packing=True, tp=2, pp=2, vp=2, micro_batch=1, objective="p", recompute="full"),
    Case(packing=True, pp=2, dp=2, model="llama-untied", objective="GeneralFamily-10"),
    Case(packing=True, model="qwen3-tied", objective="OnlyBottomP-0.5", recompute="selective"),
]
LORA = [
    Case(lora=True, tp=2, sp=True, dp=2, model="qwen2-tied", objective="OnlyTopLogP-0.2"),
    Case(lora=True, tp=2, pp=2, vp=2, objective="p"),
    Case(lora=True, packing=True, tp=2, sp=True, dp=2, objective="p"),
]
CASES = {case.name: case for case in [*covering_cases(tp=(1, 2)), *FURTHER]}


@pytest.fixture(scope="module")
def launch(bridge, tmp_path_factory):
    """The first step of every case."""
    cases = CASES | {case.name: case for case in [*LORA, *PACKED]}
    launch, jobs = prepare(tmp_path_factory.mktemp("parity"), "bridge", cases)
    bridge.run(jobs)
    return launch


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_is_that_of_one_process_in_float64(launch, name, record_property):
    is_that_of_one_process_in_float64(launch, name, record_property)


@pytest.mark.parametrize("name", CASES)
def test_the_known_mistakes_would_have_been_seen(launch, name):
    shows_the_known_mistakes(launch, name)


@pytest.mark.parametrize("name", CASES)
def test_the_batch_was_as_uneven_as_it_is_meant_to_be(launch, name):
    had_an_uneven_batch(launch, name)


@pytest.mark.parametrize("name", [case.name for case in PACKED])
def test_packed_rows_have_the_first_step_of_their_examples(launch, name, record_property):
    is_that_of_one_process_in_float64(launch, name, record_property)
    shows_the_known_mistakes(launch, name)
    shows_the_mistakes_of_packing(launch, name)


@pytest.mark.parametrize("name", [case.name for case in LORA])
def test_adapters_have_the_gradient_of_the_merged_model(launch, name, record_property):
    is_that_of_the_merged_model(launch, name, record_property)
