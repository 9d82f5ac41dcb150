"""The loads that the engine answers: model sizes, and requests of stated lengths.

A load is a list of chains of turns, see peers/drive.py. Lengths and waits depend on the seed alone,
the tokens on the round too, so that no round finds its prompts in the cache.
"""

import contextlib
import dataclasses

import numpy as np

from experiments.speed import loads
from experiments.speed.peers import drive
from models import decoder, published

SPREAD = 0.6  # standard deviation of the logarithm, of the queue's lengths and the tools' seconds
CLIP = 4  # lengths lie within a factor of this from their median
TURNS, GROUP = 3, 8


@dataclasses.dataclass(frozen=True)
class EngineSize:
    """A model, and the requests it gets.

    slots: requests at once. prompt, response: tokens of a request of the uniform load and of the
    single stream; half of the prompt and all of the response are the queue's medians.
    queue: requests in it. singles: requests of the single stream.
    divide: divides the method's lengths in the agent trace. questions: of the trace.
    tool_seconds: median time of a tool call. engine: arguments of our engine.
    """

    dims: decoder.Config
    slots: int
    prompt: int
    response: int
    queue: int
    singles: int
    divide: int
    questions: int
    tool_seconds: float
    engine: dict

    def weights(self, itemsize):
        """Bytes of the model with numbers of so many bytes, about."""
        embeddings = 1 if self.dims.tie_word_embeddings else 2
        layers = self.dims.num_hidden_layers * self.dims.layer_parameters
        return itemsize * (layers + embeddings * self.dims.vocab_size * self.dims.hidden_size)

    def cache_tokens(self, longest, memory, itemsize, *, separate):
        """Returns how many tokens the engine's cache is to hold.

        Room for running requests, and as much again for remembered ones, as far as there is memory.

        Args:
          longest: tokens of the longest request. memory: bytes for model and engine; None for no
            limit. itemsize: bytes of a number.
          separate: whether the engine has layers of its own.

        Raises:
          ValueError: not even two such requests fit.
        """
        wanted = 2 * self.slots * longest
        if memory is None:
            return wanted
        dims = self.dims
        held = self.weights(itemsize)
        if separate:
            held += itemsize * dims.num_hidden_layers * dims.layer_parameters
        position = 2 * dims.num_key_value_heads * dims.head_dim * dims.num_hidden_layers * itemsize
        room = int(max(0.0, ROOM * memory - held) / position)
        if room < 2 * longest:
            raise ValueError(
                f"Beside the weights {room:,} tokens fit into the cache, and a request has up to "
                f"{longest:,}: choose a smaller model."
            )
        return min(wanted, room)


ROOM = 0.85  # of the free memory: what layers and cache of the engine may take
ON_CPU = dict(page_size=16, prefill_tokens=32, prefill_rows=8, prefill_calls=16, decode_steps=8)
ON_GPU = dict(page_size=64, prefill_tokens=512, prefill_rows=2, prefill_calls=16, decode_steps=8)
SMALL = dict(prompt=128, response=64, divide=10, engine=ON_CPU)
LARGE = dict(response=256, singles=2, engine=ON_GPU)
SIZES = {
    "nano": EngineSize(
        loads.SIZES["nano"].dims,
        slots=32,
        queue=96,
        singles=4,
        questions=4,
        tool_seconds=0.05,
        **SMALL,
    ),
    "20m": EngineSize(
        loads.SIZES["20m"].dims,
        slots=16,
        queue=48,
        singles=2,
        questions=2,
        tool_seconds=0.2,
        **SMALL,
    ),
    "0.5b": EngineSize(
        published.SIZES["0.5b"],
        slots=128,
        prompt=2_048,
        queue=384,
        divide=2,
        questions=16,
        tool_seconds=1.0,
        **LARGE,
    ),
    "1.5b": EngineSize(
        published.SIZES["1.5b"],
        slots=128,
        prompt=3_968,
        queue=256,
        divide=1,
        questions=16,
        tool_seconds=2.0,
        **LARGE,
    ),
    "7b": EngineSize(
        published.SIZES["7b"],
        slots=64,
        prompt=3_968,
        queue=128,
        divide=1,
        questions=8,
        tool_seconds=2.0,
        **LARGE,
    ),
}
ON_ACCELERATOR = ("7b", "1.5b", "0.5b")  # by default the first that fits


def largest_that_fits(memory):
    """Returns the name of the model to measure on an accelerator with so many bytes.

    All running requests of the uniform load fit into its cache.
    """
    for name in ON_ACCELERATOR:
        size = SIZES[name]
        longest = size.prompt + size.response
        with contextlib.suppress(ValueError):
            if size.cache_tokens(longest, memory, 2, separate=True) >= size.slots * longest:
                return name
    return ON_ACCELERATOR[-1]


