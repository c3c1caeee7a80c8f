"""The one reader: any bytes are records with their places, or one line that names the place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nemo_probsft.data import records
from nemo_probsft.data.records import Record, read_file

ANY = settings(max_examples=200, deadline=None, database=None, derandomize=True)
PIECES = [
    b'{"a": 1}',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"\n",
    b"\r\n",
    b" ",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\\ud800",
]
PIECES += [
    b'{"a": 1, "a": 2}',
    b"null",
    b"NaN",
    b"9" * 5000,
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b"\xe2\x80\xa8",
    b"\x00",
]


def write(directory: Path, name: str, content: bytes | str) -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def found_or_message(path: Path) -> list[Record] | str:
    try:
        return list(read_file(path))
    except ValueError as error:
        return str(error)


def message(path: Path) -> str:
    found = found_or_message(path)
    assert isinstance(found, str), found
    return found


def is_one_line_at(place: str, text: str) -> bool:
    return text.startswith(place) and "\n" not in text


@ANY
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=8).map(b"".join))
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_any_bytes_are_records_or_one_line_with_the_place(tmp_path_factory, ending, content):
    path = write(tmp_path_factory.getbasetemp(), f"any{ending}", content)
    found = found_or_message(path)
    if isinstance(found, str):
        assert is_one_line_at(str(path), found)
    elif ending == ".json":
        assert [record.fields for record in found] == pytest.approx(
            json.loads(content.decode("utf-8-sig")), nan_ok=True
        )
    else:
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert [record.number for record in found] == [i for i, line in enumerate(lines, 1) if line.strip()]
        assert [record.where for record in found] == [f"{path} line {record.number}" for record in found]


@pytest.fixture(scope="module")
def table() -> bytes:
    sink = pa.BufferOutputStream()
    columns = {"a": ["x", None, "yz"] * 50, "b": [[{"c": 1}], [], None] * 50, "d": ["same"] * 150}
    parquet.write_table(pa.table(columns), sink, row_group_size=70, compression="none")
    return sink.getvalue().to_pybytes()


@ANY
@given(st.data())
def test_damaged_parquet_is_records_or_one_line_with_the_place(tmp_path_factory, table, data):
    content = bytearray(table)
    for position in data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), "damaged.parquet", bytes(content))
    found = found_or_message(path)
    if isinstance(found, str):
        assert is_one_line_at(f"{path}: is not readable as parquet after row ", found)
    else:
        assert [record.where for record in found] == [f"{path} row {i}" for i in range(1, len(found) + 1)]


LISTS = {
    "{}": "object 1: is not readable as a JSON list (no [ at its beginning)",
    ' [{"a": 1}]': "object 1: is not readable as a JSON list (no [ at its beginning)",
    '[{"a": 1}': "object 2: is not readable as a JSON list (no ] at its end)",
    '[{"a": 1},': "object 2: is not readable as a JSON list (no ] at its end)",
    '[{"a": 1},]': "object 2: is not readable as a JSON list (an object or the final ] must come, not ',]')",
    '[{"a": 1} {}]': "object 2: is not readable as a JSON list (an object or the final ] must come, not '{}]')",
    '[{"a": 1}, 7]': "object 2: is not readable as a JSON list (an object or the final ] must come, not ', 7]')",
    '[{"a": 1}]]': "object 2: is not readable as a JSON list (an object or the final ] must come, not ']]')",
    '[{"a": 1}, {"a": ]': "object 2: is not readable as a JSON list (Expecting value)",
    '[{"a": 1}, {"b": 1, "b": 2}]': "object 2: is not readable as a JSON list (field 'b' is given twice)",
    b'[{"a": "\xff"}]': "after object 0: is not UTF-8: save the file as UTF-8",
}


@pytest.mark.parametrize("content", LISTS, ids=range(len(LISTS)))
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_broken_list_names_its_object(tmp_path, monkeypatch, content, block):
    monkeypatch.setattr(records, "BLOCK", block)
    path = write(tmp_path, "list.json", content)
    assert message(path).startswith(f"{path} {LISTS[content]}")


def test_a_list_that_is_nested_too_deeply_names_its_object(tmp_path):
    path = write(tmp_path, "list.json", '[{"a": 1}, {"a": ' + "[" * 100_000)
    assert message(path) == f"{path} object 2: is nested too deeply: a row is a flat object"


def test_a_record_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD", 20)
    monkeypatch.setattr(records, "BLOCK", 8)
    long = '{"a": "' + 40 * "x" + '"}'
    path = write(tmp_path, "rows.jsonl", '{"a": 1}\n' + long)
    assert message(path) == f"{path} line 2: is longer than 20 bytes: write one object a line"
    path = write(tmp_path, "rows.json", f'[{{"a": 1}}, {long}]')
    assert message(path).startswith(
        f"{path} object 2: is not readable as a JSON list (it is broken, or longer than 20 characters)"
    )


def test_every_format_gives_the_same_records_and_counts_them(tmp_path):
    rows = [{"a": "x", "b": [1, 2]}, {"a": "y\u2028", "b": []}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write(tmp_path, "rows.json", json.dumps(rows))
    write(tmp_path, "rows.jsonl", "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    for ending, unit in ((".parquet", "row"), (".json", "object"), (".jsonl", "line")):
        path = tmp_path / f"rows{ending}"
        assert list(read_file(path)) == [Record(row, f"{path} {unit} {i}", i) for i, row in enumerate(rows, 1)]
        assert records.count_records(path) == 2


def test_files_that_hold_nothing_or_cannot_be_read_are_one_line(tmp_path):
    for ending, form in ((".parquet", "parquet"), (".json", "JSON list"), (".jsonl", "JSON lines")):
        path = write(tmp_path, f"empty{ending}", b"")
        assert message(path) == f"{path}: is empty (0 bytes): must be a {form} file with at least one row"
    path = tmp_path / "none.jsonl"
    assert message(path) == f"{path}: cannot be read (No such file or directory): check its permissions and its disk"
    path = write(tmp_path, "table.csv", "a,b")
    assert message(path) == f"{path}: unknown ending '.csv': must be one of .parquet, .jsonl, .json"


def test_two_columns_of_one_name_are_refused_at_any_depth(tmp_path):
    path = tmp_path / "twice.parquet"
    struct = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    for columns, names in (([pa.array([1]), pa.array([2])], ["a", "a"]), ([struct], ["a"])):
        parquet.write_table(pa.Table.from_arrays(columns, names=names), path)
        assert is_one_line_at(f"{path}: is not readable as parquet after row 0 (", message(path))


def test_the_reader_is_light():
    code = "import sys, nemo_probsft.data.records; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pyarrow", "datasets", "transformers"} & set(loaded)
