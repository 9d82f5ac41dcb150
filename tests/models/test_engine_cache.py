"""Pages of the cache: who shares them, who waits for them, and what programs do to them.

Dimensions:
  R requests    P sequences    T queries of each    M pages of a page table    G pages
  Z tokens of a page    S keys    K key/value heads    J = 2 K    N query heads    H head size
"""

import dataclasses
import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, sharding
from models.engine import cache, pages, types
from models.engine.engine import Engine
from models.engine.replicas import Replicas
from models.engine.types import Request, Sampling
from tests.models import engines as small
from tests.models.test_engine import CONFIG, MODEL, OTHER, nothing_compiles, run, same, text

PAGE = 4
LAYOUTS = [
    name for name, layout in cache.LAYOUTS.items() if jax.default_backend() in layout.PLATFORMS
]
CHOICE = dict(config=CONFIG, size=PAGE, dtype=jnp.float32)
BEST = cache.candidates(jax.default_backend(), **CHOICE)[0]
SETTINGS = dict(slots=3, max_length=48, page_size=PAGE, prefill_tokens=8, prefill_rows=2)


WEIGHTS = {"policy": MODEL, "frozen": OTHER}


def build(**options):
    return small.build(WEIGHTS, decode_text=text, **SETTINGS | options)


def two(**options):
    """Returns (Replicas, its two engines)."""
    together = small.replicas(WEIGHTS, 2, decode_text=text, **SETTINGS | options)
    return together, together._engines


def tokens(seed, length):
    return tuple(np.random.default_rng(seed).integers(0, 150, length).tolist())


SYSTEM = tokens(0, 9)
FAMILIES = [SYSTEM + tokens(seed, 8) for seed in (1, 2)]
LETTER = 5  # of the alphabet of `text`: one token in 26 ends a response early


def every_request():
    """Requests whose prompts share a system text, a question, or nothing; every way to end."""
    prompts = [family + tokens(seed, length) for family in FAMILIES for seed, length in SHAPES]
    prompts += [tokens(seed, length) for seed, length in ((7, 1), (8, 4), (9, 31))]
    for index, (prompt, name) in enumerate(itertools.product(prompts, ("policy", "frozen"))):
        sampling = Sampling(
            max_tokens=1 + index * 5 % 14,
            temperature=(1.0, 0.7, 0.0)[index % 3],
            top_p=(1.0, 0.8)[index % 2],
            stop_ids=((), (3, 4, 5), (17,))[index % 3],
            stop_strings=((), (chr(ord("a") + LETTER),))[index % 5 == 0],
        )
        yield Request(prompt, sampling, name, (index,))


SHAPES = ((3, 0), (4, 3), (5, 3), (6, 12))


@functools.cache
def alone_with(layout):
    """Returns [(request, its Completion)], each drawn in an empty engine."""
    engine, found = build(layout=layout), []
    for request in every_request():
        for name, model in (("policy", MODEL), ("frozen", OTHER)):
            engine.set_weights(name, model)  # forgets all prefixes
        found.append((request, *run(engine, [request])))
    assert all(completion.shared_tokens == 0 for _, completion in found)
    assert {completion.stop_reason for _, completion in found} == {"stop", "length"}
    return found


@functools.cache
def engines_with(layout):
    """Roomy; so small that requests wait for pages; and one that reads results late."""
    tight = 48 + 3 * PAGE
    settings = (dict(), dict(cache_tokens=tight), dict(cache_tokens=tight + 40, overlap=True))
    return [build(layout=layout, **options) for options in settings]


@pytest.fixture
def alone():
    return alone_with(BEST)


def schedules():
    """(layout, seed): three for each layout, and more for the best one."""
    for layout in LAYOUTS:
        for seed in range(12 if layout == BEST else 3):
            fast = layout == BEST and seed == 0
            yield pytest.param(layout, seed, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("layout", "seed"), list(schedules()))
