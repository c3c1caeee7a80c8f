"""The arithmetic of `train --plan` against what the real trainer's ranks hold, and against transformers."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoConfig, AutoModelForCausalLM

import conversion
from conversion.families import ModelSpec, model_spec
from nemo_probsft import config
from nemo_probsft.plan import memory
from tests.engines.test_recipes import SHAPES
from tests.support.parity_cases import NUM_ROWS, VOCAB_SIZE, Case, make_models, write_job
from tests.support.parity_reference import Row

CASES = {
    "tp 2, sequence parallel, bf16, a checkpoint": Case(tp=2, sp=True, precision="bf16", model="qwen2-tied"),
    "tp 2, pp 2, tied, bf16": Case(tp=2, pp=2, precision="bf16", model="qwen2-tied", objective="p"),
    "LoRA, tp 2, sequence parallel, bf16": Case(tp=2, sp=True, lora=True, precision="bf16"),
    "virtual stages": Case(pp=2, vp=2),
    "norms of q and k, a checkpoint": Case(model="qwen3-tied"),
    "grouped queries": Case(model="qwen2-grouped"),
    "grouped queries, selective recompute": Case(model="qwen2-grouped", recompute="selective"),
    "every row, full recompute": Case(model="llama-untied", recompute="full"),
}
FP32 = 4
ROWS = [Row([(7 * i + j) % VOCAB_SIZE for j in range(33)], list(range(5 + i, 33))) for i in range(NUM_ROWS)]


@dataclass(frozen=True)
class Measured:
    spec: ModelSpec
    setup: memory.Setup
    ranks: list[dict]  # of `tests.support.memory_ranks`
    run_dir: Path

    def last_stage(self) -> dict:
        return next(rank for rank in self.ranks if rank["stage"] == self.setup.pp - 1)


@pytest.fixture(scope="module")
def launch(engine, tmp_path_factory):
    """{case: what its ranks held} in one step of the real trainer."""
    root = tmp_path_factory.mktemp("memory")
    make_models(root)
    _make_grouped(root / "hf" / "qwen2-grouped")
    for model in {case.model for case in CASES.values()}:
        conversion.import_hf(root / "hf" / model, root / "nemo" / model)
    jobs = {}
    for name, case in CASES.items():
        job = write_job(root, case, ROWS)
        jobs[name] = job | {"task": "tests.support.memory_ranks:measure", "checkpoint": "a checkpoint" in name}
        if "every row" in name:
            recipe = Path(job["recipe"])
            recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"head": {"skip_rows": False}}))
    engine.run(list(jobs.values()))
    return {name: _measured(root, case, jobs[name]) for name, case in CASES.items()}


def _make_grouped(directory: Path) -> None:
    """Two heads for every key, which the models of the parity tests do not have."""
    config = AutoConfig.from_pretrained(directory.parent / "qwen2-untied")
    config.num_key_value_heads = 2
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)


def _measured(root: Path, case: Case, job: dict) -> Measured:
    output = Path(job["output"])
    errors = [path.read_text() for path in output.glob("*.error")]
    assert not errors, errors[0]
    found = [torch.load(output / f"rank-{rank}.pt", weights_only=False) for rank in range(case.world_size)]
    spec = model_spec(json.loads((root / "hf" / case.model / "config.json").read_text()))
    _, length, num_targets = next(rank["batch"] for rank in found if rank["batch"])
    setup = memory.setup(config.load(job["recipe"]), length=length, num_targets=num_targets, drops_rows=False)
    return Measured(spec, replace(setup, distributed_optimizer=False), found, root / "runs" / case.name)


@pytest.mark.parametrize("name", CASES)
def test_weights_gradients_and_optimizer_state_are_those_of_the_trainer(launch, name):
    measured = launch[name]
    ranks = memory.ranks(measured.spec, measured.setup)
    for held in measured.ranks:
        rank = ranks[held["stage"]]
        state = held["optimizer"]
        assert held["weights"] == rank.weights
        assert held["gradients"] == rank.gradients
        assert state.get("master", 0) + state["exp_avg"] + state["exp_avg_sq"] == rank.optimizer
        if measured.setup.tp > 1:  # a tp-th of everything, norms and second embedding forgotten
            whole = memory.ranks(measured.spec, replace(measured.setup, tp=1, pp=1))[0]
            assert held["weights"] != whole.weights // (measured.setup.tp * measured.setup.pp)
        if measured.setup.element == 2:
            assert held["gradients"] != held["weights"]  # as they would be with bf16 buffers


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pp > 1])
def test_as_many_micro_batches_are_in_flight_as_the_schedule_holds(launch, name):
    measured = launch[name]
    for held in measured.ranks:
        assert held["alive"] / measured.setup.vp == memory.micro_batches_in_flight(measured.setup, held["stage"])
    assert measured.ranks[0]["alive"] > measured.ranks[-1]["alive"]  # "one micro-batch everywhere" would be wrong


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.recompute != "full" and not case.vp])
def test_a_layer_keeps_what_the_formula_says_and_what_layers_without_transformer_engine_add(launch, name):
    measured = launch[name]
    spec, s = measured.spec, measured.setup
    saved = sum(size for _, size in measured.ranks[0]["saved"]["layer 2"])
    extra = extra_of_local_layers(measured)
    assert saved == memory.layer_activations(spec, s) + extra
    wrong = {"sequence_parallel": not s.sequence_parallel} if s.tp > 1 else {"tp": 2}
    assert saved != memory.layer_activations(spec, replace(s, **wrong)) + extra


def extra_of_local_layers(measured: Measured) -> int:
    """Bytes that Megatron's layers keep on a CPU over those of Transformer Engine, which are not to be had here."""
    spec, s = measured.spec, measured.setup
    trains_norms = s.lora_dim is None
    # torch's RMSNorm works in fp32: input, and what its weight multiplies.
    norms = 2 * spec.hidden_size / s.norm_split * (FP32 - s.element + (FP32 if trains_norms else 0))
    if spec.qk_norm:
        norms += s.element * (spec.num_heads + spec.num_query_groups) * spec.head_dim / s.tp
    swiglu = 2 * spec.ffn_hidden_size * s.element / s.tp  # silu(gate), and up + 0, which is a new tensor
    scores = spec.num_heads / s.tp * (s.element * s.length - FP32) if s.fused_attention else 0
    rotation = 4 * s.length * spec.head_dim * s.element  # cosines and sines, for q and for k
    mask_type = 4 if s.recompute == "selective" else 0  # Megatron hands an int32 through the recomputed function
    return int(s.tokens * (norms + swiglu + scores)) + rotation + mask_type


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.vp])
def test_the_logits_are_the_rows_that_are_said(launch, name):
    measured = launch[name]
    spec, s = measured.spec, measured.setup
    saved = measured.last_stage()["saved"]["around"]
    widest = max(size for shape, size in saved if shape[-1] > spec.hidden_size)
    assert widest == memory.logits(spec, s)
    assert widest != memory.logits(spec, replace(s, skip_rows=not s.skip_rows))


