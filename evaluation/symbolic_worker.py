"""math-verify in a process that may be killed: `SymbolicWorker` is our end, this module run as a program the other.

One line of JSON each way. The process limits its own memory and interrupts itself after CPU_SECONDS of its own time, so
that a loaded machine does not change judgements; a single long operation in C cannot be interrupted, so our end kills
the process after WALL_SECONDS and starts another.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

CPU_SECONDS = 2.0
WALL_SECONDS = 6.0
START_SECONDS = 120.0
MEMORY_BYTES = 2 << 30


class SymbolicWorker:
    """Asks one process, started at the first question; a killed one is replaced at once. Thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._ready = False
        self._lock = threading.Lock()
        atexit.register(self.close)

    def equal(self, answer: str, gold: str) -> bool | None:
        """Whether math-verify finds the two LaTeX answers equal; None when that took too much time, depth or memory."""
        with self._lock:
            self._wait_until_ready()
            question = json.dumps([_delimited(answer), _delimited(gold)]) + "\n"
            self._process.stdin.write(question.encode())
            self._process.stdin.flush()
            reply = self._read_line(WALL_SECONDS)
            if not reply:
                self.close()
                self._start()
                return None
            return json.loads(reply)

    def close(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _wait_until_ready(self) -> None:
        # A fork of this process shares the pipes but not the child; it gets a worker of its own.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._start()
        if not self._ready and self._read_line(START_SECONDS) != "ready\n":
            self.close()
            raise RuntimeError("the math-verify process did not start; check: python -c 'import math_verify'")
        self._ready = True

    def _start(self) -> None:
        self._owner, self._ready = os.getpid(), False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evaluation.symbolic_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "0"},
        )

    def _read_line(self, seconds: float) -> str:
        """One line of its output, or "" after `seconds` or at its end. Replies fit into one pipe buffer."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline().decode() if ready else ""


def _delimited(answer: str) -> str:
    return "\\boxed{" + answer.replace("$", "") + "}"


class _TookTooLong(BaseException):
    """Not an Exception: math-verify swallows those."""


def _interrupt(signum, frame):
    raise _TookTooLong


def _serve() -> None:
    import resource

    import sympy
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
    from math_verify import LatexExtractionConfig, grader, parse, verify

    from evaluation import exact

    # Only the LaTeX grammar: the other extractor hands expressions to sympy's parse_expr, which runs them as Python.
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    equal_by_simplifying, multiply, solve_and_compare = (
        grader.sympy_symbolic_eq,
        _Latex2Sympy.convert_postfix_list,
        grader.sympy_solve_and_compare,
    )

    def equal_values(a, b, *_):
        if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
            return a.shape == b.shape and all(map(equal_values, a.flat(), b.flat()))
        try:
            return exact.equal(a, b)
        except exact.Undecided:
            return equal_by_simplifying(a, b)

    def equal_solutions(a, b, *precision):
        # Two equations without solutions would be equal: 0 = 1 and 2 = 3.
        if not all(relation.free_symbols and sympy.solve(relation, relation.free_symbols) for relation in (a, b)):
            return False
        return solve_and_compare(a, b, *precision)

    def product(converter, factors, position=0):
        # math-verify adds up numbers that stand side by side, as in mixed numbers: 2(3) = 5. `expanded` writes the sum.
        if position == len(factors) - 1:
            return multiply(converter, factors, position)
        first = converter.convert_postfix(factors[position])
        if not isinstance(first, (sympy.Expr, sympy.Matrix)):
            return multiply(converter, factors, position)
        rest = product(converter, factors, position + 1)
        if isinstance(first, sympy.MatrixBase) or isinstance(rest, sympy.MatrixBase):
            return converter.mat_mul_flat(first, rest)
        return converter.mul_flat(first, rest)

    # Below these names math-verify compares to 15 digits, after the point (see exact.py); above them, what has parts.
    grader.sympy_numeric_eq, grader.sympy_symbolic_eq = equal_values, lambda a, b: False
    grader.sympy_solve_and_compare = equal_solutions
    _Latex2Sympy.convert_postfix_list = product

    def equal(answer: str, gold: str) -> bool:
        options = {
            "extraction_config": config,
            "fallback_mode": "no_fallback",
            "parsing_timeout": None,
            "raise_on_error": True,
        }
        parsed = [parse(text, **options) for text in (gold, answer)]
        return bool(all(parsed) and verify(*parsed, timeout_seconds=None, allow_set_relation_comp=True))

    def judged(answer: str, gold: str) -> bool | None:
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            return equal(answer, gold)
        except (_TookTooLong, exact.TooLarge, MemoryError, RecursionError):
            return None
        except Exception:
            return False  # the grammar and sympy raise all sorts of things at what is not a mathematical expression
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _interrupt)
    equal("\\boxed{x^2}", "\\boxed{x \\cdot x}")  # loads the grammar now, outside of any limit on time
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(judged(*json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