def test_any_schedule_gives_the_same_results_bit_for_bit(layout, seed):
    """Random arrivals, cancellations and hand-overs of the same weights; tokens and log-probs.

    A layout with programs of several widths that is not the platform's best: to rounding.
    """
    rng = np.random.default_rng(seed)
    alone, engine = alone_with(layout), engines_with(layout)[seed % 3]
    exact = layout == BEST or len(cache.LAYOUTS[layout].widths(48)) == 1
    atol = 0 if exact else 1e-5
    expected, victims, done = {}, set(), {}
    queue = list(rng.permutation(np.tile(np.arange(len(alone)), 2)))
    for _ in range(3000):
        for index in [queue.pop() for _ in range(min(len(queue), rng.integers(0, 6)))]:
            expected[engine.submit(alone[index][0])] = alone[index][1]
        if expected and rng.random() < 0.3:
            victim = int(rng.choice(list(expected)))
            if engine.cancel(victim):
                victims.add(victim)
        if rng.random() < 0.05:
            engine.set_weights("frozen", OTHER)
        done |= dict(engine.advance())
        if not queue and not engine.pending:
            break
    assert set(done) == set(expected) and victims
    for id, completion in done.items():
        if id in victims:
            assert completion.stop_reason == "cancelled"
            n = len(completion.tokens)
            np.testing.assert_array_equal(completion.tokens, expected[id].tokens[:n])
            logprobs = expected[id].logprobs[:n]
        else:
            np.testing.assert_array_equal(completion.tokens, expected[id].tokens)
            assert completion.stop_reason == expected[id].stop_reason
            logprobs = expected[id].logprobs
        np.testing.assert_allclose(completion.logprobs, logprobs, rtol=0, atol=atol)
    check_all_pages_are_back(engine)


def test_layers_in_one_array_give_the_same_results(alone):
    engine = build(separate=False)
    for (_, expected), got in zip(alone[:6], run(engine, [r for r, _ in alone[:6]]), strict=True):
        same(got, expected)


def check_all_pages_are_back(engine):
    ledger = engine._ledger
    assert ledger.book.available == ledger.book.count
    assert not ledger.holders and ledger.claimed == 0


@pytest.mark.slow
def test_requests_wait_for_pages_and_none_is_lost(alone):
    engine = engines_with(BEST)[1]
    for (_, expected), got in zip(alone, run(engine, [r for r, _ in alone]), strict=True):
        same(got, expected)
    assert engine.statistics.waited_steps > 0
    check_all_pages_are_back(engine)


# ---- Prefixes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_prefix_hits_of_a_scripted_trace():
    engine = build(max_length=64, cache_tokens=400)
    question = tokens(1, 18)

    def hits(*prompts, name="policy"):
        requests = [Request(p, Sampling(2), name, (n,)) for n, p in enumerate(prompts)]
        return [got.shared_tokens for got in run(engine, requests)]

    assert hits(question, question, question) == [0, 16, 16]  # while the first is being filled
    assert hits(question) == [16]  # and after it has ended
    assert hits(question[:16], question[:17]) == [12, 16]  # the last token is computed again
    turn = question + tokens(2, 7)
    assert hits(turn, turn + tokens(3, 5)) == [16, 24]
    assert hits(tokens(4, 4) + question) == [0]  # the same tokens elsewhere are other keys
    assert hits(question, name="frozen") == [0]
    engine.set_weights("policy", MODEL)
    assert hits(question, question) == [0, 16]
    assert hits(question, name="frozen") == [16]
    statistics = engine.statistics
    assert statistics.shared_tokens == 16 * 7 + 12 + 24 + 16 - 16
    assert statistics.prefill_tokens == statistics.prompt_tokens - statistics.shared_tokens


@pytest.mark.slow
def test_the_least_recently_used_prefix_goes_first():
    engine = build(slots=1, cache_tokens=48)  # 12 pages
    first, second, third = (tokens(seed, 17) for seed in range(3))
    asked = lambda prompt: run(engine, [Request(prompt, Sampling(1))])[0].shared_tokens
    assert [asked(p) for p in (first, second, first, third)] == [0, 0, 16, 0]
    assert asked(first) == 16
    assert asked(second) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])  # 3: one call fills the last shared page, and beyond it
