"""Letters of multiple-choice answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.choices import explicit_letter, medical_letter

OPTIONS = {"A": "aspirin", "B": "beta blocker", "C": "vitamin C", "D": "none of these"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is not A. The answer is B.", "B"),
        ("The answer is A, no, the answer is D", "D"),
        ("So \\boxed{C}", "C"),
        ("**B**", "B"),
        ("(A), no: (C)", "C"),
        ("A patient has scurvy, hence (C)", "C"),
        ("A patient needs B", "B"),
        ("## Final Response\n\nD", "D"),
        ("A or B?\n## Final Response\n\nThe right one: A", "A"),
    ],
)
def test_medical_letters(text, letter):
    assert medical_letter(text, OPTIONS) == (letter, True)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("first aspirin, then a beta blocker", "B"),  # the option named last
        ("beta blockers, later aspirin", "A"),
    ],
)
def test_medical_options_named_in_words(text, letter):
    assert medical_letter(text, OPTIONS) == (letter, False)


def test_the_m1_protocol_always_settles_on_a_letter():
    assert medical_letter("asprin", OPTIONS) == ("A", False)  # misspelt: the most similar option
    assert medical_letter("", OPTIONS)[0] in OPTIONS


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("(B) because A and C are wrong", "B"),
        ("Jibu ni (D).", "D"),
        ("A B C", "C"),
        ("answer: b", "B"),
        ("A. first B: second", "B"),
        ("no letter of these: XYZ", None),
        ("", None),
        ("ABBA", None),
        ("उत्तर आहे (E)", "E"),
    ],
)
def test_explicit_letters(text, letter):
    assert explicit_letter(text, "ABCDEFGHIJ") == letter


# What MMLU-ProX asks an answer to end with (lm_eval.tasks.mmlu_prox.lang_libs), in each of its languages.
PHRASES = {
    "en": "the answer is ({})", "ja": "答えは ({}) です", "zh": "答案是 ({})", "ko": "답은 ({})입니다",
    "fr": "La réponse est ({})", "de": "Die Antwort ist ({})", "es": "La respuesta es ({})",
    "pt": "A resposta é ({})", "zu": "Impendulo ithi ({})", "sw": "Jibu ni ({})", "wo": "Tontu bi mooy ({})",
    "yo": "Ìdáhùn náà ni ({})", "th": "คำตอบคือ ({})", "ar": "الإجابة هي ({})", "hi": "उत्तर है ({})",
    "bn": "উত্তর হল ({})", "mr": "उत्तर आहे ({})", "ne": "उत्तर ({}) हो।", "af": "Die antwoord is ({})",
    "te": "సమాధానం ({})", "ur": "جواب ({}) ہے", "ru": "Ответ - ({})", "id": "Jawabannya adalah ({})",
    "vi": "Câu trả lời là ({})", "cs": "Odpověď je ({})", "hu": "A válasz ({})", "it": "La risposta è ({})",
    "sr": "Odgovor je ({})", "uk": "Відповідь: ({})",
}  # fmt: skip


@pytest.mark.parametrize("language", PHRASES)
@pytest.mark.parametrize("letter", ["A", "D", "E", "I"])
def test_the_stated_answer_wins_in_every_language(language, letter):
    bracketed, bare = PHRASES[language], PHRASES[language].replace("({})", "{}")
    for stated in (bracketed, bare, f"**{bracketed}**", bracketed.replace("{}", "**{}**"), f"{bare}."):
        said = stated.format(letter)
        assert explicit_letter(f"(B) is a distractor. {said}\n\n(C), (F): no.", LETTERS) == letter
        assert explicit_letter(f"{bracketed.format('J')}? No: {said} [H]", LETTERS) == letter  # the last one stated


LETTERS = "ABCDEFGHIJ"
STATED = [
    ("Final answer: C\n\n(A) was close.", "C"),
    ("### Answer\n\nC\n\n(A) was close.", "C"),
    ("Answer:C (A) was close", "C"),
    ("The correct option is (C), not (A).", "C"),
    ("so $\\boxed{\\text{C}}$, as (A) has the wrong sign", "C"),
    ("C is the correct answer, whereas (A) is not.", "C"),
    ("(C) is correct. (A) is wrong.", "C"),
    ("I choose C over (A).", "C"),
    ("The answer is, therefore, C. (A) is out.", "C"),
    ("The answer is not (A). The answer is (C), see (B).", "C"),
    ("Answer A is wrong. [C]", "C"),
    ("The answer is (C). The answer would be (A) in a vacuum.", "C"),
    ("正解はCです。(A)は誤りです。", "C"),
    ("答案：C。而(A)是错的。", "C"),
    ("故选C。(A)错误", "C"),
    ("정답은 C입니다. (A)는 틀렸습니다.", "C"),
    ("La bonne réponse est donc C. L'option (A) est fausse.", "C"),
    ("Die richtige Antwort lautet C, weil (A) falsch ist.", "C"),
    ("A resposta correta é a alternativa C. (A) está errada.", "C"),
    ("Правильный ответ: C. Вариант (A) неверен.", "C"),
    ("Jibu sahihi ni C. (A) si sahihi.", "C"),
    ("Idahun naa ni C. (A) ko tọ.", "C"),  # without its accents, as it is often typed
    ("सही उत्तर विकल्प C है। (A) गलत है।", "C"),
    ("योग्य उत्तर C आहे. (A) चुकीचे आहे.", "C"),
    ("సరైన సమాధానం C. (A) తప్పు.", "C"),
    ("Ａｎｓｗｅｒ：Ｃ（Ａ）", "C"),
]


@pytest.mark.parametrize(("text", "letter"), STATED)
def test_a_stated_answer_wins_over_letters_that_are_discussed(text, letter):
    assert explicit_letter(text, LETTERS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A patient has a fever.", None),
        ("I believe that a virus causes it.", None),
        ("I think that it is (C).", "C"),
        ("C, I am sure.", "C"),
        ("A helyes válasz C.", "C"),  # the Hungarian article
        ("E a resposta é B", "B"),  # the Portuguese "and"
        ("C'est une question difficile: D.", "D"),
        ("B-cells make vitamin-C. So E.", "E"),
        ("Answer: A patient needs air, so the answer is D", "D"),
        ("(i) holds and (ii) does not, so (B)", "B"),
        ("The answer is a.", "A"),
        ("The answer is A because the sign is right, see (B).", "A"),
        ("The answer is I. (B) is not.", "I"),
        ("A", "A"),
        ("I", "I"),
        ("a", "A"),
        ("(a)", "A"),
    ],
)
def test_articles_and_pronouns_are_no_letters(text, letter):
    assert explicit_letter(text, LETTERS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is a beta blocker, and (A) is not.", "B"),
        ("\\boxed{beta blocker}, since (A) is too weak", "B"),
        ("\\boxed{C. vitamin C}", "C"),
        ("The answer is Aspirin, (B) is not.", "A"),
        ("Answer: B\n\nA is for others, vitamin C for nobody.", "B"),
        ("I would say none of these, I think.", "D"),
    ],
)
def test_medical_answers_may_state_an_option_in_words(text, letter):
    assert medical_letter(text, OPTIONS)[0] == letter


def test_a_number_is_the_option_only_as_a_whole():
    options = {"A": "2", "B": "2.5", "C": "5 mg", "D": "5"}
    assert medical_letter("The answer is 2.5, not 2.", options)[0] == "B"
    assert medical_letter("The answer is 5 mg.", options)[0] == "C"
    assert medical_letter("The answer is 2.", options)[0] == "A"


def test_the_ninth_option_is_no_pronoun():
    options = {letter: f"drug number {number}" for number, letter in enumerate(LETTERS)}
    assert medical_letter("C. I am sure.", options) == ("C", True)
    assert medical_letter("It is I.", options) == ("I", True)


def test_letters_beyond_the_options_do_not_count():
    assert explicit_letter("(F)", "ABCD") is None


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_has_a_verdict(text):
    assert medical_letter(text, OPTIONS)[0] in "ABCDEFGHIJKLMN"
    assert explicit_letter(text, "ABCD") in (*"ABCD", None)


@pytest.mark.parametrize("text", ["A " * 50_000, "(" * 100_000, " " * 100_000, "A" + " " * 100_000, "x" * 100_000])
def test_long_answers_get_a_verdict(text):
    """Of their last 20,000 characters, in linear patterns: a quadratic one would not end here."""
    assert medical_letter(text, OPTIONS)[0] in OPTIONS
    assert explicit_letter(text, "ABCDEFGHIJ") in (None, "A")