def test_full_recompute_keeps_the_input_of_each_layer(launch):
    measured = launch["every row, full recompute"]
    spec, s = measured.spec, measured.setup
    inputs = [size for shape, size in measured.ranks[0]["saved"]["around"] if shape == (s.length, 2, spec.hidden_size)]
    size = memory.layer_activations(spec, s)
    # Besides those of the layers: the final norm's input, what its weight multiplies, and the head's input.
    assert inputs == [size] * (spec.num_layers + 3)
    assert not any(name.startswith("layer") for name in measured.ranks[0]["saved"])


@pytest.mark.parametrize("name", [name for name in CASES if "a checkpoint" in name])
def test_a_checkpoint_is_as_large_as_said(launch, name):
    measured = launch[name]
    directory = measured.run_dir / "checkpoints" / "step=1" / "weights"
    entries = FileSystemReader(str(directory)).read_metadata().state_dict_metadata.values()
    tensors = [entry for entry in entries if isinstance(entry, TensorStorageMetadata)]
    size = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors if entry.size.numel() > 1)
    said = memory.checkpoint_bytes(measured.spec, measured.setup)
    assert size == said
    files = sum(path.stat().st_size for path in directory.iterdir())
    assert said < files < said + (1 << 19)  # metadata, and torch.save's frame around each tensor


