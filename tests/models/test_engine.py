"""The engine against whole-sequence passes of the same model, and against itself in other company.

Dimensions: B slots  T tokens  V vocabulary
"""

import contextlib
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from models.engine.types import Request, Sampling
from tests.models import configs, engines
from tests.models.test_sampling import reference

# Small weights would hide mistakes in positions and masks.
CONFIG = configs.small(vocab_size=150, initializer_range=0.3)
MODEL = decoder.Decoder(jax.random.key(0), CONFIG)
OTHER = decoder.Decoder(jax.random.key(1), CONFIG)
WHOLE = 64  # whole-sequence passes are padded to this length


def text(tokens):
    """One letter per token, so that stop strings can span tokens."""
    return "".join(chr(ord("a") + token % 26) for token in tokens)


def build(**options):
    sizes = dict(slots=4, max_length=160, page_size=8, prefill_tokens=8, prefill_rows=3)
    options = sizes | options
    weights = {"policy": MODEL, "frozen": OTHER}
    return engines.build(weights, decode_text=text, **options)


@pytest.fixture(scope="module")
def warm():
    engine = build()
    engine.warmup()
    return engine


@pytest.fixture
def engine(warm):
    yield warm
    while warm.pending:
        warm.advance()
    for name, model in (("policy", MODEL), ("frozen", OTHER)):
        warm.set_weights(name, model)


@pytest.fixture(scope="module")
def small():
    return build(slots=2, max_length=32, seed=1)


@jax.jit
def whole_logits(model, token_T, length):
    until_1T = jnp.where(jnp.arange(WHOLE) < length, length, 0)[None]
    return model.logits(model.hidden(token_T[None], until_1T))[0]


def logits_TV(model, tokens):
    """float32 [T, V] of one whole sequence, from the pass that training uses."""
    padded = np.zeros(WHOLE, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(whole_logits(model, padded, len(tokens)))[: len(tokens)]


def logits_TV_after(request_, got):
    """What the tokens of a response were drawn from."""
    return logits_TV(MODEL, [*request_.tokens, *got.tokens])[len(request_.tokens) - 1 : -1]


def prompt(length, seed=0):
    rng = np.random.default_rng((length, seed))
    return tuple(rng.integers(0, CONFIG.vocab_size, length).tolist())


def request(length=6, seed=0, *, max_tokens=12, weights="policy", address=None, **sampling):
    address = (length, seed) if address is None else address
    return Request(prompt(length, seed), Sampling(max_tokens, **sampling), weights, address)


def run(engine, requests):
    """Completions in the order of the requests."""
    ids = [engine.submit(request_) for request_ in requests]
    done = {}
    for _ in range(200):
        done |= dict(engine.advance())
        if not engine.pending:
            break
    return [done[id] for id in ids]


def same(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.logprobs, other.logprobs)
    assert one.stop_reason == other.stop_reason


@contextlib.contextmanager
def nothing_compiles():
    compiled = []
    listen = lambda event, *_, **__: "backend_compile" in event and compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


# ---- Against whole-sequence passes ----


@pytest.mark.parametrize("length", [1, 8, 9, 16])
def test_greedy_equals_argmax_of_whole_sequences(engine, length):
    (got,) = run(engine, [request(length, temperature=0)])
    tokens = list(prompt(length))
    for logprob in got.logprobs:
        logits_V = logits_TV(MODEL, tokens)[-1]
        tokens.append(int(logits_V.argmax()))
        assert abs(logprob - np.log(reference(logits_V)[tokens[-1]])) < 1e-4
    assert got.tokens.tolist() == tokens[length:]
    assert (got.tokens.dtype, got.logprobs.dtype) == (np.int32, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_other_families_draw_from_whole_sequences_too(model_type):
    config = dataclasses.replace(CONFIG, model_type=model_type, head_dim=12)
    shapes = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    draw = lambda leaf: np.random.default_rng(leaf.size).normal(0.3, 0.3, leaf.shape)
    model = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), leaf.dtype), shapes)
    engine = engines.build({"policy": model}, slots=2, max_length=64, page_size=8)
    requests = [request(5), request(20)]
    for request_, got in zip(requests, run(engine, requests), strict=True):
        whole_TV = logits_TV(model, [*request_.tokens, *got.tokens])
        p_TV = np.array([reference(row_V) for row_V in whole_TV[len(request_.tokens) - 1 : -1]])
        expected_T = np.log(p_TV[np.arange(12), got.tokens])
        np.testing.assert_allclose(got.logprobs, expected_T, atol=1e-4)


