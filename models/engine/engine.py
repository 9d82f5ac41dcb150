"""Continuous batching with named weight sets. One thread submits, then advances until all is done.

    engine = Engine({"policy": model, "frozen": model}, slots=64, max_length=4096, ...)
    id = engine.submit(Request(tokens, Sampling(max_tokens=32), address=(step, question, rollout)))
    while engine.pending:
        for id, completion in engine.advance(): ...

Each time it advances it admits waiting requests, continues some prompts, draws a few tokens in
every slot, and hands out what ended. All weight sets run the same few compiled programs over one
cache of pages, so shapes never depend on the traffic. A request's tokens depend on its prompt,
weights, sampling, address and the seed; not on its slot, its neighbours, shared prefixes or the
order of arrival.

Dimensions:
  B slots    W words of a mask of allowed tokens    M pages of a page table    R requests
  P rows of one prefill call    C steps of one decode call
"""

import collections
import heapq
import itertools
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models import sharding
from models.engine import limits, pages, placement, programs, seats, selftest, types


class Engine(types.Sampler):
    """Serves requests to the weight sets it is given.

    Args:
      weights: name -> Decoder, all of one config. The engine keeps these arrays (a copy only where
        dtype or placement differ, and of layers that are to be separate): donate them to no other
        program while it may still use them.
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
      dtype: of weights, activations and cache; logits and log-probs are float32.
      separate: keep one array a layer, see `placement.copies`.
      constraints: whether requests may carry a constraint, see `types.Request`.
      decode_text: token ids -> text, needed for stop strings.
      top_logprobs: most alternatives per token that a request may ask for.
      mesh: devices of this engine, axes as in `sharding.make_mesh`; only `tensor` may exceed 1.
        None is the first local device.
      layout: of the cache, a name in `cache`; None takes the first of its candidates that
        passes its self-test.
    """

    def __init__(
        self,
        weights,
        *,
        slots,
        max_length,
        cache_tokens,
        page_size,
        prefill_tokens,
        prefill_rows,
        prefill_calls,
        decode_steps,
        overlap,
        in_flight,
        seed,
        dtype,
        separate,
        constraints,
        decode_text=None,
        top_logprobs=0,
        mesh=None,
        layout=None,
    ):
        if mesh is None:
            mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        sizes = dict(
            slots=slots,
            max_length=max_length,
            page_size=page_size,
            prefill_tokens=prefill_tokens,
            prefill_rows=prefill_rows,
            decode_steps=decode_steps,
        )
        limits.check_settings(
            **sizes,
            prefill_calls=prefill_calls,
            seed=seed,
            in_flight=in_flight,
            weights=weights,
            mesh=mesh,
        )
        first = next(iter(weights.values()))
        cache_tokens = cache_tokens or slots * max_length * len(weights)
        self._shapes = selftest.choose(
            first.config,
            mesh,
            layout=layout,
            **sizes,
            cache_tokens=cache_tokens,
            dtype=dtype,
            constraints=constraints,
        )
        limits.check_cache(self._shapes, max_length=max_length, cache_tokens=cache_tokens)
        self._limits = limits.Limits(
            weights=tuple(weights),
            max_length=max_length,
            vocab_size=first.config.vocab_size,
            top_logprobs=top_logprobs,
            stop_strings=decode_text is not None,
            constraints=constraints,
        )
        self._prefill_calls = prefill_calls
        self._depth, self._in_flight = int(overlap), in_flight
        self._decode_text, self._seed, self._mesh = decode_text, np.uint32(seed), mesh

        self._place = placement.Place(first, mesh=mesh, dtype=dtype, separate=separate)
        self._weights, self._versions = dict.fromkeys(weights), dict.fromkeys(weights, 0)
        for name, model in weights.items():
            self._place.check(name, model)
            self._weights[name] = self._place.put(model)
        self._served = {}  # (name, version) -> Seats
        self._requests = {}  # id -> Running that was not delivered
        self._waiting = {}  # id -> Running without pages, in order of arrival
        self._ledger = pages.Ledger(self._shapes.pages, page_size)
        self._cache = None
        self._deadlines = []  # heap of (monotonic seconds, id)
        self._finished = []  # [(id, Completion)] to deliver
        self._calls_in_flight = collections.deque()  # of lists of functions that read results
        self._ids = itertools.count()
        self._compile_count = 0
        self._statistics = types.Statistics()
        self._prefill, self._decode = programs.jitted(
            programs.Static(dtype, self.layout, mesh, top_logprobs),
            self._place.structure,
            steps=decode_steps,
            options=selftest.compiler_options(mesh),
            on_trace=self._count_trace,
        )

    # ---- requests ------------------------------------------------------------------------------

    @property
    def pending(self):
        return len(self._requests)

    @property
    def compile_count(self):
        return self._compile_count

    @property
    def slots(self):
        return self._shapes.slots

    @property
    def layout(self):
        return self._shapes.layout

    @property
    def statistics(self):
        return self._statistics

    @property
    def cache_bytes(self):
        return self._shapes.cache_bytes(self._mesh)

    def prefix(self, tokens):
        return pages.prefix_digests(tokens, self._shapes.page_size)

    def submit(self, request, prefix=None):
        self._limits.check(request)
        if prefix is None:
            prefix = self.prefix(request.tokens)
        # The token drawn last is never written.
        positions = len(request.tokens) + request.sampling.max_tokens - 1
        running = seats.Running(next(self._ids), request, self._shapes.pages_for(positions), prefix)
        self._requests[running.id] = self._waiting[running.id] = running
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, running.id))
        return running.id

    def cached_tokens(self, weights, prefix):
        served = self._served.get((weights, self._versions.get(weights)))
        if served is None:
            return 0
        known = self._ledger.book.known([served.namespace + digest for digest in prefix])
        return self._shapes.page_size * known

    def partial(self, id, first=0):
        return self._requests[id].completion(first=first)

    def cancel(self, id):
        return self._give_up(id, "cancelled")

    # ---- weights -------------------------------------------------------------------------------

    def set_weights(self, name, model):
        self._limits.check_name(name)
        old = self._served.get((name, self._versions[name]))
        self._place.check(name, model)
        self._weights[name] = None
        if old is not None:
            self._ledger.book.unlist(old.namespace)
            if not old.busy:
                del self._served[name, old.version]  # its arrays are free before the new ones come
                old.weights, old = None, None
        self._weights[name] = self._place.put(model)
        self._versions[name] += 1
        if old is not None and self._in_flight == "switch":
            del self._served[name, old.version]
            old.take_over(self._versions[name], self._weights[name])
            self._served[name, old.version] = old

    def release(self):
        if self._requests:
            raise ValueError(f"{self.pending} requests are pending; end them before release().")
        self._read(until=0)
        self._served.clear()
        self._weights = dict.fromkeys(self._weights)
        self._ledger = pages.Ledger(self._shapes.pages, self._shapes.page_size)
        self._cache = None

    def _newest(self, name):
        """Returns the Seats of the newest version of a weight set."""
        version = self._versions[name]
        if (name, version) not in self._served:
            if self._weights[name] is None:
                raise ValueError(f"Weights {name!r} were released; set_weights brings them back.")
            everywhere = NamedSharding(self._mesh, PartitionSpec())
            self._served[name, version] = seats.Seats(
                name,
                version,
                self._weights[name],
                state=jax.device_put(programs.empty_slots(self.slots), everywhere),
                slots=self.slots,
                table_width=self._shapes.widths[-1],
            )
        return self._served[name, version]

    # ---- one advance ---------------------------------------------------------------------------

    def advance(self):
        self.dispatch()
        return self.collect()

    def dispatch(self):
        self._end_late()
        self._admit()
        self._calls_in_flight.append(self._prefill_all() + self._decode_all())

    def collect(self):
        self._read(until=self._depth if self._calls_in_flight[-1] else 0)
        newest = set(self._versions.items())
        for key in [k for k, old in self._served.items() if k not in newest and not old.busy]:
            del self._served[key]
        finished, self._finished = self._finished, []
        for id, _ in finished:
            del self._requests[id]
        return finished

    def warmup(self):
        if self._requests:
            raise ValueError("warmup() must come before the first submit().")
        served = self._newest(next(iter(self._weights)))
        for width in self._shapes.widths:
            self._call_prefill(served, [], width)
            self._call_decode(served, np.zeros(self.slots, np.int32), [], width)
        jax.block_until_ready(self._cache)

    def _read(self, *, until):
        """Reads the results of the oldest calls until those of so many `dispatch` are left."""
        while len(self._calls_in_flight) > until:
            for read in self._calls_in_flight.popleft():
                read()

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
            served = self._newest(name)
            slot = served.free_slot()
            if slot is None:
                full.add(name)
                if len(full) == len(self._weights):
                    return
                continue
            keys = [served.namespace + digest for digest in running.digests]
            if not self._ledger.admit(running, keys):
                return
            running.cursor = running.shared
            served.enter(running, slot)
            del self._waiting[running.id]
            self._statistics.prompt_tokens += len(running.prompt)
            self._statistics.shared_tokens += running.shared

    def _prefill_all(self):
        """Dispatches prefill calls; returns the functions that read their results."""
        calls, versions = [], list(self._served.values())
        decoding = any(served.decoding for served in versions)
        while not decoding or len(calls) < self._prefill_calls:
            before = len(calls)
            for served in versions:
                rows = served.rows_to_fill(self._shapes)
                if rows:
                    calls.append(self._prefill_call(served, rows))
            decoding = decoding or any(served.decoding for served in versions)
            if len(calls) == before:
                break
        return calls

    def _prefill_call(self, served, rows):
        longest = max(start + tokens for _, start, tokens in rows)
        width = self._shapes.width(self._shapes.pages_for(longest))
        drawn, live_P = self._call_prefill(served, rows, width)
        entered = []
        for row, (running, start, tokens) in enumerate(rows):
            running.cursor = start + tokens
            page_size = self._shapes.page_size
            for page in running.pages[start // page_size : running.cursor // page_size]:
                page.ready = True
            if running.prefilled:
                del served.filling[running.id]
                if not running.ended:
                    running.dispatched = 1
                    entered.append((row, running))
        # A request may have several of the rows: it goes once all of them are counted.
        for running in {running.id: running for running, *_ in rows if running.ended}.values():
            self._let_go(running)
        self._statistics.prefill_calls += 1
        self._statistics.prefill_tokens += sum(tokens for *_, tokens in rows)
        version = served.version

        def read_first_tokens():
            fetched, live = jax.device_get((drawn, live_P))
            served.check_finite(fetched.logprob[[row for row, _ in entered]])
            for row, running in entered:
                if not running.ended:
                    cells = slice(row, row + 1)
                    tokens = fetched.token[cells].tolist()
                    self._take(running, tokens, fetched, cells, version, goes_on=live[row])

        return read_first_tokens

    def _decode_all(self):
        """Dispatches a decode call for every version that has something to draw; as above."""
        calls = []
        for served in list(self._served.values()):
            active = [(s, r) for s, r in served.occupied() if r.prefilled]
            quota_B = self._quotas(active)
            if quota_B.any():
                calls.append(self._decode_call(served, active, quota_B))
        return calls

    def _quotas(self, active):
        """Returns int32 [B]: tokens each slot draws in the next call, with the pages for them."""
        quota_B = np.zeros(self.slots, np.int32)
        asked = []  # (Running, tokens, pages), oldest first
        for _, running in sorted(active, key=lambda item: item[1].id):
            quota = running.quota(self._shapes.decode_steps)
            if quota:
                reach = len(running.prompt) + running.dispatched - 1 + quota
                more = max(self._shapes.pages_for(reach) - len(running.pages), 0)
                asked.append((running, quota, more))
        may_take = self._ledger.may_take
        more_R = np.array([more for *_, more in asked], int)
        all_at_once = bool(asked) and may_take(more_R, [running for running, *_ in asked])
        for running, quota, more in asked:
            if all_at_once or may_take(np.array([more]), [running]):
                self._ledger.take(running, more)
                running.seats.write_table(running)
                running.dispatched += quota
                quota_B[running.slot] = quota
        return quota_B

    def _decode_call(self, served, active, quota_B):
        width = self._shapes.width(max(len(running.pages) for _, running in active))
        drawn, live_B = self._call_decode(served, quota_B, [slot for slot, _ in active], width)
        self._statistics.decode_calls += 1
        self._statistics.slot_steps += self.slots * self._shapes.decode_steps
        version = served.version

        def read_drawn_tokens():
            fetched, live = jax.device_get((drawn, live_B))
            drew_CB = fetched.token != programs.NO_TOKEN
            served.check_finite(fetched.logprob[drew_CB])
            count_B = drew_CB.sum(0).tolist()
            self._statistics.drawn_tokens += sum(count_B)
            for slot, running in active:
                count = count_B[slot]
                if quota_B[slot]:
                    self._statistics.wasted_steps += self._shapes.decode_steps - count
                else:
                    self._statistics.waited_steps += self._shapes.decode_steps
                if not running.ended and count:
                    cells = (slice(count), slot)
                    tokens = fetched.token[cells].tolist()
                    self._take(running, tokens, fetched, cells, version, goes_on=live[slot])

        return read_drawn_tokens

    # ---- calls of the programs -----------------------------------------------------------------

    def _call_prefill(self, served, rows, width):
        new = seats.chunk(rows, shapes=self._shapes, width=width)
        self._make_cache()
        self._cache, served.state, drawn, live_P = self._prefill(
            served.weights, self._cache, served.state, new, self._seed
        )
        return drawn, live_P

    def _call_decode(self, served, quota_B, occupied, width):
        keep_B = np.zeros(self.slots, bool)
        keep_B[occupied] = True
        allowed_BW = served.allowed(quota_B, self._shapes)
        table_BM = served.table_BM[:, :width].copy()  # the next call may be prepared before it ran
        self._make_cache()
        self._cache, served.state, drawn, live_B = self._decode(
            served.weights, self._cache, served.state, table_BM, keep_B, quota_B, allowed_BW
        )
        return drawn, live_B

    def _make_cache(self):
        """Makes the cache where it is not there yet."""
        if self._cache is None:
            place = self._shapes.cache_sharding(self._mesh)
            self._cache = jax.jit(self._shapes.empty_cache, out_shardings=place)()

    def _count_trace(self):
        self._compile_count += 1

    # ---- what was drawn ------------------------------------------------------------------------

    def _take(self, running, tokens, fetched, cells, version, *, goes_on):
        """Hands drawn tokens to their request, which ends if it may not go on."""
        running.take(tokens, fetched, cells, version)
        if running.request.constraint is not None:
            running.request.constraint.accept(tokens[-1])
        if running.cut_at_stop_string(self._decode_text):
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
        self._statistics.cancelled += 1
        return True

    def _end(self, running, reason):
        running.ended = True
        self._finished.append((running.id, running.completion(reason)))
        self._statistics.requests += 1
        if running.id in self._waiting:
            del self._waiting[running.id]
            return
        running.seats.running[running.slot] = None
        self._ledger.settle(running)
        self._let_go(running)

    def _let_go(self, running):
        if self._ledger.let_go(running):
            running.seats.filling.pop(running.id, None)
