"""python -m evaluation MODEL_DIR... --tasks demo_strong,demo_weak --data-dir DIR --output DIR [--limit N]"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Evaluate exported models on vLLM.")
    parser.add_argument("model_dirs", nargs="+", type=Path, metavar="MODEL_DIR", help="Hugging Face directory")
    parser.add_argument(
        "--tasks", required=True, help="comma-separated names or tags, e.g. demo or demo_strong,demo_weak"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="directory with the test sets, see evaluation/README.md (default: the hub)",
    )
    parser.add_argument("--output", required=True, type=Path, help="directory for results.json and samples.jsonl")
    parser.add_argument("--limit", type=_positive, help="first N items of each task only")
    parser.add_argument("--samples", type=_positive, help="answers per item when sampling (default: the task's own)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and of the bootstrap (default: 0)")
    parser.add_argument("--run-code", action="store_true", help="run model-written programs (coding tasks), confined")
    parser.add_argument(
        "--judge", metavar="ANNOTATORS", help="alpaca_eval's judge, e.g. weighted_alpaca_eval_gpt4_turbo"
    )
    options = parser.parse_args(arguments)

    from evaluation.alpaca import check_judge, judge
    from evaluation.runner import evaluate, not_evaluated

    try:
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
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    if failures:
        print(f"error: {not_evaluated(failures)}", file=sys.stderr)
        return 2
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