@pytest.mark.parametrize(
    "cuts",
    [
        dict(),
        dict(temperature=0.6),
        dict(temperature=1.4, top_k=5),
        dict(top_p=0.8),
        dict(min_p=0.1),
        dict(temperature=2.0, top_k=40, top_p=0.9, min_p=0.01),
    ],
    ids=str,
)
def test_logprobs_equal_those_of_whole_sequences(engine, cuts):
    requests = [request(5 + seed, seed, max_tokens=30, **cuts) for seed in range(5)]
    for request_, got in zip(requests, run(engine, requests), strict=True):
        drawn_from_TV = logits_TV_after(request_, got)
        p_TV = np.array([reference(logits_V, **cuts) for logits_V in drawn_from_TV])
        expected_T = np.log(p_TV[np.arange(30), got.tokens])
        np.testing.assert_allclose(got.logprobs, expected_T, atol=1e-4)


@pytest.mark.slow
def test_raw_and_top_logprobs_are_under_temperature_1(engine):
    engine = build(top_logprobs=3)
    (got,) = run(engine, [request(5, max_tokens=20, temperature=0.7, top_k=3, top_logprobs=2)])
    logits_TV = logits_TV_after(request(5), got)
    p_TV = np.array([reference(logits_V) for logits_V in logits_TV])
    np.testing.assert_allclose(got.raw_logprobs, np.log(p_TV[range(20), got.tokens]), atol=1e-4)
    assert np.abs(got.raw_logprobs - got.logprobs).max() > 0.1
    for p_V, top in zip(p_TV, got.top_logprobs, strict=True):
        ids = np.argsort(-p_V)[:2]
        assert [id for id, _ in top] == ids.tolist()
        np.testing.assert_allclose([logprob for _, logprob in top], np.log(p_V[ids]), atol=1e-4)


# ---- A request's tokens depend on nothing but itself ----