def test_a_cancelled_request_fills_the_pages_that_others_wait_for(rows):
    engine = build(prefill_rows=rows, prefill_calls=1)
    prompt = tokens(1, 33)
    (expected,) = run(build(prefill_rows=rows), [Request(prompt, Sampling(5))])
    neighbour = engine.submit(Request(tokens(2, 1), Sampling(40)))
    engine.advance()
    first, second = (engine.submit(Request(prompt, Sampling(5))) for _ in range(2))
    engine.advance()
    engine.cancel(first)
    done = {}
    while engine.pending:
        done |= dict(engine.advance())
    assert done[first].stop_reason == "cancelled"
    assert done[second].shared_tokens == 32
    same(done[second], expected)
    assert len(done[neighbour].tokens) == 40
    check_all_pages_are_back(engine)


def test_digests_follow_the_whole_prefix():
    one = pages.prefix_digests(range(10), 4)
    assert len(one) == 2 and len(set(one)) == 2
    assert pages.prefix_digests(range(12), 4)[:2] == one
    assert pages.prefix_digests([9, 1, 2, 3, 4, 5, 6, 7], 4)[1] != one[1]


@pytest.mark.parametrize("seed", range(50))
def test_requests_are_safe_exactly_if_some_order_serves_them(seed):
    rng = np.random.default_rng(seed)
    wanted_R, freed_R = rng.integers(0, 8, (2, 4))
    available = int(rng.integers(0, 8))

    def served(order):
        left = available
        for index in order:
            if wanted_R[index] > left:
                return False
            left += freed_R[index]
        return True

    expected = any(map(served, itertools.permutations(range(4))))
    assert pages.all_can_finish(wanted_R, freed_R, available) == expected


