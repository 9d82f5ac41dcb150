r"""Kind "math" beyond plain numbers: statements, exact algebra, units, and what must not be paid.

The reference for equality is a float evaluation of random expressions, by code of this file.
"""

import math
import random

import pytest

from flow_grpo_jax import rewards
from flow_grpo_jax.answers import algebra, expressions, formulas
from flow_grpo_jax.answers.units import parse_unit, same_unit


def reward(gold, answer, asked="?"):
    question = {"id": "q", "question": asked, "kind": "math", "answer": gold}
    return rewards.score(question, answer).value


EQUATIONS = [
    ("x^2+y^2=9", "9", 0),  # no circle is its radius
    ("x^2+y^2=9", "y=9", 0),
    ("x^2+y^2=9", "0=0", 0),
    ("x^2+y^2=9", "x^2+y^2", 0),
    ("x^2+y^2=9", "9 = y**2 + x**2", 1),
    ("x^2+y^2=9", "2x^2+2y^2-18=0", 1),
    ("x^2+y^2=9", "(x^2+y^2-9)^2=0", 0),
    ("2x-y+5=0", "0", 0),
    ("2x-y+5=0", "y=2x+5", 1),
    ("2x-y+5=0", "y=5-2x", 0),
    ("2x-y+5=0", "2x+5", 0),
    ("x-7=0", "x=7", 1),
    ("x-7=0", "7", 0),
    ("y=2x+5", "2x+5", 1),
    ("y=2x+5", "2*x - y + 5 = 0", 1),
    ("y=2x+5", "x=2y+5", 0),
    ("f(x)=x^2", "y=x**2", 1),
    ("x=7", "7", 1),
    ("x=7", "7=x", 1),
    ("x=7", "y=7", 1),  # the name is not compared
    ("x=7", "2x=14", 0),  # the problem, not its solution
    ("x=7", "x-7=0", 0),
    ("7", "x+3=10=7", 0),
    ("0", "x^2-4=0", 0),
    ("0", "0=x^2-4", 0),
    ("9", "3x=9", 0),
    ("9", "4+5=9", 1),
    ("9", "8=9", 0),
    ("9", "~9", 0),
    ("9", "x+y=9", 1),  # an answer may say what it found
    ("x+y=9", "9", 0),  # a gold of coordinates is a line
    ("x_1+x_2=9", "9", 0),
    ("p+q=9", "9", 1),
    ("p+q=4+5=9", "9", 1),
    ("f(3)=9", "9", 1),
    (r"\angle PQR = 70^\circ", "70 degrees", 1),
    (r"\overline{PQ}=9", "9", 1),
    (r"A = \pi r^2 = 9\pi", "9*pi", 1),
    ("x=x^2", "x^2", 0),  # names no value
    ("a=1, b=2", "b=2, a=1", 1),
    ("a=1, b=2", "a=2, b=1", 0),
    ("a=1, b=2", "2", 0),
    ("a=1, b=2", "1, 2", 0),
    ("x>2", "2<x", 1),
    ("x>2", r"(2,\infty)", 1),
    ("x>2", "x>=2", 0),
    ("x>2", "2", 0),
    ("x+y<1", "1 > y+x", 1),
    ("x+y<1", "x+y>1", 0),
    ("x+y<1", "-x-y>-1", 1),
    ("x>1 and y>2", "y>1 and x>2", 0),
    ("xyz=8", "8", 0),  # a product, no name
    ("9", "The number of ways = 9", 1),
    ("9", "P(X=1) = 9", 1),
    ("9", "E[X] = 9", 1),
    ("9", "[PQR] = 9", 1),
    ("9", "x₀ = 9", 1),
    ("9", "x = 8 perhaps x = 9", 0),  # a second assignment behind the first
    ("9", "y = 8 when x = 9", 0),
    ("9", "x = 8 (perhaps) x = 9", 0),
    ("9", "x=8 x=9", 0),
    ("9", "x=8\nx=9", 0),
    ("9", "x=8. x=9", 0),
    ("9", "A = length * width = 9", 1),
    ("9", "maybe x = 9", 0),
    ("9", "anything but = 9", 0),
    ("9", "The value is not = 9", 0),
    ("9", "The wrong answer is 9", 0),
    ("a=1, b=2", "(a, b) = (1, 2)", 1),
    ("a=1, b=2", "(b, a) = (1, 2)", 0),
    ("a=1, b=2", "a = 1\nb = 2", 1),
    ("a=1, b=2", "{a: 1, b: 2}", 1),
    ("(1,2)", "x = 1, y = 2", 1),
    ("(1,2)", "y = 2, x = 1", 1),
    ("(1,2)", "x = 2, y = 1", 0),
    ("(1,2)", "a = 1, b = 2", 0),  # whose pair it is, is not said
    ("(a,b)=(1,2)", "b = 2, a = 1", 1),
    ("(a,b)=(1,2)", "x = 1, y = 2", 0),
]
LISTS = [
    ("1, 4", "4, 1", 1),
    ("1, 4", "x=4 or x=1", 1),
    ("1, 4", "1 and 4", 1),
    ("1, 4", r"\{4; 1\}", 1),
    ("1, 4", "{1, 4}", 1),
    ("1, 4", r"\boxed{1}, \boxed{4}", 1),
    ("1, 4", "1", 0),
    ("1, 4", "1, 4, 5", 0),
    ("1, 4", "(1, 4)", 0),
    ("1, 4", "[1, 4]", 0),  # an interval
    ("1, 4, 9", "[9, 1, 4]", 1),  # a list that Python printed
    ("4", "1 or 4", 0),
    ("4", "4, 4", 0),
    ("4", r"\pm 4", 0),
    ("4", r"\boxed{1} or \boxed{4}", 0),
    ("4", r"\boxed{1}$ and $\boxed{4}", 0),
    ("4", r"\boxed{4}, so it is $\boxed{4}$", 1),
    ("4", r"x=1 \text{ or } x=4", 0),
    ("4", r"n=4\approx 4.1", 0),
    (r"\pm 4", "4, -4", 1),
    (r"1\pm\sqrt{2}", "{1 + sqrt(2), 1 - sqrt(2)}", 1),
    (r"1\pm\sqrt{2}", "1 + sqrt(2)", 0),
    (r"x=1\text{ or }x=4", "4; 1", 1),
    ("(1,4)", "(1, 4)", 1),
    ("(1,4)", "(x,y)=(1,4)", 1),
    ("(1,4)", "(4,1)", 0),
    ("(1,4)", "[1,4]", 0),
    ("(1,4)", "1, 4", 0),
    ("(1,2),(3,4)", "(3,4) and (1,2)", 1),
    ("[1,4)", r"1 \le x < 4", 1),
    ("[1,4)", "4 > x >= 1", 1),
    ("[1,4)", "1 < x < 4", 0),
    (r"(-\infty,0)\cup(1,\infty)", "x>1 or x<0", 1),
    (r"(-\infty,0)\cup(1,\infty)", "x>1 and x<0", 0),
    ("2, 4, 6, ...", "2, 4, 6", 0),
    (r"2, 4, \ldots", r"4, 2, \ldots", 0),
    ("1:2", "1 : 2", 1),
    ("1:2", "2:4", 0),
    ("1:2", "1/2", 0),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "Matrix([[1, 2], [3, 4]])", 1),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "Matrix([[1, 3], [2, 4]])", 0),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1, 2], [3, 4]]", 1),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "array([[1., 2.], [3., 4.]])", 1),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[1, 2, 3, 4]", 0),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]",
        1,
    ),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "Matrix([1, 2])", 1),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "Matrix([[1, 2]])", 0),
    ("1, 4", "x_1 = 1, x_2 = 4", 1),
    ("1, 4", "x = 1\nx = 4", 1),
    ("1, 4", "FiniteSet(1, 4)", 1),
    ("1, 4", "(x = 1) or (x = 4)", 1),
    ("1, 4", "x in {1, 4}", 1),
    ("1, 4", "[{x: 1}, {x: 4}]", 1),
    ("4", "[4]", 1),
    ("4", "[{x: 4}]", 1),
    ("4", "[1, 4]", 0),
    (r"\pm 4", "+/-4", 1),
    (r"\pm 4", "+-4", 0),
    (r"\pm 1, \pm 2", "-2, -1, 1, 2", 1),
    (r"\pm 1, \pm 2", r"\pm 2, 1, -1", 1),
    (r"\pm 1, \pm 2", "1, 2", 0),
    (r"1\pm\sqrt{2}", r"1 \mp \sqrt{2}", 1),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}} or 0.5", 1),
    (r"\frac{1}{2}", "1/2 or 0.5", 1),  # one value twice is no hedge
    (r"\frac{1}{2}", "1/2 or 0.51", 0),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}} or about 0.51", 1),
    ("4", r"\boxed{4} or 1", 0),
    ("4", r"\boxed{4}, or possibly $1$", 0),
    ("4", r"1 or \boxed{4}", 0),
    ("4", r"\boxed{4} or so we think", 1),
    ("(1,2)", "[(1, 2)]", 1),
    ("(1,2)", "[{x: 1, y: 2}]", 1),
    ("(1,2),(3,4)", "[(3, 4), (1, 2)]", 1),
    ("(1,2),(3,4)", "[[1, 2], [3, 4]]", 0),
    ("(0,1]", "Interval.Lopen(0, 1)", 1),
    ("(0,1]", "Interval.Ropen(0, 1)", 0),
    ("(0,1]", "x > 0 and x <= 1", 1),
    ("(0,1]", "(0 < x) & (x <= 1)", 1),
    ("(0,1]", "x > 0 or x <= 1", 0),
    ("(0,1]", "x > 0 and y <= 1", 0),
    ("(0,1]", "]0, 1]", 1),
    ("(0,1]", "]0, 1[", 0),
    (r"[2,\infty)", "Interval(2, oo)", 1),
    (r"(-\infty,0)\cup(1,\infty)", "Union(Interval.open(1, oo), Interval.open(-oo, 0))", 1),
    (r"(-\infty,0)\cup(1,\infty)", "(-oo, 0) U (1, oo)", 1),
    (r"(-\infty,0)\cup(1,\infty)", "((-oo < x) & (x < 0)) | ((1 < x) & (x < oo))", 1),
    (r"(-\infty,0)\cup(1,\infty)", "(x < 0) & (x > 1)", 0),
    (r"\mathbb{R}", "(-oo, oo)", 1),
    (r"\mathbb{R}", "Reals", 1),
    (r"\mathbb{R}", "R", 0),
    (r"\emptyset", "EmptySet", 1),
    (r"\emptyset", "{}", 1),
    (r"\emptyset", r"\{0\}", 0),
]
PRINTED = [
    (r"\frac{\pi}{3}", "pi/3", 1),
    (r"\frac{\pi}{3}", "1.0471975511965976", 0),
    (r"\frac{3}{4}", "Rational(3, 4)", 1),
    (r"\frac{3}{4}", "Fraction(3, 4)", 1),
    (r"\frac{3}{4}", "Fraction(4, 3)", 0),
    (r"\frac{3}{4}", "np.float64(0.75)", 1),
    ("7", "Eq(x, 7)", 1),
    ("3x+4y=12", "Eq(3*x + 4*y, 12)", 1),
    ("3x+4y=12", "Eq(3*x + 4*y, 21)", 0),
    (r"\infty", "inf", 1),
    (r"\infty", "-inf", 0),
    ("1+2i", "(1+2j)", 1),
    ("1+2i", "(1-2j)", 0),
    (r"\ln 2", "ln 2", 1),
    (r"\sin x", "sin x", 1),
    (r"\sin x", "sin y", 0),
    (r"\log_3 7", "log₃7", 1),
    (r"\log_2 7", "log2(7)", 1),
    (r"\log_2 7", "log10(7)", 0),
    (r"5 \pmod{7}", "5 (mod 7)", 1),
    (r"5 \pmod{7}", "5 (mod 8)", 0),
    (r"3\sqrt{5}", "3*sqrt(5)", 1),
    (r"3\sqrt{5}", "3√5", 1),
    (r"3\sqrt{5}", r"\sqrt{45}", 1),
    (r"3\sqrt{5}", r"3\sqrt5", 1),
    (r"3\sqrt{5}", "3*5**0.5", 1),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 1),
    (r"\frac{1}{\sqrt{n}}", r"\sqrt{1/n}", 1),
    (r"\sqrt{x^2}", "x", 0),
    (r"\sqrt{xy}", r"\sqrt{x}\sqrt{y}", 0),  # x and y may both be negative
    (r"\sqrt[3]{5}", "5**(1/3)", 1),
    ("x^2-3", "x**2 - 3", 1),
    ("x^2-3", "x**2 + 3", 0),
    (r"\frac{x+3}{5}", r"\frac{x}{5}+\frac{3}{5}", 1),
    ("(x+2)^2", "x**2 + 4*x + 4", 1),
    ("e^3", "exp(3)", 1),
    ("1-e^{-1}", "1 - 1/E", 1),
    (r"1-\frac{1}{\mathrm{e}}", "1", 0),
    ("2-3i", "2 - 3*I", 1),
    ("2-3i", "2.0 + -3.0i", 1),
    ("2-3i", "2+3i", 0),
    ("x^2+1", "(x+i)(x-i)", 1),
    ("x^2-1", "(x+i)(x-i)", 0),
    (r"-\infty", "-oo", 1),
    (r"\infty", "oo - 1", 0),
    (r"\ln 2", "log(2)", 1),
    (r"\log 2", "log(2)", 1),
    (r"\ln 2", r"\lg 2", 0),
    (r"\log_3 7", "log(7)/log(3)", 1),
    (r"\log_3 7", "log(7, 3)", 1),
    (r"\log_3 7", "log(3, 7)", 0),
    (r"\ln\frac{3}{2}", "log(3) - log(2)", 1),
    (r"\ln\frac{3}{2}", "log(3) + log(2)", 0),
    (r"\frac{x}{y+1}+\frac{2}{y+1}", "(x+2)/(y+1)", 1),
    (r"\frac{x}{y+1}+\frac{2}{y+1}", "x+2", 0),
    ("x", r"|\frac{x}{y+1}-\frac{x}{y+1}|+x", 1),
    (r"\sin^2 x", "sin(x)**2", 1),
    (r"\sin x\cos x", "sin(x*cos(x))", 0),
    ("|x-3|", "Abs(3 - x)", 1),
    ("n!", "factorial(n)", 1),
    (r"\frac{1}{80!}", r"\frac{1}{81!}", 0),
    (r"\binom{40}{5}", "binomial(40, 5)", 1),
    (r"1-\frac{1}{2^{70}}", "1", 0),
    ("10^{-9}", r"2 \cdot 10^{-9}", 0),
    ("2^{n-1}", "2**n/2", 1),
    ("2^{n-1}", "2**n - 1", 0),
    ("(-1)^{n+1}", "-(-1)**n", 1),
    (r"\frac{a}{bc}", "a/(b*c)", 1),
    (r"\frac{a}{bc}", "a/bc", 0),  # can be read in two ways
    ("x^{2y}", "x^2y", 0),
    ("f(2x)", "2f(x)", 0),
    ("R-r", "r-R", 0),
    ("ab", "a*b", 1),
    ("even", "neve", 0),
    ("x_1", "x1", 1),
    ("12", "12*x", 0),
    ("4", r"4 \foo{9}", 0),
    (r"4 \foo{9}", "4", 0),
    ("x+1", "x+1 where x is 2", 0),
    (r"\frac{1}{2} bh", "1/2", 0),  # no unit
    (r"0.\overline{27}", "3/11", 1),
    (r"\frac{1}{6}", r"0.1\overline{6}", 1),
    (r"\frac{1}{6}", r"0.1\bar{6}", 1),
    (r"\frac{1}{6}", r"0.1\dot{6}", 1),
    (r"\frac{1}{6}", "0.16\u0305", 1),
    (r"\frac{1}{6}", r"0.\overline{16}", 0),
    ("1/3", "0.(3)", 1),
    ("1/3", "0.(34)", 0),
    ("41/333", r"0.\dot{1}2\dot{3}", 1),
    ("5/30", "0.1(6)", 0),  # or 0.1 times 6
    ("0.333", "0.333...", 0),
    ("2516_8", "2516", 0),
    (r"\text{(C)}", "c", 1),
    # A number wants a number, and a value one that is worked out.
    ("1024", "2^{10}", 0),
    ("5/6", "1/2+1/3", 0),
    ("4", r"\sqrt{16}", 0),
    (r"3+2\sqrt{2}", r"(1+\sqrt{2})^2", 0),
    (r"3+2\sqrt{2}", r"1+2+2\sqrt{2}", 0),
    (r"7\sqrt{2}", r"\sqrt{50}+\sqrt{8}", 0),
    (r"6\sqrt{2}", r"2 \cdot 3\sqrt{2}", 0),
    (r"2+\sqrt{3}", r"\frac{1}{2-\sqrt{3}}", 0),
    (r"\frac{1+\sqrt{5}}{2}", "1/2 + sqrt(5)/2", 1),
    ("2^{10}", "1024", 1),
]
UNITS = [
    ("4 feet", "4 ft", 1),
    ("4 feet", "4 foot", 1),
    ("4 inches", "4 in", 1),
    ("4 hours", "4 h", 1),
    ("4 metres", "4 m", 1),
    ("4 m", "4 km", 0),
    ("4 cm²", r"4 \mathrm{~cm}^{2}", 1),
    ("4 cm²", "4 square centimeters", 1),
    ("4 cm²", "4 cm", 0),
    ("4 km/h", "4 kmh", 1),
    ("4 km/h", "4 kilometers per hour", 1),
    ("4 mph", "4 miles per hour", 1),
    ("4 m/s^2", "4 m/s", 0),
    ("4 children", "4 child", 1),
    ("4 cm²", "4 cm2", 1),
    ("4 cm²", "4 centimeters squared", 1),
    ("4 cm²", "4 ㎠", 1),
    ("4 cm³", "4 cc", 1),
    ("4 m/s", r"4 \frac{\text{m}}{\text{s}}", 1),
    ("4 m/s", r"4\ \mathrm{m\,s^{-1}}", 1),
    ("4 m/s", r"4\ \mathrm{m\,s^{-2}}", 0),
    ("4 MW", "4 megawatts", 1),
    ("4 MW", "4 mW", 0),
    ("4 L", "4 liters", 1),
    ("4", "4 points", 1),
    ("4", "4 different ways", 1),
    ("4", "4 thousands", 0),  # words that change a number are no units
    ("4", "4 dozens", 0),
    ("4", "4 lakh", 0),
    ("4", "4M", 0),
    ("4", "4 sixteenths", 0),
    ("4", "4 point two", 0),
    ("4", "4 five", 0),
    ("4", "4 theta", 0),
    ("4", "4 arcsin", 0),
    ("4", "4 doubled", 0),
    ("4", "4 wrong", 0),
    ("4", "4 I think", 0),
    ("4", "4 roughly", 0),
    ("4 people", "4 persons", 1),
    ("4 cherries", "4 cherry", 1),
    ("4 wolves", "4 wolf", 1),
    ("4 men", "4 women", 0),
    ("£4", "4 pounds", 1),
    ("4 lbs", "4 pounds", 1),
    ("$4", r"\$4.00", 1),
    ("$4", "4 dollars", 1),
    ("$4", "4 euros", 0),
    ("$4", "US$4", 1),
    ("$4", "USD 4", 1),
    ("$4", "4$", 1),
    ("$4", "4€", 0),
    ("€4", "4 €", 1),
    ("€4", "4$", 0),
    ("¥4", "4 yen", 1),
    ("4 cents", "4¢", 1),
    ("40 cents", "$0.40", 0),  # nothing is converted
    ("30°C", "30 degrees Celsius", 1),
    ("30°C", "30°F", 0),
    (r"9\pi \text{ cm}^2", "9*pi", 1),
    (r"9\pi \text{ cm}^2", r"9\pi cm²", 1),
    (r"9\pi \text{ cm}^2", r"9\pi \text{ cm}", 0),
    ("25", "２５", 1),
    ("-3/4", "－３／４", 1),
    ("0.25", "25％", 1),
    ("(1,2)", "（１，２）", 1),
    ("25", "٢٥", 1),
    ("-3/8", "-⅜", 1),
    ("1234.5", "١٬٢٣٤٫٥", 1),
    ("25", "２٤", 0),
    ("25", "答案为：25", 1),
    ("25", "答：25", 1),
    ("25", r"\fbox{25}", 1),
    ("25", "答案：25", 1),
    ("25", "最终答案是25。", 1),
    ("1300000", "1.3 × 10⁶", 1),
    ("1300000", "1.3 x 10^6", 1),
    ("1300000", "1.3*10**6", 1),
    ("1300000", "1 300 000", 1),
    ("25", r"\boxed 25", 1),
    ("25", r"\boxed {25}", 1),
    ("-5/2", r"-2\frac12", 1),
    ("-5/2", "-2½", 1),
    ("-3/4", r"\frac{3}{-4}", 1),
    ("25", "Twice 5 is 10, and so on.\n#### 25", 1),
]