def test_company_order_and_history_change_nothing(engine):
    requests = [request(1 + 3 * (seed % 6), seed, max_tokens=3 + seed) for seed in range(11)]
    requests += [request(7, seed, top_p=0.7, max_tokens=9) for seed in range(3)]
    together = run(engine, requests)
    alone = [run(engine, [request_])[0] for request_ in requests]
    backwards = run(engine, requests[::-1])[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        same(one, two)
        same(one, three)

    # A neighbour that is far longer.
    neighbour = engine.submit(request(16, 99, max_tokens=144))
    for _ in range(14):
        engine.advance()
    ids = [engine.submit(request_) for request_ in requests[:3]]
    done = {}
    while not set(ids) <= set(done):
        done |= dict(engine.advance())
    assert engine.cancel(neighbour)
    for id, one in zip(ids, together, strict=False):
        same(one, done[id])

    # Slots left behind by cancelled requests.
    cancelled = [engine.submit(request(12, seed, max_tokens=100)) for seed in range(4)]
    engine.advance()
    for id in cancelled:
        assert engine.cancel(id)
    for one, two in zip(together, run(engine, requests), strict=True):
        same(one, two)


def test_rollouts_of_one_prompt_are_not_copies(engine):
    rollouts = [request(6, address=(3, 1, rollout)) for rollout in range(8)]
    responses = {tuple(got.tokens) for got in run(engine, rollouts)}
    assert len(responses) == 8
    one, two = run(engine, [rollouts[0], rollouts[0]])
    same(one, two)


@pytest.mark.slow
def test_the_seed_changes_the_draws(engine, small):
    (one,), (other,) = (run(which, [request(max_tokens=20)]) for which in (engine, small))
    assert one.tokens.tolist() != other.tokens.tolist()


# ---- How a response ends ----


def test_max_tokens(engine):
    lengths = [1, 2, 8, 9, 10, 25]
    got = run(engine, [request(6, n, max_tokens=n) for n in lengths])
    assert [len(completion.tokens) for completion in got] == lengths
    assert {completion.stop_reason for completion in got} == {"length"}


def test_a_request_may_fill_max_length(engine):
    (got,) = run(engine, [request(16, max_tokens=144)])
    assert len(got.tokens) == 144


@pytest.mark.parametrize("place", [0, 1, 5, 11])
def test_stop_id_is_the_last_token(engine, place):
    (free,) = run(engine, [request()])
    stop = int(free.tokens[place])
    assert stop not in free.tokens[:place]
    (got,) = run(engine, [request(stop_ids=(149, stop))])
    assert got.tokens.tolist() == free.tokens[: place + 1].tolist()
    np.testing.assert_array_equal(got.logprobs, free.logprobs[: place + 1])
    assert got.stop_reason == "stop"


def test_stop_string_cuts_after_the_token_that_completes_it(engine):
    (free,) = run(engine, [request(max_tokens=30)])
    letters = text(free.tokens)
    for place in (0, 7, 8, 20, 28):
        stop = letters[place : place + 2]
        end = letters.index(stop) + 2
        (got,) = run(engine, [request(max_tokens=30, stop_strings=("#", stop))])
        assert got.tokens.tolist() == free.tokens[:end].tolist()
        assert len(got.logprobs) == end
        assert got.stop_reason == "stop"


def test_cancel(engine):
    running = [engine.submit(request(6, seed, max_tokens=100)) for seed in range(4)]
    queued = engine.submit(request(6, 4, max_tokens=100))
    assert engine.advance() == []
    assert engine.pending == 5
    assert all(engine.cancel(id) for id in (running[1], running[2], queued))
    assert not engine.cancel(queued)
    waiting = engine.submit(request(6, 5, max_tokens=3))
    done = dict(engine.advance())
    assert set(done) == {running[1], running[2], queued, waiting}  # slot 1 was refilled at once
    assert done[running[1]].stop_reason == done[queued].stop_reason == "cancelled"
    assert len(done[running[1]].tokens) == len(done[running[1]].logprobs) == 9
    assert len(done[queued].tokens) == 0
    (free,) = run(engine, [request(6, 1, max_tokens=100)])
    np.testing.assert_array_equal(done[running[1]].tokens, free.tokens[:9])
    assert not engine.cancel(10**6)


def test_deadline(engine):
    late = dataclasses.replace(request(max_tokens=100), deadline=time.monotonic() + 0.05)
    in_time = dataclasses.replace(request(max_tokens=3), deadline=time.monotonic() + 100)
    late, in_time, never = (
        engine.submit(asked) for asked in (late, in_time, request(6, 1, max_tokens=2))
    )
    done = dict(engine.advance())
    assert set(done) == {in_time, never}
    time.sleep(0.05)
    ((id, got),) = engine.advance()
    assert (id, got.stop_reason, len(got.tokens)) == (late, "deadline", 9)


def test_partial_results_while_a_response_goes_on(engine):
    id = engine.submit(request(max_tokens=30))
    assert len(engine.partial(id).tokens) == 0
    engine.advance()
    early = engine.partial(id)
    engine.advance()
    later = engine.partial(id, 9)
    assert (early.stop_reason, len(early.tokens), len(later.logprobs)) == (None, 9, 8)
    ((_, whole),) = [item for _ in range(2) for item in engine.advance()]
    assert [*early.tokens, *later.tokens] == whole.tokens[:17].tolist()


# ---- Weights ----


def test_weight_sets_side_by_side(engine):
    requests = [
        request(5 + seed, seed, temperature=0, weights=name)
        for seed in range(4)
        for name in ("policy", "frozen")
    ]
    for request_, got in zip(requests, run(engine, requests), strict=True):
        model = {"policy": MODEL, "frozen": OTHER}[request_.weights]
        logits = logits_TV(model, [*request_.tokens, *got.tokens])[len(request_.tokens) - 1 : -1]
        assert got.tokens.tolist() == logits.argmax(-1).tolist()


def test_set_weights_replaces_one_set(engine):
    on_policy, on_frozen = request(temperature=0), request(temperature=0, weights="frozen")
    before = run(engine, [on_policy, on_frozen])
    compiled = engine.compile_count
    engine.set_weights("policy", OTHER)
    after = run(engine, [on_policy, on_frozen])
    same(after[0], before[1])
    same(after[1], before[1])
    assert after[0].weights_version == before[0].weights_version + 1
    assert after[1].weights_version == before[1].weights_version
    assert engine.compile_count == compiled


def test_a_request_in_flight_ends_with_the_weights_it_began_with(engine):
    (old,) = run(engine, [request(max_tokens=30)])
    running = engine.submit(request(max_tokens=30))
    engine.advance()
    engine.set_weights("policy", OTHER)
    new = engine.submit(request(max_tokens=30))
    done = {}
    while engine.pending:
        done |= dict(engine.advance())
    same(done[running], old)
    assert set(done[running].token_versions.tolist()) == {old.weights_version}
    assert done[new].weights_version == old.weights_version + 1
    assert done[new].tokens.tolist() != old.tokens.tolist()
    assert done[new].shared_tokens == 0


def test_a_request_in_flight_may_switch_to_the_new_weights():
    engine = build(in_flight="switch")
    (old,) = run(engine, [request(max_tokens=30)])
    engine.submit(request(max_tokens=30))
    engine.advance()
    engine.set_weights("policy", OTHER)
    ((_, got),) = [item for _ in range(3) for item in engine.advance()]
    assert got.token_versions.tolist() == [0] * 9 + [1] * 21
    np.testing.assert_array_equal(got.tokens[:9], old.tokens[:9])
    assert got.tokens[9:].tolist() != old.tokens[9:].tolist()
    (again,) = run(engine, [request(16, max_tokens=3)])
    assert again.shared_tokens == 0 and again.weights_version == 1


def test_released_memory_comes_back_with_new_weights():
    engine = build()
    before = run(engine, [request(), request(weights="frozen")])
    pending = engine.submit(request())
    with pytest.raises(ValueError, match="1 requests are pending"):
        engine.release()
    engine.cancel(pending)
    engine.advance()
    held = engine._cache
    engine.release()
    assert (
        engine._cache is None
        and held
        and engine.cached_tokens("policy", engine.prefix(prompt(16))) == 0
    )
    with pytest.raises(ValueError, match="'policy' were released"):
        run(engine, [request()])
    engine.set_weights("policy", MODEL)
    engine.set_weights("frozen", OTHER)
    engine.advance()
    for one, two in zip(before, run(engine, [request(), request(weights="frozen")]), strict=True):
        same(one, two)


def test_set_weights_refuses_another_shape(engine):
    config = dataclasses.replace(CONFIG, intermediate_size=64)
    wide = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), config))
    with pytest.raises(ValueError, match="'policy' differ .*w_gate_DF"):
        engine.set_weights("policy", wide)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_reported(small):
    small.set_weights("frozen", jax.tree.map(lambda a: a * jnp.nan, OTHER))
    id = small.submit(request(max_tokens=1, weights="frozen"))
    with pytest.raises(FloatingPointError, match="'frozen', version 1"):
        small.advance()
    small.cancel(id)