def published_config(name: str, **changes) -> dict:
    """config.json of a model with its published shape."""
    family = next((family for family in ("Qwen2", "Qwen3") if family in name), "Llama")  # DeepSeekMath is Llama
    layers, heads, groups, ffn, vocabulary = {**SHAPES, **QWEN3}[name]
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "num_hidden_layers": layers,
        "hidden_size": 128 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096 if "Math" in name else 131072,
        "tie_word_embeddings": name in TIED,
        **changes,
    }


QWEN3 = {"Qwen/Qwen3-8B": (36, 32, 8, 12288, 151936), "Qwen/Qwen3-0.6B": (28, 16, 8, 3072, 151936)}
TIED = ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-3B")
CHANGES = {"Qwen/Qwen3-0.6B": {"hidden_size": 1024}}


@pytest.mark.parametrize("name", [*SHAPES, *QWEN3])
def test_parameters_are_those_of_transformers(name):
    settings = published_config(name, **CHANGES.get(name, {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    spec = model_spec(settings)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert memory.num_parameters(spec) == count
    assert memory.num_parameters(replace(spec, tied=not spec.tied)) != count


def one_rank(**changes) -> memory.Setup:
    plain = {"tp": 1, "pp": 1, "vp": 1, "cp": 1, "dp": 1, "sequence_parallel": False, "element": 2, "lora_dim": None}
    batch = {"micro_batch": 1, "length": 4096, "num_micro_batches": 8, "num_targets": 4096, "recompute": "none"}
    head = {"skip_rows": True, "chunk_tokens": None, "drops_rows": False}
    return memory.Setup(**{**plain, **batch, **head, **changes})


SPEC = model_spec(published_config("Qwen/Qwen2.5-7B"))


def test_layouts_divide_what_they_are_said_to_divide():
    whole, ranks = one_rank(), memory.ranks
    everything = ranks(SPEC, whole)[0]
    assert everything.weights == 2 * memory.num_parameters(SPEC)
    assert (everything.gradients, everything.optimizer) == (2 * everything.weights, 6 * everything.weights)
    sharded = ranks(SPEC, one_rank(dp=4, cp=2))[0]
    assert sharded.optimizer == everything.optimizer / 8
    assert sharded.gradients == everything.gradients
    stages = ranks(SPEC, one_rank(pp=4))
    assert sum(rank.weights for rank in stages) == everything.weights
    assert [rank.micro_batches for rank in stages] == [4, 3, 2, 1]
    assert stages[0].logits == 0
    assert stages[-1].logits == everything.logits
    tensor = memory.layer_activations(SPEC, one_rank(tp=4))
    assert memory.layer_activations(SPEC, one_rank(tp=4, sequence_parallel=True)) < tensor
    assert memory.layer_activations(SPEC, whole) == 4 * memory.layer_activations(
        SPEC, one_rank(tp=4, sequence_parallel=True)
    )


def test_interleaved_stages_hold_what_korthikanti_says():
    """Their section 4.2.3: L (1 + (p - 1) / (p m)) layers on the first stage, for m virtual stages."""
    first = memory.ranks(SPEC, one_rank(pp=2, vp=7))[0]
    assert first.micro_batches * first.num_layers == pytest.approx(SPEC.num_layers * (1 + 1 / 14))


def test_lora_trains_its_factors_only():
    frozen, trained = memory.parameters(SPEC, one_rank(lora_dim=16), 0)
    h, q, kv, f = 3584, 3584, 512, 18944
    assert frozen == memory.num_parameters(SPEC)
    assert trained == 28 * 16 * ((h + q + 2 * kv) + (q + h) + (h + 2 * f) + (f + h))
    rank = memory.ranks(SPEC, one_rank(lora_dim=16))[0]
    assert (rank.gradients, rank.optimizer) == (4 * trained, 12 * trained)
