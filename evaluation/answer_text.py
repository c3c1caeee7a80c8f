"""Finding the final answer in a response, and reading past what leaves the meaning of its LaTeX as it is."""

import re
from functools import lru_cache

MAX_ANSWER_CHARS = 1000  # a longer "answer" is not one; the longest gold of the five math sets has 242
_TAIL = 20_000  # characters at the end of a response in which statements and numbers are looked for

_BOX = re.compile(r"\\(?:(?:boxed|fbox)(?![a-zA-Z])|(?:framebox|bbox)(?![a-zA-Z])(?:\s*\[[^\]\n]{0,40}\])*)\s*")
_BETWEEN_BOXES = re.compile(  # on one line, or with a comma or an "and"; then perhaps "x ="
    r"(?=[^\n]*\Z|.*(?:[,;]|and|or))(?:[\s$,;.]|\\q?quad|\\[,; ])*"
    r"(?:(?:and|or|\\(?:text|mathrm)\{\s*(?:and|or)\s*\})(?:[\s$,;]|\\q?quad|\\[,; ])*)?"
    r"(?:[a-zA-Z](?:_\{?\d\}?)?\s*=[\s$]*)?",
    re.DOTALL,
)
_UNBRACED = re.compile(r"([-+]?(?:[0-9.\\(\[]|[A-Za-z](?![a-z]))(?:[^$\n]|(?<=\\)\$)*?)(?:(?<!\\)\$|\\\)|\\\])")
_UNBRACED_TOKEN = re.compile(r"[-+]?(?:[0-9.]|\\frac)\S*|[A-Za-z](?![a-z])")
_PLACEHOLDER = re.compile(
    r"(?:\\text\s*\{)?(?:[\s.?_…]*|\\[lc]?dots|\\q?quad|(?:the |your |final )*answer(?: here)?)\}?", re.IGNORECASE
)
_STATEMENT = re.compile(
    r"answers?(?![a-z]|\s+(?:choice|option))[^.\n:=$\\]{0,60}?(?:(?<![a-z])(?:is|are)(?![a-z])|:|=)"
    r"|(?:^|\n)[#* ]{0,9}(?:final )?answer[*_ ]{0,9}\n|答(?:案|え)(?:是|为|為|は)?|(?:^|\n)####(?=\s{0,9}[-$\\0-9])",
    re.IGNORECASE,
)
_FORMULA = (
    r"(?:\$\$(?:[^$]|(?<=\\)\$)+\$\$|\$(?:[^$\n]|(?<=\\)\$)+(?<!\\)\$(?![0-9])"
    r"|\\\((?:[^\\]|\\(?!\)))+\\\)|\\\[(?:[^\\]|\\(?!\]))+\\\])"
)
_FORMULAS = re.compile(
    rf"[^0-9$\\\n.]{{0,60}}(?::\s{{0,9}})?({_FORMULA}(?:\s{{0,3}}(?:[,;]|,?\s?(?:and|or)(?![a-z]))?\s{{0,3}}{_FORMULA})*)"
)
_SENTENCE_END = re.compile(
    r"\.(?=[\s*]|$)|。|;\s|\n|\*\*|\s\((?=[a-z]{2})|(?<=[0-9])\s\(|,?\s(?:because|since)\s|,\s(?:which|so|as|where)\s",
    re.IGNORECASE,
)
_NUMBER_IN_TEXT = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{1,40})?")