# ---- Programs ----


def test_nothing_compiles_after_warmup(engine):
    assert engine.compile_count == 2  # prefill, decode
    rng = np.random.default_rng(0)
    requests = [
        request(
            int(rng.integers(1, 17)),
            seed,
            max_tokens=int(rng.integers(1, 60)),
            weights=("policy", "frozen")[seed % 2],
            temperature=float(rng.choice([0, 0.5, 1])),
            top_p=float(rng.choice([0.5, 1])),
            top_k=int(rng.choice([0, 3])),
            stop_ids=tuple(range(seed % 9)),
        )
        for seed in range(40)
    ]
    requests.append(request(16, max_tokens=144))
    with nothing_compiles():
        run(engine, requests)
        engine.set_weights("policy", OTHER)
        run(engine, requests[:3])
    assert engine.compile_count == 2


@pytest.mark.slow
def test_the_cache_is_donated(small):
    small.submit(request(max_tokens=20))
    small.advance()
    state, cache = small._served["policy", 0].state, small._cache
    small.advance()
    assert state.token_B.is_deleted() and all(array.is_deleted() for array in cache)


def test_a_weight_set_costs_nothing_before_its_first_use():
    engine = build()
    assert not engine._served
    engine.submit(request(weights="frozen"))
    engine.advance()
    assert set(engine._served) == {("frozen", 0)}


