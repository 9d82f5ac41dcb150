"""What never leaves the machine: keys, wherever they may stand in what a tracker is sent."""

import re

SECRET = re.compile(r"(?i)key|token|secret|password|passwd|credential|authorization")
LEAST = 8  # characters of a value that is looked for
HIDDEN = "***"
USER = re.compile(r"(://)[^/\s@'\"]+@")  # https://user:password@host
# --api-key=x, --token x, ?key=x, TOKEN=x, "Authorization: Bearer x"
GIVEN = re.compile(
    r"(?i)([\w-]*(?:key|token|secret|password|passwd|credential|authorization)[\w-]*['\"]?"
    r"(?:\s*[=:]\s*|\s+)['\"]?(?:bearer\s+|basic\s+)?)[^\s'\"&]+"
)
FREE = re.compile(r"^backends\.[^.]+\.extra\.")  # of a server's requests: the user names them


def hider(environment):
    """Returns a function that replaces the values of variables that are named like keys."""
    values = {
        value.strip()
        for name, value in environment.items()
        if SECRET.search(name) and len(value.strip()) >= LEAST
    }
    longest_first = sorted(map(re.escape, values), key=len, reverse=True)
    known = re.compile("|".join(longest_first)) if values else None
    return lambda text: known.sub(HIDDEN, text) if known else text


def of_config(config, hide):
    """Returns {dotted name: value} of a stored config without keys.

    Fields hold names of variables, never keys, but commands, addresses and a server's extra fields
    are the user's own texts.
    """
    return {name: _shown(name, value, hide) for name, value in _flat(config)}


def _shown(name, value, hide):
    if isinstance(value, dict):
        return {key: _shown(f"{name}.{key}", part, hide) for key, part in value.items()}
    if isinstance(value, list):
        return [_shown(name, item, hide) for item in value]
    if not isinstance(value, str):
        return value
    if FREE.match(name) and SECRET.search(name.removeprefix("backends.")):
        return HIDDEN
    return GIVEN.sub(rf"\g<1>{HIDDEN}", USER.sub(rf"\g<1>{HIDDEN}@", hide(value)))


def _flat(value, name=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else key)
    else:
        yield name, value
