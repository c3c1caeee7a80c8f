"""The prompts of the paper's domains: one text for training rows and test items, so that the two cannot drift apart.

A prompt is one user turn. What stands around it is the model family's: the chat template of the tokenizer (or the
recipe's `data.chat_template`, which the exported tokenizer carries), applied once, in training and in evaluation alike;
without a template the prompt is the plain text. Texts: the reference evaluation of arXiv 2510.00526, EvalPlus 0.3.1 for
code.
"""

from __future__ import annotations

from collections.abc import Mapping

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
FIGFONT = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it represents"
    " and output only that without any explanations or additional text."
)
CODE = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"


def boxed(question: str) -> str:
    """Mathematics and medicine: the question, then where the answer goes, as in the reference's `qwen-boxed`."""
    return f"{question}\n{BOXED}"


def figfont(question: str) -> str:
    """The instruction is a paragraph before the puzzle; the reference has it in a system turn."""
    return f"{FIGFONT}\n\n{question}"


def with_options(question: str, options: Mapping[str, str]) -> str:
    """A question and its options, letter by letter, as in the m1 protocol's prompts."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def openbookqa(question: str, options: Mapping[str, str]) -> str:
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return f"Please complete the following multiple choice question.\nQuestion: {question}\nOptions:\n{listed}"


def code(problem: str) -> str:
    """Test items only; training rows have the data set's own problem text."""
    return f"{CODE}\n```\n{problem.strip()}\n```\n"
