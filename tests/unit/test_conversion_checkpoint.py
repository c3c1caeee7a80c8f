"""One answer to what a directory is and which checkpoint of a run is the last."""

import subprocess
import sys
from pathlib import Path

import pytest

from conversion.checkpoint import holds_weights, is_nemo, kind_of, last_checkpoint


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


def test_the_answers_need_no_torch():
    code = "import sys, conversion.checkpoint; print({'torch', 'numpy', 'nemo', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