# ---- Errors ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request((), Sampling(1)), "empty"),
        (lambda: request(160, max_tokens=1), "160 prompt tokens .*shorten the prompt"),
        (lambda: request(16, max_tokens=145), "max_tokens=145 exceed max_length=160.*at most 144"),
        (lambda: request(top_logprobs=1), "top_logprobs=1, but the engine was built for at most 0"),
        (lambda: dataclasses.replace(request(), constraint=object()), "constraints=True"),
        (lambda: request(weights="critic"), "'critic'.*'frozen', 'policy'"),
        (lambda: Request((150,), Sampling(1)), "id 150 is outside the vocabulary of 150"),
        (lambda: request(stop_ids=(-1,)), "id -1 is outside the vocabulary"),
        (lambda: request(stop_ids=tuple(range(9))), "9 stop_ids; the engine takes 8"),
        (lambda: request(address=tuple(range(9))), "at most 8 integers"),
        (lambda: request(address=(-1,)), "at most 8 integers"),
        (lambda: Sampling(0), "max_tokens=0"),
        (lambda: Sampling(1, temperature=-0.5), "temperature=-0.5"),
        (lambda: Sampling(1, temperature=1e-9), "temperature=1e-09"),
        (lambda: Sampling(1, top_p=0.0), "top_p=0.0"),
        (lambda: Sampling(1, top_p=1.5), "top_p=1.5"),
        (lambda: Sampling(1, top_k=-1), "top_k=-1"),
        (lambda: Sampling(1, min_p=2.0), "min_p=2.0"),
        (lambda: Sampling(1, stop_strings=("",)), "empty string"),
    ],
)
def test_errors_name_the_value(engine, make, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(make())
    assert engine.pending == 0


def test_stop_strings_need_decode_text():
    engine = engines.build({"policy": MODEL}, slots=1, max_length=64)
    with pytest.raises(ValueError, match="decode_text"):
        engine.submit(request(max_tokens=2, stop_strings=("x",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(slots=0), "slots=0"),
        (dict(decode_steps=0), "decode_steps=0"),
        (dict(page_size=0), "page_size=0"),
        (dict(prefill_tokens=12), "prefill_tokens=12 must be a multiple of page_size=8"),
        (dict(cache_tokens=159), "cache_tokens=159 holds no request.*at least 160"),
        (dict(in_flight="drop"), "in_flight='drop' is unknown; valid: finish, switch"),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_engine_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
