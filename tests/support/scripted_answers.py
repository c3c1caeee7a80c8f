"""Run in the evaluation's Python: real tasks of the harness, with answers that are written here instead of generated.

Arguments: data directory, model directory (its configuration only), output. Every task is answered once in one go, and
once with interruptions; prints how many answers each way asked for, and how many were on the disk after each.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from evaluation import answering, runner
from evaluation.completions import Completion, Place, Speed
from evaluation.jobs import Job, jobs_of

TASKS = ["demo_strong", "math_500", "nejm", "alpaca_eval", "figfont", "mmlu_prox_sw_zero_shot"]


class Script:
    """Answers in a fixed order, the last repeat first, interrupted after `stop_after` of them."""

    tokenizer_name = ""

    def __init__(self) -> None:
        self.asked, self.stop_after = 0, None

    def speed(self) -> Speed:
        return Speed(num_tokens=7, most_left=70)

    def answers(self, requests, *, rendered, known=()) -> Iterator[dict[Place, Completion]]:
        wanted = [Place(request.doc_id, repeat) for request in requests for repeat in reversed(range(request.repeats))]
        for number, place in enumerate(place for place in wanted if place not in known):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.asked += 1
            yield {place: Completion(f"The answer is \\boxed{{{place.repeat}}}, (C).", 5, "stop")}
            yield {}


def main(data_dir: str, model_dir: str, output: str) -> None:
    manager = runner._task_manager(TASKS, Path(data_dir))
    shared = {"model": "script", "model_hash": "", "limit": None, "seed": 7}
    found: dict[str, list[int]] = {"asked": [], "kept": []}
    for name, stops in (("whole", [None]), ("interrupted", [3, 5, 0, None])):
        script = Script()
        answering.SAVE_SECONDS = 0.0 if stops[0] else 1e9
        for task in TASKS:
            for job in jobs_of(manager, task, Path(output) / name, 16, shared, Path(model_dir)):
                job.store.open(job.settings)
                for script.stop_after in stops:
                    found["kept"] += [_answer(job, script)]
                runner._finish(job)
        found["asked"].append(script.asked)
    print(json.dumps(found))


def _answer(job: Job, script: Script) -> int:
    """How many answers there are now."""
    with contextlib.suppress(KeyboardInterrupt):
        answering.run_job(job, script)
    judged = {sample["item"]: len(sample["answers"]) for sample in job.store.samples()}
    return sum(judged.values()) + sum(answer["item"] not in judged for answer in job.store.answers())


if __name__ == "__main__":
    main(*sys.argv[1:])
