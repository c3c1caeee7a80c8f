"""The layouts and objectives of the parity tests, a selection in which every pair of choices occurs, and their data."""

import dataclasses
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml

from nemo_probsft import config
from nemo_probsft.data import order
from nemo_probsft.data.packing import Packing, most_rows
from nemo_probsft.data.tokens import DataSummary, TokenizedDataset
from nemo_probsft.run import packed
from nemo_probsft.run.prepare import Prepared
from tests.support.parity_reference import FORMULAS, Reference, Row, make_rows, without_kept

VOCAB_SIZE = 301  # neither 2 nor 4 divides it: Megatron pads it
MAX_LENGTH = 64
NUM_ROWS = 16  # one global batch: 2 micro-batches of 4 on each of 2 data-parallel ranks
LORA_DIM, LORA_ALPHA = 4, 6
WITHOUT_TARGETS = range(8, 12)  # whole micro-batches at every micro-batch size


@dataclass(frozen=True)
class Case:
    """One first step. `precision` and `recompute` are the recipe's."""

    tp: int = 1
    pp: int = 1
    vp: int | None = None
    dp: int = 1
    sp: bool = False
    micro_batch: int = 2
    model: str = "qwen2-untied"
    objective: str = "original"
    denominator: str = "target"
    recompute: str = "none"
    precision: str = "fp32"
    lora: bool = False
    cp: int = 1
    packing: bool = False
    attention: str = "auto"  # trainer.attention_backend

    @property
    def name(self) -> str:
        layout = f"tp{self.tp}{'sp' * self.sp}-pp{self.pp}{f'vp{self.vp}' if self.vp else ''}-dp{self.dp}"
        extra = "" if self.recompute == "none" else f"-{self.recompute}"
        extra += "" if self.precision == "fp32" else f"-{self.precision}"
        extra += "-lora" * self.lora
        extra += "" if self.attention == "auto" else f"-{self.attention}"
        extra += f"-cp{self.cp}" * (self.cp > 1)
        extra += "-packed" * self.packing
        return f"{layout}-mb{self.micro_batch}-{self.model}-{self.objective}-{self.denominator}{extra}"

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def possible(self) -> bool:
        return self.world_size <= 4 and (self.vp is None or self.pp > 1) and not (self.sp and self.tp == 1)

    def rank_of(self, position: int) -> int:
        """The data-parallel rank that gets a position of the global batch."""
        return position // self.micro_batch % self.dp

    def shares(self, rows: list[Row]) -> list[list[list[Row]]]:
        """Of each data-parallel rank, its micro-batches."""
        if self.packing:
            return [[[rows[i] for row in batch for i in row] for batch in share] for share in self.packed(rows)]
        batches = [rows[i : i + self.micro_batch] for i in range(0, NUM_ROWS, self.micro_batch)]
        return [batches[rank :: self.dp] for rank in range(self.dp)]

    def packed(self, rows: list[Row]) -> list[list[list[list[int]]]]:
        """Of each data-parallel rank, its micro-batches of rows of positions of the global batch."""
        lengths = [len(row.ids) - 1 for row in rows]
        multiple = self.micro_batch * self.dp * (1 if self.vp is None else self.pp)
        packing = Packing(MAX_LENGTH - 1, most_rows([lengths], MAX_LENGTH - 1, multiple), self.micro_batch)
        return packing.ranks(lengths, self.dp)

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        return [batch for share in self.shares(rows) for batch in share]


CHOICES = {
    "tp": (1, 2, 4),
    "pp": (1, 2),
    "vp": (None, 2),
    "dp": (1, 2),
    "sp": (False, True),
    "micro_batch": (1, 2, 4),
    "model": ("qwen2-untied", "qwen2-tied"),
    "objective": tuple(FORMULAS),
    "denominator": ("target", "kept"),
}


def pairs(case: Case) -> set[tuple]:
    """Every two of the case's choices."""
    return set(itertools.combinations([(name, getattr(case, name)) for name in CHOICES], 2))


