"""Continuous batching with named weight sets. One thread drives it: submit, then step until done.

    engine = Engine({"policy": model, "frozen": model}, slots=64, max_length=4096)
    id = engine.submit(Request(tokens, Sampling(max_tokens=32), address=(step, question, rollout)))
    while engine.pending:
        for id, completion in engine.step(): ...

A step admits waiting requests, continues some prompts, draws a few tokens in every slot, and hands
out what ended. All weight sets run the same few compiled programs over one cache of pages, so
shapes never depend on the traffic. A request's tokens depend on its prompt, weights, sampling,
address and the seed; not on its slot, its neighbours, shared prefixes or the order of arrival.
"""

import collections
import dataclasses
import functools
import heapq
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models import sharding
from models.engine import cache, pages, pool, programs

IN_FLIGHT = ("finish", "switch")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is the same in all calls of the programs; static in their compilation."""

    dtype: jax.typing.DTypeLike
    attend: str
    mesh: jax.sharding.Mesh | None
    top_logprobs: int


@dataclasses.dataclass
class Statistics:
    """Totals since the engine was made.

    prompt_tokens, shared_tokens: of admitted requests, and how many were found in the cache.
    prefill_calls, prefill_tokens: and the real tokens in them.
    decode_calls, slot_steps, drawn_tokens: calls, slots * steps of these, tokens they drew.
    wasted_steps: slot steps of an occupied slot that drew nothing because its request had ended.
    waited_steps: slot steps of an occupied slot that drew nothing for want of pages.
    requests, cancelled: completions, and those of them that were cancelled or ran out of time.
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    prefill_calls: int = 0
    prefill_tokens: int = 0
    decode_calls: int = 0
    slot_steps: int = 0
    drawn_tokens: int = 0
    wasted_steps: int = 0
    waited_steps: int = 0
    requests: int = 0
    cancelled: int = 0


