"""The command line. Nothing heavy is imported before a command needs it: `--help` answers at once, and Megatron's
checkpoint writer, which starts a process that imports `__main__` again, starts fast."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

DESCRIPTION = "Supervised fine-tuning with probability-based objectives f(p) on NeMo and Megatron."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0, 1 when `convert verify` finds a difference or a cell of a sweep failed, 2 for an error that the user can
    mend.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["convert"]:
            return _convert(arguments[1:])
        if arguments[:1] == ["eval"]:
            return _evaluate(arguments[1:])
        if arguments[:1] == ["launch"]:
            return _launch(arguments[1:])
        options = _parse(arguments)
        return options.run(options) or 0
    except KeyboardInterrupt:
        if _is_rank():
            raise
        print("nemo-probsft: interrupted", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError) as error:  # OSError: a full disk, a file without permission
        if _is_rank():
            raise  # torchrun records the traceback of the rank that failed
        print(f"nemo-probsft: {error}", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """argparse takes positional arguments in one piece: overrides behind an option are added here."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in text and text[0] != "-" for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-probsft", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe, or go on with it where it was interrupted")
    _add_recipe(train)
    train.add_argument("--plan", action="store_true", help="print what would be done and the memory of a rank, and end")
    train.set_defaults(run=_train)

    diagnose = commands.add_parser("diagnose", help="measure the base model's probability of every training target")
    _add_recipe(diagnose)
    diagnose.set_defaults(run=_diagnose)

    sweep = commands.add_parser("sweep", help="train, evaluate and compare several objectives, with several seeds")
    _add_recipe(sweep)
    sweep.add_argument("--objectives", required=True, metavar="A,B", help="for example original,p,GeneralFamily-10")
    _add_sweep(sweep)
    sweep.add_argument("--plan", action="store_true", help="print cells, steps, time and disk, and end")
    sweep.set_defaults(run=_sweep)

    one_click = commands.add_parser("one-click", help="diagnose, sweep what the diagnosis suggests, compare")
    _add_recipe(one_click)
    _add_sweep(one_click)
    one_click.set_defaults(run=_one_click)

    launch = commands.add_parser(
        "launch", help="submit `train` to Slurm, Kubeflow, SkyPilot or this machine, through NeMo-Run", add_help=False
    )
    launch.set_defaults(run=None)

    convert = commands.add_parser(
        "convert", help="convert or verify checkpoints: import, export, verify", add_help=False
    )
    convert.set_defaults(run=None)

    evaluate = commands.add_parser(
        "eval",
        help="evaluate Hugging Face directories with vLLM and lm-evaluation-harness",
        add_help=False,
    )
    evaluate.set_defaults(run=None)

    report = commands.add_parser("report", help="one page from training runs, diagnoses and evaluations")
    report.add_argument("run_dirs", nargs="*", metavar="RUN_DIR", help="run directories of `train`")
    report.add_argument("--results", nargs="+", required=True, metavar="DIR", help="output directories of `eval`")
    report.add_argument(
        "--diagnoses", nargs="+", default=[], metavar="FILE", help="further diagnose.json of `diagnose`"
    )
    report.add_argument(
        "--output", default="report/report.html", metavar="FILE", help="the page; its pictures go beside it"
    )
    report.set_defaults(run=_report)

    data = commands.add_parser("data", help="make the training sets of the paper's domains")
    _add_data_prepare(data.add_subparsers(title="commands", required=True, metavar="COMMAND"))

    demo = commands.add_parser("demo", help="the paper's continuum on this machine: two tasks, two objectives, vLLM")
    demo.set_defaults(run=_demo)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example objective=p optim.lr=1e-5")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", default="0", metavar="0,1,2", help="of training, one run each (default 0)")
    parser.add_argument("--tasks", required=True, metavar="T,T", help="what decides, as for `eval`")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the test sets (default: the hub)")
    parser.add_argument("--samples", metavar="N", help="answers per item (default: the task's own)")
    parser.add_argument("--limit", metavar="N", help="first N items of each task only")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, without a GPU (default 1)")
    parser.add_argument("--drop-checkpoints", action="store_true", help="remove those of a run once it is exported")


