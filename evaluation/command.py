"""`nemo-probsft eval`: its flags, and where it runs. Imports nothing heavy."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from nemo_probsft.command_line import count
from nemo_probsft.run import eval_env

KEPT = "finished answers are kept; the same command goes on from them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Evaluate exported models with vLLM and lm-evaluation-harness, greedily and by sampling.\n"
        "Answers are kept as they come: the same command resumes an interrupted evaluation."
    )
    parser.add_argument("model_dirs", nargs="+", type=Path, metavar="MODEL_DIR", help="Hugging Face model directory")
    parser.add_argument(
        "--tasks", required=True, metavar="A,B", help="tasks or tags to evaluate, for example math_500,aime24 or demo"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="write results and samples here")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="read the test sets from here, see evaluation/README.md (default: download them from the hub)",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="use only the first N items of each task")
    parser.add_argument(
        "--samples", type=count, metavar="N", help="draw N answers per item when sampling (default: the task's number)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed sampling and bootstrap (default: 0)")
    parser.add_argument(
        "--run-code", action="store_true", help="run the programs that the model writes (coding tasks), in a sandbox"
    )
    parser.add_argument(
        "--judge",
        metavar="ANNOTATORS",
        help="let an alpaca_eval judge compare the answers of alpaca_eval, for example weighted_alpaca_eval_gpt4_turbo",
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate in the Python that has vLLM; returns its exit code."""
    return eval_env.evaluate(options.arguments)


def run_here(options: argparse.Namespace) -> int:
    """Evaluate in this process, which must have vLLM; print the results' paths. Raises ValueError for the user."""
    _interrupt_once()
    from evaluation.alpaca import check_judge, judge
    from evaluation.runner import evaluate, not_evaluated

    if options.judge:
        check_judge()
    written, failures = evaluate(
        options.model_dirs,
        [name for name in options.tasks.split(",") if name],
        options.data_dir,
        options.output,
        limit=options.limit,
        samples=options.samples,
        seed=options.seed,
        run_code=options.run_code,
    )
    if options.judge:
        judge(written, options.judge)
    for path in written:
        print(path)
    if failures:
        raise ValueError(not_evaluated(failures))
    return 0


def _interrupt_once() -> None:
    """Let SIGTERM end the evaluation as Ctrl-C does. One of them is enough: a second must not end what it writes."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(KEPT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
