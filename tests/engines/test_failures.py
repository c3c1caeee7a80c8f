"""Real ranks under real torchrun that die in ways of their own: the launcher names the one that failed, and why.

A `yaml.py` on the path, which every command imports, does the dying: so the ranks need neither NeMo nor a model.
"""

import json

import pytest

from nemo_probsft.run import failures, ranks

GROUP = """
import os, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
RANK = int(os.environ["RANK"])
"""
DEATHS = {
    "a module that is missing": ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "a syntax error": ("def broken(:\n", "SyntaxError: invalid syntax"),
    "an exit code": (
        "import sys\nprint('gave up', file=sys.stderr)\nsys.exit(3)\n",
        "exit code 3; its last line: gave",
    ),
    "an exception while the other waits": (
        GROUP + "if RANK == 1:\n    raise KeyError('of rank 1')\ndist.barrier()\n",
        "KeyError: 'of rank 1'",
    ),
    "an exception and its echo": (
        GROUP + "if RANK == 0:\n    raise KeyError('of rank 0')\ndist.barrier()\n",
        "KeyError: 'of rank 0'",
    ),
    "a kill and its echo": (
        GROUP + "if RANK == 1:\n    os.kill(os.getpid(), 9)\ndist.barrier()\n",
        "rank 1 was killed by signal 9 (SIGKILL), as the kernel does when memory runs out: see `dmesg`",
    ),
    "an exception that is no Exception, such as torch's CheckpointException": (
        "class CheckpointException(BaseException): pass\n"
        "raise CheckpointException('ranks: OSError: [Errno 28] No space left on device')\n",
        "[Errno 28] No space left on device",
    ),
    "a full disk behind another exception": (
        "try:\n    raise OSError(28, 'No space left on device')\n"
        "except OSError:\n    raise RuntimeError('not saved')\n",
        "OSError: [Errno 28] No space left on device",
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_the_launcher_says_why_a_rank_ended(death, tmp_path, monkeypatch):
    source, reason = DEATHS[death]
    (tmp_path / "yaml.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError) as raised:
        ranks.run_ranks(["train", "recipe.yaml"], 2 if GROUP in source else 1, tmp_path / "logs", lambda: None)
    assert list(tmp_path.glob("logs/*/failed.json")), "the rank was to die, not torchrun"
    assert str(raised.value).startswith("a rank failed: ")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_torchrun_that_failed_itself_is_quoted(tmp_path):
    (tmp_path / "torchrun.log").write_text("Traceback (most recent call last):\nImportError: no torch here\n")
    assert failures.first_error(tmp_path) == "ImportError: no torch here"


def test_an_error_file_that_a_full_disk_cut_off_does_not_hide_the_others(tmp_path):
    for rank, text in ((0, '{"mess'), (1, _error_file("ValueError: of rank 1"))):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "error.json").write_text(text)
    assert failures.first_error(tmp_path) == "ValueError: of rank 1"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "rank 1 was killed by signal 9 (SIGKILL), as the kernel does when memory runs out: see `dmesg`"),
        (-11, "rank 1 was ended by signal 11 (SIGSEGV)"),
        (-15, "rank 1 was ended by signal 15 (SIGTERM)"),
        (127, "rank 1 ended with exit code 127"),
    ],
)
def test_without_an_error_file_the_exit_code_and_the_last_line_are_told(tmp_path, code, said):
    (tmp_path / "failed.json").write_text(json.dumps({"1": code}))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "stderr.log").write_text("first\nlast\n\n")
    assert failures.first_error(tmp_path) == f"{said}; its last line: last"


def test_a_rank_that_torchrun_stopped_does_not_hide_the_echo_of_another(tmp_path):
    (tmp_path / "failed.json").write_text(json.dumps({"0": -15, "1": 1}))
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    (tmp_path / "1" / "error.json").write_text(_error_file("RuntimeError: Connection closed by peer"))
    assert failures.first_error(tmp_path) == "RuntimeError: Connection closed by peer"


def _error_file(traceback):
    return json.dumps({"message": {"message": "", "extraInfo": {"py_callstack": traceback, "timestamp": "0"}}})
