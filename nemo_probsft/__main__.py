"""The command line: a table of commands, of which one alone is imported.

Nothing heavy is imported here: `--help` answers at once, and Megatron's checkpoint writer, which starts a process that
imports `__main__` again, starts fast.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from nemo_probsft import __version__
from nemo_probsft.command_line import PROGRAM, Parser, answer, run_command
from nemo_probsft.run.parents import end_with_command

DESCRIPTION = "Fine-tune language models with probability-based objectives f(p) on NeMo and Megatron."
# Each module has `add_arguments(parser)` and `run(options)`, which returns an exit code or None for 0.
COMMANDS = {
    "train": ("nemo_probsft.train", "train a recipe, or resume it where it stopped"),
    "diagnose": ("nemo_probsft.diagnose", "measure how well the base model predicts your training targets"),
    "sweep": ("nemo_probsft.sweep", "train, evaluate and compare several objectives and seeds"),
    "one-click": ("nemo_probsft.one_click", "diagnose, then sweep the objectives that the diagnosis suggests"),
    "launch": ("nemo_probsft.launch.command", "submit `train` to Slurm or Kubeflow, or run it here, through NeMo-Run"),
    "convert": ("conversion.cli", "import, export or verify a checkpoint"),
    "eval": ("evaluation.command", "evaluate models with vLLM and lm-evaluation-harness"),
    "report": ("evaluation.report.command", "write one page about training runs and their evaluations"),
    "data": ("nemo_probsft.data_command", "check the data of a recipe, or prepare the sets of the paper's domains"),
    "demo": ("nemo_probsft.demo", "run the paper's continuum on this machine: two tasks, two objectives"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0, 1 when `convert verify` finds a difference, `data check` a row to refuse, or a cell of a sweep failed, 2
    for an error, 130 when interrupted. Inside a rank errors are raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    end_with_command()
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int | None:
    if not arguments or arguments[0].startswith("-"):
        parser = _parser()
        parser.parse_args(arguments)
        parser.error(f"name a command: {', '.join(COMMANDS)}")
    name = arguments[0]
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name}; {_remedy(name)}")
    module = importlib.import_module(COMMANDS[name][0])
    return run_command(name, module.add_arguments, module.run, arguments[1:])


def _remedy(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}"


def _parser() -> Parser:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description=DESCRIPTION,
        epilog="\n".join(["commands:", *lines, "", f"`{PROGRAM} COMMAND --help` explains a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
