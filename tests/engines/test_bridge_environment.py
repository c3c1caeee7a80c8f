"""Megatron-Bridge lives in another Python than the tests; nothing of theirs reaches it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.engine import BRIDGE_PYTHON, ROOT, Engine, first_error

pytestmark = pytest.mark.bridge

LOCKED = dict(line.split("==") for line in (ROOT / "requirements" / "bridge.lock").read_text().split())


def describe(job, output):
    preloaded = job["preloaded"] in sys.modules
    import megatron.core  # noqa: F401  it can be imported

    variables = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "RANK")
    description = {
        "python": sys.version_info[:2],
        "prefix": sys.prefix,
        "preloaded": preloaded,
        "installed": {name: importlib.metadata.version(name) for name in job["packages"]},
        "environment": {name: os.environ.get(name) for name in variables},
    }
    output.write_text(json.dumps(description))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    job = {"task": f"{__name__}:describe", "world_size": 2, "output": str(tmp_path_factory.mktemp("bridge") / "ranks")}
    with pytest.MonkeyPatch.context() as patch, Engine(BRIDGE_PYTHON, preloaded=["colorsys"]) as engine:
        patch.setenv("PYTHONPATH", "/somewhere/of/the/tests")
        patch.setenv("VIRTUAL_ENV", sys.prefix)
        engine.run([job | {"preloaded": "colorsys", "packages": list(LOCKED)}])
    assert not (error := first_error([job])), error
    return [json.loads(file.read_text()) for file in sorted(Path(job["output"]).glob("*.pt"))]


def test_its_ranks_run_in_its_own_python(ranks):
    assert [rank["python"] for rank in ranks] == [[3, 12]] * 2
    assert ranks[0]["prefix"] == str(BRIDGE_PYTHON.parents[1]) != sys.prefix


def test_its_ranks_are_forks_of_a_server_that_has_the_modules_it_was_given(ranks):
    assert all(rank["preloaded"] for rank in ranks)


def test_it_has_the_locked_versions(ranks):
    assert ranks[0]["installed"] == LOCKED


def test_nothing_set_for_the_tests_python_reaches_it(ranks):
    assert [rank["environment"] for rank in ranks] == [
        {"PYTHONPATH": str(ROOT), "VIRTUAL_ENV": None, "PYTHONHOME": None, "RANK": str(rank)} for rank in range(2)
    ]
