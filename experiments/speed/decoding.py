"""The least time that a load of requests takes on a device, from its FLOPs and its bytes."""

import dataclasses

from models import decoder


@dataclasses.dataclass(frozen=True)
class Limit:
    """The best a device can do. rate: FLOP/s. bandwidth: bytes/s. itemsize: of all numbers."""

    dims: decoder.Config
    rate: float
    bandwidth: float
    itemsize: int

    @property
    def layer_weights(self):
        return self.dims.num_hidden_layers * self.dims.layer_parameters

    @property
    def head_weights(self):
        return self.dims.vocab_size * self.dims.hidden_size

    @property
    def pair_flops(self):
        """FLOPs of one query that sees one key, in all layers."""
        return 4 * self.dims.num_hidden_layers * self.dims.num_attention_heads * self.dims.head_dim

    def decode_seconds(self, steps, tokens, context):
        """Returns the least seconds of steps that draw `tokens` and see `context` positions."""
        weights = self.layer_weights + self.head_weights
        position = 2 * self.dims.num_key_value_heads * self.dims.head_dim
        position *= self.dims.num_hidden_layers
        moved = self.itemsize * (steps * weights + position * context)
        flops = 2 * weights * tokens + self.pair_flops * context
        return max(moved / self.bandwidth, flops / self.rate)

    def prefill_seconds(self, prompt, shared):
        """Returns the least seconds of a prompt whose first `shared` tokens are in the cache."""
        pairs = (prompt * (prompt + 1) - shared * (shared + 1)) / 2
        flops = 2 * self.layer_weights * (prompt - shared) + 2 * self.head_weights
        return (flops + self.pair_flops * pairs) / self.rate

    def seconds(self, load, slots, shared):
        """Returns the least seconds of a load; `shared` of its prompt tokens are not computed."""
        share = shared / load.prompt_tokens
        prefill = sum(
            self.prefill_seconds(len(turn.prompt), share * len(turn.prompt)) for turn in load.turns
        )
        tokens = sum(turn.new - 1 for turn in load.turns)  # the prefill draws the first
        alone = max(sum(turn.new - 1 for turn in chain) for chain in load.chains)
        work = prefill + self.decode_seconds(max(tokens / slots, alone), tokens, context(load))
        longest = max(
            sum(t.wait + self.decode_seconds(t.new - 1, t.new - 1, _seen(t)) for t in chain)
            for chain in load.chains
        )
        return max(work, longest)


def _seen(turn):
    """Counts the positions that a turn's decode steps see."""
    steps = turn.new - 1
    return steps * len(turn.prompt) + steps * (steps + 1) // 2


def context(load):
    """Counts the positions that a load's decode steps see."""
    return sum(map(_seen, load.turns))
