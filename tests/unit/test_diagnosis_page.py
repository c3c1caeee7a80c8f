"""The least likely tokens and examples as text, and the page: whose text is it, and does it stay text?"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nemo_probsft.data.rows import read_rows
from nemo_probsft.data.tokens import tokenize
from nemo_probsft.diagnosis import page
from nemo_probsft.diagnosis.measures import measure
from nemo_probsft.diagnosis.targets import Targets
from nemo_probsft.diagnosis.text import least_likely_examples, least_likely_tokens, pieces
from tests.unit.test_tokens import CHAT, PLAIN

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert('x')</script>&amp;\u202e\x07"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab c", ["a", "b", " ", "c"]),
        ("a\u00e9", ["a", "", "\u00e9"]),  # two bytes, two tokens: the first ends no character
        ("\U0001f600!", ["", "", "", "\U0001f600", "!"]),
        ("", []),
    ],
)
def test_pieces_are_the_text_that_each_token_adds(text, expected):
    ids = np.array(PLAIN(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    assert pieces(PLAIN, ids) == expected


def test_pieces_keep_the_blanks_that_a_sentencepiece_token_loses_by_itself():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "s": 2, "<eos>": 3}, unk_token="<eos>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    assert pieces(tokenizer, np.array([0, 1, 2, 0])) == ["the", " cat", "s", " the"]
    assert tokenizer.decode([1]) == "cat", "decoded alone its blank is gone"


@pytest.fixture
def diagnosed(tmp_path):
    """A file with a blank line and a row that is skipped; the noise is in lines 2 and 6."""
    rows = [
        {"prompt": "2+2=", "response": f"4{HOSTILE}"},
        {"prompt": "far too long" * 20, "response": "x"},
        {"prompt": "3+3=", "response": "6"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bad"}]},
    ]
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(["", lines[0], lines[1], lines[2], "", lines[3]]), encoding="utf-8")
    return path


def measured(dataset, p_of) -> Targets:
    """p_of(example, place in the answer from 1)."""
    logp, example, position, label = [], [], [], []
    for i in range(len(dataset)):
        for place, t in enumerate(np.flatnonzero(dataset[i].loss_mask), 1):
            logp.append(np.log(p_of(i, place)))
            example.append(i)
            position.append(t + 1)
            label.append(dataset[i].input_ids[t + 1])
    logp = np.array(logp, dtype=np.float32)
    return Targets(logp, np.array(example), np.array(position), np.array(label), np.maximum(logp, np.log(0.5)))


def noise(example: int, place: int) -> float:
    return {(0, 2): 1e-7, (2, 3): 1e-5}.get((example, place), 0.9 - place / 1000)


def test_least_likely_tokens_stand_in_their_context_with_their_row(diagnosed):
    data = tokenize(read_rows(diagnosed), PLAIN, max_length=80, long_prompts="skip")
    first, second, *others = least_likely_tokens(measured(data, noise), data, PLAIN)
    assert (first["row"], first["position"], first["before"], first["token"]) == (2, 2, "2+2=4", "<")
    assert first["after"].startswith("script>alert(")
    assert first["logp"] == pytest.approx(np.log(1e-7))
    assert (second["row"], second["example"], second["position"]) == (6, 2, 3)
    assert (second["before"], second["token"], second["after"]) == ("aba", "d", "<eos>")
    assert [entry["logp"] for entry in others] == sorted(entry["logp"] for entry in others)
    assert 2 + len(others) == sum(data.num_targets()) < 50


def test_a_part_of_a_character_is_named_as_the_vocabulary_does(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "\u00e9"}), encoding="utf-8")
    data = tokenize(read_rows(path), PLAIN, max_length=8)
    (first, *_) = least_likely_tokens(measured(data, lambda example, place: place / 10), data, PLAIN)
    assert (first["before"], first["token"], first["after"]) == ("a", "\u00c3", "\u00e9<eos>")


def test_least_likely_examples_are_in_the_order_of_their_mean_nll(diagnosed):
    data = tokenize(read_rows(diagnosed), PLAIN, max_length=80, long_prompts="skip")
    found = least_likely_examples(measured(data, noise), data, PLAIN)
    assert [entry["row"] for entry in found] == [6, 2, 4], "not that with the least likely token"
    assert found[0]["prompt"] == "a"
    assert [text for text, _ in found[0]["answer"]] == ["b", "a", "d", "<eos>"]
    assert [p for _, p in found[0]["answer"]] == pytest.approx([0.899, 0.898, 1e-5, 0.896])
    assert found[0]["num_tokens"] == 4
    assert found[0]["mean_nll"] == pytest.approx(-np.log([0.899, 0.898, 1e-5, 0.896]).mean())


def test_in_a_conversation_only_targets_have_a_probability(tmp_path):
    turns = [("user", "q"), ("assistant", "x"), ("user", "r"), ("assistant", "y")]
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    data = tokenize(read_rows(path), CHAT, max_length=200)
    (entry,) = least_likely_examples(measured(data, lambda example, place: 0.5), data, CHAT)
    text = "".join(piece if p is None else f"[{piece}]" for piece, p in entry["answer"])
    assert text == "[x][<|im_end|>]\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n[y][<|im_end|>]"


class Page(HTMLParser):
    """The elements of a page, those that are still open, and the text of its marks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.marked: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def described(diagnosed) -> dict:
    """What diagnose.json would hold."""
    data = tokenize(read_rows(diagnosed), PLAIN, max_length=80, long_prompts="skip")
    targets = measured(data, noise)
    return measure(targets) | {
        "least_likely_examples": least_likely_examples(targets, data, PLAIN),
        "least_likely_tokens": least_likely_tokens(targets, data, PLAIN),
        "by_file": [],
        "of_examples": 3,
        "seed": 0,
        "model": f"models/{HOSTILE}",
        "data": str(diagnosed),
        "versions": {"torch": "2"},
    }


