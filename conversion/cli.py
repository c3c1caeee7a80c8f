"""`nemo-probsft convert import | export | verify`: exit code 0 when done (verify: equal), 1 different, 2 error."""

import argparse
import signal
import sys
import warnings
from pathlib import Path

_DTYPES = ("float32", "bfloat16", "float16")
_EPILOG = """\
examples:
  nemo-probsft convert import Qwen2.5-Math-1.5B base   # Hugging Face -> NeMo 2, on a laptop or in the container
  nemo-probsft convert export runs/a/checkpoints/step=100 out --base base
  nemo-probsft convert verify Qwen2.5-Math-1.5B base   # every tensor bit by bit, config.json, tokenizer
"""


def main(argv: list[str] | None = None) -> int:
    """Run one conversion. Returns the exit code; bad usage and --help leave through SystemExit, as argparse does."""
    arguments = parser().parse_args(argv)
    # A terminated conversion removes what it has written, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return arguments.execute(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="nemo-probsft convert",
        description="Convert models between Hugging Face and NeMo 2, bit-exact, without a GPU. "
        "Families: Qwen2, Qwen2.5, Qwen3 (dense), Llama, DeepSeekMath.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="import|export|verify")
    command = _command(commands, "import", "Hugging Face directory -> NeMo 2 checkpoint", _import)
    command.add_argument("source", type=Path, help="Hugging Face model directory (safetensors)")
    command.add_argument("target", type=Path, help="new directory; gets weights/, context/ and hf/")
    command.add_argument("--dtype", choices=_DTYPES, help="convert the weights (default: keep each tensor's dtype)")
    command = _command(commands, "export", "NeMo 2 checkpoint -> Hugging Face directory", _export)
    command.add_argument("source", type=Path, help="checkpoint: imported, or <run_dir>/checkpoints/<name>")
    command.add_argument("target", type=Path, help="new directory, ready for transformers and vLLM")
    command.add_argument(
        "--base", type=Path, help="Hugging Face directory or imported checkpoint with config.json and tokenizer"
    )
    command.add_argument("--dtype", choices=_DTYPES, help="convert the weights (default: keep the checkpoint's dtype)")
    command.add_argument("--adapter", action="store_true", help="write LoRA adapters alone, for peft")
    command.add_argument(
        "--run", type=Path, metavar="RUN_YAML", help="for the model card (default: run.yaml of the checkpoint's run)"
    )
    command = _command(commands, "verify", "compare two models bit by bit; exit code 1 when they differ", _verify)
    command.add_argument("a", type=Path, help="Hugging Face directory or NeMo 2 checkpoint")
    command.add_argument("b", type=Path, help="the other one")
    command.add_argument("--base", type=Path, help="gives config.json to checkpoints that have none")
    command.add_argument(
        "--logits", action="store_true", help="also compare fp32 logits (needs memory for both models)"
    )
    return top


def _command(commands: argparse._SubParsersAction, name: str, text: str, execute: object) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(execute=execute)
    return command


def _import(arguments: argparse.Namespace) -> int:
    from conversion.convert import import_hf

    _one_thread()
    import_hf(
        arguments.source,
        arguments.target,
        dtype=arguments.dtype,
        progress=True,
    )
    print(f"wrote {arguments.target}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from conversion.convert import export_hf
    from conversion.model_card import read_yaml

    _one_thread()
    export_hf(
        arguments.source,
        arguments.target,
        base=arguments.base,
        dtype=arguments.dtype,
        adapter=arguments.adapter,
        provenance=None if arguments.run is None else read_yaml(arguments.run),
        progress=True,
    )
    print(f"wrote {arguments.target}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from conversion.compare import verify

    if not arguments.logits:
        _one_thread()
    report = verify(arguments.a, arguments.b, base=arguments.base, logits=arguments.logits, progress=True)
    print(report.table())
    return 0 if report.equal else 1


def _one_thread() -> None:
    """What there is to compute waits for memory; torch's threads would only spin."""
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
