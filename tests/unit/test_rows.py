"""Reading rows: what is accepted, and the one line that every kind of bad input ends with."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nemo_probsft.data.rows import Row, parse_row, read_rows, source_digest

GOOD = '{"prompt": "2+2=", "response": "4"}\n'


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


QA = turns(("user", "2+2="), ("assistant", "4"))


def error(*args, **kwargs) -> str:
    with pytest.raises(ValueError, match=r".") as info:
        list(read_rows(*args, **kwargs))
    message = str(info.value)
    assert "\n" not in message
    return message


def jsonl(directory: Path, text: str | bytes) -> Path:
    path = directory / "train.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_both_forms_of_a_row_are_the_same_conversation(tmp_path):
    path = jsonl(tmp_path, GOOD + json.dumps({"messages": QA, "id": 7}) + "\n")
    assert list(read_rows(path)) == [Row(QA, f"{path} line 1", 1), Row(QA, f"{path} line 2", 2)]


def test_byte_order_mark_blank_lines_and_line_ends_do_not_shift_line_numbers(tmp_path):
    # U+2028 is white space to str.splitlines, not to JSON lines.
    text = "\ufeff" + GOOD + "\r\n" + json.dumps({"prompt": "a\u2028b", "response": "c"}, ensure_ascii=False) + "\r\n"
    rows = list(read_rows(jsonl(tmp_path, text)))
    assert [row.where.rsplit(" ", 1)[1] for row in rows] == ["1", "3"]
    assert [row.number for row in rows] == [1, 3]
    assert rows[1].messages[0]["content"] == "a\u2028b"


def test_prompt_and_response_keys_may_be_dotted(tmp_path):
    path = jsonl(tmp_path, '{"extra_info": {"question": "2+2=", "answer": "4"}}')
    keys = {"prompt_key": "extra_info.question", "response_key": "extra_info.answer"}
    assert next(iter(read_rows(path, **keys))).messages == QA
    assert error(path, prompt_key="extra_info.text", response_key="extra_info.answer") == (
        f"{path} line 1: has no field 'extra_info.text': its fields are 'extra_info'; rename one of them, or set "
        "data.prompt_key=... data.response_key=..."
    )


def test_named_fields_that_a_row_of_messages_would_ignore_are_refused(tmp_path):
    path = jsonl(tmp_path, json.dumps({"messages": QA}))
    assert error(path, prompt_key="question", response_key="answer") == (
        f"{path} line 1: has messages, so data.prompt_key 'question' and data.response_key 'answer' would mean "
        "nothing: remove the keys from the recipe, or messages from the row"
    )


def test_parquet_holds_both_forms(tmp_path):
    plain, chat = tmp_path / "plain.parquet", tmp_path / "chat.parquet"
    parquet.write_table(pa.table({"prompt": ["2+2="] * 3000, "response": ["4"] * 3000}), plain, row_group_size=100)
    parquet.write_table(pa.table({"messages": [QA]}), chat)
    rows = list(read_rows(plain))
    assert len(rows) == 3000
    assert rows[2999] == Row(QA, f"{plain} row 3000", 3000)
    assert list(read_rows(chat)) == [Row(QA, f"{chat} row 1", 1)]


def test_saved_data_sets(tmp_path):
    data = datasets.Dataset.from_dict({"prompt": ["2+2="], "response": ["4"]})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"sft": data}).save_to_disk(tmp_path / "splits")
    assert list(read_rows(tmp_path / "one")) == [Row(QA, f"{tmp_path / 'one'} row 1", 1)]
    assert list(read_rows(tmp_path / "splits", "sft")) == [Row(QA, f"{tmp_path / 'splits'} row 1", 1)]
    assert error(tmp_path / "splits") == f"{tmp_path / 'splits'}: has no split 'train': its splits are sft"
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "is not readable as a saved data set" in error(tmp_path / "one")


LINES = [
    ("{", "is not JSON (Expecting property name enclosed in double quotes at character 3): write one object a line"),
    (
        '{"prompt": "a", "response": "b", "x": {"y": 1, "y": 2}}',
        "is not JSON (field 'y' is given twice): write one object a line",
    ),
    ("{} {}", "is not JSON (Extra data at character 4): write one object a line"),
    (
        "9" * 5000,
        "is not JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; "
        "use sys.set_int_max_str_digits() to increase the limit): write one object a line",
    ),
    ("[" * 100_000, "is nested too deeply: a row is a flat object"),
    ("[1]", "is a JSON array: each row must be an object with its fields"),
    ("null", "is a JSON null: each row must be an object with its fields"),
    (
        "{}",
        "has no field 'prompt': its fields are none; rename one of them, or set data.prompt_key=... "
        "data.response_key=...",
    ),
    (
        '{"prompt": "a"}',
        "has no field 'response': its fields are 'prompt'; rename one of them, or set data.response_key=...",
    ),
    ('{"prompt": null, "response": "4"}', "prompt is null: must be a string"),
    ('{"prompt": "a", "response": 4}', "response is a JSON number: must be a string"),
    ('{"prompt": "a", "response": ["4"]}', "response is a JSON array: must be a string"),
    ('{"prompt": "a", "response": " \\n"}', "response is empty: there is no answer to learn; drop the row"),
    ('{"prompt": "a\\ud800", "response": "4"}', "prompt holds half a surrogate pair at character 1: remove it"),
    (
        '{"prompt": "a", "response": "4", "messages": []}',
        "has both messages and response: keep one, they are two ways to say the answer",
    ),
    ('{"messages": null}', "messages is null: must be a list of turns with role and content"),
    ('{"messages": []}', "messages is an empty array: must be a list of turns with role and content"),
    ('{"messages": "hi"}', "messages is a JSON string: must be a list of turns with role and content"),
    ('{"messages": ["hi"]}', "messages[0] is a JSON string: must be an object with role and content"),
    ('{"messages": [{"role": "user"}]}', "messages[0] has no content: its fields are 'role'"),
    ('{"messages": [{"content": "a"}]}', "messages[0] has no role: its fields are 'content'"),
    (json.dumps({"messages": turns(("user", None))}), "messages[0].content is null: must be a string"),
    (
        json.dumps({"messages": turns(("human", "a"))}),
        "messages[0].role is 'human': must be one of system, developer, user, assistant, tool",
    ),
    (
        json.dumps({"messages": turns(([], "a"))}),
        "messages[0].role is []: must be one of system, developer, user, assistant, tool",
    ),
    (
        json.dumps({"messages": turns(("user", "a"), ("assistant", ""))}),
        "messages[1].content is empty: there is no answer to learn; drop the row",
    ),
    (
        json.dumps({"messages": turns(("assistant", "a"))}),
        "messages[0].role is 'assistant' where 'user' must come: "
        "roles are an optional system, then user and assistant in turn",
    ),
    (
        json.dumps({"messages": turns(("user", "a"), ("system", "b"), ("assistant", "c"))}),
        "messages[1].role is 'system' where 'assistant' must come: "
        "roles are an optional system, then user and assistant in turn",
    ),
    (
        json.dumps({"messages": turns(("system", "a"), ("user", "b"), ("user", "c"))}),
        "messages[2].role is 'user' where 'assistant' must come: "
        "roles are an optional system, then user and assistant in turn",
    ),
    (
        json.dumps({"messages": turns(("system", "a"))}),
        "the last turn is 'system': a row must end with the assistant's answer",
    ),
    (
        json.dumps({"messages": turns(("user", "a"))}),
        "the last turn is 'user': a row must end with the assistant's answer",
    ),
    (
        json.dumps({"messages": [*QA, *turns(("user", "a"))]}),
        "the last turn is 'user': a row must end with the assistant's answer",
    ),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=[message[:40] for _, message in LINES])
def test_bad_line_is_named(tmp_path, line, message):
    path = jsonl(tmp_path, GOOD * 2 + line + "\n" + GOOD)
    assert error(path) == f"{path} line 3: {message}"


def test_wrong_encodings(tmp_path):
    path = jsonl(tmp_path, GOOD.encode() + '{"prompt": "caf\xe9", "response": "4"}\n'.encode("latin-1"))
    assert error(path) == f"{path} line 2: byte 16 is not UTF-8: save the file as UTF-8"
    assert (
        error(jsonl(tmp_path, GOOD.encode("utf-16"))) == f"{path} line 1: byte 1 is not UTF-8: save the file as UTF-8"
    )


def test_empty_sources(tmp_path):
    path = jsonl(tmp_path, "")
    assert error(path) == f"{path}: is empty (0 bytes): must be a JSON lines file with at least one row"
    assert error(jsonl(tmp_path, "\n \n")) == f"{path}: has no rows: give a source with at least one"
    path = tmp_path / "train.parquet"
    path.touch()
    assert error(path) == f"{path}: is empty (0 bytes): must be a parquet file with at least one row"
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string()), "response": pa.array([], pa.string())}), path)
    assert error(path) == f"{path}: has no rows: give a source with at least one"


def test_bad_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"prompt": ["a", None], "response": ["b", "c"]}), path)
    assert error(path) == f"{path} row 2: prompt is null: must be a string"
    whole = path.read_bytes()
    for broken in (whole[:-20], b"PAR1", GOOD.encode()):
        path.write_bytes(broken)
        assert error(path).startswith(f"{path}: is not readable as parquet after row 0 (")


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "train.parquet"
    columns = [pa.array(["a"])] * 3
    parquet.write_table(pa.Table.from_arrays(columns, names=["prompt", "response", "prompt"]), path)
    assert error(path) == (
        f"{path}: is not readable as parquet after row 0 (two columns have one name): write it again"
    )


def test_damage_in_a_saved_data_set_does_not_end_the_process(tmp_path):
    datasets.Dataset.from_dict({"prompt": ["2+2="] * 8, "response": ["4"] * 8}).save_to_disk(tmp_path / "set")
    path = next((tmp_path / "set").glob("*.arrow"))
    content = path.read_bytes()
    offsets = content.index(b"".join(i.to_bytes(4, "little") for i in (4, 8, 12)))
    path.write_bytes(content[:offsets] + b"\xff\xff\xff\xff" + content[offsets + 4 :])
    assert "is not readable as a saved data set (" in error(tmp_path / "set")


def test_bad_sources(tmp_path):
    missing = tmp_path / "train.jsonl"
    remedy = "no such file, and not the name of a data set: give a .jsonl or .parquet file, or owner/name"
    assert error(missing) == f"{missing}: {remedy}"
    assert error("no-such.json") == f"no-such.json: {remedy}"
    assert error(tmp_path) == (
        f"{tmp_path}: is a directory: give a .jsonl or .parquet file, or a directory of datasets.save_to_disk"
    )
    table = tmp_path / "train.csv"
    table.write_text("prompt,response\na,b\n")
    assert error(table) == f"{table}: unknown ending '.csv': must be .jsonl or .parquet"


def test_ten_megabytes_in_one_line_and_duplicate_ids_are_read(tmp_path):
    row = {"id": 1, "prompt": "a" * 10_000_000, "response": "b"}
    rows = list(read_rows(jsonl(tmp_path, 2 * (json.dumps(row) + "\n"))))
    assert [len(row.messages[0]["content"]) for row in rows] == [10_000_000] * 2


def test_digest_follows_the_content(tmp_path):
    path = jsonl(tmp_path, GOOD)
    first = source_digest(path)
    assert source_digest(path) == first
    assert source_digest(jsonl(tmp_path, GOOD.replace("4", "5"))) != first
    for answer in ("4", "5"):
        datasets.Dataset.from_dict({"prompt": ["2+2="], "response": [answer]}).save_to_disk(tmp_path / answer)
    assert source_digest(tmp_path / "4") == source_digest(tmp_path / "4")
    assert source_digest(tmp_path / "4") != source_digest(tmp_path / "5")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "system"]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "prompt", "response", "role", "content", "\n"]), values, max_size=3
        )
    ),
    max_leaves=8,
)


def row_or_message(record) -> Row | str:
    try:
        return parse_row(record, "here")
    except ValueError as problem:
        return str(problem)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_is_a_row_or_one_line(record):
    found = row_or_message(record)
    if isinstance(found, Row):
        assert found.messages[-1]["role"] == "assistant"
        assert all(isinstance(message["content"], str) for message in found.messages)
    else:
        assert found.startswith("here: ")
        assert "\n" not in found
