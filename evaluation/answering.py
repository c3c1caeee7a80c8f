"""Answer and judge one task. What is finished is on the disk within a minute, and not done twice."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evaluation.alive import AliveProgress
from evaluation.completions import Completion, Place
from evaluation.jobs import Job
from evaluation.reasoning import opens_reasoning

if TYPE_CHECKING:
    from evaluation.engine import ReproducibleVLLM  # which imports vLLM

SAVE_SECONDS = 20.0  # between two writes of what is finished
JUDGE_SECONDS = 10.0  # of judging between two writes; the engine waits meanwhile
NOTE_SECONDS = 5.0  # between two notes on the speed


def run_job(job: Job, lm: "ReproducibleVLLM") -> None:
    """Answer what is not answered, judge what is not judged."""
    judged = {sample["item"] for sample in job.store.samples()}
    requests = [request for request in job.requests(lm) if request.doc_id not in judged]
    work = _Work(job, requests)
    num_answers = job.num_items * job.task.config.repeats
    num_done = len(judged) * job.task.config.repeats + len(work.answers)
    with AliveProgress(f"  {job.name} {job.decoding}", num_answers, "answers", done=num_done) as progress:
        try:
            notes = _Notes(lm)
            for finished in lm.answers(requests, rendered=job.settings["chat_template"], known=set(work.answers)):
                work.take(finished)
                progress.update(num_done + work.num_new, notes.now_and_then(any_done=work.num_new > 0))
                work.save_now_and_then()
        finally:
            work.save()
        for num_left in work.judge_all():
            progress.update(num_answers, f"{num_left} items to judge")


class _Work:
    """Answers between the engine and the disk."""

    def __init__(self, job: Job, requests: list[Any]) -> None:
        self.job = job
        self.requests = {request.doc_id: request for request in requests}
        kept = (_read(line) for line in job.store.answers())
        self.answers = {place: answer for place, answer in kept if place.item in self.requests}
        self.unsaved: dict[Place, Completion] = {}
        self.missing = Counter({item: request.repeats for item, request in self.requests.items()})
        self.missing.subtract(place.item for place in self.answers)
        self.complete = [item for item, count in self.missing.items() if count == 0]
        self.num_new = 0
        self.saved = time.monotonic()

    def take(self, finished: dict[Place, Completion]) -> None:
        self.answers |= finished
        self.unsaved |= finished
        self.num_new += len(finished)
        for place in finished:
            self.missing[place.item] -= 1
            if self.missing[place.item] == 0:
                self.complete.append(place.item)

    def save_now_and_then(self) -> None:
        """Every SAVE_SECONDS: write finished answers, judge items whose answers are all there, for JUDGE_SECONDS."""
        if time.monotonic() - self.saved < SAVE_SECONDS:
            return
        self.save()
        start = time.monotonic()
        for _ in self.judge_all():
            if time.monotonic() - start > JUDGE_SECONDS:
                break
        self.saved = time.monotonic()

    def save(self) -> None:
        self.job.store.append_answers([place._asdict() | asdict(answer) for place, answer in self.unsaved.items()])
        self.unsaved = {}

    def judge_all(self) -> Iterator[int]:
        """Judge complete items one by one; after each, how many are left."""
        while self.complete:
            item = self.complete.pop(0)
            places = [Place(item, repeat) for repeat in range(self.requests[item].repeats)]
            self.job.store.append(
                [_judged(self.job, self.requests[item], [self.answers.pop(place) for place in places])]
            )
            yield len(self.complete)


def _read(line: dict[str, Any]) -> tuple[Place, Completion]:
    return Place(line["item"], line["repeat"]), Completion(line["text"], line["num_tokens"], line["finish"])


class _Notes:
    """What the progress display says of the speed, now and then."""

    def __init__(self, lm: "ReproducibleVLLM") -> None:
        self.lm = lm
        self.start = self.next = time.monotonic()

    def now_and_then(self, any_done: bool) -> str | None:
        """any_done: the display reckons the time left from finished answers; until there are any, there is a bound."""
        now = time.monotonic()
        if now < self.next:
            return None
        self.next = now + NOTE_SECONDS
        num_tokens, most_left = self.lm.speed()
        rate = num_tokens / max(now - self.start, 1e-9)
        note = f"{num_tokens} tokens, {rate:.0f} a second"
        return note if any_done or not rate else f"{note}, at most {most_left / rate:.0f} s left"


def _judged(job: Job, request: Any, completions: list[Completion]) -> dict[str, Any]:
    """A line of samples.jsonl, by the harness's filters and the task's own judgement.

    Our tasks give "score", one per answer; others their first metric, one per item, by their first filter.
    """
    prompt, task = request.args[0], job.task
    begun = "<think>" if opens_reasoning(prompt) else ""  # the template's; graders must know where reasoning begins
    request.resps = [begun + completion.text for completion in completions]
    task._instances = [request]
    task.apply_filters()
    filtered = next(iter(request.filtered_resps.values()))
    metrics = task.process_results(request.doc, [filtered])
    main = "score" if "score" in metrics else next(iter(metrics))
    return {
        "item": request.doc_id,
        "prompt": prompt,
        "target": task.doc_to_target(request.doc),
        "answers": [completion.text for completion in completions],
        "scores": metrics[main] if isinstance(metrics[main], list) else [float(metrics[main])],
        "finish": [completion.finish for completion in completions],
        "num_tokens": [completion.num_tokens for completion in completions],
        "extra": {name: value for name, value in metrics.items() if name != main},
    }
