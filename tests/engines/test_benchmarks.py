"""`python -m benchmarks.step` on the demo's model: the engines run, and only ours writes metrics."""

from __future__ import annotations

import json

import pytest

from benchmarks.turns import ALL_ROWS, OURS
from tests.support.engine import first_error

ENGINES = ["nemo", pytest.param("bridge", marks=pytest.mark.bridge)]


@pytest.mark.parametrize("name", ENGINES)
def test_a_step_is_measured_with_ours_and_with_the_engines_own(name, request, tmp_path):
    ranks = request.getfixturevalue({"nemo": "engine", "bridge": "bridge"}[name])
    arguments = ["--engine", name, "--shape", "demo", "--batch", "4", "--micro-batch", "2", "--steps", "1"]
    job = {"task": "tests.support.step_ranks:benchmark", "world_size": 1, "output": str(tmp_path / "ranks")}
    ranks.run([job | {"arguments": [*arguments, "data.packing=true", "--lengths", "math"]}])
    assert not (error := first_error([job])), error
    tables, logged, num_steps = json.loads((tmp_path / "ranks" / "rank-0.pt").read_text())
    assert len(tables) == 2
    for table in tables:
        assert [row["implementation"] for row in table][:2] == [OURS, ALL_ROWS]
        assert table[2]["implementation"].endswith("'s default loss")
        assert all(row["ms"] > 0 and row["tokens_per_s"] > 0 and row["steps"] == 1 for row in table)
    assert logged == [number for number in range(1, num_steps + 1) if number % 3]  # every third is the engine's own