_CHARACTERS = str.maketrans(
    {chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)}  # full-width forms
    | dict.fromkeys("\u2212\u2010\u2011\u2012\u2013", "-")
    | dict.fromkeys("\u00a0\u202f\u2009", " ")
    | dict.fromkeys("€£¥", "")
    | {"\u00d7": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "±": "\\pm ", "≈": "\\approx "}
    | {"≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq ", "\u222a": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset "}
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "²": "^2", "³": "^3"}
)
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$|\$|(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (
            r"\\(?:bf|it|rm|sf|tt|bfseries|displaystyle|textstyle|scriptstyle|large|Large|LARGE|huge|Huge|small)(?![a-zA-Z])",
            "",
        ),
        (r"\\(?:color|textcolor|colorbox)\s*\{\w*\}", ""),
        (r"(?<!\\)\\!\s*|\\(?:limits|strut|mathstrut)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|enspace|thinspace)(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}", " "),
        (
            r"\\(?:mathbf|boldsymbol|bm|pmb|mathit|mathsf|mathtt|ensuremath|boxed|fbox|underline)\s*\{([^{}\\]*)\}",
            r"\1",
        ),
        (r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|emph|mbox|hbox|operatorname\*?)\s*\{", r"\\text{"),
        (r"\\(?:text|mathrm)\s*\{((?:[-+().,/0-9\s]|\\(?:text|mathrm)\s*\{[^{}]*\})*)\}", r"\1"),
        (r"\\(?:text|mathrm)\s*\{([-+().,/0-9\s]*)\}", r"\1"),
        (r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|([0-9.]+|[a-zA-Z]))", r"\\sqrt{\1\2\3}"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\{\s*,\s*\}", ","),
        (r"\\(ge|le)(?:q?slant|qq?)?(?![a-zA-Z])\s*", r"\\\1q "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\.\.\.+|…", r"\\ldots"),
        (r"\\simeq|\\thickapprox|~=", r"\\approx"),
        (r"\\%|\\(?:text|mathrm)\s*\{\s*per ?cent(?:age)?\s*\}|(?<![a-zA-Z])per ?cent(?:age)?(?![a-zA-Z])", "%"),
        (r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])|°)", "°"),
        (r"\s*\\(?:text|mathrm)\s*\{\s*deg(?:ree)?s?\.?\s*\}|\sdeg(?:ree)?s?(?![a-zA-Z])\.?", "°"),
        (r"\\(?:text|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s(?:and|or)(?=\s)", ","),
        (r"\s+", " "),
    )
)
_BARE = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:/[0-9]+)?|[a-zA-Z]+")
_THOUSANDS = re.compile(r"(?<![0-9])(?<![0-9],)[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_LEADING = re.compile(
    r"\s*(?:\\text\s*\{[^{}]*(?:is|are|:|=)\s*\}(?=\s*\S)|=|:|\\(?:therefore|implies|Rightarrow|approx|sim)(?![a-zA-Z]))\s*"
)
_WRAPPED = re.compile(r"(?:\\(?:boxed|fbox|framebox|mathbf|boldsymbol|bm|text|mathrm|underline))?\s*(?=\{)")
_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_WORDS_ONLY = re.compile(r"\\(?:text|mathrm)\s*\{\s*(?![-+.]?[0-9])[^{}]*\}")
_NAMED = re.compile(r"\s*(?:\\?[^\s=\\]{1,2}|[a-zA-Z]_\{?\w\}?)\s*=([^=]+)", re.DOTALL)
_CHOICE = re.compile(r"\(?([A-J])\)?|\\(?:text|mathrm)\s*\{\s*\(?[A-J]\)?\s*\}")
_LABELLED = re.compile(r"(?:\\(?:text|mathrm)\s*\{)?\s*(\([A-J]\)|[A-J](?=[.:]|\)))[.:)]?\s*\}?\s*(\S.*)", re.DOTALL)
_PLAIN_LIST = re.compile(r"(?!.*\\(?:pm|mp|[lc]?dots|left|in|begin|c[au]p))[^()\[\]|=<>]*")


def extract_answer(response: str) -> str:
    """The final answer that `response` states; empty when there is none, or when it is longer than MAX_ANSWER_CHARS.

    That is the last \\boxed{...} that holds something, with the boxes that it is listed with ("\\boxed{1} and
    \\boxed{2}"); else what follows the last "answer is", "Answer:" or the like; else a response of one line or one
    formula itself; else the last number.
    """
    boxed = _last_boxes(response)
    if boxed is not None:
        return _bounded(boxed)
    stated = _last_statement(response[-_TAIL:])
    if stated is not None:
        return _bounded(stated)
    whole = response.strip()
    if len(whole) <= MAX_ANSWER_CHARS and ("\n" not in whole or re.fullmatch(_FORMULA, whole)):
        return whole
    numbers = _NUMBER_IN_TEXT.findall(response[-_TAIL:])
    return numbers[-1] if numbers else ""


def reference_answer(gold: str) -> str:
    """The last boxed answer of a solution, what GSM8K's end with after ####, else `gold` itself."""
    boxed = _last_boxes(gold)
    return _bounded(gold.rpartition("\n####")[2] if boxed is None else boxed)


def _bounded(answer: str) -> str:
    return answer.strip() if len(answer) <= MAX_ANSWER_CHARS else ""


def _last_boxes(text: str) -> str | None:
    """Content of the last box, with those listed before it; None when none holds anything."""
    boxes = []
    for match in list(_BOX.finditer(text))[-20:]:  # one that was cut at the token limit falls back to those before it
        content = _box_content(text, match.end())
        if content is not None and not _PLACEHOLDER.fullmatch(content[0].strip()):
            boxes.append((match.start(), content[1], content[0].strip()))
    if not boxes:
        return None
    start, end, content = boxes.pop()
    while boxes and boxes[-1][1] >= end:
        start, end, content = boxes.pop()
    contents = [content]
    while boxes and boxes[-1][1] <= start and _BETWEEN_BOXES.fullmatch(text[max(boxes[-1][1], start - 100) : start]):
        start, _, content = boxes.pop()
        if content not in contents:
            contents.insert(0, content)
    return ", ".join(contents)


