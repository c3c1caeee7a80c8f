"""A whole training step, with our loss and head against the engine's own: python -m benchmarks.step --help

One model, one run of the trainer, one process: steps take turns, so that a disturbance hits all. The clock runs from
the batch to the updated weights and, with ours, the step's line in metrics.jsonl. The engine's default is its -log p
with Megatron's fused cross entropy on every row. On a CPU, columns that only a GPU has are "-".
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.measure import report
from benchmarks.turns import Turns, one_process
from nemo_probsft import config, demo_data
from nemo_probsft.data import order
from nemo_probsft.run import engines, prepare

SHAPES = {
    "small": {"layers": 24, "hidden": 896, "length": 2048, "precision": "bf16"},
    "big": {"layers": 24, "hidden": 2048, "length": 4096, "precision": "bf16"},  # the device is what it waits for
    "demo": {"layers": 3, "hidden": 128, "length": 32, "precision": "fp32"},
}
STOCK = {"nemo": "NeMo's default loss", "bridge": "Bridge's default loss"}
MEDIAN, SPREAD = 350 / 3072, 0.8  # lengths of examples in mathematics, of the limit: log-normal


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        engine, turns, tokens = _run(args, Path(folder))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    shape = "the demo's model" if args.shape == "demo" else f"{args.layers} layers, H={args.hidden} V={args.vocab}"
    size = f"{args.batch} x {args.length} tokens ({args.micro_batch} at a time)"
    for prompt in turns.kinds:
        title = f"training step of {engine.text} on {device}: {shape}, {size}, {prompt} prompt, {args.precision}, "
        title += ", ".join([args.objective, *args.overrides])
        path = args.json and Path(args.json).with_stem(f"{Path(args.json).stem}-{prompt.removesuffix('%')}")
        report(title, turns.rows(prompt, tokens), path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["auto", "nemo", "bridge"], default="auto")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="what the next four are by default")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--length", type=int, help="tokens of a sequence")
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences of a forward pass")
    parser.add_argument("--prompt", type=float, nargs="+", default=[0.75, 0.25], help="shares of tokens without a loss")
    parser.add_argument(
        "--lengths", choices=["fixed", "math"], default="fixed", help="math: log-normal, up to --length"
    )
    parser.add_argument("--objective", default="original")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    parser.add_argument("--json", help="also write the tables there, the share in the name")
    parser.add_argument("overrides", nargs="*", help="of the recipe, as trainer.attention_backend=unfused")
    args = parser.parse_intermixed_args()
    for name, value in SHAPES[args.shape].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _run(args: argparse.Namespace, folder: Path) -> tuple[engines.Engine, Turns, float]:
    """The engine, the turns when all are over, and the tokens of a step."""
    engine = engines.choose(args.engine)
    turns = Turns(STOCK[engine.name], [f"{share:.0%}" for share in args.prompt], args.steps)
    model = folder / "model"
    demo_data.write_tokenizer(model)
    demo_data.write_random_base(model, seed=0) if args.shape == "demo" else _write_model(args, model)
    lengths = list(_lengths(args, turns))
    demo_data.write_rows(folder / "train.jsonl", _rows(args, turns, lengths))
    recipe = _recipe(args, engine.name, folder, turns.num_steps)
    prepared, _ = prepare.prepare(recipe)
    one_process()
    importlib.import_module(f"benchmarks.step_{engine.name}").train(recipe, prepared, turns)
    return engine, turns, sum(map(sum, lengths)) / len(lengths)


def _lengths(args: argparse.Namespace, turns: Turns) -> Iterator[list[int]]:
    """Positions of the examples of each round of implementations, which all get the same."""
    random = np.random.default_rng(0)
    for _ in range(turns.num_steps // len(turns.implementations)):
        drawn = (
            random.lognormal(np.log(MEDIAN * args.length), SPREAD, args.batch).round().clip(4, args.length).astype(int)
        )
        yield drawn.tolist() if args.lengths == "math" else [args.length] * args.batch


def _rows(args: argparse.Namespace, turns: Turns, lengths: list[list[int]]) -> list[dict[str, str]]:
    """The file of which the package's shuffle makes the steps of `turns`. A token is a letter; the end is one more."""
    size = args.batch * turns.num_steps
    rows: list[dict[str, str]] = [{}] * size
    for step in range(turns.num_steps):
        share = args.prompt[turns.kinds.index(turns.kind(step))]
        drawn = order.step_indices(size, args.batch, seed=0, step=step)
        for index, length in zip(drawn, lengths[step // len(turns.implementations)], strict=True):
            prompt = max(1, round(share * length))
            rows[index] = {"prompt": "a" * prompt, "response": "b" * (length - prompt)}
    return rows


def _recipe(args: argparse.Namespace, engine: str, folder: Path, num_steps: int) -> config.Recipe:
    path = folder / "step.yaml"
    content = {
        "run_dir": str(folder / "run"),
        "engine": engine,
        "model": {"path": str(folder / "model")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "max_length": args.length + 1,
            "global_batch_size": args.batch,
            "micro_batch_size": args.micro_batch,
        },
        "objective": args.objective,
        "trainer": {"max_steps": num_steps, "precision": args.precision},
        "checkpoint": {"every_steps": config.MAX_INT32},
    }
    path.write_text(yaml.safe_dump(content))
    return config.load(path, args.overrides)


def _write_model(args: argparse.Namespace, folder: Path) -> None:
    """A random model of Qwen2.5's form; fewer layers leave the head's share of the step larger."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=round(args.hidden * 4864 / 896 / 64) * 64,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape)
    model.to(torch.bfloat16 if args.precision == "bf16" else torch.float32).save_pretrained(folder)


if __name__ == "__main__":
    main()
