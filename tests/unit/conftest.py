"""No engine in these tests, at no depth of imports: `make test-fast` needs none."""

from __future__ import annotations

import sys

import pytest

ENGINES = {"nemo", "megatron", "lightning", "pytorch_lightning", "nemo_run", "transformer_engine", "vllm", "lm_eval"}


@pytest.fixture(autouse=True)
def _no_engine():
    before = ENGINES & sys.modules.keys()
    yield
    loaded = {name for name in ENGINES & sys.modules.keys() - before if sys.modules[name] is not None}
    assert not loaded, f"a test that imports {loaded} belongs in tests/engines"
