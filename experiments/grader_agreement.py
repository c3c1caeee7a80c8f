"""Our mathematics grader against the paper's (Qwen2.5-Math's) on the five test sets, answer by answer.

    python3.11 -m venv THEIRS && THEIRS/bin/pip install latex2sympy2==1.9.1 regex word2number
    # math_parser.py of evalscope 0.15.1 is that grader as a module: pip download --no-deps evalscope==0.15.1, unzip it
    .venv/train/bin/python -m experiments.grader_agreement --data-dir DIR --python THEIRS/bin/python \
        --module .../evalscope/metrics/math_parser.py --output evaluation/AGREEMENT.md

Responses: the sets' own solutions, and variations of the answers whose truth is known from how they were made.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from nemo_probsft.files import SOURCE_ROOT

SECONDS = 3  # per answer, as the paper's evaluation gives
OWN = "the set's own solution"
SHOWN = 2  # examples of each kind of disagreement


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.grader_agreement", description="Our mathematics grader against the paper's."
    )
    parser.add_argument("--data-dir", required=True, type=Path, help="the five test sets as JSON lines")
    parser.add_argument("--python", required=True, help="Python of an environment with the packages of their grader")
    parser.add_argument("--module", required=True, type=Path, help="their grader: evalscope's math_parser.py")
    parser.add_argument("--output", required=True, type=Path, help="write the page here")
    options = parser.parse_args()
    cases = list(make_cases(options.data_dir))
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    command = [options.python, "-m", "experiments.grader_agreement", "--theirs", str(options.module)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE_ROOT)}
    theirs = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, env=environment)
    ours, seconds, given_up = judge_all(cases)
    plain = per_second([case for case in cases if is_plain(case)])
    solutions = per_second([case for case in cases if case["kind"].startswith(OWN)])
    verdicts = [{"True": True, "False": False, "None": None}[verdict] for verdict in theirs.stdout.split()]
    assert len(verdicts) == len(cases)
    options.output.write_text(report(cases, ours, verdicts, seconds, given_up, plain, solutions), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


def make_cases(data_dir: Path):
    """{"set", "kind", "response", "gold", "truth"} for every item and variation."""
    from evaluation.tasks.mathematics import gold_answer

    fields = {
        "math_oai": ("problem", "answer"),
        "minerva_math": ("problem", "solution"),
        "olympiadbench": ("question", "final_answer"),
        "aime24": ("problem", "answer"),
        "amc23": ("problem", "answer"),
    }
    rng = random.Random(0)
    for name, (_, answer) in fields.items():
        rows = [
            json.loads(line) for line in (data_dir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() if line
        ]
        golds = [gold_answer(row[answer]) for row in rows]
        for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
            other = golds[(number + 1 + rng.randrange(len(golds) - 1)) % len(golds)]
            for kind, response, truth in variations(row, gold, other, rng):
                yield {"set": name, "kind": kind, "response": response, "gold": gold, "truth": truth}


def variations(row: dict, gold: str, other: str, rng: random.Random):
    bare = gold.strip("$ ")
    solution = row.get("solution", "")
    text = "\n".join(solution) if isinstance(solution, list) else str(solution)
    if "\\boxed" in text:
        yield OWN, text, True
    else:
        yield f"{OWN} and the boxed answer", f"{text}\nSo it is $\\boxed{{{bare}}}$.", True
    yield "with spaces and \\dfrac", f"$\\boxed{{ {bare.replace(chr(92) + 'frac', chr(92) + 'dfrac')} }}$", True
    yield "in words: the answer is", f"Therefore, the answer is ${bare}$.", True
    yield "as an equation x = ...", f"\\boxed{{x = {bare}}}", True
    if "," not in bare and "\\text" not in bare:
        yield "with a unit in \\text", f"\\boxed{{{bare} \\text{{ cm}}}}", True
    if re.fullmatch(r"-?\d{4,}", bare):
        yield "with thousands separators", f"\\boxed{{{int(bare):,}}}", True
    fraction = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", bare)
    if fraction:
        value = Fraction(int(fraction[2]), int(fraction[3])) * (-1 if fraction[1] else 1)
        yield "a fraction as a decimal", f"\\boxed{{{float(value):.8f}}}", True
        yield (
            "a fraction upside down",
            f"\\boxed{{{fraction[1]}\\frac{{{fraction[3]}}}{{{fraction[2]}}}}}",
            abs(value) == 1,
        )
    if re.fullmatch(r"-?\d+(\.\d+)?", bare):
        value = Decimal(bare)
        yield "off by one", f"\\boxed{{{value + 1}}}", False
        if value:
            yield "100 times too large", f"\\boxed{{{value * 100}}}", False
            yield "with the other sign", f"\\boxed{{{-value}}}", False
    if other.strip("$ ") != bare:
        yield "another item's answer", f"\\boxed{{{other.strip('$ ')}}}", False


def judge_all(cases: list[dict]) -> tuple[list[bool], float, int]:
    from evaluation.graders import judge

    start = time.monotonic()
    judgements = [judge(case["response"], case["gold"]) for case in cases]
    return [j.correct for j in judgements], time.monotonic() - start, sum(j.timed_out for j in judgements)


def is_plain(case: dict) -> bool:
    from evaluation.answer_text import extract_answer
    from evaluation.numerals import read_number

    return None not in (read_number(case["gold"]), read_number(extract_answer(case["response"])))


def per_second(cases: list[dict]) -> float:
    """Responses per second, in one process that has seen none of them, with the symbolic worker already started."""
    from evaluation.answer_text import clean, normalize
    from evaluation.graders import judge, judge_answer
    from evaluation.numerals import read_number

    for cache in (clean, normalize, read_number, judge_answer):
        cache.cache_clear()
    start = time.monotonic()
    for case in cases:
        judge(case["response"], case["gold"])
    return len(cases) / (time.monotonic() - start)


def report(cases, ours, theirs, seconds, given_up, plain, solutions) -> str:
    same = [a == bool(b) for a, b in zip(ours, theirs, strict=True)]
    right = [bool(b) == case["truth"] for b, case in zip(theirs, cases, strict=True)]
    ours_right = [a == case["truth"] for a, case in zip(ours, cases, strict=True)]
    where_right = [s for s, r in zip(same, right, strict=True) if r]
    table = defaultdict(Counter)
    for case, s, r, o in zip(cases, same, right, ours_right, strict=True):
        table[case["kind"]].update(n=1, same=s, theirs=r, ours=o)
    lines = [
        "# Agreement with the paper's grader",
        "",
        f"`experiments/grader_agreement.py`: {len(cases)} responses to the five test sets (their own solutions, and",
        "variations of the answers whose truth is known from how they were made; seed 0), judged by",
        "`evaluation.graders` and by the grader of Qwen2.5-Math, which the paper uses (`math_parser` of",
        f"evalscope 0.15.1 with latex2sympy2 1.9.1, {SECONDS} s an answer). No responses of trained models were at",
        "hand.",
        "",
        f"- Agreement where the paper's grader is right: **{share(where_right)}**; on all responses {share(same)}.",
        f"- Right: ours {share(ours_right)}, the paper's {share(right)}.",
        f"- Given up for time: ours {given_up}, the paper's {sum(verdict is None for verdict in theirs)}.",
        f"- Ours took {seconds:.0f} s in all ({len(cases) / seconds:.0f} responses/s). Numbers for answer and gold: "
        f"{plain:.0f} responses/s; the sets' own solutions: {solutions:.0f} responses/s; one core, a busy machine.",
        "",
        "| responses | n | same verdict | ours right | the paper's right |",
        "|---|---|---|---|---|",
        *(
            f"| {kind} | {c['n']} | {c['same'] / c['n']:.1%} | {c['ours'] / c['n']:.1%} | {c['theirs'] / c['n']:.1%} |"
            for kind, c in table.items()
        ),
        "",
        "## Disagreements where the paper's grader is right",
        "",
        *examples(cases, [not s and r for s, r in zip(same, right, strict=True)]),
        "",
        "## Disagreements where ours is right",
        "",
        *examples(cases, [not s and o for s, o in zip(same, ours_right, strict=True)]),
    ]
    return "\n".join(lines) + "\n"


def examples(cases: list[dict], chosen: list[bool]) -> list[str]:
    groups = defaultdict(list)
    for case, take in zip(cases, chosen, strict=True):
        if take:
            groups[(case["kind"], case["truth"])].append(case)
    rows = ["| kind | truth | n | examples (answer / gold) |", "|---|---|---|---|"]
    for (kind, truth), group in sorted(groups.items(), key=lambda entry: -len(entry[1])):
        shown = "; ".join(f"`{final(case['response'])}` / `{case['gold'][:60]}`" for case in group[:SHOWN])
        rows.append(f"| {kind} | {'equal' if truth else 'different'} | {len(group)} | {shown.replace('|', '&#124;')} |")
    return rows


def final(response: str) -> str:
    from evaluation.answer_text import extract_answer

    return extract_answer(response)[:60].replace("\n", " ")


def share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.2%} ({sum(flags)} of {len(flags)})"


def theirs(module: str) -> None:
    """In the other environment: read cases from standard input, print one verdict a line."""
    spec = importlib.util.spec_from_file_location("theirs", module)
    grader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grader)

    def interrupt(signum, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, interrupt)
    for line in sys.stdin:
        case = json.loads(line)
        signal.alarm(SECONDS)
        try:
            gold = grader.strip_answer_string(case["gold"])
            verdict = bool(grader.math_equal(grader.extract_answer(case["response"]), gold))
        except TimeoutError:
            verdict = None
        finally:
            signal.alarm(0)
        print(verdict, flush=True)


if __name__ == "__main__":
    theirs(sys.argv[2]) if sys.argv[1:2] == ["--theirs"] else main()
