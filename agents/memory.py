"""The evolving memory M_t of one trajectory (paper section 3.1): deterministic and immutable."""

import dataclasses

SHORTENED = " [shortened]"


@dataclasses.dataclass(frozen=True)
class Step:
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
    """Steps in order; `Memory()` starts empty in every `solve`."""

    steps: tuple[Step, ...] = ()

    def add(self, step):
        return Memory((*self.steps, step))

    def shortened(self, index, field, *, characters):
        """A copy in which a text of the step at `index` keeps this many characters."""
        step = self.steps[index]
        text = getattr(step, field)
        if len(text) <= characters + len(SHORTENED):
            return self
        cut = dataclasses.replace(step, **{field: text[:characters] + SHORTENED})
        return Memory((*self.steps[:index], cut, *self.steps[index + 1 :]))
