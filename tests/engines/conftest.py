"""The engine that a worker's tests share."""

from __future__ import annotations

import pytest

from tests.support.engine import Engine


@pytest.fixture(scope="session")
def engine():
    """NeMo, imported once for all tests that are not about the command line."""
    with Engine() as engine:
        yield engine
