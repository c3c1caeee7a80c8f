"""Starting the ranks of one node with torchrun, with their output in files and a display in the process that waits."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nemo_probsft.files import SOURCE_ROOT
from nemo_probsft.run.failures import first_error
from nemo_probsft.run.parents import end_children_with_this, end_with_parent

if TYPE_CHECKING:  # torchrun imports this module, too, and does without what reads recipes
    from nemo_probsft.config import Recipe

TORCHRUN_PID = "NEMO_PROBSFT_TORCHRUN_PID"  # set where our own launcher started torchrun


def inside_ranks() -> bool:
    """True under torchrun or srun: this process is a rank and must not start others."""
    return "RANK" in os.environ


def started_here() -> bool:
    """True for a rank that our own launcher started, not a torchrun or srun of the user's."""
    return TORCHRUN_PID in os.environ


def end_with_torchrun() -> None:
    """What a rank calls first: end when torchrun ends.

    torchrun gives every rank a session of its own: after a `kill -9` of what started them they would go on, and write
    into the run directory beside the run that continues it.
    """
    parent = os.environ.get(TORCHRUN_PID)
    end_with_parent(None if parent is None else int(parent))
    end_children_with_this()


def hold(run_dir: Path) -> IO[str]:
    """Keep every other process out of the run directory until this one ends, or the file is closed.

    Raises ValueError when one is at work there.
    """
    file = (run_dir / "lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        problem = "is in use by another run of this recipe; wait for it, stop it, or choose another run_dir"
        raise ValueError(f"run_dir: {run_dir} {problem}") from None
    return file


def refuse_many_nodes(recipe: Recipe) -> None:
    """One process starts the ranks of one node. Raises ValueError for more: they need torchrun or srun."""
    if recipe.trainer.num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes is {recipe.trainer.num_nodes}, but this process starts the ranks of one node; "
            "run the same command under torchrun or srun on every node"
        )


def run_ranks(arguments: Sequence[str], num_ranks: int, log_dir: Path, tick: Callable[[], None]) -> None:
    """Run the command `nemo-probsft ARGUMENTS` on `num_ranks` ranks; call `tick` twice a second until they end.

    Output goes to files under `log_dir`/<time>/. Raises RuntimeError, in one line, with the first
    rank's error.
    """
    attempt = log_dir / time.strftime("%Y%m%d-%H%M%S")
    attempt.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "nemo_probsft.run.torchrun", str(os.getpid()), str(attempt)),
        *("--standalone", f"--nproc-per-node={num_ranks}"),
        *(f"--log-dir={attempt}", "--redirects=3", "-m", "nemo_probsft.rank", *arguments),
    ]
    with (attempt / "torchrun.log").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(num_ranks))
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.5)
            tick()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    if process.returncode:
        raise RuntimeError(f"a rank failed: {first_error(attempt)}; its log is in {attempt}")


def _environment(num_ranks: int) -> dict[str, str]:
    environment = dict(os.environ)
    # The ranks share the cores; torchrun's own default of 1 thread wastes them when there are fewer ranks than cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    package_root = str(SOURCE_ROOT)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("HYDRA_FULL_ERROR", "1")
    return environment
