"""The letter that a free-text answer to a multiple-choice question settles on.

A stated final answer ("the answer is C", "Jibu ni (C)", "正解は C", "\\boxed{C}") wins over every other mention, the
last one over those before it. The article "A" and the pronoun "I" are no letters.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import cache, lru_cache

from evaluation.answer_words import LANGUAGES
from evaluation.reasoning import without_reasoning

TAIL = 20_000  # characters that are looked at; an answer ends an answer
MAX_WORDS = 16  # between "answer" and its letter

_ALPHABET = "A-Za-z\u0400-\u04ff"  # of words that white space separates; \b would part "答案是C" nowhere
_EDGE = f"(?:(?<![{_ALPHABET}])|(?![{_ALPHABET}]))"
_OPEN = re.compile(
    r"(?:[^\S\n]|[*_\"'`「『【\[({$~]|\.{2,}|\\(?:text|textbf|mathrm|mathbf|rm|bf|boxed|fbox)(?![a-z]))*+"
)
_JOINT = re.compile(r"[:=>→\n\-]")
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u201e\xab\xbb\u2013\u2014", '\'\'"""""--')  # quotes and dashes
_VERBS = ("boxed", "fbox", "choose", "select", "pick", "with")  # "answer" and "is" in one
_CLOSE = re.compile(r"[*_\"'`」』】\])}$~]*+")
_CLAUSE_END = re.compile(r"[^\S\n]*(?:$|[\n.,;:!?)\]}。、।॥۔|<-])")
_NO_END = rf"(?![{_ALPHABET}0-9_]|'[{_ALPHABET}]|-[{_ALPHABET}0-9])"
_SENTENCE_GOES_ON = re.compile(r"[^\S\n]+(?=[a-z])|, however")
_NUMBERED = re.compile(r"(?:statement|type|class|stage|grade|group|phase|figure|table|factor)s?\s+$", re.IGNORECASE)
_AFTER_A_LETTER = re.compile(
    r"\s+(?:because|since|as|and|or|nor|which|with|for|but|not|by|due|based|given|from|in|would|can|cannot|seems)\b"
)


def medical_letter(text: str, options: Mapping[str, str]) -> tuple[str, bool]:
    """The letter of `options`, and whether a letter or a stated option stood in the answer.

    The last stated answer, by its letter or its option's text; else the rules of the m1 protocol: the last letter by
    itself; else the option whose text comes last; else the option whose text is most similar to the answer, so that
    there always is one.
    """
    text = without_reasoning(text).split("## Final Response\n\n")[-1][-TAIL:]
    letters = "".join(options)
    folded = _folded(text)
    stated = _stated(folded, letters, {_folded(option).lower(): letter for letter, option in options.items()})
    if stated:
        return stated, True
    alone = [found[1] for found in _free(letters).finditer(folded) if not _is_a_word(folded, found.start(1))]
    if alone:
        return alone[-1], True
    lowered = text.lower()
    places = {letter: lowered.rfind(option.lower()) for letter, option in options.items()}
    if max(places.values()) >= 0:
        return max(places, key=lambda letter: places[letter]), False
    similarity = {letter: SequenceMatcher(None, option.lower(), lowered).ratio() for letter, option in options.items()}
    return max(options, key=lambda letter: (similarity[letter], letter)), False


def explicit_letter(text: str, letters: str) -> str | None:
    """The last stated one of `letters`; else the most explicit mention, the last of equal ones; None without any.

    The order of mentions is that of the paper's evaluation of low-resource languages: (A), then A. or A:, (A,
    : A -, A-, : A, A at the end, a bare A. A small letter counts in brackets, in a statement, and
    where it is the whole answer.
    """
    text = _folded(without_reasoning(text)[-TAIL:])
    stated = _stated(text, letters, {})
    if stated:
        return stated
    free, one = _free(letters).pattern, f"([{letters}])"
    ranked = [
        (10, rf"[(\[{{\"']\s*([{letters}{letters.lower()}])\s*[)\]}}\"']"),
        (9, rf"{free}\s*[).,\]:;!?。]"),
        (9, rf"(?<![{_ALPHABET}0-9])([{letters.lower()}])[)\]]"),
        (8, rf"[(\[{{]\s*{one}{_NO_END}"),
        (8, rf"[:=\-]\s*{one}\s*[:=\-]"),
        (7, rf"{free}\s*[:=\-]"),
        (7, rf"[:=\->]\s*{one}{_NO_END}"),
        (6, rf"{free}\s*$"),
        (6, rf"^\W*([{letters.lower()}])\W*$"),
        (4, free),
    ]
    mentions = [
        (rank, found.start(1), found[1].upper())
        for rank, pattern in ranked
        for found in re.finditer(pattern, text)
        if not _is_a_word(text, found.start(1))
    ]
    return max(mentions)[2] if mentions else None


