"""Units of measure and of counting, in one spelling."""

import re

# canonical name: its spellings. A word may stand under several names: 5 pounds are £5 or 5 lb.
_SPELLINGS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm cms centimeter centimetre",
    "dm": "dm decimeter decimetre",
    "m": "m meter metre",
    "km": "km kms kilometer kilometre",
    "in": "in inch",
    "ft": "ft foot",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "g gm gram",
    "kg": "kg kgs kilo kilogram",
    "lb": "lb lbs pound",
    "oz": "oz ounce",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre",
    "gal": "gal gallon",
    "qt": "qt quart",
    "pt": "pt pint",
    "ms": "ms millisecond",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hrs hour",
    "day": "day",
    "week": "week wk",
    "year": "year yr",
    "am": "am",
    "pm": "pm",
    "hz": "hz hertz",
    "khz": "khz kilohertz",
    "megahz": "megahz megahertz",
    "ghz": "ghz gigahertz",
    "j": "joule",
    "n": "newton",
    "w": "watt",
    "mw": "mw milliwatt",
    "kw": "kw kilowatt",
    "megaw": "megaw megawatt",
    "kj": "kj kilojoule",
    "megaj": "megaj megajoule",
    "pa": "pascal pa",
    "kpa": "kpa kilopascal",
    "megapa": "megapa megapascal",
    "kb": "kb kilobyte",
    "mb": "mb megabyte",
    "gb": "gb gigabyte",
    "tb": "tb terabyte",
    "degree": "degree deg degs",
    "°c": "degree celsius",
    "°f": "degree fahrenheit",
    "rad": "rad radian",
    "dollar": "dollar usd buck",
    "cent": "cent",
    "euro": "euro eur",
    "pound": "pound gbp",
    "yen": "yen jpy",
    "rupee": "rupee inr",
    "unit": "unit",
}
_NAMES: dict[str, frozenset[str]] = {}
for _name, _words in _SPELLINGS.items():
    for _word in _words.split():
        _NAMES[_word] = _NAMES.get(_word, frozenset()) | {_name}
