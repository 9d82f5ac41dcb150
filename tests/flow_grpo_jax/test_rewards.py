"""Checkers against tables of decided cases, and the game of 24 against a second evaluator."""

import random
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo_jax import rewards
from flow_grpo_jax.answers import game24, qa
from flow_grpo_jax.answers.choice import option_index
from flow_grpo_jax.answers.numbers import parse_number


def reward(kind, gold, answer, **fields):
    question = {"id": "q", "question": "?", "kind": kind, "answer": gold, **fields}
    return rewards.score(question, answer).value


# ---------------------------------------------------------------------------------------- qa

QA = [
    ("Prussian", "prussian", 1),
    ("Prussian", " The  Prussian. ", 1),
    ("Prussian", "Prussian officer", 0),
    ("Prussian", "", 0),
    ("Prussian", "the", 0),
    (["Prussian", "Prussia"], "Prussia", 1),
    (["Prussian", "Prussia"], "Prussian Prussia", 0),
    ("U2", "U-2", 1),  # SQuAD drops punctuation without leaving a space
    ("323–272 BC", "323-272 BC", 1),
    ("Evey's mother", "Evey’s mother", 1),
    ("Gülçiçek Hatun", "Gu\u0308lc\u0327ic\u0327ek Hatun", 1),  # composed and decomposed letters
    ("A", "a", 1),  # an article, and all of the gold
    ("A", "the", 0),
    ("A", "", 0),
    ("138,535", "138535", 1),
    ("138,535", "138,535.0", 1),
    ("10.8", "108", 0),
    ("3:2", "32", 0),
    ("7/4/1776", "741776", 0),
    ("2-1", "21", 0),
    ("2–1", "2-1", 1),
    ("-5 degrees", "5 degrees", 0),
    ("C#", "C++", 0),
    ("C++", "c++.", 1),
    ("10.8 km", "108 km", 0),
    ("-1", "1", 0),
    ("-1", "−1", 1),
    ("$72,641", "72641", 1),
    ("50%", "50", 1),
    ("1959", "1959.", 1),
    ("1959", "in 1959", 0),
    ("3", "three", 0),
    ("yes", "Yes.", 1),
    ("yes", "Yes, both of them are American.", 1),
    ("yes", "yes and no", 0),
    ("yes", "Yes, no", 0),
    ("yes", "yesterday", 0),
    ("no", "No one knows", 0),
    ("no", "no", 1),
    ("no", "No - they differ.", 1),
    ("no", "No. 5", 0),
    ("1,5", "15", 0),
    ("1,500 km", "1500 km", 1),
    ("$5 million", "$.5 million", 0),
    ("C#", "C++", 0),
    ("C++", "c++", 1),
    ("blood type A+", "blood type A", 0),
    ("2-1", "21", 0),
    ("2-1", "2–1", 1),
    ("3:2", "32", 0),
    ("7/4/1976", "741976", 0),
    ("-5 degrees", "5 degrees", 0),
    ("-5 degrees", "−5 degrees", 1),
    ("Catch-22", "Catch 22", 0),
    ("Paris", r"\boxed{Paris}", 1),
    ("Paris", r"$\boxed{\text{Paris}}$", 1),
    ("Paris", r"It is \boxed{Paris}", 0),
    ("Paris", "<answer>Paris</answer>", 1),
    ("Paris", "Rome? <answer>Rome</answer> Rather <answer>Paris</answer>", 1),
    ("Paris", "<answer>Paris</answer> Rather <answer>Rome</answer>", 0),
    ("Paris", "The answer is Paris", 0),  # qa takes the whole text
]


@pytest.mark.parametrize(("gold", "answer", "value"), QA)
def test_qa(gold, answer, value):
    assert reward("qa", gold, answer) == value


@pytest.mark.parametrize(
    ("prediction", "gold", "value"),
    [
        ("the cat sat", "cat sat", 1.0),
        ("black cat sat", "cat sat down", 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)),
        ("Joint Chiefs", "Joint Chiefs of Staff", 2 * 1 * 0.5 / 1.5),
        ("cat cat", "cat", 2 * 0.5 * 1 / 1.5),
        ("in 1959", "1959", 2 * 0.5 * 1 / 1.5),
        ("1", "-1", 0.0),
        ("yes it is", "yes", 0.0),
        ("no", "no one", 0.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
    ],
)
def test_f1(prediction, gold, value):
    assert qa.f1(prediction, gold) == pytest.approx(value)