def _stated(text: str, letters: str, options: Mapping[str, str]) -> str | None:
    """The last answer that is stated: after a word for it, else before one ("C is correct"). options: text: letter."""
    after = [answer for start in _answer_words(text) if (answer := _after_word(text, start, letters, options))]
    if after:
        return after[-1]
    before = [found[1] for found in _free(letters).finditer(text) if _is_called_right(text, found)]
    return before[-1] if before else None


def _answer_words(text: str) -> Iterator[int]:
    return (found.end() for found in _words("nouns").finditer(text))


def _after_word(text: str, place: int, letters: str, options: Mapping[str, str]) -> str | None:
    """What follows a word for "answer" that ends at `place`: a letter, behind "is", ":", "the correct option"."""
    linked = text.endswith(_VERBS, max(0, place - 10), place)
    said = False  # whether "is" or the like came last, which no article follows in capitals
    for _ in range(MAX_WORDS):
        opened, place = place, _OPEN.match(text, place).end()
        if linked and (named := _option_at(text, place, options)):
            return named
        if letter := _letter_at(text, place, letters, linked, said, bracketed=bool(text[opened:place].strip())):
            return letter
        if joint := _JOINT.match(text, place):
            place, linked, said = joint.end(), True, False
        elif link := _words("links").match(text, place):
            place, linked, said = link.end(), True, True
        elif quality := _words("qualities").match(text, place):
            place = quality.end()
        else:
            return None
    return None


def _option_at(text: str, place: int, options: Mapping[str, str]) -> str | None:
    """The option whose whole text stands at `place`, the longest of several."""
    begun = [option for option in options if option and text[place : place + len(option)].lower() == option]
    ends = [option for option in begun if not re.compile(r"\w|[.,]\d").match(text, place + len(option))]
    return options[max(ends, key=len)] if ends else None


def _letter_at(text: str, place: int, letters: str, linked: bool, said: bool, bracketed: bool) -> str | None:
    found = re.compile(f"([{letters}{letters.lower()}]){_NO_END}").match(text, place)
    if not found:
        return None
    end = _CLOSE.match(text, found.end()).end()
    ends_clause = bool(_CLAUSE_END.match(text, end))
    denied = _words("denials").match(text, _OPEN.match(text, end).end())
    if denied or ((found[1] == "I" or not said) and _is_a_word(text, place)):
        return None
    if found[1].islower():
        return found[1].upper() if ends_clause or end > found.end() or _AFTER_A_LETTER.match(text, end) else None
    opened = _OPEN.match(text, end).end()
    final = _words("links").match(text, opened) or text[end:opened].strip()
    return found[1] if linked or bracketed or ends_clause or final else None


def _is_called_right(text: str, found: re.Match[str]) -> bool:
    """Whether a letter is followed by "is the correct answer", "is correct." or the like."""
    if _NUMBERED.search(text, max(0, found.start() - 20), found.start()):
        return False
    place, said = _CLOSE.match(text, found.end()).end(), False
    for _ in range(MAX_WORDS):
        place = _OPEN.match(text, place).end()
        if link := _words("links").match(text, place):
            place, said = link.end(), True
        elif said and _words("nouns").match(text, place):
            return True
        elif said and (quality := _words("qualities").match(text, place)):
            place = quality.end()
            if _CLAUSE_END.match(text, place):
                return True
        else:
            return False
    return False


def _is_a_word(text: str, place: int) -> bool:
    """Whether the A, E or I at `place` is a word of a sentence: an article, "I think", a numeral beside II."""
    letter, end = text[place], place + 1
    if letter in "Ii" and _has_numerals(text):
        return True
    following = _SENTENCE_GOES_ON.match(text, end)
    if letter not in "AEI" or not following:
        return False
    return not (_AFTER_A_LETTER.match(text, end) or _words("links").match(text, following.end()))


@lru_cache(maxsize=4)
def _has_numerals(text: str) -> bool:
    return re.search(r"\bI{2,3}\b", text, re.IGNORECASE) is not None


@cache
def _free(letters: str) -> re.Pattern[str]:
    """A capital of `letters` that is no part of a word: not the C of C'est, d'A, vitamin-C or B-cell."""
    return re.compile(rf"(?<![{_ALPHABET}0-9_'\-])([{letters}]){_NO_END}")


@cache
def _words(kind: str) -> re.Pattern[str]:
    """Any of the words of that kind, in any language."""
    alternatives = "|".join(_folded(getattr(words, kind)) for words in LANGUAGES.values())
    return re.compile(f"{_EDGE}(?:{alternatives}){_EDGE}", re.IGNORECASE)


def _folded(text: str) -> str:
    """`text` in compatible characters (full-width letters and signs are the usual ones), Latin accents aside.

    A letter that stands alone with an accent is a word, as in Portuguese "É": it becomes a small one.
    """
    text = unicodedata.normalize("NFKD", text).translate(_PLAIN)
    text = re.sub(r"(?<![A-Za-z])([A-Z])[\u0300-\u036f]+(?![A-Za-z])", lambda found: found[1].lower(), text)
    return re.sub("[\u0300-\u036f]", "", text)