class Engine:
    """Serves requests to the weight sets it is given.

    Args:
      weights: name -> Qwen2, all of one config. The engine keeps these arrays (a copy only where
        dtype or placement differ): donate them to no other program while it may still use them.
      slots: requests that run at once, for each weight set.
      max_length: most prompt and response tokens of one request.
      cache_tokens: tokens that the cache holds, over all weight sets; 0 is slots * max_length for
        each of them. Requests wait when it is full; none fails.
      page_size: tokens of a page: the unit in which cache is handed out and prefixes are shared.
      prefill_tokens: tokens of one row of a prefill call, a multiple of page_size. A prompt takes
        as many rows as it needs, in one call or in several.
      prefill_rows: rows of a prefill call, shared by the prompts that wait.
      prefill_calls: prefill calls between two decode calls while anything decodes.
      decode_steps: tokens drawn per decode call.
      overlap: dispatch the next calls before the results of the last ones are read. Keeps an
        accelerator busy; a response that ended is noticed one call later.
      in_flight: what happens to running requests when their weights are replaced. "finish": they
        end with the weights they began with, whose arrays are kept until then. "switch": they go on
        with the new weights over the cache that the old ones wrote; `token_versions` tells.
      seed: start of every request's randomness, in [0, 2**32).
      decode_text: token ids -> text, needed for stop strings.
      dtype: of weights, activations and cache; logits and log-probs are float32.
      top_logprobs: most alternatives per token that a request may ask for.
      constraints: whether requests may carry a constraint, see `types.Request`.
      mesh: devices of this engine, axes as in `sharding.make_mesh`; only `tensor` may exceed 1.
        None is the first local device.
      attend: implementation of `cache.attend`; None chooses by platform.
    """

    def __init__(
        self,
        weights,
        *,
        slots,
        max_length,
        cache_tokens=0,
        page_size=32,
        prefill_tokens=64,
        prefill_rows=8,
        prefill_calls=4,
        decode_steps=8,
        overlap=False,
        in_flight="finish",
        seed=0,
        decode_text=None,
        dtype=jnp.float32,
        top_logprobs=0,
        constraints=False,
        mesh=None,
        attend=None,
    ):
        for name, value in dict(
            slots=slots,
            max_length=max_length,
            page_size=page_size,
            prefill_tokens=prefill_tokens,
            prefill_rows=prefill_rows,
            prefill_calls=prefill_calls,
            decode_steps=decode_steps,
        ).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if prefill_tokens % page_size:
            raise ValueError(
                f"prefill_tokens={prefill_tokens} must be a multiple of page_size={page_size}."
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} is outside [0, 2**32).")
        if in_flight not in IN_FLIGHT:
            raise ValueError(f"in_flight={in_flight!r} is unknown; valid: {', '.join(IN_FLIGHT)}.")
        if not weights:
            raise ValueError("weights is empty; give at least one named model.")
        if mesh is None:
            mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        if mesh.size != mesh.shape["tensor"]:
            raise ValueError(
                f"The engine's mesh has {dict(mesh.shape)}; only `tensor` may exceed 1. Build one "
                "engine for each group of devices (models/engine/replicas.py)."
            )
        self.slots, self._max_length, self._page = slots, max_length, page_size
        self._row, self._rows = prefill_tokens, prefill_rows
        self._calls, self._steps = prefill_calls, decode_steps
        self._depth, self._in_flight = int(overlap), in_flight
        self._decode_text, self._dtype = decode_text, dtype
        self._seed = np.uint32(seed)

        first = next(iter(weights.values()))
        self._config = first.config
        self._names = _names(first)
        self._mesh = mesh
        self._shardings = jax.tree.leaves(sharding.parameter_shardings(mesh, first))
        platform = mesh.devices.flat[0].platform
        self._run = Run(dtype, attend or cache.implementation(platform), mesh, top_logprobs)
        self._words = -(-self._config.vocab_size // 32) if constraints else 0

        cache_tokens = cache_tokens or slots * max_length * len(weights)
        count = cache_tokens // page_size
        if count < self._pages_for(max_length):
            raise ValueError(
                f"cache_tokens={cache_tokens} holds no request of max_length={max_length}; use at "
                f"least {self._pages_for(max_length) * page_size}, or 0."
            )
        # The padding of a row is read too, by `ragged`.
        self._widths = cache.widths(self._run.attend, self._pages_for(max_length + prefill_tokens))
        self._book = pages.Pages(count, page_size)
        self._cache = None

        self._pools = {}  # (name, version) -> Pool
        self._weights, self._versions = dict.fromkeys(weights), dict.fromkeys(weights, 0)
        for name, model in weights.items():
            self._check_model(name, model)
            self._weights[name] = self._adopted(model)
        self._requests = {}  # id -> Running that was not delivered
        self._waiting = {}  # id -> Running without pages, in order of arrival
        self._holders = {}  # id -> Running with pages
        self._claimed = 0  # pages that the holders may still want, all together
        self._deadlines = []  # heap of (monotonic seconds, id)
        self._finished = []  # [(id, Completion)] to deliver
        self._calls_in_flight = collections.deque()  # of lists of functions that collect results
        self._ids = itertools.count()
        self._compile_count = 0
        self.statistics = Statistics()
        self._prefill, self._decode = jitted(
            self._run, jax.tree.structure(first), steps=decode_steps, on_trace=self._count_trace
        )

    # ---- requests ------------------------------------------------------------------------------

    @property
    def pending(self):
        """Requests submitted whose Completion was not returned yet."""
        return len(self._requests)

    @property
    def compile_count(self):
        """Traces of the engine's programs so far."""
        return self._compile_count

    @property
    def cache_bytes(self):
        """Bytes of the KV cache on each device."""
        place = self._cache_sharding().shard_shape
        leaves = jax.tree.leaves(jax.eval_shape(self._empty_cache))
        return sum(int(np.prod(place(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)

    def prefix(self, tokens):
        """Digests of a prompt's full pages, for `cached_tokens` and `submit`."""
        return pages.prefix_digests(tokens, self._page)

    def submit(self, request, prefix=None):
        """Queues a request and returns its id. ValueError says what the engine cannot serve.

        Args:
          prefix: of its tokens, where the caller has it already.
        """
        self._check(request)
        if prefix is None:
            prefix = self.prefix(request.tokens)
        # The token drawn last is never written.
        positions = len(request.tokens) + request.sampling.max_tokens - 1
        running = pool.Running(next(self._ids), request, self._pages_for(positions), prefix)
        self._requests[running.id] = self._waiting[running.id] = running
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, running.id))
        return running.id

    def cached_tokens(self, weights, prefix):
        """How many tokens of a prefix are in the cache of the newest version of a weight set."""
        found = self._pools.get((weights, self._versions.get(weights)))
        if found is None:
            return 0
        return self._page * self._book.known([found.namespace + digest for digest in prefix])

    def partial(self, id, first=0):
        """Completion, without a stop_reason, of what a pending request drew from `first` on."""
        return self._requests[id].completion(first=first)

    def cancel(self, id):
        """Ends a request; the next `step` returns what it has, with stop_reason "cancelled".

        Returns whether there was anything to end: False if its Completion is made already.
        """
        return self._give_up(id, "cancelled")

    # ---- weights -------------------------------------------------------------------------------

    def set_weights(self, name, model):
        """Replaces a weight set from the next `step` on and raises its version by one.

        Pages that the old weights filled are shared no more. Running requests do as `in_flight`
        says; waiting ones get the new weights.
        """
        self._check_name(name)
        old = self._pools.get((name, self._versions[name]))
        self._check_model(name, model)
        self._weights[name] = None
        if old is not None:
            self._book.unlist(old.namespace)
            if not old.busy:
                del self._pools[name, old.version]  # its arrays are free before the new ones come
                old.weights, old = None, None
        self._weights[name] = self._adopted(model)
        self._versions[name] += 1
        if old is not None and self._in_flight == "switch":
            del self._pools[name, old.version]
            old.take_over(self._versions[name], self._weights[name])
            self._pools[name, old.version] = old

    def release(self):
        """Frees the device memory of cache and weights; `set_weights` brings each set back.

        Raises:
          ValueError: requests are pending.
        """
        if self._requests:
            raise ValueError(f"{self.pending} requests are pending; end them before release().")
        self._read(until=0)
        self._pools.clear()
        self._weights = dict.fromkeys(self._weights)
        self._book = pages.Pages(self._book.count, self._page)
        self._cache = None

    def _adopted(self, model):
        """The model's arrays on the engine's mesh, in its dtype, in the order of `_names`."""
        leaves = zip(jax.tree.leaves(model), self._shardings, strict=True)
        return [jax.device_put(jnp.asarray(leaf, self._dtype), place) for leaf, place in leaves]

    def _pool(self, name):
        """The pool of the newest version of a weight set."""
        version = self._versions[name]
        if (name, version) not in self._pools:
            if self._weights[name] is None:
                raise ValueError(f"Weights {name!r} were released; set_weights brings them back.")
            state = jax.device_put(programs.empty_slots(self.slots), self._everywhere())
            self._pools[name, version] = pool.Pool(
                name,
                version,
                self._weights[name],
                state=state,
                slots=self.slots,
                table_width=self._widths[-1],
            )
        return self._pools[name, version]

    # ---- one step ------------------------------------------------------------------------------

    def step(self):
        """Admits, prefills and decodes once; [(id, Completion)] of the requests that ended."""
        self.dispatch()
        return self.collect()

    def dispatch(self):
        """The first half of a step: gives the devices work."""
        self._end_late()
        self._admit()
        self._calls_in_flight.append(self._prefill_all() + self._decode_all())

    def collect(self):
        """The second half: reads what the devices drew; [(id, Completion)]."""
        self._read(until=self._depth if self._calls_in_flight[-1] else 0)
        newest = set(self._versions.items())
        for key in [k for k, p in self._pools.items() if k not in newest and not p.busy]:
            del self._pools[key]
        finished, self._finished = self._finished, []
        for id, _ in finished:
            del self._requests[id]
        return finished

    def warmup(self):
        """Compiles every program, so that serving compiles nothing."""
        if self._requests:
            raise ValueError("warmup() must come before the first submit().")
        pool_ = self._pool(next(iter(self._weights)))
        for width in self._widths:
            self._call_prefill(pool_, [], width)
            self._call_decode(pool_, np.zeros(self.slots, np.int32), [], width)
        jax.block_until_ready(self._cache)

    def _read(self, *, until):
        """Reads the results of the oldest calls until so many steps are in flight."""
        while len(self._calls_in_flight) > until:
            for collect in self._calls_in_flight.popleft():
                collect()

    def _end_late(self):
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            self._give_up(heapq.heappop(self._deadlines)[1], "deadline")

    def _admit(self):
        """Gives waiting requests slots and the pages of their prompts, in order of arrival."""
        full = set()
        for running in list(self._waiting.values()):
            name = running.request.weights
            if name in full:
                continue
            pool_ = self._pool(name)
            slot = pool_.free_slot()
            if slot is None:
                full.add(name)
                if len(full) == len(self._weights):
                    return
                continue
            keys = [pool_.namespace + digest for digest in running.digests]
            # The last token is always computed: its logits draw the first token.
            found = self._book.find(keys[: (len(running.prompt) - 1) // self._page])
            running.keys, running.pages = keys, found
            wanted = self._pages_for(len(running.prompt)) - len(found)
            if not self._may_take(np.array([wanted]), [running]):
                for page in found:
                    self._book.release(page)
                running.keys, running.pages = [], []
                return
            running.cursor = running.shared = len(found) * self._page
            pool_.enter(running, slot)
            self._holders[running.id] = running
            self._claimed += running.wanted_pages
            first = len(found)
            self._take_pages(running, wanted)
            for key, page in zip(keys[first:], running.pages[first:], strict=False):
                self._book.list_under(key, page)
            del self._waiting[running.id]
            self.statistics.prompt_tokens += len(running.prompt)
            self.statistics.shared_tokens += running.shared

    def _prefill_all(self):
        """Dispatches prefill calls; their collecting functions."""
        calls, pools = [], list(self._pools.values())
        decoding = any(r.prefilled for p in pools for _, r in p.occupied())
        while not decoding or len(calls) < self._calls:
            before = len(calls)
            for pool_ in pools:
                rows = self._prefill_rows(pool_)
                if rows:
                    calls.append(self._prefill_call(pool_, rows))
            decoding = decoding or any(r.prefilled for p in pools for _, r in p.occupied())
            if len(calls) == before:
                break
        return calls

    def _prefill_rows(self, pool_):
        """[(Running, first token, tokens)]: the oldest prompts, as far as the rows go.

        A prompt waits until the pages it shares are filled.
        """
        rows = []
        for running in pool_.filling.values():
            if running.cursor and not running.pages[running.cursor // self._page - 1].ready:
                continue
            starts = range(running.cursor, len(running.prompt), self._row)
            for start in starts[: self._rows - len(rows)]:
                rows.append((running, start, min(self._row, len(running.prompt) - start)))
            if len(rows) == self._rows:
                break
        return rows

    def _prefill_call(self, pool_, rows):
        width = self._width(max(self._pages_for(start + count) for _, start, count in rows))
        drawn, live_P = self._call_prefill(pool_, rows, width)
        entered = []
        for row, (running, start, tokens) in enumerate(rows):
            running.cursor = start + tokens
            for page in running.pages[start // self._page : running.cursor // self._page]:
                page.ready = True
            if running.prefilled:
                del pool_.filling[running.id]
                if not running.ended:
                    running.dispatched = 1
                    entered.append((row, running))
            if running.ended:
                self._let_go(running)
        self.statistics.prefill_calls += 1
        self.statistics.prefill_tokens += sum(tokens for *_, tokens in rows)
        version = pool_.version

        def collect():
            fetched, live = jax.device_get((drawn, live_P))
            self._check_finite(pool_, fetched.logprob[[row for row, _ in entered]])
            for row, running in entered:
                if not running.ended:
                    cells = slice(row, row + 1)
                    tokens = fetched.token[cells].tolist()
                    self._take(running, tokens, fetched, cells, version, goes_on=live[row])

        return collect

    def _decode_all(self):
        """Dispatches a decode call for every pool that has something to draw."""
        calls = []
        for pool_ in list(self._pools.values()):
            active = [(s, r) for s, r in pool_.occupied() if r.prefilled]
            quota_B = self._quotas(active)
            if quota_B.any():
                calls.append(self._decode_call(pool_, active, quota_B))
        return calls

    def _quotas(self, active):
        """int32 [B]: tokens each slot may draw in the next call, with the pages for them."""
        quota_B = np.zeros(self.slots, np.int32)
        asked = []  # (Running, tokens, pages), oldest first
        for _, running in sorted(active, key=lambda item: item[1].id):
            quota = min(self._steps, running.request.sampling.max_tokens - running.dispatched)
            if running.request.constraint is not None:  # its next mask needs the last token
                quota = min(quota, 1) if running.dispatched == len(running.tokens) else 0
            reach = len(running.prompt) + running.dispatched - 1 + quota
            if quota:
                asked.append((running, quota, max(self._pages_for(reach) - len(running.pages), 0)))
        wanted = np.array([pages_ for *_, pages_ in asked], int)
        all_at_once = bool(asked) and self._may_take(wanted, [running for running, *_ in asked])
        for running, quota, pages_ in asked:
            if all_at_once or self._may_take(np.array([pages_]), [running]):
                self._take_pages(running, pages_)
                running.dispatched += quota
                quota_B[running.slot] = quota
        return quota_B

    def _decode_call(self, pool_, active, quota_B):
        width = self._width(max(len(running.pages) for _, running in active))
        drawn, live_B = self._call_decode(pool_, quota_B, [slot for slot, _ in active], width)
        self.statistics.decode_calls += 1
        self.statistics.slot_steps += self.slots * self._steps
        version = pool_.version

        def collect():
            fetched, live = jax.device_get((drawn, live_B))
            drew_CB = fetched.token != programs.NO_TOKEN
            self._check_finite(pool_, fetched.logprob[drew_CB])
            count_B = drew_CB.sum(0).tolist()
            self.statistics.drawn_tokens += sum(count_B)
            for slot, running in active:
                count = count_B[slot]
                if quota_B[slot]:
                    self.statistics.wasted_steps += self._steps - count
                else:
                    self.statistics.waited_steps += self._steps
                if not running.ended and count:
                    cells = (slice(count), slot)
                    tokens = fetched.token[cells].tolist()
                    self._take(running, tokens, fetched, cells, version, goes_on=live[slot])

        return collect

    # ---- calls of the programs -----------------------------------------------------------------

    def _call_prefill(self, pool_, rows, width):
        new = pool.chunk(
            rows,
            size=self._row,
            count=self._rows,
            slots=self.slots,
            table_width=width,
            vocabulary_words=self._words,
        )
        self._place_cache()
        self._cache, pool_.state, drawn, live_P = self._prefill(
            pool_.weights, self._cache, pool_.state, new, self._seed
        )
        return drawn, live_P

    def _call_decode(self, pool_, quota_B, occupied, width):
        keep_B = np.zeros(self.slots, bool)
        keep_B[occupied] = True
        allowed_BW = None
        if self._words:
            allowed_BW = np.full((self.slots, self._words), 2**32 - 1, np.uint32)
            for slot in np.flatnonzero(quota_B):
                constraint = pool_.running[slot].request.constraint
                if constraint is not None:
                    allowed_BW[slot] = constraint.allowed()
        table_BM = pool_.table_BM[:, :width].copy()  # the next call may be prepared before it ran
        self._place_cache()
        self._cache, pool_.state, drawn, live_B = self._decode(
            pool_.weights, self._cache, pool_.state, table_BM, keep_B, quota_B, allowed_BW
        )
        return drawn, live_B

    def _width(self, wanted):
        """The narrowest page tables that hold so many pages."""
        return next(width for width in self._widths if width >= wanted)

    # ---- what was drawn ------------------------------------------------------------------------

    def _take(self, running, tokens, fetched, cells, version, *, goes_on):
        """Hands drawn tokens to their request, which ends if it may not go on."""
        running.take(tokens, fetched, cells, version)
        if running.request.constraint is not None:
            running.request.constraint.accept(tokens[-1])
        if self._cut_at_stop_string(running):
            self._end(running, "stop")
        elif not goes_on:
            by_id = running.tokens[-1] in running.request.sampling.stop_ids
            self._end(running, "stop" if by_id else "length")

    def _give_up(self, id, reason):
        """Ends a request early; whether there was anything to end."""
        running = self._requests.get(id)
        if running is None or running.ended:
            return False
        self._end(running, reason)
        self.statistics.cancelled += 1
        return True

    def _end(self, running, reason):
        running.ended = True
        self._finished.append((running.id, running.completion(reason)))
        self.statistics.requests += 1
        if running.id in self._waiting:
            del self._waiting[running.id]
            return
        running.pool.running[running.slot] = None
        self._claimed -= running.wanted_pages
        running.most_pages = len(running.pages)
        self._let_go(running)

    def _let_go(self, running):
        """Gives back the pages of an ended request, unless others wait for it to fill one."""
        if any(page.holders > 1 and not page.ready for page in running.pages):
            return
        for page in running.pages:
            self._book.release(page)
        running.pages = []
        running.pool.filling.pop(running.id, None)
        del self._holders[running.id]

    def _cut_at_stop_string(self, running):
        """Truncates to the token that completes a stop string; whether there was one."""
        stops = running.request.sampling.stop_strings
        if not stops:
            return False

        def holds_stop(tokens):
            text = self._decode_text(tokens)
            return any(stop in text for stop in stops)

        checked, running.checked = running.checked, len(running.tokens)
        if not holds_stop(running.tokens):
            return False
        lengths = range(checked + 1, len(running.tokens) + 1)
        running.cut(next(n for n in lengths if holds_stop(running.tokens[:n])))
        return True

    # ---- pages ---------------------------------------------------------------------------------

    def _pages_for(self, tokens):
        return -(-tokens // self._page)

    def _take_pages(self, running, count):
        if count:
            running.pool.extend(running, [self._book.take() for _ in range(count)])
            self._claimed -= count

    def _may_take(self, wanted_R, runnings):
        """Whether requests may take pages and everybody that runs can still end after that."""
        total, left = int(wanted_R.sum()), self._book.available
        if total == 0:
            return True
        new = [running for running in runnings if running.id not in self._holders]
        if self._claimed + sum(running.wanted_pages for running in new) <= left:
            return True
        if total > left:
            return False
        taken = dict(zip([running.id for running in runnings], wanted_R.tolist(), strict=True))
        everybody = [*self._holders.values(), *new]
        taken_R = np.array([taken.get(running.id, 0) for running in everybody])
        most_R = np.array([running.wanted_pages for running in everybody])
        private_R = np.array([running.private_pages for running in everybody])
        return pages.all_can_finish(most_R - taken_R, private_R + taken_R, left - total)

    # ---- set-up and checks ---------------------------------------------------------------------

    def _everywhere(self):
        return NamedSharding(self._mesh, PartitionSpec())

    def _cache_sharding(self):
        return NamedSharding(self._mesh, cache.spec(self._run.attend))

    def _empty_cache(self):
        return cache.empty(
            self._config,
            pages=self._book.count,
            size=self._page,
            dtype=self._dtype,
            name=self._run.attend,
        )

    def _place_cache(self):
        """Makes the cache, where it is not there yet."""
        if self._cache is None:
            self._cache = jax.jit(self._empty_cache, out_shardings=self._cache_sharding())()

    def _count_trace(self):
        self._compile_count += 1

    def _check_model(self, name, model):
        found = _names(model)
        if model.config != self._config or found != self._names:
            different = sorted(set(found.items()) ^ set(self._names.items()))
            raise ValueError(
                f"Weights {name!r} differ from the engine's model in config or shapes "
                f"({model.config} against {self._config}; {different}). Give every weight set the "
                "same architecture, or build another engine."
            )

    def _check_finite(self, pool_, logprobs):
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(
                f"Weights {pool_.name!r}, version {pool_.version}, gave logits that are not "
                "finite. Check the update they come from; the cache they wrote is lost too, so "
                "build a new engine."
            )

    def _check_name(self, name):
        if name not in self._weights:
            raise ValueError(
                f"No weights named {name!r}; this engine serves {sorted(self._weights)}."
            )

    def _check(self, request):
        self._check_name(request.weights)
        tokens, sampling = len(request.tokens), request.sampling
        if not tokens:
            raise ValueError("Request.tokens is empty; a prompt needs at least one token.")
        if tokens + sampling.max_tokens > self._max_length:
            room = self._max_length - tokens
            todo = f"lower max_tokens to at most {room}" if room > 0 else "shorten the prompt"
            raise ValueError(
                f"{tokens} prompt tokens and max_tokens={sampling.max_tokens} exceed max_length="
                f"{self._max_length}; raise max_length or {todo}."
            )
        ids = (*request.tokens, *sampling.stop_ids)
        low, high = min(ids), max(ids)
        if low < 0 or high >= self._config.vocab_size:
            raise ValueError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self._config.vocab_size}; check that the tokenizer belongs to the model."
            )
        if len(sampling.stop_ids) > programs.STOP_IDS:
            raise ValueError(
                f"{len(sampling.stop_ids)} stop_ids; the engine takes {programs.STOP_IDS}. "
                "Use stop_strings for the rest."
            )
        if sampling.stop_strings and self._decode_text is None:
            raise ValueError("stop_strings need Engine(decode_text=...), such as tokenizer.decode.")
        if sampling.top_logprobs > self._run.top_logprobs:
            raise ValueError(
                f"top_logprobs={sampling.top_logprobs}, but the engine was built for at most "
                f"{self._run.top_logprobs}."
            )
        if request.constraint is not None and not self._words:
            raise ValueError("A constraint needs Engine(constraints=True).")
        address = request.address
        if len(address) > programs.ADDRESS_PARTS or not all(0 <= n < 2**32 for n in address):
            raise ValueError(
                f"address={address} must hold at most {programs.ADDRESS_PARTS} integers in "
                "[0, 2**32)."
            )


def jitted(run, treedef, *, steps, on_trace=lambda: None):
    """The jitted (prefill, decode) of `programs`, with the model as a list of its leaves.

    Args:
      steps: of one decode call.
      on_trace: is called whenever one is traced.
    """

    def make(program):
        @functools.wraps(program)
        def traced(leaves, pages_, slots, *rest):
            on_trace()
            return program(jax.tree.unflatten(treedef, leaves), pages_, slots, *rest, run=run)

        return jax.jit(traced, donate_argnums=(1, 2))

    return make(programs.prefill), make(functools.partial(programs.decode, steps=steps))


def _names(model):
    """{name: shape} of a model's arrays."""
    names = sharding.parameter_names(model)
    shapes = (leaf.shape for leaf in jax.tree.leaves(model))
    return dict(zip(names, shapes, strict=True))