@dataclasses.dataclass(frozen=True)
class EngineLoad:
    """The requests of a round. chains: each a tuple of turns, sent one after another."""

    chains: tuple[tuple[drive.Turn, ...], ...]

    @property
    def turns(self):
        return [turn for chain in self.chains for turn in chain]

    @property
    def prompt_tokens(self):
        return sum(len(turn.prompt) for turn in self.turns)

    @property
    def new_tokens(self):
        return sum(turn.new for turn in self.turns)

    @property
    def longest(self):
        """Tokens of the longest request: (prompt, response, both)."""
        turns = self.turns
        return (
            max(len(turn.prompt) for turn in turns),
            max(turn.new for turn in turns),
            max(len(turn.prompt) + turn.new for turn in turns),
        )


class _Requests:
    """Lengths and waits drawn from the seed, token ids drawn from the seed and the round."""

    def __init__(self, size, seed, turn_of):
        self.lengths = np.random.default_rng(seed)
        self.ids = np.random.default_rng([seed, turn_of])
        self.vocabulary = size.dims.vocab_size

    def length(self, median, spread=SPREAD):
        drawn = median * self.lengths.lognormal(0.0, spread)
        return max(1, round(float(np.clip(drawn, median / CLIP, median * CLIP))))

    def seconds(self, median):
        return float(np.clip(self.lengths.lognormal(np.log(median), SPREAD), 0, CLIP * median))

    def tokens(self, count):
        # Ids 0 and 1 stay free: peers mark padding and ends with them.
        return tuple(self.ids.integers(2, self.vocabulary, count).tolist())


def uniform(size, seed, turn_of):
    """Makes as many requests as slots, of one length, all at once; no prefix is shared."""
    drawn = _Requests(size, seed, turn_of)
    turn = lambda: drive.Turn(drawn.tokens(size.prompt), size.response, 0.0)
    return EngineLoad(tuple((turn(),) for _ in range(size.slots)))


def prefill(size, seed, turn_of):
    """Makes the prompts of `uniform`, each to be answered with one token: no step decodes."""
    load = uniform(size, seed, turn_of)
    return EngineLoad(tuple((turn._replace(new=1),) for (turn,) in load.chains))


def queue(size, seed, turn_of):
    """Makes more requests than slots, of mixed lengths, all at once; no prefix is shared."""
    drawn = _Requests(size, seed, turn_of)

    def turn():
        prompt, response = drawn.length(size.prompt // 2), drawn.length(size.response)
        return drive.Turn(drawn.tokens(prompt), response, 0.0)

    return EngineLoad(tuple((turn(),) for _ in range(size.queue)))


def trace(size, seed, turn_of):
    """Makes agents: 8 rollouts of a question, three turns each, tools between, a growing memory.

        turn 1   first        end
        turn 2   first memory end           once the tool of turn 1 has answered
        turn 3   first memory memory end

    The rollouts of a question share `first`, all prompts share `end`. The memory is drawn too and
    does not depend on generated tokens, so that all contestants answer the same prompts.
    """
    drawn = _Requests(size, seed, turn_of)
    end, chains = drawn.tokens(loads.END // size.divide), []
    for _ in range(size.questions):
        first = drawn.tokens(drawn.length(loads.FIRST / size.divide, loads.SPREAD["first"]))
        for _ in range(GROUP):
            prompt, turns = first, []
            for t in range(TURNS):
                response = drawn.length(loads.RESPONSE / size.divide)
                wait = drawn.seconds(size.tool_seconds) if t else 0.0
                turns.append(drive.Turn(prompt + end, response, wait))
                prompt = prompt + drawn.tokens(drawn.length(loads.MEMORY / size.divide))
            chains.append(tuple(turns))
    return EngineLoad(tuple(chains))


def single(size, seed, turn_of):
    """Makes requests to be sent one after another; no prefix is shared."""
    drawn = _Requests(size, seed, turn_of)
    turn = lambda: drive.Turn(drawn.tokens(size.prompt), size.response, 0.0)
    return EngineLoad((tuple(turn() for _ in range(size.singles)),))


def first_tokens(load, count):
    """Returns the first turns of `count` chains, each asked for two tokens: a brief warm-up."""
    return EngineLoad(tuple((chain[0]._replace(new=2),) for chain in load.chains[:count]))


LOADS = {"prefill": prefill, "uniform": uniform, "queue": queue, "trace": trace, "single": single}


def common_prefixes(prompts, page_size):
    """Sums (tokens, tokens in whole pages) that prompts share with earlier ones.

    A prompt shares its longest common prefix with any earlier prompt. Its last token does not
    count: it has to be computed, because the first response token is drawn from its logits.
    """
    earlier, tokens, in_pages = [], 0, 0
    for prompt in map(np.asarray, prompts):
        longest = 0
        for other in earlier:
            least = min(len(prompt), len(other))
            differs = prompt[:least] != other[:least]
            longest = max(longest, int(differs.argmax()) if differs.any() else least)
        longest = min(longest, len(prompt) - 1)
        tokens += longest
        in_pages += longest // page_size * page_size
        earlier.append(prompt)
    return tokens, in_pages