@pytest.mark.parametrize(("gold", "answer", "value"), EQUATIONS + LISTS + PRINTED + UNITS)
def test_math(gold, answer, value):
    assert reward(gold, answer) == value


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        ("x^2+3x+2", "(x+1)(x+2)", 0),
        ("x^2+3x+2", "x**2 + 3*x + 2", 1),
        ("x^2+3x+2", "2+3x+x^2", 1),
        ("y=2x+3", "4x-2y+6=0", 0),
        (r"5\sqrt{2}", r"\sqrt{50}", 0),
        (r"\frac{\pi}{12}", "pi/12", 1),  # built as the gold
        ("12000", "12,000", 1),
    ],
)
def test_the_questions_own_words_are_no_answer(gold, answer, value):
    asked = r"Expand $(x+1)(x+2)$, $4x - 2y + 6 = 0$, $\sqrt{50}$, pi/12 or 12,000."
    assert reward(gold, answer, asked) == value


def test_units_of_several_factors():
    assert same_unit(parse_unit("kg m^2/s^2"), parse_unit("kilograms m² per s²".replace("²", "^2")))
    assert not same_unit(parse_unit("m/s"), parse_unit("s/m"))
    for text in ("or 5", "cm^", "/ m", "per", "square", "xy", "a b c d e", "%", ""):
        assert parse_unit(text) is None, text


