"""The evolving memory M_t of one trajectory (paper section 3.1): deterministic and immutable."""

import dataclasses

SHORTENED = " [shortened]"  # what prompts show behind a text that was cut


@dataclasses.dataclass(frozen=True)
class Entry:
    """One remembered turn.

    result: the tool's text, or the error that stopped the turn.
    shortened: names of the fields whose end was cut off.
    seconds: for the record only; a prompt with a measured time could not be reproduced.
    """

    sub_goal: str
    tool: str
    command: str
    result: str
    error: bool
    verdict: str = ""
    shortened: frozenset[str] = frozenset()
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Memory:
    """Entries in order; `Memory()` starts empty in every `solve`."""

    entries: tuple[Entry, ...] = ()

    def add(self, entry):
        """Returns a memory that ends with this entry."""
        return Memory((*self.entries, entry))

    def shortened(self, index, field, *, characters):
        """Returns a copy in which a text of the entry at `index` keeps this many characters."""
        entry = self.entries[index]
        text = getattr(entry, field)
        if len(text) <= characters + len(SHORTENED):
            return self
        short = {field: text[:characters], "shortened": entry.shortened | {field}}
        cut = dataclasses.replace(entry, **short)
        return Memory((*self.entries[:index], cut, *self.entries[index + 1 :]))
