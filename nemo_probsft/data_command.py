"""`nemo-probsft data prepare` and `data check`: their flags. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nemo_probsft import data_check
from nemo_probsft.data.domains import command as domains

Command = Callable[[argparse.Namespace], int | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prepare the training sets of the paper's domains, or check the data of a recipe."
    commands = parser.add_subparsers(title="commands", required=True, metavar="prepare|check")
    prepare = commands.add_parser("prepare", help=domains.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    domains.add_arguments(prepare)
    prepare.set_defaults(command=domains.run)
    check = commands.add_parser(
        "check",
        help="say what training would be given: lengths, refusals, duplicates, overlap with evaluation sets",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data_check.add_arguments(check)
    check.set_defaults(command=data_check.run)


def run(options: argparse.Namespace) -> int | None:
    command: Command = options.command
    return command(options)
