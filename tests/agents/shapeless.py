"""A module whose `make` makes no environment."""


def make(settings):
    return {}
