"""Verdicts of the benchmarks' scorers, each decided by hand from the rules of their makers."""

import pytest

from flow_grpo_jax import data
from flow_grpo_jax.benchmarks import catalogue, scorers

METALS = ["iron", "argon", "zinc", "gold"]
AMERICA = ("USA", "United States", "United States of America")

# benchmark, gold, answer, value of its official scorer
VERDICTS = [
    ("hotpotqa", "Prussian", "Prussian", 1),
    ("hotpotqa", "Prussian", "the Prussian.", 1),
    ("hotpotqa", "Prussian", "He was Prussian", 0),
    ("hotpotqa", "yes", "Yes, both are French.", 1),
    ("hotpotqa", "yes", "no", 0),
    ("hotpotqa", "no", "yes and no", 0),
    ("hotpotqa", "Kurt Julian Weill", "kurt julian weill", 1),
    ("hotpotqa", "Kurt Julian Weill", "Kurt Weill", 0),
    ("2wiki", AMERICA, "<answer>United States</answer>", 1),
    ("2wiki", AMERICA, "I searched twice. <answer>the United States of America</answer>", 1),
    ("2wiki", AMERICA, "America", 0),
    ("2wiki", "5 January 1964", "January 5, 1964", 0),
    ("2wiki", "Let'S Make Money", "Lets make money", 1),
    ("musique", ("1,861", "about 1861"), "1861", 1),
    ("musique", "March 29, 2018", "march 29 2018", 1),
    ("musique", "138,535", "138535 people", 0),
    ("musique", "Saint-Étienne", "Saint Étienne", 0),
    ("bamboogle", "james madison", "James Madison", 1),
    ("bamboogle", "10.8", "108", 0),
    ("bamboogle", "Titan IIIE", r"\boxed{Titan IIIE}", 1),
    ("bamboogle", "Titan IIIE", "", 0),
    ("gaia", "17", "17", 1),
    ("gaia", "17", "17.0", 1),
    ("gaia", "17000", "$17,000", 1),
    ("gaia", "0.5", "50%", 0),
    ("gaia", "50", "50 %", 1),
    ("gaia", "17", "17 apples", 0),
    ("gaia", "17", "I counted them.\nFINAL ANSWER: 17", 1),
    ("gaia", "17", "", 0),
    ("gaia", "inf", "banana", 0),
    ("gaia", "nan", "NaN", 1),
    ("gaia", "sea gull", "Seagull", 1),
    ("gaia", "St. Petersburg", "st petersburg", 1),
    ("gaia", "St. Petersburg", "Saint Petersburg", 0),
    ("gaia", "The Hobbit", "Hobbit", 0),
    ("gaia", "pears, bananas", "Pears,bananas", 1),
    ("gaia", "pears, bananas", "pears; bananas", 1),
    ("gaia", "pears, bananas", "bananas, pears", 0),
    ("gaia", "pears, bananas", "pears", 0),
    ("gaia", "3; 4.5", "3.0; $4.50", 1),
    ("gaia", "b, e.g.", "b, eg", 0),
    ("aime24", "33", "33", 1),
    ("aime24", "33", "033", 1),
    ("aime24", "33", r"Adding up, $m+n = \boxed{033}$.", 1),
    ("aime24", "33", "The answer is m + n = 33.", 1),
    ("aime24", "33", "33.0", 1),
    ("aime24", "33", "66/2", 0),
    ("aime24", "33", r"\frac{33}{1}", 0),
    ("aime24", "33", "33%", 0),
    ("aime24", "33", "33 percent", 0),
    ("aime24", "33", "-33", 0),
    ("aime24", "33", "333", 0),
    ("aime24", "33", "33 or 34", 0),
    ("aime24", "0", "000", 1),
    ("amc23", "3159", "3,159", 1),
    ("amc23", "-1", "-1", 1),
    ("amc23", "-1", "1", 0),
    ("amc23", "1.5", r"\frac{3}{2}", 1),
    ("amc23", "27", "27 miles", 1),
    ("amc23", "27", "about 27.1", 0),
    ("gameof24", [1, 1, 1, 8], "(1+1+1)×8", 1),
    ("gameof24", [1, 1, 1, 8], "8*(1+1+1) = 24", 1),
    ("gameof24", [1, 1, 1, 8], "8*3", 0),
    ("gameof24", [1, 1, 1, 8], "(1+1)*8+8*1", 0),
    ("gameof24", [1, 1, 1, 8], "(1+1+1)*8*1", 0),
    ("gameof24", [3, 3, 8, 8], r"\boxed{8/(3-8/3)}", 1),
    ("gpqa", "B", "B", 1),
    ("gpqa", "B", "(b) argon", 1),
    ("gpqa", "B", "The answer is argon.", 1),
    ("gpqa", "B", "B or C", 0),
    ("gpqa", "B", "A. argon", 0),
    ("medqa", "D", "<answer>D. gold</answer>", 1),
    ("medqa", "D", "D is wrong", 0),
    ("medqa", "D", "silver", 0),
]
FIRST = {
    **dict.fromkeys(("bamboogle", "2wiki", "hotpotqa", "musique"), ["em", "f1"]),
    "gaia": ["gaia"],
    "aime24": ["integer"],
    "amc23": ["number"],
    "gameof24": ["game24"],
    "gpqa": ["letter"],
    "medqa": ["letter"],
}


def question(name, gold):
    row = {"id": "1", "question": "Which?", "kind": catalogue.KINDS[name], "source": name}
    if name == "gameof24":
        row |= {"numbers": gold}
        gold = {1: "(1+1+1)*8", 3: "8/(3-8/3)"}[gold[0]]
    if row["kind"] == "choice":
        row |= {"choices": METALS}
    return data.as_question(row | {"answer": gold})


@pytest.mark.parametrize("name, gold, answer, expected", VERDICTS)
def test_verdicts(name, gold, answer, expected):
    values = scorers.score(name, question(name, gold), answer)
    assert list(values) == FIRST[name] and values[FIRST[name][0]] == expected


def test_every_benchmark_has_verdicts_for_and_against():
    assert len(VERDICTS) >= 60
    verdicts = {(name, expected) for name, _, _, expected in VERDICTS}
    assert verdicts == {(name, value) for name in catalogue.NAMES for value in (0, 1)}
    assert list(scorers.SCORERS) == list(catalogue.NAMES)


@pytest.mark.parametrize(
    "gold, answer, f1",
    [
        ("Kurt Julian Weill", "Kurt Weill", 2 * 2 / 5),
        (("Weill", "Kurt Julian Weill"), "Kurt Weill", 0.8),  # the best alias counts
        ("yes", "yes it is", 0),
        ("Prussian", "Bavarian", 0),
    ],
)
def test_f1_is_the_best_over_aliases(gold, answer, f1):
    values = scorers.score("musique", question("musique", gold), answer)
    assert values == {"em": 0.0, "f1": pytest.approx(f1)}


def test_an_answer_without_end_is_wrong_everywhere():
    for name, gold, _, _ in VERDICTS:
        values = scorers.score(name, question(name, gold), "7" * 1_000_000)
        assert set(values.values()) == {0.0}
