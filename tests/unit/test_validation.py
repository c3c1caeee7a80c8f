"""What is refused of validation, when it is due, and the best checkpoint after a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from conversion.checkpoint import is_checkpoint, step_of
from nemo_probsft import config
from nemo_probsft.run import best, validation
from nemo_probsft.run.log import Follower, RunLog, read_metrics, read_validations

TRAINED = [{"step": step, "objective": 1.0, "nll": 2.0 - step / 10, "p": 0.1} for step in range(1, 5)]
NLL = {0: 3.0, 2: 1.0, 4: 1.5, 6: 0.5, 8: 0.5, 9: float("nan")}


def load(tmp_path, *overrides):
    source = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": "a/b"},
        "data": {"train": "t.jsonl", "validation": str(tmp_path / "held-out.jsonl")},
        "objective": "p",
    }
    return config.load(source, overrides)


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    return tmp_path


def test_rows_without_more_are_validated_like_checkpoints(rows):
    recipe = load(rows)
    assert recipe.validate == config.ValidateConfig(every_steps=100, max_examples=None)
    assert config.load(config.dump(recipe)) == recipe
    assert load(rows, "data.validation=null").validate is None


def test_an_objective_that_the_base_model_fixes_may_choose_the_best_checkpoint(rows, monkeypatch):
    monkeypatch.chdir(rows)
    (said,) = validation.check(load(rows, "checkpoint.keep_best=objective", "objective=prior"))
    assert said.key == "data.validation"


def test_it_is_due_before_the_first_step_every_few_and_after_the_last(rows):
    recipe = load(rows, "validate={every_steps: 3}")
    assert [step for step in range(8) if validation.is_due(recipe, step, 7)] == [0, 3, 6, 7]
    assert validation.count(recipe, 7) == 4
    assert not validation.is_due(load(rows, "data.validation=null"), 0, 7)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.validation=null", "validate={every_steps: 2}"], "name a file in data.validation"),
        (["data.validation=null", "checkpoint.keep_best=p"], "name a file with some in data.validation"),
        (["checkpoint.keep_best=loss"], "checkpoint.keep_best"),
        (["data.validation=none.jsonl"], "none.jsonl is no .jsonl or .parquet file; name one"),
        (["data.validation=empty.jsonl"], "empty.jsonl is empty or cannot be read"),
        (["checkpoint.keep_best=objective", "objective=adaptive"], "adaptive moves, so its values at two steps"),
    ],
)
def test_what_cannot_be_validated_is_refused_in_one_line(rows, monkeypatch, overrides, said):
    monkeypatch.chdir(rows)
    (rows / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=said) as error:
        validation.check(load(rows, *overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("every", "saved", "meets"), [(2, 3, True), (3, 5, False), (100, 100, False), (4, 8, True)])
def test_a_best_checkpoint_that_could_only_be_the_last_is_refused(rows, every, saved, meets):
    changes = [f"validate={{every_steps: {every}}}", f"checkpoint.every_steps={saved}", "checkpoint.keep_best=nll"]
    dataset = HeldOut()
    if meets:
        (said,) = validation.found(load(rows, *changes), dataset, 10)
        assert said.value == "3 of 3 examples, 15 targets"
        return
    with pytest.raises(ValueError, match="of 10 steps only the last is both validated"):
        validation.found(load(rows, *changes), dataset, 10)


def test_the_first_examples_are_taken_and_counted(rows):
    (said,) = validation.found(load(rows, "validate={max_examples: 2}"), HeldOut(), 101)
    assert (said.value, said.reason) == ("2 of 3 examples, 9 targets", "3 validations; never trained on")


class HeldOut:
    """As much of a TokenizedDataset as is asked."""

    def __len__(self):
        return 3

    def num_targets(self):
        return np.array([4, 5, 6])


def test_validations_stand_beside_the_steps_and_a_new_start_repeats_none(tmp_path):
    first = validated(0)
    written = [first, *TRAINED[:2], validated(2), *TRAINED[2:], validated(4)]
    write(tmp_path, 0, written)
    assert read_metrics(tmp_path) == TRAINED
    assert [row["step"] for row in read_validations(tmp_path)] == [0, 2, 4]
    write(tmp_path, 2, written[4:])
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in written)
    write(tmp_path, 0, [first])
    assert read_validations(tmp_path) == [first]


def test_the_progress_line_says_both(tmp_path):
    shown = []
    progress = type("Shown", (), {"advance": lambda *_: None, "update": lambda _, *said: shown.append(said)})()
    follow = Follower(progress, tmp_path)
    for row in (validated(0), TRAINED[0], validated(2)):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        follow()
    assert shown[0] == (0, "held out: nll 3.0000  p 0.250")
    assert shown[1] == (1, "objective 1.0000  nll 1.9000  p 0.100  held out: nll 3.0000  p 0.250")
    assert shown[2] == (2, "objective 1.0000  nll 1.9000  p 0.100  held out: nll 1.0000  p 0.250")


def validated(step):
    return {"step": step, "validation_nll": NLL[step], "validation_p": 0.25}


def write(run_dir, start, rows):
    log = RunLog(run_dir, start)
    for row in rows:
        log.write(row)
    log.close()


def checkpoint(run_dir, step):
    path = run_dir / "checkpoints" / f"step={step}"
    (path / "weights").mkdir(parents=True)
    (path / "context").mkdir()
    (path / "weights" / "metadata.json").write_text(str(step))
    return path


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(validated(step)) + "\n" for step in NLL))
    return tmp_path


def test_the_best_stays_when_the_engine_removes_its_own(run_dir):
    best.update(run_dir, "nll")
    assert best.step(run_dir) is None
    seen = []
    for step in (2, 3, 4, 6, 8, 9):  # 3 is saved and not validated; that of 9 is no number
        path = checkpoint(run_dir, step)
        best.update(run_dir, "nll")
        seen.append(best.step(run_dir))
        shutil.rmtree(path)
        assert is_checkpoint(run_dir / "best")
        assert (run_dir / "best" / "weights" / "metadata.json").read_text() == str(seen[-1])
        assert [entry.name for entry in (run_dir / "kept").iterdir()] == [f"step={seen[-1]}"]
    assert seen == [2, 2, 2, 6, 6, 6]


def test_the_highest_p_is_the_best_and_of_equal_ones_the_earlier(run_dir):
    for step in (2, 4):
        checkpoint(run_dir, step)
    best.update(run_dir, "p")
    assert best.step(run_dir) == 2
    row = {"step": 6, "validation_nll": 9.0, "validation_p": 0.5}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    checkpoint(run_dir, 6)
    best.update(run_dir, "p")
    assert best.step(run_dir) == 6


def test_a_copy_of_a_run_that_followed_the_link_goes_on(run_dir, tmp_path_factory):
    checkpoint(run_dir, 2)
    best.update(run_dir, "nll")
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run_dir, copy)
    assert not (copy / best.LINK).is_symlink()
    assert best.step(copy) == 2
    checkpoint(copy, 6)
    best.update(copy, "nll")
    assert (copy / best.LINK).is_symlink()
    assert best.step(copy) == 6


def test_a_kill_at_any_moment_leaves_a_whole_one_and_the_next_update_finishes(run_dir, monkeypatch):
    """At each call that changes the disk, in turn."""
    first = checkpoint(run_dir, 2)
    best.update(run_dir, "nll")
    shutil.rmtree(first)
    checkpoint(run_dir, 6)
    calls = [(os, "link"), (os, "rename"), (os, "replace"), (os, "symlink"), (shutil, "rmtree")]
    moments = 0
    for moment in range(40):
        copy = run_dir.with_name(f"{run_dir.name}-{moment}")
        shutil.copytree(run_dir, copy, symlinks=True)
        with monkeypatch.context() as patched:
            count = iter(range(1000))
            for module, name in calls:
                patched.setattr(module, name, dying(getattr(module, name), count, moment))
            try:
                best.update(copy, "nll")
                killed = False
            except KeyboardInterrupt:
                killed = True
        assert best.step(copy) in (2, 6)
        held = (copy / "best" / "weights" / "metadata.json").read_text()
        assert step_of((copy / "best").resolve()) == int(held)
        best.update(copy, "nll")
        assert best.step(copy) == 6
        assert [entry.name for entry in (copy / "kept").iterdir()] == ["step=6"]
        moments += killed
        if not killed:
            break
    assert moments >= 4


def dying(function, count, moment):
    def call(*arguments, **settings):
        if next(count) == moment:
            raise KeyboardInterrupt
        return function(*arguments, **settings)

    return call
