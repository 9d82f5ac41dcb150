"""Nested values by dotted names, such as those of a config."""


def flat(value, name=""):
    """Yields (dotted name, value) of everything that is no section; an empty section is a value."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
