"""Units of numbers in one spelling: feet is foot, km/h is kmh, cm² is cm^2."""

import re

_WORDS = {
    "millimeter": "mm millimeter millimetre",
    "centimeter": "cm centimeter centimetre",
    "meter": "m meter metre",
    "kilometer": "km kilometer kilometre kms",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "milligram": "mg milligram",
    "gram": "g gram gramme",
    "kilogram": "kg kilogram kilo kgs",
    "pound": "lb lbs pound",
    "ounce": "oz ounce",
    "milliliter": "ml milliliter millilitre",
    "liter": "l liter litre",
    "millisecond": "ms millisecond",
    "second": "s sec secs second",
    "minute": "min mins minute",
    "hour": "h hr hrs hour",
    "degree": "degree deg degs",
    "mile/hour": "mph",
    "kilometer/hour": "kmh kph kmph",
    "kilobyte": "kb kilobyte",
    "megabyte": "mb megabyte",
    "gigabyte": "gb gigabyte",
    "terabyte": "tb terabyte",
    "am": "am",
    "pm": "pm",
}
NAMES = {spelling: name for name, spellings in _WORDS.items() for spelling in spellings.split()}
# Glued to a number, or of one letter, these are units: 5x, 5 i and 5pi are not.
SHORT = frozenset(spelling for spelling in NAMES if len(spelling) <= 4) - {"mile", "foot", "feet"}
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "persons": "person",
    "mice": "mouse", "geese": "goose", "teeth": "tooth", "lives": "life", "knives": "knife",
    "halves": "half", "leaves": "leaf", "loaves": "loaf", "vertices": "vertex", "dice": "die",
    "indices": "index", "matrices": "matrix", "radii": "radius", "axes": "axis", "pence": "penny",
    "pennies": "penny", "oxen": "ox", "wolves": "wolf", "shelves": "shelf", "potatoes": "potato",
    "tomatoes": "tomato", "heroes": "hero",
}  # fmt: skip
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}


def canonical(unit):
    """Returns one spelling for all that a unit has.

    Args:
      unit: letters, spaces, points, "/" and ^2 or ^3, such as "square feet" or "km/h".
    """
    text = re.sub(r"\s*\^\s*\{?(\d)\}?", r"^\1", unit.lower().replace(".", " "))
    text = re.sub(r"\s*/\s*|\s+per\s+", "/", text)
    parts = []
    for part in text.split("/"):
        words = part.split()
        power = ""
        if len(words) > 1 and words[0] in _POWERS:
            power, words = _POWERS[words[0]], words[1:]
        parts.append(" ".join(map(_word, words)) + power)
    return "/".join(parts)


def _word(word):
    word, mark, power = word.partition("^")
    return _singular(word) + mark + power


def _singular(word):
    if word in NAMES:
        return NAMES[word]
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, replaced in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + replaced
    if word.endswith("xes"):
        return word.removesuffix("es")
    if word.endswith("s") and not word.endswith("ss") and len(word) > 2:
        word = word.removesuffix("s")
    return NAMES.get(word, word)