def test_f1_as_the_reward():
    question = {"id": "q", "kind": "qa", "answer": ["Rome", "Joint Chiefs of Staff"]}
    assert rewards.score(question, "Joint Chiefs", metric="f1") == rewards.Reward(2 / 3, "qa/f1")
    with pytest.raises(ValueError, match="Unknown metric 'bleu'"):
        rewards.score(question, "Rome", metric="bleu")


# -------------------------------------------------------------------------------------- math

MATH = [
    ("33", "33", 1),
    ("33", "34", 0),
    ("33", "", 0),
    ("33", "33.0", 1),
    ("33", "033", 1),
    ("-1", "−1", 1),
    ("-1", "1", 0),
    ("1000", "1,000", 1),
    ("1000", "1{,}000", 1),
    ("1000", r"1\,000", 1),
    ("11111100", r"11,\! 111,\! 100", 1),
    ("12", "1,2", 0),
    ("12", "1 2", 0),
    ("0.5", "1/2", 1),
    ("0.5", ".5", 1),
    ("1/3", "0.333333", 0),
    (r"\frac{3}{4}", "6/8", 1),
    (r"\dfrac{3}{4}", "0.75", 1),
    (r"\frac34", r"\tfrac{3}{4}", 1),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", 1),
    (r"-\frac{1}{2}", r"\frac{1}{2}", 0),
    ("7/2", "3 1/2", 1),
    ("7/2", r"3\frac{1}{2}", 1),
    ("-7/2", r"-3\frac12", 1),
    ("31/2", r"3\frac{1}{2}", 0),
    ("1/0", "5", 0),
    ("5", "5/0", 0),
    (r"50\%", "50%", 1),
    ("50%", "0.5", 1),
    ("50%", "50", 1),
    ("50", "50 percent", 1),
    ("50%", "5000%", 0),
    ("0.5", "50%", 1),
    ("18.90", r"\$18.90", 1),
    ("5", "$5$", 1),
    ("5", r"\(5\)", 1),
    ("5", r"\boxed{5}", 1),
    ("5", r"\boxed{\boxed{5}}", 1),
    ("1/2", r"so it is \boxed{\frac{1}{2}}, as wanted, and not 7", 1),
    ("5", r"\boxed{5} or \boxed{7}", 0),
    ("7", r"\boxed{5} or \boxed{7}", 0),  # a list, not an answer
    ("7", r"first \boxed{5}; rather, \boxed{7}", 1),  # the last one counts
    ("5", r"\boxed{5", 0),
    ("5", r"\boxed{5, 7}", 0),
    ("5", "x = 5", 1),
    ("5", "$x_1 = 5$", 1),
    ("23", "p + q = 7 + 16 = 23", 1),
    ("5", "x = 5, y = 7", 0),
    ("7", "x = 5, y = 7", 0),
    ("5", "x >= 5", 0),
    ("5", r"x ≥ 5", 0),
    ("5", r"x \approx 5", 0),
    ("5", "x != 5", 0),
    ("5", "x == 5", 0),
    ("5", "not 5", 0),
    ("27", "27 miles", 1),
    ("27", r"27\text{ miles}", 1),
    ("27 miles", "27", 1),
    ("27 miles", "27 mile", 1),
    ("27 miles", "27 kilometers", 0),
    ("5", "5cm", 1),
    ("5", "5 cm^2", 1),
    ("5", r"5 \text{ cm}^2", 1),
    ("5 km/h", "5km/h", 1),
    ("30", r"30^\circ", 1),
    ("30", "30°", 1),
    ("30°", "30 degrees", 1),
    ("2000000", "2 million", 1),
    ("2", "2 million", 0),
    ("2500", r"2.5 \times 10^{3}", 1),
    ("2500", "2.5e3", 1),
    ("5", "5x", 0),
    ("5", "5 i", 0),
    ("5", r"5\pi", 0),
    ("5", "5 pi", 0),
    ("5", "5!", 0),
    ("5", "5 squared", 0),
    ("5", "5 halves", 0),
    ("5", "5 or more", 0),
    ("5", "5 or 7", 0),
    ("391", "17*23", 0),  # the sum is not the answer to itself
    ("8", "2^3", 0),
    ("42", "The answer is 42.", 1),
    ("42", "The final answer is: **42**", 1),
    ("42", "### Answer: 42", 1),
    ("42", "**42**.", 1),
    ("42", "Answer:\n42", 1),
    ("3.5", "the answer is 3.5. Checked twice.", 1),
    ("42", "The answer is 41. No, the answer is 42", 1),
    ("41", "The answer is 41. No, the answer is 42", 0),
    ("42", "The answer is 42 or 43", 0),
    ("42", "I computed 6 times 7, which gives 42", 0),  # no explicit final form
    ("42", "40. 41. 42", 0),
    ("40", "40. 41. 42", 0),
    (["5", "five"], "five", 1),
    ("Even", r"\text{even}", 1),
    ("(1, 2)", "(1,2)", 1),
    ("(1,2)", "(1,3)", 0),
    (r"\infty", "∞", 1),
    ("x^{2}", "x^2", 1),
    (r"2\pi", "2π", 1),
    (r"y = \sqrt{2}", r"\sqrt{2}", 1),
    (r"\sqrt{2}", "1.41421356", 0),
    ("$$", ".", 0),
]