def rendered(diagnosed) -> str:
    return page.render(json.loads(json.dumps(described(diagnosed))))


def test_every_key_of_the_json_is_in_the_documentation(diagnosed):
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    table = text[text.index("| key | content |") :].splitlines()[2:]
    documented = {key for line in table for key in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert documented == set(described(diagnosed))


def test_the_page_is_whole_needs_no_other_file_and_runs_nothing(diagnosed):
    html = rendered(diagnosed)
    found = Page(html)
    assert found.open == []
    assert sum(tag == "img" for tag, _ in found.elements) == 7
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml;base64,"))
    assert "\u202e" not in html
    assert "\x07" not in html
    assert html.count("&lt;") > 2 * html.count("&amp;lt;") == 0, "escaped once"


def test_the_page_marks_what_is_unlikely_and_says_what_the_json_says(diagnosed):
    html = rendered(diagnosed)
    assert {"<", "d"} <= set(Page(html).marked)
    for text in (
        "region is <b>strong</b>",
        "OnlyTopLogP-0.2",
        "above -log p by 4.1",
        "1.0e-07",
        "\\u202e",
        "line</th>",
    ):
        assert text in html, text


def test_the_page_has_a_line_for_each_of_several_files(diagnosed):
    result = described(diagnosed)
    assert "training file" not in page.render(result)
    one = {"num_tokens": 1234, "mean_p": 0.5, "interval_95": None, "region": "intermediate", "alpha": 0.5}
    html = page.render(result | {"by_file": [one | {"file": f"sums{HOSTILE}"}, one | {"file": "two"}]})
    row = '<td class="number">1,234</td><td class="number">0.5000</td><td>(one example: no interval)</td>'
    assert html.count(f'{row}<td>intermediate</td><td class="number">0.50</td>') == 2
    assert "sums&lt;script&gt;" in html


def test_the_page_says_when_it_is_of_a_sample_or_of_one_example(diagnosed):
    result = described(diagnosed)
    assert "44 target tokens of 3 examples, all of them" in rendered(diagnosed)
    drawn = page.render(result | {"of_examples": 7, "seed": 5})
    assert "44 target tokens of 3 of 7 examples, drawn with seed 5" in drawn
    two_tokens = Targets(
        np.log([0.4, 0.8]).astype(np.float32),
        np.zeros(2, dtype=np.int64),
        np.arange(3, 5),
        np.arange(2),
        np.log([0.5, 0.8]).astype(np.float32),
    )
    one = result | measure(two_tokens)
    num_intervals = 3 + len(one["by_position"]) + len(one["by_confidence"])
    assert page.render(one).count("(one example: no interval)") == num_intervals


def test_the_same_diagnosis_is_the_same_page(diagnosed):
    assert rendered(diagnosed) == rendered(diagnosed)


def test_white_space_and_what_is_not_printed_become_visible():
    assert page.visible("a b\n\t\x00\u202e\u00e9\u4e2d") == "a b\u23ce\u21e5\\u0000\\u202e\u00e9\u4e2d"
