"""What a killed process started: with `end_children_with_this` it ends too, without it waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

PROGRAM = """
import multiprocessing, sys, threading, time
from nemo_probsft.run.parents import end_children_with_this

if sys.argv[1] == "asked":
    end_children_with_this()
forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
forked.start()
manager = multiprocessing.get_context("spawn").Manager()
thread = threading.Thread(target=lambda: print(forked.pid, manager._process.pid, manager.Queue().empty(), flush=True))
thread.start()
thread.join()
time.sleep(60)
"""


@pytest.mark.parametrize(("asked", "left"), [("asked", 0), ("unasked", 2)])
def test_children_end_with_a_process_that_was_killed(asked, left, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"if __name__ == '__main__':\n    {PROGRAM.strip().replace(chr(10), chr(10) + '    ')}\n")
    parent = subprocess.Popen([sys.executable, program, asked], stdout=subprocess.PIPE, text=True)
    *pids, empty = parent.stdout.readline().split()
    assert empty == "True"  # the manager works
    children = [psutil.Process(int(pid)) for pid in pids]
    parent.kill()
    _, alive = psutil.wait_procs(children, timeout=20 if left == 0 else 2)
    for child in alive:
        child.kill()
    parent.communicate()
    assert len(alive) == left


def test_a_child_of_a_thread_outlives_the_thread():
    """Linux would end it with the thread that started it, not with the process."""
    program = """
import multiprocessing, threading, time
from nemo_probsft.run.parents import end_children_with_this
end_children_with_this()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1,))
thread = threading.Thread(target=child.start)
thread.start()
thread.join()
child.join()
print(child.exitcode)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


def test_a_command_ends_with_the_one_that_started_it(tmp_path):
    """As the cells of a sweep and the diagnosis of `one-click` do."""
    recipe = tmp_path / "never.yaml"
    os.mkfifo(recipe)  # a command that reads it waits
    program = (
        "import subprocess, sys\nfrom nemo_probsft.run.parents import ending_with_this\n"
        f"command = [sys.executable, '-m', 'nemo_probsft', 'train', {str(recipe)!r}]\n"
        "child = subprocess.Popen(command, env=ending_with_this(), start_new_session=True)\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    with pytest.raises(psutil.TimeoutExpired):
        child.wait(3)
    parent.kill()
    assert not psutil.wait_procs([child], timeout=20)[1]
    parent.communicate()
