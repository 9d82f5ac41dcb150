"""Which option a text names: decided cases, each with its reason where it is not plain."""

import string

import pytest

from flow_grpo_jax import rewards
from flow_grpo_jax.answers import options
from flow_grpo_jax.answers.choice import option_index

CITIES = ["Berlin", "Paris", "Rome", "New York"]
BONDS = ["Ionic bond", "Covalent bond", "Metallic bond", "Hydrogen bond"]
FORMULAS = ["x^2 - 1", "x^2 + 1", "x - 1", "x + 1"]
TEN = [f"c{i}" for i in range(10)]
ARTICLES = ["The sun", "A sun", "The moon"]
NONE = ["x", "y", "z", "None of the above"]
TRUTH = ["True", "False"]
BLOOD = ["A", "B", "AB", "O"]
LABELLED = ["A. 0.9", "B. 0.7", "C. 0.1"]

# (options, answer, letter of the option it names or "")
LETTERS = [
    (CITIES, "[B]", "B"),
    (CITIES, "Ｂ", "B"),
    (CITIES, "（Ｂ）", "B"),
    (CITIES, "Answer：Ｂ", "B"),
    (CITIES, "答案：B", "B"),
    (CITIES, "𝐁", "B"),
    (CITIES, "Ⓑ", "B"),
    (CITIES, r"\boxed{\mathrm{(B)}\ Paris}", "B"),
    (CITIES, r"$\boxed{\textbf{(B)}}$", "B"),
    (CITIES, r"\boxed{\text{B. Paris}}", "B"),
    (CITIES, r"\boxed B", "B"),
    (CITIES, "B – Paris", "B"),
    (CITIES, "B (Paris)", "B"),
    (CITIES, "B is the correct answer.", "B"),
    (CITIES, 'The answer is "B".', "B"),
    (CITIES, "The answer is 2.", "B"),
    (CITIES, r"\boxed{2}", "B"),
    (CITIES, "9", ""),
    (CITIES, "**Final answer**: (B)", "B"),
    (CITIES, r"\boxed{\text{Answer: B}}", "B"),
    (CITIES, "\ufeffB\u200b", "B"),
    (CITIES, "答案是 B。", "B"),
    (CITIES, "'B'", "B"),
    (CITIES, "B!", "B"),
    (CITIES, "B、Paris", "B"),
    (["10 km", "20 km", "30 km"], "2", ""),  # 20 km, or the second
    (TEN, "2", ""),
    (CITIES, "{B}", ""),
    (CITIES, "B12", ""),
    (CITIES, "B'", ""),
    (CITIES, "B+", ""),
    (CITIES, "À", ""),
    (CITIES, "A\u0301", ""),
    (CITIES, "Antwort: A", ""),
    (CITIES, "Antwort A", ""),
    (CITIES, "I think it is C", ""),
    (TEN, "I think it is C", ""),
    (TEN, "I", "I"),
    (BONDS, "A bond between ions", ""),
    (BONDS, "a metallic bond", "C"),
    (BONDS, "The answer is a metallic bond.", "C"),
    (["Bond", "Glue"], "A bond is formed", ""),
]
TEXTS = [
    (FORMULAS, "A. x^2 - 1", "A"),
    (FORMULAS, "A. x^2-1", "A"),
    (FORMULAS, "C. x - 1", "C"),
    (FORMULAS, "A. x^2 + 1", ""),
    (FORMULAS, "B. $x^2 + 1$", "B"),
    (FORMULAS, r"B: \(x^{2}+1\)", "B"),
    (FORMULAS, "$x^2 + 1$", "B"),
    (FORMULAS, "x^2 1", ""),
    (ARTICLES, "A. The sun", "A"),
    (ARTICLES, "B. A sun", "B"),
    (ARTICLES, "A sun", "B"),
    (ARTICLES, "A. A sun", ""),
    (ARTICLES, "sun", ""),
    (ARTICLES, "a moon", "C"),
    (["Yes", "YES"], "YES", "B"),
    (["Yes", "YES"], "yes", ""),
    (["Na+", "Na-", "Na"], "B. Na-", "B"),
    (["Na+", "K"], "Na-", ""),
    (["f'", "g"], "f", ""),
    (["3!", "4"], "3", ""),
    (["1", "0"], "-1", ""),
    (["(0, 1)", "[0, 1]", "[0, 1)"], "A) (0, 1)", "A"),
    (["(0, 1)", "[0, 1]"], "[0,1]", "B"),
    (["(0, 1)", "[0, 1]"], "[0, 1)", ""),
    (["Vitamin A deficiency", "Scurvy"], "vitamin deficiency", ""),
    (NONE, "D. None of the above.", "D"),
    (TRUTH, "B. False", "B"),
    (TRUTH, "A. False", ""),
    (TRUTH, "B, because it is false", "B"),
    (BLOOD, "AB", "C"),
    (BLOOD, "C. AB", "C"),
    (["B", "A"], "A", ""),
    (["B", "A"], "A. B", "A"),
    (LABELLED, "0.7", "B"),
    (LABELLED, "B", "B"),
    (LABELLED, "B. 0.7", "B"),
    (LABELLED, "A. 0.7", ""),
    (CITIES, "The answer is Paris. It lies on the Seine.", "B"),
    (CITIES, "The answer is Paris, because of the Seine", "B"),
    (CITIES, "The answer is Paris or Rome", ""),
    (CITIES, "The answer is Paris. Or Rome.", ""),
    (CITIES, "It is Paris.", ""),
]
EXPLAINED = [
    (CITIES, "B, because it lies on the Seine", "B"),
    (CITIES, "B because Rome is in Italy", "B"),
    (CITIES, "B, because A is too far north", "B"),
    (TEN, "Option C (c2), since the integral vanishes", "C"),
    (TEN, "The answer is option C (c2) since it holds", "C"),
    (TEN, "The answer is C because I computed the integral.", "C"),
    (TEN, "C. I computed the integral.", "C"),
    (TEN, "I, because I said so", ""),
    (TEN, "Option I, because I computed it", "I"),
    (CITIES, "The answer is B. Note that A is a common distractor.", "B"),
    (CITIES, "The answer is B. Option A ignores the river.", "B"),
    (CITIES, "The answer is B\n\nExplanation: Rome is in Italy.", "B"),
    (CITIES, "THE ANSWER IS D. A IS INCORRECT.", "D"),
    (CITIES, "B. The others are wrong.", "B"),
    (CITIES, "B, not C", "B"),
    (CITIES, "B. No other city fits.", "B"),
]
DENIED = [
    "not B",
    "The answer is not B",
    "The answer isn't B.",
    "B is wrong",
    "B isn't right",
    "B. is wrong",
    "B: no",
    "B, no",
    "B? No.",
    "B. Wrong.",
    "B (wrong)",
    "B) is incorrect, so I am unsure",
    "B. That's wrong",
    "B: absolutely not",
    "B, which is wrong",
    "B. Paris is wrong",
    "B. Paris, no",
    "B. None of these is right",
    "B can be excluded",
    "anything but B",
    "The wrong answer is B",
    "I doubt the answer is B",
    "If the answer is B, then",
    r"\boxed{B} is wrong",
    r"The answer is not \boxed{B}",
    r"\boxed{\text{not B}}",
    "The answer is B. That is wrong.",
    "The answer is B. No.",
    "The answer is B. I was joking, it is not B.",
]
SEVERAL = [
    "B or C",
    "B and C",
    "B/C",
    "B & C",
    "B, C",
    "B; C",
    "B. C.",
    "B\nC",
    "(B) or (C)",
    "B (or C)",
    "B, maybe C",
    "B but maybe C",
    "B. Or C.",
    "B. C is also possible.",
    "B is correct and C is correct",
    "B is correct. C is correct.",
    "either B or C",
    "The answer is B. C could be right too.",
    "The answer is B or the answer is C",
    "The answer is B. The answer is C.",
    "Answer: B\nAnswer: C",
    r"\boxed{B, C}",
    r"\boxed{B} or \boxed{C}",
    r"\boxed{B}\boxed{C}",
    r"\boxed{BC}",
    r"\boxed{B}. Wait, it is C.",
    "A, B, C, D",
    "A. Berlin\nB. Paris\nC. Rome\nD. New York",
    "A: 50%, B: 50%",
    "B. Paris or C. Rome",
    "Paris, or possibly Rome",
]
STATED = [
    (CITIES, "We have \\boxed{\\Delta E \\ll E}.\n\n**Answer: D**", "D"),
    (CITIES, "Answer: D\n\nwhere \\boxed{E = mc^2}", "D"),
    (CITIES, "\\boxed{B}\n\nThis follows from plan D.", "B"),
    (CITIES, "The answer is A. Wait, that is wrong. The answer is B.", "B"),
    (CITIES, "\\boxed{A}. Wait, that is too far north: \\boxed{B}", "B"),
    (CITIES, "Answer: B\nAnswer: B", "B"),
    (FORMULAS, r"\boxed{x^2+1}", "B"),
    (BONDS, "\\boxed{3}\n\nAnswer: B", "B"),  # a number is a place only if nothing else is said
    (["A", "V"], "\\boxed{I = 2}\nAnswer: B", "B"),
]