# ------------------------------------------------------------------------------ against floats

NAMES = {"pi": math.pi, "e": math.e}
EXPONENTS = [
    ("number", 2),
    ("number", 3),
    ("minus", ("number", 1)),
    ("x",),
    ("add", ("x",), ("y",)),
]
EXPONENTS += [("divide", ("number", a), ("number", b)) for a, b in ((1, 2), (1, 3), (2, 3))]


def drawn(draw, depth):
    """Returns a random expression: (operation, operands)."""
    if depth == 0:
        return draw.choice([("x",), ("y",), ("pi",), ("e",), ("number", draw.randint(1, 9))])
    kind = draw.choice(
        ["add", "add", "subtract", "multiply", "multiply", "divide", "power", "minus"]
        + ["sqrt", "cbrt", "sin", "ln", "exp", "abs"]
    )
    if kind == "power":
        return (kind, drawn(draw, depth - 1), draw.choice(EXPONENTS))
    operands = 2 if kind in ("add", "subtract", "multiply", "divide") else 1
    return (kind, *(drawn(draw, depth - 1) for _ in range(operands)))


def changed(draw, tree):
    """Rewrites at random places, often into something equal and often not."""
    kind, *parts = tree
    if kind == "number":
        return tree if draw.random() < 0.6 else ("number", draw.randint(1, 9))
    parts = [changed(draw, part) for part in parts]
    if draw.random() < 0.5:
        return (kind, *parts)
    inner = parts[0] if parts else ("x",)
    match kind, inner[0]:
        case "add" | "multiply", _:
            return (kind, parts[1], parts[0])
        case "subtract", _:
            return ("add", ("minus", parts[1]), parts[0])
        case "divide", _:
            return ("multiply", parts[0], ("power", parts[1], ("minus", ("number", 1))))
        case "sqrt" | "cbrt" | "ln" | "abs", "multiply" | "divide":
            return (inner[0], (kind, inner[1]), (kind, inner[2]))
        case "power", "multiply" | "divide":
            return (inner[0], *(("power", part, parts[1]) for part in inner[1:]))
        case "power", "power":
            return ("power", inner[1], ("multiply", inner[2], parts[1]))
        case "sqrt", _:
            return ("power", inner, ("divide", ("number", 1), ("number", 2)))
    return (kind, *parts)