@pytest.mark.parametrize(("gold", "answer", "value"), MATH)
def test_math(gold, answer, value):
    assert reward("math", gold, answer) == value


@settings(database=None, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_every_spelling_of_a_fraction_is_the_fraction(top, bottom):
    value = Fraction(top, bottom)
    sign, size = "-" if top < 0 else "", abs(top)
    spellings = [
        f"{top}/{bottom}",
        f"{top:,} / {bottom:,}",
        rf"$\frac{{{top}}}{{{bottom}}}$",
        rf"x = {sign}\dfrac{{{size}}}{{{bottom}}}",
        f"{sign}{size // bottom} {size % bottom}/{bottom}",
    ]
    for spelling in spellings:
        assert parse_number(spelling).number == value, spelling


# ---------------------------------------------------------------------------------- gameof24

GAME = [
    ([1, 1, 1, 8], "(1+1+1)*8", 1),
    ([1, 1, 1, 8], "(1+1+1)×8", 1),
    ([1, 1, 1, 8], "$(1+1+1) \\times 8 = 24$", 1),
    ([1, 1, 1, 8], "(1 + 1 + 1) · 8 = 24.", 1),
    ([1, 1, 1, 8], "[1+1+1] x 8", 1),
    ([1, 1, 1, 8], "8(1+1+1)", 0),  # a multiplication needs its sign
    ([1, 1, 1, 8], "(1+1+1)*8 = 25", 0),
    ([1, 1, 1, 8], "24 = (1+1+1)*8", 1),
    ([1, 1, 1, 8], "(1+1+1)*8 == 24.0", 1),
    ([1, 1, 1, 8], "24 = (1+1+1)*8 = 24", 0),
    ([1, 1, 1, 8], "25 = (1+1+1)*8", 0),
    ([1, 1, 1, 8], "(1+1+1)*8 = 24.0", 1),
    ([1, 1, 1, 8], "(1+1+1)*8 = 24 = 24", 0),
    ([1, 1, 1, 8], r"\boxed{(1+1+1)*8}", 1),
    ([1, 1, 1, 8], "The answer is (1+1+1)*8.", 1),
    ([1, 1, 1, 8], "<answer>(1+1+1)*8</answer>", 1),
    ([1, 1, 1, 8], "Take (1+1+1)*8", 0),
    ([1, 1, 1, 8], "8+8+8", 0),
    ([1, 1, 1, 8], "(1+1+1)*8*1", 0),
    ([1, 1, 1, 8], "(1+1)*8", 0),
    ([1, 1, 1, 8], "24", 0),
    ([1, 1, 1, 8], "", 0),
    ([1, 1, 2, 2], "(12+12)", 0),  # joined digits
    ([1, 2, 12, 1], "(1*2*12)*1", 1),
    ([12, 2, 1, 1], "1 2*2*1", 0),
    ([1, 2, 3, 4], "-(1*2*3*4)*-1", 0),
    ([1, 2, 3, 4], "-1+1+2*3*4", 0),
    ([1, 5, 5, 6], "-1+5*5*1", 0),
    ([1, 5, 5, 5], "-1+5*5", 0),
    ([1, 1, 5, 5], "-1+5*5*1", 0),  # worth 24, but with a sign before an operand
    ([1, 1, 5, 5], "5*5-1*1", 1),
    ([1, 1, 5, 5], "5×5−1×1", 1),
    ([3, 3, 8, 8], "8/(3-8/3)", 1),
    ([3, 3, 8, 8], r"\frac{8}{3-\frac{8}{3}}", 1),  # nested
    ([3, 3, 8, 8], r"\dfrac{8}{3-\left(8 \div 3\right)} = 24", 1),
    ([3, 3, 8, 8], "8÷(3−8÷3)", 1),
    ([3, 3, 8, 8], "8÷（3−8÷3）", 1),
    ([3, 3, 8, 8], "8//(3-8/3)", 0),
    ([1, 2, 3, 4], "4/(1-2/2)", 0),
    ([4, 1, 1, 4], "4/(1-1)*4", 0),  # division by zero
    ([2, 3, 3, 1], "2**3*3*1", 0),
    ([2, 3, 3, 1], "2^3*3*1", 0),
    ([1, 1, 4, 6], "6*4*1*True", 0),
    ([1, 1, 4, 6], "6*4*1*0x1", 0),
    ([1, 1, 4, 6], "6*4*1*1.0", 0),
    ([1, 1, 4, 6], "6*4*1*01", 0),
    ([1, 1, 4, 6], "6*4*1_1", 0),
    ([1, 1, 4, 6], "6*4*1*１", 0),
    ([1, 1, 4, 6], "6*4*1*1 # ok", 0),
    ([1, 1, 4, 6], "6*4*1*1; 1", 0),
    ([1, 1, 4, 6], "6*4*1*1 == 24", 1),
    ([1, 1, 4, 6], "24 == 24", 0),
    ([1, 1, 4, 6], "(6*4*1*1", 0),
    ([1, 1, 4, 6], "6*4*(1,1)", 0),
    ([1, 1, 4, 6], "__import__('os').getpid()", 0),
]


@pytest.mark.parametrize(("numbers", "answer", "value"), GAME)
def test_gameof24(numbers, answer, value):
    assert reward("gameof24", "any", answer, numbers=numbers) == value
    text = f"Using the numbers {numbers}, make 24. Example: for [1, 2, 3, 4], (1+2+3)×4."
    assert reward("gameof24", "any", answer, question=text) == value


def test_gameof24_needs_its_numbers():
    assert game24.game_numbers({"question": "3 3 8 8"}) == (3, 3, 8, 8)
    for text in ("Make 24.", "Make 24 of 3, 3, 8 and 8", "[ , ]", ""):
        with pytest.raises(ValueError, match='Add a field "numbers"'):
            game24.game_numbers({"id": "g1", "question": text})


def second_evaluator(text):
    """(value, numbers used) of + - * / ( ) and integers without a sign, or None.

    Reduces the text as a person would: innermost brackets, then the first of * and /, then + and -.
    """
    tokens, digits = [], ""
    for c in text + " ":
        if c.isdigit():
            digits += c
            continue
        if digits:
            tokens.append(digits)
            digits = ""
        if c != " ":
            tokens.append(c)
    used = Counter(t for t in tokens if t.isdigit())
    if any(len(t) > 1 and t[0] == "0" for t in used):
        return None
    items = [Fraction(int(t)) if t.isdigit() else t for t in tokens]
    while len(items) > 1:
        stop = next((i for i, t in enumerate(items) if t == ")"), len(items))
        start = max((i for i, t in enumerate(items[:stop]) if t == "("), default=-1)
        if (start == -1) != (stop == len(items)):
            return None
        flat = items[start + 1 : stop]
        if len(flat) % 2 == 0 or not all(
            isinstance(t, Fraction) == (i % 2 == 0) for i, t in enumerate(flat)
        ):
            return None
        for level in ("*/", "+-"):
            at = 1
            while at < len(flat):
                if flat[at] not in level:
                    at += 2
                    continue
                a, operator, b = flat[at - 1 : at + 2]
                if operator == "/" and b == 0:
                    return None
                flat[at - 1 : at + 2] = [
                    {"*": a * b, "+": a + b, "-": a - b, "/": a / b if b else None}[operator]
                ]
        items[max(start, 0) : stop + 1] = flat
    if not items or not isinstance(items[0], Fraction):
        return None
    return items[0], used


def agree(text, numbers):
    expected = second_evaluator(text)
    counts = Counter(str(n) for n in numbers)
    wanted = expected[0] if expected and expected[1] == counts else None
    assert game24.expression_value(text, numbers) == wanted, text
    return wanted


@settings(database=None, deadline=None, max_examples=1000)
@given(st.lists(st.sampled_from(["1", "2", "3", "13", *"+-*/()  "]), max_size=14).map("".join))
def test_gameof24_agrees_with_a_second_evaluator_on_any_text(text):
    second = second_evaluator(text)
    numbers = [int(t) for t in second[1].elements()] if second else [1, 2, 3]
    agree(text, numbers)


def test_gameof24_agrees_with_a_second_evaluator_on_expressions():
    draw = random.Random(0)

    def expression(numbers):
        if len(numbers) == 1:
            return str(numbers[0])
        cut = draw.randrange(1, len(numbers))
        text = expression(numbers[:cut]) + draw.choice("+-*/") + expression(numbers[cut:])
        return f"({text})" if draw.random() < 0.6 else text

    values = []
    for _ in range(5000):
        numbers = [draw.randrange(0, 14) for _ in range(4)]
        text = expression(numbers)
        values.append(agree(text, numbers))
        if values[-1] is not None:
            assert game24.expression_value(text, [*numbers, 1]) is None
            assert game24.expression_value(text, numbers[1:]) is None
            spelled = text.replace("*", " × ").replace("/", r" \div ").replace("-", "−") + " = 24"
            assert game24.expression_value(spelled, numbers) == values[-1]
    # The draw holds what it must to mean something: solutions, fractions, divisions by zero.
    assert sum(value == 24 for value in values) >= 10
    assert sum(value is None for value in values) >= 10
    assert sum(value is not None and value.denominator > 1 for value in values) >= 500


# ------------------------------------------------------------------------------------ choice

CITIES = ["Berlin", "Paris", "Rome", "New York"]
CHOICE = [
    ("B", "B", 1),
    ("B", "b", 1),
    ("B", "(B)", 1),
    ("B", "B.", 1),
    ("B", "b)", 1),
    ("B", "2", 1),
    ("B", "option B", 1),
    ("B", "Answer: B", 1),
    ("B", "The correct answer is (B).", 1),
    ("B", "The correct option is **B**", 1),
    ("B", "**B**. Paris", 1),
    ("B", r"\boxed{B}", 1),
    ("B", r"$\boxed{\text{B}}$", 1),
    ("B", "B. Paris, France", 1),
    ("B", "Berlin or Paris", 0),
    ("B", "I choose B", 0),  # no explicit final form
    ("B", "<answer>B</answer>", 1),
    ("B", "Paris", 1),
    ("B", "paris.", 1),
    ("B", "B. Paris", 1),
    ("B", "(B) Paris", 1),
    ("B", "B Paris", 1),
    ("B", "B: it lies on the Seine", 1),
    ("B", "A", 0),
    ("B", "", 0),
    ("B", "A. Paris", 0),  # letter and text of two options
    ("B", "The answer is A. Paris", 0),
    ("B", "B. Berlin", 0),
    ("B", "B or C", 0),
    ("B", "B, C", 0),
    ("B", "(B) (C)", 0),
    ("B", "B. C. D.", 0),
    ("B", "B) Paris, not Rome", 0),
    ("B", "Paris and Rome", 0),
    ("B", "not B", 0),
    ("B", "Be that as it may", 0),
    ("A", "A good question", 0),
    ("B", "E", 0),
    ("B", "5", 0),
    ("B", "0", 0),
    ("2", "Paris", 1),
    ("Paris", "B", 1),
    ("B. Paris", "Paris", 1),
    ("D", "the New York", 1),
    (["A", "C"], "Rome", 1),
]


@pytest.mark.parametrize(("gold", "answer", "value"), CHOICE)
def test_choice(gold, answer, value):
    assert reward("choice", gold, answer, choices=CITIES) == value


def test_choice_with_options_that_look_like_labels():
    numbers = ["2", "3", "1", "10.5"]
    assert option_index("1", numbers) == 2  # the option, not its place
    assert option_index("4", numbers) is None
    assert option_index("10.50", numbers) == 3
    assert option_index("105", numbers) is None
    letters = ["C", "B", "A"]
    assert option_index("A", letters) is None  # label of the first, text of the last
    assert option_index("B", letters) == 1
    assert option_index("A. C", letters) == 0
    assert option_index("same", ["same", "same"]) is None
    assert option_index("A - B", ["A + B", "A - B"]) == 1


def test_choice_gold_must_be_an_option():
    with pytest.raises(ValueError, match="gold 'London' is not one of its choices"):
        reward("choice", "London", "B", choices=CITIES)


# ----------------------------------------------------------------------------------- dispatch


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("qa", "qa/exact_match"),
        ("math", "math/exact"),
        ("gameof24", "gameof24/expression"),
        ("choice", "choice/option"),
    ],
)
def test_source_names_the_checker(kind, source):
    question = {"id": "q", "question": "[1, 2]", "kind": kind, "answer": "A", "choices": ["x", "y"]}
    assert rewards.score(question, "A").source == source
    assert rewards.score(question, "A" * 20_001) == rewards.Reward(0.0, f"{kind}/too_long")