@cache
def covering_cases(tp: tuple[int, ...] = CHOICES["tp"]) -> list[Case]:
    """Few cases that have every pair of choices that a possible case has; greedy, and always the same."""
    possible = [Case(*values) for values in itertools.product(*(CHOICES | {"tp": tp}).values())]
    possible = [case for case in possible if case.possible]
    missing = set().union(*map(pairs, possible))
    chosen = []
    while missing:
        chosen.append(max(possible, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def make_models(root: Path) -> None:
    """Random models of 4 layers whose probabilities reach from 1e-6 to almost 1, in fp32."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.15,
    }
    configs = {
        "qwen2-untied": Qwen2Config(**shape, tie_word_embeddings=False),
        "qwen2-tied": Qwen2Config(**shape, tie_word_embeddings=True),
        "qwen3-tied": Qwen3Config(**shape, head_dim=16, tie_word_embeddings=True),
        "llama-untied": LlamaConfig(**shape, tie_word_embeddings=False),
    }
    for name, described in configs.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(described, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases and norms; at 0 and 1 they would hide a mistake
                    parameter.normal_(1.0, 0.3)
            model.lm_head.weight.mul_(3)
        model.save_pretrained(root / "hf" / name)


def case_rows(reference: Reference, case: Case) -> list[Row]:
    """The global batch in its order: uneven, with micro-batches without targets, and a rank that keeps nothing."""
    rows = list(_rows(reference))
    for position, row in enumerate(rows):
        if position in WITHOUT_TARGETS:
            rows[position] = Row(row.ids, [])
        elif case.dp > 1 and case.rank_of(position) == 1 and case.objective.startswith("Only"):
            rows[position] = without_kept(reference, row, case.objective)
    return rows


@cache
def _rows(reference: Reference) -> tuple[Row, ...]:
    return tuple(make_rows(reference, NUM_ROWS, VOCAB_SIZE, seed=1))


def write_job(root: Path, case: Case, rows: list[Row], engine: str = "nemo") -> dict:
    """The case's recipe and tokenised rows, as `tests.support.engine` takes them."""
    run_dir = root / "runs" / case.name
    run_dir.mkdir(parents=True)
    examples, dataset = run_dir / "examples", _in_data_order(rows)
    dataset.save(examples)
    recipe = {
        "run_dir": str(run_dir),
        "model": {"path": str(root / "hf" / case.model)},
        "data": {
            "train": "already-tokenised.jsonl",
            "max_length": MAX_LENGTH,
            "global_batch_size": NUM_ROWS,
            "micro_batch_size": case.micro_batch,
            "packing": case.packing,
        },
        "objective": {**_recipe_form(case.objective), "denominator": case.denominator},
        "parallel": {
            "tensor_model_parallel_size": case.tp,
            "pipeline_model_parallel_size": case.pp,
            "virtual_pipeline_model_parallel_size": case.vp,
            "sequence_parallel": case.sp,
            "context_parallel_size": case.cp,
        },
        "trainer": {
            "devices": case.world_size,
            "max_steps": 1,
            "precision": case.precision,
            "recompute": case.recompute,
            "attention_backend": case.attention,
        },
    }
    if case.lora:
        recipe["peft"] = {"name": "lora", "dim": LORA_DIM, "alpha": LORA_ALPHA}
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run_dir / "run.yaml").write_text("seed: 0\n")
    loaded = config.load(run_dir / "recipe.yaml")
    prepared = Prepared(
        engine=engine,
        fingerprint="",
        base=str(root / {"nemo": "nemo", "bridge": "hf"}[engine] / case.model),
        hf=str(root / "hf" / case.model),
        examples=str(examples),
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        num_examples=NUM_ROWS,
        num_target_tokens=sum(len(row.targets) for row in rows),
        num_steps=1,
        num_rows=packed.count_rows(loaded, dataset, 1) if case.packing else None,
    )
    return {
        "task": "tests.support.parity_ranks:first_step",
        "engine": engine,
        "recipe": str(run_dir / "recipe.yaml"),
        "prepared": dataclasses.asdict(prepared),
        "world_size": case.world_size,
        "output": str(run_dir / "ranks"),
    }


def _recipe_form(key: str) -> dict:
    forms = {
        "original": {"name": "nll"},
        "p": {"name": "power", "alpha": 1},
        "GeneralFamily-10": {"name": "power", "alpha": 10},
        "OnlyTopLogP-0.2": {"name": "nll", "keep": {"min_p": 0.2}},
        "OnlyBottomP-0.5": {"name": "power", "alpha": 1, "keep": {"max_p": 0.5}},
    }
    return forms[key]


def _in_data_order(rows: list[Row]) -> TokenizedDataset:
    """The data set of which the first global batch, shuffled as the package does, is `rows` in their order."""
    drawn = order.step_indices(NUM_ROWS, NUM_ROWS, seed=0, step=0)
    placed = [rows[position] for position in np.argsort(drawn)]
    masks = []
    for row in placed:
        mask = np.zeros(len(row.ids), dtype=np.uint8)
        mask[[target - 1 for target in row.targets]] = 1
        masks.append(mask)
    lengths = [len(row.ids) for row in placed]
    return TokenizedDataset(
        input_ids=np.concatenate([np.array(row.ids, dtype=np.int32) for row in placed]),
        loss_mask=np.concatenate(masks),
        offsets=np.cumsum([0, *lengths]),
        rows=np.arange(1, NUM_ROWS + 1),
        summary=DataSummary(NUM_ROWS, sum(lengths), sum(len(row.targets) for row in rows), 0, 0, max(lengths)),
    )
