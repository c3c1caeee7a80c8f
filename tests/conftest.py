"""Ctrl-C as at a terminal; tests marked `gpu` are left out, and counted as deselected, where there is no CUDA."""

from __future__ import annotations

import signal

import torch

# A shell starts background jobs, perhaps this one, with SIGINT ignored, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    without_cuda = [item for item in items if item.get_closest_marker("gpu") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in without_cuda])
    items[:] = without_cuda