# ---- Attention over pages ------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_over_pages_equals_plain_softmax(name, T):
    P, K, R, H, Z, G = 20, 2, 3, 8, 4, 400
    M = cache.LAYOUTS[name].KEYS // Z + 9  # more than one span
    rng = np.random.default_rng(T)
    kv_JGZH = rng.normal(size=(2 * K, G, Z, H)).astype(np.float32)
    table_PM = rng.integers(0, G, (P, M)).astype(np.int32)
    q_PTNH = rng.normal(size=(P, T, K * R, H)).astype(np.float32)
    start_P = rng.integers(0, M * Z - T + 1, P)
    start_P[0], start_P[1] = 0, M * Z - T
    position_PT = (start_P[:, None] + np.arange(T)).astype(np.int32)
    position_PT[2] = -1
    got = cache.attend(name, *map(jnp.asarray, (q_PTNH, kv_JGZH, table_PM, position_PT)))
    assert np.isfinite(got).all()
    for p in (0, 1, *range(3, P)):
        kv_JSH = kv_JGZH[:, table_PM[p]].reshape(2 * K, M * Z, H).astype(np.float64)
        for t, n in itertools.product(range(T), range(K * R)):
            k_SH, v_SH = kv_JSH[2 * (n // R) : 2 * (n // R) + 2, : position_PT[p, t] + 1]
            score_S = k_SH @ q_PTNH[p, t, n] / np.sqrt(H)
            weight_S = np.exp(score_S - score_S.max())
            expected_H = weight_S @ v_SH / weight_S.sum()
            np.testing.assert_allclose(got[p, t, n], expected_H, atol=2e-6)


@pytest.mark.parametrize("name", ["paged", "ragged"])
def test_a_layout_that_is_unknown_or_of_another_platform_is_refused(name):
    with pytest.raises(ValueError, match=f"layout='{name}' .* 'cpu'; valid: loop, gathered"):
        cache.candidates("cpu", layout=name, **CHOICE)


@pytest.mark.parametrize(
    ("head_dim", "size", "dtype", "names"),
    [
        (64, 64, jnp.bfloat16, ["paged", "gathered", "loop"]),
        (128, 16, jnp.float16, ["paged", "gathered", "loop"]),
        (128, 16, jnp.float32, ["gathered", "loop"]),
        (80, 16, jnp.bfloat16, ["gathered", "loop"]),
        (64, 48, jnp.bfloat16, ["gathered", "loop"]),
    ],
)
def test_a_gpu_tries_layouts_that_fit_in_turn(head_dim, size, dtype, names):
    config = dataclasses.replace(CONFIG, head_dim=head_dim)
    settings = dict(size=size, dtype=dtype)
    assert cache.candidates("gpu", config, **settings) == names
    if "paged" not in names:
        with pytest.raises(ValueError, match=f"'paged' cannot hold .* pages of {size} tokens"):
            cache.candidates("gpu", config, layout="paged", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [2, 4])
def test_heads_over_several_devices(alone, tensor):
    config = decoder.Config(**{**vars(CONFIG), "num_key_value_heads": 4, "num_attention_heads": 8})
    model = decoder.Decoder(jax.random.key(0), config)
    mesh = sharding.make_mesh(tensor=tensor, devices=jax.devices()[:tensor])
    whole, split = (
        small.build({"policy": model}, **SETTINGS, mesh=where) for where in (None, mesh)
    )
    requests = [Request(tokens(9, 21), Sampling(10), "policy", (n,)) for n in range(4)]
    for one, two in zip(run(whole, requests), run(split, requests), strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-5)
    (shard,) = {part.data.shape for part in split._cache[0].addressable_shards}
    assert shard[0] == 8 // tensor and split.cache_bytes == whole.cache_bytes // tensor


# ---- Compiled programs ---------------------------------------------------------------------------


def decode_program(engine):
    """The compiled decode call of an engine."""
    lowered = {}
    call = engine._decode

    def keep(*arguments):
        lowered["it"] = call.lower(*arguments)
        return call(*arguments)

    engine._decode = keep
    engine.warmup()
    return lowered["it"].compile()


@pytest.mark.slow
def test_the_cache_is_updated_in_place():
    """Aliased whole; temporaries below a quarter of it; nothing of its shape is copied."""
    engine = build(slots=4, cache_tokens=65536)
    program = decode_program(engine)
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= engine.cache_bytes
    assert memory.temp_size_in_bytes < engine.cache_bytes / 4
    shape = ",".join(map(str, engine._cache[0].shape))
    assert not re.findall(rf"f32\[{shape}\]\S* copy\(", program.as_text())


def test_programs_never_ask_the_host(monkeypatch):
    """No callback in the program, and with `overlap` no result is read before the next calls go."""
    engine = build(overlap=True)
    assert not re.findall("callback|infeed|outfeed", decode_program(engine).as_text())
    read = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: read.append(tree) or get(tree))
    engine.submit(Request(tokens(1, 9), Sampling(30)))
    engine.advance()
    assert not read
    engine.dispatch()
    assert not read
    engine.collect()
    assert read


@pytest.mark.slow
def test_a_thousand_mixed_requests_compile_nothing():
    engine = build(slots=16, max_length=200, cache_tokens=1600, prefill_rows=4)
    engine.warmup()
    assert engine.compile_count == 2
    rng = np.random.default_rng(0)
    requests = [
        Request(
            SYSTEM[: rng.integers(0, 10)] + tokens(index, int(rng.integers(1, 100))),
            Sampling(
                int(rng.integers(1, 20)),
                temperature=float(rng.choice([0, 0.5, 1])),
                top_p=float(rng.choice([0.5, 1])),
                top_k=int(rng.choice([0, 3])),
                min_p=float(rng.choice([0, 0.1])),
                stop_ids=tuple(range(index % 9)),
                stop_strings=((), ("zz",))[index % 7 == 0],
            ),
            ("policy", "frozen")[index % 2],
            (index,),
        )
        for index in range(1000)
    ]
    with nothing_compiles():
        done = 0
        for index, request in enumerate(requests):
            id = engine.submit(request)
            if index % 50 == 0:
                engine.cancel(id)
            if index % 333 == 332:
                engine.set_weights("policy", OTHER)
            if index % 3 == 0:
                done += len(engine.advance())
        while engine.pending:
            done += len(engine.advance())
    assert done == 1000 and engine.compile_count == 2
    check_all_pages_are_back(engine)


# ---- Replicas ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_replicas_share_the_load_and_change_no_result(alone):
    together, engines = two()
    requests = [request for request, _ in alone]
    for (_, expected), got in zip(alone, run(together, requests), strict=True):
        same(got, expected)
    taken = [engine.statistics.requests for engine in engines]
    assert sum(taken) == len(requests) == together.statistics.requests
    assert min(taken) > len(requests) // 4
    assert together.pending == 0 and together.compile_count == 4


def test_a_prompt_is_hashed_once(monkeypatch):
    """Whichever replica takes it, and however long it waits for pages."""
    hashed, digests = [], pages.prefix_digests
    monkeypatch.setattr(pages, "prefix_digests", lambda *all: hashed.append(all) or digests(*all))
    together, engines = two(cache_tokens=48)
    for n in range(6):
        together.submit(Request(tokens(n, 20), Sampling(20), address=(n,)))
    for engine in engines * 2:
        engine._admit()
    assert len(hashed) == 6 and all(engine._waiting for engine in engines)


def test_a_request_goes_where_its_prefix_is():
    together, engines = two()
    first, second = FAMILIES[0], tokens(1, 20)
    run(together, [Request(first, Sampling(1)), Request(second, Sampling(1))])
    for _ in range(3):
        run(together, [Request(second + tokens(5, 3), Sampling(1))])
    assert [engine.statistics.requests for engine in engines] == [1, 4]
    id = together.submit(Request(second, Sampling(20)))
    together.advance()
    assert len(together.partial(id).tokens) == 9
    assert together.cancel(id) and not together.cancel(id + 1)
    ((same_id, completion),) = together.advance()
    assert (same_id, completion.stop_reason) == (id, "cancelled")
    assert not together.cancel(id)


# ---- One interface -------------------------------------------------------------------------------


def public(kind):
    """{name: signature, or property} of what a class itself defines for others."""
    return {
        name: "property" if isinstance(member, property) else str(inspect.signature(member))
        for name, member in vars(kind).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("kind", [Engine, Replicas])
def test_engine_and_replicas_have_the_interface_and_nothing_else(kind):
    assert public(kind) == public(types.Sampler)


@pytest.mark.slow
def test_either_may_be_driven(alone):
    """The same calls, as of a driver that hands over weights between its steps."""
    requests, expected = zip(*alone[:4], strict=True)

    def drive(sampler):
        sampler.warmup()
        found = run(sampler, requests)
        sampler.set_weights("policy", OTHER)
        found += run(sampler, requests)
        sampler.release()
        for name, model in WEIGHTS.items():
            sampler.set_weights(name, model)
        found += run(sampler, requests)
        id = sampler.submit(requests[0], sampler.prefix(requests[0].tokens))
        assert sampler.pending == 1 and sampler.cancel(id)
        sampler.dispatch()
        ((_, cancelled),) = sampler.collect()
        prefix = sampler.prefix(requests[0].tokens)
        known = sampler.cached_tokens("policy", prefix)
        assert cancelled.stop_reason == "cancelled" and known == 16
        return found, sampler.slots, sampler.statistics.requests

    one, slots, count = drive(build())
    several, more_slots, same_count = drive(two()[0])
    for got, other in zip(one, several, strict=True):
        same(got, other)
    for got, wanted in zip(one[:4] + one[8:], 2 * expected, strict=True):
        same(got, wanted)
    assert (more_slots, same_count) == (2 * slots, count)
