"""The evolving memory M_t of one trajectory (paper section 3.1): deterministic and immutable."""

import dataclasses

SHORTENED = " [shortened]"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One remembered turn. `result` is what the tool gave, or the error that stopped the turn.

    seconds is kept for the record and left out of prompts: a prompt that holds a measured time
    could not be reproduced.
    """

    sub_goal: str
    tool: str
    command: str
    result: str
    error: bool
    verdict: str = ""
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
        cut = dataclasses.replace(entry, **{field: text[:characters] + SHORTENED})
        return Memory((*self.entries[:index], cut, *self.entries[index + 1 :]))
