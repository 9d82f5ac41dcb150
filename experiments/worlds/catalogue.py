"""All worlds by name."""

from experiments.worlds import chains, game24, quickstart, tables

WORLDS = {each.WORLD.name: each.WORLD for each in (quickstart, game24, chains, tables)}


def choose(names, *, tools):
    """Returns the worlds of these names.

    tools: names of those that the agent has.

    Raises:
      ValueError: a world is unknown, or there are none, or its solutions need a further tool.
    """
    if not names or set(names) - set(WORLDS):
        raise ValueError(f"worlds={tuple(names)} must be some of {', '.join(WORLDS)}.")
    for name in names:
        if lacking := set(WORLDS[name].tools) - set(tools):
            raise ValueError(
                f"The world {name} needs {', '.join(sorted(lacking))}; add it to tools.names."
            )
    return [WORLDS[name] for name in names]
