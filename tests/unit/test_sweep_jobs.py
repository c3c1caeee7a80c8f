"""The sweep's job loop with real commands that end at once: no engine starts."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from nemo_probsft import sweep


def planned(folder, recipe, jobs=2):
    """No cell has a directory yet: a base that needs no import makes none."""
    cells = tuple(sweep.Cell("original", seed, folder / f"original-seed{seed}") for seed in range(3))
    config = type("Recipe", (), {"trainer": type("Trainer", (), {"devices": 1}), "run_dir": str(folder)})
    return sweep.Sweep(str(recipe), (), config, cells, (), jobs)


def test_a_cell_fails_with_its_commands_error_and_the_others_go_on(tmp_path):
    asked = planned(tmp_path, tmp_path / "nowhere.yaml")
    failures = sweep._train(asked, asked.cells)
    assert set(failures) == {cell.name for cell in asked.cells}
    assert all("nowhere.yaml" in reason and not reason.startswith("nemo-probsft") for reason in failures.values())


def test_ctrl_c_ends_the_running_cell_and_starts_no_other(tmp_path):
    recipe = tmp_path / "never.yaml"
    os.mkfifo(recipe)  # a command that reads it waits until it is ended
    asked = planned(tmp_path, recipe, jobs=1)
    threading.Timer(3, os.kill, [os.getpid(), signal.SIGINT]).start()  # to the process, as Ctrl-C does
    with pytest.raises(KeyboardInterrupt):
        sweep._train(asked, asked.cells)
    assert [cell.run_dir.joinpath("sweep.log").exists() for cell in asked.cells] == [True, False, False]


def test_the_display_says_where_the_running_cells_are(tmp_path):
    asked = planned(tmp_path, tmp_path / "never.yaml")
    for cell in asked.cells:
        cell.run_dir.mkdir()
    states = {cell.name: SimpleNamespace(poll=lambda: None) for cell in asked.cells[:2]}
    states[asked.cells[2].name] = SimpleNamespace(poll=lambda: 0)
    first = asked.cells[0].run_dir
    (first / "prepared.json").write_text('{"num_steps": 300}')
    (first / "metrics.jsonl").write_text('{"step": 11}\n{"step": 12}\n{"st')
    assert sweep._where(asked.cells, states) == "original-seed0 step 12 of 300, original-seed1 starts"