def test_every_kind_is_tested():
    assert set(rewards.CHECKERS) == {"qa", "math", "gameof24", "choice"}


def test_faults_of_the_question_are_errors():
    with pytest.raises(ValueError, match="kind 'essay'; valid: qa, math, gameof24, choice"):
        reward("essay", "x", "x")
    for gold in ("", [], [""], [3]):
        with pytest.raises(ValueError, match="expected a non-empty string or a list"):
            reward("qa", gold, "x")


HOSTILE = {
    "100k": "9" * 100_000,
    "digits": "9" * 20_000,
    "power": "9**9**9",
    "latex_power": r"\boxed{9^{9^{9^9}}}",
    "exponent": "1e999999999",
    "brackets": "(" * 150 + "1" + ")" * 149,
    "open_brackets": "(" * 20_000,
    "braces": r"\boxed{" * 2_800,
    "fractions": r"\frac{" * 3_300,
    "nested_fractions": r"\frac{" * 40 + "1" + "}{1}" * 40,
    "signs": "-" * 299 + "1",
    "not": "~" * 20_000,
    "spaces": " " * 19_999 + "1",
    "inner_spaces": "1" + " " * 19_000 + "1",
    "answers": "answer is " * 2_000,
    "almost_answers": "answer " * 2_800,
    "tags": "<answer>" * 2_500,
    "closing_tags": "<answer>" + "</answer" * 2_400,
    "equations": "=" * 20_000,
    "equal": "x=" * 10_000,
    "thousands": "1,111" * 4_000,
    "short_thousands": "1,111" * 59,
    "words": "5" + " a" * 140,
    "unit": "5 " + "m" * 290 + "!",
    "yes": "yes " * 5_000,
    "stars": "*" * 20_000,
    "control": "\x00\ud800\u202e" * 5_000,
    "letters": "(A) " * 5_000,
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_score_0_at_once(answer):
    for kind, gold in (("qa", "x"), ("qa", "5"), ("math", "5"), ("math", "x"), ("choice", "B")):
        start = time.perf_counter()
        assert reward(kind, gold, answer, choices=CITIES) == 0
        assert time.perf_counter() - start < 0.5, kind
    start = time.perf_counter()
    assert reward("gameof24", "any", answer, numbers=[9, 9, 9]) == 0
    assert qa.f1(answer[: rewards.MAX_ANSWER], "cat sat") == 0
    assert time.perf_counter() - start < 0.5
