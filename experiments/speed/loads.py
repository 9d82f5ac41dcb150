"""The loads that the update trains on: model sizes, and random turns of stated lengths.

Dimensions:
  Q questions    G rollouts of a question    S samples (turns)
"""

import dataclasses
import functools

import numpy as np

from flow_grpo_jax import batching, packing
from models import decoder, published

# The method's lengths in tokens, for AgentFlow's prompts with Qwen's tokenizer: what a question's
# first prompt holds, what each further turn adds to it, the instructions at the end of every
# prompt, and the response. Medians of log-normal draws, except the end, which never changes.
FIRST, MEMORY, END, RESPONSE = 2_200, 750, 310, 350
SPREAD = {"first": 0.1, "memory": 0.6, "response": 0.6}  # standard deviation of the logarithm
MOST_PROMPT, MOST_RESPONSE = 18_432, 2_048  # of the paper's configuration
ROOM = 0.95  # of the memory: what a step may take by estimate
TURNS = (1, 1, 2, 2, 2, 2, 3, 3)  # of the rollouts of a question, in random order; G = 8


@dataclasses.dataclass(frozen=True)
class UpdateSize:
    """A model, and how much of it is measured.

    dims: of the model. rank: of LoRA adapters on every matrix; 0 trains all parameters.
    row, rows, batches: of the uniform load: tokens of a row, rows of a micro-batch, micro-batches.
    divide: divides the method's lengths in the log-normal load.
    questions: of the log-normal load.
    token_bytes: what a token of a micro-batch takes on an accelerator, with remat="dots" in
      bfloat16; from the largest memory in use on one H200.
    """

    dims: decoder.Config
    row: int
    rows: int
    batches: int
    divide: int
    questions: int
    rank: int = 0
    token_bytes: float = 0.0

    @property
    def bytes(self):
        """Bytes that a step takes on an accelerator, about."""
        dims = self.dims
        heads = dims.num_attention_heads + dims.num_key_value_heads
        widths = 4 * dims.hidden_size + 2 * dims.head_dim * heads  # in and out of q, k, v, o
        widths += 3 * (dims.hidden_size + dims.intermediate_size)
        embeddings = 1 if dims.tie_word_embeddings else 2
        whole = dims.num_hidden_layers * dims.layer_parameters
        whole += embeddings * dims.vocab_size * dims.hidden_size
        trained = self.rank * widths * dims.num_hidden_layers if self.rank else whole
        # float32 parameters, moments and gradients; the reference; weights and gradients cast.
        lasting = 16 * trained + 2 * whole + (0 if self.rank else 4 * whole)
        return lasting + self.token_bytes * self.rows * self.row

    def fitted(self, memory):
        """Returns the same load in micro-batches of as many rows as fit; None if not one does.

        memory: bytes; None for no limit.
        """
        size = self
        while memory is not None and size.bytes > ROOM * memory:
            if size.rows == 1:
                return None
            size = dataclasses.replace(size, rows=size.rows // 2, batches=2 * size.batches)
        return size


SIZES = {
    # The quickstart's planner: 1.05 M parameters.
    "nano": UpdateSize(
        decoder.Config(2_048, 128, 384, 4, 4, 2, 32, rope_theta=10_000.0, initializer_range=0.05),
        row=256,
        rows=8,
        batches=2,
        divide=20,
        questions=4,
    ),
    "20m": UpdateSize(
        decoder.Config(8_192, 384, 1_536, 8, 6, 2, 64, initializer_range=0.05),
        row=512,
        rows=4,
        batches=2,
        divide=16,
        questions=1,
    ),
    "0.5b": UpdateSize(
        published.SIZES["0.5b"],
        row=4_096,
        rows=4,
        batches=4,
        divide=5,
        questions=8,
        token_bytes=0.7e6,  # not measured
    ),
    "1.5b": UpdateSize(
        published.SIZES["1.5b"],
        row=4_096,
        rows=4,
        batches=4,
        divide=5,
        questions=8,
        token_bytes=1.45e6,
    ),
    "7b-lora": UpdateSize(
        published.SIZES["7b"],
        row=4_096,
        rows=4,
        batches=4,
        divide=5,
        questions=8,
        rank=64,
        token_bytes=5.7e6,
    ),
}
ON_ACCELERATOR = (("1.5b", "0.5b"), ("7b-lora",))  # of each, the first that fits


@dataclasses.dataclass(frozen=True)
class UpdateLoad:
    """Samples of one optimizer step.

    most_prompt, most_response: tokens that the configuration allows; a trainer of fixed shapes
    pads to them. adv_QG: an advantage for each trajectory.
    """

    samples: tuple[batching.TurnSample, ...]
    adv_QG: np.ndarray
    most_prompt: int
    most_response: int

    @property
    def useful_tokens(self):
        """Tokens of all samples, each counted alone."""
        return sum(len(s.prompt_tokens) + len(s.response_tokens) for s in self.samples)

    @property
    def sampled_tokens(self):
        return sum(len(s.response_tokens) for s in self.samples)

    @property
    def longest(self):
        """Tokens of the longest sample that the configuration allows."""
        return self.most_prompt + self.most_response


def uniform(size, seed):
    """Makes a load of full rows, ten prompt tokens for each response token, no prefix shared."""
    rng = np.random.default_rng(seed)
    response = max(1, size.row // 11)
    drawn = _Samples(rng, size.dims.vocab_size)
    samples = [
        drawn.sample(drawn.tokens(size.row - response), response, trajectory=i, group=0)
        for i in range(size.rows * size.batches)
    ]
    adv_QG = rng.normal(size=(1, len(samples)))
    return UpdateLoad(tuple(samples), adv_QG, size.row - response, response)


def lognormal(size, seed):
    """Makes a load of the method's shape: G = 8 rollouts of 1 to 3 turns with common prefixes.

        turn 1   first        end  response
        turn 2   first memory end  response
        turn 3   first memory memory end  response

    The rollouts of a question have `first` in common, all prompts `end`.
    """
    rng = np.random.default_rng(seed)
    most_prompt, most_response = MOST_PROMPT // size.divide, MOST_RESPONSE // size.divide
    drawn = _Samples(rng, size.dims.vocab_size)

    def length(median, spread, most):
        tokens = median / size.divide * rng.lognormal(0.0, SPREAD[spread])
        return int(np.clip(round(tokens), 1, most))

    end, samples = drawn.tokens(END // size.divide), []
    for q in range(size.questions):
        first = drawn.tokens(length(FIRST, "first", most_prompt // 2))
        room = (most_prompt - len(first) - len(end)) // (max(TURNS) - 1)
        for g, turns in enumerate(rng.permutation(TURNS)):
            prompt = first
            for _ in range(turns):
                response = length(RESPONSE, "response", most_response)
                trajectory = q * len(TURNS) + g
                samples.append(drawn.sample(prompt + end, response, trajectory, q))
                prompt = prompt + drawn.tokens(length(MEMORY, "memory", room))
    adv_QG = rng.normal(size=(size.questions, len(TURNS)))
    return UpdateLoad(tuple(samples), adv_QG, most_prompt, most_response)


LOADS = {"uniform": uniform, "lognormal": lognormal}


class _Samples:
    """Samples of random ids, with log-probs near those of a uniform distribution."""

    def __init__(self, rng, vocabulary):
        self.rng, self.vocabulary = rng, vocabulary

    def tokens(self, count):
        # Ids 0 and 1 stay free: peers mark padding and ends with them.
        return tuple(self.rng.integers(2, self.vocabulary, count).tolist())

    def sample(self, prompt, responses, trajectory, group):
        logprobs = -np.log(self.vocabulary) + 0.2 * self.rng.normal(size=responses)
        return batching.TurnSample(
            prompt, self.tokens(responses), tuple(logprobs.tolist()), trajectory, group
        )


def weigh_equally(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Weighs each sample by 1 / samples: the one weighting that all peers have."""
    return np.full(len(tokens_S), 1.0 / len(tokens_S))


def micro_batches(load, layout, *, row_lengths, rows):
    """Returns the step's TurnBatches; A is chosen by the sampled tokens that a row gets."""
    sequences = [np.array(s.prompt_tokens + s.response_tokens) for s in load.samples]
    filled = load.useful_tokens
    if layout == "tree":
        ordered = sorted(sequences, key=lambda x: x.tolist())
        pairs = zip(ordered[:-1], ordered[1:], strict=True)
        filled -= sum(packing.common_prefix(a, b) for a, b in pairs)
    share = 1.25 * load.sampled_tokens / filled
    least = max(len(s.response_tokens) for s in load.samples)
    sampled = [
        least if layout == "padded" else max(least, -(-int(share * tokens) // 16) * 16)
        for tokens in row_lengths
    ]
    (batches,) = batching.build(
        load.samples,
        adv_QG=load.adv_QG,
        valid_QG=np.ones(load.adv_QG.shape, bool),
        weigh=weigh_equally,
        layout=layout,
        row_lengths=row_lengths,
        rows=rows,
        response_lengths=sampled,
        split=functools.partial(batching.by_questions, mini_batches=1),
        constant_length=0,  # unused by `weigh_equally`
    )
    return batches
