"""`nemo-probsft report`: its flags, and the inputs that they name. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

TABLE_WIDTH = 140  # columns at most; a narrower table would hide numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one HTML page about training runs, their diagnoses and their evaluations, with a Markdown copy,\n"
        "and print the table of results."
    )
    parser.add_argument(
        "run_dirs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="run directory of `train`; its diagnosis is used if there is one",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        required=True,
        type=Path,
        metavar="DIR",
        help="output directories of `eval`, searched for results.json",
    )
    parser.add_argument(
        "--diagnoses", nargs="+", default=[], type=Path, metavar="FILE", help="further diagnose.json of `diagnose`"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report/report.html"),
        metavar="FILE",
        help="write the page here and its pictures beside it (default: report/report.html)",
    )


def run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from evaluation.report.write import report_table, write_report

    missing = [path for path in (*options.run_dirs, *options.results, *options.diagnoses) if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} does not exist; name what `train`, `eval` or `diagnose` wrote")
    results = [path for directory in options.results for path in sorted(directory.rglob("results.json"))]
    own = [path for run_dir in options.run_dirs if (path := run_dir / "diagnose" / "diagnose.json").exists()]
    diagnoses = list(dict.fromkeys([*own, *options.diagnoses]))
    page = write_report(options.run_dirs, results, diagnoses, options.output)
    Console(width=TABLE_WIDTH).print(report_table(options.run_dirs, results))
    print(f"report: {page}")
