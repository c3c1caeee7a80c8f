"""`unshare -Urm python -m tests.support.full_disk train|convert FOLDER`: on a file system that is really full.

The file system is a small tmpfs, which a process may mount in a user namespace and a mount namespace of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from conversion.checkpoint import complete_checkpoints, last_checkpoint
from nemo_probsft.run import best
from tests.support.crash_campaign import check_directory, finish

IN_NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount")


def run(task: str, folder: Path) -> str:
    """Run a task in namespaces of its own. Returns what it printed, which ends with "as expected"."""
    command = [*IN_NAMESPACES, sys.executable, "-m", "tests.support.full_disk", task, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    return done.stdout + done.stderr


def train(folder: Path) -> None:
    """The interrupted run `moved` on a disk with less room than a checkpoint needs, then on a larger one."""
    disk, run = folder / "disk", folder / "copied"
    # Without what a start removes or replaces, which would give room back: hard links take room of their own in a copy.
    shutil.copytree(folder / "moved", run, ignore=shutil.ignore_patterns(best.KEPT, best.LINK))
    complete = complete_checkpoints(run / "checkpoints")
    for path in set((run / "checkpoints").iterdir()) - set(complete):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    mount(disk, num_bytes(run) + num_bytes(complete[0]) // 2)
    shutil.copytree(run, disk / "run")
    recipe = folder / "moved.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["checkpoint"].pop("keep_best")
    recipe.write_text(yaml.safe_dump(content | {"run_dir": str(disk / "run")}))
    before = check_directory(disk / "run")
    line = finish(recipe, code=2).splitlines()[-1]
    assert "No space left on device" in line, line
    assert f"continues from {last_checkpoint(disk / 'run' / 'checkpoints')}" in line, line
    assert check_directory(disk / "run") == before
    mount(disk, 20 * num_bytes(disk), remount=True)
    finish(recipe)
    assert (disk / "run" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()


def convert(folder: Path) -> None:
    """hf -> nemo and back: with half the room that the weights need, and with none for the files beside them."""
    (weights,) = (folder / "hf").glob("*.safetensors")
    size = weights.stat().st_size
    for command, source in (("import", "hf"), ("export", "nemo")):
        for room, message in ((size // 2, "bytes free"), (size, "no space left")):
            disk = folder / f"{command}-{room}"
            mount(disk, room)
            words = [sys.executable, "-m", "nemo_probsft", "convert", command, folder / source, disk / "new" / "out"]
            done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert message in done.stderr, done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert list(disk.iterdir()) == []


def mount(directory: Path, size: int, *, remount: bool = False) -> None:
    directory.mkdir(exist_ok=True)
    options = f"{'remount,' if remount else ''}size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)


def num_bytes(directory: Path) -> int:
    """In whole pages, as tmpfs counts."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    {"train": train, "convert": convert}[sys.argv[1]](Path(sys.argv[2]))
    print("as expected")
