"""What the engine benchmark generates: model sizes, and requests of stated lengths.

A load is a list of chains of turns, see peers/drive.py. Lengths and waits depend on the seed alone,
the tokens on the round too: in every round the caches start without what is asked.
"""

import dataclasses

import numpy as np

from experiments.speed import loads
from experiments.speed.peers import drive
from models import published, qwen2

SPREAD = 0.6  # standard deviation of the logarithm, of the queue's lengths and the tools' seconds
CLIP = 4  # lengths lie within a factor of this from their median
TURNS, GROUP = 3, 8


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how it is asked.

    slots: requests at once. prompt, response: tokens of a request of the uniform load and of the
    single stream; half of the prompt and all of the response are the queue's medians.
    queue: requests in it. singles: requests of the single stream.
    divide: what the method's lengths are divided by in the agent trace. questions: of the trace.
    tool_seconds: median of what a tool takes. engine: arguments of our engine.
    """

    shape: qwen2.Config
    slots: int
    prompt: int
    response: int
    queue: int
    singles: int
    divide: int
    questions: int
    tool_seconds: float
    engine: dict


ON_CPU = dict(page_size=16, prefill_tokens=32, prefill_rows=8, prefill_calls=16, decode_steps=8)
ON_GPU = dict(page_size=64, prefill_tokens=512, prefill_rows=8, prefill_calls=4, decode_steps=8)
SIZES = {
    "nano": Size(
        loads.SIZES["nano"].shape,
        slots=32,
        prompt=128,
        response=64,
        queue=96,
        singles=4,
        divide=10,
        questions=4,
        tool_seconds=0.05,
        engine=ON_CPU,
    ),
    "20m": Size(
        loads.SIZES["20m"].shape,
        slots=16,
        prompt=128,
        response=64,
        queue=48,
        singles=2,
        divide=10,
        questions=2,
        tool_seconds=0.2,
        engine=ON_CPU,
    ),
    "0.5b": Size(
        published.SIZES["0.5b"],
        slots=128,
        prompt=2_048,
        response=256,
        queue=384,
        singles=2,
        divide=2,
        questions=16,
        tool_seconds=1.0,
        engine=ON_GPU,
    ),
    "1.5b": Size(
        published.SIZES["1.5b"],
        slots=128,
        prompt=3_968,
        response=256,
        queue=256,
        singles=2,
        divide=1,
        questions=16,
        tool_seconds=2.0,
        engine=ON_GPU,
    ),
    "7b": Size(
        published.SIZES["7b"],
        slots=64,
        prompt=3_968,
        response=256,
        queue=128,
        singles=2,
        divide=1,
        questions=8,
        tool_seconds=2.0,
        engine=ON_GPU,
    ),
}


@dataclasses.dataclass(frozen=True)
class Load:
    """chains: of `drive.Turn`."""

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


class _Drawn:
    """Lengths that only the seed decides, tokens that the round decides too."""

    def __init__(self, size, seed, turn_of):
        self.lengths = np.random.default_rng(seed)
        self.ids = np.random.default_rng([seed, turn_of])
        self.vocabulary = size.shape.vocab_size

    def length(self, median, spread=SPREAD):
        drawn = median * self.lengths.lognormal(0.0, spread)
        return max(1, round(float(np.clip(drawn, median / CLIP, median * CLIP))))

    def seconds(self, median):
        return float(np.clip(self.lengths.lognormal(np.log(median), SPREAD), 0, CLIP * median))

    def tokens(self, count):
        # 0 and 1 stay free: a peer finds padding and ends by them.
        return tuple(self.ids.integers(2, self.vocabulary, count).tolist())


def uniform(size, seed, turn_of):
    """Makes as many requests as slots, of one length, all at once; nothing is shared."""
    drawn = _Drawn(size, seed, turn_of)
    turn = lambda: drive.Turn(drawn.tokens(size.prompt), size.response, 0.0)
    return Load(tuple((turn(),) for _ in range(size.slots)))


def queue(size, seed, turn_of):
    """Makes more requests than slots, of mixed lengths, all at once; nothing is shared."""
    drawn = _Drawn(size, seed, turn_of)

    def turn():
        prompt, response = drawn.length(size.prompt // 2), drawn.length(size.response)
        return drive.Turn(drawn.tokens(prompt), response, 0.0)

    return Load(tuple((turn(),) for _ in range(size.queue)))


def trace(size, seed, turn_of):
    """Makes agents: 8 rollouts of a question, three turns each, a tool between, a growing memory.

        turn 1   first        end
        turn 2   first memory end           once the tool of turn 1 has answered
        turn 3   first memory memory end

    The rollouts of a question have `first` in common, all prompts `end`. What a rollout remembers
    is given, not what was generated, so that all contestants answer the same prompts.
    """
    drawn = _Drawn(size, seed, turn_of)
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
    return Load(tuple(chains))


def single(size, seed, turn_of):
    """Makes one request after the other; nothing is shared."""
    drawn = _Drawn(size, seed, turn_of)
    turn = lambda: drive.Turn(drawn.tokens(size.prompt), size.response, 0.0)
    return Load((tuple(turn() for _ in range(size.singles)),))


def first_tokens(load, count):
    """Cuts the first turn of `count` chains to two tokens: the same shapes, briefly."""
    return Load(tuple((chain[0]._replace(new=2),) for chain in load.chains[:count]))


LOADS = {"uniform": uniform, "queue": queue, "trace": trace, "single": single}


def common_prefixes(prompts, page_size):
    """Sums (tokens, tokens in whole pages) that each prompt shares with an earlier one.

    The longest common prefix with any of them. A prompt's last token does not count: it has to be
    computed, because its logits draw the first token.
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
