"""Arguments of the tools' makers: those of the config, and what a test changes."""

from experiments.configs import common
from tools import toolbox


def of(name, **changes):
    """The arguments of one tool's `make`."""
    return {**common.base().tools[name].to_dict(), **changes}


def make(name, **changes):
    """The tool."""
    return toolbox.MAKERS[name](**of(name, **changes))


def build(names, *, mcp=(), record="", replay=False, **changes):
    """`toolbox.build`; changes: tool -> arguments that differ from the config's."""
    known = [name for name in names if name in toolbox.MAKERS]
    arguments = {name: of(name, **changes.get(name, {})) for name in known}
    return toolbox.build(names, arguments, mcp=mcp, record=record, replay=replay)
