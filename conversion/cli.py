"""`nemo-probsft convert import | export | verify`: its flags. Exit code 0, or 1 when `verify` finds a difference."""

import argparse
import sys
import warnings
from pathlib import Path

from nemo_probsft.command_line import interruptible

_DTYPES = ("float32", "bfloat16", "float16")
_EPILOG = """\
examples:
  nemo-probsft convert import Qwen2.5-Math-1.5B base   # Hugging Face -> NeMo 2, on a laptop or in the container
  nemo-probsft convert import base base-bridge --engine bridge   # NeMo 2 -> Megatron-Bridge
  nemo-probsft convert export runs/a/checkpoints/step=100 out --base base
  nemo-probsft convert verify Qwen2.5-Math-1.5B base   # every tensor bit by bit, config.json, tokenizer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert models between Hugging Face, NeMo 2 and Megatron-Bridge, bit-exact, without a GPU.\n"
        "Families: Qwen2, Qwen2.5, Qwen3 (dense), Llama, DeepSeekMath."
    )
    parser.epilog = _EPILOG
    commands = parser.add_subparsers(title="commands", required=True, metavar="import|export|verify")
    command = _command(commands, "import", "convert to a checkpoint of NeMo 2 or Megatron-Bridge", _import)
    command.add_argument("source", type=Path, help="Hugging Face directory with safetensors, or a checkpoint")
    command.add_argument("target", type=Path, help="create this directory, which the engine can train from")
    command.add_argument(
        "--engine",
        choices=("nemo", "bridge"),
        default="nemo",
        help="write for NeMo 2 or Megatron-Bridge (default: nemo)",
    )
    command.add_argument("--base", type=Path, metavar="DIR", help="as for export, where the source is a checkpoint")
    command.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: keep the dtype of each tensor)")
    command = _command(commands, "export", "convert a checkpoint to a Hugging Face directory", _export)
    command.add_argument("source", type=Path, help="imported checkpoint, or RUN_DIR/checkpoints/NAME of a run")
    command.add_argument("target", type=Path, help="create this directory, which transformers and vLLM can load")
    command.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="take config.json and tokenizer from this Hugging Face directory or imported checkpoint, and from a "
        "checkpoint the weights under LoRA adapters (default: the source's own)",
    )
    command.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: keep the checkpoint's dtype)")
    command.add_argument("--adapter", action="store_true", help="write only the LoRA adapter, for peft")
    command.add_argument(
        "--run",
        type=Path,
        metavar="RUN_YAML",
        dest="run_yaml",
        help="describe this run in the model card (default: run.yaml of the run that the checkpoint belongs to)",
    )
    command = _command(commands, "verify", "compare two models bit by bit; exit code 1 if they differ", _verify)
    command.add_argument("a", type=Path, help="Hugging Face directory, or a checkpoint of either engine")
    command.add_argument("b", type=Path, help="the model to compare it with")
    command.add_argument(
        "--base", type=Path, metavar="DIR", help="take config.json from here for a checkpoint that has none"
    )
    command.add_argument(
        "--logits", action="store_true", help="also compare fp32 logits (needs memory for both models)"
    )


def _command(commands: argparse._SubParsersAction, name: str, text: str, execute: object) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(execute=execute)
    return command


def run(options: argparse.Namespace) -> int:
    with warnings.catch_warnings(), interruptible("nothing was written"):
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return options.execute(options)


def _import(options: argparse.Namespace) -> int:
    from conversion.convert import import_hf

    _one_thread()
    import_hf(
        options.source,
        options.target,
        engine=options.engine,
        base=options.base,
        dtype=options.dtype,
        progress=True,
    )
    print(f"wrote {options.target}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from conversion.convert import export_hf
    from conversion.model_card import read_yaml

    _one_thread()
    export_hf(
        options.source,
        options.target,
        base=options.base,
        dtype=options.dtype,
        adapter=options.adapter,
        provenance=None if options.run_yaml is None else read_yaml(options.run_yaml),
        progress=True,
    )
    print(f"wrote {options.target}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from conversion.compare import verify

    if not options.logits:
        _one_thread()
    report = verify(options.a, options.b, base=options.base, logits=options.logits, progress=True)
    print(report.table())
    return 0 if report.equal else 1


def _one_thread() -> None:
    """What there is to compute waits for memory; torch's threads would only spin."""
    import torch

    torch.set_num_threads(1)