def _box_content(text: str, start: int) -> tuple[str, int] | None:
    """What a box that opens at `start` holds, and where it ends; None where its braces do not balance soon."""
    if text.startswith("{", start):
        end = _closing(text, start)
        return None if end is None else (text[start + 1 : end], end + 1)
    match = _UNBRACED.match(text, start, start + MAX_ANSWER_CHARS) or _UNBRACED_TOKEN.match(text, start)
    if match is None:
        return None
    content = match[1] if match.re is _UNBRACED else match[0].rstrip(".,;:!*")
    return content, start + len(content)


def _closing(text: str, start: int) -> int | None:
    """Position of the brace that closes the one at `start`, if it is within MAX_ANSWER_CHARS."""
    depth = 0
    for position in range(start, min(len(text), start + MAX_ANSWER_CHARS + 2)):
        if text[position] not in "{}" or (position and text[position - 1] == "\\"):
            continue
        depth += 1 if text[position] == "{" else -1
        if depth == 0:
            return position
    return None


def _last_statement(text: str) -> str | None:
    """What the last statement of an answer says; one of many words ("is given above") only where no other says more."""
    vague = None
    for match in reversed(list(_STATEMENT.finditer(text))[-20:]):
        stated = _stated(text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS])
        if "\\boxed" in stated or not any(character.isalnum() for character in stated):
            continue
        if len(stated.split()) == 1 or any(character.isdigit() or character in "\\$" for character in stated):
            return stated
        vague = vague or stated
    return vague


def _stated(tail: str) -> str:
    """The formulas that `tail` begins with, or its first sentence."""
    tail = re.sub(r"^[:*\s]{0,9}\n\s{0,9}[-*]\s", "", tail).lstrip(" \t\r\n*_:\uff1a#>`")
    formulas = _FORMULAS.match(tail)
    if formulas is None:
        end = _SENTENCE_END.search(tail)
        return tail[: end.start() if end else len(tail)].strip().rstrip("*_`")
    if re.fullmatch(_FORMULA, formulas[1]):
        return re.sub(r"^(?:\$\$?|\\[(\[])|(?:\$\$?|\\[)\]])$", "", formulas[1]).strip()
    return formulas[1]


@lru_cache(maxsize=1 << 16)
def clean(answer: str) -> str:
    """LaTeX in one spelling: no delimiters, sizes, fonts or final period; "%", "°", and "," for "and" and for "{,}"."""
    if _BARE.fullmatch(answer):
        return answer
    text = answer.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if ", " in text:  # between the items of a list, so a comma without a space is in a number: 2,000, 3,000
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    before = None
    while text != before:
        before = text
        text = text.strip().removeprefix("**").removesuffix("**").rstrip(".,;:。 ").removesuffix("\\")
        leading = _LEADING.match(text)
        text = text[leading.end() :] if leading else text
        wrapper = _WRAPPED.match(text)
        if wrapper and _closing(text, wrapper.end()) == len(text) - 1 and not _WORDS_ONLY.fullmatch(text):
            text = text[wrapper.end() + 1 : -1]
    return text


@lru_cache(maxsize=1 << 16)
def normalize(answer: str) -> str:
    """`clean`, without text wrappers and without any space but those between two digits, which mean something."""
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", _TEXT.sub(r"\1", clean(answer)))
    return text.casefold() if text.isalpha() else text


def readings(answer: str) -> list[str]:
    """`clean`, cut at \\approx: "1/3 \\approx 0.33" says both. Empty for an empty answer."""
    return [side for side in map(clean, clean(answer).split("\\approx")[:3]) if side]


def without_label(answer: str, other: str) -> str:
    """Of "(C) 42": the letter where `other` is one, else 42."""
    if _CHOICE.fullmatch(other) and not _CHOICE.fullmatch(answer):
        match = _LABELLED.fullmatch(answer)
        return match[1] if match else answer
    match = _LABELLED.fullmatch(answer)
    return match[2] if match and not _LABELLED.fullmatch(other) and not _CHOICE.fullmatch(other) else answer


def items(answer: str) -> list[str]:
    """Items of a list of single things; empty where `answer` has brackets, relations, dots or \\pm."""
    text = clean(answer)
    return text.split(",") if _PLAIN_LIST.fullmatch(text) else []


def bracketed(answer: str) -> str:
    """Which brackets, "(" or "{", an answer without any others stands in; else empty."""
    match = re.fullmatch(r"(?:(\()[^(){}]*\)|\\(\{)[^(){}]*\\\})", answer)
    return (match[1] or match[2]) if match else ""


def without_name(answer: str, other: str) -> str:
    """The right side of "x = ...", where `other` is no equation; the name has at most two characters, in the math."""
    match = _NAMED.fullmatch(answer)
    return match[1].strip() if match and "=" not in other else answer


def is_word(answer: str) -> bool:
    """Letters only, and meant as text: four or more, or in a LaTeX text wrapper."""
    text = normalize(answer)
    return text.isalpha() and (len(text) >= 4 or _TEXT.search(clean(answer)) is not None)
