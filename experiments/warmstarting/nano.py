"""The warm start of a small model that knows nothing yet: it learns every token, prompts included.

Made for the quickstart's model of 1M parameters, which has to learn to copy before all else: random
strings are copied beside the demonstrations, and prompts count a little. All of it is float32 on
one device, with the logits of whole rows in memory.

Dimensions:
  B rows    T tokens in a row, several samples packed    D model width    V vocabulary
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running import command, sessions
from experiments.warmstarting import material
from experiments.worlds import world
from flow_grpo_jax import update
from models import decoder, huggingface, model_card, precision
from models.attention import masks
from models.tokenizer import Tokenizer, train_byte_bpe

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>' + message['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
LOOKED_AT = 10  # held-out demonstrations for each that is measured
FRONT = {"library_name": "transformers", model_card.PROMPTS: "compact"}
CARD = """
# Nano model of the {worlds}

Qwen2.5 architecture, made by `experiments.warmstart` of flow_grpo_jax from demonstrations. It knows
the forms of the agent's modules and the facts of no question; it is of no use outside the agent.
"""


def corpus(worlds, *, tools, samples, max_turns):
    """Yields text for the tokenizer: all articles, and demonstrations of all questions."""
    shown = world.demonstrations(worlds, tools=tools, seed=0, max_turns=max_turns, split="all")
    for sample in itertools.islice(shown, samples):
        yield "\n".join([*(m["content"] for m in sample.messages), sample.response])
    for _, text in material.documents(worlds):
        yield from [text] * 4


def encode(sample, tokenizer):
    """Returns (tokens, response length): chat prompt, response, end-of-turn token."""
    response = [*tokenizer.encode(sample.response), tokenizer.eos_ids[0]]
    return [*tokenizer.chat(sample.messages), *response], len(response)


def copying(tokenizer, rng, *, distinct):
    """Makes a random token string twice, the second time as response: pure look-up.

    Teaches copying of any token (arXiv 2209.11895) far faster than demonstrations alone.

    distinct: the string is made of so many tokens, so that they come again, as digits do, and only
      more than one of them tells the place; 0: of all.
    """
    length = rng.integers(4, 25)
    if distinct:
        tokens = rng.choice(rng.integers(0, tokenizer.vocab_size, distinct), length).tolist()
    else:
        tokens = rng.integers(0, tokenizer.vocab_size, length).tolist()
    marker = tokenizer.chat([{"role": "user", "content": ""}])
    return [*tokens, *marker, *tokens, tokenizer.eos_ids[0]], len(tokens) + 1


def training_stream(stream, tokenizer, *, seed, copy_samples, copy_distinct):
    """Yields encoded samples: demonstrations, every other of the first `copy_samples` copying.

    copy_distinct: of every other copied string, the `distinct` of `copying`.
    """
    rng = np.random.default_rng(seed)
    for index in itertools.count():
        if index < copy_samples and index % 2:
            yield copying(tokenizer, rng, distinct=copy_distinct if index % 4 == 1 else 0)
        else:
            yield encode(next(stream), tokenizer)


def packed_rows(encoded, *, rows, length, prompt_weight):
    """Packs samples first-fit into batches of (token_BT, segment_BT, weight_BT), NumPy.

    weight_BT: weight of the prediction *of* the token: 1 on responses, prompt_weight on prompts.
    """
    while True:
        token_BT = np.zeros((rows, length), np.int32)
        segment_BT = np.zeros((rows, length), np.int32)
        weight_BT = np.zeros((rows, length), np.float32)
        used, segments, full = [0] * rows, [0] * rows, False
        while not full:
            tokens, response = next(encoded)
            if len(tokens) > length:  # invented names can be very long
                continue
            row = next((b for b in range(rows) if used[b] + len(tokens) <= length), None)
            full = row is None  # the sample that no longer fits is dropped: the stream is endless
            if not full:
                span = slice(used[row], used[row] + len(tokens))
                segments[row] += 1
                token_BT[row, span], segment_BT[row, span] = tokens, segments[row]
                weight_BT[row, span] = prompt_weight
                weight_BT[row, span.start] = 0.0
                weight_BT[row, span.stop - response : span.stop] = 1.0
                used[row] = span.stop
        yield token_BT, segment_BT, weight_BT


@functools.partial(precision.in_dtype, dtype=jnp.float32)
def prediction(model, token_BT, segment_BT):
    """Returns each token's log-prob given its past, and whether it is the most likely one."""
    hidden_BTD = model.hidden(token_BT, masks.until_of_segments(segment_BT))
    logits_BTV = model.logits(hidden_BTD[:, :-1])
    logp_BT = -optax.softmax_cross_entropy_with_integer_labels(logits_BTV, token_BT[:, 1:])
    return logp_BT, logits_BTV.argmax(-1) == token_BT[:, 1:]


def loss_fn(model, token_BT, segment_BT, weight_BT):
    logp_BT, _ = prediction(model, token_BT, segment_BT)
    return -(logp_BT * weight_BT[:, 1:]).sum() / weight_BT.sum()


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnums=(0, 1))
@functools.partial(precision.in_dtype, dtype=jnp.float32)
def train_step(model, opt_state, batch, *, optimizer):
    loss, gradient = jax.value_and_grad(loss_fn)(model, *batch)
    updates, opt_state = optimizer.update(gradient, opt_state, model)
    return optax.apply_updates(model, updates), opt_state, loss


