"""All worlds by name."""

from experiments.worlds import chains, game24, quickstart, tables

WORLDS = {each.WORLD.name: each.WORLD for each in (quickstart, game24, chains, tables)}


def choose(names, *, tools):
    """Returns the worlds of these names, which commas divide.

    tools: names of those that the agent has.

    Raises:
      ValueError: a world is unknown, or its solutions need a further tool.
    """
    chosen = names.split(",")
    if set(chosen) - set(WORLDS):
        raise ValueError(f"worlds={names!r} must be one or more of {','.join(WORLDS)}.")
    for name in chosen:
        if lacking := set(WORLDS[name].tools) - set(tools):
            raise ValueError(
                f"The world {name} needs {', '.join(sorted(lacking))}; add it to tools.names."
            )
    return [WORLDS[name] for name in chosen]
