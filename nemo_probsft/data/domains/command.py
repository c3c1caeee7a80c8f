"""`nemo-probsft data prepare`: its flags. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_probsft.command_line import interruptible
from nemo_probsft.data.domains import DOMAINS, SEED

HELP = "write the training set of a domain as JSON lines, with a manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{HELP[0].upper()}{HELP[1:]}. The same arguments write the same bytes.\nDomains: {', '.join(DOMAINS)}."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="domain of the paper, see above")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="create this directory")
    parser.add_argument(
        "--source",
        metavar="FILE|DIR|NAME",
        help="read a local copy or another hub data set, see docs/data.md (default: the domain's hub data set)",
    )
    parser.add_argument(
        "--revision", metavar="REV", help="take this revision of the hub data set (default: its latest)"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, metavar="N", help="seed what is drawn at random (default: 42, the paper's)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="take at most N records of each part, to try it out (default: all)"
    )
    parser.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="DIR|NAME",
        dest="tokenizers",
        help="measure the length of a row with this tokenizer; repeatable (instruction only; default: the paper's two)",
    )


def run(options: argparse.Namespace) -> None:
    from nemo_probsft.data.domains.write import write_domain

    with interruptible(f"{options.output} was not written"):
        manifest = write_domain(
            options.domain,
            options.output,
            source=options.source,
            revision=options.revision,
            seed=options.seed,
            limit=options.limit,
            tokenizers=options.tokenizers,
        )
    print(manifest)
