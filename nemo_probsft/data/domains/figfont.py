"""The paper's figlet puzzles, made by reasoning_gym: equal on every machine; training and test differ by index."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType

SEED = 42  # puzzle i is drawn from Random(SEED + i), so another seed would turn test puzzles into training puzzles
TRAIN = range(40_000)
TEST = range(40_000, 45_000)
PARAMETERS = {"min_word_len": 2, "max_word_len": 5, "space_letters": True}


def puzzles(indices: Iterable[int]) -> Iterator[dict[str, str]]:
    """`question` and `answer` of each puzzle (about 1 ms). Raises ValueError where reasoning_gym is not installed."""
    puzzle_set = _puzzle_set()
    for index in indices:
        puzzle = puzzle_set[index]
        yield {"question": puzzle["question"], "answer": puzzle["answer"]}


def _puzzle_set():
    # A solver of logic puzzles that `import reasoning_gym` imports and figlet puzzles do not use. It has no wheel, so
    # installing it takes a C compiler, which is more than set-up asks for.
    sys.modules.setdefault("pycosat", ModuleType("pycosat"))
    try:
        import reasoning_gym
        from reasoning_gym.cognition import figlet_fonts
    except ImportError as error:
        raise ValueError(f"figfont needs reasoning_gym ({error}): pip install reasoning_gym==0.1.25") from error
    # It draws from its fonts in the order in which the file system lists them, fonts of other packages included.
    figlet_fonts.OK_FONTS[:] = sorted(_packaged_fonts().intersection(figlet_fonts.OK_FONTS))
    return reasoning_gym.create_dataset("figlet_font", seed=SEED, size=TEST.stop, **PARAMETERS)


def _packaged_fonts() -> set[str]:
    from importlib.resources import files

    return {font.name.split(".")[0] for font in files("pyfiglet.fonts").iterdir()}