def exact_share(model, samples, tokenizer, *, length):
    """Returns role -> share of samples whose whole response is the model's greedy choice."""
    token_BT = np.zeros((len(samples), length), np.int32)
    segment_BT = np.zeros((len(samples), length), np.int32)
    response_BT = np.zeros((len(samples), length), bool)
    for b, sample in enumerate(samples):
        tokens, response = encode(sample, tokenizer)
        token_BT[b, : len(tokens)], segment_BT[b, : len(tokens)] = tokens, 1
        response_BT[b, len(tokens) - response : len(tokens)] = True
    right_BT = jax.jit(prediction)(model, token_BT, segment_BT)[1]
    right_B = np.all(np.asarray(right_BT) | ~response_BT[:, 1:], axis=1)
    roles = sorted({sample.role for sample in samples})
    return {
        role: float(np.mean([r for r, s in zip(right_B, samples, strict=True) if s.role == role]))
        for role in roles
    }


def start(config, workdir, *, worlds, tools):
    """Returns (folder of the tokenizer, model) to start with: a model's folder, or new ones."""
    settings = config.warmstart
    if settings.start:
        folder = sessions.locate_model(settings.start)
        return folder, huggingface.load(folder)
    texts = corpus(
        worlds, tools=tools, samples=settings.tokenizer_samples, max_turns=material.turns(config)
    )
    train_byte_bpe(
        list(texts),
        vocab_size=settings.model.vocab_size,
        chat_template=CHAT_TEMPLATE,
        folder=workdir / "tokenizer",
    )
    shape = decoder.Config(**settings.model)
    return workdir / "tokenizer", decoder.Decoder(jax.random.key(settings.seed), shape)


class WholeRows:
    """Trains all parameters on all tokens of demonstrations; `learners.Learner` says the rest."""

    def __init__(self, config, workdir, optimizer):
        settings, self._optimizer = config.warmstart, optimizer
        asked = {
            "data": settings.data,
            "held_out": settings.held_out,
            "modules": settings.modules,
            "enough": settings.enough,
        }
        odd = [f"warmstart.{name}" for name, value in asked.items() if value]
        odd += ["model.lora.rank"] if config.model.lora.rank else []
        if odd or not settings.worlds:
            raise command.ConfigError(
                f"warmstart.prompt_weight={settings.prompt_weight} trains all parameters on whole "
                "rows of warmstart.worlds, for a model that knows nothing yet. "
                + (f"Set it to 0 to use {', '.join(odd)}." if odd else "Name a world.")
            )
        worlds, tools = material.prepare(config, workdir)
        self._folder, model = start(config, workdir, worlds=worlds, tools=tools)
        self._card = CARD.format(worlds=settings.worlds)
        self._tokenizer = tokenizer = Tokenizer.load(self._folder)
        how = dict(tools=tools, max_turns=material.turns(config))
        probes = world.demonstrations(worlds, seed=1, flawless=True, split="held_out", **how)
        fits = lambda sample: len(encode(sample, tokenizer)[0]) <= settings.row_length
        looked_at = itertools.islice(probes, LOOKED_AT * settings.probes)
        self._probes = list(itertools.islice(filter(fits, looked_at), settings.probes))
        if len(self._probes) < settings.probes:
            raise command.ConfigError(
                f"warmstart.row_length={settings.row_length} has room for {len(self._probes)} of "
                f"{LOOKED_AT * settings.probes} held-out demonstrations; use longer rows."
            )
        self._length = settings.row_length
        shown = material.training(settings, worlds, tokenizer=tokenizer, **how)
        self._batches = packed_rows(
            training_stream(
                shown,
                tokenizer,
                seed=settings.seed,
                copy_samples=settings.copy_samples,
                copy_distinct=settings.copy_distinct,
            ),
            rows=settings.rows,
            length=settings.row_length,
            prompt_weight=settings.prompt_weight,
        )
        self._drawn = 0
        self.facts = {}
        self.state = update.init(model, optimizer)

    def step(self, state):
        batch = next(self._batches)
        self._drawn += 1
        model, opt_state, loss = train_step(
            state.params, state.opt_state, batch, optimizer=self._optimizer
        )
        values = {"loss": float(loss), "tokens/trained": float((batch[2] > 0).sum())}
        return update.State(model, opt_state, state.step + 1), values

    def measure(self, state):
        shares = exact_share(state.params, self._probes, self._tokenizer, length=self._length)
        return {f"held_out/exact/{role}": round(share, 4) for role, share in shares.items()}

    def position(self):
        return {"batches": self._drawn}

    def go_to(self, position):
        while self._drawn < position["batches"]:  # the stream has no other way to get there
            next(self._batches)
            self._drawn += 1

    def write(self, state, folder):
        huggingface.save(
            folder,
            state.params,
            tokenizer_folder=self._folder,
            card=model_card.render(FRONT, self._card),
        )

    def close(self):
        pass
