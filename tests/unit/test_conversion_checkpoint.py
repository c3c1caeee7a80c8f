"""One answer to what a directory is and which checkpoint of a run is the last."""

import subprocess
import sys
from pathlib import Path

import pytest

from conversion.checkpoint import (
    holds_weights,
    is_bridge,
    is_checkpoint,
    is_nemo,
    iteration_directory,
    kind_of,
    last_checkpoint,
    model_files_directory,
    step_of,
    weights_directory,
)


def made(directory: Path, *files: str) -> Path:
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


NEMO = ("weights/metadata.json", "context/io.json")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (NEMO, "nemo"),
        ((*NEMO, "config.json"), "nemo"),
        (("config.json",), "huggingface"),
        (("weights/.metadata", "context/io.json"), None),  # torch_dist writes metadata.json last
        (("weights/metadata.json",), None),
        (("README.md",), None),
        ((), None),
    ],
)
def test_kinds(tmp_path, files, kind):
    directory = made(tmp_path, *files)
    assert kind_of(directory) == kind
    assert is_nemo(directory) == (kind == "nemo")


def test_weights_alone_are_enough_to_export_but_are_no_checkpoint_to_train_from(tmp_path):
    bare = made(tmp_path, "weights/metadata.json")
    for directory in (bare, bare / "weights"):
        assert holds_weights(directory)
        assert not is_nemo(directory)
    assert not holds_weights(made(tmp_path / "unfinished", "weights/.metadata"))


def test_the_last_checkpoint_is_the_complete_one_of_the_highest_step(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "missing") is None
    for step in (9, 10, 100):
        made(tmp_path / f"step={step}", *NEMO)
    made(tmp_path / "step=11", "weights/metadata.json")  # no context yet
    made(tmp_path, "step=100-unfinished")
    assert last_checkpoint(tmp_path) == tmp_path / "step=10"
    (tmp_path / "step=100-unfinished").unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "step=100"


TRACKER = "latest_checkpointed_iteration.txt"
# What Bridge writes into the iteration, and beside it, in its order.
SAVE = (
    "iter/__0_0.distcp",
    "iter/.metadata",
    "iter/metadata.json",
    "iter/train_state.pt",
    TRACKER,
    "iter/run_config.yaml",
)
RUN_CONFIG = "_target_: x\ncheckpoint:\n  save: /a\nmodel:\n  bf16: true\ntrain: null\nvalidation: null\n"


def saved(root: Path, step: int, until: int = len(SAVE), run_config: str = RUN_CONFIG) -> Path:
    """The first `until` files of Bridge's save at `step`."""
    iteration = root / f"iter_{step:07d}"
    for name in SAVE[:until]:
        file = root / name.replace("iter/", f"{iteration.name}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text({TRACKER: str(step), "iter/run_config.yaml": run_config}.get(name, ""))
    return iteration


def test_a_bridge_checkpoint_is_its_iteration_and_the_directory_above_it(tmp_path):
    iteration = saved(tmp_path / "run", 7)
    for path in (iteration, tmp_path / "run"):
        assert kind_of(path) == "bridge"
        assert (is_bridge(path), is_nemo(path), is_checkpoint(path), holds_weights(path)) == (True, False, True, True)
        assert iteration_directory(path) == weights_directory(path) == iteration
    assert is_checkpoint(made(tmp_path / "nemo", *NEMO))
    assert not is_checkpoint(made(tmp_path / "hf", "config.json"))
    with pytest.raises(ValueError, match=f"neither a complete iter_N of Megatron-Bridge nor .* {TRACKER}"):
        iteration_directory(tmp_path / "hf")


@pytest.mark.parametrize("until", range(len(SAVE)))
def test_a_killed_save_of_bridge_is_never_the_last_checkpoint(tmp_path, until):
    """Also after the tracker, which is written before run_config.yaml: Bridge could not load it."""
    assert last_checkpoint(tmp_path) is None
    killed = saved(tmp_path, 100, until)
    assert last_checkpoint(tmp_path) is None
    assert kind_of(tmp_path) is kind_of(killed) is None
    first = saved(tmp_path, 9)
    saved(tmp_path, 10, until)
    assert last_checkpoint(tmp_path) == first
    second = saved(tmp_path, 10)
    saved(tmp_path, 11, until)
    assert last_checkpoint(tmp_path) == iteration_directory(tmp_path) == second


@pytest.mark.parametrize("length", [0, 1, len(RUN_CONFIG) // 2, RUN_CONFIG.index("train:"), len(RUN_CONFIG) - 1])
def test_a_run_config_that_was_cut_off_is_no_end_of_a_save(tmp_path, length):
    first, cut = saved(tmp_path, 9), saved(tmp_path, 10, run_config=RUN_CONFIG[:length])
    assert kind_of(cut) is None
    assert last_checkpoint(tmp_path) == first


def test_an_iteration_beyond_the_tracker_does_not_count(tmp_path):
    """Of an earlier run in the same directory, or one that is being removed."""
    first, later = saved(tmp_path, 9), saved(tmp_path, 100)
    (tmp_path / TRACKER).write_text("9")
    assert last_checkpoint(tmp_path) == first
    assert kind_of(later) == "bridge"
    for text in ("release", "", "9.5"):
        (tmp_path / TRACKER).write_text(text)
        assert last_checkpoint(tmp_path) is None


def test_steps_and_the_last_of_both_engines(tmp_path):
    assert step_of(saved(tmp_path, 20)) == 20
    nemo = made(tmp_path / "step=100", *NEMO)
    assert step_of(nemo) == 100
    assert last_checkpoint(tmp_path) == nemo
    saved(tmp_path, 99)
    assert last_checkpoint(tmp_path) == nemo
    later = saved(tmp_path, 12345678)
    assert last_checkpoint(tmp_path) == later


def test_model_files_are_in_the_iteration(tmp_path):
    iteration = saved(tmp_path / "run", 7)
    with pytest.raises(ValueError, match="--base"):
        model_files_directory(iteration)
    made(iteration, "hf/config.json")
    for path in (iteration, tmp_path / "run"):
        assert model_files_directory(path) == model_files_directory(tmp_path, path) == iteration / "hf"


def test_the_answers_need_no_torch():
    code = "import sys, conversion.checkpoint; print({'torch', 'numpy', 'nemo', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