def _add_data_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser("prepare", help="a domain's training set as JSON lines, with a manifest")
    prepare.add_argument(
        "domain",
        metavar="DOMAIN",
        help="math, medical, figfont, instruction, coding, low_resource, openbookqa, openbookqa_noisy",
    )
    prepare.add_argument("--output", required=True, metavar="DIR", help="new directory")
    prepare.add_argument("--source", metavar="FILE|DIR|NAME", help="local copy or hub data set, see docs/data.md")
    prepare.add_argument("--revision", metavar="REV", help="of the hub data set")
    prepare.add_argument("--seed", type=int, default=42, help="of what is drawn at random (default 42, the paper's)")
    prepare.add_argument("--limit", type=int, metavar="N", help="records of each part, to try it out")
    prepare.add_argument(
        "--tokenizer", action="append", default=[], metavar="DIR|NAME", help="that measures rows (instruction only)"
    )
    prepare.set_defaults(run=_prepare_data)


def _train(options: argparse.Namespace) -> None:
    if options.plan:
        from nemo_probsft.plan.show import preview

        preview(options.recipe, options.overrides)
        return
    from nemo_probsft.train import train

    train(options.recipe, options.overrides)


def _diagnose(options: argparse.Namespace) -> None:
    from nemo_probsft.diagnose import diagnose

    diagnose(options.recipe, options.overrides)


def _sweep(options: argparse.Namespace) -> int:
    from nemo_probsft.sweep import plan_sweep, show_plan, sweep

    planned = plan_sweep(options.recipe, options.overrides, options.objectives, options.seeds, *_of_sweep(options))
    show_plan(planned)
    return 0 if options.plan or sweep(planned) else 1


def _one_click(options: argparse.Namespace) -> int:
    from nemo_probsft.one_click import one_click

    return 0 if one_click(options.recipe, options.overrides, options.seeds, *_of_sweep(options)) else 1


def _of_sweep(options: argparse.Namespace) -> tuple[list[str], int, bool]:
    """The arguments of `eval`, --jobs and --drop-checkpoints."""
    given = {"--tasks": options.tasks, "--data-dir": options.data_dir}
    given |= {"--samples": options.samples, "--limit": options.limit}
    evaluation = [part for flag, value in given.items() if value is not None for part in (flag, value)]
    return evaluation, options.jobs, options.drop_checkpoints


def _report(options: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from evaluation.report.write import report_table, write_report

    runs = [Path(run) for run in options.run_dirs]
    results = [path for directory in options.results for path in sorted(Path(directory).rglob("results.json"))]
    diagnoses = [path for run in runs for path in [run / "diagnose" / "diagnose.json"] if path.exists()]
    page = write_report(runs, results, [*diagnoses, *map(Path, options.diagnoses)], Path(options.output))
    Console(width=140).print(report_table(runs, results))
    print(f"report: {page}")


def _prepare_data(options: argparse.Namespace) -> int:
    import signal
    from pathlib import Path

    from nemo_probsft.data.domains.write import write_domain

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half written goes, as with Ctrl-C
    try:
        manifest = write_domain(
            options.domain,
            Path(options.output),
            source=options.source,
            revision=options.revision,
            seed=options.seed,
            limit=options.limit,
            tokenizers=options.tokenizer,
        )
    except KeyboardInterrupt:
        print(f"nemo-probsft: interrupted; {options.output} was not written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(manifest)
    return 0


def _demo(options: argparse.Namespace) -> None:
    from nemo_probsft.demo import demo

    demo()


def _convert(arguments: list[str]) -> int:
    from conversion import main as convert

    return convert(arguments)


def _evaluate(arguments: list[str]) -> int:
    from nemo_probsft.run.eval_env import evaluate

    return evaluate(arguments)


def _launch(arguments: list[str]) -> int:
    from nemo_probsft.launch.submit import launch

    launch(arguments)
    return 0


def _is_rank() -> bool:
    import os

    return "RANK" in os.environ


def _version() -> str:
    from nemo_probsft import __version__

    return f"nemo-probsft {__version__}"


if __name__ == "__main__":
    sys.exit(main())
