"""The first cases of the campaign in tests/support/fuzz.py, and that it finds what it looks for."""

import random

import pytest

from nemo_probsft.config import strictyaml
from tests.support import fuzz

NUM_CASES = {"recipe": 300, "line": 500, "tokens": 300, "source": 100, "model": 100, "tokenizer": 30}


@pytest.fixture(scope="module", autouse=True)
def workspace():
    with fuzz.prepared():
        yield


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutations_are_accepted_or_refused_in_one_line(kind):
    counts, failures = fuzz.run(kind, range(NUM_CASES[kind]))
    assert not failures
    assert len(counts) > 1  # some of each


def failures_of(kind, number):
    return fuzz.run(kind, range(number))[1]


def test_a_traceback_is_a_failure(monkeypatch):
    monkeypatch.setattr("nemo_probsft.config.loading._refuse_layout", lambda recipe: 1 // 0)
    assert any("ZeroDivisionError" in failure for failure in failures_of("recipe", 40))


def test_two_lines_are_a_failure(monkeypatch):
    monkeypatch.setattr(strictyaml, "show", lambda value: "two\nlines")
    assert any("not one line" in failure for failure in failures_of("recipe", 60))


def test_an_ignored_key_is_a_failure(monkeypatch):
    build = strictyaml.build

    def forgetful(cls, tree, refused):
        return build(cls, strictyaml.Node({**tree.value, "optim": strictyaml.Node({}, "")}, tree.where), refused)

    monkeypatch.setattr(strictyaml, "build", forgetful)
    assert any(": optim." in failure for failure in failures_of("recipe", 40))


def test_a_case_is_a_function_of_its_number():
    first, again = (fuzz.recipe_case(random.Random("x-3")) for _ in range(2))
    assert first == again
