"""What learns in a warm start, as its loop sees it; `nano.WholeRows` and `replies.Replies` do."""

from typing import Protocol

from flow_grpo_jax import update


class Learner(Protocol):
    """Made of (config, workdir, optimizer); raises ConfigError where these do not fit.

    state: update.State to start with; `step` returns the next one and may take its memory.
    facts: what a checkpoint says of its weights and examples, JSON-able; equal in a resumed run.
    """

    state: update.State
    facts: dict

    def step(self, state):
        """Takes an optimizer step on the next examples; returns (state, metrics)."""

    def measure(self, state):
        """Returns metrics of held-out examples, {"held_out/NAME/MODULE": float}."""

    def position(self):
        """Returns where in the examples this is, JSON-able, for `go_to`."""

    def go_to(self, position):
        """Goes on with the examples from a position; ValueError if it is of other examples."""

    def write(self, state, folder):
        """Writes the model as a Hugging Face folder."""

    def close(self):
        """Ends what runs beside."""