@pytest.mark.parametrize(("choices", "answer", "letter"), LETTERS + TEXTS + EXPLAINED + STATED)
def test_option(choices, answer, letter):
    assert option_index(answer, choices) == (ord(letter) - 65 if letter else None)


@pytest.mark.parametrize("answer", DENIED)
def test_a_denied_letter_names_nothing(answer):
    assert option_index(answer, CITIES) is None


@pytest.mark.parametrize("answer", SEVERAL)
def test_several_options_name_none(answer):
    assert option_index(answer, CITIES) is None


@pytest.mark.parametrize("choices", [CITIES, BONDS, FORMULAS, TEN, ARTICLES, NONE, TRUTH, LABELLED])
def test_every_option_is_reached_by_letter_and_text(choices):
    for index, (letter, text) in enumerate(zip(string.ascii_uppercase, choices, strict=False)):
        bare = options.unlabelled(choices)[index]
        for answer in (letter, f"({letter})", f"Answer: {letter}", f"{letter}. {bare}", text):
            assert option_index(answer, choices) == index, answer
        assert option_index(f"not {letter}", choices) is None


def test_options_beyond_the_letters_are_named_by_their_text():
    choices = [f"option {i}" for i in range(30)]
    assert option_index("option 28", choices) == 28 and option_index("Z", choices) == 25


def test_a_letter_that_is_another_options_text_pays_nobody():
    question = {"id": "q", "question": "?", "kind": "choice", "choices": ["B", "A"]}
    for gold, answer, value in [("A", "A", 0), ("A", "A. B", 1), ("B. A", "B. A", 1)]:
        assert rewards.score({**question, "answer": gold}, answer).value == value