LATEX = {
    "add": "({}+{})",
    "subtract": r"\left({}-({})\right)",
    "multiply": r"({}) \cdot ({})",
    "divide": r"\frac{{{}}}{{{}}}",
    "power": "({})^{{{}}}",
    "minus": "(-({}))",
    "sqrt": r"\sqrt{{{}}}",
    "cbrt": r"\sqrt[3]{{{}}}",
    "sin": r"\sin({})",
    "ln": r"\ln({})",
    "exp": "e^{{{}}}",
    "abs": "|{}|",
    "pi": r"\pi",
}
PYTHON = {
    "add": "({} + {})",
    "subtract": "({} - ({}))",
    "multiply": "({})*({})",
    "divide": "({})/({})",
    "power": "({})**({})",
    "minus": "(-({}))",
    "sqrt": "sqrt({})",
    "cbrt": "cbrt({})",
    "sin": "sin({})",
    "ln": "log({})",
    "exp": "exp({})",
    "abs": "Abs({})",
    "e": "E",
}


def text(tree, forms):
    kind, *parts = tree
    if kind == "number":
        return str(parts[0])
    return forms.get(kind, kind).format(*(text(part, forms) for part in parts))


def real_power(base, exponent):
    if base < 0 and exponent in (1 / 3, 2 / 3):
        return math.copysign(abs(base) ** exponent, -1 if exponent == 1 / 3 else 1)
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("not real")
    return value


OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": real_power,
    "minus": lambda a: -a,
    "sqrt": math.sqrt,
    "cbrt": math.cbrt,
    "sin": math.sin,
    "ln": math.log,
    "exp": math.exp,
    "abs": abs,
}


def real_value(tree, point):
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind in NAMES:
        return NAMES[kind]
    if kind in point:
        return point[kind]
    return OPERATIONS[kind](*(real_value(part, point) for part in parts))


def agreements(draw, tree, other):
    """Returns whether two expressions agree, at each of some points where both are defined."""
    found = []
    for i in range(20):
        point = {name: draw.uniform(0.1 if i % 2 else -3, 3) for name in "xy"}
        try:
            a, b = real_value(tree, point), real_value(other, point)
        except (ValueError, ZeroDivisionError, OverflowError):
            continue
        if max(abs(a), abs(b)) < 1e8:
            found.append(abs(a - b) <= 1e-7 * max(1, abs(a), abs(b)))
    return found


def called_equal(one, other):
    trees = [expressions.parse(one), expressions.parse(other)]
    assert None not in trees, (one, other)
    return formulas.equal(*trees) or trees[0] == trees[1]


def test_expressions_called_equal_are_equal_wherever_both_are_defined():
    draw = random.Random(0)
    equal = unequal = 0
    for _ in range(1000):
        tree = drawn(draw, draw.choice([1, 2, 2, 3]))
        other = changed(draw, tree)
        one, two = text(tree, LATEX), text(other, draw.choice([LATEX, PYTHON]))
        if max(len(one), len(two)) > expressions.MAX_EXPRESSION:
            continue
        found = agreements(draw, tree, other)
        if called_equal(one, two):
            assert all(found), (one, two)
            equal += len(found) > 3
        unequal += not all(found)
    assert equal > 300 and unequal > 100  # the draw holds what it must to mean something


