"""What a response says outside of its reasoning. Every grader reads this and nothing else."""

import re

_TAG = re.compile(r"<(?P<close>/?)think(?:ing)?>", re.IGNORECASE)
_BLANK = re.compile(r"\s*\n|[^\S\n]*")  # up to the last line feed of leading white space, else leading blanks


def without_reasoning(response: str) -> str:
    """`response` without what stands between <think> and </think> (<thinking> is the same).

    A </think> that nothing opened ends reasoning that the prompt opened: what is before it goes. Reasoning that does
    not end is no answer: the result is empty. Blank lines after a </think> go, too; the indentation of code stays. A
    response without the tags stays as it is, to the character.
    """
    kept: list[str] = []
    inside, start = False, 0
    for tag in _TAG.finditer(response):
        if not tag["close"]:
            if not inside:
                kept.append(response[start : tag.start()])
            inside = True
        else:
            if not inside:
                kept.clear()
            inside = False
        blank = _BLANK.match(response, tag.end())
        start = blank.end() if blank else tag.end()
    return "" if inside else "".join(kept) + response[start:]


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends inside of reasoning, as templates do that write the <think> themselves."""
    tags = list(_TAG.finditer(prompt))
    return bool(tags) and not tags[-1]["close"] and not prompt[tags[-1].end() :].strip()
