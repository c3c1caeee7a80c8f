"""The letter that a free-text answer to a multiple-choice question settles on."""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher

FULL_WIDTH = "\u3002\uff09\uff0e\uff1a\uff1b\uff01\uff1f"  # the full stop to the question mark of East Asian text
TAIL = 20_000  # characters that are looked at; an answer ends an answer


def medical_letter(text: str, options: Mapping[str, str]) -> tuple[str, bool]:
    """The letter by the m1 protocol's rules, the last mention of each, and whether a letter stood in the answer.

    "answer is X"; else a letter of the options by itself (an article "A " aside); else the option whose text comes
    last; else the option whose text is most similar to the answer, so that there always is one.
    """
    text = text.split("## Final Response\n\n")[-1][-TAIL:]
    stated = re.findall(r"answer is\s*([A-N])", text)
    if stated:
        return stated[-1], True
    letters = "ABCDEFGHIJKLMN"[: len(options)]
    cjk = "\u4e00-\u9fff"
    alone = re.findall(rf"(?:[{cjk}]|is |\W|^)(?![aA] )([{letters}])(?:\W|[{cjk}]|$)", text)
    if alone:
        return alone[-1], True
    lowered = text.lower()
    places = {letter: lowered.rfind(option.lower()) for letter, option in options.items()}
    if max(places.values()) >= 0:
        return max(places, key=lambda letter: places[letter]), False
    similarity = {letter: SequenceMatcher(None, option.lower(), lowered).ratio() for letter, option in options.items()}
    return max(options, key=lambda letter: (similarity[letter], letter)), False


def explicit_letter(text: str, letters: str) -> str | None:
    """The most explicit mention of one of `letters`, case aside; the last of equally explicit ones; None without any.

    The order is that of the paper's evaluation of low-resource languages: (A), then A. or A:, (A, : A -, A-, : A, A at
    the end, a bare A.
    """
    text = text[-TAIL:].upper()
    free, end = f"(?<![A-Z0-9])([{letters}])", "(?![A-Z0-9])"
    one = f"([{letters}])"
    ranked = [
        (10, rf"[(\[{{\"']\s*{one}\s*[)\]}}\"']"),
        (9, rf"{free}\s*[).,\]:;!?{FULL_WIDTH}]"),
        (8, rf"[(\[{{]\s*{one}{end}"),
        (8, rf"[:=\-]\s*{one}\s*[:=\-]"),
        (7, rf"{free}\s*[:=\-]"),
        (7, rf"[:=\->]\s*{one}{end}"),
        (6, rf"{free}\s*$"),
        (4, rf"{free}{end}"),
    ]
    mentions = [(rank, found.start(1), found[1]) for rank, pattern in ranked for found in re.finditer(pattern, text)]
    return max(mentions)[2] if mentions else None
