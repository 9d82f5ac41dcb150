"""Sampler against trainer: a small random Qwen2.5 draws tokens; their log-probs are computed anew.

Dimensions:
  B rows    A response tokens of a row
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.diagnosis.rows import BROKEN, NOTE, OK, Row
from experiments.speed import loads
from flow_grpo_jax import batching, logprobs
from models import decoder, precision
from models.attention import kernels
from models.engine.engine import Engine
from models.engine.types import Request, Sampling

DIMS = decoder.Config(2_048, 256, 512, 2, 4, 2, 64, initializer_range=0.05)
REQUESTS, PROMPT, SAMPLED, LENGTH = 6, 48, 16, 128  # tokens; LENGTH of a row and of a request
ENGINE = dict(slots=4, max_length=LENGTH, cache_tokens=8 * LENGTH, page_size=16)
ENGINE |= dict(prefill_tokens=32, prefill_rows=4, prefill_calls=4, decode_steps=4)
# Largest mean and maximum of the difference, nats, that rounding explains in such a model.
BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (5e-2, 5e-1)}
COMPARED = ("tokens", "logprobs")  # of a Completion
MISMATCH = "The sampler and the trainer do not compute the same model here: do not train on this "
MISMATCH += "device in this dtype, and report it with all of this output."
DIFFERS = "Results are right but do not repeat: docs/design.md says what is promised."
ORDER = "Sums have no fixed order here; --config.deterministic=True gives them one, and is slower."


def sampler():
    """Yields Rows on the gap between sampler and trainer, and on what repeats bit for bit."""
    make = jax.jit(functools.partial(decoder.Decoder, config=DIMS))
    params = make(jax.random.key(0))
    for dtype in map(jnp.dtype, BOUNDS):
        yield from compare(params, dtype, *draw(params, dtype))


def draw(params, dtype):
    """Returns (layout of the engine's cache, requests, Completions, the last of these alone)."""
    engine = Engine(
        {"policy": jax.tree.map(lambda x: x.astype(dtype), params)},
        **ENGINE,
        overlap=False,
        in_flight="finish",
        seed=0,
        dtype=dtype,
        separate=True,
        constraints=False,
    )
    rng = np.random.default_rng(0)
    prompt = lambda: rng.integers(2, DIMS.vocab_size, PROMPT - rng.integers(16)).tolist()
    requests = [Request(tuple(prompt()), Sampling(SAMPLED), address=(n,)) for n in range(REQUESTS)]
    together = _answers(engine, requests)
    return engine.layout, requests, together, *_answers(engine, requests[-1:])


def compare(params, dtype, layout, requests, together, alone):
    """Yields Rows on what `draw` returned."""
    samples = tuple(
        batching.TurnSample(r.tokens, tuple(c.tokens.tolist()), tuple(c.logprobs.tolist()), n, 0)
        for n, (r, c) in enumerate(zip(requests, together, strict=True))
    )
    load = loads.UpdateLoad(samples, np.ones((1, REQUESTS)), PROMPT, SAMPLED)
    [batch] = loads.micro_batches(load, "packed", row_lengths=(LENGTH,), rows=(REQUESTS,))
    score = _scorer(dtype)
    results = [jax.device_get(score(params, batch)) for _ in range(2)]
    gap = np.abs(results[0][0][1] - batch.sampler_logp_BA)[batch.mask_BA]
    mean, most, bounds = float(gap.mean()), float(gap.max()), BOUNDS[dtype.name]
    right = mean <= bounds[0] and most <= bounds[1]  # nan is not
    text = f"log-probs of {gap.size} tokens differ by {mean:.1e} on average, {most:.1e} at most; "
    text += f"{bounds[0]:g} and {bounds[1]:g} are allowed; cache layout {layout}"
    facts = {"mean": mean, "max": most, "bounds": bounds, "layout": layout}
    yield Row(dtype.name, OK if right else BROKEN, text, "" if right else MISMATCH, facts)
    same = all(np.array_equal(getattr(alone, x), getattr(together[-1], x)) for x in COMPARED)
    yield _repeats(f"{dtype.name}, tokens", same, "alone as among others", DIFFERS)
    leaves = zip(*(jax.tree.leaves(result) for result in results), strict=True)
    same = all(np.array_equal(a, b) for a, b in leaves)
    yield _repeats(f"{dtype.name}, gradients", same, "when computed twice", ORDER)


def _repeats(what, same, when, otherwise):
    if same:
        return Row(what, OK, f"the same bits {when}", facts={"same": True})
    return Row(what, NOTE, f"not the same bits {when}", otherwise, {"same": False})


def _answers(engine, requests):
    """Returns the Completions of requests, in their order."""
    ids, found = [engine.submit(request) for request in requests], {}
    while engine.pending:
        found |= dict(engine.advance())
    return [found[id] for id in ids]


@functools.cache
def _scorer(dtype):
    """Returns a program: (params, TurnBatch) -> ((sum, logp_BA), gradients of the sum)."""
    execution = decoder.Execution(dtype, "none", kernels.make("auto"))
    how = dict(temperature=1.0, chunk=512, execution=execution)

    def total(params, batch):
        logp_BA, _ = logprobs.score(params, batch, **how)
        return jnp.where(batch.mask_BA, logp_BA, 0).sum(), logp_BA

    return jax.jit(precision.in_dtype(jax.value_and_grad(total, has_aux=True), dtype))