def test_an_expression_is_equal_to_itself_as_programs_print_it():
    draw = random.Random(1)
    for _ in range(300):
        tree = drawn(draw, 2)
        one, other = text(tree, LATEX), text(tree, PYTHON)
        assert formulas.equal(expressions.parse(one), expressions.parse(other)) or too_large(one)


def too_large(one):
    try:
        algebra.Algebra().value(expressions.parse(one))
    except algebra.TooLarge:
        return True
    return formulas.leaves_work(expressions.parse(one), expressions.parse(one))


# ------------------------------------------------------------------------------------- hostile

HOSTILE = [
    "A" * 250 + "! = 5",
    "a " * 140 + "! = 5",
    "ABAB" * 60 + "= 5!",
    "((((x+1)^9+1)^9+1)^9+1)^9",
    "(x+y+z+w)^" * 20 + "2",
    "(a+b+c+d)^{40}",
    "9^{9^{9^{9}}}",
    "x^{99999999999}",
    "999999999!",
    "(" * 140 + "x",
    "f(" * 70 + "x" + ")" * 70,
    r"\frac{1}{" * 30 + "x" + "}" * 30,
    "sqrt(2+" * 40 + "2" + ")" * 40,
    "|" * 299,
    "√" * 299,
    "-" * 299 + "5",
    "1/" * 149 + "1",
    "5 or " * 59 + "5",
    "5," * 149 + "5",
    r"\begin{pmatrix}" * 15,
    "Interval(" * 33,
    "Matrix([[" * 33,
    "(x>1) & " * 37,
    "(" * 140 + "x>1" + ")" * 140,
    "{a: 1, " * 42,
    "x = 6 perhaps " * 21,
    "x=1\n" * 70,
    r"\boxed{7} or " * 1_500,
    "or " * 6_000 + r"\boxed{7}",
    r"0.\dot{1}" * 30,
    r"\boxed " * 2_000,
    "#### " * 4_000,
    "答案：" * 5_000,
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_score_0(answer):
    for gold in ("5", "x", "x^2+1", "x^2+y^2=25", r"2\sqrt{2}", "1, 2", "(1,2)"):
        assert reward(gold, answer) == 0


def test_any_text_has_a_verdict():
    pieces = ["x", "n", "2", "10", "+", "-", "*", "/", "^", "(", ")", "{", "}", "[", "]", "|", ","]
    pieces += [r"\frac", r"\sqrt", r"\sin", r"\log_2", "e", "i", r"\pi", "!", " or ", "=", "<", "_"]
    pieces += [r"\pm", r"\{", r"\}", r"\text{ cm}", "%", "$", ":", ".", "...", r"\overline{3}", "√"]
    pieces += [r"\begin{pmatrix}", "&", r"\\", "½", "²", r"\boxed{", "####", "f(", "∪", "oo", "'"]
    draw = random.Random(2)
    for _ in range(500):
        one, other = (
            "".join(draw.choice(pieces) for _ in range(draw.choice([2, 5, 12, 40]))) for _ in "ab"
        )
        assert reward(one, other) in (0.0, 1.0)
        assert reward("5", other) == 0 or "5" in other
