"""A training set of several files: how often each row is in it, in which order, and what is kept about the files."""

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_probsft.data import mixture, tokens
from nemo_probsft.data.mixture import Source, drawn
from nemo_probsft.data.tokens import TOKENS, FileCounts, TokenizedDataset
from nemo_probsft.files import sha256_of
from tests.unit.test_tokens import PLAIN, equal, ids


def write(path: Path, letter: str, count: int) -> str:
    rows = [{"prompt": f"{letter}{i}", "response": "x"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(data: TokenizedDataset) -> list[str]:
    return [PLAIN.decode(example.input_ids[:-2].tolist()) for example in data]


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "a.jsonl", "a", 5), write(tmp_path / "b.jsonl", "b", 8)


def test_weights_and_caps_say_how_often_a_row_is_there(files, tmp_path):
    sources = [Source(files[0], weight=2, max_rows=3), Source(files[1], weight=0.5)]
    data = TokenizedDataset.load(mixture.tokenized(sources, PLAIN, tmp_path / "cache", max_length=9))
    found = prompts(data)
    assert found[:6] == ["a0", "a0", "a1", "a1", "a2", "a2"]
    assert len(set(found[6:])) == 4
    assert sorted(found[6:]) == found[6:]
    assert data.summary.files == (FileCounts(files[0], 3, 6, 12), FileCounts(files[1], 8, 4, 8))
    assert (data.summary.num_examples, data.summary.num_target_tokens) == (10, 20)
    assert data.rows.tolist()[:6] == [1, 1, 2, 2, 3, 3]
    assert data.place(5) == f"{files[0]} 3"
    assert data.place(6) == f"{files[1]} {data.rows[6]}"
    assert [data[i].input_ids.tolist() for i in (0, 1)] == [[*ids("a0"), *ids("x"), 1]] * 2


def test_files_that_are_named_alone_are_each_whole_and_one_after_the_other(files, tmp_path):
    data = mixture.in_memory([Source(name) for name in files], PLAIN, max_length=9)
    assert prompts(data) == [f"a{i}" for i in range(5)] + [f"b{i}" for i in range(8)]
    again = TokenizedDataset.load(mixture.tokenized([Source(name) for name in files], PLAIN, tmp_path, max_length=9))
    assert equal(again, data)


def test_one_file_is_the_set_that_it_always_was(files, tmp_path):
    one = mixture.tokenized([Source(files[0])], PLAIN, tmp_path, max_length=9)
    assert one == tokens.tokenized(files[0], PLAIN, tmp_path, split="train", max_rows=None, max_length=9)
    assert TokenizedDataset.load(one).summary.files == ()
    assert TokenizedDataset.load(one).place(4) == 5


def test_every_part_of_a_mixture_has_its_share_in_the_name_of_its_directory(files, tmp_path):
    a, b = files
    mixtures = [[Source(a), Source(b)], [Source(b), Source(a)], [Source(a), Source(b, weight=0.5)]]
    mixtures += [[Source(a), Source(b, max_rows=5)], [Source(a), Source(a)], [Source(a, weight=2)]]
    names = [mixture.tokenized(sources, PLAIN, tmp_path, max_length=9) for sources in mixtures]
    assert len(set(names)) == len(names)
    assert mixture.tokenized(mixtures[2], PLAIN, tmp_path, max_length=9) == names[2]
    write(Path(b), "c", 8)
    assert mixture.tokenized(mixtures[2], PLAIN, tmp_path, max_length=9) != names[2]


@pytest.mark.parametrize("weight", [1e-3, 0.3, 0.5, 1, 1.5, 2, 2.999, 7])
@pytest.mark.parametrize("number", [1, 7, 100])
def test_drawn_examples_are_spread_evenly_and_always_the_same(number, weight):
    found = drawn(number, weight)
    counts = np.bincount(found, minlength=number)
    assert abs(len(found) - weight * number) <= 0.5
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(found, np.sort(found))
    assert np.array_equal(found, drawn(number, weight))


def test_a_share_is_not_the_beginning_of_the_file():
    assert drawn(1000, 0.5).tolist() != list(range(500))


def test_a_mixture_without_an_example_is_refused(files):
    with pytest.raises(ValueError, match=r"^no example of .* is left: raise a weight"):
        mixture.in_memory([Source(name, weight=1e-3) for name in files], PLAIN, max_length=9)


def test_the_identity_of_the_data_is_that_of_its_files_and_of_the_manifest_beside_them(files, tmp_path):
    assert mixture.identity([Source(files[0])]) == [{"path": files[0], "sha256": sha256_of(Path(files[0]))}]
    (tmp_path / "manifest.json").write_text("{}")
    manifest = sha256_of(tmp_path / "manifest.json")
    assert [entry["manifest_sha256"] for entry in mixture.identity([Source(name) for name in files])] == [manifest] * 2


def test_the_arrays_of_a_mixture_are_those_that_a_run_maps(files, tmp_path):
    path = mixture.tokenized([Source(name, weight=1.5) for name in files], PLAIN, tmp_path, max_length=9)
    found = tokens.map_arrays(path)
    assert {name: array.dtype for name, array in found.items()} == dict(
        zip(TOKENS, (np.dtype("int32"), np.dtype("uint8"), np.dtype("int64")), strict=True)
    )
