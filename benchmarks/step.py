"""A whole training step of NeMo's trainer, with our loss and head against NeMo's own: python -m benchmarks.step --help

One model, one trainer, one process: steps take turns between the two, so that a disturbance hits both. The clock runs
from the batch to the updated weights. NeMo's default is its -log p with Megatron's fused cross entropy on every row.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks.measure import report
from nemo_probsft import config, demo_data
from nemo_probsft.run import prepare

STOCK = "NeMo's default loss"
WARM_UP = 2  # steps of each, in which Megatron's fused loss is compiled


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        times = _train(_recipe(args, Path(folder)))
    rows = [
        {
            "implementation": name,
            "ms": 1e3 * statistics.median(seconds[WARM_UP:]),
            "ratio": None,
            "steps": len(seconds) - WARM_UP,
        }
        for name, seconds in times.items()
    ]
    shape = "the demo's model" if args.demo else f"{args.layers} layers, H={args.hidden} V={args.vocab}"
    tokens = f"{args.batch} x {args.length} tokens ({args.micro_batch} at a time), {args.prompt:.0%} prompt"
    report(f"training step: {shape}, {tokens}, {args.precision}, {args.objective}", rows, args.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the demo's model instead of --layers, --hidden, --vocab")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--micro-batch", type=int, default=1, help="sequences of a forward pass")
    parser.add_argument("--prompt", type=float, default=0.75, help="fraction of the tokens that have no loss")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--objective", default="original")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each")
    parser.add_argument("--json", help="also write the table there")
    return parser.parse_args()


def _recipe(args: argparse.Namespace, folder: Path) -> config.Recipe:
    model = folder / "model"
    demo_data.write_tokenizer(model)
    demo_data.write_random_base(model, seed=0) if args.demo else _write_model(args, model)
    num_prompt = round(args.prompt * args.length)
    row = {"prompt": "a" * num_prompt, "response": "b" * (args.length - num_prompt)}
    rows = [row] * (2 * args.batch)
    demo_data.write_rows(folder / "train.jsonl", rows)
    path = folder / "step.yaml"
    content = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(model)},
        "data": {
            "train": str(folder / "train.jsonl"),
            "max_length": args.length + 1,
            "global_batch_size": args.batch,
            "micro_batch_size": args.micro_batch,
        },
        "objective": args.objective,
        "trainer": {"max_steps": 2 * (args.steps + WARM_UP), "precision": args.precision},
    }
    path.write_text(yaml.safe_dump(content))
    return config.load(path)


def _write_model(args: argparse.Namespace, folder: Path) -> None:
    """A random model of Qwen2.5-0.5B's shape; fewer layers leave the head's share of the step larger."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=round(args.hidden * 4864 / 896),
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(shape).save_pretrained(folder, safe_serialization=True)


def _train(recipe: config.Recipe) -> dict[str, list[float]]:
    prepared, _ = prepare.prepare(recipe)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}

    from nemo_probsft.adapters.megatron import micro_batches
    from nemo_probsft.adapters.megatron.step import TrainingStep
    from nemo_probsft.adapters.nemo import trainer as nemo
    from nemo_probsft.adapters.nemo.callbacks import InstallObjective, MoveObjective

    nemo.quiet()
    turns, data = _turns(), nemo.SFTData(micro_batches.training(recipe, prepared))
    step = TrainingStep(
        recipe.resolved,
        num_steps=prepared.num_steps,
        num_labels=prepared.vocab_size,
        examples=data.examples,
    )
    trainer = nemo.make_trainer(recipe, max_steps=prepared.num_steps)
    # As in `fit`, less the metrics, which would find half of the steps without an objective, and the checkpoints.
    reduction = nemo.ObjectiveReduction(step)
    trainer.callbacks += [InstallObjective(reduction, step.head, recipe.head, prepared.vocab_size), turns]
    trainer.callbacks.append(MoveObjective(step))
    nemo.llm.train(
        nemo.load_model(recipe, prepared),
        data,
        trainer,
        log=nemo.nl.NeMoLogger(explicit_log_dir=str(Path(recipe.run_dir) / "nemo"), update_logger_directory=False),
        resume=nemo.weights_of(prepared.base),
        optim=nemo.optimizer(recipe, prepared.num_steps),
    )
    return turns.seconds


def _turns():
    """A callback that times the steps and gives every second one NeMo's own loss and head."""
    import lightning.pytorch as pl
    from nemo.lightning.megatron_parallel import MaskedTokenLossReduction

    from nemo_probsft.adapters.megatron.hook import unwrap

    class Turns(pl.Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            """Comes after `InstallObjective`."""
            (self.chunk,) = trainer.strategy.megatron_parallel
            self.model = unwrap(self.chunk)
            self.reduction = self.chunk._training_loss_reduction
            hooked = (self.model, "compute_language_model_loss"), (self.model.output_layer, "forward")
            self.hooks = [(vars(owner), name, vars(owner)[name]) for owner, name in hooked]
            self.seconds: dict[str, list[float]] = {"ours": [], STOCK: []}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            self.name = list(self.seconds)[trainer.global_step % 2]
            ours = self.name == "ours"
            for attributes, name, hook in self.hooks:
                attributes.pop(name, None)
                if ours:
                    attributes[name] = hook
            self.model.config.cross_entropy_loss_fusion = not ours
            self.chunk._training_loss_reduction = self.reduction if ours else MaskedTokenLossReduction()
            self.started = _now()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.seconds[self.name].append(_now() - self.started)

    return Turns()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