# Words that are a unit wherever they stand behind a value.
MEASURES = frozenset(
    {name for name in _NAMES if len(name) > 1}
    | {name + "s" for name in _NAMES if len(name) > 2}
    | {"feet", "inches", "square", "cubic", "mph", "kmh", "kph"}
) - {"in", "am", "pm"}
_IRREGULAR = {
    "feet": "foot",
    "inches": "inch",
    "people": "person",
    "persons": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "mice": "mouse",
    "geese": "goose",
    "teeth": "tooth",
    "dice": "die",
    "oxen": "ox",
    "vertices": "vertex",
    "indices": "index",
    "matrices": "matrix",
    "hertz": "hertz",
    "celsius": "celsius",
    "gas": "gas",
    "bus": "bus",
}
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))
_TOGETHER = {
    "cc": "cm^3",
    "mph": "mi/h",
    "kmh": "km/h",
    "kph": "km/h",
    "kmph": "km/h",
    "mps": "m/s",
}
_SCALE = re.compile(r"degrees?\s*(?:(c)(?:elsius)?|f(?:ahrenheit)?)")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERS_BEHIND = {"squared": 2, "cubed": 3}
_WORD = re.compile(
    r"([a-z]+)(?:\.?(?:\s*\^\s*\{?\s*([-+]?[1-3])\s*\}?)?|([23]))(?!\d)|(/|\bper\b)|[\s*]+"
)
_MEGA = re.compile(r"\bM(?=(?:Hz|W|J|Pa)\b)")
MONEY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "¢": "cent"}
# A unit glued to its number, or of one letter, must be one of these: 5x, 5 i and 5pi are no units.
SHORT = frozenset(
    {"mm", "cm", "dm", "m", "km", "in", "ft", "yd", "mi", "mg", "g", "kg", "lb", "lbs", "oz", "ml"}
    | {"l", "ms", "s", "sec", "min", "h", "hr", "hrs", "mph", "kmh", "kph", "am", "pm", "kb", "mb"}
    | {"gb", "tb", "hz"}
)
# Words that change the number before them instead of naming what is counted.
_CARDINALS = re.compile(
    "(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six"
    "|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million"
    "|billion|trillion|dozen|lakh|crore|half|quarter|first|third|fourth|fif|eigh|nin|twelf"
    "|twentie|thirtie|fortie|fiftie)(?:s|ths?)?|halves"
)
_NOT_UNITS = frozenset(
    {"or", "and", "nor", "not", "to", "if", "but", "than", "more", "less", "fewer", "greater"}
    | {"plus", "minus", "times", "over", "by", "mod", "modulo", "choose", "power", "negative"}
    | {"squared", "cubed", "factorial", "root", "sqrt", "pi", "log", "ln", "sin", "cos", "tan"}
    | {"sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "exp", "abs"}
    | {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "theta", "kappa", "lambda", "sigma"}
    | {"tau", "phi", "chi", "psi", "omega", "infinity", "oo", "inf", "fold", "mn", "bn"}
    | {"double", "doubled", "triple", "tripled", "halved", "inverse", "reciprocal"}
    | {"no", "none", "nope", "never", "wrong", "incorrect", "false", "unknown", "unsure", "nan"}
    | {
        "isnt",
        "approx",
        "roughly",
        "nearly",
        "almost",
        "ish",
        "invalid",
        "wait",
        "actually",
        "sorry",
        "hmm",
        "i",
        "think",
        "believe",
        "that",
    }
    | {"maybe", "perhaps", "about", "approximately", "either", "though", "because", "since", "is"}
    | {"unless", "else", "otherwise", "except", "when", "where", "possibly", "probably", "guess"}
    | {"percent", "percents", "permille", "base", "remainder"}
)

Unit = tuple[tuple[frozenset[str], int], ...]  # (names a word may stand for, power) of each factor


def parse_unit(text: str) -> Unit | None:
    """Returns the factors of a unit, or None if `text` is none.

    Takes up to four words: cm^2, cm², square centimeters, km/h, kmh, "miles per hour", m s^{-1},
    "red apples". Plurals are singular. A word that stands in no table is a unit of its own.
    """
    text = _MEGA.sub("mega", text.strip()).lower()
    if scale := _SCALE.fullmatch(text):
        text = "celsius" if scale[1] else "fahrenheit"
    for word, spelled in _TOGETHER.items():
        text = re.sub(rf"^{word}\.?$", spelled, text)
    factors, sign, power, position = [], 1, 1, 0
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            return None
        position = match.end()
        if match[4] or match[1] == "per":
            if sign < 0 or not factors:
                return None
            sign = -1
        elif match[1] in _POWERS and not match[2]:
            power = _POWERS[match[1]]
        elif match[1] in _POWERS_BEHIND and factors and factors[-1][0] & _SPELLINGS.keys():
            names, one = factors.pop()
            factors.append((names, one * _POWERS_BEHIND[match[1]]))
        elif match[1]:
            names = _names(match[1])
            known = bool(names & _SPELLINGS.keys())
            product = len(match[1]) < 3 or match[1] in _ALPHABET or match[3]  # bh, xyz, x2
            if match[1] in _NOT_UNITS or _CARDINALS.fullmatch(match[1]) or (product and not known):
                return None
            factors.append((names, sign * power * int(match[2] or match[3] or 1)))
            power = 1
    if not 1 <= len(factors) <= 4 or power != 1 or 0 in {power for _, power in factors}:
        return None
    return tuple(factors)


def _names(word: str) -> frozenset[str]:
    """Returns what a word stands for: its canonical names, else what it may be the plural of."""
    singular = {_IRREGULAR[word]} if word in _IRREGULAR else {word}
    if word not in _IRREGULAR and len(word) > 3:
        for ending, replaced in (
            ("ies", ("y",)),
            ("ves", ("f", "fe")),
            ("es", ("",)),
            ("s", ("",)),
        ):
            if word.endswith(ending) and not word.endswith("ss"):
                singular |= {word.removesuffix(ending) + end for end in replaced}
    known = frozenset().union(*(_NAMES.get(name, ()) for name in singular))
    return known or frozenset(singular)


def same_unit(a: Unit, b: Unit) -> bool:
    """Returns whether two units are one: the same factors in the same order."""
    return len(a) == len(b) and all(
        names & others and power == other
        for (names, power), (others, other) in zip(a, b, strict=True)
    )
