"""Ctrl-C as at a terminal; tests that need what is not there, left out and counted as deselected; and which tests
share a worker of pytest-xdist, the longest first."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.support.engine import BRIDGE_PRELOADED, BRIDGE_PYTHON, Engine
from tests.support.real import MODEL as REAL_MODEL

# A shell starts background jobs, perhaps this one, with SIGINT ignored, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that takes long says that the machine is busy, and the tests share it.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# Workers share the cores, with whatever they start; threads that wait for a core spin.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    torch.set_num_threads(int(threads))

LEFT_OUT = pytest.StashKey[dict[str, int]]()
WHY_LEFT_OUT = {
    "gpu": "need more GPUs than there are and were left out (marker gpu)",
    "real": "need a pretrained model (make real-model) and were left out (marker real)",
    "bridge": "need Megatron-Bridge (Python 3.12, make setup-bridge) and were left out",
}
TOGETHER = dict.fromkeys(("test_evaluation", "test_evaluation_tasks"), "vllm")  # they share `evaluated()`
# By the time they take alone. One of these that started last would leave the other workers idle.
LONGEST_FIRST = (
    "test_crash",
    "vllm",
    "test_bridge_crash",
    "test_sweep",
    "test_bridge_parity",
    "test_bridge_training",
    "test_packing",
    "test_training",
    "test_submit",
    "test_parity",
    "test_conversion_interrupted",
    "test_kernels",
    "test_conversion_megatron",
    "test_crash_lora",
    "test_one_device",
)


@pytest.fixture(scope="session")
def engine():
    """NeMo, imported once a worker, for all tests that are not about the command line."""
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def bridge():
    """Megatron-Bridge, imported once a worker in its own environment. A test that takes it needs that environment."""
    with Engine(BRIDGE_PYTHON, BRIDGE_PRELOADED) as engine:
        yield engine


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files go to a worker, since their fixtures are made once; files in `TOGETHER` share more than that.

    pytest-xdist's own `--dist=loadgroup` marks groups in node ids, which pytest 9.2 no longer lets it change.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(Path(nodeid.partition("::")[0]).stem)

    return Files(config, log)


def pytest_collection_modifyitems(config, items):
    missing = {item: _missing(item) for item in items}
    left_out = [item for item in items if missing[item]]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = Counter(missing[item] for item in left_out)
    items[:] = sorted(set(items) - set(left_out), key=_turn(items))


def pytest_runtest_setup(item):
    if _needs_bridge(item) and not BRIDGE_PYTHON.exists():
        pytest.fail("needs Megatron-Bridge, which CI must have: Python 3.12, make setup-bridge", pytrace=False)


def pytest_sessionfinish(session):
    """A worker tells the process that writes the summary what it left out; pytest-xdist does not."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(LEFT_OUT, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    # Every worker collects all tests.
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    """After all else that pytest says, but for its last line."""
    yield
    for missing, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{count} tests {WHY_LEFT_OUT[missing]}")


def _missing(item) -> str | None:
    """What this machine lacks for the test: a key of `WHY_LEFT_OUT`. CI must have Bridge, and fails without."""
    if _num_gpus(item) > torch.cuda.device_count():
        return "gpu"
    if item.get_closest_marker("real") is not None and not REAL_MODEL.exists():
        return "real"
    in_ci = os.environ.get("CI") or os.environ.get("GITHUB_ACTIONS")
    return "bridge" if _needs_bridge(item) and not BRIDGE_PYTHON.exists() and not in_ci else None


def _needs_bridge(item) -> bool:
    return "bridge" in item.fixturenames or item.get_closest_marker("bridge") is not None


def _num_gpus(item) -> int:
    marker = item.get_closest_marker("gpu")
    return 0 if marker is None else (marker.args or (1,))[0]


def _turn(items):
    """Sorts by group: the longest first, then as collected."""
    order = {item: position for position, item in enumerate(items)}
    longest = {name: position for position, name in enumerate(LONGEST_FIRST)}
    return lambda item: (longest.get(_group(item.path.stem), len(longest)), order[item])


def _group(stem: str) -> str:
    return TOGETHER.get(stem, stem)
